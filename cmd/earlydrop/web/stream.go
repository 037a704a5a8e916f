// SPDX-License-Identifier: Apache-2.0

package web

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/earlydrop/earlydrop/cmd/earlydrop/control"
	"github.com/earlydrop/earlydrop/cmd/earlydrop/event"
)

const (
	maxStreams   = 16                     // pages that follow at a time
	batchEvery   = 250 * time.Millisecond // nobody reads faster
	maxBatch     = 50                     // events in it; of more, those that tell least are left out
	batchWaiting = 8                      // batches that may wait for a page that reads slowly
	stillThere   = 15 * time.Second       // how often a page is written to at least
	retryAfter   = time.Second            // a daemon that does not answer is asked again
)

// batch is a line of the stream.
type batch struct {
	Events  []event.Event `json:"events,omitempty"`
	LeftOut uint64        `json:"left_out,omitempty"` // events that are not among them
	Error   string        `json:"error,omitempty"`    // why there are none
}

// hub reads the events of a daemon once for all pages that follow, and as long as there are
// some: the daemon has few streams to give.
type hub struct {
	ctx     context.Context
	daemon  *control.Client
	reading sync.WaitGroup

	mu    sync.Mutex
	pages map[*page]struct{}
	stop  context.CancelFunc // of the reading; nil: nobody follows
	state string             // why no events come; "" if they do
}

// page is one that follows.
type page struct {
	lines  chan []byte
	missed atomic.Uint64 // events that did not fit
}

func newHub(ctx context.Context, daemon *control.Client) *hub {
	return &hub{ctx: ctx, daemon: daemon, pages: map[*page]struct{}{}}
}

// follow returns a page that gets lines until leave, nil if there are too many.
func (h *hub) follow() (p *page, leave func()) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.pages) == maxStreams || h.ctx.Err() != nil {
		return nil, nil
	}
	p = &page{lines: make(chan []byte, batchWaiting)}
	h.pages[p] = struct{}{}
	if h.stop == nil {
		ctx, stop := context.WithCancel(h.ctx)
		h.stop = stop
		h.reading.Go(func() { h.read(ctx) })
	} else if h.state != "" {
		p.lines <- line(&batch{Error: h.state})
	}
	return p, sync.OnceFunc(func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		delete(h.pages, p)
		if len(h.pages) == 0 {
			h.stop()
			h.stop, h.state = nil, ""
		}
	})
}

// wait waits until nothing is read any more.
func (h *hub) wait() { h.reading.Wait() }

// read gives the daemon's events to all pages, until ctx ends.
func (h *hub) read(ctx context.Context) {
	for ctx.Err() == nil {
		events, err := h.daemon.Events(ctx, &control.EventFilter{})
		if err == nil {
			h.tell(ctx, "")
			err = h.pass(ctx, func(yield func(event.Event) bool) error {
				for e, err := range events {
					if err != nil {
						return err
					}
					if !yield(e) {
						return nil
					}
				}
				return errors.New("the daemon has ended")
			})
		}
		if ctx.Err() != nil {
			return
		}
		h.tell(ctx, err.Error())
		select {
		case <-ctx.Done():
		case <-time.After(retryAfter):
		}
	}
}

// pass gives what next yields to the pages, in batches.
func (h *hub) pass(ctx context.Context, next func(func(event.Event) bool) error) error {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	one := make(chan event.Event)
	ended := make(chan error, 1)
	go func() {
		defer close(one)
		ended <- next(func(e event.Event) bool {
			select {
			case one <- e:
				return true
			case <-ctx.Done():
				return false
			}
		})
	}()
	var b batch
	tick := time.NewTicker(batchEvery)
	defer tick.Stop()
	for {
		select {
		case e, more := <-one:
			if !more {
				h.publish(&b)
				return <-ended
			}
			b.add(e)
		case <-tick.C:
			h.publish(&b)
			b = batch{}
		}
	}
}

// add takes an event into a batch. Where there are too many, flows that pass undetected go
// first, then others that come late.
func (b *batch) add(e event.Event) {
	if l, ok := e.(*event.Lost); ok { // on the way from the daemon
		b.LeftOut += l.EventsLost
		return
	}
	if len(b.Events) < maxBatch {
		b.Events = append(b.Events, e)
		return
	}
	b.LeftOut++
	if tellsLittle(e) {
		return
	}
	for i := len(b.Events) - 1; i >= 0; i-- {
		if tellsLittle(b.Events[i]) {
			b.Events = append(append(b.Events[:i], b.Events[i+1:]...), e)
			return
		}
	}
}

func tellsLittle(e event.Event) bool {
	v, ok := e.(*event.Verdict)
	return ok && !v.Detected
}

// tell has all pages know why no events come, or that they do.
func (h *hub) tell(ctx context.Context, state string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if ctx.Err() != nil || h.state == state {
		return
	}
	h.state = state
	h.send(&batch{Error: state})
}

func (h *hub) publish(b *batch) {
	if len(b.Events) == 0 && b.LeftOut == 0 {
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.send(b)
}

// send gives a batch to all pages. The caller has the lock.
func (h *hub) send(b *batch) {
	text := line(b)
	for p := range h.pages {
		select {
		case p.lines <- text:
		default:
			p.missed.Add(uint64(len(b.Events)) + b.LeftOut)
		}
	}
}

func line(b *batch) []byte {
	text, err := json.Marshal(b)
	if err != nil {
		slog.Error("events have no JSON", "error", err)
		text = []byte("{}")
	}
	return append(text, '\n')
}

// streamEvents writes events as they come: a batch on a line.
func (s *Server) streamEvents(w http.ResponseWriter, r *http.Request) {
	p, leave := s.events.follow()
	if p == nil {
		fail(w, http.StatusServiceUnavailable, fmt.Sprintf("too many pages follow the events: at most %d at a time", maxStreams))
		return
	}
	defer leave()
	out := http.NewResponseController(w)
	_ = out.SetReadDeadline(time.Time{}) // it has no end
	w.Header().Set("Content-Type", "application/x-ndjson")
	write := func(text []byte) error {
		_ = out.SetWriteDeadline(time.Now().Add(answerWithin))
		if _, err := w.Write(text); err != nil {
			return err
		}
		return out.Flush()
	}
	if write([]byte("{}\n")) != nil {
		return
	}
	still := time.NewTicker(stillThere)
	defer still.Stop()
	for {
		var text []byte
		select {
		case <-r.Context().Done():
			return
		case text = <-p.lines:
			if n := p.missed.Swap(0); n > 0 {
				text = append(line(&batch{LeftOut: n}), text...)
			}
		case <-still.C:
			text = []byte("{}\n")
		}
		if write(text) != nil {
			return
		}
	}
}
