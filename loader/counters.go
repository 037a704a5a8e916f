// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"

	"github.com/cilium/ebpf"
)

// A Counter is one thing that is counted.
type Counter struct {
	Name  string // as JSON and bpftool have it
	Help  string // one line that says what is counted
	Value uint64
}

// Counters are what is counted somewhere, in the order in which people are told of it.
type Counters []Counter

// Values returns the counters by name.
func (c Counters) Values() map[string]uint64 {
	values := make(map[string]uint64, len(c))
	for _, one := range c {
		values[one.Name] = one.Value
	}
	return values
}

// Counters returns what the programs have counted since the maps were created, over all
// CPUs, in the order of struct counts in bpf/earlydrop.h.
func (t *Tables) Counters() (Counters, error) { return readCounters(t.counters) }

func readCounters(m *ebpf.Map) (Counters, error) {
	var perCPU []datapathCounts
	if err := m.Lookup(uint32(0), &perCPU); err != nil {
		return nil, fmt.Errorf("read map counters: %w", err)
	}
	var list Counters
	for i := range reflect.TypeFor[datapathCounts]().NumField() {
		field := reflect.TypeFor[datapathCounts]().Field(i)
		if field.Name == "_" {
			continue
		}
		name := snakeCase(field.Name)
		one := Counter{Name: name, Help: countsHelp[name]}
		for cpu := range perCPU {
			one.Value += reflect.ValueOf(&perCPU[cpu]).Elem().Field(i).Uint()
		}
		list = append(list, one)
	}
	return list, nil
}

// countsHelp says what the programs count. Of what "passes", nothing is identified.
var countsHelp = map[string]string{
	"packets_ingress":      "packets that came in through the interface",
	"packets_egress":       "packets that left through the interface",
	"dropped_packets":      "packets of blocked flows, and SYNs of treated pairs, that were dropped",
	"dropped_bytes":        "bytes of blocked flows, and of SYNs of treated pairs, that were dropped, L2 headers included",
	"resets":               "RSTs that ends of blocked flows were sent",
	"resets_refused":       "RSTs that were not sent, as there had been too many on the interface",
	"not_ip":               "packets that are not IP",
	"other_proto":          "packets that are neither TCP nor UDP",
	"malformed":            "packets with headers that can't be true",
	"unparsable":           "packets with more tags or extension headers than are walked",
	"later_fragment":       "IP fragments after the first",
	"followed_fragment":    "IP fragments that followed their first: they belong to its flow",
	"bad_fragment":         "IP fragments that lack headers, or begin within those of the first",
	"bad_fragment_dropped": "of those, IP fragments that were dropped, as in mode enforce",
	"bad_flags":            "TCP segments with SYN that have RST or FIN as well",
	"tcp_opened":           "TCP connections that both ends have made",
	"udp_opened":           "UDP flows of which both sides have spoken",
	"udp_waiting":          "UDP flows of which one side had spoken",
	"udp_unanswered":       "UDP flows that nobody answered in 30 s, or that did not fit into the table of waiting ones",
	"mid_stream":           "TCP flows whose beginning was not seen",
	"header_only":          "TCP connections closed without payload, and datagrams without payload",
	"restarted":            "new connections on a flow that was collecting",
	"handed_full":          "captures handed over because they were full",
	"handed_closed":        "captures handed over because the connection was closed",
	"handed_idle":          "captures handed over because the flow was idle",
	"syns":                 "TCP SYNs that may begin a connection",
	"one_way":              "TCP connections of which one direction was seen",
	"reflected":            "handshake packets and datagrams that came back from the wrong side",
	"wrong_side":           "TCP segments that came from the other end's side",
	"out_of_place":         "TCP segments with numbers that their connection can't have",
	"behind":               "TCP segments whose payload was captured before",
	"decoys":               "TCP segments with a wrong checksum, of flows that are not decided",
	"partial_sums":         "TCP segments that came in with a checksum of the pseudo-header alone, where it can't be told whether an offload left it: believed",
	"bare":                 "header-only TCP segments beyond those that a capture keeps",
	"again":                "captures that went on, as payload followed an early end",
	"mptcp_join":           "TCP connections that carry the middle of a Multipath TCP stream",
	"renewed":              "blocks whose connection went on when their time was over",
	"pair_connections":     "TCP connections that began while their pair was treated: dropped or limited, and not captured",
	"exempt_flows":         "flows with an end in an exempt network: they pass, and are not captured",
	"pending_flows":        "TCP connections that waited for their verdict, as they may be tunnels: a bound is set on what passes meanwhile",
	"pending_packets":      "packets of those that were dropped meanwhile: TCP sends them again",
	"pending_bytes":        "bytes of those packets, L2 headers included",
	"pending_late":         "connections that waited for 5 ms in vain: everything of them passes, and for a second no other one waits",
	"slots_full":           "flows that pass because no capture slot is free",
	"initiator_slots":      "flows that pass because slots are scarce and their initiator has many",
	"initiator_waiting":    "UDP flows that pass because waiting flows are many and a sender has many of them",
	"collecting_full":      "flows that pass because a map, mostly that of collecting flows, refused them",
	"handshake_busy":       "packets not captured because another CPU was writing to their flow",
	"ring_full":            "flows that pass because the ring buffer was full",
	"load_failed":          "packets that could not be read",
}

