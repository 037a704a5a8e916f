// SPDX-License-Identifier: Apache-2.0

// Package settings reads files of settings: YAML, a key per setting, with a value or a list of
// values. Every mistake is shown with its place.
package settings

import (
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/token"

	"github.com/earlydrop/earlydrop/policy/yamlfile"
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
type Error = yamlfile.Error

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
	d := &decoder{&yamlfile.File{Name: yamlfile.OneLine(name), Kind: &yamlfile.Kind{
		What: "a file of settings", Empty: "file holds no settings; write at least one \"key: value\"",
		MaxBytes: MaxFileBytes, MaxKeys: 2*len(keys) + 16, TooMany: fmt.Sprintf("there are %d settings", len(keys)),
	}}}
	body, err := d.Read(data)
	if err != nil {
		return err
	}
	names := make([]string, len(keys))
	for i, k := range keys {
		names[i] = k.Name
	}
	entries, err := d.Entries(body, "the file", names...)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if err := d.setting(keys[slices.Index(names, e.Key.Value)], e); err != nil {
			return err
		}
	}
	return nil
}

type decoder struct{ *yamlfile.File }

// setting sets a key to what an entry says.
func (d *decoder) setting(key Key, e yamlfile.Entry) error {
	all := []ast.Node{e.Value}
	if seq, ok := e.Value.(*ast.SequenceNode); ok && key.Kind == List {
		if all = seq.Values; len(all) == 0 {
			return d.On(e.Place(), "%s is an empty list; name at least one", key.Name)
		}
	}
	for _, one := range all {
		place := yamlfile.Entry{Key: e.Key, Value: one}.Place()
		value, err := d.value(key, place, one)
		if err != nil {
			return err
		}
		if err := key.Set(value); err != nil {
			return d.On(place, "%s %s: %s", key.Name, yamlfile.Quote(value), strings.TrimLeft(strings.TrimPrefix(err.Error(), yamlfile.Quote(value)), ": "))
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
		return "", d.On(place, "%s has to be true or false, but is %s", key.Name, typeName(n))
	case List:
		return "", d.On(place, "%s has to be text or a list of texts, but here is %s", key.Name, typeName(n))
	}
	return "", d.On(place, "%s has to be text or a number, but is %s", key.Name, typeName(n))
}

// typeName says what n is, for messages.
func typeName(n ast.Node) string {
	switch n := n.(type) {
	case *ast.StringNode:
		return "the text " + yamlfile.Quote(n.Value)
	case *ast.BoolNode:
		return n.GetToken().Value
	}
	return yamlfile.TypeName(n)
}
