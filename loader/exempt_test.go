// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"bytes"
	"net/netip"
	"slices"
	"strings"
	"testing"

	f "github.com/earlydrop/earlydrop/loader/internal/frames"
)

func prefixes(list ...string) (all []netip.Prefix) {
	for _, s := range list {
		all = append(all, netip.MustParsePrefix(s))
	}
	return all
}

// copied returns the tables of captures in which a payload is.
func (k *kernel) copied(payload []byte) (where []string) {
	k.t.Helper()
	for _, name := range []string{datapathMapSyns, datapathMapHandshakes, datapathMapWaitingFlows} {
		memory, err := k.coll.Maps[name].Memory()
		if err != nil {
			k.t.Fatal(err)
		}
		all := make([]byte, memory.Size())
		if _, err := memory.ReadAt(all, 0); err != nil {
			k.t.Fatal(err)
		}
		if bytes.Contains(all, payload) {
			where = append(where, name)
		}
	}
	slots := k.coll.Maps[datapathMapSlots]
	for i := range slots.MaxEntries() {
		v, err := slots.LookupBytes(i)
		if err != nil {
			k.t.Fatal(err)
		}
		if bytes.Contains(v, payload) {
			return append(where, datapathMapSlots)
		}
	}
	return where
}

// secret is payload that is in no table by chance.
func secret(n int) []byte { return bytes.Repeat([]byte("nobody copies this "), n/19+1)[:n] }

func secretTCP(from, to netip.AddrPort, seq, ack uint32, flags byte, n int) []byte {
	return f.Ethernet(f.IP(from, to, f.TCP, f.Numbered(f.Segment(from, to, flags, nil, secret(n)), seq, ack)))
}

func secretUDP(from, to netip.AddrPort, n int) []byte {
	return f.Ethernet(f.IP(from, to, f.UDP, f.Datagram(from, to, secret(n))))
}

// Of a flow with an end in an exempt network no byte of payload is copied, from its first packet on.
func TestExemptFlowIsNotCaptured(t *testing.T) {
	kernels := map[bool]*kernel{}
	for _, midStream := range []bool{false, true} {
		kernels[midStream] = loadKernel(t, config{oneHook: true, midStream: midStream})
	}
	connection := func(from, to netip.AddrPort, inSYN int) [][]byte {
		return [][]byte{
			secretTCP(from, to, 1, 0, f.SYN, inSYN), secretTCP(to, from, 1, 2+uint32(inSYN), f.SYN|f.ACK, 0),
			secretTCP(from, to, 2+uint32(inSYN), 2, f.ACK, 600), secretTCP(to, from, 2, 602+uint32(inSYN), f.ACK, 700), secretTCP(from, to, 602+uint32(inSYN), 702, f.ACK, 700),
		}
	}
	tests := []struct {
		name      string
		frames    [][]byte
		exempt    []netip.Prefix
		midStream bool
		want      bool // exempt
	}{
		{"the server", connection(client, server, 0), prefixes("192.0.2.0/24"), false, true},
		{"the client", connection(client, server, 0), prefixes("10.0.0.2/32"), false, true},
		{"the client is the higher end", connection(server, client, 0), prefixes("192.0.2.7/32"), false, true},
		{"all of IPv4", connection(client, server, 0), prefixes("0.0.0.0/0"), false, true},
		{"payload in the SYN", connection(client, server, 64), prefixes("192.0.2.0/24"), false, true},
		{"IPv6", connection(peer6, host6, 0), prefixes("2001:db8::/32"), false, true},
		{"mid-stream", [][]byte{secretTCP(client, server, 2, 2, f.ACK, 1200)}, prefixes("192.0.2.0/24"), true, true},
		{"UDP", [][]byte{secretUDP(client, server, 300), secretUDP(client, server, 300), secretUDP(server, client, 300), secretUDP(client, server, 300)}, prefixes("192.0.2.7/32"), false, true},
		{"UDP without an answer", [][]byte{secretUDP(client, server, 300), secretUDP(client, server, 300)}, prefixes("192.0.2.7/32"), false, false},
		{"another network", connection(client, server, 0), prefixes("192.0.3.0/24", "10.0.0.3/32"), false, false},
		{"all of IPv6, which IPv4 is not", connection(client, server, 0), prefixes("::/0"), false, false},
		{"all of IPv6, and some IPv4", connection(client, server, 0), prefixes("::/0", "192.0.2.0/24"), false, true},
		{"all of IPv6, in IPv6", connection(peer6, host6, 0), prefixes("::/0"), false, true},
		{"nothing", connection(client, server, 64), nil, false, false},
	}
	for _, tt := range tests {
		for _, e := range []entry{ingress, egress} {
			t.Run(tt.name+"/"+string(e), func(t *testing.T) {
				k := kernels[tt.midStream].emptied(t)
				k.wipeSlots()
				if err := k.SetExempt(tt.exempt); err != nil {
					t.Fatal(err)
				}
				for _, frame := range tt.frames {
					if k.run(e, frame) {
						t.Error("a packet was dropped")
					}
				}
				got, where := k.samples(), k.copied(secret(19))
				unanswered := strings.Contains(tt.name, "without an answer")
				switch {
				case (tt.want || unanswered) && (len(got) != 0 || len(where) != 0):
					t.Errorf("%d samples, payload in %v", len(got), where)
				case !tt.want && !unanswered && (len(got) != 1 || len(where) == 0):
					t.Errorf("%d samples, payload in %v: the test sees nothing", len(got), where)
				}
				if c := k.counts(); c["exempt_flows"] != uint64(bit(tt.want)) {
					t.Errorf("counters %v", c)
				}
				if o, err := k.Occupancy(); err != nil || o.Collecting != 0 || tt.want && o.Flows != 1 {
					t.Errorf("occupancy %+v, %v", o, err)
				}
			})
		}
	}
}

