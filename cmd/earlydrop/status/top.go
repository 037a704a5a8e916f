// SPDX-License-Identifier: Apache-2.0

package status

import (
	"net/netip"
	"time"

	"github.com/earlydrop/earlydrop/cmd/earlydrop/event"
	"github.com/earlydrop/earlydrop/loader"
)

// Top is one look at a gateway: all that Report tells, who is detected and dropped most, and
// what was decided at last. Counters only grow while a gateway works, so two of them, with
// their times, make rates.
type Top struct {
	Report
	// Lists of those that had flows detected, or packets dropped, since the gateway began. In
	// each are those with the most detected flows, and those with the most dropped bytes,
	// sorted by detected flows. They are kept in bounded memory: see Leader.
	Pairs      []Leader `json:"pairs"`
	Servers    []Leader `json:"servers"`
	Initiators []Leader `json:"initiators"`
	// Latest are the latest verdicts on detected flows, and as many of those on others that
	// became events. The latest is the first.
	Latest []*event.Verdict `json:"latest"`
}

// Leader is what came of a pair, of a server, or of an initiator. What is not of its list is
// left out.
//
// So many are counted, and no more: who is new takes the place of the one with the least.
// What he had before, at a time when he was not among them, is lost; it is at most
// DetectedMissed or DroppedBytesMissed.
type Leader struct {
	// Initiator is an IPv4 address, or an IPv6 network of 64 bits: whoever has one address of
	// that mostly has them all. Server is an endpoint.
	Initiator netip.Prefix   `json:"initiator,omitzero"`
	Server    netip.AddrPort `json:"server,omitzero"`
	Proto     string         `json:"proto,omitempty"` // tcp or udp; not of initiators
	VLAN      uint16         `json:"vlan,omitempty"`
	InnerVLAN uint16         `json:"inner_vlan,omitempty"`

	Detected       uint64 `json:"detected"` // flows
	DetectedMissed uint64 `json:"detected_missed,omitempty"`
	Blocked        uint64 `json:"blocked"` // flows that the kernel was told to drop
	// Dropped packets and bytes are those of blocks and treated pairs that are over, and of those
	// that are there.
	DroppedPackets     uint64 `json:"dropped_packets"`
	DroppedBytes       uint64 `json:"dropped_bytes"`
	DroppedBytesMissed uint64 `json:"dropped_bytes_missed,omitempty"`
	Blocks             int    `json:"blocks"`            // that are in force, or suspended in mode monitor
	Treated            int    `json:"treated,omitempty"` // pairs whose connections the kernel treats as they begin; of several interfaces each counts

	// Of the latest flow that was detected; empty where there was none.
	Interface string    `json:"interface,omitempty"`
	Class     string    `json:"class,omitempty"`
	Rule      string    `json:"rule,omitempty"`
	Last      time.Time `json:"last,omitzero"`
}

// Rates are how much there was in a second, of a time that was short.
type Rates struct {
	Seconds        float64 `json:"seconds"`         // how long that time is
	Packets        float64 `json:"packets"`         // that the programs saw, both directions
	Bytes          float64 `json:"bytes"`           // that the interface received and sent
	DroppedPackets float64 `json:"dropped_packets"` //
	DroppedBytes   float64 `json:"dropped_bytes"`   //
	Flows          float64 `json:"flows"`           // new ones, TCP and UDP
	Verdicts       float64 `json:"verdicts"`        //
	Treated        float64 `json:"treated"`         // verdicts that a rule wants dropped, reset or limited
}

// Totals are what Rates are made from.
type Totals struct {
	Packets, Bytes, DroppedPackets, DroppedBytes, Flows, Verdicts, Treated uint64
}

// NewTotals returns those of an interface, out of what the daemon and the kernel have counted.
func NewTotals(daemon, kernel map[string]uint64, traffic *loader.Traffic) Totals {
	t := Totals{
		Packets:        kernel["packets_ingress"] + kernel["packets_egress"],
		DroppedPackets: kernel["dropped_packets"], DroppedBytes: kernel["dropped_bytes"],
		Flows:    kernel["tcp_opened"] + kernel["udp_opened"],
		Verdicts: daemon["classified"], Treated: daemon["to_drop"],
	}
	if traffic != nil {
		t.Bytes = traffic.RxBytes + traffic.TxBytes
	}
	return t
}

// Totals returns those of the interface.
func (s *Status) Totals() Totals { return NewTotals(s.Daemon, s.Counters, s.Traffic) }

// Since returns how fast totals grew; nil where no time has passed. What is less than before,
// as counters began anew, did not grow.
func (t Totals) Since(before Totals, took time.Duration) *Rates {
	if took <= 0 {
		return nil
	}
	rate := func(now, then uint64) float64 { return float64(now-min(now, then)) / took.Seconds() }
	return &Rates{
		Seconds: took.Seconds(),
		Packets: rate(t.Packets, before.Packets), Bytes: rate(t.Bytes, before.Bytes),
		DroppedPackets: rate(t.DroppedPackets, before.DroppedPackets), DroppedBytes: rate(t.DroppedBytes, before.DroppedBytes),
		Flows: rate(t.Flows, before.Flows), Verdicts: rate(t.Verdicts, before.Verdicts), Treated: rate(t.Treated, before.Treated),
	}
}
