// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// completionRows are command lines whose last word is to be completed.
var completionRows = []struct {
	line []string
	want []string // all of them are offered
	not  []string
}{
	{[]string{"earlydrop", ""}, []string{"attach", "status", "completion", "help"}, []string{"man", "--help"}},
	{[]string{"earlydrop", "att"}, []string{"attach"}, nil},
	{[]string{"earlydrop", "--v"}, []string{"--version"}, nil},
	{[]string{"earlydrop", "blocked", ""}, []string{"list", "add", "del"}, []string{"attach"}},
	{[]string{"earlydrop", "attach", "--xd"}, []string{"--xdp"}, nil},
	{[]string{"earlydrop", "attach", "-i", ""}, []string{"lo"}, []string{"--xdp"}},
	{[]string{"earlydrop", "attach", "--interface", "l"}, []string{"lo"}, nil},
	{[]string{"earlydrop", "attach", "-i", "lo", "--mo"}, []string{"--mode"}, nil},
	{[]string{"earlydrop", "attach", "-i", "lo", "--policy", "the-pol"}, []string{"the-policy.yaml"}, nil},
	{[]string{"earlydrop", "policy", "check", "the-pol"}, []string{"the-policy.yaml"}, nil},
}

// completed has a shell complete a line in dir with what it read from script.
func completed(t *testing.T, dir, script string, line []string) []string {
	t.Helper()
	var cmd *exec.Cmd
	switch filepath.Base(script) {
	case "bash":
		cmd = exec.Command("bash", append([]string{"-c", `. "$0"; COMP_WORDS=("$@"); COMP_CWORD=$(($#-1)); _earlydrop; printf '%s\n' "${COMPREPLY[@]}"`, script}, line...)...)
	case "zsh":
		// Outside of its line editor compadd and _files do nothing: they print here.
		cmd = exec.Command("zsh", append([]string{"-f", "-c", `compdef() { }; compadd() { shift; print -l -- $@ }; _files() { print -l -- ${words[CURRENT]}*(N) }
words=("$@"); CURRENT=$#; . $0; _earlydrop`, script}, line...)...)
	case "fish":
		quoted := strings.Join(line[:len(line)-1], " ") + " " + line[len(line)-1]
		cmd = exec.Command("fish", "--no-config", "-c", "source "+script+"; complete -C '"+quoted+"'")
		cmd.Env = append(os.Environ(), "HOME="+dir, "XDG_DATA_HOME="+dir)
	}
	cmd.Dir = dir
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil || stderr.Len() > 0 {
		t.Fatalf("%s: %v: %s", cmd, err, &stderr)
	}
	var words []string
	for l := range strings.Lines(string(out)) {
		word, _, _ := strings.Cut(strings.TrimSpace(l), "\t")
		if strings.HasPrefix(word, line[len(line)-1]) {
			words = append(words, word)
		}
	}
	return words
}

func TestShellsCompleteCommandsAndFlags(t *testing.T) {
	for _, shell := range shells {
		t.Run(shell, func(t *testing.T) {
			if _, err := exec.LookPath(shell); err != nil {
				t.Skip(err)
			}
			code, stdout, stderr := runForTest("completion", shell)
			if code != exitOK || stderr != "" {
				t.Fatalf("exit code %d: %s", code, stderr)
			}
			dir := t.TempDir()
			script := filepath.Join(dir, shell)
			for name, text := range map[string]string{shell: stdout, "the-policy.yaml": ""} {
				if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			for _, row := range completionRows {
				if shell == "fish" && slices.ContainsFunc(row.want, func(w string) bool { return w == "lo" }) {
					continue // the library's completion knows no values
				}
				got := completed(t, dir, script, row.line)
				for _, w := range row.want {
					if !slices.Contains(got, w) {
						t.Errorf("%q is completed by %q, without %s", row.line, got, w)
					}
				}
				for _, w := range row.not {
					if slices.Contains(got, w) {
						t.Errorf("%q is completed by %q, with %s", row.line, got, w)
					}
				}
			}
		})
	}
}

func TestCompletionOfUnknownShells(t *testing.T) {
	for args, want := range map[string]string{
		"completion":          "earlydrop: completion needs a shell: bash, zsh or fish (see earlydrop completion --help)\n",
		"completion bsh":      "earlydrop: unknown shell \"bsh\", did you mean bash?: use bash, zsh or fish\n",
		"completion bash zsh": "earlydrop: unexpected argument \"zsh\" (see earlydrop completion --help)\n",
	} {
		if code, _, stderr := runForTest(strings.Fields(args)...); code != exitBadInput || stderr != want {
			t.Errorf("%s: exit code %d: %q", args, code, stderr)
		}
	}
}

// Each command has a page, each flag is on it, and man understands it.
func TestManPagesNameAllFlags(t *testing.T) {
	dir := t.TempDir()
	if code, _, stderr := runForTest("man", dir); code != exitOK || stderr != "" {
		t.Fatalf("exit code %d: %s", code, stderr)
	}
	if code, _, _ := runForTest("man", filepath.Join(dir, "nosuch")); code != exitBadInput {
		t.Errorf("a folder that is not there: exit code %d", code)
	}
	overstruck := regexp.MustCompile(".\b|\x1b\\[[0-9;]*m")
	for _, c := range commands() {
		if c.Hidden {
			continue
		}
		cmd := exec.Command("man", "--warnings", "-P", "cat", filepath.Join(dir, "earlydrop-"+c.Name+".8"))
		cmd.Env = append(os.Environ(), "MANWIDTH=120", "LC_ALL=C.UTF-8")
		var stderr bytes.Buffer
		cmd.Stderr = &stderr
		out, err := cmd.Output()
		if err != nil || stderr.Len() > 0 {
			t.Errorf("%s: %v: %s", c.Name, err, &stderr)
			continue
		}
		text := overstruck.ReplaceAllString(string(out), "")
		for _, sub := range append(c.Subcommands, c) {
			for _, f := range sub.Flags {
				for _, name := range f.Names() {
					if !strings.Contains(text, dashed(name)) {
						t.Errorf("the page of %s lacks %s", c.Name, dashed(name))
					}
				}
			}
		}
	}
}
