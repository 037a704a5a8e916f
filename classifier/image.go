// SPDX-License-Identifier: Apache-2.0

package classifier

import (
	"fmt"
	"math"
	"slices"
	"time"

	"github.com/earlydrop/earlydrop/loader/flow"
)

const (
	// ImageSide is the width and the height of an image in pixels.
	ImageSide = 32
	// ImagePixels is the number of pixels of one channel; pixel i belongs to
	// byte i of the capture, row by row.
	ImagePixels = ImageSide * ImageSide
)

// The image holds exactly one capture.
var _ [ImagePixels]uint8 = [flow.CaptureBytes]uint8{}

// Channel is one plane of an image. Most planes have a pixel per byte of the
// capture; pixels behind the end of the capture are 0 in every such plane.
// ChannelStreams and ChannelPackets are laid out as they say. They leave the
// headers out, and with them what a mask replaces.
type Channel uint8

const (
	// ChannelByte is the byte itself, masked. It is the paper's only channel.
	ChannelByte Channel = iota + 1
	// ChannelDirection is 255 for bytes that the initiator sent and 128 for
	// those of the responder.
	ChannelDirection
	// ChannelPayload is 255 for bytes of L4 payload and 128 for headers.
	ChannelPayload
	// ChannelLength is the length on the wire of the L4 payload of the packet
	// that the byte belongs to, as 255*log2(1+bytes)/16, at most 255.
	ChannelLength
	// ChannelTime is the time from the flow's first packet to the packet that
	// the byte belongs to, as 255*log2(1+microseconds)/26, at most 255 (67 s).
	ChannelTime
	// ChannelStreams is the payload without headers: in the first 16 rows the
	// initiator's first 512 bytes of it, in the order captured, in the others
	// the responder's. Behind the end of either are zeros.
	ChannelStreams
	// ChannelPackets describes, a row each, the first 24 packets of which
	// payload was captured, and in the last 8 rows the first messages. A message
	// is a run of such packets of one direction. The pixels of a row are 255; 255
	// for the initiator, 128 for the responder; the length of the payload on
	// the wire, at most 65535, high byte first (two pixels); how much of it was
	// captured (two pixels); 255 for UDP, 128 for TCP; the number of packets.
	// The rest of a row, and rows that describe nothing, are zeros.
	ChannelPackets
)

// Rows of ChannelPackets, and the bytes per side of ChannelStreams.
const (
	packetRows  = 24
	messageRows = ImageSide - packetRows
	streamBytes = ImagePixels / 2
)

// channels lists the names in the order in which messages give them.
var channels = []struct {
	channel Channel
	name    string
}{
	{ChannelByte, "byte"},
	{ChannelDirection, "direction"},
	{ChannelPayload, "payload"},
	{ChannelLength, "length"},
	{ChannelTime, "time"},
	{ChannelStreams, "streams"},
	{ChannelPackets, "packets"},
}

// String returns the name under which a model's metadata knows c.
func (c Channel) String() string {
	for _, k := range channels {
		if k.channel == c {
			return k.name
		}
	}
	return fmt.Sprintf("channel-%d", uint8(c))
}

// ParseChannel returns the channel of that name; the error names those known.
func ParseChannel(name string) (Channel, error) {
	for _, k := range channels {
		if k.name == name {
			return k.channel, nil
		}
	}
	return 0, fmt.Errorf("unknown channel %q (known: byte, direction, payload, length, time, streams, packets)", name)
}

// Pixel values of the channels that hold one of two things.
const (
	pixelResponder = 128
	pixelInitiator = 255
	pixelHeader    = 128
	pixelPayload   = 255
	pixelTCP       = 128
	pixelUDP       = 255
)

// Full scale of the logarithmic channels, in bits.
const (
	lengthBits = 16
	timeBits   = 26
)

// logPixel scales v >= 0 to 0..255 on a logarithmic scale that ends at 2^bits.
func logPixel(v float64, bits float64) uint8 {
	return uint8(min(255, math.Round(255*math.Log2(1+v)/bits)))
}

