// SPDX-License-Identifier: Apache-2.0

//go:build !cgo

package guard

import (
	"errors"

	"golang.org/x/sys/unix"
)

// Guard is explained where there is C. Without it no thread can be urgent.
type Guard struct{}

// New fails.
func New(unix.SchedAttr) (*Guard, error) { return nil, errors.ErrUnsupported }

// Step is explained where there is C.
func (*Guard) Step() bool { return false }

// End is explained where there is C.
func (*Guard) End() {}
