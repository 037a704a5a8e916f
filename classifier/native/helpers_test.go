// SPDX-License-Identifier: Apache-2.0

//go:build cgo

package native

import (
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"testing"

	ort "github.com/yalue/onnxruntime_go"

	"github.com/earlydrop/earlydrop/classifier"
	"github.com/earlydrop/earlydrop/classifier/onnx"
	"github.com/earlydrop/earlydrop/loader/assembly"
	"github.com/earlydrop/earlydrop/loader/flow"
	"github.com/earlydrop/earlydrop/models"
	"github.com/earlydrop/earlydrop/test/onnxruntime"
)

func TestMain(m *testing.M) { os.Exit(onnxruntime.Main(m.Run)) }

const (
	imageBytes = 2 * classifier.ImagePixels
	labels     = 10 // of the model compact
)

// each returns the instructions that this machine has.
func each() (all []instructions) {
	for i := portable; i <= avx512; i++ {
		if i.there() {
			all = append(all, i)
		}
	}
	return all
}

// newCompact is the backend of a model file.
func newCompact(t testing.TB, data []byte, limits classifier.Limits, with instructions) classifier.Backend {
	t.Helper()
	w, err := recognize(data)
	if err != nil {
		t.Fatal(err)
	}
	b, err := newBackend(w, limits, with)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// startRuntime loads ONNX Runtime, by means of the package that owns it.
var startRuntime = sync.OnceValue(func() error {
	e, err := onnx.OpenFile("../testdata/tiny.onnx", onnx.Options{Workers: 1})
	if err != nil {
		return err
	}
	return e.Close()
})

// reference returns what ONNX Runtime computes of a model with so many labels.
func reference(t testing.TB, data []byte, labels int) func(t testing.TB, images []uint8) (logits []float32) {
	t.Helper()
	if err := startRuntime(); err != nil {
		t.Fatal(err)
	}
	options, err := ort.NewSessionOptions()
	if err != nil {
		t.Fatal(err)
	}
	defer options.Destroy()
	if err := options.SetIntraOpNumThreads(1); err != nil {
		t.Fatal(err)
	}
	session, err := ort.NewDynamicAdvancedSessionWithONNXData(data, []string{classifier.InputName}, []string{classifier.OutputName}, options)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := session.Destroy(); err != nil {
			t.Error(err)
		}
	})
	return func(t testing.TB, images []uint8) []float32 {
		t.Helper()
		n := int64(len(images) / imageBytes)
		logits := make([]float32, n*int64(labels))
		in, err := ort.NewTensor(ort.NewShape(n, 2, classifier.ImageSide, classifier.ImageSide), images)
		if err != nil {
			t.Fatal(err)
		}
		defer in.Destroy()
		out, err := ort.NewTensor(ort.NewShape(n, int64(labels)), logits)
		if err != nil {
			t.Fatal(err)
		}
		defer out.Destroy()
		if err := session.Run([]ort.Value{in}, []ort.Value{out}); err != nil {
			t.Fatal(err)
		}
		return logits
	}
}

// run computes images, as many at a time as the backend takes.
func run(t testing.TB, b classifier.Backend, images []uint8, labels int) []float32 {
	t.Helper()
	n := len(images) / imageBytes
	logits := make([]float32, n*labels)
	for from := 0; from < n; from += b.Limits().Batch {
		count := min(b.Limits().Batch, n-from)
		if err := b.Run(images[from*imageBytes:], count, logits[from*labels:]); err != nil {
			t.Fatal(err)
		}
	}
	return logits
}

// difference is how far two logits of the same image are from one another at most. scale is
// the largest.
func difference(got, want []float32) (most, scale float64) {
	for k := range want {
		d := math.Abs(float64(got[k]) - float64(want[k]))
		if !(d <= most) { // or no number
			most = d
		}
		scale = max(scale, math.Abs(float64(want[k])))
	}
	return most, scale
}

// goldenImages are those of the flows in the captures of the tests.
func goldenImages(t testing.TB) (images []uint8) {
	t.Helper()
	name, data := models.Default()
	m, err := classifier.ReadManifest(name, data)
	if err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob("../../test/testdata/*.pcap")
	if err != nil || len(files) < 5 {
		t.Fatalf("captures %v, %v", files, err)
	}
	for _, path := range files {
		f, err := assembly.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		err = f.Run(assembly.New(assembly.Options{}, func(_ *assembly.Flow, s *flow.Sample) {
			image := make([]uint8, imageBytes)
			classifier.Render(s, m.Mask, m.Channels, image)
			images = append(images, image...)
		}, nil), func(int64) {})
		f.Close()
		if err != nil {
			t.Fatal(err)
		}
	}
	return images
}

