// SPDX-License-Identifier: Apache-2.0

package control

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/earlydrop/earlydrop/cmd/earlydrop/event"
	"github.com/earlydrop/earlydrop/cmd/earlydrop/status"
	"github.com/earlydrop/earlydrop/loader/flow"
	"github.com/earlydrop/earlydrop/policy"
)

// Client asks a daemon. Its methods are safe for concurrent use. Their errors are *Error
// where the daemon refuses, wrap ErrNoDaemon where nobody listens, and ErrForbidden where
// the socket can't be opened.
type Client struct {
	path string
	http http.Client
	peer atomic.Int32 // process id of the daemon, as it is seen from here
}

// NewClient returns a client of the daemon at a socket. It does not connect yet.
func NewClient(path string) *Client {
	c := &Client{path: path}
	c.http.Transport = &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			conn, err := d.DialContext(ctx, "unix", path)
			if err != nil {
				return nil, err
			}
			p, err := peerOf(conn.(*net.UnixConn))
			c.peer.Store(p.pid)
			return conn, err
		},
		MaxIdleConns: 1, IdleConnTimeout: 10 * time.Second, DisableCompression: true,
	}
	return c
}

// Close closes connections that are idle.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// do sends a request, and returns the answer if it is no error.
func (c *Client) do(ctx context.Context, method, path string, query url.Values, body any) (*http.Response, error) {
	var text io.Reader
	if body != nil {
		data, err := json.Marshal(body)
		if err != nil {
			return nil, err
		}
		text = bytes.NewReader(data)
	}
	u := url.URL{Scheme: "http", Host: "earlydrop", Path: path, RawQuery: query.Encode()}
	r, err := http.NewRequestWithContext(ctx, method, u.String(), text)
	if err != nil {
		return nil, err
	}
	answer, err := c.http.Do(r)
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.ECONNREFUSED):
		return nil, fmt.Errorf("%w at %s", ErrNoDaemon, c.path)
	case errors.Is(err, fs.ErrPermission):
		return nil, fmt.Errorf("%w to open %s: it takes root, or a member of the group %s", ErrForbidden, c.path, GroupName)
	case err != nil:
		return nil, fmt.Errorf("ask the daemon at %s: %w", c.path, unwrapURL(err))
	}
	if answer.StatusCode == http.StatusOK {
		return answer, nil
	}
	defer answer.Body.Close()
	told := &Error{Status: answer.StatusCode}
	if err := json.NewDecoder(io.LimitReader(answer.Body, 1<<20)).Decode(told); err != nil || told.Message == "" {
		return nil, fmt.Errorf("what listens at %s is no earlydrop: it answers %s", c.path, answer.Status)
	}
	return nil, told
}

// unwrapURL takes away the address, which says nothing: it is a socket.
func unwrapURL(err error) error {
	var u *url.Error
	if errors.As(err, &u) {
		return u.Err
	}
	return err
}

// call is do with an answer that is one object.
func (c *Client) call(ctx context.Context, method, path string, query url.Values, body, answer any) error {
	r, err := c.do(ctx, method, path, query, body)
	if err != nil {
		return err
	}
	defer r.Body.Close()
	if err := json.NewDecoder(r.Body).Decode(answer); err != nil {
		return fmt.Errorf("read the answer of %s: %w", c.path, err)
	}
	_, _ = io.Copy(io.Discard, r.Body) // so that the connection can be used again
	return nil
}

// About says which daemon it is. The process id is the one that it has for the caller, 0 if
// it is in a PID namespace that the caller does not see.
func (c *Client) About(ctx context.Context) (*About, error) {
	a := new(About)
	err := c.call(ctx, "GET", "/v1/about", nil, nil, a)
	a.PID = int(c.peer.Load())
	return a, err
}

// Status tells of the gateway and its interfaces. Process ids are as of About.
func (c *Client) Status(ctx context.Context) (*status.Report, error) {
	r := new(status.Report)
	err := c.call(ctx, "GET", "/v1/status", nil, nil, r)
	c.ownIDs(r)
	return r, err
}

