// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// A RefusedError says why something was not begun: the request or the system
// does not allow it, and nothing was changed.
type RefusedError struct {
	msg string
	err error
}

func refused(err error, format string, args ...any) error {
	return &RefusedError{msg: fmt.Sprintf(format, args...), err: err}
}

// Error returns one lower-case line that names the cause and what to do.
func (e *RefusedError) Error() string { return e.msg }

// Unwrap returns the system's error, if there is one.
func (e *RefusedError) Unwrap() error { return e.err }

// ErrNoAccess means that this process may not use the folder of the pins, or what is
// pinned there.
var ErrNoAccess = errors.New("no access to what is pinned")

func noAccess(err error, format string, args ...any) error {
	return refused(fmt.Errorf("%w: %w", ErrNoAccess, err), format, args...)
}

// ErrNotAttached means that nothing is pinned for the interface.
var ErrNotAttached = errors.New("not attached")

// ErrFull is wrapped by errors about a table that has no room for another entry. It
// wraps what the kernel says of that, [unix.E2BIG].
var ErrFull error = errFull{}

type errFull struct{}

func (errFull) Error() string { return "full" }

func (errFull) Unwrap() error { return unix.E2BIG }

// ErrNoInterface means that this network namespace has no interface of that name.
var ErrNoInterface = errors.New("no such interface")

// A RemovedError says that an interface is not there any more that was attached to.
type RemovedError struct{ Interface string }

// Error returns one lower-case line.
func (e *RemovedError) Error() string { return "interface " + e.Interface + " was removed" }

// ErrNoBPFFS means that the BPF file system is not mounted and can't be: that takes
// CAP_SYS_ADMIN.
var ErrNoBPFFS = errors.New("no BPF file system")
