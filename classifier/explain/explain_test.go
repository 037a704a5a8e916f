// SPDX-License-Identifier: Apache-2.0

//go:build cgo

package explain

import (
	"bytes"
	"encoding/xml"
	"errors"
	"fmt"
	"image"
	"image/color"
	"image/png"
	"io"
	"math"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"

	"github.com/earlydrop/earlydrop/classifier"
	"github.com/earlydrop/earlydrop/classifier/onnx"
	"github.com/earlydrop/earlydrop/loader/flow"
	"github.com/earlydrop/earlydrop/test/onnxruntime"
)

func TestMain(m *testing.M) { os.Exit(onnxruntime.Main(m.Run)) }

// The ends of the flow of the tests.
var (
	client = &net.TCPAddr{IP: net.IPv4(10, 0, 0, 1), Port: 1001}
	server = &net.TCPAddr{IP: net.IPv4(10, 9, 0, 1), Port: 443}
)

type packet struct {
	from    *net.TCPAddr
	flags   string // S, A
	payload []byte
}

// sample returns the capture of packets, one each millisecond.
func sample(t *testing.T, packets ...packet) *flow.Sample {
	t.Helper()
	s := new(flow.Sample)
	s.Reset()
	for i, p := range packets {
		to := server
		if p.from == server {
			to = client
		}
		ip := &layers.IPv4{Version: 4, TTL: 64, Protocol: layers.IPProtocolTCP, SrcIP: p.from.IP, DstIP: to.IP}
		tcp := &layers.TCP{SrcPort: layers.TCPPort(p.from.Port), DstPort: layers.TCPPort(to.Port), Window: 65535,
			SYN: strings.Contains(p.flags, "S"), ACK: strings.Contains(p.flags, "A")}
		buf := gopacket.NewSerializeBuffer()
		err := errors.Join(tcp.SetNetworkLayerForChecksum(ip), gopacket.SerializeLayers(buf,
			gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true},
			&layers.Ethernet{SrcMAC: net.HardwareAddr{2, 0, 0, 0, 0, 1}, DstMAC: net.HardwareAddr{2, 0, 0, 0, 0, 2}, EthernetType: layers.EthernetTypeIPv4},
			ip, tcp, gopacket.Payload(p.payload)))
		if err != nil {
			t.Fatal(err)
		}
		frame := buf.Bytes()[:14+int(ip.Length)] // without padding
		s.Packets = append(s.Packets, flow.Packet{Offset: uint16(len(s.Data)), WireLen: uint32(len(frame)),
			FromInitiator: p.from == client, Time: time.Duration(i) * time.Millisecond})
		s.Data = append(s.Data, frame[:min(len(frame), flow.CaptureBytes-len(s.Data))]...)
	}
	return s
}

// exchange is a whole capture of a request and its answer.
func exchange(t *testing.T) *flow.Sample {
	t.Helper()
	return sample(t, packet{client, "S", nil}, packet{server, "SA", nil}, packet{client, "A", nil},
		packet{client, "A", []byte("hello")}, packet{server, "A", bytes.Repeat([]byte("x"), 2000)})
}

func open(t *testing.T, model string) *classifier.Engine {
	t.Helper()
	engine, err := onnx.OpenFile(filepath.Join("../testdata", model), onnx.Options{Workers: 2})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := engine.Close(); err != nil {
			t.Error(err)
		}
	})
	return engine
}

func classify(t *testing.T, engine *classifier.Engine, s *flow.Sample) flow.Result {
	t.Helper()
	results := make([]flow.Result, 1)
	if err := engine.Classify([]*flow.Sample{s}, results); err != nil {
		t.Fatal(err)
	}
	return results[0]
}

// explainLikeliest explains the label that the model names.
func explainLikeliest(t *testing.T, engine *classifier.Engine, s *flow.Sample) (*Explanation, flow.Result) {
	t.Helper()
	answer := classify(t, engine, s)
	e, err := New(engine, s, answer, []string{answer.Class}, answer.Class)
	if err != nil {
		t.Fatal(err)
	}
	return e, answer
}

