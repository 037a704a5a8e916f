// SPDX-License-Identifier: Apache-2.0

package classifier

import (
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/earlydrop/earlydrop/loader/flow"
)

// runs prints a plane as "value x count" per run of equal pixels.
type run struct {
	Value uint8
	Count int
}

func runs(plane []uint8) (out []run) {
	for i, v := range plane {
		if i == 0 || v != plane[i-1] {
			out = append(out, run{Value: v})
		}
		out[len(out)-1].Count++
	}
	return out
}

// handmade is a sample of three packets: a request of 100 bytes of payload
// (154 with headers), an answer of 700 (742, UDP-like sizes are in other
// tests), and one that the capture cuts in its payload.
func handmade() *flow.Sample {
	frame := func(n int) []byte {
		return join(ether(etherIPv4), ipv4(protoTCP, tcpLen+n, 0), tcp(), text(n))
	}
	return newSample(
		packet{frame(100), true, 0},
		packet{frame(700), false, 1 * time.Millisecond},
		packet{frame(1000), true, 2 * time.Second})
}

func TestRenderDerivedChannels(t *testing.T) {
	s := handmade()
	if len(s.Data) != flow.CaptureBytes || s.Frame(2)[0] != 0xee || len(s.Frame(2)) != 116 {
		t.Fatalf("the sample is not what the test means: %d bytes, third frame of %d", len(s.Data), len(s.Frame(2)))
	}
	all := []Channel{ChannelDirection, ChannelPayload, ChannelLength, ChannelTime}
	image := make([]uint8, len(all)*ImagePixels)
	Render(s, RecipeStrict, all, image)
	want := map[Channel][]run{
		ChannelDirection: {{255, 154}, {128, 754}, {255, 116}},
		ChannelPayload:   {{128, 54}, {255, 100}, {128, 54}, {255, 700}, {128, 54}, {255, 62}},
		// 255*log2(1+100)/16, and so on.
		ChannelLength: {{106, 154}, {151, 754}, {159, 116}},
		// 255*log2(1+1000 us)/26, 255*log2(1+2000000 us)/26.
		ChannelTime: {{0, 154}, {98, 754}, {205, 116}},
	}
	for i, c := range all {
		if diff := cmp.Diff(want[c], runs(image[i*ImagePixels:][:ImagePixels])); diff != "" {
			t.Errorf("%s (-want +got):\n%s", c, diff)
		}
	}
}

// rowsOf returns the rows of ChannelPackets that describe something: where the
// row stands and what it says, cut at the last number that is not 0.
func rowsOf(plane []uint8) map[int][]uint8 {
	rows := map[int][]uint8{}
	for r := range ImageSide {
		row := plane[r*ImageSide:][:ImageSide]
		end := len(row)
		for end > 0 && row[end-1] == 0 {
			end--
		}
		if end > 0 {
			rows[r] = row[:end]
		}
	}
	return rows
}

