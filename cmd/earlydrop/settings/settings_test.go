// SPDX-License-Identifier: Apache-2.0

package settings

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// keys returns some, and what they are set to, a line each.
func keys(set *[]string) []Key {
	note := func(name string) func(string) error {
		return func(value string) error {
			if value == "bad" {
				return errors.New("use good")
			}
			*set = append(*set, name+"="+value)
			return nil
		}
	}
	return []Key{{"interface", List, note("interface")}, {"policy", Text, note("policy")}, {"max-flows", Text, note("max-flows")}, {"persist", Switch, note("persist")}}
}

func TestSettingsAreSet(t *testing.T) {
	for text, want := range map[string][]string{
		"interface: [eth0, \"eth1\"]\npersist: true\n":  {"interface=eth0", "interface=eth1", "persist=true"},
		"interface:\n  - eth0\n  - 5\npolicy: a b.yaml": {"interface=eth0", "interface=5", "policy=a b.yaml"},
		"interface: eth0 # one\r\nmax-flows: 2048\r\n":  {"interface=eth0", "max-flows=2048"},
		"\ufeffpersist: false":                          {"persist=false"},
		"{policy: 10m, max-flows: 0x10}":                {"policy=10m", "max-flows=0x10"},
		"# a comment\n---\npolicy: /etc/ä.yaml\n":       {"policy=/etc/ä.yaml"},
	} {
		var set []string
		if err := Parse("s.yaml", []byte(text), keys(&set)); err != nil || !slices.Equal(set, want) {
			t.Errorf("%q: %q, %v; want %q", text, set, err, want)
		}
	}
}

func TestMistakesHaveTheirPlace(t *testing.T) {
	for text, want := range map[string]string{
		"":                                       `1:1: file holds no settings; write at least one "key: value"`,
		"# nothing\n":                            `1:1: file holds no settings`,
		"interfaces: a":                          `1:1: unknown key "interfaces" in the file, did you mean interface?`,
		"policy: a\nfoo: 1":                      `2:1: unknown key "foo" in the file; known are interface, policy, max-flows, persist`,
		"1: 2":                                   `1:1: key "1" in the file has to be one of interface, policy`,
		"policy: a\npolicy: b":                   `2:1: key "policy" is given twice in the file, first in line 1; keep one of them`,
		"policy:":                                `1:1: policy has to be text or a number, but is nothing`,
		"policy: ~":                              `1:1: policy has to be`,
		"policy: [a]":                            `1:9: policy has to be text or a number, but is a list`,
		"policy: {a: b}":                         `1:9: policy has to be text or a number, but is a mapping`,
		"policy: true":                           `1:9: policy has to be text or a number, but is true`,
		"policy: |\n  a\n":                       `1:9: policy has to be text or a number, but is a block of text`,
		"policy: bad":                            `1:9: policy "bad": use good`,
		"interface: []":                          `1:12: interface is an empty list; name at least one`,
		"interface: [a, bad]":                    `1:16: interface "bad": use good`,
		"interface:\n- a\n- [b]\n":               `3:3: interface has to be text or a list of texts, but here is a list`,
		"interface:\n- a\n- b: c\n":              `3:3: interface has to be text or a list of texts, but here is a mapping`,
		"persist: yes":                           `1:10: persist has to be true or false, but is the text "yes"`,
		"persist: \"true\"":                      `1:10: persist has to be true or false, but is the text "true"`,
		"persist: True":                          `1:10: persist has to be true or false, but is True`,
		"persist: 1":                             `1:10: persist has to be true or false, but is a number`,
		"just text":                              `1:1: the file has to be a mapping with the keys interface, policy, max-flows, persist, but is text`,
		"- a\n- b":                               `1:1: the file has to be a mapping with the keys interface, policy, max-flows, persist, but is a list`,
		"policy: a\n---\npolicy: b":              `3:1: a second document begins here`,
		"policy: &x a":                           `1:9: anchors, aliases and merge keys are not part of a file of settings`,
		"policy: !!str a":                        `1:9: tags are not part of a file of settings; remove "!!str"`,
		"policy: a\n\tpersist: true":             `2:1: not valid YAML`,
		"policy: \"a":                            `not valid YAML`,
		"policy: a\npersist: \xff":               `2:10: byte 0xff is not UTF-8; save the file as UTF-8`,
		"policy: a\x00b":                         `1:10: control character U+0000; remove it`,
		strings.Repeat("#", 33<<10):              `1:1: file is larger than 32 KiB`,
		strings.Repeat("[", 2000):                `nested too deep; a file of settings nests`,
		"policy: " + strings.Repeat("a: ", 2000): `s.yaml:`,
		strings.Repeat("policy: a\n", 2000):      `too many keys in a row; there are 4 settings`,
	} {
		var set []string
		err := Parse("s.yaml", []byte(text), keys(&set))
		var wrong *Error
		if !errors.As(err, &wrong) || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%.40q: %v; want %s", text, err, want)
		}
	}
}

func TestLoadNamesTheFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "attach.yaml")
	if err := Load(path, nil); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%v", err)
	}
	if err := os.WriteFile(path, []byte("foo: 1"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := Load(path, nil); err == nil || !strings.HasPrefix(err.Error(), path+":1:1: ") {
		t.Errorf("%v", err)
	}
}

// No text makes it panic or say more than a line, and each mistake is in the text.
func FuzzParse(f *testing.F) {
	for _, text := range []string{"interface: [a, b]", "persist: true\npolicy: x", "a: b: c", "- a", "policy: |\n  a", "{a: [b, {c: d}]}", "? a\n: b", "\t", "a: 'b", "%YAML 1.2\n---\na: b"} {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		var set []string
		err := Parse("s.yaml", text, keys(&set))
		var wrong *Error
		switch {
		case err == nil:
		case !errors.As(err, &wrong) || strings.ContainsAny(err.Error(), "\n\r"):
			t.Errorf("%q", fmt.Sprint(err))
		case wrong.Line > strings.Count(string(text), "\n")+2:
			t.Errorf("line %d of a text of fewer: %v", wrong.Line, err)
		}
	})
}
