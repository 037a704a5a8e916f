// SPDX-License-Identifier: Apache-2.0

package test

import (
	"encoding/json"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// pages returns the Markdown files of the tree, by their path from its top.
func pages(t *testing.T) map[string]string {
	t.Helper()
	out, err := exec.Command("git", "-C", "..", "ls-files", "--cached", "--others", "--exclude-standard", "*.md").Output()
	if err != nil {
		t.Fatal(err)
	}
	pages := map[string]string{}
	for _, path := range strings.Fields(string(out)) {
		text, err := os.ReadFile(filepath.Join("..", path))
		if os.IsNotExist(err) {
			continue // removed, but not yet from the index
		}
		if err != nil {
			t.Fatal(err)
		}
		pages[path] = string(text)
	}
	return pages
}

var (
	fence   = regexp.MustCompile("(?ms)^```.*?^```$")
	inline  = regexp.MustCompile("`[^`\n]*`")
	heading = regexp.MustCompile(`(?m)^#+ +(.*)$`)
	link    = regexp.MustCompile(`\]\(([^()\s]+)\)`)
)

// anchors returns what the headings of a page can be linked by, as forges make it: lower
// case, no punctuation, hyphens between words, a number at those that are there already.
func anchors(page string) []string {
	var all []string
	seen := map[string]int{}
	for _, m := range heading.FindAllStringSubmatch(fence.ReplaceAllString(page, ""), -1) {
		slug := regexp.MustCompile(`[^\p{L}\p{N} _-]`).ReplaceAllString(strings.ToLower(strings.TrimSpace(m[1])), "")
		slug = strings.ReplaceAll(slug, " ", "-")
		if n := seen[slug]; n > 0 {
			all = append(all, fmt.Sprintf("%s-%d", slug, n))
		} else {
			all = append(all, slug)
		}
		seen[slug]++
	}
	return all
}

// deadLinks returns those relative links of a page that lead nowhere. Links inside code
// are none.
func deadLinks(path string, pages map[string]string) (dead []string, links int) {
	text := inline.ReplaceAllString(fence.ReplaceAllString(pages[path], ""), "")
	for _, m := range link.FindAllStringSubmatch(text, -1) {
		u, err := url.Parse(m[1])
		if err == nil && u.IsAbs() {
			continue
		}
		links++
		if err != nil {
			dead = append(dead, m[1])
			continue
		}
		to := path
		if u.Path != "" {
			to = filepath.Join(filepath.Dir(path), u.Path)
		}
		page, isPage := pages[to]
		_, err = os.Stat(filepath.Join("..", to))
		if !isPage && err != nil || u.Fragment != "" && !slices.Contains(anchors(page), u.Fragment) {
			dead = append(dead, m[1])
		}
	}
	return dead, links
}

func TestPagesHaveNoDeadLinks(t *testing.T) {
	pages, links := pages(t), 0
	for path, page := range pages {
		dead, n := deadLinks(path, pages)
		for _, to := range dead {
			t.Errorf("%s: the link to %s leads nowhere", path, to)
		}
		links += n
		if regexp.MustCompile(`(?m)^(<<<<<<<|=======|>>>>>>>)( |$)`).MatchString(page) {
			t.Errorf("%s has the marks of a merge that was not finished", path)
		}
	}
	if links < 50 {
		t.Errorf("only %d links in %d pages", links, len(pages))
	}
	for path := range pages {
		if dir, name := filepath.Split(path); dir == "cmd/earlydrop/doc/" && name != "README.md" && !strings.Contains(pages[dir+"README.md"], "("+name+")") {
			t.Errorf("%s is not listed in the manual's README.md", path)
		}
	}
}

func TestDeadLinksAreFound(t *testing.T) {
	pages := map[string]string{
		"a.md":   "# What it's for\n## Twice\n## Twice\n",
		"d/b.md": "",
	}
	for _, tt := range []struct {
		text string
		dead bool
	}{
		{"[x](../a.md)", false},
		{"[x](../a.md#what-its-for)", false},
		{"[x](../a.md#twice-1)", false},
		{"[x](../a.md#twice-2)", true},
		{"[x](a.md)", true},
		{"[x](#none)", true},
		{"![x](../none.png)", true},
		{"[x](https://example.com/none)", false},
		{"`[x](none)`", false},
		{"```\n[x](none)\n```", false},
		{"```\n# None\n```\n[x](#none)", true},
		{"# Here\n[x](#here)", false},
	} {
		pages["d/b.md"] = tt.text
		if dead, _ := deadLinks("d/b.md", pages); (len(dead) > 0) != tt.dead {
			t.Errorf("%q: dead links %q, want some: %v", tt.text, dead, tt.dead)
		}
	}
}

// Whoever follows the pages finds the targets of make that they name.
func TestPagesNameTargetsThatExist(t *testing.T) {
	makefile, err := os.ReadFile("../Makefile")
	if err != nil {
		t.Fatal(err)
	}
	named := 0
	for path, page := range pages(t) {
		for _, code := range append(fence.FindAllString(page, -1), inline.FindAllString(fence.ReplaceAllString(page, ""), -1)...) {
			for _, m := range regexp.MustCompile(`\bmake\s+([a-z][a-z-]*)`).FindAllStringSubmatch(code, -1) {
				named++
				if !regexp.MustCompile(`(?m)^` + m[1] + `:`).Match(makefile) {
					t.Errorf("%s says %q; the Makefile has no such target", path, m[0])
				}
			}
		}
	}
	if named < 20 {
		t.Errorf("only %d targets found in the pages", named)
	}
}

// The manual and the schema tell of the same fields of events.
func TestManualNamesTheFieldsOfEvents(t *testing.T) {
	text, err := os.ReadFile("../cmd/earlydrop/event/schema/v1.json")
	if err != nil {
		t.Fatal(err)
	}
	var schema struct {
		Defs map[string]struct {
			Properties map[string]any
		} `json:"$defs"`
	}
	if err := json.Unmarshal(text, &schema); err != nil {
		t.Fatal(err)
	}
	known, named := map[string]bool{}, map[string]bool{}
	for _, event := range schema.Defs {
		for field := range event.Properties {
			known[field] = true
		}
	}
	_, table, _ := strings.Cut(pages(t)["cmd/earlydrop/doc/events.md"], "\n| field | meaning |\n")
	table, _, _ = strings.Cut(table, "\n\n")
	for _, row := range strings.Split(table, "\n")[1:] {
		for _, field := range inline.FindAllString(strings.Split(row, "|")[1], -1) {
			field = strings.Trim(field, "`")
			named[field] = true
			if !known[field] {
				t.Errorf("events.md names the field %s, which the schema has not", field)
			}
		}
	}
	for field := range schema.Defs["verdict"].Properties {
		if !named[field] && !slices.Contains([]string{"time", "event", "interface", "file", "mode", "model"}, field) {
			t.Errorf("events.md does not name the field %s of a verdict", field)
		}
	}
}

// Whoever follows the pages finds the files that they name: CONTRIBUTING says where to
// add what, and others what to run.
func TestPagesNameFilesThatExist(t *testing.T) {
	run, file := regexp.MustCompile(`\bgo (?:run|test|build)(?: -\S+)* \./([\w/.-]+)`), regexp.MustCompile("^`(\\.?[A-Za-z][\\w.-]*(?:/[\\w.-]+)*/?)`$")
	named := 0
	exists := func(path, name string) {
		named++
		if _, err := os.Stat(filepath.Join("..", strings.TrimSuffix(name, "/..."))); err != nil {
			t.Errorf("%s names %s, which is not there", path, name)
		}
	}
	for path, page := range pages(t) {
		for _, m := range run.FindAllStringSubmatch(page, -1) {
			exists(path, strings.TrimRight(m[1], "."))
		}
		if path != ".github/CONTRIBUTING.md" && path != "cmd/earlydrop/doc/embedding.md" {
			continue
		}
		for _, code := range inline.FindAllString(fence.ReplaceAllString(page, ""), -1) {
			if m := file.FindStringSubmatch(code); m != nil && strings.Contains(m[1], "/") {
				exists(path, m[1])
			}
		}
		for _, m := range regexp.MustCompile(`(?m)^([a-z][\w/]*)/? {2,}`).FindAllStringSubmatch(page, -1) {
			exists(path, m[1])
		}
	}
	if named < 50 {
		t.Errorf("only %d files found in the pages", named)
	}
}

// The README is one screen and a half: what is longer has a page of its own.
func TestREADMEIsShort(t *testing.T) {
	if lines := strings.Count(pages(t)["README.md"], "\n"); lines > 120 {
		t.Errorf("the README has %d lines: move what is not for everybody to cmd/earlydrop/doc", lines)
	}
}

// The manual names no flags but those that a command has.
func TestManualNamesNoFlagThatIsNotThere(t *testing.T) {
	source := map[string]bool{}
	files, err := filepath.Glob("../cmd/earlydrop/*.go")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range regexp.MustCompile(`(?:Name: |Flag\()"([a-z][a-z-]*)"`).FindAllSubmatch(text, -1) {
			source[string(m[1])] = true
		}
	}
	named := 0
	for path, page := range pages(t) {
		if path != "README.md" && !strings.HasPrefix(path, "cmd/earlydrop/doc/") {
			continue
		}
		for _, line := range strings.Split(page, "\n") {
			for _, code := range inline.FindAllString(line, -1) {
				// Flags by themselves, or of earlydrop: others' programs have others.
				code = strings.Trim(code, "`")
				if words := strings.Fields(code); len(words) == 0 || !strings.HasPrefix(code, "--") && words[0] != "attach" && words[0] != "earlydrop" && words[0] != "replay" {
					continue
				}
				for _, m := range regexp.MustCompile(`(?:^| )--([a-z][a-z-]*)`).FindAllStringSubmatch(code, -1) {
					named++
					if !source[m[1]] && m[1] != "help" {
						t.Errorf("%s names the flag --%s, which no command has", path, m[1])
					}
				}
			}
		}
	}
	if named < 20 {
		t.Errorf("only %d flags found in the manual", named)
	}
}
