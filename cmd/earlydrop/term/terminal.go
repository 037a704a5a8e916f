// SPDX-License-Identifier: Apache-2.0

// Package term prints for people: how wide their terminal is, whether it knows colours,
// progress bars, tables of any length.
package term

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

// Is reports whether w is a terminal, and Places whether it is one that can place text anywhere.
func Is(w io.Writer) bool { return terminal(w) != nil }

// Places is explained at Is.
func Places(w io.Writer) bool { return Is(w) && !isDumb() }

func isDumb() bool {
	name := os.Getenv("TERM")
	return name == "" || name == "dumb"
}

// HasColors reports whether w is a terminal that knows colours and whose user
// doesn't mind them (no-color.org).
func HasColors(w io.Writer) bool {
	return !isDumb() && os.Getenv("NO_COLOR") == "" && terminal(w) != nil
}

// Unbounded is the width of an output that lines are not broken for.
const Unbounded = 1 << 16

// Width returns how many characters fit into a line of w, or Unbounded when w is
// no terminal. A terminal that does not tell has 80.
func Width(w io.Writer) int {
	f := terminal(w)
	if f == nil {
		return Unbounded
	}
	if width, _, err := term.GetSize(int(f.Fd())); err == nil && width > 0 {
		return width
	}
	return 80
}