// snakeCase undoes what bpf2go does to C names.
func snakeCase(s string) string {
	var b strings.Builder
	for i, r := range s {
		if i > 0 && r >= 'A' && r <= 'Z' {
			b.WriteByte('_')
		}
		b.WriteString(strings.ToLower(string(r)))
	}
	return b.String()
}

// Report writes what the daemon has counted to where [Tables.DaemonCounters] reads it,
// in place of what was there. Names have at most 31 bytes.
func (d *DataPath) Report(counters Counters) error {
	room := int(d.daemon.MaxEntries())
	if len(counters) > room {
		return fmt.Errorf("report %d counters: there is room for %d", len(counters), room)
	}
	keys, values := make([]uint32, room), make([]datapathDaemonCounter, room)
	for i := range keys {
		keys[i] = uint32(i)
	}
	for i, c := range counters {
		if c.Name == "" || len(c.Name) >= len(values[i].Name) {
			return fmt.Errorf("report counter %q: a name has 1 to %d bytes", c.Name, len(values[i].Name)-1)
		}
		fixed(values[i].Name[:], c.Name)
		values[i].Value = c.Value
	}
	if _, err := d.daemon.BatchUpdate(keys, values, nil); err != nil {
		return fmt.Errorf("write map daemon_counters: %w", err)
	}
	return nil
}

// DaemonCounters returns what the daemon, or the last one, has counted, as it reported
// that about once a second. Help is empty.
func (t *Tables) DaemonCounters() (Counters, error) {
	var list Counters
	for i := range t.daemon.MaxEntries() {
		var c datapathDaemonCounter
		if err := t.daemon.Lookup(i, &c); err != nil {
			return nil, fmt.Errorf("read map daemon_counters: %w", err)
		}
		name := fromFixed(c.Name[:])
		if name == "" {
			break
		}
		list = append(list, Counter{Name: name, Value: c.Value})
	}
	return list, nil
}

// KnownCounters returns what the programs count, in the order of struct counts in
// bpf/earlydrop.h, each with value 0.
func KnownCounters() (known Counters) {
	for field := range reflect.TypeFor[datapathCounts]().Fields() {
		if field.Name != "_" {
			name := snakeCase(field.Name)
			known = append(known, Counter{Name: name, Help: countsHelp[name]})
		}
	}
	return known
}

// Ordered returns values by name in the order of c, with its help, and after them, by name,
// those that c does not have.
func (c Counters) Ordered(values map[string]uint64) (list Counters) {
	rest := maps.Clone(values)
	for _, one := range c {
		if n, ok := rest[one.Name]; ok {
			one.Value = n
			list = append(list, one)
			delete(rest, one.Name)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(rest)) {
		list = append(list, Counter{Name: name, Value: rest[name]})
	}
	return list
}
