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

// View is what WritePage shows, as data: for a page of somebody else's making, as JSON too.
type View struct {
	About string `json:"about"` // whose probability the effects are of
	Side  int    `json:"side"`  // of each map, in pixels
	Scale string `json:"scale"` // the effect that has the strongest colour
	// Colours, as #rrggbb: from the strongest effect against to that for, of what the model did
	// not see, and of the packets of both ends.
	Steps     []string     `json:"steps"`
	Unseen    string       `json:"unseen"`
	Initiator string       `json:"initiator"`
	Responder string       `json:"responder"`
	Maps      []ViewMap    `json:"maps"`
	Packets   []ViewPacket `json:"packets"`
	Groups    []Part       `json:"groups"`
	Singular  []Part       `json:"singular"` // the strongest of the single parts
}

// ViewMap is a map of the capture, or of what the model was told of it.
type ViewMap struct {
	Title  string       `json:"title"`
	Pixels template.URL `json:"pixels"` // a PNG, as a URL that holds it
	// Parts and Begins are of maps in which a pixel is the byte of the same number.
	Parts  []ViewPart  `json:"parts,omitempty"`
	Begins []ViewBegin `json:"begins,omitempty"`
}

// ViewPart is a part of the capture: the bytes of a map that belong to it, and what is
// said of them.
type ViewPart struct {
	Text string            `json:"text"`
	Runs []image.Rectangle `json:"runs"`
}

// ViewBegin is where a packet begins.
type ViewBegin struct {
	Number int               `json:"number"` // from 1
	At     image.Point       `json:"at"`
	Color  string            `json:"color"`
	Lines  []image.Rectangle `json:"lines"` // without width
}

// ViewPacket is a packet of the capture.
type ViewPacket struct {
	Number        int     `json:"number"` // from 1
	FromInitiator bool    `json:"from_initiator"`
	Millis        float64 `json:"ms"`       // since the first packet
	Wire          uint32  `json:"wire"`     // bytes on the wire, link header included
	Payload       int     `json:"payload"`  // bytes of them
	Captured      int     `json:"captured"` // bytes of the frame that are in the capture
}

// View returns what there is to show.
func (e *Explanation) View() (*View, error) {
	v := &View{
		About: e.about, Side: side, Scale: fmt.Sprintf("%.4f", e.scale()),
		Unseen: htmlColor(colorUnseen), Initiator: htmlColor(colorInitiator), Responder: htmlColor(colorResponder),
		Groups: e.Groups(), Singular: e.Strongest(pageStrongest),
	}
	const steps = 21
	for i := range steps {
		v.Steps = append(v.Steps, htmlColor(heatColor(2*float64(i)/(steps-1)-1)))
	}
	for i := range e.sample.Packets {
		p := &e.sample.Packets[i]
		v.Packets = append(v.Packets, ViewPacket{i + 1, p.FromInitiator, float64(p.Time.Microseconds()) / 1000, p.WireLen, e.wire[i], len(e.sample.Frame(i))})
	}
	var begins []ViewBegin
	for _, b := range e.boundaries() {
		begins = append(begins, ViewBegin{b.packet + 1, b.at, htmlColor(b.color), b.lines})
	}
	parts := e.pageParts()
	for _, m := range e.panels() {
		pixels, err := m.dataURL()
		if err != nil {
			return nil, err
		}
		one := ViewMap{Title: m.title, Pixels: pixels}
		if m.capture {
			one.Parts, one.Begins = parts, begins
		}
		v.Maps = append(v.Maps, one)
	}
	return v, nil
}

// WritePage writes an HTML page of its own, without scripts and without anything to fetch:
// the lines of the heading, the maps, in which each part tells its name, and the parts
// with the strongest effects.
func (e *Explanation) WritePage(w io.Writer, heading []string) error {
	v, err := e.View()
	if err != nil {
		return err
	}
	return pageTemplate.Execute(w, &struct {
		Heading []string
		*View
	}{heading, v})
}

// pageParts returns what there is to say of the bytes of the capture.
func (e *Explanation) pageParts() (all []ViewPart) {
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
		all = append(all, ViewPart{text, rows(p.bytes)})
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
