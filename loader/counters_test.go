// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestEveryCounterSaysWhatItCounts(t *testing.T) {
	counters, err := loadKernel(t, config{}).Counters()
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range counters {
		if c.Help == "" {
			t.Errorf("%s has no help", c.Name)
		}
	}
	if len(counters) != len(countsHelp) {
		t.Errorf("%d counters and help for %d", len(counters), len(countsHelp))
	}
}

// What the daemon counts is its own affair: it is told to others while it runs, after it
// has ended, and until the next one reports something else.
func TestReportedCountersOutliveTheDaemon(t *testing.T) {
	inNamespace(t)
	d := attach(t, Options{})
	reported := func(when string, want Counters) {
		t.Helper()
		tables, err := Open("v0")
		if err != nil {
			t.Fatal(err)
		}
		defer tables.Close()
		got, err := tables.DaemonCounters()
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", when, diff)
		}
	}
	reported("at first", nil)
	many := Counters{{Name: "one", Value: 1}, {Name: strings.Repeat("n", 31), Value: 1 << 63}, {Name: "three"}}
	for _, list := range []Counters{many, many[:1], many} {
		if err := d.Report(list); err != nil {
			t.Fatal(err)
		}
		reported("while it runs", list)
	}
	if err := d.Release(); err != nil {
		t.Fatal(err)
	}
	reported("after it has ended", many)
	if d = attach(t, Options{}); !d.Info.Adopted {
		t.Errorf("info %+v", d.Info)
	}
	reported("of the next one", nil)
	if err := d.Detach(); err != nil {
		t.Fatal(err)
	}
	nothingLeft(t)
}

func TestCountersThatFindNoRoomAreRefused(t *testing.T) {
	inNamespace(t)
	d := attach(t, Options{})
	if err := d.Report(Counters{{Name: "kept", Value: 1}}); err != nil {
		t.Fatal(err)
	}
	var most Counters
	for i := range 128 {
		most = append(most, Counter{Name: fmt.Sprint("counter ", i)})
	}
	for _, tt := range []struct {
		list Counters
		want string
	}{
		{Counters{{Name: strings.Repeat("n", 32)}}, `report counter "` + strings.Repeat("n", 32) + `": a name has 1 to 31 bytes`},
		{Counters{{Value: 1}}, `report counter "": a name has 1 to 31 bytes`},
		{append(most, Counter{Name: "one more"}), "report 129 counters: there is room for 128"},
	} {
		if err := d.Report(tt.list); err == nil || err.Error() != tt.want {
			t.Errorf("error %v, want %q", err, tt.want)
		}
		if got, err := d.DaemonCounters(); err != nil || len(got) != 1 || got[0].Name != "kept" {
			t.Errorf("a refused report left %v, %v", got, err)
		}
	}
	if err := d.Report(most); err != nil {
		t.Error(err)
	}
	if got, err := d.DaemonCounters(); err != nil || len(got) != 128 {
		t.Errorf("%d counters, %v", len(got), err)
	}
	if err := d.Detach(); err != nil {
		t.Fatal(err)
	}
	nothingLeft(t)
}
