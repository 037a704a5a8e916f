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
	var (
		eth     layers.Ethernet
		dot1q   layers.Dot1Q
		ip4     layers.IPv4
		ip6     layers.IPv6
		tcp     layers.TCP
		udp     layers.UDP
		decoded []gopacket.LayerType
	)
	parser := gopacket.NewDecodingLayerParser(layers.LayerTypeEthernet, &eth, &dot1q, &ip4, &ip6, &tcp, &udp)
	parser.IgnoreUnsupported = true
	for {
		f, err := r.sniffer.Read()
		if err != nil {
			return
		}
		// A frame cut at snapBytes is an error of a length only after its
		// headers, which are decoded by then.
		_ = parser.DecodeLayers(f.Data, &decoded)
		var src, dst netip.Addr
		var sport, dport uint16
		var isUDP, isTCP bool
		for _, t := range decoded {
			switch t {
			case layers.LayerTypeIPv4:
				src, _ = netip.AddrFromSlice(ip4.SrcIP)
				dst, _ = netip.AddrFromSlice(ip4.DstIP)
			case layers.LayerTypeIPv6:
				src, _ = netip.AddrFromSlice(ip6.SrcIP)
				dst, _ = netip.AddrFromSlice(ip6.DstIP)
			case layers.LayerTypeTCP:
				isTCP, sport, dport = true, uint16(tcp.SrcPort), uint16(tcp.DstPort)
			case layers.LayerTypeUDP:
				isUDP, sport, dport = true, uint16(udp.SrcPort), uint16(udp.DstPort)
			}
		}
		if !isTCP && !isUDP {
			continue
		}
		key := flowKey{client: netip.AddrPortFrom(src, sport), server: netip.AddrPortFrom(dst, dport), udp: isUDP}
		dir := 0
		if dst != r.server {
			key.client, key.server, dir = key.server, key.client, 1
		}
		if key.server.Addr() != r.server {
			continue
		}
		r.mu.Lock()
		st := r.flows[key]
		first := dir == 0 && (isUDP && st == nil || isTCP && tcp.SYN && !tcp.ACK && (st == nil || st.payload))
		if first {
			if s := r.sections[key.server.Port()]; s != nil {
				st = &flowState{section: s}
				r.flows[key] = st
			}
		}
		r.mu.Unlock()
		if st == nil {
			continue
		}
		st.section.add(key, st, dir, f, isTCP && (tcp.SYN || tcp.FIN || tcp.RST), isTCP && tcp.FIN, isTCP && tcp.RST,
			isUDP && len(udp.Payload) > 0 || isTCP && len(tcp.Payload) > 0)
	}
}

func (s *section) add(key flowKey, st *flowState, dir int, f lab.Frame, control, fin, rst, payload bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.w == nil {
		return // already finished
	}
	s.flows[key] = st
	st.fin[dir] = st.fin[dir] || fin
	st.rst = st.rst || rst
	st.payload = st.payload || payload
	st.frames++
	if st.frames > flowFrames && !control {
		return
	}
	err := s.w.WritePacket(gopacket.CaptureInfo{Timestamp: f.Time, CaptureLength: len(f.Data), Length: f.Wire}, f.Data)
	if err != nil && s.broken == nil {
		s.broken = fmt.Errorf("write %s: %w", s.path, err)
	}
}
