// SPDX-License-Identifier: Apache-2.0

package control

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"time"

	"github.com/earlydrop/earlydrop/cmd/earlydrop/event"
	"github.com/earlydrop/earlydrop/cmd/earlydrop/history"
)

// How many events an answer has at most that the history is asked for, and how many without a
// limit.
const (
	MaxHistory     = 10000
	DefaultHistory = 1000
)

// HistoryQuery says which events of the history are asked for: those that the filter fits, of a
// time. As parameters, besides those of the filter, it is since, until (RFC 3339), after, before
// (IDs), limit, and order (newest or oldest, which comes first); or id alone. After an answer
// with as many events as the limit is there may be more: they are before, or after, the ID of the
// last one.
type HistoryQuery struct {
	EventFilter
	Since, Until  time.Time // zero: no bound
	After, Before event.ID  // 0: no bound
	Limit         int       // 1 to MaxHistory; 0: DefaultHistory
	Oldest        bool      // the oldest first
	ID            event.ID  // this event alone, if it is not 0
}

// historyKeys are the parameters of a HistoryQuery besides those of its filter.
var historyKeys = []string{"since", "until", "after", "before", "limit", "order", "id"}

// ParseHistoryQuery reads the parameters of a HistoryQuery.
func ParseHistoryQuery(v url.Values) (q HistoryQuery, err error) {
	if err := onlyKeys(v, slices.Concat(EventFilterKeys, historyKeys)); err != nil {
		return q, err
	}
	filter := url.Values{}
	for key, value := range v {
		if slices.Contains(EventFilterKeys, key) {
			filter[key] = value
		}
	}
	if v.Has("id") {
		if len(v) > 1 {
			return q, errors.New("id names one event: leave out all else")
		}
		q.ID, err = event.ParseID(v.Get("id"))
		return q, err
	}
	f, err := ParseEventFilter(filter)
	if err != nil {
		return q, err
	}
	q.EventFilter = *f
	for key, at := range map[string]*time.Time{"since": &q.Since, "until": &q.Until} {
		if v.Has(key) {
			if *at, err = time.Parse(time.RFC3339Nano, v.Get(key)); err != nil {
				return q, fmt.Errorf("%s %q: write a time as 2026-11-25T13:00:00Z", key, v.Get(key))
			}
		}
	}
	for key, id := range map[string]*event.ID{"after": &q.After, "before": &q.Before} {
		if v.Has(key) {
			if *id, err = event.ParseID(v.Get(key)); err != nil {
				return q, fmt.Errorf("%s: %w", key, err)
			}
		}
	}
	if v.Has("limit") {
		if q.Limit, err = strconv.Atoi(v.Get("limit")); err != nil || q.Limit < 1 || q.Limit > MaxHistory {
			return q, fmt.Errorf("limit %q: use a whole number from 1 to %d", v.Get("limit"), MaxHistory)
		}
	}
	if order := v.Get("order"); v.Has("order") {
		if order != "newest" && order != "oldest" {
			return q, fmt.Errorf("order can't be %q%s", order, oneOf(order, []string{"newest", "oldest"}))
		}
		q.Oldest = order == "oldest"
	}
	return q, nil
}

// Values returns the query as parameters.
func (q *HistoryQuery) Values() url.Values {
	v := q.EventFilter.Values()
	for key, at := range map[string]time.Time{"since": q.Since, "until": q.Until} {
		if !at.IsZero() {
			v.Set(key, at.UTC().Format(time.RFC3339Nano))
		}
	}
	for key, id := range map[string]event.ID{"after": q.After, "before": q.Before, "id": q.ID} {
		if id != 0 {
			v.Set(key, id.String())
		}
	}
	if q.Limit != 0 {
		v.Set("limit", strconv.Itoa(q.Limit))
	}
	if q.Oldest {
		v.Set("order", "oldest")
	}
	return v
}

// Search returns the query as the history takes it.
func (q *HistoryQuery) Search() *history.Query {
	s := &history.Query{Since: q.Since, Until: q.Until, After: q.After, Before: q.Before, Limit: q.Limit, Oldest: q.Oldest}
	if s.Limit == 0 {
		s.Limit = DefaultHistory
	}
	if q.ID != 0 {
		s.After, s.Before = q.ID-1, q.ID+1
		return s
	}
	s.Need, s.Fits = q.needs(), q.Fits
	return s
}

// needs returns keys, as history.Query.Need has them.
func (f *EventFilter) needs() (all [][]history.Key) {
	words := func(values []string, key func(string) history.Key) {
		if len(values) == 0 {
			return
		}
		var any []history.Key
		for _, v := range values {
			any = append(any, key(v))
		}
		all = append(all, any)
	}
	words(f.Event, history.EventKey)
	words(f.Interface, history.InterfaceKey)
	words(f.Class, history.ClassKey)
	words(f.Rule, history.RuleKey)
	words(f.Decision, history.DecisionKey)
	for _, networks := range [][]netip.Prefix{f.CIDR, f.Src, f.Dst} {
		var any []history.Key
		for _, p := range networks {
			if k, ok := history.NetworkKey(p); ok {
				any = append(any, k)
			}
		}
		if len(any) > 0 && len(any) == len(networks) {
			all = append(all, any)
		}
	}
	if len(f.Server) > 0 {
		var any []history.Key
		for _, server := range f.Server {
			any = append(any, history.ServerKey(server))
		}
		all = append(all, any)
	}
	return all
}

