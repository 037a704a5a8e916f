// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/urfave/cli/v2"
)

// attachWith runs attach with a file of settings.
func attachWith(t *testing.T, settings string, args ...string) (code int, stderr, path string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "attach.yaml")
	if err := os.WriteFile(path, []byte(settings), 0o600); err != nil {
		t.Fatal(err)
	}
	code, stdout, stderr := runForTest(append([]string{"attach", "--config", path}, args...)...)
	if stdout != "" || strings.Count(stderr, "\n") != 1 {
		t.Errorf("%q: stdout %q, stderr %q", settings, stdout, stderr)
	}
	return code, stderr, path
}

// A mistake in a file of settings is one line with its place, and nothing is attached.
func TestMistakesInSettingsNameTheirPlace(t *testing.T) {
	for settings, want := range map[string]string{
		"interface: nosuch0\nmode: enforc": `2:7: mode "enforc": did you mean enforce?`,
		"interface: nosuch0\nmode: block":  `2:7: mode "block": unknown mode "block"; write monitor or enforce`,
		"interfaces: nosuch0":              `1:1: unknown key "interfaces" in the file, did you mean interface?`,
		"i: nosuch0":                       `1:1: unknown key "i" in the file`,
		"config: other.yaml":               `1:1: unknown key "config" in the file`,
		"help: true":                       `1:1: unknown key "help" in the file`,
		"class: tunnels":                   `1:1: unknown key "class" in the file`,
		"interface: [v0, v1, v0]":          `1:21: interface "v0": it is in the list twice`,
		"interface: [v0, a/b]":             `1:17: interface "a/b": can't be the name of an interface`,
		"max-flows: 5":                     `1:12: max-flows "5": use a whole number from 1024 to 67108864`,
		"udp-idle: 10":                     `1:11: udp-idle "10": use a time of 1s or more, such as 30s, 10m or 1h30m`,
		"events-pass: 100":                 `1:14: events-pass "100": use all, none, a rate such as 100/s, or a share such as 1/100`,
		"group: wan0":                      `1:8: group "wan0": name two interfaces or more in one word, such as "wan0,wan1"`,
		"group: [\"v0,\"]":                 `1:9: group "v0,": name two interfaces or more`,
		"group: v0,a/b":                    `1:8: group "v0,a/b": "a/b" can't be the name of an interface`,
		"xdp: generc":                      `1:6: xdp "generc": did you mean generic?`,
		"mid-stream: off":                  `1:13: mid-stream "off": unknown mid-stream policy "off": use ignore or capture`,
		"persist: yes":                     `1:10: persist has to be true or false, but is the text "yes"`,
		"":                                 `1:1: file holds no settings; write at least one "key: value"`,
	} {
		code, stderr, path := attachWith(t, settings)
		if code != exitBadInput || !strings.HasPrefix(stderr, "earlydrop: "+path+":"+want) {
			t.Errorf("%q: code %d, %s want %s", settings, code, stderr, want)
		}
	}
	if code, _, stderr := runForTest("attach", "--config", "/nonexistent.yaml"); code != exitBadInput || stderr != "earlydrop: --config: read settings: open /nonexistent.yaml: no such file or directory\n" {
		t.Errorf("code %d, %s", code, stderr)
	}
}

// What a file says is what the flags say, and flags override it.
func TestFlagsOverrideSettings(t *testing.T) {
	for _, tt := range []struct {
		settings string
		args     []string
		want     string
	}{
		{"mode: monitor", nil, "attach needs --interface (see earlydrop attach --help)"},
		{"interface: nosuch0", nil, "no such interface: nosuch0 (ip link shows what there is)"},
		{"interface: [nosuch0, nosuch1]", []string{"-i", "nosuch2"}, "no such interface: nosuch2 (ip link shows what there is)"},
		{"interface: nosuch0\nmode: monitor", []string{"--mode", "block"}, `unknown mode "block"; write monitor or enforce`},
		{"interface: nosuch0\nquiet: true\nverbose: true", nil, "--quiet and --verbose exclude each other"},
		{"interface: nosuch0\nquiet: true\nverbose: true", []string{"--verbose=false"}, "no such interface: nosuch0 (ip link shows what there is)"},
		{"interface: nosuch0\nmid-stream: capture\nmode: enforce", nil, `--mid-stream capture in mode enforce needs a rule`},
		{"interface: nosuch0\npolicy: /nonexistent.yaml", nil, "/nonexistent.yaml: no such file or directory"},
		{"interface: [lo, nosuch0]\nmax-flows: 2048", nil, "no such interface: nosuch0 (ip link shows what there is)"},
	} {
		code, stderr, _ := attachWith(t, tt.settings, append(tt.args, "--model", tinyModel)...)
		if code != exitBadInput || !strings.Contains(stderr, tt.want) {
			t.Errorf("%q %q: code %d, %s want %s", tt.settings, tt.args, code, stderr, tt.want)
		}
	}
}

// Every flag of attach is a setting, by its long name.
func TestEveryFlagIsASetting(t *testing.T) {
	c := attachCommand()
	n := 0
	for _, f := range c.Flags {
		name := f.Names()[0]
		if name == "config" {
			continue
		}
		value := "[]" // of the wrong type for each
		if mayRepeat(f) {
			value = "[[]]"
		}
		_, stderr, _ := attachWith(t, name+": "+value)
		if want := fmt.Sprintf("%s has to be ", name); !strings.Contains(stderr, want) {
			t.Errorf("%s: %s", name, stderr)
		}
		n++
	}
	if n < 20 {
		t.Errorf("%d flags", n)
	}
	if _, ok := c.Flags[0].(*cli.StringFlag); !ok {
		t.Error("the first flag is not --config")
	}
}
