// SPDX-License-Identifier: Apache-2.0

package web

import (
	"context"
	"fmt"
	"net/http"
	"sync"
	"time"

	"github.com/earlydrop/earlydrop/classifier/explain"
	"github.com/earlydrop/earlydrop/cmd/earlydrop/control"
	"github.com/earlydrop/earlydrop/cmd/earlydrop/event"
)

// Explained is what the verdict on a flow depends on.
type Explained struct {
	Class      string  `json:"class"` // as the model says now
	Confidence float64 `json:"confidence"`
	Model      string  `json:"model"` // name and version of the one that was asked
	*explain.View
}

// explainWithin bounds an explanation: the model is asked about thousands of captures.
const explainWithin = time.Minute

// keptExplained is how many explanations are remembered.
const keptExplained = 16

// explanations are made one at a time, as each takes all CPUs for a moment.
type explanations struct {
	explain func(ctx context.Context, v *event.Verdict, capture []byte) (*Explained, error)
	one     chan struct{} // held by who makes one

	mu    sync.Mutex
	made  map[event.ID]*Explained
	order []event.ID // of made, the oldest first
}

func (e *explanations) known(id event.ID) *Explained {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.made[id]
}

func (e *explanations) remember(id event.ID, x *Explained) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.made == nil {
		e.made = map[event.ID]*Explained{}
	}
	if len(e.order) == keptExplained {
		delete(e.made, e.order[0])
		e.order = e.order[1:]
	}
	e.made[id], e.order = x, append(e.order, id)
}

// getExplanation answers with what the verdict of an event depends on, out of the capture that
// the daemon keeps.
func (s *Server) getExplanation(r *http.Request) (any, error) {
	id, err := event.ParseID(r.URL.Query().Get("id"))
	if err != nil {
		return nil, badRequest("id: %v", err)
	}
	x := &s.explained
	if x.explain == nil {
		return nil, &control.Error{Status: http.StatusNotFound, Message: "this server has no model that could say"}
	}
	select {
	case x.one <- struct{}{}:
		defer func() { <-x.one }()
	case <-r.Context().Done():
		return nil, &control.Error{Status: http.StatusServiceUnavailable, Message: "others are being explained: try again"}
	}
	if known := x.known(id); known != nil {
		return known, nil
	}
	v, err := s.verdict(r.Context(), id)
	if err != nil {
		return nil, err
	}
	capture, err := s.config.Daemon.Capture(r.Context(), id)
	if err != nil {
		return nil, err
	}
	made, err := x.explain(r.Context(), v, capture)
	if err != nil {
		return nil, &control.Error{Status: http.StatusUnprocessableEntity, Message: err.Error()}
	}
	x.remember(id, made)
	return made, nil
}

// verdict returns a verdict of the history.
func (s *Server) verdict(ctx context.Context, id event.ID) (*event.Verdict, error) {
	events, err := s.config.Daemon.History(ctx, &control.HistoryQuery{ID: id})
	if err != nil {
		return nil, err
	}
	for line, err := range events {
		if err != nil {
			return nil, err
		}
		e, err := event.Decode(line)
		if err != nil {
			return nil, err
		}
		if v, ok := e.(*event.Verdict); ok {
			return v, nil
		}
	}
	return nil, &control.Error{Status: http.StatusNotFound, Message: fmt.Sprintf("event %s is no verdict", id)}
}