// Blocks lists blocks. They are sorted by one of SortKeys, "" is since; the limit is how
// many at most, 0 is all.
func (c *Client) Blocks(ctx context.Context, f BlockFilter, sortBy string, limit int) (*Blocks, error) {
	b := new(Blocks)
	return b, c.call(ctx, "GET", "/v1/blocks", listing(f.Values(), sortBy, limit), nil, b)
}

// listing adds to the parameters of a filter how its list is sorted and cut.
func listing(filter url.Values, sortBy string, limit int) url.Values {
	if sortBy != "" {
		filter.Set("sort", sortBy)
	}
	if limit != 0 {
		filter.Set("limit", strconv.Itoa(limit))
	}
	return filter
}

// Block drops a flow from now on, for a time of at least a second. The interface may be
// "" where the gateway has one only. It reports whether the block is suspended, as the
// interface is in mode monitor.
func (c *Client) Block(ctx context.Context, iface string, key flow.Key, ttl time.Duration) (suspended bool, err error) {
	var added Added
	err = c.call(ctx, "POST", "/v1/blocks", nil, &AddBlock{Interface: iface, Flow: FlowOf(key), TTL: TTL(ttl)}, &added)
	return added.Suspended, err
}

// Lift lifts blocks. A filter that fits every block is refused. One with a Flow that is
// not blocked is ErrNotFound.
func (c *Client) Lift(ctx context.Context, f BlockFilter) (l Lifted, err error) {
	err = c.call(ctx, "DELETE", "/v1/blocks", f.Values(), nil, &l)
	return l, err
}

// LiftAll lifts all blocks of an interface, "" of every one.
func (c *Client) LiftAll(ctx context.Context, iface string) (l Lifted, err error) {
	query := (&BlockFilter{Interface: iface}).Values()
	query.Set("all", "true")
	err = c.call(ctx, "DELETE", "/v1/blocks", query, nil, &l)
	return l, err
}

// SetMode changes the mode of an interface, "" of all, and returns those that had the other
// one. It takes root.
func (c *Client) SetMode(ctx context.Context, mode policy.Mode, iface string) (changed []string, err error) {
	var set ModeSet
	err = c.call(ctx, "POST", "/v1/mode", nil, &SetMode{Mode: mode.String(), Interface: iface}, &set)
	return set.Changed, err
}

// Reload has the policy file read again. What is wrong with it is the error, and the old policy
// stays then. It takes root.
func (c *Client) Reload(ctx context.Context) (*Reloaded, error) {
	r := new(Reloaded)
	return r, c.call(ctx, "POST", "/v1/reload", nil, nil, r)
}

// UseModel has another model classify from now on: the file at an absolute path, or one that
// the program ships. Errors are as of Reload. It takes root.
func (c *Client) UseModel(ctx context.Context, file string) (*Reloaded, error) {
	r := new(Reloaded)
	return r, c.call(ctx, "POST", "/v1/model", nil, &UseModel{File: file}, r)
}

// Events returns events from now on: those that are logged once it has returned. The
// sequence ends with the gateway, with ctx, or with an error, which is its last pair. It
// can be run through once.
func (c *Client) Events(ctx context.Context, f *EventFilter) (iter.Seq2[event.Event, error], error) {
	r, err := c.do(ctx, "GET", "/v1/events", f.Values(), nil)
	if err != nil {
		return nil, err
	}
	return func(yield func(event.Event, error) bool) {
		defer r.Body.Close()
		for d := event.NewDecoder(r.Body); ; {
			e, err := d.Next()
			switch {
			case errors.Is(err, io.EOF) || ctx.Err() != nil:
				return
			case errors.Is(err, event.ErrUnknown): // of a newer daemon
				continue
			case err != nil:
				yield(nil, fmt.Errorf("events of %s: %w", c.path, err))
				return
			}
			if !yield(e, nil) {
				return
			}
		}
	}, nil
}
