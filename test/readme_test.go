// SPDX-License-Identifier: Apache-2.0

package test

import (
	"os"
	"regexp"
	"testing"
)

// Whoever follows the README finds the targets of make that it names.
func TestREADMENamesTargetsThatExist(t *testing.T) {
	readme, err := os.ReadFile("../README.md")
	if err != nil {
		t.Fatal(err)
	}
	makefile, err := os.ReadFile("../Makefile")
	if err != nil {
		t.Fatal(err)
	}
	// In code: between backquotes, or in a block of their own.
	code := regexp.MustCompile("(?s)```.*?```|`[^`]*`").FindAll(readme, -1)
	named := 0
	for _, c := range code {
		for _, m := range regexp.MustCompile(`\bmake\s+([a-z][a-z-]*)`).FindAllSubmatch(c, -1) {
			named++
			if !regexp.MustCompile(`(?m)^` + string(m[1]) + `:`).Match(makefile) {
				t.Errorf("the README says %q; the Makefile has no such target", m[0])
			}
		}
	}
	if named < 10 {
		t.Errorf("only %d targets found in the README", named)
	}
}
