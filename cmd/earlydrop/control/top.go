// SPDX-License-Identifier: Apache-2.0

package control

import (
	"context"
	"net/http"
	"net/url"
	"strconv"

	"github.com/earlydrop/earlydrop/cmd/earlydrop/status"
)

// TopGateway is the part of Gateway that GET /v1/top asks.
type TopGateway interface {
	// Top returns one look at all there is, with at least so many of each list where there are
	// as many.
	Top(n int) (*status.Top, error)
}

// How many of each list a client gets that does not say, and at most.
const (
	defaultTop = 50
	maxTop     = 1000
)

func (s *Server) getTop(r *request) error {
	v, err := r.query("limit")
	if err != nil {
		return err
	}
	limit := defaultTop
	if v.Has("limit") {
		if limit, err = strconv.Atoi(v.Get("limit")); err != nil || limit < 1 || limit > maxTop {
			return badRequest("limit %q: use a whole number from 1 to %d", v.Get("limit"), maxTop)
		}
	}
	s.walking.Lock()
	top, err := s.gateway.Top(limit)
	s.walking.Unlock()
	if err != nil {
		return err
	}
	r.reply(http.StatusOK, top)
	return nil
}

// Top returns one look at all there is, for a live view. Limit is how many of each list there
// are at least where there are as many, 1 to 1000, or 0 for 50. Process ids are as of About.
func (c *Client) Top(ctx context.Context, limit int) (*status.Top, error) {
	query := url.Values{}
	if limit != 0 {
		query.Set("limit", strconv.Itoa(limit))
	}
	t := new(status.Top)
	err := c.call(ctx, "GET", "/v1/top", query, nil, t)
	c.ownIDs(&t.Report)
	return t, err
}

// ownIDs puts the process id of the daemon in as it is seen from here.
func (c *Client) ownIDs(r *status.Report) {
	r.PID = int(c.peer.Load())
	for _, s := range r.Interfaces {
		s.PID = r.PID
	}
}
