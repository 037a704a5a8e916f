// SPDX-License-Identifier: Apache-2.0

package test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// Who embeds a package has other flags and commands than the command line of this
// repository, or none: what the packages say must not speak of them.
func TestPackagesDoNotSpeakOfFlagsAndCommands(t *testing.T) {
	speaks := regexp.MustCompile(`(^|[ (])--?[a-z]|\b(bpftool|nsenter|systemctl|ip link|ip netns|mount -t|make [a-z]+)\b|\bearlydrop (attach|detach|status|blocked|replay|explain|model|policy|dataset)\b`)
	files, literals := token.NewFileSet(), 0
	for _, dir := range []string{"../loader", "../classifier", "../policy", "../models"} {
		err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
				return err
			}
			file, err := parser.ParseFile(files, path, nil, 0)
			if err != nil {
				return err
			}
			ast.Inspect(file, func(n ast.Node) bool {
				if text, ok := n.(*ast.BasicLit); ok && text.Kind == token.STRING {
					literals++
					if speaks.MatchString(strings.Trim(text.Value, "`\"")) {
						t.Errorf("%s: %s", files.Position(text.Pos()), text.Value)
					}
				}
				return true
			})
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if literals < 500 {
		t.Errorf("only %d strings were looked at", literals)
	}
}
