// SPDX-License-Identifier: Apache-2.0

package main

import (
	"io"
	"os"

	"golang.org/x/term"
)

// terminal returns w as a file if it is a terminal, else nil.
func terminal(w io.Writer) *os.File {
	if f, ok := w.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		return f
	}
	return nil
}

// hasColors reports whether w is a terminal that knows colours and whose user
// doesn't mind them (no-color.org).
func hasColors(w io.Writer) bool {
	switch os.Getenv("TERM") {
	case "", "dumb":
		return false
	}
	return os.Getenv("NO_COLOR") == "" && terminal(w) != nil
}

// unbounded is the width of an output that lines are not broken for.
const unbounded = 1 << 16

// columns returns how many characters fit into a line of w, or unbounded when w is
// no terminal. A terminal that does not tell has 80.
func columns(w io.Writer) int {
	f := terminal(w)
	if f == nil {
		return unbounded
	}
	if width, _, err := term.GetSize(int(f.Fd())); err == nil && width > 0 {
		return width
	}
	return 80
}
