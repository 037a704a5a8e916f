// SPDX-License-Identifier: Apache-2.0

// Package flow holds the plain types that the data path, the classifier and
// the policy share. It imports nothing of the project and does no work of its
// own: loader fills a Sample, classifier turns it into a Result, policy turns
// both into a decision.
package flow

import (
	"bytes"
	"fmt"
	"net/netip"
	"slices"
	"time"
)

const (
	// CaptureBytes is the size of a flow's capture: the first 1024 bytes that
	// both sides put on the wire (the paper's image, 32x32 bytes).
	CaptureBytes = 1024

	// MaxPackets bounds the packet records of one capture. The smallest
	// packet that belongs to a flow is a UDP datagram without payload on a
	// raw IPv4 link: 14 bytes of zero Ethernet header + 20 + 8 = 42, so 1024
	// bytes hold at most 25 packets.
	MaxPackets = 32

	// HandshakeBytes bounds what is kept of header-only TCP packets until the
	// first payload byte arrives, and HandshakeFrame the size of one such
	// frame. A larger frame, or one that no longer fits, is left out.
	HandshakeBytes = 384
	// HandshakeFrame is explained at HandshakeBytes.
	HandshakeFrame = 160
	// HandshakePackets bounds the packet records kept at that stage.
	HandshakePackets = 8
)

// Proto is the transport protocol of a flow, as IP numbers it.
type Proto uint8

// The two protocols that have flows.
const (
	TCP Proto = 6
	UDP Proto = 17
)

// String returns "tcp", "udp" or the number.
func (p Proto) String() string {
	switch p {
	case TCP:
		return "tcp"
	case UDP:
		return "udp"
	}
	return fmt.Sprintf("proto-%d", uint8(p))
}

// Key names a flow in both directions. It is canonical: Lo is the endpoint
// that compares lower (address as 16 bytes, IPv4 as v4-mapped IPv6, then
// port). Addresses are stored unmapped, so that IPv4 prints as IPv4. Key is
// comparable and may key a Go map.
type Key struct {
	Lo, Hi    netip.AddrPort
	Proto     Proto
	VLAN      uint16 // outer 802.1Q id, 0 when untagged or priority-tagged
	InnerVLAN uint16 // second tag of QinQ, else 0
}

// NewKey returns the canonical key of a packet from src to dst and whether
// src is the lower endpoint.
func NewKey(src, dst netip.AddrPort, proto Proto, vlan, innerVLAN uint16) (key Key, srcIsLo bool) {
	src = netip.AddrPortFrom(src.Addr().Unmap(), src.Port())
	dst = netip.AddrPortFrom(dst.Addr().Unmap(), dst.Port())
	key = Key{Lo: src, Hi: dst, Proto: proto, VLAN: vlan, InnerVLAN: innerVLAN}
	if less(dst, src) {
		key.Lo, key.Hi = dst, src
		return key, false
	}
	return key, true
}

func less(a, b netip.AddrPort) bool {
	a16, b16 := a.Addr().As16(), b.Addr().As16()
	if c := bytes.Compare(a16[:], b16[:]); c != 0 {
		return c < 0
	}
	return a.Port() < b.Port()
}

// String prints both endpoints, the protocol and the VLAN ids, if any.
func (k Key) String() string {
	return fmt.Sprintf("%s %s <> %s", k.Proto, k.Lo, k.Hi) + vlanText(k.VLAN, k.InnerVLAN)
}

// vlanText returns what follows endpoints where there are VLAN ids.
func vlanText(outer, inner uint16) (s string) {
	if outer != 0 {
		s += fmt.Sprintf(" vlan %d", outer)
	}
	if inner != 0 {
		s += fmt.Sprintf(".%d", inner)
	}
	return s
}

// Reason says why a capture was handed over.
type Reason uint8

// Reasons; the numbers are shared with enum handover_reason in
// bpf/earlydrop.h and are never reused.
const (
	ReasonFull   Reason = 1 // CaptureBytes are in
	ReasonClosed Reason = 2 // FIN or RST; or it is the handshake, and no more is captured
	ReasonIdle   Reason = 3 // no packet for the idle time
	ReasonEnd    Reason = 4 // the capture file ended (replay only)
)