// searchWithin bounds a search: of a file of many gigabytes it would go on for long.
const searchWithin = time.Minute

// searchHistory answers with events that are kept.
func (s *Server) searchHistory(r *request) error {
	v, err := r.query(slices.Concat(EventFilterKeys, historyKeys)...)
	if err != nil {
		return err
	}
	q, err := ParseHistoryQuery(v)
	if err != nil {
		return badRequest("%v", err)
	}
	h := s.gateway.History()
	if h == nil {
		return noHistory()
	}
	giveBack, ok := s.searches.take(r.peer.uid)
	if !ok {
		return &Error{http.StatusServiceUnavailable, fmt.Sprintf("too many searches: at most %d at a time", maxSearches)}
	}
	defer giveBack()
	ctx, cancel := context.WithTimeout(r.Context(), searchWithin)
	defer cancel()
	n, out := 0, bufio.NewWriter(r.w)
	deadline := http.NewResponseController(r.w)
	for line, err := range h.Search(ctx, q.Search()) {
		switch {
		case err != nil && n == 0:
			return &Error{http.StatusServiceUnavailable, err.Error()}
		case err != nil: // events were sent already
			line, _ = json.Marshal(&Error{0, err.Error()})
		case n == 0:
			r.beginAnswer(http.StatusOK, "application/x-ndjson")
		}
		if n%256 == 0 {
			_ = deadline.SetWriteDeadline(time.Now().Add(answerWithin))
		}
		n++
		if _, err := out.Write(append(line, '\n')); err != nil {
			return nil // nobody reads it
		}
	}
	if n == 0 {
		if q.ID != 0 {
			return &Error{http.StatusNotFound, fmt.Sprintf("event %s is not in the history", q.ID)}
		}
		r.beginAnswer(http.StatusOK, "application/x-ndjson")
	}
	_ = out.Flush()
	return nil
}

// History returns events that the daemon keeps, as JSON. The error is the last pair; it is
// ErrNotFound where the daemon keeps none, or has no event of the ID that is asked for. What came
// within the last second may be missing. The sequence can be run through once.
func (c *Client) History(ctx context.Context, q *HistoryQuery) (iter.Seq2[json.RawMessage, error], error) {
	r, err := c.do(ctx, "GET", "/v1/history", q.Values(), nil)
	if err != nil {
		return nil, err
	}
	return func(yield func(json.RawMessage, error) bool) {
		defer r.Body.Close()
		for d := json.NewDecoder(r.Body); ; {
			var line json.RawMessage
			err := d.Decode(&line)
			if errors.Is(err, io.EOF) {
				return
			}
			var told struct {
				Event string
				Error string
			}
			if err == nil {
				err = json.Unmarshal(line, &told)
			}
			if err == nil && told.Event == "" {
				err = &Error{http.StatusInternalServerError, told.Error}
			}
			if err != nil {
				yield(nil, fmt.Errorf("history of %s: %w", c.path, err))
				return
			}
			if !yield(line, nil) {
				return
			}
		}
	}, nil
}

// getCapture answers with the capture of an event.
func (s *Server) getCapture(r *request) error {
	v, err := r.query("id")
	if err != nil {
		return err
	}
	id, err := event.ParseID(v.Get("id"))
	if err != nil {
		return badRequest("id: %v", err)
	}
	h := s.gateway.History()
	if h == nil {
		return noHistory()
	}
	file, err := h.Capture(r.Context(), id)
	switch {
	case errors.Is(err, history.ErrNotFound):
		return &Error{http.StatusNotFound, err.Error()}
	case err != nil:
		return &Error{http.StatusServiceUnavailable, err.Error()}
	}
	r.beginAnswer(http.StatusOK, "application/x-pcapng")
	_, _ = r.w.Write(file) // who does not read it does not want it
	return nil
}

func noHistory() error {
	return &Error{http.StatusNotFound, "the daemon keeps no history"}
}

// Capture returns the capture that the daemon keeps of an event, as a pcapng file. The error is
// ErrNotFound where it keeps none.
func (c *Client) Capture(ctx context.Context, id event.ID) ([]byte, error) {
	r, err := c.do(ctx, "GET", "/v1/capture", url.Values{"id": {id.String()}}, nil)
	if err != nil {
		return nil, err
	}
	defer r.Body.Close()
	file, err := io.ReadAll(r.Body)
	if err != nil {
		return nil, fmt.Errorf("read the answer of %s: %w", c.path, err)
	}
	return file, nil
}
