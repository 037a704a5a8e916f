// SPDX-License-Identifier: Apache-2.0

package classifier

import (
	"fmt"
	"math"
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

// Channel is one plane of an image. All planes have a pixel per byte of the
// capture; pixels behind the end of the capture are 0 in every plane.
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
	return 0, fmt.Errorf("unknown channel %q (known: byte, direction, payload, length, time)", name)
}

// Pixel values of the channels that hold one of two things.
const (
	pixelResponder = 128
	pixelInitiator = 255
	pixelHeader    = 128
	pixelPayload   = 255
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
	l.build(s)
	for c, channel := range channels {
		plane := dst[c*ImagePixels:][:ImagePixels]
		if channel == ChannelByte {
			data := s.Data[:l.n]
			recipe.replace(plane[:l.n], data, l.mask[:l.n], seed(data))
			clear(plane[l.n:])
			continue
		}
		clear(plane)
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

func fill(p []uint8, v uint8) {
	for i := range p {
		p[i] = v
	}
}