// The model looks at a byte of the first packet's TCP window, at the length of the
// packet at byte 200, at the direction of the one at byte 400, at the initiator's
// sixth byte of payload and at the length of the second packet with payload. Nothing
// else may be named.
func TestFindsWhatAModelDependsOn(t *testing.T) {
	s := sample(t,
		packet{from: client, flags: "S"},
		packet{from: server, flags: "SA"},
		packet{from: client, flags: "A", payload: bytes.Repeat([]byte{0xff}, 200)},
		packet{from: client, flags: "A", payload: bytes.Repeat([]byte("r"), 500)})
	engine := open(t, "planted.onnx")
	o, answer := explainLikeliest(t, engine, s)
	if answer.Class != "shadowsocks" {
		t.Fatalf("the capture is %s, scores %v", answer.Class, answer.Scores)
	}
	effects := map[string]string{}
	for _, p := range o.Strongest(100) {
		effects[p.Name] = "for"
		if p.Effect < 0 {
			effects[p.Name] = "against"
		}
	}
	want := map[string]string{
		"TCP window of packet 1 (initiator)":          "for",     // byte 48, which is as large as can be
		"payload of packet 3 (initiator), bytes 0-15": "for",     // as large, too
		"length of packet 3 (initiator)":              "against", // bytes 108-361; the others are larger
		"direction of packet 4 (initiator)":           "for",     // from byte 362 on
		"direction of packet 3 (initiator)":           "for",     // its payload is of the other stream then
		"length of packet 4 (initiator)":              "against",
	}
	if diff := cmp.Diff(want, effects); diff != "" {
		t.Errorf("parts with an effect (-want +got):\n%s", diff)
	}
	groups := map[string]bool{}
	for _, p := range o.Groups() {
		if p.Rounded() != 0 {
			groups[p.Name] = true
		}
	}
	if diff := cmp.Diff(map[string]bool{"all header fields": true, "all payload": true, "all lengths of packets": true, "all directions of packets": true}, groups); diff != "" {
		t.Errorf("groups with an effect (-want +got):\n%s", diff)
	}
	heat := o.byteEffects()
	for i, e := range heat {
		if ((&Part{Effect: e}).Rounded() != 0) != (i == 48 || i == 49 || i >= 162 && i < 178) { // the window and the payload's beginning
			t.Errorf("byte %d has the effect %v", i, e)
		}
	}
	records, seen := o.recordEffects()
	for _, i := range []int{0, 53, 107, 108, 361, 362, 1015} {
		if ((&Part{Effect: records[i]}).Rounded() != 0) != (i >= 108 && i < len(s.Data)) {
			t.Errorf("byte %d of %d has the effect %v by its packet's records", i, len(s.Data), records[i])
		}
	}
	if !seen {
		t.Error("the model is said not to see lengths and directions")
	}
}

// The effects are on the sum: what moves probability from one of the labels to the other
// has none.
func TestMeasuresTheSum(t *testing.T) {
	s := exchange(t)
	engine := open(t, "tiny5.onnx")
	answer := classify(t, engine, s)
	about := func(labels ...string) *Explanation {
		t.Helper()
		e, err := New(engine, s, answer, labels, strings.Join(labels, "|"))
		if err != nil {
			t.Fatal(err)
		}
		return e
	}
	for _, p := range about("shadowsocks", "v2ray", "background").parts {
		if math.Abs(p.Effect) > 1e-6 {
			t.Errorf("all labels together are always 1, but %s has an effect of %v", p.Name, p.Effect)
		}
	}
	both, one := about("shadowsocks", "v2ray"), about("v2ray")
	if len(both.Strongest(1)) == 0 || cmp.Equal(names(both), names(one)) {
		t.Errorf("the same has effects on both labels together as on one: %v", names(both))
	}
}

func names(e *Explanation) (list []string) {
	for _, p := range e.Strongest(15) {
		list = append(list, fmt.Sprintf("%s %+.4f", p.Name, p.Effect))
	}
	return list
}