// String returns a word for logs and JSON.
func (r Reason) String() string {
	switch r {
	case ReasonFull:
		return "full"
	case ReasonClosed:
		return "closed"
	case ReasonIdle:
		return "idle"
	case ReasonEnd:
		return "end"
	}
	return fmt.Sprintf("reason-%d", uint8(r))
}

// Packet is the record of one captured packet.
type Packet struct {
	// Offset is where the packet's first byte is in Sample.Data. The
	// packet ends where the next one begins, or at the end of Data.
	Offset uint16
	// WireLen is the packet's length on the wire in bytes, L2 header
	// included, Ethernet padding behind the IP packet left out. It exceeds
	// the captured bytes where the capture ended inside the packet.
	WireLen uint32
	// Segment is how many bytes of payload each packet had of those that the kernel joined to
	// this one when it received them (GRO), or was yet to cut it into: all but the last, which
	// has the rest. 0 where the packet is as the wire has it, and for files of others.
	Segment uint16
	// FromInitiator is true for packets sent by the side that opened the flow.
	FromInitiator bool
	// OffCable says that the packet came off a cable: no network card was yet to complete
	// its checksum. False where that isn't known.
	OffCable bool
	// Time is the time since the flow's first packet.
	Time time.Duration
}

// Meta describes a flow at the moment its capture was handed over.
type Meta struct {
	Source Source
	Key    Key
	// InitiatorIsLo tells which endpoint opened the flow: the sender of the
	// first SYN (TCP) or of the first datagram (UDP).
	InitiatorIsLo bool
	Reason        Reason
	Start         time.Time     // arrival of the flow's first packet
	Elapsed       time.Duration // from Start to the hand-over
	// Numbers are those of the connection at the hand-over; zero for UDP.
	Numbers Numbers
	// OneWay says that only one direction of the connection was seen: whoever can
	// send as its initiator can forge it.
	OneWay bool
	// MidStream is true for a TCP flow that was open before its first captured
	// packet: its beginning, which models know, is missing. So it is where the handshake alone
	// is captured: SignalUnreadable, SignalMPTCPJoin, SignalOutOfPlace.
	MidStream bool
	// Cut is true where a capture file holds fewer bytes of a captured packet
	// than the wire had, as with a small snap length. It is never set live.
	Cut bool
	// Incomplete is true for a cut flow of which the file holds too little to be
	// judged: of one of its packets with payload fewer than IncompleteBytes of
	// that payload, or fewer than all where there were not so many.
	Incomplete bool
	// MissingStart says that of a TCP connection that was seen from its beginning the first
	// bytes of a side are missing: they came too late for the capture, or were left out.
	// What was captured is the middle of what that side sent.
	MissingStart bool
	// Signals is what the flow's first packets show that ordinary ones rarely do.
	Signals Signals
	// Scant is true where fewer than 64 bytes of payload were captured.
	Scant bool
	// Full is true where all CaptureBytes are in.
	Full bool
	// Provisional says that the capture of a TCP connection ended early, has fewer than
	// 64 bytes of payload, or is of a slow beginning or of tiny segments: when payload
	// follows, it goes on, and there is another verdict.
	Provisional bool
	// Variant says that of a range that came twice, with different bytes, the later ones are in
	// the sample. Nobody but the receiver knows which ones it took, so both are judged.
	Variant bool
	// Revision is how often the capture went on, 0 to 4. What was captured before is in
	// the sample.
	Revision int
	// Resumed says that a UDP flow may have been there before its capture began: it was
	// decided, and then silent or blocked, or was new soon after the first attach.
	Resumed bool
}

// Signals is a set of what a client may do to its own first bytes so that who reads along
// mistakes them for something else. Package signals finds them.
type Signals uint16

