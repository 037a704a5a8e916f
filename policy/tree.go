// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"slices"
	"strconv"
	"strings"

	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/token"
)

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

// lineOf returns the line that n begins in, from 1.
func lineOf(n ast.Node) int {
	if at := start(n); at != nil && at.Position != nil {
		return at.Position.Line
	}
	return 1
}

// typeName says what n is, for messages.
func typeName(n ast.Node) string {
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

// entry is one key of a mapping with its value.
type entry struct {
	key   *token.Token
	value ast.Node
}

// place returns where to show a mistake of the value: the value itself, or
// the key when there is nothing behind it.
func (e entry) place() *token.Token {
	if _, empty := e.value.(*ast.NullNode); empty || e.value == nil {
		return e.key
	}
	return start(e.value)
}

// placeOf is place for n, which is the value or an element of it.
func (e entry) placeOf(n ast.Node) *token.Token {
	if n == e.value {
		return e.place()
	}
	return start(n)
}

// mapping returns the entries of n by key. What names n in errors.
func (d *decoder) mapping(n ast.Node, what string, keys ...string) (map[string]entry, error) {
	var values []*ast.MappingValueNode
	switch n := n.(type) {
	case *ast.MappingNode:
		values = n.Values
	case *ast.MappingValueNode:
		values = []*ast.MappingValueNode{n}
	default:
		return nil, d.errorIn(n, "%s has to be a mapping with the keys %s, but is %s", what, strings.Join(keys, ", "), typeName(n))
	}
	found := make(map[string]entry, len(values))
	for _, v := range values {
		at := v.Key.GetToken()
		key, ok := v.Key.(*ast.StringNode)
		if !ok {
			return nil, d.errorOn(at, "key %s in %s has to be one of %s", quote(at.Value), what, strings.Join(keys, ", "))
		}
		if !slices.Contains(keys, key.Value) {
			return nil, d.errorOn(at, "unknown key %s in %s%s; known are %s",
				quote(key.Value), what, didYouMean(key.Value, keys), strings.Join(keys, ", "))
		}
		if first, twice := found[key.Value]; twice {
			return nil, d.errorOn(at, "key %s is given twice in %s, first in line %d; keep one of them",
				quote(key.Value), what, first.key.Position.Line)
		}
		found[key.Value] = entry{at, v.Value}
	}
	return found, nil
}

// list returns the elements of a sequence.
func (d *decoder) list(e entry, what string) ([]ast.Node, error) {
	if seq, ok := e.value.(*ast.SequenceNode); ok {
		return seq.Values, nil
	}
	return nil, d.errorOn(e.place(), "%s has to be a list, but is %s; begin each of its entries with \"- \"", what, typeName(e.value))
}

// oneOrMore returns the elements of a sequence, or a single value as a list of
// one. An empty list is an error.
func (d *decoder) oneOrMore(e entry, what string) ([]ast.Node, error) {
	seq, ok := e.value.(*ast.SequenceNode)
	switch {
	case !ok:
		return []ast.Node{e.value}, nil
	case len(seq.Values) == 0:
		return nil, d.errorOn(e.place(), "%s is an empty list; name at least one", what)
	}
	return seq.Values, nil
}

// text returns the value of a string.
func (d *decoder) text(at *token.Token, n ast.Node, what, example string) (string, error) {
	if s, ok := n.(*ast.StringNode); ok {
		return s.Value, nil
	}
	return "", d.errorOn(at, "%s has to be text such as %s, but is %s", what, example, typeName(n))
}

// boolean returns the value of a key that is true or false, in no other of YAML's
// spellings.
func (d *decoder) boolean(e entry, what string) (bool, error) {
	at := e.place()
	switch n := e.value.(type) {
	case *ast.BoolNode:
		if at.Value == strconv.FormatBool(n.Value) {
			return n.Value, nil
		}
	case *ast.StringNode:
		if at.Value == "true" || at.Value == "false" {
			return false, d.errorOn(at, "%s has to be true or false, but is %s; remove the quotes", what, quote(at.Value))
		}
	default:
		return false, d.errorOn(at, "%s has to be true or false, but is %s", what, typeName(n))
	}
	return false, d.errorOn(at, "%s has to be true or false, but is %s", what, quote(at.Value))
}
