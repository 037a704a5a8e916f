// SPDX-License-Identifier: Apache-2.0

package classifier_test

import (
	"fmt"

	"github.com/earlydrop/earlydrop/classifier"
	"github.com/earlydrop/earlydrop/loader/flow"
)

// datagram returns a capture of one packet: Ethernet, IPv4, UDP, and four bytes.
func datagram() *flow.Sample {
	frame := []byte{
		2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 0x08, 0x00,
		0x45, 0, 0, 32, 0xab, 0xcd, 0x40, 0, 64, 17, 0, 0, 192, 0, 2, 1, 198, 51, 100, 2,
		0xc3, 0x50, 0, 53, 0, 12, 0, 0,
		'p', 'i', 'n', 'g',
	}
	s := new(flow.Sample)
	s.Reset()
	s.Packets = append(s.Packets, flow.Packet{WireLen: uint32(len(frame)), FromInitiator: true})
	s.Data = append(s.Data, frame...)
	return s
}

// What a model file says of itself is read without computing anything.
func ExampleReadManifestFile() {
	m, err := classifier.ReadManifestFile("testdata/tiny5.onnx")
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(m.Labels)
	fmt.Println(m.Mask, m.Channels)
	fmt.Println(m.Threshold("v2ray"), m.AnyThreshold)
	// Output:
	// [background shadowsocks v2ray]
	// paper [byte direction payload length time]
	// 0.8 0.9
}

// Addresses and ports are replaced by bytes that depend on the capture only; the
// payload stays.
func ExampleRecipe_Mask() {
	s := datagram()
	var masked [flow.CaptureBytes]uint8
	n := classifier.RecipePaper.Mask(s, &masked)
	fmt.Printf("% x\n% x\n", s.Data[26:34], masked[26:34])
	fmt.Printf("%s\n", masked[n-4:n])
	// Output:
	// c0 00 02 01 c6 33 64 02
	// fb d1 43 d2 16 5a 87 89
	// ping
}

// An image has a plane for each channel, and a pixel for each byte of the capture.
func ExampleRender() {
	channels := []classifier.Channel{classifier.ChannelByte, classifier.ChannelPayload}
	image := make([]uint8, len(channels)*classifier.ImagePixels)
	s := datagram()
	classifier.Render(s, classifier.RecipePaper, channels, image)
	for c, channel := range channels {
		plane := image[c*classifier.ImagePixels:][:classifier.ImagePixels]
		fmt.Println(channel, plane[40:48])
	}
	// Output:
	// byte [0 0 112 105 110 103 0 0]
	// payload [128 128 255 255 255 255 0 0]
}

// brightness is a backend whose network has one weight: the first label's logit is how
// bright the image is.
type brightness struct{ labels, imageBytes int }

func (b brightness) Run(images []uint8, n int, logits []float32) error {
	clear(logits[:n*b.labels])
	for i := range n {
		for _, pixel := range images[i*b.imageBytes : (i+1)*b.imageBytes] {
			logits[i*b.labels] += float32(pixel) / 1000
		}
	}
	return nil
}

func (b brightness) Limits() classifier.Limits { return classifier.Limits{Runs: 1, Batch: 8} }
func (b brightness) Device() string            { return "cpu" }
func (b brightness) Close() error              { return nil }

// Any Backend can compute what an Engine asks for.
func ExampleNewEngine() {
	m, err := classifier.ReadManifestFile("testdata/tiny5.onnx")
	if err != nil {
		fmt.Println(err)
		return
	}
	m.Check = nil // the logits of the model's own network, which this one has not
	backend := brightness{labels: len(m.Labels), imageBytes: len(m.Channels) * classifier.ImagePixels}
	e, err := classifier.NewEngine("tiny5.onnx", m, backend, 0)
	if err != nil {
		fmt.Println(err)
		return
	}
	defer e.Close()
	results := make([]flow.Result, 1)
	if err := e.Classify([]*flow.Sample{datagram()}, results); err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(results[0].Class)
	// Output: background
}
