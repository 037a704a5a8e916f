// SPDX-License-Identifier: Apache-2.0

package dataset

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"time"

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

// session is the first packets of a flow, also those after the end of its capture.
type session struct {
	start         time.Time
	initiatorIsLo bool
	packets       []sessionPacket
}

// sessions holds those of one capture file's samples, in the order in which they
// were added, and by key.
type sessions struct {
	all   []*session
	byKey map[flow.Key]*keySessions
}

// keySessions are the sessions of one key, one after another.
type keySessions struct {
	current *session   // that packets belong to, nil before the first begins
	later   []*session // in order of their beginning
}

func (s *sessions) add(m *flow.Meta) {
	one := &session{start: m.Start, initiatorIsLo: m.InitiatorIsLo}
	s.all = append(s.all, one)
	if s.byKey == nil {
		s.byKey = map[flow.Key]*keySessions{}
	}
	key := s.byKey[m.Key]
	if key == nil {
		key = &keySessions{}
		s.byKey[m.Key] = key
	}
	key.later = append(key.later, one)
}

// read fills in the packets from the files that the samples are of. A sample is handed
// over before its session has ended, and to keep the first packets of every flow
// until then takes more memory than to read the files again. What could be read
// before an error is filled in all the same.
func (s *sessions) read(files []*input) error {
	if len(s.all) == 0 {
		return nil
	}
	var errs []error
	for _, in := range files {
		errs = append(errs, s.readFile(in))
	}
	return errors.Join(append(errs, s.complete(files[0].path))...)
}

func (s *sessions) readFile(in *input) error {
	f, err := in.open()
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

// complete makes sure that every session was found.
func (s *sessions) complete(path string) error {
	for _, one := range s.all {
		if len(one.packets) == 0 {
			return fmt.Errorf("%s has changed while it was read", path)
		}
	}
	return nil
}

// packet adds a packet to the session of its key. A session begins with the packet
// that has its time: in the order of the file, for the clock may go backwards there.
func (s *sessions) packet(ts time.Time, p *headers.Packet) {
	key := s.byKey[p.Key]
	if key == nil {
		return
	}
	if len(key.later) > 0 && ts.Equal(key.later[0].start) {
		key.current, key.later = key.later[0], key.later[1:]
	}
	if key.current != nil {
		key.current.add(ts, p)
	}
}

// add appends a packet, if there is room. Times never decrease, as in a capture.
func (s *session) add(ts time.Time, p *headers.Packet) {
	n := len(s.packets)
	if n == sessionPackets {
		return
	}
	packet := sessionPacket{asInt32(p.WireLen), asInt32(p.PayloadLen), 0,
		asInt32(int(ts.Sub(s.start) / time.Microsecond)), int32(p.Flags), int32(p.Window)}
	if p.SrcIsLo == s.initiatorIsLo {
		packet[2] = 1
	}
	if n > 0 {
		packet[3] = max(packet[3], s.packets[n-1][3])
	}
	s.packets = append(s.packets, packet)
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
