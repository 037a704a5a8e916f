// SPDX-License-Identifier: Apache-2.0

package web

import (
	"encoding/json"
	"net/http"
	"net/url"

	"github.com/earlydrop/earlydrop/cmd/earlydrop/control"
)

// Events a page gets of the history where it does not say how many, and at most.
const (
	defaultFound = 100
	maxFound     = 500
)

// Found are events of the history.
type Found struct {
	Events []json.RawMessage `json:"events"`
	More   bool              `json:"more"` // there may be more of them
}

// searchHistory takes the parameters of control.HistoryQuery.
func (s *Server) searchHistory(r *http.Request) (any, error) {
	v, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return nil, badRequest("the query can't be read")
	}
	q, err := control.ParseHistoryQuery(v)
	switch {
	case err != nil:
		return nil, badRequest("%v", err)
	case q.Limit == 0 && q.ID == 0:
		q.Limit = defaultFound
	case q.Limit > maxFound:
		return nil, badRequest("limit %d: at most %d", q.Limit, maxFound)
	}
	events, err := s.config.Daemon.History(r.Context(), &q)
	if err != nil {
		return nil, err
	}
	found := Found{Events: []json.RawMessage{}}
	for e, err := range events {
		if err != nil {
			return nil, err
		}
		found.Events = append(found.Events, e)
	}
	found.More = len(found.Events) == q.Limit
	return found, nil
}

// maxDecisions is how many an answer to why has at most.
const maxDecisions = 100

// why takes what it is about as "of", as control.ParseWhy has it.
func (s *Server) why(r *http.Request) (any, error) {
	q, err := control.ParseWhy(r.URL.Query().Get("of"))
	if err != nil {
		return nil, badRequest("%v", err)
	}
	q.Most = maxDecisions
	return s.config.Daemon.Why(r.Context(), &q)
}

// listPairs takes the parameters of control.PairFilter.
func (s *Server) listPairs(r *http.Request) (any, error) {
	v, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return nil, badRequest("the query can't be read")
	}
	filter, err := control.ParsePairFilter(v)
	if err != nil {
		return nil, badRequest("%v", err)
	}
	return s.config.Daemon.Pairs(r.Context(), filter, "", maxListed)
}

// forget names a pair.
type forget struct {
	Initiator string `json:"initiator"`
	Server    string `json:"server"`
	VLAN      uint16 `json:"vlan"`
	InnerVLAN uint16 `json:"inner_vlan"`
}

// forgetPair has a pair treated no longer, until there is evidence anew.
func (s *Server) forgetPair(r *http.Request) (any, error) {
	var f forget
	if err := body(r, &f); err != nil {
		return nil, err
	}
	pair, err := control.ParsePair(f.Initiator, f.Server, f.VLAN, f.InnerVLAN)
	if err != nil {
		return nil, badRequest("%v", err)
	}
	return s.config.Daemon.ForgetPairs(r.Context(), control.PairFilter{Pair: &pair})
}