func TestRenderStreamsAndPackets(t *testing.T) {
	tcpFrame := func(payload string, padding int) []byte {
		return join(ether(etherIPv4), ipv4(protoTCP, tcpLen+len(payload), 0), tcp(), []byte(payload), make([]byte, padding))
	}
	// A server name in IPv6, with a hop-by-hop header in front of UDP.
	v6 := join(ether(etherIPv6, 7), ipv6(protoHopByHop, 8+udpLen+3), []byte{protoUDP, 0, 1, 4, 0, 0, 0, 0}, udp(3), []byte("six"))
	long := strings.Repeat("L", 600)
	for _, tt := range []struct {
		name                 string
		sample               *flow.Sample
		initiator, responder string
		rows                 map[int][]uint8
	}{
		{"handshake and padding are no payload",
			newSample(packet{tcpFrame("", 6), true, 0}, packet{tcpFrame("", 0), false, 0}, packet{tcpFrame("ask", 3), true, 0}),
			"ask", "",
			map[int][]uint8{0: {255, 255, 0, 3, 0, 3, 128, 1}, 24: {255, 255, 0, 3, 0, 3, 128, 1}}},
		{"a run of one direction is a message",
			newSample(packet{tcpFrame("ab", 0), true, 0}, packet{tcpFrame("", 0), false, 0}, packet{tcpFrame("cde", 0), true, 0},
				packet{tcpFrame("x", 0), false, 0}),
			"abcde", "x",
			map[int][]uint8{0: {255, 255, 0, 2, 0, 2, 128, 1}, 1: {255, 255, 0, 3, 0, 3, 128, 1}, 2: {255, 128, 0, 1, 0, 1, 128, 1},
				24: {255, 255, 0, 5, 0, 5, 128, 2}, 25: {255, 128, 0, 1, 0, 1, 128, 1}}},
		{"the capture ends in the payload, the side in the stream",
			newSample(packet{tcpFrame(long, 0), true, 0}, packet{tcpFrame(long, 0), true, 0}),
			strings.Repeat("L", 512), "",
			map[int][]uint8{0: {255, 255, 2, 88, 2, 88, 128, 1}, 1: {255, 255, 2, 88, 1, 60, 128, 1},
				24: {255, 255, 4, 176, 3, 148, 128, 2}}},
		{"UDP over IPv6 with a VLAN tag and an extension header",
			newSample(packet{v6, false, 0}), "", "six",
			map[int][]uint8{0: {255, 128, 0, 3, 0, 3, 255, 1}, 24: {255, 128, 0, 3, 0, 3, 255, 1}}},
	} {
		image := slices.Repeat([]uint8{99}, 2*ImagePixels)
		Render(tt.sample, RecipeStrict, []Channel{ChannelStreams, ChannelPackets}, image)
		for side, want := range []string{tt.initiator, tt.responder} {
			if got := strings.TrimRight(string(image[side*512:][:512]), "\x00"); got != want {
				t.Errorf("%s: stream %d is %q, want %q", tt.name, side, got, want)
			}
		}
		if diff := cmp.Diff(tt.rows, rowsOf(image[ImagePixels:])); diff != "" {
			t.Errorf("%s (-want +got):\n%s", tt.name, diff)
		}
	}
}

// A packet that is larger than an IP header can say carries a length of 0.
func TestRenderTakesWireLengthOfSuperPackets(t *testing.T) {
	f := join(ether(etherIPv4), ipv4(protoTCP, tcpLen+900, 0), tcp(), text(900))
	f[ethernetLen+2], f[ethernetLen+3] = 0, 0
	s := newSample(packet{f, true, 0})
	s.Packets[0].WireLen = 54 + 70000
	image := make([]uint8, ImagePixels)
	Render(s, RecipePaper, []Channel{ChannelPackets}, image)
	if diff := cmp.Diff([]uint8{255, 255, 255, 255, 3, 132, 128, 1}, image[:8]); diff != "" {
		t.Errorf("row (-want +got):\n%s", diff)
	}
}