// row writes a row of the second plane.
func row(image []uint8, at int, fromInitiator bool, length, captured int, protocol, packets uint8) {
	side := uint8(128)
	if fromInitiator {
		side = 255
	}
	copy(image[classifier.ImagePixels+at*classifier.ImageSide:],
		[]uint8{255, side, uint8(length >> 8), uint8(length), uint8(captured >> 8), uint8(captured), protocol, packets})
}

// plausibleImage is one that a capture could have: sides that end somewhere, and as many
// packets.
func plausibleImage(r *rand.Rand) []uint8 {
	image := make([]uint8, imageBytes)
	var ends [2]int
	packets := r.IntN(25)
	for i := range packets {
		side, captured := r.IntN(2), 1+r.IntN(1+r.IntN(600))
		length := captured
		if r.IntN(4) == 0 {
			length = min(math.MaxUint16, captured+r.IntN(70000))
		}
		row(image, i, side == 0, length, captured, []uint8{128, 255}[r.IntN(2)], 1)
		ends[side] += captured
	}
	for i := range min(packets, r.IntN(9)) {
		row(image, 24+i, r.IntN(2) == 0, r.IntN(65536), r.IntN(1024), 128, uint8(1+r.IntN(24)))
	}
	for side, end := range ends {
		end = min(end, 512)
		stream := image[side*512 : side*512+end]
		low, span := r.IntN(256), 1+r.IntN(256) // from one byte again and again to any
		for i := range stream {
			stream[i] = uint8(low + r.IntN(span))
		}
	}
	return image
}

// randomImages are so many of each kind: plausible ones, and any bytes.
func randomImages(n int) (plausible, any []uint8) {
	r := rand.New(rand.NewPCG(7, 7))
	for range n {
		plausible = append(plausible, plausibleImage(r)...)
		image := make([]uint8, imageBytes)
		for i := range image {
			image[i] = uint8(r.Uint32())
		}
		any = append(any, image...)
	}
	return plausible, any
}

// edgeImages are those at the ends of what an image can say.
func edgeImages() (images []uint8) {
	add := func(write func(image []uint8)) {
		image := make([]uint8, imageBytes)
		write(image)
		images = append(images, image...)
	}
	fill := func(image []uint8, v uint8) {
		for i := range image {
			image[i] = v
		}
	}
	for _, v := range []uint8{0, 1, 127, 128, 255} {
		add(func(image []uint8) { fill(image, v) })
		add(func(image []uint8) { fill(image[:classifier.ImagePixels], v) })
		add(func(image []uint8) { fill(image[classifier.ImagePixels:], v) })
		for column := range 9 { // of each row of the packets
			add(func(image []uint8) {
				for at := range classifier.ImageSide {
					image[classifier.ImagePixels+at*classifier.ImageSide+column] = v
				}
			})
		}
	}
	// Where a side ends, in one packet and in two.
	for _, end := range []int{0, 1, 2, 15, 16, 17, 31, 32, 33, 255, 256, 257, 495, 496, 497, 511, 512, 513, 1024, 65535} {
		for _, initiator := range []bool{false, true} {
			add(func(image []uint8) {
				fill(image[:classifier.ImagePixels], 0xa5)
				row(image, 0, initiator, end, end, 128, 1)
			})
			add(func(image []uint8) {
				fill(image[:classifier.ImagePixels], 0x5a)
				row(image, 3, initiator, end, end/2, 255, 1)
				row(image, 23, initiator, end, end-end/2, 255, 1)
				row(image, 22, !initiator, 40, 40, 255, 1)
			})
		}
	}
	// Lengths around those that are known exactly, and directions around what divides them.
	for _, length := range []int{1, 2046, 2047, 2048, 2049, 32767, 65535} {
		for _, at := range []int{0, 9, 10, 23, 24, 31} {
			add(func(image []uint8) { row(image, at, true, length, 100, 128, 1) })
			add(func(image []uint8) { row(image, at, false, length, 100, 128, 255) })
		}
	}
	for _, side := range []uint8{191, 192, 193} {
		add(func(image []uint8) {
			fill(image[:classifier.ImagePixels], 0x33)
			row(image, 0, true, 300, 300, 128, 1)
			image[classifier.ImagePixels+1] = side
		})
	}
	return images
}
