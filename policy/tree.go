// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"strconv"

	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/token"

	"github.com/earlydrop/earlydrop/policy/yamlfile"
)

type entry = yamlfile.Entry

// placeOf is the place of n, which is the value of e or an element of it.
func placeOf(e entry, n ast.Node) *token.Token {
	if n == e.Value {
		return e.Place()
	}
	return yamlfile.Start(n)
}

// mapping returns the entries of n by key. What names n in errors.
func (d *decoder) mapping(n ast.Node, what string, keys ...string) (map[string]entry, error) {
	entries, err := d.Entries(n, what, keys...)
	found := make(map[string]entry, len(entries))
	for _, e := range entries {
		found[e.Key.Value] = e
	}
	return found, err
}

// list returns the elements of a sequence.
func (d *decoder) list(e entry, what string) ([]ast.Node, error) {
	if seq, ok := e.Value.(*ast.SequenceNode); ok {
		return seq.Values, nil
	}
	return nil, d.On(e.Place(), "%s has to be a list, but is %s; begin each of its entries with \"- \"", what, yamlfile.TypeName(e.Value))
}

// oneOrMore returns the elements of a sequence, or a single value as a list of
// one. An empty list is an error.
func (d *decoder) oneOrMore(e entry, what string) ([]ast.Node, error) {
	seq, ok := e.Value.(*ast.SequenceNode)
	switch {
	case !ok:
		return []ast.Node{e.Value}, nil
	case len(seq.Values) == 0:
		return nil, d.On(e.Place(), "%s is an empty list; name at least one", what)
	}
	return seq.Values, nil
}

// text returns the value of a string.
func (d *decoder) text(at *token.Token, n ast.Node, what, example string) (string, error) {
	if s, ok := n.(*ast.StringNode); ok {
		return s.Value, nil
	}
	return "", d.On(at, "%s has to be text such as %s, but is %s", what, example, yamlfile.TypeName(n))
}

// boolean returns the value of a key that is true or false, in no other of YAML's
// spellings.
func (d *decoder) boolean(e entry, what string) (bool, error) {
	at := e.Place()
	switch n := e.Value.(type) {
	case *ast.BoolNode:
		if at.Value == strconv.FormatBool(n.Value) {
			return n.Value, nil
		}
	case *ast.StringNode:
		if at.Value == "true" || at.Value == "false" {
			return false, d.On(at, "%s has to be true or false, but is %s; remove the quotes", what, yamlfile.Quote(at.Value))
		}
	default:
		return false, d.On(at, "%s has to be true or false, but is %s", what, yamlfile.TypeName(n))
	}
	return false, d.On(at, "%s has to be true or false, but is %s", what, yamlfile.Quote(at.Value))
}
