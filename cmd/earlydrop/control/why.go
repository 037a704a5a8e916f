// SPDX-License-Identifier: Apache-2.0

package control

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"
	"strings"

	"github.com/earlydrop/earlydrop/cmd/earlydrop/why"
)

// defaultDecisions is how many an answer has where nobody says.
const defaultDecisions = 20

// ParseWhy reads what decisions are asked about: ADDRESS, ADDRESS:PORT or ADDRESS/LENGTH, an
// IPv6 address with a port in brackets.
func ParseWhy(of string) (q why.Query, err error) {
	q.Most = defaultDecisions
	if end, err := netip.ParseAddrPort(of); err == nil {
		if end.Port() == 0 {
			return q, fmt.Errorf("%q: there is no port 0; leave it out for all ports", of)
		}
		q.Port = end.Port()
		of = end.Addr().String()
	} else if inner, ok := strings.CutPrefix(of, "["); ok && strings.HasSuffix(inner, "]") {
		of = strings.TrimSuffix(inner, "]")
	} else if addr, port, ok := strings.Cut(of, ":"); ok && !strings.Contains(port, ":") {
		if a, err := netip.ParseAddr(addr); err == nil && a.Is4() {
			return q, fmt.Errorf("%q is no port: use 1 to 65535", port)
		}
	}
	if addr, err := netip.ParseAddr(of); err == nil && addr.Zone() != "" {
		return q, fmt.Errorf("%q has a zone: packets carry none, write %s", of, addr.WithZone(""))
	}
	if q.Network, err = parseCIDR(of); err != nil {
		return q, errors.New(strings.Replace(err.Error(), "is no network: write it as", "is neither an address nor a network: write 192.0.2.7, 192.0.2.7:443, [2001:db8::1]:443,", 1))
	}
	return q, nil
}

func (s *Server) getWhy(r *request) error {
	v, err := r.query("of", "limit")
	if err != nil {
		return err
	}
	if !v.Has("of") {
		return badRequest("of is missing: say which address it is about")
	}
	q, err := ParseWhy(v.Get("of"))
	if err != nil {
		return badRequest("of: %v", err)
	}
	if v.Has("limit") {
		if q.Most, err = strconv.Atoi(v.Get("limit")); err != nil || q.Most < 1 || q.Most > why.MaxDecisions {
			return badRequest("limit %q: use a whole number from 1 to %d", v.Get("limit"), why.MaxDecisions)
		}
	}
	s.walking.Lock()
	answer := s.gateway.Why(&q)
	s.walking.Unlock()
	r.reply(http.StatusOK, answer)
	return nil
}

// Why says why flows were treated as they were, as far as the daemon remembers. Of the query,
// Most may be 0 for some.
func (c *Client) Why(ctx context.Context, q *why.Query) (*why.Answer, error) {
	query := url.Values{"of": {q.Of()}}
	if q.Most != 0 {
		query.Set("limit", strconv.Itoa(q.Most))
	}
	a := new(why.Answer)
	return a, c.call(ctx, "GET", "/v1/why", query, nil, a)
}
