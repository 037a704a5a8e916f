// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/gaissmai/bart"
	"github.com/goccy/go-yaml/ast"

	"github.com/earlydrop/earlydrop/policy/yamlfile"
)

// Bounds of the file of a set.
const (
	// MaxSetEntries bounds the networks of a set. A million of single addresses take some 90 MB.
	MaxSetEntries = 2_000_000
	// maxSetLine bounds a line, comment included.
	maxSetLine = 512
)

// Set is a list of networks that is in a file of its own. It must not be changed, and may
// be used concurrently.
type Set struct {
	Name string
	File string // as it was opened
	tree bart.Lite
}

// Contains reports whether one of the set's networks has the address, which is not v4-mapped.
func (s *Set) Contains(a netip.Addr) bool { return s.tree.Contains(a) }

// Len returns how many networks are in the set. One that is listed twice counts once.
func (s *Set) Len() int { return s.tree.Size() }

// sets reads the files that the policy names.
func (d *decoder) readSets(e entry) error {
	values, ok := mappingValues(e.Value)
	if !ok {
		return d.On(e.Place(), "sets has to be a mapping such as \"cloud: {file: cloud.txt}\", but is %s", yamlfile.TypeName(e.Value))
	}
	for _, v := range values {
		at := v.Key.GetToken()
		name, ok := v.Key.(*ast.StringNode)
		if !ok || !ruleName.MatchString(name.Value) {
			return d.On(at, "the name of a set %s has to be 1 to 64 letters, digits, \".\", \"_\" or \"-\", the first a letter or digit", yamlfile.Quote(at.Value))
		}
		if d.sets[name.Value] != nil {
			return d.On(at, "there are two sets %s; give one of them another name", yamlfile.Quote(name.Value))
		}
		what := "set " + name.Value
		keys, err := d.mapping(v.Value, what, "file")
		if err != nil {
			return err
		}
		file, ok := keys["file"]
		if !ok {
			return d.On(at, "%s has no file; add one, for example \"file: %s.txt\"", what, name.Value)
		}
		path, err := d.text(file.Place(), file.Value, "file", name.Value+".txt")
		if err != nil {
			return err
		}
		if path == "" {
			return d.On(file.Place(), "file of %s is empty; write a path, beside the policy file or absolute", what)
		}
		if !filepath.IsAbs(path) {
			path = filepath.Join(filepath.Dir(d.Name), path)
		}
		set, err := loadSet(name.Value, path)
		var mistake *Error
		switch {
		case errors.As(err, &mistake):
			return err // in the file itself
		case err != nil:
			return d.On(file.Place(), "%s: %v", what, err)
		}
		d.sets[name.Value] = set
	}
	return nil
}

// mappingValues returns the entries of a mapping, which may have any keys.
func mappingValues(n ast.Node) ([]*ast.MappingValueNode, bool) {
	switch n := n.(type) {
	case *ast.MappingNode:
		return n.Values, true
	case *ast.MappingValueNode:
		return []*ast.MappingValueNode{n}, true
	}
	return nil, false
}

// loadSet reads a file. The error is an *Error where a line is wrong.
func loadSet(name, path string) (*Set, error) {
	info, err := os.Stat(path) // opening a pipe would wait for its other end
	if err != nil {
		return nil, err
	}
	switch {
	case info.IsDir():
		return nil, fmt.Errorf("%s is a folder; name a file with one network a line", yamlfile.Quote(path))
	case !info.Mode().IsRegular():
		return nil, fmt.Errorf("%s is no regular file; name a file with one network a line", yamlfile.Quote(path))
	}
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	return readSet(name, path, file)
}

// readSet reads the text of a set: a network or an address on each line, and comments from
// "#" on. The last line has to end, for one that was cut may be another network.
func readSet(name, path string, from io.Reader) (*Set, error) {
	s := &Set{Name: name, File: path}
	lines := bufio.NewReaderSize(from, 64<<10)
	for n := 1; ; n++ {
		wrong := func(format string, args ...any) error {
			return &Error{File: yamlfile.OneLine(path), Line: n, Column: 1, Msg: yamlfile.OneLine(fmt.Sprintf(format, args...))}
		}
		line, err := lines.ReadSlice('\n')
		switch {
		case err == io.EOF && len(line) == 0 && n == 1:
			return nil, wrong("the file of set %s is empty; if that is meant, write a comment into it (\"# none\")", name)
		case err == io.EOF && len(line) == 0:
			return s, nil
		case err == io.EOF:
			return nil, wrong("the file ends within a line; if it is whole, end its last line with a line break")
		case errors.Is(err, bufio.ErrBufferFull) || len(line) > maxSetLine:
			return nil, wrong("the line is longer than %d bytes; write one network a line", maxSetLine)
		case err != nil:
			return nil, err
		case !utf8.Valid(line):
			return nil, wrong("the line is not UTF-8; is it a list of networks, one a line?")
		}
		text := string(line)
		if n == 1 {
			text = strings.TrimPrefix(text, "\ufeff")
		}
		text, _, _ = strings.Cut(text, "#")
		if text = strings.TrimSpace(text); text == "" {
			continue
		}
		prefix, err := parseNetwork(text)
		if err != nil {
			return nil, wrong("%v", err)
		}
		if s.tree.Insert(prefix); s.tree.Size() > MaxSetEntries {
			return nil, wrong("more than %d networks; split the set", MaxSetEntries)
		}
	}
}

// parseNetwork reads a network or an address. An IPv4 one is never v4-mapped.
func parseNetwork(s string) (netip.Prefix, error) {
	if addr, err := netip.ParseAddr(s); err == nil && addr.Zone() == "" {
		addr = addr.Unmap()
		return netip.PrefixFrom(addr, addr.BitLen()), nil
	}
	p, err := netip.ParsePrefix(s)
	if err != nil {
		return p, fmt.Errorf("%s is neither a network nor an address; write one such as 192.0.2.0/24 or 2001:db8::1", yamlfile.Quote(s))
	}
	if p != p.Masked() {
		return p, fmt.Errorf("%s has host bits set; the network is %s", yamlfile.Quote(s), p.Masked())
	}
	if addr := p.Addr(); addr.Is4In6() {
		// Flows carry IPv4 addresses unmapped. A shorter prefix has host bits.
		return netip.PrefixFrom(addr.Unmap(), p.Bits()-96), nil
	}
	return p, nil
}

// set returns the set of a name.
func (d *decoder) set(e entry, name string) (*Set, error) {
	s := d.sets[name]
	if s == nil {
		names := make([]string, 0, len(d.sets))
		for name := range d.sets {
			names = append(names, name)
		}
		slices.Sort(names)
		return nil, d.On(e.Place(), "there is no set %s%s; sets has %s", yamlfile.Quote(name), yamlfile.DidYouMean(name, names), someOf(names))
	}
	return s, nil
}
