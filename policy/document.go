// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"errors"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/lexer"
	"github.com/goccy/go-yaml/parser"
	"github.com/goccy/go-yaml/token"
)

// Bounds of a document's shape.
const (
	// maxDepth bounds nesting; a valid file nests six deep (file, rules,
	// rule, except, entry, ports). The YAML library takes quadratic time in
	// the depth.
	maxDepth = 16

	// maxKeys bounds the keys that follow one another without the beginning
	// of an entry between them; a valid file has a dozen. The library takes
	// quadratic time in the keys of a mapping.
	maxKeys = 64
)

// decoder turns the syntax tree of a file into a Policy. It works on the tree and not
// on structs, because every mistake, missing keys included, is to be shown with its
// place. What it reads is in these files: document.go the text, tree.go mappings, lists
// and plain values, matches.go the allow-list and exceptions, sets.go
// the files of sets, rules.go and evidence.go the rules.
type decoder struct {
	file  string
	model *Model // nil: not known
	sets  map[string]*Set
	with  int // rules with evidence so far

	exempted int // networks of entries with exempt: true so far
}

// read returns the only document of data.
func (d *decoder) read(data []byte) (ast.Node, error) {
	if len(data) > MaxFileBytes {
		return nil, d.errorAt(1, 1, "file is larger than %d KiB; put long lists of networks into files of their own (sets)", MaxFileBytes>>10)
	}
	text := strings.TrimPrefix(string(data), "\ufeff")
	// The library takes a lone carriage return for a line break at some
	// places only; let there be one kind of line break.
	text = strings.ReplaceAll(text, "\r\n", "\n")
	if err := d.checkText(text); err != nil {
		return nil, err
	}
	tokens := lexer.Tokenize(text)
	if err := d.checkTokens(tokens); err != nil {
		return nil, err
	}
	// Duplicate keys are found below, with a better message.
	tree, err := parser.Parse(tokens, 0, parser.AllowDuplicateMapKey())
	if err != nil {
		var syntax *yaml.SyntaxError
		if errors.As(err, &syntax) {
			return nil, d.errorOn(syntax.Token, "not valid YAML: %s", syntax.Message)
		}
		return nil, d.errorAt(1, 1, "not valid YAML: %v", err)
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
			return nil, d.errorIn(doc.Body, "a second document begins here; a policy file holds one, remove the \"---\"")
		}
		body = doc.Body
	}
	if body == nil {
		return nil, d.errorAt(1, 1, "file holds no policy; write at least \"mode: monitor\"")
	}
	return body, nil
}

// checkText refuses what YAML does not allow but the library lets through.
func (d *decoder) checkText(text string) error {
	line, column := 1, 1
	for i, r := range text {
		switch {
		case r == '\n':
			line, column = line+1, 1
			continue
		case r == utf8.RuneError && !strings.HasPrefix(text[i:], "\ufffd"):
			return d.errorAt(line, column, "byte 0x%02x is not UTF-8; save the file as UTF-8", text[i])
		case r != '\t' && (unicode.IsControl(r) || r == '\u2028' || r == '\u2029' || r == '\ufeff'):
			return d.errorAt(line, column, "control character %U; remove it", r)
		}
		column++
	}
	return nil
}

// checkTokens refuses deep nesting before the parser recurses into it, and the
// parts of YAML that let a short text stand for a long one or for another
// type.
func (d *decoder) checkTokens(tokens token.Tokens) error {
	flowDepth, entries, line, keys := 0, 0, 0, 0
	for _, t := range tokens {
		if t.Position.Line != line {
			line, entries = t.Position.Line, 0
		}
		switch t.Type {
		case token.AnchorType, token.AliasType, token.MergeKeyType:
			return d.errorOn(t, "anchors, aliases and merge keys are not part of a policy file; write the value out")
		case token.TagType:
			return d.errorOn(t, "tags are not part of a policy file; remove %s", quote(t.Value))
		case token.DirectiveType:
			return d.errorOn(t, "directives are not part of a policy file; remove the line")
		case token.MappingKeyType:
			return d.errorOn(t, "\"?\" keys are not part of a policy file; write \"key: value\"")
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
		if keys > maxKeys {
			return d.errorOn(t, "too many keys in a row; a policy has seven keys, and a rule some twenty")
		}
		if flowDepth > maxDepth || entries > maxDepth {
			return d.errorOn(t, "nested too deep; a policy file nests no deeper than %d", maxDepth)
		}
	}
	return nil
}
