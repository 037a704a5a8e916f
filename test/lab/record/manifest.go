// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
)

// row is one line of the manifest: one capture file.
type row struct {
	Path      string // relative to the manifest
	Label     string // one of the constants of tunnels.go
	Group     string // id of the condition: rows of one group share a network
	Program   string
	Cipher    string // or other variant of the program
	Carried   string // the activity
	Kind      string // tunnel, ordinary or random-like
	Flows     int    // with payload
	Failed    int    // activities that ended in an error
	Condition string
}

var columns = []string{"path", "label", "group", "program", "cipher", "carried", "kind", "flows", "failed", "condition"}

func (r row) fields() []string {
	return []string{r.Path, r.Label, r.Group, r.Program, r.Cipher, r.Carried, r.Kind, strconv.Itoa(r.Flows), strconv.Itoa(r.Failed), r.Condition}
}

// manifest is a file of tab-separated lines. Each is appended with one write
// after its capture is in place, so an interrupted recording has only whole
// lines that tell the truth, apart from possibly the last.
type manifest struct {
	mu   sync.Mutex
	file *os.File
	rows []row
	done map[string]bool // by path
}

func openManifest(dir string, resume bool) (*manifest, error) {
	path := filepath.Join(dir, "manifest.tsv")
	m := &manifest{done: map[string]bool{}}
	old, err := os.ReadFile(path)
	switch {
	case errors.Is(err, os.ErrNotExist):
		old = nil
	case err != nil:
		return nil, err
	case !resume:
		return nil, fmt.Errorf("%s exists: give --resume to go on with it, or another --out", path)
	}
	header := strings.Join(columns, "\t")
	// A last line without its end was being written when the run stopped.
	whole := old[:strings.LastIndexByte(string(old), '\n')+1]
	scan := bufio.NewScanner(strings.NewReader(string(whole)))
	for n := 1; scan.Scan(); n++ {
		if n == 1 {
			if scan.Text() != header {
				return nil, fmt.Errorf("%s: line 1 is %q, want the columns %q", path, scan.Text(), header)
			}
			continue
		}
		f := strings.Split(scan.Text(), "\t")
		if len(f) != len(columns) {
			return nil, fmt.Errorf("%s:%d: %d columns, want %d", path, n, len(f), len(columns))
		}
		flows, err1 := strconv.Atoi(f[7])
		failed, err2 := strconv.Atoi(f[8])
		if err := errors.Join(err1, err2); err != nil {
			return nil, fmt.Errorf("%s:%d: %w", path, n, err)
		}
		m.note(row{f[0], f[1], f[2], f[3], f[4], f[5], f[6], flows, failed, f[9]})
	}
	if err := scan.Err(); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	if m.file, err = os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644); err != nil {
		return nil, err
	}
	if err := m.file.Truncate(int64(len(whole))); err != nil {
		return nil, errors.Join(err, m.file.Close())
	}
	if len(whole) == 0 {
		if _, err := m.file.WriteString(header + "\n"); err != nil {
			return nil, errors.Join(err, m.file.Close())
		}
	}
	return m, nil
}

func (m *manifest) note(r row) {
	m.rows = append(m.rows, r)
	m.done[r.Path] = true
}

// has says whether a capture was recorded by an earlier run or this one.
func (m *manifest) has(path string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.done[path]
}

// add appends one line and makes it durable.
func (m *manifest) add(r row) error {
	line := strings.Join(r.fields(), "\t") + "\n"
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, err := m.file.WriteString(line); err != nil {
		return fmt.Errorf("append to manifest: %w", err)
	}
	m.note(r)
	return nil
}

// progress returns the recorded flows by label in a line.
func (m *manifest) progress() string {
	m.mu.Lock()
	defer m.mu.Unlock()
	sum := map[string]int{}
	for _, r := range m.rows {
		sum[r.Label] += r.Flows
	}
	var parts []string
	for _, label := range slices.Sorted(maps.Keys(sum)) {
		parts = append(parts, fmt.Sprintf("%s %d", label, sum[label]))
	}
	return strings.Join(parts, ", ")
}

// summary returns a text with the flows by label, kind, program and so on.
func (m *manifest) summary() string {
	m.mu.Lock()
	defer m.mu.Unlock()
	var b strings.Builder
	for _, by := range []struct {
		name string
		key  func(row) string
	}{
		{"label", func(r row) string { return r.Label }},
		{"kind", func(r row) string { return r.Kind }},
		{"program", func(r row) string { return r.Label + " " + r.Program }},
		{"cipher", func(r row) string { return r.Label + " " + r.Program + " " + r.Cipher }},
		{"carried", func(r row) string { return r.Label + " " + r.Carried }},
		{"condition", func(r row) string { return r.Group + " " + r.Label }},
	} {
		flows, runs, failed := map[string]int{}, map[string]int{}, map[string]int{}
		var keys []string
		for _, r := range m.rows {
			k := by.key(r)
			if runs[k] == 0 {
				keys = append(keys, k)
			}
			runs[k]++
			flows[k] += r.Flows
			failed[k] += r.Failed
		}
		slices.Sort(keys)
		fmt.Fprintf(&b, "by %s:\n", by.name)
		for _, k := range keys {
			fmt.Fprintf(&b, "  %-56s %6d flows in %5d files, %4d failures\n", k, flows[k], runs[k], failed[k])
		}
	}
	return b.String()
}

func (m *manifest) close() error { return m.file.Close() }
