// SPDX-License-Identifier: Apache-2.0

package explain

import (
	"fmt"
	"image"
	"image/color"
	"math"

	"github.com/earlydrop/earlydrop/classifier"
	"github.com/earlydrop/earlydrop/loader/flow"
)

const side = classifier.ImageSide

// panel is a map: a grid of 32x32 pixels, row by row.
type panel struct {
	title string
	// capture is true where a pixel is the byte of the capture of the same
	// number, so that packets have boundaries in it.
	capture bool
	pixels  [classifier.ImagePixels]color.RGBA
}

// Colours of a panel's pixels.
var (
	colorUnseen = color.RGBA{0xd3, 0xc4, 0xe6, 0xff} // not seen by the model
	colorNone   = color.RGBA{0xe4, 0xe4, 0xe4, 0xff} // no effect
	colorOut    = color.RGBA{0xff, 0xff, 0xff, 0xff} // behind the end of the capture
	colorFor    = color.RGBA{0xc8, 0x10, 0x10, 0xff} // the strongest effect for the class
	colorAgain  = color.RGBA{0x10, 0x40, 0xc8, 0xff} // the strongest effect against it
)

// panels returns what there is to see: the bytes, the planes of the model's image
// beside them, and the effects.
func (e *Explanation) panels() []*panel {
	captured := len(e.sample.Data)
	data := &panel{title: "bytes of the capture", capture: true}
	for i := range data.pixels {
		switch {
		case i >= captured:
			data.pixels[i] = colorOut
		case e.unseen[i]:
			data.pixels[i] = colorUnseen
		default:
			data.pixels[i] = gray(e.sample.Data[i])
		}
	}
	panels := []*panel{data}
	for c, channel := range e.manifest.Channels {
		if channel == classifier.ChannelByte {
			continue
		}
		p := &panel{title: fmt.Sprintf("the model's channel %q", channel), capture: channel.PerByte()}
		for i, v := range e.input[c*classifier.ImagePixels:][:classifier.ImagePixels] {
			p.pixels[i] = gray(v)
		}
		panels = append(panels, p)
	}
	return append(panels, e.effectPanels()...)
}

// effectPanels returns the heat maps.
func (e *Explanation) effectPanels() []*panel {
	scale := e.scale()
	heat := func(title string, effects [flow.CaptureBytes]float64) *panel {
		p := &panel{title: title, capture: true}
		for i := range p.pixels {
			switch {
			case i >= len(e.sample.Data):
				p.pixels[i] = colorOut
			default:
				p.pixels[i] = heatColor(effects[i] / scale)
			}
		}
		return p
	}
	effects := e.byteEffects()
	bytes := heat("effect of the bytes", effects)
	for i := range e.sample.Data {
		if e.unseen[i] && effects[i] == 0 {
			bytes.pixels[i] = colorUnseen
		}
	}
	panels := []*panel{bytes}
	if effects, seen := e.recordEffects(); seen {
		panels = append(panels, heat("effect: length, direction, time", effects))
	}
	return panels
}

// scale returns the effect that gets the strongest colour: the largest one, but
// not so little that noise gets colour.
func (e *Explanation) scale() float64 {
	const least = 0.01
	scale := least
	for i := range e.parts {
		if !e.parts[i].group {
			scale = max(scale, math.Abs(e.parts[i].Effect))
		}
	}
	return scale
}

func gray(v uint8) color.RGBA { return color.RGBA{v, v, v, 0xff} }

// heatColor returns the colour of an effect of -1 to 1.
func heatColor(effect float64) color.RGBA {
	to := colorFor
	if effect < 0 {
		to, effect = colorAgain, -effect
	}
	mix := func(a, b uint8) uint8 { return uint8(math.Round(float64(a) + (float64(b)-float64(a))*min(effect, 1))) }
	return color.RGBA{mix(colorNone.R, to.R), mix(colorNone.G, to.G), mix(colorNone.B, to.B), 0xff}
}

// Colours of the lines where packets begin, by their sender.
var (
	colorInitiator = color.RGBA{0xe0, 0x80, 0x00, 0xff}
	colorResponder = color.RGBA{0x00, 0x90, 0x80, 0xff}
)

func senderColor(p *flow.Packet) color.RGBA {
	if p.FromInitiator {
		return colorInitiator
	}
	return colorResponder
}

// boundary is where a packet begins in a map of the capture.
type boundary struct {
	packet int // its index
	at     image.Point
	color  color.RGBA
	lines  []image.Rectangle // without width: in front of its first byte, and of the rest of its row
}

// boundaries returns those of all packets, in bytes.
func (e *Explanation) boundaries() (all []boundary) {
	for i := range e.sample.Packets {
		p := &e.sample.Packets[i]
		x, y := int(p.Offset)%side, int(p.Offset)/side
		b := boundary{packet: i, at: image.Pt(x, y), color: senderColor(p), lines: []image.Rectangle{image.Rect(x, y, side, y)}}
		if x > 0 {
			b.lines = append(b.lines, image.Rect(x, y, x, y+1), image.Rect(0, y+1, x, y+1))
		}
		all = append(all, b)
	}
	return all
}
