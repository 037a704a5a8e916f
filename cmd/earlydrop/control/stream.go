// SPDX-License-Identifier: Apache-2.0

package control

import (
	"encoding/json"
	"fmt"
	"net/http"
	"time"

	"github.com/earlydrop/earlydrop/cmd/earlydrop/event"
)

const (
	// streamWaiting is how many events may wait for a client that reads slowly, and
	// tellLost how often it is told how many did not fit.
	streamWaiting = 4096
	tellLost      = time.Second
)

// streamEvents writes events until the client goes, or the gateway ends. Who does not
// read holds up only this: events that do not fit are lost and counted.
func (s *Server) streamEvents(r *request) error {
	v, err := r.query(EventFilterKeys...)
	if err != nil {
		return err
	}
	filter, err := ParseEventFilter(v)
	if err != nil {
		return badRequest("%v", err)
	}
	giveBack, ok := s.streams.take(r.peer.uid)
	if !ok {
		return &Error{http.StatusServiceUnavailable, fmt.Sprintf("too many streams: at most %d at a time", maxStreams)}
	}
	defer giveBack()
	follower := s.gateway.Follow(streamWaiting)
	defer follower.Close()

	// It has no end: no time is set for it.
	out := http.NewResponseController(r.w)
	_ = out.SetReadDeadline(time.Time{})
	r.beginAnswer(http.StatusOK, "application/x-ndjson")
	_ = out.SetWriteDeadline(time.Time{})
	if out.Flush() != nil {
		return nil
	}
	enc := json.NewEncoder(r.w)
	tick := time.NewTicker(tellLost)
	defer tick.Stop()
	events := follower.Events()
	for {
		var e event.Event
		select {
		case <-r.Context().Done():
			return nil
		case <-tick.C:
			if n := follower.TakeLost(); n > 0 {
				e = &event.Lost{Time: time.Now(), EventsLost: n}
			}
		case next, more := <-events:
			if !more {
				return nil
			}
			if filter.Match(next) {
				e = next
			}
		}
		if e != nil && enc.Encode(e) != nil {
			return nil // the client is gone
		}
		if len(events) == 0 && out.Flush() != nil {
			return nil
		}
	}
}
