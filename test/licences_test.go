// SPDX-License-Identifier: Apache-2.0

package test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

const noticesFile = "../LICENSES/THIRD_PARTY.md"

const noticesHead = `# Third-party software

Generated: ` + "`go test ./test -run ThirdParty -update`" + ` writes this page again.

The program earlydrop contains parts of these Go modules, of Go's standard library and runtime, and, in its BPF objects,
inline functions of libbpf's headers. Its web page contains uPlot. ONNX Runtime (MIT) is not contained: ` + "`make onnxruntime`" + ` fetches it, and its
own notices lie in its package. So do the Debian packages that tests and training install.

| module | licence |
| --- | --- |
`

// linkedModule is a module of which something is in the program.
type linkedModule struct {
	path, licence, text string
}

// linkedModules returns the modules that ./cmd/earlydrop is built from, this one left
// out, on either of the architectures that there are BPF objects for, and what the page of
// `earlydrop web` is made with.
func linkedModules(t *testing.T) (modules []linkedModule) {
	t.Helper()
	dirs := map[string]string{}
	for _, arch := range []string{"amd64", "arm64"} {
		cmd := exec.Command("go", "list", "-deps", "-json=Module", "./cmd/earlydrop")
		cmd.Dir = ".."
		cmd.Env = append(os.Environ(), "GOARCH="+arch, "CGO_ENABLED=1")
		var stderr bytes.Buffer
		cmd.Stderr = &stderr
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("%v: %s", err, &stderr)
		}
		for d := json.NewDecoder(bytes.NewReader(out)); ; {
			var p struct {
				Module *struct {
					Path, Dir string
					Main      bool
				}
			}
			if err := d.Decode(&p); errors.Is(err, io.EOF) {
				break
			} else if err != nil {
				t.Fatal(err)
			}
			if p.Module != nil && !p.Module.Main {
				dirs[p.Module.Path] = p.Module.Dir
			}
		}
	}
	for path, dir := range dirs {
		text, err := licenceText(dir)
		if err != nil {
			t.Fatalf("%s: %v", path, err)
		}
		name := licenceName(text)
		if name == "" {
			t.Errorf("%s: its licence is none that this test knows; read it, and add it to licenceName if the program may contain it:\n%s", path, text)
		}
		modules = append(modules, linkedModule{path, name, text})
	}
	text, err := licenceText("../cmd/earlydrop/web/static")
	if err != nil {
		t.Fatal(err)
	}
	modules = append(modules, linkedModule{"uPlot (npm)", licenceName(text), text})
	slices.SortFunc(modules, func(a, b linkedModule) int { return strings.Compare(a.path, b.path) })
	return modules
}

// notLinked are files about what a module has beside what is linked: those that are linked are
// modules, and have their own.
var notLinked = regexp.MustCompile(`/modernc\.org/sqlite@[^/]*/LICENSE-(3RD-PARTY\.md|SQLITE_VEC)$`)

// licenceText returns what the files of a module's top folder say about its licence,
// notices that have to go along included.
func licenceText(dir string) (string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return "", err
	}
	var texts []string
	for _, e := range entries {
		if !regexp.MustCompile(`(?i)^(licen[cs]e|copying|notice)(\.|-|$)`).MatchString(e.Name()) {
			continue
		}
		path := filepath.Join(dir, e.Name())
		if notLinked.MatchString(path) {
			continue
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return "", err
		}
		texts = append(texts, strings.TrimSpace(strings.ReplaceAll(string(text), "\r", "")))
	}
	if len(texts) == 0 {
		return "", fmt.Errorf("no licence in %s", dir)
	}
	return strings.Join(texts, "\n\n"), nil
}

// licenceName returns the SPDX name of a licence that the program may contain, "" for
// every other text.
func licenceName(text string) string {
	words := strings.Join(strings.Fields(text), " ")
	has := func(phrase string) bool { return strings.Contains(words, phrase) }
	switch {
	case has("The licensed conditions are one or the other of these two Licenses: - BSD 3-clause - GPL v2.0"):
		return "BSD-3-Clause OR GPL-2.0-only"
	case has("The Libc Authors"): // and what it was translated from
		return "BSD-3-Clause AND MIT"
	case has("GNU GENERAL PUBLIC LICENSE"), has("GNU LESSER"), has("Mozilla Public License"):
		return ""
	case has("Apache License Version 2.0"), has("Licensed under the Apache License, Version 2.0"):
		return "Apache-2.0"
	case has("Permission is hereby granted, free of charge"):
		return "MIT"
	case !has("Redistribution and use in source and binary forms"):
		return ""
	case has("Neither the name"), has("names of its contributors may"), has("name of the author may not"):
		return "BSD-3-Clause"
	default:
		return "BSD-2-Clause"
	}
}

