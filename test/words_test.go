// SPDX-License-Identifier: Apache-2.0

package test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

// ofTheCommandLine fits what only the command line's own code may speak of: its flags and
// its commands.
var ofTheCommandLine = regexp.MustCompile(`(^|[^-\w])--[a-z][a-z-]+|\bearlydrop (attach|detach|status|blocked|replay|explain|model|policy|dataset|version)\b`)

// wordsOfTheCommandLine returns the string literals of a file that speak of flags or
// commands.
func wordsOfTheCommandLine(name string, source any) (found []string, err error) {
	files := token.NewFileSet()
	file, err := parser.ParseFile(files, name, source, 0)
	if err != nil {
		return nil, err
	}
	ast.Inspect(file, func(n ast.Node) bool {
		if lit, ok := n.(*ast.BasicLit); ok && lit.Kind == token.STRING {
			if text, err := strconv.Unquote(lit.Value); err == nil && ofTheCommandLine.MatchString(text) {
				found = append(found, files.Position(lit.Pos()).String()+": "+text)
			}
		}
		return true
	})
	return found, nil
}

// Libraries return errors that say what is wrong. What flag or command helps is added by
// who reads the command line.
func TestLibrariesSpeakOfNoFlags(t *testing.T) {
	seen := 0
	for _, root := range []string{"../loader", "../classifier", "../policy", "../models", "../cmd"} {
		err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") ||
				filepath.Dir(path) == "../cmd/earlydrop" {
				return err
			}
			found, err := wordsOfTheCommandLine(path, nil)
			for _, f := range found {
				t.Error(f)
			}
			seen++
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if seen < 100 {
		t.Errorf("only %d files were looked at", seen)
	}
}

func TestWordsOfTheCommandLineAreFound(t *testing.T) {
	for text, want := range map[string]bool{
		"attach with a larger --max-blocked": true, "--mid-stream capture": true, "(see earlydrop status)": true, "use --out FILE": true,
		"a -- b": false, "the class v2ray--": false, "bpftool map dump": false, "/sys/fs/bpf/earlydrop": false, "earlydrop stays": false, "2026--11": false,
	} {
		found, err := wordsOfTheCommandLine("a.go", "package a\nvar s = "+strconv.Quote(text))
		if err != nil || (len(found) > 0) != want {
			t.Errorf("%q: %v, %v, want %v", text, found, err, want)
		}
	}
}
