// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/earlydrop/earlydrop/cmd/earlydrop/event"
	"github.com/earlydrop/earlydrop/cmd/earlydrop/event/eventtest"
	"github.com/earlydrop/earlydrop/test/e2e/rig"
	"github.com/earlydrop/earlydrop/test/lab"
)

// Why a connection was cut can be asked while the daemon works, after it was killed, and of the next
// one: its event is found by who took part, and its capture gives the same verdict.
func TestHistoryTellsWhyAConnectionWasCut(t *testing.T) {
	t.Parallel()
	s := newScene(t, lab.Config{})
	path := filepath.Join(s.Dir(), "history.db")
	attach := func() *rig.Daemon {
		return s.act([]string{"unknown"}, "action: drop", "--history", path, "--history-captures", "--history-passes", "all")
	}
	d := attach()
	_, v := s.noisy(d, 4, "drop")
	if v.ID == 0 {
		t.Fatalf("the verdict has no ID: %s", v.Text(true))
	}
	find := func(args ...string) (found []*event.Verdict) {
		t.Helper()
		out := must(s.Earlydrop(s.ctx, append([]string{"events", "--json", "--since", "1h", "--server", v.Dst.String(), "--filter", "decision=drop"}, args...)...))(t)
		for line := range strings.Lines(out) {
			if v, ok := must(eventtest.Decode([]byte(line)))(t).(*event.Verdict); ok {
				found = append(found, v)
			}
		}
		return found
	}
	is := func(f *event.Verdict) bool { return f.ID == v.ID && f.Src == v.Src && f.Class == v.Class }
	if err := rig.Until(s.ctx, func() (bool, error) { return slices.ContainsFunc(find(), is), nil }); err != nil {
		t.Fatalf("it is not in the history: %v", err)
	}
	explained := func(args ...string) string {
		t.Helper()
		file := s.file("why.pcapng", must(s.Earlydrop(s.ctx, append([]string{"capture", v.ID.String()}, args...)...))(t))
		out := must(s.Earlydrop(s.ctx, "replay", "--json", file))(t)
		r := must(eventtest.Decode([]byte(out)))(t).(*event.Verdict)
		a, b := must(json.Marshal(r.Scores))(t), must(json.Marshal(v.Scores))(t)
		if r.Class != v.Class || r.Src != v.Src || r.Dst != v.Dst || r.Packets != v.Packets || r.Bytes != v.Bytes || !r.Start.Equal(v.Start) || len(a) == 0 || len(b) == 0 {
			t.Errorf("replayed as %s, was %s", r.Text(true), v.Text(true))
		}
		for i := range r.Scores.Values {
			if diff := r.Scores.Values[i] - v.Scores.Values[i]; diff > 1e-5 || diff < -1e-5 {
				t.Errorf("probabilities %v, were %v", r.Scores, v.Scores)
				break
			}
		}
		return must(s.Earlydrop(s.ctx, "explain", file))(t)
	}
	while := explained()
	if !strings.Contains(while, v.Src.String()+" > "+v.Dst.String()) {
		t.Errorf("explained as\n%s", while)
	}

	d.Kill()
	from := []string{"--control", "none", "--history", path}
	if !slices.ContainsFunc(find(from...), is) || explained(from...) != while {
		t.Error("after the daemon was killed it is not there, or explained otherwise")
	}
	d = attach()
	if !slices.ContainsFunc(find(), is) || explained() != while {
		t.Error("the next daemon does not have it, or explains it otherwise")
	}
	later := must(rig.Wait(s.ctx, d, "the adoption", func(e *event.Attached) bool { return e.Adopted }))(t)
	if later.ID <= v.ID {
		t.Errorf("event %s came after %s", later.ID, v.ID)
	}
	// What it does not remember comes from the history.
	said := strings.Join(strings.Fields(must(s.Earlydrop(s.ctx, "why", v.Dst.String()))(t)), " ") // lines are broken anywhere
	for _, words := range []string{"the daemon knows of no decision", "before that, from the history, which may leave out flows that passed: ", v.Src.String() + " > " + v.Dst.String(), "before the reload"} {
		if !strings.Contains(said, words) {
			t.Errorf("why does not say %q:\n%s", words, said)
		}
	}
	if strings.Contains(said, "not blocked any more") {
		t.Errorf("why says what is not known:\n%s", said)
	}
	if out := must(s.Earlydrop(s.ctx, "status"))(t); !strings.Contains(out, "\nhistory  "+path+": ") {
		t.Errorf("status says\n%s", out)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the file: %v, %v", info, err)
	}
	s.stop(d)
}
