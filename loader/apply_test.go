// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"errors"
	"testing"
	"time"

	"github.com/earlydrop/earlydrop/loader/flow"
)

// drop is the treatment of a flow that a rule has named.
func drop(ttl time.Duration, class, rule string) flow.Treatment {
	return flow.Treatment{Action: flow.Drop, TTL: ttl, Class: class, Rule: rule}
}

func TestApplyRefusesWhatTheDataPathCannotDo(t *testing.T) {
	k := loadKernel(t, config{})
	meta := metaOf(client.Addr(), server.Addr(), 1000)
	for name, tt := range map[string]struct {
		treatment   flow.Treatment
		unsupported bool
		want        string
	}{
		"another action": {flow.Treatment{Action: 7, TTL: time.Hour}, true,
			"treat " + meta.Key.String() + ": the data path knows no action-7: it drops, resets or limits flows"},
		"another scope": {flow.Treatment{Action: flow.Drop, Scope: flow.ScopePair, TTL: time.Hour}, true,
			"block " + meta.Key.String() + ": the data path knows no pair: it drops, resets or limits flows"},
		"a rate": {flow.Treatment{Action: flow.Drop, TTL: time.Hour, Rate: 1000}, true,
			"block " + meta.Key.String() + ": the data path knows no rate (1000 bytes/s) of action drop: it drops, resets or limits flows"},
		"no rate": {flow.Treatment{Action: flow.Limit, TTL: time.Hour}, false,
			"block " + meta.Key.String() + ": rate of 0 bytes/s is not between 125 and 1250000000"},
		"a pass": {flow.Treatment{}, true,
			"treat " + meta.Key.String() + ": the data path knows no pass: it drops, resets or limits flows"},
		"a log": {flow.Treatment{Action: flow.Log}, true,
			"treat " + meta.Key.String() + ": the data path knows no log: it drops, resets or limits flows"},
		"no time": {drop(0, "", ""), false, "block " + meta.Key.String() + ": time to live 0s is not positive"},
	} {
		for _, err := range []error{k.Apply(meta.Key, tt.treatment), k.ApplyFlow(meta, tt.treatment)} {
			var unsupported *UnsupportedError
			if err == nil || err.Error() != tt.want || errors.As(err, &unsupported) != tt.unsupported {
				t.Errorf("%s: error %v, want %q", name, err, tt.want)
			}
			if unsupported != nil && unsupported.Treatment != tt.treatment {
				t.Errorf("%s: the error is about %+v", name, unsupported.Treatment)
			}
		}
	}
	if blocks, err := k.Blocked(); err != nil || len(blocks) != 0 {
		t.Errorf("blocked %+v, %v", blocks, err)
	}
}

func TestPassEndsNoBlock(t *testing.T) {
	k := loadKernel(t, config{})
	if err := errors.Join(k.Apply(tcpKey(), drop(time.Hour, "", "")), k.Pass(tcpKey())); err != nil {
		t.Fatal(err)
	}
	if blocks, err := k.Blocked(); err != nil || len(blocks) != 1 {
		t.Errorf("blocked %+v, %v", blocks, err)
	}
}
