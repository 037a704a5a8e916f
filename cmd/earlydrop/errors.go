// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"io"
	"strings"
)

// Exit codes of every command.
const (
	exitOK       = 0
	exitFailure  = 1 // something went wrong while it ran
	exitBadInput = 2 // nothing was changed: a wrong flag, file, interface, a missing capability...
	exitNotWell  = 3 // status: not all is well
)

// errNotWell ends the program with exitNotWell; what is not well was said already.
var errNotWell = errors.New("")

// inputError marks an error as one that the caller can mend by asking
// differently; run turns it into exitBadInput.
type inputError struct{ err error }

func (e *inputError) Error() string { return e.err.Error() }
func (e *inputError) Unwrap() error { return e.err }

// badInput returns an error that ends the program with exit code 2. Format
// and args are those of fmt.Errorf, %w included.
func badInput(format string, args ...any) error {
	return &inputError{fmt.Errorf(format, args...)}
}

// asBadInput marks err as bad input without changing its text. It returns nil
// for nil.
func asBadInput(err error) error {
	if err == nil {
		return nil
	}
	return &inputError{err}
}

// exitCode returns the exit code that err stands for.
func exitCode(err error) int {
	var input *inputError
	switch {
	case err == nil:
		return exitOK
	case errors.Is(err, errNotWell):
		return exitNotWell
	case errors.As(err, &input):
		return exitBadInput
	}
	return exitFailure
}

// report prints err as one line and returns its exit code.
func report(w io.Writer, err error) int {
	if err != nil && err != errNotWell {
		fmt.Fprintf(w, "earlydrop: %s\n", oneLine(err.Error()))
	}
	return exitCode(err)
}

// oneLine joins the lines of s (errors.Join puts one error on each) with
// semicolons.
func oneLine(s string) string {
	lines := strings.FieldsFunc(s, func(r rune) bool { return r == '\n' || r == '\r' })
	for i, line := range lines {
		lines[i] = strings.TrimSpace(line)
	}
	return strings.Join(lines, "; ")
}
