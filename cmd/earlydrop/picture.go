// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"image"
	"image/color"
	"image/draw"
	"image/png"
	"io"
	"math"
	"slices"
	"strings"

	"golang.org/x/image/font"
	"golang.org/x/image/font/basicfont"
	"golang.org/x/image/math/fixed"

	"github.com/earlydrop/earlydrop/classifier"
	"github.com/earlydrop/earlydrop/loader/flow"
)

const side = classifier.ImageSide

// panel is a grid of 32x32 pixels, row by row.
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
func (o *occlusion) panels() []*panel {
	captured := len(o.sample.Data)
	data := &panel{title: "bytes of the capture", capture: true}
	for i := range data.pixels {
		switch {
		case i >= captured:
			data.pixels[i] = colorOut
		case o.unseen[i]:
			data.pixels[i] = colorUnseen
		default:
			data.pixels[i] = gray(o.sample.Data[i])
		}
	}
	panels := []*panel{data}
	for c, channel := range o.engine.Manifest().Channels {
		if channel == classifier.ChannelByte {
			continue
		}
		p := &panel{title: fmt.Sprintf("the model's channel %q", channel), capture: channel.PerByte()}
		for i, v := range o.input[c*classifier.ImagePixels:][:classifier.ImagePixels] {
			p.pixels[i] = gray(v)
		}
		panels = append(panels, p)
	}
	return append(panels, o.effectPanels()...)
}

// effectPanels returns the heat maps.
func (o *occlusion) effectPanels() []*panel {
	scale := o.scale()
	heat := func(title string, effects [flow.CaptureBytes]float64) *panel {
		p := &panel{title: title, capture: true}
		for i := range p.pixels {
			switch {
			case i >= len(o.sample.Data):
				p.pixels[i] = colorOut
			default:
				p.pixels[i] = heatColor(effects[i] / scale)
			}
		}
		return p
	}
	effects := o.byteEffects()
	bytes := heat("effect of the bytes", effects)
	for i := range o.sample.Data {
		if o.unseen[i] && effects[i] == 0 {
			bytes.pixels[i] = colorUnseen
		}
	}
	panels := []*panel{bytes}
	if effects, seen := o.recordEffects(); seen {
		panels = append(panels, heat("effect: length, direction, time", effects))
	}
	return panels
}

