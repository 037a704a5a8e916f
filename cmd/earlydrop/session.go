// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/binary"
	"io"
	"math"
	"slices"
	"time"

	"github.com/earlydrop/earlydrop/loader/assembly"
	"github.com/earlydrop/earlydrop/loader/flow"
	"github.com/earlydrop/earlydrop/loader/flow/headers"
)

// sessionPackets is how many of a session's first packets a dataset describes.
const sessionPackets = 64

// sessionPacket is what is known of a packet without its bytes: its length on the
// wire, the length of its payload there, whether the initiator sent it, its time in
// microseconds since the session began, its TCP flags and its TCP window. A packet
// that there is not has the length -1.
type sessionPacket [6]int32

// session is the first packets of a flow, also those behind the end of its capture.
type session struct {
	start         time.Time
	initiatorIsLo bool
	packets       []sessionPacket
}

// sessions holds those of one capture file's samples, in the order in which they
// were added and by key. Of one key the later flow comes later.
type sessions struct {
	all   []*session
	byKey map[flow.Key][]*session
}

func (s *sessions) add(m *flow.Meta) {
	one := &session{start: m.Start, initiatorIsLo: m.InitiatorIsLo}
	s.all = append(s.all, one)
	if s.byKey == nil {
		s.byKey = map[flow.Key][]*session{}
	}
	s.byKey[m.Key] = append(s.byKey[m.Key], one)
}

// read fills in the packets from the file that the samples are of. A sample is handed
// over before its session has ended, and to keep the first packets of every flow
// until then takes more memory than to read the file again. What could be read
// before an error is filled in all the same.
func (s *sessions) read(path string) error {
	if len(s.all) == 0 {
		return nil
	}
	f, err := assembly.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	for {
		ts, frame, wireLen, err := f.Next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		if p, verdict := headers.ParseCaptured(frame, wireLen); verdict == headers.OK {
			s.packet(ts, &p)
		}
	}
}

// packet adds a packet to the latest session of its key that had begun.
func (s *sessions) packet(ts time.Time, p *headers.Packet) {
	for _, one := range slices.Backward(s.byKey[p.Key]) {
		if ts.Before(one.start) {
			continue
		}
		if len(one.packets) < sessionPackets {
			packet := sessionPacket{asInt32(p.WireLen), asInt32(p.PayloadLen), 0,
				asInt32(int(ts.Sub(one.start) / time.Microsecond)), int32(p.Flags), int32(p.Window)}
			if p.SrcIsLo == one.initiatorIsLo {
				packet[2] = 1
			}
			one.packets = append(one.packets, packet)
		}
		return
	}
}

// appendRow appends the session's row of a dataset.
func (s *session) appendRow(b []byte) []byte {
	for i := range sessionPackets {
		packet := sessionPacket{-1}
		if i < len(s.packets) {
			packet = s.packets[i]
		}
		for _, v := range packet {
			b = binary.LittleEndian.AppendUint32(b, uint32(v))
		}
	}
	return b
}

// asInt32 returns v >= 0, or what comes closest to it.
func asInt32(v int) int32 { return int32(min(v, math.MaxInt32)) }
