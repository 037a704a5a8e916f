// SPDX-License-Identifier: Apache-2.0

// Package settings reads files of settings: YAML, a key per setting, with a value or a list of
// values. Every mistake is shown with its place.
package settings

import (
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
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

// MaxFileBytes bounds a file. A thousand interfaces fit in.
const MaxFileBytes = 32 << 10

// Kind says what a setting takes.
type Kind int

// The kinds of settings.
const (
	Text   Kind = iota // text or a number, as it is written
	Switch             // true or false
	List               // texts, one or more
)

// Key is a setting that a file may have.
type Key struct {
	Name string
	Kind Kind
	// Set takes a value; of a List it is called for each. Its error says what is wrong with it.
	Set func(value string) error
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

// Load reads the file at path and sets what it says. What it sets before it finds a mistake
// stays set. The error is an *Error where the text is wrong, and else wraps the one of the file
// system.
func Load(path string, keys []Key) error {
	file, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("read settings: %w", err)
	}
	defer file.Close()
	data, err := io.ReadAll(io.LimitReader(file, MaxFileBytes+1))
	if err != nil {
		return fmt.Errorf("read settings: %w", err)
	}
	return Parse(path, data, keys)
}

// Parse is Load of a text. Name is the file's in errors.
func Parse(name string, data []byte, keys []Key) error {
	d := &decoder{file: oneLine(name)}
	body, err := d.read(data)
	if err != nil {
		return err
	}
	return d.settings(body, keys)
}

type decoder struct{ file string }

func (d *decoder) at(line, column int, format string, args ...any) error {
	return &Error{d.file, max(line, 1), max(column, 1), oneLine(fmt.Sprintf(format, args...))}
}

func (d *decoder) on(t *token.Token, format string, args ...any) error {
	if t == nil || t.Position == nil {
		return d.at(1, 1, format, args...)
	}
	return d.at(t.Position.Line, t.Position.Column, format, args...)
}

// read returns the only document of data.
func (d *decoder) read(data []byte) (ast.Node, error) {
	if len(data) > MaxFileBytes {
		return nil, d.at(1, 1, "file is larger than %d KiB", MaxFileBytes>>10)
	}
	text := strings.ReplaceAll(strings.TrimPrefix(string(data), "\ufeff"), "\r\n", "\n")
	line, column := 1, 1
	for i, r := range text {
		switch {
		case r == '\n':
			line, column = line+1, 0
		case r == utf8.RuneError && !strings.HasPrefix(text[i:], "\ufffd"):
			return nil, d.at(line, column, "byte 0x%02x is not UTF-8; save the file as UTF-8", text[i])
		case r != '\t' && (unicode.IsControl(r) || r == '\u2028' || r == '\u2029' || r == '\ufeff'):
			return nil, d.at(line, column, "control character %U; remove it", r)
		}
		column++
	}
	tokens := lexer.Tokenize(text)
	for _, t := range tokens {
		switch t.Type {
		case token.AnchorType, token.AliasType, token.MergeKeyType, token.TagType, token.DirectiveType, token.MappingKeyType:
			return nil, d.on(t, "%s is not part of a file of settings; write \"key: value\"", quote(t.Value))
		}
	}
	// Duplicate keys are found below, with a better message.
	tree, err := parser.Parse(tokens, 0, parser.AllowDuplicateMapKey())
	if err != nil {
		var syntax *yaml.SyntaxError
		if errors.As(err, &syntax) {
			return nil, d.on(syntax.Token, "not valid YAML: %s", syntax.Message)
		}
		return nil, d.at(1, 1, "not valid YAML: %v", err)
	}
	var body ast.Node
	for _, doc := range tree.Docs {
		if _, empty := doc.Body.(*ast.CommentGroupNode); empty || doc.Body == nil {
			continue
		}
		if body != nil {
			return nil, d.on(start(doc.Body), "a second document begins here; a file of settings holds one, remove the \"---\"")
		}
		body = doc.Body
	}
	if body == nil {
		return nil, d.at(1, 1, "file holds no settings; write at least one \"key: value\"")
	}
	return body, nil
}

func (d *decoder) settings(n ast.Node, keys []Key) error {
	var values []*ast.MappingValueNode
	switch n := n.(type) {
	case *ast.MappingNode:
		values = n.Values
	case *ast.MappingValueNode:
		values = []*ast.MappingValueNode{n}
	default:
		return d.on(start(n), "settings have to be lines of \"key: value\", but this is %s", typeName(n))
	}
	names := make([]string, len(keys))
	for i, k := range keys {
		names[i] = k.Name
	}
	first := map[string]int{} // line of a key
	for _, v := range values {
		at := v.Key.GetToken()
		i := slices.Index(names, at.Value)
		if i < 0 {
			hint := "known are " + strings.Join(names, ", ")
			if guess := nearest.Word(at.Value, names); guess != "" {
				hint = "did you mean " + guess + "?"
			}
			return d.on(at, "unknown setting %s; %s", quote(at.Value), hint)
		}
		if line, twice := first[at.Value]; twice {
			return d.on(at, "%s is given twice, first in line %d; keep one of them", at.Value, line)
		}
		first[at.Value] = at.Position.Line
		if err := d.setting(keys[i], at, v.Value); err != nil {
			return err
		}
	}
	return nil
}

// setting sets a key, which is at a place, to a value.
func (d *decoder) setting(key Key, at *token.Token, n ast.Node) error {
	all := []ast.Node{n}
	if seq, ok := n.(*ast.SequenceNode); ok && key.Kind == List {
		if all = seq.Values; len(all) == 0 {
			return d.on(start(n), "%s is an empty list; name at least one", key.Name)
		}
	}
	for _, one := range all {
		place := start(one)
		if _, nothing := one.(*ast.NullNode); nothing || place == nil {
			place = at
		}
		value, err := d.value(key, place, one)
		if err != nil {
			return err
		}
		if err := key.Set(value); err != nil {
			return d.on(place, "%s %s: %s", key.Name, quote(value), strings.TrimLeft(strings.TrimPrefix(err.Error(), quote(value)), ": "))
		}
	}
	return nil
}

// value returns what a plain value says, as it is written.
func (d *decoder) value(key Key, place *token.Token, n ast.Node) (string, error) {
	switch n := n.(type) {
	case *ast.BoolNode:
		if text := strconv.FormatBool(n.Value); key.Kind == Switch && n.GetToken().Value == text {
			return text, nil
		}
	case *ast.StringNode:
		if key.Kind == Switch {
			break
		}
		return n.Value, nil
	case *ast.IntegerNode, *ast.FloatNode:
		if key.Kind == Switch {
			break
		}
		return n.GetToken().Value, nil
	}
	switch key.Kind {
	case Switch:
		return "", d.on(place, "%s has to be true or false, but is %s", key.Name, typeName(n))
	case List:
		return "", d.on(place, "%s has to be text or a list of texts, but here is %s", key.Name, typeName(n))
	}
	return "", d.on(place, "%s has to be text or a number, but is %s", key.Name, typeName(n))
}

// start returns the first token of n, nil if there is none.
func start(n ast.Node) *token.Token {
	switch n := n.(type) {
	case nil:
		return nil
	case *ast.MappingNode:
		if !n.IsFlowStyle && len(n.Values) > 0 {
			return start(n.Values[0])
		}
		return n.Start
	case *ast.MappingValueNode:
		return n.Key.GetToken()
	}
	return n.GetToken()
}

// typeName says what n is, for messages.
func typeName(n ast.Node) string {
	switch n := n.(type) {
	case nil, *ast.NullNode:
		return "nothing"
	case *ast.StringNode:
		return "the text " + quote(n.Value)
	case *ast.LiteralNode:
		return "a block of text"
	case *ast.IntegerNode, *ast.FloatNode, *ast.InfinityNode, *ast.NanNode:
		return "a number"
	case *ast.BoolNode:
		return n.GetToken().Value
	case *ast.MappingNode, *ast.MappingValueNode:
		return "a mapping"
	case *ast.SequenceNode:
		return "a list"
	}
	return "something else"
}

// quote quotes what the file says, cut to a length that fits a line.
func quote(s string) string {
	const longest = 48
	if runes := []rune(s); len(runes) > longest {
		s = string(runes[:longest]) + "..."
	}
	return strconv.Quote(s)
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