// scale returns the effect that gets the strongest colour: the largest one, but
// not so little that noise gets colour.
func (o *occlusion) scale() float64 {
	const least = 0.01
	scale := least
	for i := range o.parts {
		if !o.parts[i].group {
			scale = max(scale, math.Abs(o.parts[i].effect))
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

// Sizes of the picture, in its pixels.
const (
	pictureScale   = 12 // of one byte
	pictureMargin  = 16
	pictureColumns = 3 // panels beside each other
	panelSize      = side * pictureScale
	lineHeight     = 16
	pictureWidth   = pictureColumns*(panelSize+pictureMargin) + pictureMargin
)

// pictureHeight returns the height of a picture of so many panels below and above
// so many lines of text.
func pictureHeight(panels, above, below int) int {
	rows := (panels + pictureColumns - 1) / pictureColumns
	const legend = 2 * lineHeight
	return pictureMargin + above*lineHeight + rows*(lineHeight+panelSize+pictureMargin) + legend + below*lineHeight + pictureMargin
}

// writePNG writes the panels with lines of text above and below.
func (o *occlusion) writePNG(w io.Writer, above, below []string) error {
	panels := o.panels()
	img := image.NewRGBA(image.Rect(0, 0, pictureWidth, pictureHeight(len(panels), len(above), len(below))))
	draw.Draw(img, img.Bounds(), image.White, image.Point{}, draw.Src)
	y := pictureMargin
	text := func(x, y int, s string) {
		d := font.Drawer{Dst: img, Src: image.Black, Face: basicfont.Face7x13, Dot: fixed.P(x, y+11)}
		d.DrawString(s)
	}
	for _, line := range above {
		text(pictureMargin, y, line)
		y += lineHeight
	}
	for i, p := range panels {
		if i > 0 && i%pictureColumns == 0 {
			y += lineHeight + panelSize + pictureMargin
		}
		at := image.Pt(pictureMargin+i%pictureColumns*(panelSize+pictureMargin), y)
		text(at.X, at.Y, p.title)
		at.Y += lineHeight
		for i, c := range p.pixels {
			cell := image.Rect(0, 0, pictureScale, pictureScale).Add(at).Add(image.Pt(i%side*pictureScale, i/side*pictureScale))
			draw.Draw(img, cell, image.NewUniform(c), image.Point{}, draw.Src)
		}
		frame(img, image.Rectangle{at, at.Add(image.Pt(panelSize, panelSize))}, color.RGBA{0x90, 0x90, 0x90, 0xff})
		if p.capture {
			o.drawBoundaries(img, at, text)
		}
	}
	y += lineHeight + panelSize + pictureMargin
	o.drawLegend(img, y, text)
	y += 2 * lineHeight
	for _, line := range below {
		text(pictureMargin, y, line)
		y += lineHeight
	}
	return png.Encode(w, img)
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

// drawBoundaries draws a line in front of each packet's first byte and puts the
// packet's number there.
func (o *occlusion) drawBoundaries(img draw.Image, at image.Point, text func(x, y int, s string)) {
	line := func(c color.Color, x0, y0, x1, y1 int) {
		r := image.Rect(x0*pictureScale, y0*pictureScale, x1*pictureScale, y1*pictureScale)
		if r.Dx() == 0 {
			r.Max.X += 2
		}
		if r.Dy() == 0 {
			r.Max.Y += 2
		}
		draw.Draw(img, r.Add(at), image.NewUniform(c), image.Point{}, draw.Src)
	}
	for i := range o.sample.Packets {
		p := &o.sample.Packets[i]
		c, x, y := senderColor(p), int(p.Offset)%side, int(p.Offset)/side
		line(c, x, y, side, y)
		line(c, x, y, x, y+1)
		line(c, 0, y+1, x, y+1)
		number := fmt.Sprint(i + 1)
		corner := at.Add(image.Pt(x*pictureScale, y*pictureScale))
		corner.X = min(corner.X, at.X+panelSize-7*len(number)-2)
		draw.Draw(img, image.Rectangle{corner, corner.Add(image.Pt(7*len(number)+2, 13))}, image.NewUniform(c), image.Point{}, draw.Src)
		text(corner.X+1, corner.Y, number)
	}
}

// drawLegend draws what the colours mean.
func (o *occlusion) drawLegend(img draw.Image, y int, text func(x, y int, s string)) {
	x := pictureMargin
	say := func(s string) {
		text(x, y, s)
		x += 7*len(s) + 10
	}
	box := func(c color.RGBA) {
		r := image.Rect(x, y, x+14, y+13)
		draw.Draw(img, r, image.NewUniform(c), image.Point{}, draw.Src)
		frame(img, r, color.RGBA{0x90, 0x90, 0x90, 0xff})
		x += 20
	}
	say(fmt.Sprintf("%+.4f", -o.scale()))
	const steps = 120
	for i := range steps {
		c := heatColor(2*float64(i)/(steps-1) - 1)
		draw.Draw(img, image.Rect(x+i, y, x+i+1, y+13), image.NewUniform(c), image.Point{}, draw.Src)
	}
	x += steps + 6
	say(fmt.Sprintf("%+.4f: by how much the probability of %s falls without it", o.scale(), o.label))
	box(colorUnseen)
	say("not seen by the model")
	box(colorInitiator)
	say("packet of the initiator")
	box(colorResponder)
	say("of the responder")
}

// frame draws a line around r.
func frame(img draw.Image, r image.Rectangle, c color.Color) {
	u := image.NewUniform(c)
	for _, edge := range []image.Rectangle{
		image.Rect(r.Min.X, r.Min.Y, r.Max.X, r.Min.Y+1), image.Rect(r.Min.X, r.Max.Y-1, r.Max.X, r.Max.Y),
		image.Rect(r.Min.X, r.Min.Y, r.Min.X+1, r.Max.Y), image.Rect(r.Max.X-1, r.Min.Y, r.Max.X, r.Max.Y),
	} {
		draw.Draw(img, edge, u, image.Point{}, draw.Src)
	}
}

// narrow stands for the maps where they don't fit.
func narrow(need, columns int) string {
	return fmt.Sprintf("the maps need a terminal of %d columns, and this one has %d: make it wider, or have them drawn (--out FILE)\n", need, columns)
}

// panelGap is how many columns are left between two panels.
const panelGap = 3

// colorGrid returns the panels of bytes and effects for a terminal with 24-bit
// colours, as many side by side as fit: two rows of pixels in one line of text.
func (o *occlusion) colorGrid(columns int) string {
	panels := append([]*panel{o.panels()[0]}, o.effectPanels()...)
	if columns < side {
		return narrow(side, columns)
	}
	var b strings.Builder
	for row := range slices.Chunk(panels, (columns+panelGap)/(side+panelGap)) {
		var titles strings.Builder
		for _, p := range row { // no title is longer than a panel is wide
			fmt.Fprintf(&titles, "%-*s", side+panelGap, p.title)
		}
		b.WriteString(strings.TrimRight(titles.String(), " ") + "\n")
		for y := 0; y < side; y += 2 {
			for i, p := range row {
				if i > 0 {
					b.WriteString(strings.Repeat(" ", panelGap))
				}
				for x := range side {
					top, bottom := p.pixels[y*side+x], p.pixels[(y+1)*side+x]
					fmt.Fprintf(&b, "\x1b[38;2;%d;%d;%dm\x1b[48;2;%d;%d;%dm\u2580", top.R, top.G, top.B, bottom.R, bottom.G, bottom.B)
				}
				b.WriteString("\x1b[0m")
			}
			b.WriteString("\n")
		}
	}
	b.WriteString(o.beginnings())
	fmt.Fprintf(&b, "red: speaks for %s, blue: against it, violet: not seen by the model; the strongest is %.4f\n", o.label, o.scale())
	return b.String()
}

// textGrid returns the effects of the bytes as characters, 32 bytes on a line, with
// the packets that begin there, or below where the lines are too short.
func (o *occlusion) textGrid(columns int) string {
	const number = 4 + 2 // the offset in front of each line, and the space after it
	if columns < number+side {
		return narrow(number+side, columns)
	}
	var lines []string
	beside := true
	effects, scale := o.byteEffects(), o.scale()
	next := 0
	for y := 0; y < side && y*side < len(o.sample.Data); y++ {
		line := make([]byte, 0, side)
		for i := y * side; i < (y+1)*side && i < len(o.sample.Data); i++ {
			line = append(line, effectLetter(effects[i]/scale, o.unseen[i]))
		}
		var begin []string
		for ; next < len(o.sample.Packets) && int(o.sample.Packets[next].Offset) < (y+1)*side; next++ {
			begin = append(begin, o.beginning(next))
		}
		text := strings.TrimRight(fmt.Sprintf("%4d  %-32s  %s", y*side, line, strings.Join(begin, ", ")), " ")
		beside = beside && len(text) <= columns
		lines = append(lines, text)
	}
	below := ""
	if !beside {
		below = o.beginnings()
		for i := range lines {
			lines[i] = strings.TrimRight(lines[i][:min(number+side, len(lines[i]))], " ")
		}
	}
	return strings.Join(lines, "\n") + "\n" + below +
		fmt.Sprintf("1 to 9: tenths of the strongest effect, %.4f, for %s; a to i: against it; . less; _ not seen by the model\n", scale, o.label)
}

// beginnings is a line that says where all packets begin.
func (o *occlusion) beginnings() string {
	var begin []string
	for i := range o.sample.Packets {
		begin = append(begin, o.beginning(i))
	}
	return "packets begin: " + strings.Join(begin, ", ") + "\n"
}

// beginning says where packet i begins, as in "2 responder at 94".
func (o *occlusion) beginning(i int) string {
	p := &o.sample.Packets[i]
	return fmt.Sprintf("%d %s at %d", i+1, sender(p), p.Offset)
}

// effectLetter stands for an effect of -1 to 1.
func effectLetter(effect float64, unseen bool) byte {
	tenths := min(int(math.Abs(effect)*10), 9)
	switch {
	case tenths > 0 && effect > 0:
		return '0' + byte(tenths)
	case tenths > 0:
		return 'a' + byte(tenths) - 1
	case unseen && effect == 0:
		return '_'
	}
	return '.'
}
