// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"fmt"
	"strconv"
	"strings"
	"unicode"

	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/token"

	"github.com/earlydrop/earlydrop/policy/nearest"
)

// Error is a mistake in a policy file.
type Error struct {
	File   string
	Line   int // from 1
	Column int // from 1, in characters
	Msg    string
}

// Error returns one line, FILE:LINE:COLUMN: what is wrong and what to do.
func (e *Error) Error() string {
	return fmt.Sprintf("%s:%d:%d: %s", e.File, e.Line, e.Column, e.Msg)
}

func (d *decoder) errorAt(line, column int, format string, args ...any) error {
	return &Error{File: d.file, Line: max(line, 1), Column: max(column, 1), Msg: oneLine(fmt.Sprintf(format, args...))}
}

func (d *decoder) errorOn(t *token.Token, format string, args ...any) error {
	if t == nil || t.Position == nil {
		return d.errorAt(1, 1, format, args...)
	}
	return d.errorAt(t.Position.Line, t.Position.Column, format, args...)
}

func (d *decoder) errorIn(n ast.Node, format string, args ...any) error {
	return d.errorOn(start(n), format, args...)
}

// quote quotes what the file says, cut to a length that fits a line.
func quote(s string) string { return strconv.Quote(cut(s)) }

// cut cuts s to a length that fits a line.
func cut(s string) string {
	const longest = 48
	if runes := []rune(s); len(runes) > longest {
		s = string(runes[:longest]) + "..."
	}
	return s
}

// someOf lists words, at most sixteen.
func someOf(words []string) string {
	if len(words) == 0 {
		return "none"
	}
	if len(words) > 16 {
		return strings.Join(words[:16], ", ") + fmt.Sprintf(" and %d more", len(words)-16)
	}
	return strings.Join(words, ", ")
}

func didYouMean(word string, known []string) string {
	if guess := nearest.Word(word, known); guess != "" {
		return ", did you mean " + guess + "?"
	}
	return ""
}

// oneLine makes s fit for one line of a terminal.
func oneLine(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) || r == '\u2028' || r == '\u2029' {
			return ' '
		}
		return r
	}, s)
}