// wipeSlots overwrites what earlier flows have left there.
func (k *kernel) wipeSlots() {
	k.t.Helper()
	slots := k.coll.Maps[datapathMapSlots]
	value := make([]byte, slots.ValueSize())
	for i := range slots.MaxEntries() {
		if err := slots.Put(i, value); err != nil {
			k.t.Fatal(err)
		}
	}
}

func (k *kernel) exemptNetworks() (all []string) {
	k.t.Helper()
	var key datapathExemptKey
	var v datapathExemptNetwork
	entries := k.Tables.exempt.Iterate()
	for entries.Next(&key, &v) {
		if v.Exempt == 1 {
			all = append(all, netip.PrefixFrom(netip.AddrFrom16(key.Addr), int(key.Prefixlen)).String())
		}
	}
	if err := entries.Err(); err != nil {
		k.t.Fatal(err)
	}
	slices.Sort(all)
	return all
}

func TestSetExemptReplacesTheNetworks(t *testing.T) {
	k := loadKernel(t, config{})
	for _, tt := range []struct {
		networks []netip.Prefix
		want     string
	}{
		{prefixes("10.0.0.0/8", "2001:db8::/32", "10.0.0.0/8"), "2001:db8::/32 ::ffff:10.0.0.0/104"},
		{prefixes("10.0.0.0/8", "10.0.0.0/9"), "::ffff:10.0.0.0/104 ::ffff:10.0.0.0/105"},
		{prefixes("::/0"), "::/0"},
		{prefixes("::/0", "0.0.0.0/0"), "::/0 ::ffff:0.0.0.0/96"},
		{prefixes("::/0"), "::/0"},
		{prefixes("0.0.0.0/0"), "::ffff:0.0.0.0/96"},
		{nil, ""},
	} {
		if err := k.SetExempt(tt.networks); err != nil {
			t.Fatal(err)
		}
		if got := strings.Join(k.exemptNetworks(), " "); got != tt.want {
			t.Errorf("%v: %s, want %s", tt.networks, got, tt.want)
		}
	}
	many := make([]netip.Prefix, 0, MaxExempt+1)
	for i := range MaxExempt + 1 {
		addr := [4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}
		many = append(many, netip.PrefixFrom(netip.AddrFrom4(addr), 32))
	}
	if err := k.SetExempt(many); err == nil || !strings.Contains(err.Error(), "100001 networks are to be exempt: there is room for 100000") {
		t.Errorf("too many: %v", err)
	}
	if err := k.SetExempt([]netip.Prefix{{}}); err == nil {
		t.Error("no network is taken for one")
	}
	if got := k.exemptNetworks(); len(got) != 0 {
		t.Errorf("%d networks after an error", len(got))
	}
	// All that there may be, and then others: there is room for both.
	if err := k.SetExempt(many[:MaxExempt]); err != nil {
		t.Fatal(err)
	}
	for i := range many[:1000] {
		many[i] = netip.PrefixFrom(netip.AddrFrom4([4]byte{11, byte(i >> 16), byte(i >> 8), byte(i)}), 32)
	}
	if err := k.SetExempt(many[:MaxExempt]); err != nil {
		t.Fatal(err)
	}
	if got := len(k.exemptNetworks()); got != MaxExempt {
		t.Errorf("%d networks", got)
	}
}
