// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"github.com/gopacket/gopacket/pcapgo"

	"github.com/earlydrop/earlydrop/test/lab"
)

const (
	// snapBytes of a frame are kept. A flow's capture has 1024 bytes, so no
	// more of any frame is ever looked at.
	snapBytes = 2048
	// flowFrames are kept of a flow, and each SYN, FIN and RST. The smallest
	// frame has 54 bytes, so 1024 are reached well before.
	flowFrames = 64
)

// section is one recorded run: the flows of one activity to one program.
type section struct {
	path string // final; written beside it until done

	mu     sync.Mutex
	file   *os.File
	buf    *bufio.Writer
	w      *pcapgo.Writer
	flows  map[flowKey]*flowState
	broken error
}

type flowKey struct {
	client, server netip.AddrPort
	udp            bool
}

type flowState struct {
	section *section
	frames  int
	payload bool // has carried some
	fin     [2]bool
	rst     bool
}

func (f *flowState) closed() bool { return f.rst || f.fin[0] && f.fin[1] }

func newSection(path string) (*section, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, err
	}
	file, err := os.Create(path + ".part")
	if err != nil {
		return nil, err
	}
	s := &section{path: path, file: file, buf: bufio.NewWriter(file), flows: map[flowKey]*flowState{}}
	s.w = pcapgo.NewWriter(s.buf)
	return s, s.w.WriteFileHeader(snapBytes+4, layers.LinkTypeEthernet)
}

// finish waits up to limit until as many flows as expected were seen (the
// sniffer may lag) and all are closed, then puts the file in place and returns how many flows carried payload. A section without
// any leaves no file.
func (s *section) finish(limit time.Duration, expected int) (flows int, err error) {
	deadline := time.Now().Add(limit)
	for !s.allClosed(expected) && time.Now().Before(deadline) {
		time.Sleep(10 * time.Millisecond)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, f := range s.flows {
		if f.payload {
			flows++
		}
	}
	err = errors.Join(s.broken, s.buf.Flush(), s.file.Close())
	s.w = nil
	if err != nil || flows == 0 {
		return 0, errors.Join(err, os.Remove(s.path+".part"))
	}
	return flows, os.Rename(s.path+".part", s.path)
}

func (s *section) allClosed(expected int) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.flows) < expected {
		return false
	}
	for k, f := range s.flows {
		if !k.udp && !f.closed() {
			return false
		}
	}
	return true
}

// recorder sorts what a sniffer sees into sections, by server port.
type recorder struct {
	sniffer *lab.Sniffer
	server  netip.Addr
	done    chan struct{}

	mu       sync.Mutex
	sections map[uint16]*section // current one of each server port
	flows    map[flowKey]*flowState
}

func newRecorder(l *lab.Lab, c condition) (*recorder, error) {
	s, err := lab.NewSniffer(c.namespace(l), c.Point, snapBytes)
	if err != nil {
		return nil, err
	}
	r := &recorder{sniffer: s, server: l.ServerAddr(c.Version), done: make(chan struct{}),
		sections: map[uint16]*section{}, flows: map[flowKey]*flowState{}}
	go r.run()
	return r, nil
}

func (r *recorder) close() error {
	err := r.sniffer.Close()
	<-r.done
	return err
}

// begin makes new flows to the ports belong to the section. Flows that began
// before stay with theirs.
func (r *recorder) begin(s *section, ports ...uint16) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, p := range ports {
		r.sections[p] = s
	}
}

// end makes new flows to the ports belong to no section.
func (r *recorder) end(ports ...uint16) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, p := range ports {
		delete(r.sections, p)
	}
}

func (r *recorder) run() {
	defer close(r.done)
	d := newDecoder()
	for {
		f, err := r.sniffer.Read()
		if err != nil {
			return
		}
		if p, ok := d.decode(f.Data); ok {
			r.take(p, f)
		}
	}
}