// The signals. Each says what was seen, not why: networks do some of it as well.
const (
	// SignalDecoy: packets with a wrong TCP or UDP checksum, which no host accepts. They are
	// left out of the sample.
	SignalDecoy Signals = 1 << iota
	// SignalTTL: packets of one endpoint whose times to live, or hop limits, differ.
	SignalTTL
	// SignalGap: bytes are missing between those that were captured.
	SignalGap
	// SignalTiny: a side begins with several segments of a few bytes each. In a revision
	// they are one segment with what followed them.
	SignalTiny
	// SignalFragmented: a packet came in IP fragments, of which the first one was captured.
	// Its payload may have come in others. Or, of TCP, the first fragment of what a side was
	// to send next had no more than ports and sequence number, and nothing of it was captured.
	SignalFragmented
	// SignalSlow: the first 64 bytes of payload took more than 2 s.
	SignalSlow
	// SignalResetThenData: payload of a side behind its RST.
	SignalResetThenData
	// SignalFINThenData: payload of a side that its FIN had said would not come.
	SignalFINThenData
	// SignalSYNData: data in the SYN that the responder did not take.
	SignalSYNData
	// SignalEarlyServerData: the responder sent data before its SYN+ACK was answered.
	SignalEarlyServerData
	// SignalOverlap: a range of a TCP stream came twice, with different bytes.
	SignalOverlap
	// SignalUrgent: a side begins with urgent data, of which programs do not get a byte.
	SignalUrgent
	// SignalOutOfPlace: both sides sent more than 16 KiB of payload with numbers that the
	// connection could not have, before the capture ended. It is not in the sample, which is
	// the handshake alone where no payload was in place so far.
	SignalOutOfPlace
	// SignalUnreadable: the connection moved on by more than 4 KB, and no payload could be
	// read. The sample is its handshake alone.
	SignalUnreadable
	// SignalMPTCPJoin: the SYN joins another connection (Multipath TCP), so that payload is
	// the middle of a stream. The sample is the handshake alone.
	SignalMPTCPJoin
)

var signalNames = []string{"decoy", "ttl", "gap", "tiny", "fragmented",
	"slow", "reset_then_data", "fin_then_data", "syn_data", "early_server_data", "overlap", "urgent", "out_of_place", "unreadable", "mptcp_join"}

// SignalNames returns the words for all signals, as policies and events have them.
func SignalNames() []string { return slices.Clone(signalNames) }

// ParseSignal returns the signal of that name, or false.
func ParseSignal(name string) (Signals, bool) {
	i := slices.Index(signalNames, name)
	if i < 0 {
		return 0, false
	}
	return 1 << i, true
}

// Names returns the words for the signals in s, nil if there is none.
func (s Signals) Names() (names []string) {
	for i, name := range signalNames {
		if s&(1<<i) != 0 {
			names = append(names, name)
		}
	}
	return names
}

// IncompleteBytes is explained at Meta.Incomplete.
const IncompleteBytes = 32

// Numbers are the TCP sequence numbers of a connection.
type Numbers struct {
	// InitiatorISN and ResponderISN are the sequence numbers of SYN and SYN+ACK.
	// They are known, and tell one connection of a key from the next, where
	// ISNKnown is set.
	InitiatorISN, ResponderISN uint32
	// InitiatorNext and ResponderNext are the sequence numbers of the next byte
	// that each side is expected to send.
	InitiatorNext, ResponderNext uint32

	ISNKnown, InitiatorNextKnown, ResponderNextKnown bool
}

// Initiator returns the endpoint that opened the flow.
func (m *Meta) Initiator() netip.AddrPort {
	if m.InitiatorIsLo {
		return m.Key.Lo
	}
	return m.Key.Hi
}

// Responder returns the endpoint that the flow was opened to.
func (m *Meta) Responder() netip.AddrPort {
	if m.InitiatorIsLo {
		return m.Key.Hi
	}
	return m.Key.Lo
}

// Proven reports whether m is a TCP connection whose handshake both ends were seen to make.
// Nobody makes one with the address of another that he can't receive packets for.
func (m *Meta) Proven() bool {
	return m.Key.Proto == TCP && !m.OneWay && !m.MidStream && !m.Resumed
}