// notices is the page about all modules: a table, then each text that asks to be given
// along, once.
func notices(modules []linkedModule) string {
	var b strings.Builder
	b.WriteString(noticesHead)
	for _, m := range modules {
		fmt.Fprintf(&b, "| %s | %s |\n", m.path, m.licence)
	}
	b.WriteString("| Go's standard library and runtime | BSD-3-Clause, the text of golang.org/x |\n")
	b.WriteString("| headers of libbpf (bpf_helpers.h and what it includes) | LGPL-2.1 OR BSD-2-Clause; used under the latter |\n")
	b.WriteString("\nThe text of Apache-2.0 is in [LICENSE](../LICENSE), that of BSD-2-Clause in\n[LICENSES](BSD-2-Clause.txt). The others, and who holds the rights:\n")
	var texts []string
	users := map[string][]string{}
	for _, m := range modules {
		text := m.text
		if m.licence == "Apache-2.0" {
			// The licence itself names nobody; what comes after it does.
			if _, text, _ = strings.Cut(text, "END OF TERMS AND CONDITIONS"); !regexp.MustCompile(`(?m)^\s*Copyright .*\d{4}`).MatchString(text) {
				continue
			}
			text = strings.TrimSpace(text)
		}
		if m.licence == "BSD-3-Clause OR GPL-2.0-only" { // it is used under the former
			text, _, _ = strings.Cut(text, "-------------------------------------------------------------------------\nGPL v2.0:")
			text = strings.TrimSpace(text)
		}
		if users[text] == nil {
			texts = append(texts, text)
		}
		users[text] = append(users[text], m.path)
	}
	for _, text := range texts {
		fmt.Fprintf(&b, "\n## %s\n\n```\n%s\n```\n", strings.Join(users[text], ", "), text)
	}
	return b.String()
}

// Who passes the program on has to pass on whose work is in it, and on what terms.
func TestThirdPartyNoticesAreOfWhatIsLinked(t *testing.T) {
	modules := linkedModules(t)
	if len(modules) < 15 {
		t.Fatalf("only %d modules found", len(modules))
	}
	want := notices(modules)
	if *update {
		if err := os.WriteFile(noticesFile, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(noticesFile)
	if err != nil {
		t.Fatal(err)
	}
	if string(got) != want {
		t.Errorf("%s is not of the modules that are linked: run go test ./test -run ThirdParty -update", filepath.Base(noticesFile))
	}
}

// Every file of source names licences whose texts are in the tree.
func TestSourceNamesItsLicence(t *testing.T) {
	out, err := exec.Command("git", "-C", "..", "ls-files", "*.go", "*.c", "*.h", "*.py", "*.sh", "Makefile", ".ci/run").Output()
	if err != nil {
		t.Fatal(err)
	}
	texts := map[string]string{"Apache-2.0": "../LICENSE", "BSD-2-Clause": "../LICENSES/BSD-2-Clause.txt", "GPL-2.0-only": "../LICENSES/GPL-2.0-only.txt"}
	generated := regexp.MustCompile(`(?m)^// Code generated .* DO NOT EDIT\.$`)
	named := map[string]int{}
	for _, file := range strings.Fields(string(out)) {
		source, err := os.ReadFile(filepath.Join("..", file))
		if errors.Is(err, os.ErrNotExist) || err == nil && generated.Match(source) {
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		m := regexp.MustCompile(`(?m)^(?://|#|/\*) SPDX-License-Identifier: ([^*\n]+)`).FindSubmatch(source[:min(len(source), 300)])
		if m == nil {
			t.Errorf("%s does not name its licence", file)
			continue
		}
		for name := range strings.SplitSeq(strings.Trim(string(m[1]), "() "), " OR ") {
			named[name]++
			if texts[name] == "" {
				t.Errorf("%s is under %q, which has no text here", file, name)
			}
		}
	}
	for name, text := range texts {
		if _, err := os.Stat(text); err != nil || named[name] == 0 {
			t.Errorf("%s: %d files, %v", name, named[name], err)
		}
	}
}

func TestLicencesAreToldFromTheirText(t *testing.T) {
	for _, tt := range []struct{ file, want string }{
		{"../LICENSE", "Apache-2.0"},
		{"../LICENSES/BSD-2-Clause.txt", "BSD-2-Clause"},
		{"../LICENSES/GPL-2.0-only.txt", ""},
		{"../README.md", ""},
	} {
		text, err := os.ReadFile(tt.file)
		if err != nil {
			t.Fatal(err)
		}
		if got := licenceName(string(text)); got != tt.want {
			t.Errorf("%s: %q, want %q", tt.file, got, tt.want)
		}
	}
}