// The training code computes the same planes from where the payload is: its tests
// read the same file. There are captures of the lab, and the same with damaged headers
// and records. Of each packet it has offset and length on the wire, whether the
// initiator sent it, where in the capture its payload begins, how long that is on the
// wire, and whether it is UDP.
func TestRenderIsWhatTheTrainingSees(t *testing.T) {
	file, err := os.ReadFile("testdata/planes.tsv")
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSpace(string(file)), "\n")
	if len(lines) < 40 {
		t.Fatalf("only %d samples", len(lines))
	}
	image := make([]uint8, 2*ImagePixels)
	for i, line := range lines {
		columns := strings.Split(line, "\t")
		s := new(flow.Sample)
		s.Reset()
		if s.Data, err = base64.StdEncoding.DecodeString(columns[0]); err != nil {
			t.Fatal(err)
		}
		var payloads [][3]int
		for record := range strings.FieldsSeq(columns[1]) {
			var p flow.Packet
			var initiator, payload, length, udp int
			if _, err := fmt.Sscanf(record, "%d,%d,%d,%d,%d,%d", &p.Offset, &p.WireLen, &initiator, &payload, &length, &udp); err != nil {
				t.Fatal(err)
			}
			p.FromInitiator = initiator == 1
			s.Packets = append(s.Packets, p)
			payloads = append(payloads, [3]int{payload, length, udp})
		}
		var l layout
		l.build(s, nil)
		for k, p := range l.packets[:l.count] {
			if got := [3]int{p.payload, p.payloadLen, map[bool]int{true: 1}[p.udp]}; got != payloads[k] {
				t.Errorf("sample %d: the payload of packet %d is at, of and UDP %v, want %v", i, k, got, payloads[k])
			}
		}
		Render(s, RecipeStrict, []Channel{ChannelStreams, ChannelPackets}, image)
		if got := fmt.Sprintf("%x", sha256.Sum256(image)); got != columns[2] {
			t.Errorf("sample %d: the planes' digest is %s, want %s", i, got, columns[2])
		}
	}
}

func TestRenderPadsWithZeros(t *testing.T) {
	s := newSample(packet{join(ether(etherIPv4), ipv4(protoUDP, udpLen+20, 0), udp(20), text(20)), false, time.Minute})
	all := []Channel{ChannelByte, ChannelDirection, ChannelPayload, ChannelLength, ChannelTime}
	image := slices.Repeat([]uint8{99}, len(all)*ImagePixels)
	Render(s, RecipePaper, all, image)
	for i, c := range all {
		plane := image[i*ImagePixels:][:ImagePixels]
		if slices.ContainsFunc(plane[62:], func(v uint8) bool { return v != 0 }) {
			t.Errorf("%s: the padding is not zero", c)
		}
	}
	if got := string(image[42:62]); got != strings.Repeat("p", 20) {
		t.Errorf("payload in the byte plane is %q", got)
	}
	if got := image[23]; got != protoUDP {
		t.Errorf("pixel of the protocol is %d", got)
	}
}

// The bytes in the image are the golden ones: a change of the replacement
// sequence changes verdicts of recorded captures and must be meant.
func TestRenderGoldenBytes(t *testing.T) {
	s := newSample(packet{join(ether(etherIPv4), ipv4(protoUDP, udpLen+4, 0), udp(4), text(4)), true, 0})
	image := make([]uint8, ImagePixels)
	Render(s, RecipeStrict, []Channel{ChannelByte}, image)
	want := []uint8{
		0xa0, 0x20, 0x8e, 0x8e, 0xe7, 0x23, 0xe4, 0x16, 0x81, 0x9b, 0x01, 0x81,
		0x08, 0x00, 0x45, 0x00, 0x00, 0x20, 0x84, 0x0f, 0x40, 0x00, 0x21, 0x11,
		0x40, 0x9d, 0xbf, 0x56, 0x8a, 0xb7, 0x6e, 0xc4, 0xf5, 0x79, 0xfd, 0x71,
		0x36, 0xe2, 0x00, 0x0c, 0x3a, 0x8b, 0x70, 0x70, 0x70, 0x70,
		0, 0,
	}
	if diff := cmp.Diff(want, image[:len(want)]); diff != "" {
		t.Errorf("image (-want +got):\n%s", diff)
	}
}

func TestRenderUsesUDPLength(t *testing.T) {
	// The datagram is shorter than the IP packet that carries it.
	f := join(ether(etherIPv4), ipv4(protoUDP, udpLen+20, 0), udp(3), text(20))
	image := make([]uint8, ImagePixels)
	Render(newSample(packet{frame: f}), RecipePaper, []Channel{ChannelLength}, image)
	if want := logPixel(3, lengthBits); image[0] != want {
		t.Errorf("length pixel is %d, want %d", image[0], want)
	}
}

