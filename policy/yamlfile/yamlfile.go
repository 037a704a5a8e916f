// SPDX-License-Identifier: Apache-2.0

// Package yamlfile reads YAML that people write by hand. It keeps the syntax tree, so that every
// mistake, missing keys included, can be shown with its place.
package yamlfile

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/lexer"
	"github.com/goccy/go-yaml/parser"
	"github.com/goccy/go-yaml/token"

	"github.com/earlydrop/earlydrop/policy/nearest"
)

// maxDepth bounds nesting; a policy nests six deep (file, rules, rule, except, entry, ports). The
// YAML library takes quadratic time in the depth.
const maxDepth = 16

// Kind is what files of a kind have in common. Its texts go into errors.
type Kind struct {
	What     string // such as "a policy file"
	Empty    string // what is wrong with an empty one, and what to write
	MaxBytes int
	TooLarge string // what to do about a larger one (optional)
	// MaxKeys bounds the keys that follow one another without the beginning of an entry between
	// them. The YAML library takes quadratic time in the keys of a mapping.
	MaxKeys int
	// TooMany says how many keys there may be.
	TooMany string
}

// File is a file that is read. Its methods may be called concurrently.
type File struct {
	Name string // in errors, one line
	Kind *Kind
}

// Error is a mistake in a file.
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

// At returns an *Error of a place.
func (f *File) At(line, column int, format string, args ...any) error {
	return &Error{File: f.Name, Line: max(line, 1), Column: max(column, 1), Msg: OneLine(fmt.Sprintf(format, args...))}
}

// On returns an *Error of a token; the file's beginning where there is none.
func (f *File) On(t *token.Token, format string, args ...any) error {
	if t == nil || t.Position == nil {
		return f.At(1, 1, format, args...)
	}
	return f.At(t.Position.Line, t.Position.Column, format, args...)
}

// In returns an *Error of where a node begins.
func (f *File) In(n ast.Node, format string, args ...any) error {
	return f.On(Start(n), format, args...)
}

// Read returns the only document of data. What it refuses is an *Error.
func (f *File) Read(data []byte) (ast.Node, error) {
	if len(data) > f.Kind.MaxBytes {
		return nil, f.At(1, 1, "file is larger than %d KiB%s", f.Kind.MaxBytes>>10, f.Kind.TooLarge)
	}
	text := strings.TrimPrefix(string(data), "\ufeff")
	// The library takes a lone carriage return for a line break at some
	// places only; let there be one kind of line break.
	text = strings.ReplaceAll(text, "\r\n", "\n")
	if err := f.checkText(text); err != nil {
		return nil, err
	}
	tokens := lexer.Tokenize(text)
	if err := f.checkTokens(tokens); err != nil {
		return nil, err
	}
	// Duplicate keys are found below, with a better message.
	tree, err := parser.Parse(tokens, 0, parser.AllowDuplicateMapKey())
	if err != nil {
		var syntax *yaml.SyntaxError
		if errors.As(err, &syntax) {
			return nil, f.On(syntax.Token, "not valid YAML: %s", syntax.Message)
		}
		return nil, f.At(1, 1, "not valid YAML: %v", err)
	}
	var body ast.Node
	for _, doc := range tree.Docs {
		if doc.Body == nil {
			continue
		}
		if _, empty := doc.Body.(*ast.CommentGroupNode); empty {
			continue
		}
		if body != nil {
			return nil, f.In(doc.Body, "a second document begins here; %s holds one, remove the \"---\"", f.Kind.What)
		}
		body = doc.Body
	}
	if body == nil {
		return nil, f.At(1, 1, "%s", f.Kind.Empty)
	}
	return body, nil
}

// checkText refuses what YAML does not allow but the library lets through.
func (f *File) checkText(text string) error {
	line, column := 1, 1
	for i, r := range text {
		switch {
		case r == '\n':
			line, column = line+1, 1
			continue
		case r == utf8.RuneError && !strings.HasPrefix(text[i:], "\ufffd"):
			return f.At(line, column, "byte 0x%02x is not UTF-8; save the file as UTF-8", text[i])
		case r != '\t' && (unicode.IsControl(r) || r == '\u2028' || r == '\u2029' || r == '\ufeff'):
			return f.At(line, column, "control character %U; remove it", r)
		}
		column++
	}
	return nil
}

