// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"encoding/binary"
	"fmt"
	"os/exec"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// Rules of iptables-legacy, as its own program makes them.
func TestMasqueradeOfLegacyTables(t *testing.T) {
	n := routed(t)
	run := func(program string, args ...string) {
		t.Helper()
		n.in("gateway", func() error {
			out, err := exec.Command(program, append([]string{"-w", "-t", "nat"}, args...)...).CombinedOutput()
			if err != nil {
				err = fmt.Errorf("%s %v: %w: %s", program, args, err, out)
			}
			return err
		})
	}
	find := func(what string, want Masquerade, iface string) {
		t.Helper()
		n.in("gateway", func() error {
			if want.Table != "" { // the other one
				want.Inside = []string{map[string]string{"wan": "lan", "lan": "wan"}[iface]}
			}
			if m, found := FindMasquerade(iface); found != (want.Table != "") || !cmp.Equal(m, want) {
				t.Errorf("%s, %s: %+v, %v, want %+v", what, iface, m, found, want)
			}
			return nil
		})
	}
	find("no table", Masquerade{}, "wan")
	for _, tt := range []struct {
		program, family string
		address         string
	}{{"iptables-legacy", "ip", "198.51.100.1"}, {"ip6tables-legacy", "ip6", "2001:db8::1"}} {
		there := Masquerade{Table: tt.family + " nat", Legacy: true}
		run(tt.program, "-A", "PREROUTING", "-i", "wan", "-j", "ACCEPT")
		run(tt.program, "-A", "POSTROUTING", "-o", "wan", "-j", "ACCEPT")
		find(tt.program+", nothing that changes a source", Masquerade{}, "wan")
		for _, rule := range []struct {
			args     []string
			wan, lan Masquerade
		}{
			{[]string{"-o", "wan", "-j", "MASQUERADE"}, there, Masquerade{}},
			{[]string{"!", "-o", "lan", "-p", "tcp", "-m", "comment", "--comment", "a match", "-j", "MASQUERADE"}, there, Masquerade{}},
			{[]string{"-o", "wa+", "-j", "SNAT", "--to-source", tt.address}, there, Masquerade{}},
			{[]string{"-j", "SNAT", "--to-source", tt.address}, there, there},
			{[]string{"-o", "eth9", "-j", "MASQUERADE"}, Masquerade{}, Masquerade{}},
		} {
			run(tt.program, append([]string{"-A", "POSTROUTING"}, rule.args...)...)
			find(tt.program, rule.wan, "wan")
			find(tt.program, rule.lan, "lan")
			run(tt.program, append([]string{"-D", "POSTROUTING"}, rule.args...)...)
		}
		// In a chain that is jumped to.
		run(tt.program, "-N", "more")
		run(tt.program, "-A", "POSTROUTING", "-j", "more")
		run(tt.program, "-A", "more", "-o", "wan", "-j", "MASQUERADE")
		find(tt.program+", a chain", there, "wan")
		run(tt.program, "-F")
		find(tt.program+", flushed", Masquerade{}, "wan")
	}
}

// Entries that are cut, or point where there is nothing, are none.
func TestLegacyEntriesThatMakeNoSense(t *testing.T) {
	for i := range legacy {
		l := &legacy[i]
		entry := func(target, next int, name string) []byte {
			e := make([]byte, l.size+64)
			binary.NativeEndian.PutUint16(e[l.target:], uint16(target))
			binary.NativeEndian.PutUint16(e[l.next:], uint16(next))
			copy(e[l.size+2:], name)
			return e
		}
		good := entry(l.size, l.size+64, "MASQUERADE")
		if !l.changeSource(good, "wan") || !l.changeSource(append(entry(l.size, l.size+64, "ACCEPT"), good...), "wan") {
			t.Errorf("%s: a rule is not seen", l.family)
		}
		for what, bad := range map[string][]byte{
			"nothing": nil, "cut": good[:len(good)-1], "next is the entry itself": entry(l.size, 0, "SNAT"), "next is behind the end": entry(l.size, l.size+65, "SNAT"),
			"the target is in the entry": entry(l.size-1, l.size+64, "SNAT"), "the target is behind the end": entry(l.size+40, l.size+64, "SNAT"),
			"another target": entry(l.size, l.size+64, "MASQUERADED"),
		} {
			if l.changeSource(bad, "wan") {
				t.Errorf("%s: %s changes sources", l.family, what)
			}
		}
	}
}
