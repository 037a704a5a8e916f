// SPDX-License-Identifier: Apache-2.0

package history

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"iter"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/earlydrop/earlydrop/cmd/earlydrop/event"
	"github.com/earlydrop/earlydrop/cmd/earlydrop/event/eventlog"
	"github.com/earlydrop/earlydrop/loader/flow"
)

// Defaults of Options: what a small gateway has room for. An event takes about 170 bytes, so
// 256 MiB are one and a half million of them.
const (
	DefaultBytes  = 256 << 20
	DefaultAge    = 30 * 24 * time.Hour
	DefaultPasses = "1/s"
	// LeastBytes is the least that Options.Bytes may be.
	LeastBytes = 4 << 20
)

// Options says where a history is, and how much is kept.
type Options struct {
	// Path of the file. It is made with the first event; its folder has to be there.
	Path string
	// Bytes bounds the file's size (optional, DefaultBytes), and Age how old events get
	// (optional, DefaultAge). The oldest make room.
	Bytes int64
	Age   time.Duration
	// Passes (optional) says which verdicts are kept of flows that pass undetected; without it
	// DefaultPasses.
	Passes *eventlog.Passes
	// Captures (optional) has captures kept as well.
	Captures *Captures

	syncEvery, retryEvery time.Duration // of tests; else the constants
}

const (
	// syncEvery is how often events are written so that they survive whatever comes.
	syncEvery = time.Second
	// retryEvery is how long a file is left alone that can't be written.
	retryEvery = 10 * time.Second
	// tidyEvery is how often it is looked for what is too old or too much.
	tidyEvery = 10 * time.Second
	// queueLen is how many events may wait. The last quarter is for those that must not be lost.
	queueLen = 16384
)

// Status tells of a history.
type Status struct {
	File   string    `json:"file"`
	Events uint64    `json:"events"`          // in the file
	Bytes  int64     `json:"bytes"`           // of the file that are in use
	Limit  int64     `json:"limit_bytes"`     // the most that Bytes may be
	Oldest time.Time `json:"oldest,omitzero"` // event
	Lost   uint64    `json:"lost"`            // events that are not in it since the daemon began, though they should be
	// CapturesLost is the same of captures.
	CapturesLost uint64 `json:"captures_lost,omitempty"`
	Error        string `json:"error,omitempty"` // why nothing can be written now
}

// History is a file that a daemon keeps events in. Its methods are safe for concurrent use.
// Whatever is wrong with the file is told in a warning; events are lost and counted then, and it
// is tried again from time to time.
type History struct {
	o     Options
	queue chan item
	lost  atomic.Uint64
	// capturesLost counts captures that are not in the file, though they should be.
	capturesLost atomic.Uint64
	ended        chan struct{} // closed when all is written

	closing sync.RWMutex // of the queue
	closed  bool

	suspect atomic.Bool // a search has found that the file is damaged

	mu     sync.Mutex // of what follows
	status Status
	synced event.ID // the latest event that is written for good
	reader *Reader  // nil: there is none now
}

// item is what waits to be written.
type item struct {
	event  event.Event
	sample *flow.Sample // of a verdict whose capture is kept; else nil
}

// Open returns the history of a file, which need not be there, and begins to write it.
func Open(o Options) (*History, error) {
	if o.Bytes == 0 {
		o.Bytes = DefaultBytes
	}
	if o.Age == 0 {
		o.Age = DefaultAge
	}
	if o.Passes == nil {
		o.Passes, _ = eventlog.ParsePasses(DefaultPasses)
	}
	if o.Captures != nil {
		c := *o.Captures
		c.Bytes, c.Age = cmp.Or(c.Bytes, DefaultCaptureBytes), cmp.Or(c.Age, DefaultCaptureAge)
		o.Captures = &c
	}
	if o.syncEvery == 0 {
		o.syncEvery, o.retryEvery = syncEvery, retryEvery
	}
	h := &History{o: o, queue: make(chan item, queueLen), ended: make(chan struct{})}
	h.status.File, h.status.Limit = o.Path, o.Bytes
	w, err := newWriter(h)
	if err != nil {
		return nil, err
	}
	w.first()
	go w.run()
	return h, nil
}

// LastID returns the greatest ID that is in the file for good.
func (h *History) LastID() event.ID {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.synced
}

// Wants reports whether the verdict on a flow is to be kept.
func (h *History) Wants(detected bool, at time.Time) bool {
	return h != nil && (detected || h.o.Passes.Allow(at))
}

// Keep queues an event, which has an ID and is not changed any more. It does not wait: where the
// queue is full the event is lost and counted, verdicts on flows that pass undetected first.
func (h *History) Keep(e event.Event) {
	if h != nil {
		h.keep(item{event: e})
	}
}

// KeepVerdict is Keep with what was captured of the flow, which is kept as well if that is asked
// for. The sample is not used any more when it returns.
func (h *History) KeepVerdict(v *event.Verdict, s *flow.Sample) {
	if h == nil {
		return
	}
	i := item{event: v}
	switch {
	case h.o.Captures == nil || !v.Treats():
	case len(h.queue) >= queueLen/2: // captures are lost first
		h.capturesLost.Add(1)
	default:
		i.sample = new(flow.Sample)
		i.sample.CopyFrom(s)
	}
	h.keep(i)
}

func (h *History) keep(i item) {
	h.closing.RLock()
	defer h.closing.RUnlock()
	v, ok := i.event.(*event.Verdict)
	if h.closed || ok && !v.Detected && len(h.queue) >= queueLen*3/4 {
		h.lost.Add(1)
		return
	}
	select {
	case h.queue <- i:
	default:
		h.lost.Add(1)
	}
}

// Status tells how the history is. It returns nil where there is none.
func (h *History) Status() *Status {
	if h == nil {
		return nil
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	s := h.status
	s.Lost, s.CapturesLost = h.lost.Load(), h.capturesLost.Load()
	return &s
}

// errNoReader is the error of a search where the file can't be read.
var errNoReader = errors.New("the history can't be read now")

func (h *History) current() (*Reader, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	switch {
	case h.reader != nil:
		return h.reader, nil
	case h.status.Error != "":
		return nil, errors.New(errNoReader.Error() + ": " + h.status.Error)
	}
	return nil, nil // there is no file yet
}

// Search is explained at Reader.Search. What came within the last second may be missing.
func (h *History) Search(ctx context.Context, q *Query) iter.Seq2[json.RawMessage, error] {
	r, err := h.current()
	switch {
	case err != nil:
		return func(yield func(json.RawMessage, error) bool) { yield(nil, err) }
	case r == nil:
		return func(func(json.RawMessage, error) bool) {}
	}
	return r.Search(ctx, q)
}

// Close writes what waits and closes the file. It does nothing of none.
func (h *History) Close() {
	if h == nil {
		return
	}
	h.closing.Lock()
	if !h.closed {
		h.closed = true
		close(h.queue)
	}
	h.closing.Unlock()
	<-h.ended
	if n := h.lost.Load(); n > 0 {
		slog.Warn("events are missing in the history", "file", h.o.Path, "lost", n)
	}
}