// Render writes the image of s to dst: one plane of ImagePixels bytes for each
// of channels, in their order, so dst must hold len(channels)*ImagePixels
// bytes. The bytes that recipe names are replaced as Recipe.Mask does it.
// Render does not change s and does not allocate.
func Render(s *flow.Sample, recipe Recipe, channels []Channel, dst []uint8) {
	var l layout
	var mask [flow.CaptureBytes]uint8
	if slices.Contains(channels, ChannelByte) {
		l.build(s, &mask)
	} else {
		l.build(s, nil)
	}
	for c, channel := range channels {
		plane := dst[c*ImagePixels:][:ImagePixels]
		if channel == ChannelByte {
			data := s.Data[:l.n]
			recipe.replace(plane[:l.n], data, mask[:l.n], seed(data))
			clear(plane[l.n:])
			continue
		}
		clear(plane)
		switch channel {
		case ChannelStreams:
			l.streams(s, plane)
		case ChannelPackets:
			l.rows(s, plane)
		}
		for i, p := range l.packets[:l.count] {
			r := &s.Packets[i]
			switch channel {
			case ChannelDirection:
				if r.FromInitiator {
					fill(plane[p.start:p.end], pixelInitiator)
				} else {
					fill(plane[p.start:p.end], pixelResponder)
				}
			case ChannelPayload:
				fill(plane[p.start:p.payload], pixelHeader)
				fill(plane[p.payload:p.end], pixelPayload)
			case ChannelLength:
				fill(plane[p.start:p.end], logPixel(float64(p.payloadLen), lengthBits))
			case ChannelTime:
				us := max(0, r.Time/time.Microsecond)
				fill(plane[p.start:p.end], logPixel(float64(us), timeBits))
			}
		}
	}
}

// streams writes ChannelStreams to plane, which is zero.
func (l *layout) streams(s *flow.Sample, plane []uint8) {
	initiator, responder := plane[:streamBytes], plane[streamBytes:]
	for i, p := range l.packets[:l.count] {
		payload := s.Data[p.payload : p.payload+p.captured()]
		if s.Packets[i].FromInitiator {
			initiator = initiator[copy(initiator, payload):]
		} else {
			responder = responder[copy(responder, payload):]
		}
	}
}

// packetRow is what a row of ChannelPackets says.
type packetRow struct {
	fromInitiator, udp        bool
	length, captured, packets int
}

func (r packetRow) write(dst []uint8) {
	dst[0] = pixelInitiator
	dst[1] = pixelResponder
	if r.fromInitiator {
		dst[1] = pixelInitiator
	}
	length := min(r.length, math.MaxUint16)
	dst[2], dst[3] = uint8(length>>8), uint8(length)
	dst[4], dst[5] = uint8(r.captured>>8), uint8(r.captured)
	dst[6] = pixelTCP
	if r.udp {
		dst[6] = pixelUDP
	}
	dst[7] = uint8(r.packets)
}

// rows writes ChannelPackets to plane, which is zero.
func (l *layout) rows(s *flow.Sample, plane []uint8) {
	packets, messages := 0, 0
	var message packetRow
	for i, p := range l.packets[:l.count] {
		row := packetRow{s.Packets[i].FromInitiator, p.udp, p.payloadLen, p.captured(), 1}
		if row.captured == 0 {
			continue
		}
		if packets < packetRows {
			row.write(plane[packets*ImageSide:])
			packets++
		}
		if messages == 0 || row.fromInitiator != message.fromInitiator {
			message = row
			messages++
		} else {
			message.length += row.length
			message.captured += row.captured
			message.packets++
		}
		if messages <= messageRows {
			message.write(plane[(packetRows+messages-1)*ImageSide:])
		}
	}
}

func fill(p []uint8, v uint8) {
	for i := range p {
		p[i] = v
	}
}
