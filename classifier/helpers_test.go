// SPDX-License-Identifier: Apache-2.0

package classifier

import (
	"encoding/binary"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"google.golang.org/protobuf/encoding/protowire"

	"github.com/earlydrop/earlydrop/classifier/internal/wire"
	"github.com/earlydrop/earlydrop/loader/flow"
	"github.com/earlydrop/earlydrop/loader/flow/headers"
)

// Sizes and numbers of the headers that tests build.
const (
	ethernetLen = headers.EthernetLen
	ipv4Len     = 20
	ipv6Len     = 40
	tcpLen      = 20
	udpLen      = 8

	etherIPv4 = headers.TypeIPv4
	etherIPv6 = headers.TypeIPv6
	etherVLAN = headers.TypeVLAN
	etherQinQ = headers.TypeQinQ

	protoHopByHop = headers.HopByHop
	protoTCP      = uint8(flow.TCP)
	protoUDP      = uint8(flow.UDP)

	optionEnd        = 0
	optionNop        = 1
	optionSACK       = 5
	optionTimestamps = 8
)

// readModel returns a model of testdata.
func readModel(t testing.TB, name string) []byte {
	t.Helper()
	data, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// setMetadata returns the ONNX file with one metadata value changed or added,
// or removed where value is nil.
func setMetadata(t testing.TB, onnx []byte, key string, value *string) []byte {
	t.Helper()
	var out []byte
	for rest := onnx; len(rest) > 0; {
		num, typ, n := protowire.ConsumeTag(rest)
		if n < 0 {
			t.Fatal(protowire.ParseError(n))
		}
		size := protowire.ConsumeFieldValue(num, typ, rest[n:])
		if size < 0 {
			t.Fatal(protowire.ParseError(size))
		}
		field := rest[:n+size]
		rest = rest[n+size:]
		if num == modelMetadata {
			entry, _ := protowire.ConsumeBytes(field[n:])
			isKey := false
			if err := wire.Each(entry, func(v wire.Field) error {
				isKey = isKey || v.Num == entryKey && string(v.Bytes) == keyPrefix+key
				return nil
			}); err != nil {
				t.Fatal(err)
			}
			if isKey {
				continue
			}
		}
		out = append(out, field...)
	}
	if value == nil {
		return out
	}
	var entry []byte
	entry = protowire.AppendTag(entry, entryKey, protowire.BytesType)
	entry = protowire.AppendString(entry, keyPrefix+key)
	entry = protowire.AppendTag(entry, entryValue, protowire.BytesType)
	entry = protowire.AppendString(entry, *value)
	out = protowire.AppendTag(out, modelMetadata, protowire.BytesType)
	return protowire.AppendBytes(out, entry)
}

// packet is one packet of a sample that a test builds.
type packet struct {
	frame         []byte
	fromInitiator bool
	time          time.Duration
}

// newSample lays the packets one behind the other, cut at CaptureBytes.
func newSample(packets ...packet) *flow.Sample {
	s := new(flow.Sample)
	s.Reset()
	for _, p := range packets {
		if len(s.Data) == flow.CaptureBytes {
			break
		}
		s.Packets = append(s.Packets, flow.Packet{
			Offset:        uint16(len(s.Data)),
			WireLen:       uint32(len(p.frame)),
			FromInitiator: p.fromInitiator,
			Time:          p.time,
		})
		s.Data = append(s.Data, p.frame[:min(len(p.frame), flow.CaptureBytes-len(s.Data))]...)
	}
	return s
}

// join puts headers together to a frame.
func join(parts ...[]byte) []byte { return slices.Concat(parts...) }

// ether returns an Ethernet header with tags of 0x8100 in front of etherType.
// All its address bytes are 0xee.
func ether(etherType uint16, tags ...uint16) []byte {
	h := slices.Repeat([]byte{0xee}, 12)
	for i, id := range tags {
		tpid := uint16(etherVLAN)
		if len(tags) == 2 && i == 0 {
			tpid = etherQinQ
		}
		h = binary.BigEndian.AppendUint16(h, tpid)
		h = binary.BigEndian.AppendUint16(h, id)
	}
	return binary.BigEndian.AppendUint16(h, etherType)
}

// ipv4 returns a header with optionBytes of padding options (a multiple of 4)
// for a payload of n bytes.
func ipv4(proto uint8, n, optionBytes int) []byte {
	h := make([]byte, ipv4Len+optionBytes)
	h[0] = 4<<4 | uint8(len(h)/4)
	binary.BigEndian.PutUint16(h[2:], uint16(len(h)+n))
	binary.BigEndian.PutUint16(h[4:], 0xabcd)
	h[6] = 0x40 // don't fragment
	h[8] = 64
	h[9] = proto
	binary.BigEndian.PutUint16(h[10:], 0xc5c5)
	copy(h[12:], []byte{192, 0, 2, 1, 198, 51, 100, 2})
	for i := ipv4Len; i < len(h); i++ {
		h[i] = 1
	}
	return h
}

// ipv6 returns a header for a payload of n bytes.
func ipv6(next uint8, n int) []byte {
	h := make([]byte, ipv6Len)
	binary.BigEndian.PutUint32(h, 6<<28|0x12345)
	binary.BigEndian.PutUint16(h[4:], uint16(n))
	h[6] = next
	h[7] = 64
	for i := 8; i < 40; i++ {
		h[i] = uint8(0x60 + i)
	}
	return h
}

// tcp returns a header with options, which are padded to a multiple of 4.
func tcp(options ...byte) []byte {
	for len(options)%4 != 0 {
		options = append(options, optionEnd)
	}
	h := make([]byte, tcpLen, tcpLen+len(options))
	binary.BigEndian.PutUint16(h, 50000)
	binary.BigEndian.PutUint16(h[2:], 443)
	binary.BigEndian.PutUint32(h[4:], 0x11223344)
	binary.BigEndian.PutUint32(h[8:], 0x55667788)
	h[12] = uint8(tcpLen+len(options)) / 4 << 4
	h[13] = 0x18
	binary.BigEndian.PutUint16(h[14:], 501)
	binary.BigEndian.PutUint16(h[16:], 0xc6c6)
	return append(h, options...)
}

// udp returns a header for a payload of n bytes.
func udp(n int) []byte {
	h := make([]byte, udpLen)
	binary.BigEndian.PutUint16(h, 50000)
	binary.BigEndian.PutUint16(h[2:], 443)
	binary.BigEndian.PutUint16(h[4:], uint16(udpLen+n))
	binary.BigEndian.PutUint16(h[6:], 0xc7c7)
	return h
}

// text returns n bytes of payload that no header value resembles.
func text(n int) []byte { return slices.Repeat([]byte{'p'}, n) }

// randomSample returns a plausible sample whose bytes depend on seed only.
func randomSample(seed uint64) *flow.Sample {
	r := rand.New(rand.NewPCG(seed, 1))
	var packets []packet
	for n := 0; n < flow.CaptureBytes && len(packets) < flow.MaxPackets; {
		payload := make([]byte, r.IntN(300))
		for i := range payload {
			payload[i] = uint8(r.Uint32())
		}
		f := join(ether(etherIPv4), ipv4(protoTCP, tcpLen+12+len(payload), 0),
			tcp(optionNop, optionNop, optionTimestamps, 10, 1, 2, 3, 4, 5, 6, 7, 8), payload)
		packets = append(packets, packet{f, r.IntN(2) == 0, time.Duration(n) * time.Millisecond})
		n += len(f)
	}
	return newSample(packets...)
}