func TestLogPixelIsBounded(t *testing.T) {
	for _, tt := range []struct {
		v    float64
		bits float64
		want uint8
	}{{0, lengthBits, 0}, {1, lengthBits, 16}, {65535, lengthBits, 255}, {1 << 40, lengthBits, 255}, {1 << 40, timeBits, 255}} {
		if got := logPixel(tt.v, tt.bits); got != tt.want {
			t.Errorf("logPixel(%v, %v) is %d, want %d", tt.v, tt.bits, got, tt.want)
		}
	}
}

func TestRenderDoesNotAllocate(t *testing.T) {
	s := handmade()
	all := []Channel{ChannelByte, ChannelDirection, ChannelPayload, ChannelLength, ChannelTime, ChannelStreams, ChannelPackets}
	image := make([]uint8, len(all)*ImagePixels)
	if n := testing.AllocsPerRun(100, func() { Render(s, RecipeStrict, all, image) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// PerByte says of a plane whether its pixels are those of the capture's bytes: what
// comes after the capture is then 0, and else it is not, as what the responder sent is in
// the second half of the streams.
func TestPlanesPerByteAreZeroAfterTheCapture(t *testing.T) {
	s := newSample(packet{join(ether(etherIPv4), ipv4(protoUDP, udpLen+20, 0), udp(20), text(20)), false, time.Minute})
	var perByte []string
	for c := ChannelByte; c.known(); c++ {
		plane := slices.Repeat([]uint8{99}, ImagePixels)
		Render(s, RecipeStrict, []Channel{c}, plane)
		beyond := slices.ContainsFunc(plane[len(s.Data):], func(v uint8) bool { return v != 0 })
		if c.PerByte() == beyond {
			t.Errorf("%s: per byte %v, pixels after the capture: %v", c, c.PerByte(), beyond)
		}
		if c.PerByte() {
			perByte = append(perByte, c.String())
		}
	}
	if want := []string{"byte", "direction", "payload", "length", "time"}; !slices.Equal(perByte, want) {
		t.Errorf("per byte are %v, want %v", perByte, want)
	}
}

// A plane that no model can ask for is empty.
func TestRenderLeavesUnknownChannelsEmpty(t *testing.T) {
	for _, c := range []Channel{0, ChannelPackets + 1, 255} {
		plane := slices.Repeat([]uint8{99}, ImagePixels)
		Render(handmade(), RecipePaper, []Channel{c}, plane)
		if c.PerByte() || slices.ContainsFunc(plane, func(v uint8) bool { return v != 0 }) || c.String() != fmt.Sprintf("channel-%d", c) {
			t.Errorf("%s is not empty", c)
		}
	}
}

// One capture's planes do not show in another's, however many are rendered at once.
func TestRenderMayRunConcurrently(t *testing.T) {
	all := []Channel{ChannelByte, ChannelDirection, ChannelPayload, ChannelLength, ChannelTime, ChannelStreams, ChannelPackets}
	var wg sync.WaitGroup
	for seed := range uint64(8) {
		s := randomSample(seed)
		want := make([]uint8, len(all)*ImagePixels)
		Render(s, RecipeStrict, all, want)
		for range 2 {
			wg.Go(func() {
				image := make([]uint8, len(want))
				for range 50 {
					if Render(s, RecipeStrict, all, image); !slices.Equal(image, want) {
						t.Errorf("sample %d: another image", seed)
						return
					}
				}
			})
		}
	}
	wg.Wait()
}

func TestChannelNames(t *testing.T) {
	for c := ChannelByte; c <= ChannelPackets; c++ {
		if got, err := ParseChannel(c.String()); err != nil || got != c {
			t.Errorf("%s is read as %v, %v", c, got, err)
		}
	}
	if _, err := ParseChannel("colour"); err == nil || !strings.Contains(err.Error(), `"colour" (known: byte, direction, payload, length, time, streams, packets)`) {
		t.Errorf("got %v", err)
	}
}