// checkTokens refuses deep nesting before the parser recurses into it, and the
// parts of YAML that let a short text stand for a long one or for another
// type.
func (f *File) checkTokens(tokens token.Tokens) error {
	flowDepth, entries, line, keys := 0, 0, 0, 0
	for _, t := range tokens {
		if t.Position.Line != line {
			line, entries = t.Position.Line, 0
		}
		switch t.Type {
		case token.AnchorType, token.AliasType, token.MergeKeyType:
			return f.On(t, "anchors, aliases and merge keys are not part of %s; write the value out", f.Kind.What)
		case token.TagType:
			return f.On(t, "tags are not part of %s; remove %s", f.Kind.What, Quote(t.Value))
		case token.DirectiveType:
			return f.On(t, "directives are not part of %s; remove the line", f.Kind.What)
		case token.MappingKeyType:
			return f.On(t, "\"?\" keys are not part of %s; write \"key: value\"", f.Kind.What)
		case token.MappingStartType:
			flowDepth++
			keys = 0
		case token.SequenceStartType:
			flowDepth++
		case token.MappingEndType, token.SequenceEndType:
			flowDepth--
		case token.SequenceEntryType:
			entries++
			keys = 0
		case token.MappingValueType:
			keys++
		}
		if keys > f.Kind.MaxKeys {
			return f.On(t, "too many keys in a row; %s", f.Kind.TooMany)
		}
		if flowDepth > maxDepth || entries > maxDepth {
			return f.On(t, "nested too deep; %s nests no deeper than %d", f.Kind.What, maxDepth)
		}
	}
	return nil
}

// Start returns the first token of n, nil if there is none.
func Start(n ast.Node) *token.Token {
	switch n := n.(type) {
	case nil:
		return nil
	case *ast.MappingNode:
		if !n.IsFlowStyle && len(n.Values) > 0 {
			return Start(n.Values[0])
		}
		return n.Start
	case *ast.MappingValueNode:
		return n.Key.GetToken()
	}
	return n.GetToken()
}

// LineOf returns the line that n begins in, from 1.
func LineOf(n ast.Node) int {
	if at := Start(n); at != nil && at.Position != nil {
		return at.Position.Line
	}
	return 1
}

// TypeName says what n is, for messages.
func TypeName(n ast.Node) string {
	switch n.(type) {
	case nil, *ast.NullNode:
		return "nothing"
	case *ast.StringNode:
		return "text"
	case *ast.LiteralNode:
		return "a block of text"
	case *ast.IntegerNode, *ast.FloatNode, *ast.InfinityNode, *ast.NanNode:
		return "a number"
	case *ast.BoolNode:
		return "true or false"
	case *ast.MappingNode, *ast.MappingValueNode:
		return "a mapping"
	case *ast.SequenceNode:
		return "a list"
	}
	return "something else"
}

// Entry is one key of a mapping with its value.
type Entry struct {
	Key   *token.Token
	Value ast.Node
}

// Place returns where to show a mistake of the value: the value itself, or
// the key when there is nothing behind it.
func (e Entry) Place() *token.Token {
	if _, empty := e.Value.(*ast.NullNode); empty || e.Value == nil {
		return e.Key
	}
	return Start(e.Value)
}

// Entries returns the entries of a mapping in their order, each of one of the keys, and none
// twice. What names the mapping in errors.
func (f *File) Entries(n ast.Node, what string, keys ...string) ([]Entry, error) {
	var values []*ast.MappingValueNode
	switch n := n.(type) {
	case *ast.MappingNode:
		values = n.Values
	case *ast.MappingValueNode:
		values = []*ast.MappingValueNode{n}
	default:
		return nil, f.In(n, "%s has to be a mapping with the keys %s, but is %s", what, strings.Join(keys, ", "), TypeName(n))
	}
	known := make(map[string]bool, len(keys))
	for _, key := range keys {
		known[key] = true
	}
	entries, first := make([]Entry, 0, len(values)), make(map[string]int, len(values)) // line of a key
	for _, v := range values {
		at := v.Key.GetToken()
		key, ok := v.Key.(*ast.StringNode)
		if !ok {
			return nil, f.On(at, "key %s in %s has to be one of %s", Quote(at.Value), what, strings.Join(keys, ", "))
		}
		if !known[key.Value] {
			const few = 32 // beyond that, a guess says more
			hint := DidYouMean(key.Value, keys)
			if hint == "" || len(keys) <= few {
				hint += "; known are " + strings.Join(keys, ", ")
			}
			return nil, f.On(at, "unknown key %s in %s%s", Quote(key.Value), what, hint)
		}
		if line, twice := first[key.Value]; twice {
			return nil, f.On(at, "key %s is given twice in %s, first in line %d; keep one of them", Quote(key.Value), what, line)
		}
		first[key.Value] = at.Position.Line
		entries = append(entries, Entry{at, v.Value})
	}
	return entries, nil
}

// Quote quotes what the file says, cut to a length that fits a line.
func Quote(s string) string { return strconv.Quote(Cut(s)) }

// Cut cuts s to a length that fits a line.
func Cut(s string) string {
	const longest = 48
	if runes := []rune(s); len(runes) > longest {
		s = string(runes[:longest]) + "..."
	}
	return s
}

// DidYouMean returns a question for the known word that is like a wrong one, empty where none is.
func DidYouMean(word string, known []string) string {
	if guess := nearest.Word(word, known); guess != "" {
		return ", did you mean " + guess + "?"
	}
	return ""
}

// OneLine makes s fit for one line of a terminal.
func OneLine(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) || r == '\u2028' || r == '\u2029' {
			return ' '
		}
		return r
	}, s)
}
