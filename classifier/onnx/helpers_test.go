// SPDX-License-Identifier: Apache-2.0

//go:build cgo

package onnx

import (
	"encoding/binary"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/earlydrop/earlydrop/classifier"
	"github.com/earlydrop/earlydrop/loader/flow"
)

// modelFolder is that of the small models.
const modelFolder = "../testdata"

// maxDifference is the tolerance between the results of different batch sizes.
const maxDifference = 1e-5

func readModel(t testing.TB, name string) []byte {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(modelFolder, name))
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// openEngine opens a small model and closes it when the test ends.
func openEngine(t testing.TB, name string, opts Options) *classifier.Engine {
	t.Helper()
	e, err := Open(name, readModel(t, name), opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := e.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return e
}

// randomSample returns a capture of a TCP connection whose bytes depend on seed only.
func randomSample(seed uint64) *flow.Sample {
	r := rand.New(rand.NewPCG(seed, 1))
	s := new(flow.Sample)
	s.Reset()
	for len(s.Data) < flow.CaptureBytes && len(s.Packets) < flow.MaxPackets {
		const ethernet, ipv4, tcp = 14, 20, 20
		frame := make([]byte, ethernet+ipv4+tcp+r.IntN(300))
		for i := range frame {
			frame[i] = uint8(r.Uint32())
		}
		binary.BigEndian.PutUint16(frame[12:], 0x0800)
		frame[ethernet] = 4<<4 | ipv4/4
		binary.BigEndian.PutUint16(frame[ethernet+2:], uint16(len(frame)-ethernet))
		binary.BigEndian.PutUint16(frame[ethernet+6:], 0) // no fragment
		frame[ethernet+9] = uint8(flow.TCP)
		frame[ethernet+ipv4+12] = tcp / 4 << 4
		s.Packets = append(s.Packets, flow.Packet{
			Offset:        uint16(len(s.Data)),
			WireLen:       uint32(len(frame)),
			FromInitiator: r.IntN(2) == 0,
			Time:          time.Duration(len(s.Data)) * time.Millisecond,
		})
		s.Data = append(s.Data, frame[:min(len(frame), flow.CaptureBytes-len(s.Data))]...)
	}
	return s
}

// randomSamples returns the samples of the seeds 0 to n-1.
func randomSamples(n int) []*flow.Sample {
	samples := make([]*flow.Sample, n)
	for i := range samples {
		samples[i] = randomSample(uint64(i))
	}
	return samples
}

func compareResults(t *testing.T, i int, got, want flow.Result) {
	t.Helper()
	for k := range want.Scores {
		if math.Abs(got.Scores[k]-want.Scores[k]) > maxDifference {
			t.Fatalf("sample %d: scores %v, want %v", i, got.Scores, want.Scores)
		}
	}
	if got.Class != want.Class || math.Abs(got.Confidence-want.Confidence) > maxDifference {
		t.Fatalf("sample %d: %s %v, want %s %v", i, got.Class, got.Confidence, want.Class, want.Confidence)
	}
}
