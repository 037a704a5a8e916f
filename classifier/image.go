// SPDX-License-Identifier: Apache-2.0

package classifier

import (
	"fmt"
	"math"
	"slices"
	"strings"
	"sync"
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

// Channel is one plane of an image: ImagePixels pixels of one byte, 0 to 255. Most
// planes have a pixel per byte of the capture (see Channel.PerByte); pixels after the
// end of the capture are 0 in every such plane. ChannelStreams and ChannelPackets are
// laid out as they say. They leave the headers out, and with them what a mask
// replaces.
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

// planes is the table of all planes, by their Channel. To add one: a constant
// above, a row here, and the same in the training code (models/train/dataset.py).
var planes = [...]struct {
	// name is what a model's metadata calls the plane.
	name string
	// perByte is true where pixel i is about byte i of the capture.
	perByte bool
	// render writes the plane, ImagePixels bytes that are zero.
	render func(c *canvas, plane []uint8)
}{
	ChannelByte:      {"byte", true, (*canvas).bytes},
	ChannelDirection: {"direction", true, (*canvas).directions},
	ChannelPayload:   {"payload", true, (*canvas).payloads},
	ChannelLength:    {"length", true, (*canvas).lengths},
	ChannelTime:      {"time", true, (*canvas).times},
	ChannelStreams:   {"streams", false, (*canvas).streams},
	ChannelPackets:   {"packets", false, (*canvas).rows},
}

func (c Channel) known() bool { return c >= ChannelByte && int(c) < len(planes) }

// String returns the name under which a model's metadata knows c.
func (c Channel) String() string {
	if c.known() {
		return planes[c].name
	}
	return fmt.Sprintf("channel-%d", uint8(c))
}

// PerByte reports whether pixel i of the plane is about byte i of the capture. The
// pixels after the end of the capture are then 0.
func (c Channel) PerByte() bool { return c.known() && planes[c].perByte }

// ParseChannel returns the channel of that name; the error names those known.
func ParseChannel(name string) (Channel, error) {
	var known []string
	for c := ChannelByte; c.known(); c++ {
		if c.String() == name {
			return c, nil
		}
		known = append(known, c.String())
	}
	return 0, fmt.Errorf("unknown channel %q (known: %s)", name, strings.Join(known, ", "))
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

// canvas is what the planes of one capture are made of.
type canvas struct {
	mask   [flow.CaptureBytes]uint8 // for ChannelByte only; first, where it is aligned: a tenth faster
	sample *flow.Sample
	recipe Recipe
	layout
}

// canvases are used again: what is given to a function out of the table is on the heap,
// and to render is not to cost memory.
var canvases = sync.Pool{New: func() any { return new(canvas) }}

// Render writes the image of s to dst: one plane of ImagePixels bytes for each
// of channels, in their order, so dst must hold len(channels)*ImagePixels
// bytes. The bytes that recipe names are replaced as Recipe.Mask does it. The
// plane of a channel that is not known is 0.
//
// Render depends on nothing but its arguments, does not change s, does not allocate,
// and tolerates any bytes and any records. It may be called concurrently, for the
// same s too.
func Render(s *flow.Sample, recipe Recipe, channels []Channel, dst []uint8) {
	c := canvases.Get().(*canvas)
	c.sample, c.recipe = s, recipe
	if slices.Contains(channels, ChannelByte) {
		clear(c.mask[:])
		c.build(s, &c.mask)
	} else {
		c.build(s, nil)
	}
	for i, channel := range channels {
		plane := dst[i*ImagePixels:][:ImagePixels]
		clear(plane)
		if channel.known() {
			planes[channel].render(c, plane)
		}
	}
	c.sample = nil
	canvases.Put(c)
}

// bytes writes ChannelByte.
func (c *canvas) bytes(plane []uint8) {
	data := c.sample.Data[:c.n]
	c.recipe.replace(plane, data, c.mask[:c.n], Seed(c.sample))
}

// directions writes ChannelDirection.
func (c *canvas) directions(plane []uint8) {
	for i, p := range c.packets[:c.count] {
		pixel := uint8(pixelResponder)
		if c.sample.Packets[i].FromInitiator {
			pixel = pixelInitiator
		}
		fill(plane[p.start:p.end], pixel)
	}
}

// payloads writes ChannelPayload.
func (c *canvas) payloads(plane []uint8) {
	for _, p := range c.packets[:c.count] {
		fill(plane[p.start:p.payload], pixelHeader)
		fill(plane[p.payload:p.end], pixelPayload)
	}
}

// lengths writes ChannelLength.
func (c *canvas) lengths(plane []uint8) {
	for _, p := range c.packets[:c.count] {
		fill(plane[p.start:p.end], logPixel(float64(p.payloadLen), lengthBits))
	}
}

// times writes ChannelTime.
func (c *canvas) times(plane []uint8) {
	for i, p := range c.packets[:c.count] {
		us := max(0, c.sample.Packets[i].Time/time.Microsecond)
		fill(plane[p.start:p.end], logPixel(float64(us), timeBits))
	}
}

// streams writes ChannelStreams.
func (c *canvas) streams(plane []uint8) {
	initiator, responder := plane[:streamBytes], plane[streamBytes:]
	for i, p := range c.packets[:c.count] {
		payload := c.sample.Data[p.payload : p.payload+p.captured()]
		if c.sample.Packets[i].FromInitiator {
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

// rows writes ChannelPackets.
func (c *canvas) rows(plane []uint8) {
	packets, messages := 0, 0
	var message packetRow
	for i, p := range c.packets[:c.count] {
		row := packetRow{c.sample.Packets[i].FromInitiator, p.udp, p.payloadLen, p.captured(), 1}
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

// fill sets all of p to v: the first byte, then the same again and again, twice as much
// each time.
func fill(p []uint8, v uint8) {
	if len(p) == 0 {
		return
	}
	p[0] = v
	for n := 1; n < len(p); n *= 2 {
		copy(p[n:], p[:n])
	}
}