// The maps keep to the width of the terminal: as many as fit are side by side.
func TestMapsKeepToTheWidthOfTheTerminal(t *testing.T) {
	o, _ := explainLikeliest(t, open(t, "tiny5.onnx"), exchange(t))
	const unbounded = 1 << 16
	escapes := regexp.MustCompile("\x1b\\[[0-9;]*m")
	// What follows the maps is text, which may be broken anywhere.
	wide := func(grid string) (most, lines int) {
		for line := range strings.Lines(escapes.ReplaceAllString(grid, "")) {
			if strings.HasPrefix(line, "packets begin") || strings.HasPrefix(line, "1 to 9") {
				break
			}
			most, lines = max(most, utf8.RuneCountInString(strings.TrimSuffix(line, "\n"))), lines+1
		}
		return most, lines
	}
	const panel = side/2 + 1 // lines
	for _, tt := range []struct{ columns, lines int }{
		{unbounded, panel}, {102, panel}, {101, 2 * panel}, {80, 2 * panel}, {67, 2 * panel}, {66, 3 * panel}, {40, 3 * panel}, {32, 3 * panel},
	} {
		grid, err := o.ColorMap(tt.columns)
		if err != nil {
			t.Fatal(err)
		}
		if most, lines := wide(grid); most > tt.columns || lines != tt.lines {
			t.Errorf("in %d columns the coloured maps have %d lines of at most %d", tt.columns, lines, most)
		}
		if n, want := strings.Count(grid, "\u2580"), 3*side*side/2; n != want {
			t.Errorf("in %d columns there are %d half blocks, want %d", tt.columns, n, want)
		}
	}
	for _, columns := range []int{unbounded, 80, 60, 45, 38} {
		grid, err := o.TextMap(columns)
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(grid, "\x1b") {
			t.Error("an escape sequence is where none should be")
		}
		if most, lines := wide(grid); most > columns || lines != side {
			t.Errorf("in %d columns the plain map has %d lines of at most %d", columns, lines, most)
		}
		if !strings.Contains(grid, "2 responder at ") {
			t.Errorf("in %d columns it is not said where packets begin:\n%s", columns, grid)
		}
	}
	for _, tt := range []struct {
		draw          func(int) (string, error)
		need, columns int
	}{{o.ColorMap, 32, 31}, {o.TextMap, 38, 37}} {
		var narrow *NarrowError
		if grid, err := tt.draw(tt.columns); grid != "" || !errors.As(err, &narrow) || *narrow != (NarrowError{tt.need, tt.columns}) {
			t.Errorf("in %d columns: %q, %v", tt.columns, grid, err)
		}
	}
}

func TestPictureShowsTheBytesAndWhatTheModelIsTold(t *testing.T) {
	for _, tt := range []struct {
		model  string
		panels int
		size   image.Point
	}{
		{"tiny.onnx", 2, image.Pt(2*400+16, 400+16)},    // bytes, their effects
		{"tiny5.onnx", 7, image.Pt(3*400+16, 3*400+16)}, // bytes, four more channels, two kinds of effects
	} {
		e, _ := explainLikeliest(t, open(t, tt.model), exchange(t))
		var file bytes.Buffer
		if err := e.WritePNG(&file); err != nil {
			t.Fatal(err)
		}
		img, err := png.Decode(&file)
		if err != nil {
			t.Fatal(err)
		}
		if img.Bounds().Max != tt.size {
			t.Errorf("%s: the picture is %v, want %v", tt.model, img.Bounds(), tt.size)
		}
		at := func(panel, x, y int) color.RGBA {
			p := panelAt(panel).Add(image.Pt(x, y))
			return color.RGBAModel.Convert(img.At(p.X, p.Y)).(color.RGBA)
		}
		// Byte 46 is the length of the first packet's TCP header, 5 words.
		want := []color.RGBA{gray(0x50)}
		if tt.panels > 2 {
			want = append(want, gray(255), gray(128), gray(0), gray(0)) // from the initiator, header, length and time 0
		}
		for i := range tt.panels {
			got := at(i, 46%side*pictureScale+pictureScale/2, 46/side*pictureScale+pictureScale/2)
			if i < len(want) && got != want[i] || i >= len(want) && (got == colorOut || got == colorUnseen) {
				t.Errorf("%s: byte 46 has the colour %v in map %d", tt.model, got, i)
			}
		}
		// The second packet, the responder's, begins with byte 54.
		if got := at(0, 54%side*pictureScale, 54/side*pictureScale+pictureScale/2); got != colorResponder {
			t.Errorf("%s: in front of the second packet is the colour %v", tt.model, got)
		}
	}
}

