// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/earlydrop/earlydrop/classifier/onnx"
	"github.com/earlydrop/earlydrop/loader"
	"github.com/earlydrop/earlydrop/loader/flow"
)

// readerFunc is a ring buffer made of a function, which is told how often it was
// called before.
type readerFunc struct {
	calls int
	read  func(call int) error
}

func (r *readerFunc) Read(*flow.Sample) error {
	r.calls++
	return r.read(r.calls - 1)
}

func (r *readerFunc) More() bool    { return false }
func (r *readerFunc) Fill() float64 { return 0 }
func (r *readerFunc) Skip() error   { return errors.New("nothing to skip") }

// A ring buffer that fails again and again ends the daemon, and not at the first
// time; one that works again in between does not, and bad records never do.
func TestLastingFailuresOfTheRingBufferEndTheDaemon(t *testing.T) {
	savedLasting, savedAgain := lastingAfter, tryAgainAfter
	lastingAfter, tryAgainAfter = 50*time.Millisecond, time.Millisecond
	defer func() { lastingAfter, tryAgainAfter = savedLasting, savedAgain }()
	engine, err := onnx.OpenFile("../../../classifier/testdata/tiny.onnx", onnx.Options{Workers: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer engine.Close()
	broken := fmt.Errorf("read the ring buffer: %w", unix.EBADF)
	bad := fmt.Errorf("%w: it claims too much", loader.ErrBadRecord)
	begin := time.Now()
	long := func() bool { return time.Since(begin) > 4*lastingAfter }
	for _, tt := range []struct {
		name  string
		read  func(call int) error
		lasts bool
	}{
		{"it fails for good", func(int) error { return broken }, true},
		{"it fails for good after a while", func(call int) error {
			if call < 100 {
				return bad
			}
			return broken
		}, true},
		{"it fails once", func(call int) error {
			if call == 0 {
				return broken
			}
			return loader.ErrClosed
		}, false},
		{"it fails now and then", func(call int) error {
			switch {
			case long():
				return loader.ErrClosed
			case call%2 == 0:
				return broken
			}
			return bad // what was read could be read
		}, false},
		{"bad records for long", func(int) error {
			if long() {
				return loader.ErrClosed
			}
			time.Sleep(time.Millisecond)
			return bad
		}, false},
		{"it is closed", func(int) error { return loader.ErrClosed }, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			begin = time.Now()
			a := newAttachment(&Gateway{config: Config{Engine: engine}}, nil, func() string { return "v0" })
			reader := &readerFunc{read: tt.read}
			err := a.read(context.Background(), reader)
			var lasting *BrokenError
			if errors.As(err, &lasting) != tt.lasts || (err != nil) != tt.lasts {
				t.Fatalf("read returned %v", err)
			}
			if !tt.lasts {
				return
			}
			if !errors.Is(err, unix.EBADF) {
				t.Error(err)
			}
			// It must not have spun.
			if most := 100 + 1 + int(time.Since(begin)/tryAgainAfter); reader.calls > most {
				t.Errorf("%d reads in %s", reader.calls, time.Since(begin))
			}
		})
	}
}

// ringOf is a ring buffer with so many records in a room for 100.
type ringOf struct {
	readerFunc
	records atomic.Int64
	skipped int
}

func (r *ringOf) Fill() float64 { return float64(r.records.Load()) / 100 }

func (r *ringOf) Skip() error {
	r.records.Add(-1)
	r.skipped++
	return nil
}

// While the classifier is behind, captures wait where they are, and the oldest give way once
// half of the ring buffer is full of them.
func TestOldestCapturesGiveWayToNewOnes(t *testing.T) {
	engine, err := onnx.OpenFile("../../../classifier/testdata/tiny.onnx", onnx.Options{Workers: 1, MaxBatch: 1, Queue: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer engine.Close()
	a := newAttachment(&Gateway{config: Config{Engine: engine}}, nil, func() string { return "v0" })
	begun, goOn := make(chan bool), make(chan bool)
	handler := func(*flow.Sample, flow.Result, error) {
		begun <- true
		<-goOn
	}
	ring := new(ringOf)
	ring.records.Store(49)
	ctx, cancel := context.WithCancel(context.Background())
	submit := func() bool { return a.submit(ctx, ring, engine.Get(), handler) }
	if !submit() {
		t.Fatal("refused by an idle classifier")
	}
	<-begun
	if !submit() {
		t.Fatal("refused with room in the queue")
	}
	// The classifier is behind, and the ring has room: the next one waits.
	waited := make(chan bool)
	go func() { waited <- submit() }()
	select {
	case <-waited:
		t.Fatal("it did not wait")
	case <-time.After(20 * time.Millisecond):
	}
	goOn <- true
	<-begun
	if !<-waited {
		t.Fatal("it gave way with room in the ring")
	}
	// Without room it gives way, with the oldest of those behind it.
	ring.records.Store(50)
	if submit() || ring.skipped != 25 || a.counts[countQueueFull].Load() != 25 {
		t.Errorf("%d captures were skipped, %d counted", ring.skipped, a.counts[countQueueFull].Load())
	}
	// At the end nobody waits any more.
	go func() { waited <- submit() }()
	cancel()
	if <-waited {
		t.Error("submitted after the end")
	}
	goOn <- true
	<-begun
	goOn <- true
}
