// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"fmt"
	"io"
	"strings"

	"github.com/earlydrop/earlydrop/test/kernels/machine"
)

// result is what a machine's console told about the tests.
type result struct {
	passed, failed []string // tests without their subtests
	skipped        []string // tests and subtests
	subtests       int      // that passed
	closing        string   // the test program's own last word: PASS or FAIL
	status         string   // how it ended; empty: the machine ended before
}

// err says why the tests do not count as passed; a skipped one does not either.
func (r *result) err() error {
	switch {
	case r.status == "":
		return fmt.Errorf("the machine ended before its tests did")
	case len(r.failed) > 0:
		return fmt.Errorf("failed: %s", strings.Join(r.failed, ", "))
	case r.status != "0" || r.closing != "PASS":
		return fmt.Errorf("the test program ended with status %s, last word %q", r.status, r.closing)
	case len(r.skipped) > 0:
		return fmt.Errorf("skipped: %s (leave them out by name with -skip)", strings.Join(r.skipped, ", "))
	case len(r.passed) == 0:
		return fmt.Errorf("no test ran: does -run match any?")
	}
	return nil
}

// readConsole follows a machine's console to its end. All of it goes to log; what
// is not the mere course of tests that pass goes to show, too.
func readConsole(console io.Reader, log, show io.Writer) (*result, error) {
	r := new(result)
	s := bufio.NewScanner(console)
	s.Buffer(nil, 1<<20)
	for s.Scan() {
		line := strings.TrimRight(s.Text(), "\r")
		if _, err := fmt.Fprintln(log, line); err != nil {
			return nil, err
		}
		if r.note(line) {
			if _, err := fmt.Fprintln(show, line); err != nil {
				return nil, err
			}
		}
	}
	return r, s.Err()
}

// note takes in one line and reports whether a person should see it.
func (r *result) note(line string) bool {
	if status, ok := strings.CutPrefix(line, machine.EndMark); ok {
		r.status = status
		return false
	}
	if r.status != "" { // the kernel's parting words
		return false
	}
	text := strings.TrimLeft(line, " ")
	for word, list := range map[string]*[]string{"--- PASS: ": &r.passed, "--- FAIL: ": &r.failed, "--- SKIP: ": &r.skipped} {
		rest, ok := strings.CutPrefix(text, word)
		if !ok {
			continue
		}
		name, _, _ := strings.Cut(rest, " ")
		switch {
		case text == line || list == &r.skipped:
			*list = append(*list, name)
		case list == &r.passed:
			r.subtests++
			return false
		}
		return true
	}
	if line == "PASS" || line == "FAIL" {
		r.closing = line
	}
	return line != "" && !strings.HasPrefix(line, "=== ")
}