// packet is what a recorder needs to know of a frame.
type packet struct {
	src, dst      netip.AddrPort
	udp           bool
	syn, fin, rst bool // syn: without ACK
	control       bool // has SYN, FIN or RST
	payload       bool
}

// decoder reads frames into one set of layers. It is for one goroutine.
type decoder struct {
	eth     layers.Ethernet
	dot1q   layers.Dot1Q
	ip4     layers.IPv4
	ip6     layers.IPv6
	tcp     layers.TCP
	udp     layers.UDP
	parser  *gopacket.DecodingLayerParser
	decoded []gopacket.LayerType
}

func newDecoder() *decoder {
	d := &decoder{}
	d.parser = gopacket.NewDecodingLayerParser(layers.LayerTypeEthernet, &d.eth, &d.dot1q, &d.ip4, &d.ip6, &d.tcp, &d.udp)
	d.parser.IgnoreUnsupported = true
	return d
}

// decode returns false for what is neither TCP nor UDP over IP.
func (d *decoder) decode(data []byte) (p packet, ok bool) {
	// A frame cut at snapBytes gives an error after its headers, which are
	// decoded by then.
	_ = d.parser.DecodeLayers(data, &d.decoded)
	var src, dst netip.Addr
	for _, t := range d.decoded {
		switch t {
		case layers.LayerTypeIPv4:
			src, _ = netip.AddrFromSlice(d.ip4.SrcIP)
			dst, _ = netip.AddrFromSlice(d.ip4.DstIP)
		case layers.LayerTypeIPv6:
			src, _ = netip.AddrFromSlice(d.ip6.SrcIP)
			dst, _ = netip.AddrFromSlice(d.ip6.DstIP)
		case layers.LayerTypeTCP:
			t := &d.tcp
			p = packet{src: netip.AddrPortFrom(src, uint16(t.SrcPort)), dst: netip.AddrPortFrom(dst, uint16(t.DstPort)),
				syn: t.SYN && !t.ACK, fin: t.FIN, rst: t.RST, control: t.SYN || t.FIN || t.RST, payload: len(t.Payload) > 0}
			ok = true
		case layers.LayerTypeUDP:
			p = packet{src: netip.AddrPortFrom(src, uint16(d.udp.SrcPort)), dst: netip.AddrPortFrom(dst, uint16(d.udp.DstPort)),
				udp: true, payload: len(d.udp.Payload) > 0}
			ok = true
		}
	}
	return p, ok
}

// take puts a packet into its flow's section, if it has one.
func (r *recorder) take(p packet, f lab.Frame) {
	key, dir := flowKey{client: p.src, server: p.dst, udp: p.udp}, 0
	if p.dst.Addr() != r.server {
		key.client, key.server, dir = p.dst, p.src, 1
	}
	if key.server.Addr() != r.server {
		return
	}
	r.mu.Lock()
	st := r.flows[key]
	// A SYN on a flow that has carried something is a reused port.
	if dir == 0 && (p.udp && st == nil || p.syn && (st == nil || st.payload)) {
		if s := r.sections[key.server.Port()]; s != nil {
			st = &flowState{section: s}
			r.flows[key] = st
		}
	}
	r.mu.Unlock()
	if st != nil {
		st.section.add(key, st, dir, p, f)
	}
}

func (s *section) add(key flowKey, st *flowState, dir int, p packet, f lab.Frame) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.w == nil {
		return // already finished
	}
	s.flows[key] = st
	st.fin[dir] = st.fin[dir] || p.fin
	st.rst = st.rst || p.rst
	st.payload = st.payload || p.payload
	st.frames++
	if st.frames > flowFrames && !p.control {
		return
	}
	err := s.w.WritePacket(gopacket.CaptureInfo{Timestamp: f.Time, CaptureLength: len(f.Data), Length: f.Wire}, f.Data)
	if err != nil && s.broken == nil {
		s.broken = fmt.Errorf("write %s: %w", s.path, err)
	}
}