// Sample is the capture of one flow. It owns its memory, so that one Sample
// can be filled again and again without allocating; it is not safe for
// concurrent use.
type Sample struct {
	Meta
	// Packets holds one record per captured packet, in order of arrival.
	Packets []Packet
	// Data holds the captured frames one after another, at most CaptureBytes.
	// Every frame begins with an Ethernet header; where the link has none, a
	// header with zero addresses and the EtherType of the IP version stands
	// in its place.
	Data []byte

	// Seed is what takes the place of masked bytes begins with, of a capture that was kept, as
	// some of these bytes may have been changed; 0 of all others.
	Seed uint64

	// Repeat is TCP payload of a range that was sent before.
	Repeat Repeat
	// Rest is what follows the captured bytes of the last packet, at most RestBytes: of
	// connections that begin in tiny segments or slowly, if there is no Repeat. Where fewer than
	// 16 bytes were captured, it is that packet from its start.
	Rest []byte

	packets [MaxPackets]Packet
	data    [CaptureBytes]byte
	repeat  [RestBytes]byte
}

const (
	// RepeatBytes bounds what is kept of payload that comes again.
	RepeatBytes = 512
	// RestBytes bounds what is kept of a packet beyond what was captured.
	RestBytes = CaptureBytes - 8
)

// Repeat is payload behind what its side had sent by then. Usually it is the same as what
// was captured before.
type Repeat struct {
	Seq           uint32 // of its first byte
	FromInitiator bool
	Data          []byte // at most RepeatBytes; empty: none
}

// KeepRepeat makes a copy of data, as far as there is room, the repeated range of s.
func (s *Sample) KeepRepeat(seq uint32, fromInitiator bool, data []byte) {
	if s.Repeat = (Repeat{}); len(data) == 0 {
		return
	}
	s.Repeat = Repeat{seq, fromInitiator, append(s.repeat[:0], data[:min(len(data), RepeatBytes)]...)}
}

// KeepRest makes a copy of data, as far as there is room, the rest of the last packet. There
// is no repeated range then.
func (s *Sample) KeepRest(data []byte) {
	if s.Rest = nil; len(data) > 0 {
		s.Repeat = Repeat{}
		s.Rest = append(s.repeat[:0], data[:min(len(data), RestBytes)]...)
	}
}

// restFrom is how much of a packet is captured at least where its rest begins behind that.
const restFrom = 16

// RestOf is the rest of a frame of which so many bytes were captured, as Sample has it.
func RestOf(frame []byte, captured int) []byte {
	if captured < restFrom {
		return frame[:min(len(frame), RestBytes-restFrom)]
	}
	return frame[captured:]
}

// AddRest returns what there is of a frame: the captured bytes, and the rest.
func AddRest(captured, rest []byte) []byte {
	if len(captured) < restFrom {
		return slices.Clone(rest)
	}
	return slices.Concat(captured, rest)
}

// Reset empties s and points Packets and Data at its own memory.
func (s *Sample) Reset() {
	s.Meta = Meta{}
	s.Packets = s.packets[:0]
	s.Data = s.data[:0]
	s.Seed = 0
	s.Repeat, s.Rest = Repeat{}, nil
}

// CopyFrom makes s equal to o, in memory of its own.
func (s *Sample) CopyFrom(o *Sample) {
	s.Reset()
	s.Meta = o.Meta
	s.Packets = append(s.Packets, o.Packets...)
	s.Data = append(s.Data, o.Data...)
	s.Seed = o.Seed
	s.KeepRepeat(o.Repeat.Seq, o.Repeat.FromInitiator, o.Repeat.Data)
	s.KeepRest(o.Rest)
}

// Complete reports whether all CaptureBytes are in.
func (s *Sample) Complete() bool { return len(s.Data) == CaptureBytes }

// Frame returns the captured bytes of packet i.
func (s *Sample) Frame(i int) []byte {
	end := len(s.Data)
	if i+1 < len(s.Packets) {
		end = int(s.Packets[i+1].Offset)
	}
	return s.Data[s.Packets[i].Offset:end]
}

// Result is the classifier's answer for one sample.
type Result struct {
	Class      string    // the likeliest of the model's labels, or Unknown
	Confidence float64   // probability of the likeliest label, 0 to 1, calibrated
	Labels     []string  // the model's labels; shared, read-only
	Scores     []float64 // probability of each label, in the order of Labels
}

// Background is the label that every model has for traffic that belongs to no
// wanted class. A policy can't name it in a rule.
const Background = "background"

// Unknown is the class of a flow whose likeliest label is less likely than the
// model asks for. No label is called so.
const Unknown = "unknown"
