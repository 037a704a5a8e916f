// SPDX-License-Identifier: Apache-2.0

package explain

import (
	"image"
	"image/color"
	"image/draw"
	"image/png"
	"io"
)

// Sizes of the picture, in its pixels.
const (
	pictureScale   = 12 // of one byte
	pictureMargin  = 16
	pictureColumns = 3 // maps beside each other
	panelSize      = side * pictureScale
)

// pictureSize returns the size of a picture of so many maps.
func pictureSize(panels int) image.Point {
	across := min(panels, pictureColumns)
	down := (panels + pictureColumns - 1) / pictureColumns
	return image.Pt(across*(panelSize+pictureMargin)+pictureMargin, down*(panelSize+pictureMargin)+pictureMargin)
}

// panelAt returns where in a picture a map begins.
func panelAt(i int) image.Point {
	return image.Pt(i%pictureColumns, i/pictureColumns).Mul(panelSize + pictureMargin).Add(image.Pt(pictureMargin, pictureMargin))
}

// WritePNG draws the maps: the bytes, what else the model is told of them, and the
// effects, three beside each other. Lines are drawn where packets begin. What the colours
// mean is what WritePage says.
func (e *Explanation) WritePNG(w io.Writer) error {
	panels := e.panels()
	img := image.NewRGBA(image.Rectangle{Max: pictureSize(len(panels))})
	fill(img, img.Bounds(), color.White)
	for i, p := range panels {
		at := panelAt(i)
		for n, c := range p.pixels {
			corner := at.Add(image.Pt(n%side, n/side).Mul(pictureScale))
			fill(img, image.Rectangle{corner, corner.Add(image.Pt(pictureScale, pictureScale))}, c)
		}
		frame(img, image.Rectangle{at, at.Add(image.Pt(panelSize, panelSize))})
		if !p.capture {
			continue
		}
		for _, b := range e.boundaries() {
			for _, l := range b.lines {
				r := image.Rectangle{l.Min.Mul(pictureScale), l.Max.Mul(pictureScale)}
				const thick = 2
				if r.Dx() == 0 {
					r.Max.X += thick
				} else {
					r.Max.Y += thick
				}
				fill(img, r.Add(at), b.color)
			}
		}
	}
	return png.Encode(w, img)
}

func fill(img draw.Image, r image.Rectangle, c color.Color) {
	draw.Draw(img, r, image.NewUniform(c), image.Point{}, draw.Src)
}

// frame draws a line around r.
func frame(img draw.Image, r image.Rectangle) {
	c := color.RGBA{0x90, 0x90, 0x90, 0xff}
	for _, edge := range []image.Rectangle{
		image.Rect(r.Min.X, r.Min.Y, r.Max.X, r.Min.Y+1), image.Rect(r.Min.X, r.Max.Y-1, r.Max.X, r.Max.Y),
		image.Rect(r.Min.X, r.Min.Y, r.Min.X+1, r.Max.Y), image.Rect(r.Max.X-1, r.Min.Y, r.Max.X, r.Max.Y),
	} {
		fill(img, edge, c)
	}
}
