// SPDX-License-Identifier: Apache-2.0

package explain

import (
	"bytes"
	_ "embed"
	"encoding/base64"
	"fmt"
	"html/template"
	"image"
	"image/color"
	"image/png"
	"io"
)

//go:embed page.html
var pageText string

var pageTemplate = template.Must(template.New("page").Funcs(template.FuncMap{
	"effect": func(p Part) string { return fmt.Sprintf("%+.4f", p.Rounded()) },
}).Parse(pageText))

// pageStrongest is how many single parts the page lists.
const pageStrongest = 50

// page is what page.html shows.
type page struct {
	Heading          []string
	About            string
	Side             int
	Maps             []pageMap
	Scale            string
	Steps            []string // colours, from the strongest effect against to that for
	Unseen           string
	Initiator        string
	Responder        string
	Groups, Singular []Part
}

type pageMap struct {
	Title  string
	Pixels template.URL // a PNG of 32x32 pixels
	Parts  []pagePart
	Begins []pageBegin
}

// pagePart is a part of the capture: the bytes of a map that belong to it, and what is
// said of them.
type pagePart struct {
	Text string
	Runs []image.Rectangle
}

// pageBegin is where a packet begins.
type pageBegin struct {
	Number int
	At     image.Point
	Color  string
	Lines  []image.Rectangle
}

// WritePage writes an HTML page of its own, without scripts and without anything to fetch:
// the lines of the heading, the maps, in which each part tells its name, and the parts
// with the strongest effects.
func (e *Explanation) WritePage(w io.Writer, heading []string) error {
	p := page{
		Heading: heading, About: e.about, Side: side, Scale: fmt.Sprintf("%.4f", e.scale()),
		Unseen: htmlColor(colorUnseen), Initiator: htmlColor(colorInitiator), Responder: htmlColor(colorResponder),
		Groups: e.Groups(), Singular: e.Strongest(pageStrongest),
	}
	const steps = 21
	for i := range steps {
		p.Steps = append(p.Steps, htmlColor(heatColor(2*float64(i)/(steps-1)-1)))
	}
	var begins []pageBegin
	for _, b := range e.boundaries() {
		begins = append(begins, pageBegin{b.packet + 1, b.at, htmlColor(b.color), b.lines})
	}
	parts := e.pageParts()
	for _, m := range e.panels() {
		pixels, err := m.dataURL()
		if err != nil {
			return err
		}
		one := pageMap{Title: m.title, Pixels: pixels}
		if m.capture {
			one.Parts, one.Begins = parts, begins
		}
		p.Maps = append(p.Maps, one)
	}
	return pageTemplate.Execute(w, &p)
}

// pageParts returns what there is to say of the bytes of the capture.
func (e *Explanation) pageParts() (all []pagePart) {
	for i := range e.parts {
		p := &e.parts[i]
		if p.group || len(p.bytes) == 0 {
			continue
		}
		text := fmt.Sprintf("%s: %s, ", p.Name, p.Value)
		if p.seen {
			text += fmt.Sprintf("effect %+.4f", p.Rounded())
		} else {
			text += "not seen by the model"
		}
		all = append(all, pagePart{text, rows(p.bytes)})
	}
	return all
}

// rows returns the rectangles that consecutive bytes are in a map, one for each row.
func rows(bytes []int) (runs []image.Rectangle) {
	for _, at := range bytes {
		x, y := at%side, at/side
		if n := len(runs); n > 0 && runs[n-1].Min.Y == y {
			runs[n-1].Max.X = x + 1
			continue
		}
		runs = append(runs, image.Rect(x, y, x+1, y+1))
	}
	return runs
}

// dataURL returns the pixels as a URL that holds them.
func (p *panel) dataURL() (template.URL, error) {
	img := image.NewRGBA(image.Rect(0, 0, side, side))
	for i, c := range p.pixels {
		img.SetRGBA(i%side, i/side, c)
	}
	var b bytes.Buffer
	if err := png.Encode(&b, img); err != nil {
		return "", err
	}
	return template.URL("data:image/png;base64," + base64.StdEncoding.EncodeToString(b.Bytes())), nil
}

func htmlColor(c color.RGBA) string { return fmt.Sprintf("#%02x%02x%02x", c.R, c.G, c.B) }
