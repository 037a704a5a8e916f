// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"sync"

	"github.com/earlydrop/earlydrop/cmd/earlydrop/event"
	"github.com/earlydrop/earlydrop/cmd/earlydrop/event/eventtest"
	"github.com/earlydrop/earlydrop/test/e2e/rig"
)

// timestamp fits the time in front of each line for people.
const timestamp = `\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}(?:Z|[+-]\d\d:\d\d)`

// locked is a buffer that a program writes while a test reads.
type locked struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *locked) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

func (l *locked) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

// textDaemon is an `attach` that prints for people.
type textDaemon struct {
	s              *scene
	cmd            *exec.Cmd
	stdout, stderr locked
}

// attachText starts one. It ends with the test.
func (s *scene) attachText(args ...string) *textDaemon {
	s.t.Helper()
	cmd, err := s.Command(s.ctx, append([]string{s.Binary(), "attach", "-i", rig.Device}, args...)...)
	if err != nil {
		s.t.Fatal(err)
	}
	d := &textDaemon{s: s, cmd: cmd}
	cmd.Stdout, cmd.Stderr = &d.stdout, &d.stderr
	if err := s.Start(cmd); err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { _ = cmd.Process.Kill() })
	d.waits(`attached |adopted `)
	return d
}

// waits waits until what was printed fits a pattern.
func (d *textDaemon) waits(pattern string) {
	d.s.t.Helper()
	re := regexp.MustCompile(pattern)
	if err := rig.Until(d.s.ctx, func() (bool, error) { return re.MatchString(d.stdout.String()), nil }); err != nil {
		d.s.t.Fatalf("nothing fits %s (%v) in:\n%s%s", pattern, err, d.stdout.String(), d.stderr.String())
	}
}

// lacks reports whether nothing that was printed so far fits a pattern.
func (d *textDaemon) lacks(pattern string) bool {
	return !regexp.MustCompile(pattern).MatchString(d.stdout.String())
}

// end ends it by a signal; it has to end in order and without a warning.
func (d *textDaemon) end(sig os.Signal) {
	d.s.t.Helper()
	if err := d.cmd.Process.Signal(sig); err != nil {
		d.s.t.Fatal(err)
	}
	if err := d.cmd.Wait(); err != nil || d.stderr.String() != "" {
		d.s.t.Errorf("%v, standard error %q", err, d.stderr.String())
	}
}

// readEvents returns the events of a file. A last line that is still being written
// is left out. Each has to fit the schema.
func readEvents(path string) (events []event.Event, err error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	for line := range strings.Lines(string(text)) {
		if !strings.HasSuffix(line, "\n") {
			break
		}
		e, err := eventtest.Decode([]byte(line))
		if err != nil {
			return nil, fmt.Errorf("%s: %w in %q", path, err, line)
		}
		events = append(events, e)
	}
	return events, nil
}
