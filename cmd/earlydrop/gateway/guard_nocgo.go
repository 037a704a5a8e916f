// SPDX-License-Identifier: Apache-2.0

//go:build !cgo

package gateway

import (
	"errors"

	"golang.org/x/sys/unix"
)

// guard is explained where there is C. Without it no thread is urgent.
type guard struct{}

func newGuard(unix.SchedAttr) (*guard, error) { return nil, errors.ErrUnsupported }

func (*guard) step() bool { return false }
func (*guard) end()       {}