// The page is well-formed, needs nothing from elsewhere, and takes what a file is called
// for text.
func TestPageHoldsAll(t *testing.T) {
	e, _ := explainLikeliest(t, open(t, "tiny5.onnx"), exchange(t))
	e.about = "a|<b>"
	var file, again bytes.Buffer
	heading := []string{`<script>alert(1)</script>.pcap, flow 1`, "second line"}
	if err := errors.Join(e.WritePage(&file, heading), e.WritePage(&again, heading)); err != nil {
		t.Fatal(err)
	}
	text := file.String()
	if text != again.String() {
		t.Error("the same page is written in two ways")
	}
	counts := map[string]int{}
	titles := map[string]bool{}
	for d, inTitle := xml.NewDecoder(strings.NewReader(text)), false; ; {
		d.Strict, d.AutoClose, d.Entity = false, xml.HTMLAutoClose, xml.HTMLEntity
		token, err := d.Token()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		switch token := token.(type) {
		case xml.StartElement:
			counts[token.Name.Local]++
			inTitle = token.Name.Local == "title"
			for _, a := range token.Attr {
				if name := a.Name.Local; (name == "href" || name == "src") && !strings.HasPrefix(a.Value, "data:image/png;base64,") {
					t.Errorf("%s of <%s> is %.40q", name, token.Name.Local, a.Value)
				}
			}
		case xml.EndElement:
			inTitle = false
		case xml.CharData:
			if inTitle {
				titles[string(token)] = true
			}
		}
	}
	if counts["script"] != 0 || counts["svg"] != 7 || counts["image"] != 7 || counts["h1"] != 1 || counts["b"] != 1 {
		t.Errorf("elements %v", counts)
	}
	for _, want := range []string{
		"TCP source port of packet 1 (initiator): 03 e9, not seen by the model",
		fmt.Sprintf("TCP window of packet 1 (initiator): ff ff, effect %+.4f", e.part(t, "TCP window of packet 1 (initiator)").Rounded()),
	} {
		if !titles[want] {
			t.Errorf("no part is said to be %q", want)
		}
	}
	for _, p := range e.Strongest(15) {
		if !strings.Contains(text, "<td>"+p.Name+"</td>") {
			t.Errorf("the table lacks %s", p.Name)
		}
	}
	for _, word := range []string{"second line", "<b>a|&lt;b&gt;</b>", "ZgotmplZ"} {
		if strings.Contains(text, word) != (word != "ZgotmplZ") {
			t.Errorf("%q is missing, or where it must not be", word)
		}
	}
}

func (e *Explanation) part(t *testing.T, name string) *Part {
	t.Helper()
	for i := range e.parts {
		if e.parts[i].Name == name {
			return &e.parts[i]
		}
	}
	t.Fatalf("there is no part %q", name)
	return nil
}

func TestBytesInRows(t *testing.T) {
	want := []image.Rectangle{image.Rect(30, 0, 32, 1), image.Rect(0, 1, 32, 2), image.Rect(0, 2, 1, 3)}
	var bytes []int
	for at := 30; at < 65; at++ {
		bytes = append(bytes, at)
	}
	if diff := cmp.Diff(want, rows(bytes)); diff != "" {
		t.Errorf("rows (-want +got):\n%s", diff)
	}
}

func TestErrorsOfTheEngineAreReturned(t *testing.T) {
	engine := open(t, "tiny5.onnx")
	s := exchange(t)
	answer := classify(t, engine, s)
	if err := engine.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := New(engine, s, answer, []string{"v2ray"}, "v2ray"); !errors.Is(err, classifier.ErrClosed) {
		t.Errorf("error %v", err)
	}
}
