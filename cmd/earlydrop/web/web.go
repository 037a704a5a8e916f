// SPDX-License-Identifier: Apache-2.0

// Package web is a page for browsers about a running gateway: what passes and what is
// dropped, as it happens, and what was blocked, with a way to undo it. It is a client of the
// gateway's control socket, in a process of its own, and holds nothing that can't be lost.
//
// Whoever reaches it sees what the gateway tells; so it answers on this machine alone, or,
// with a certificate and a token, to those elsewhere who know the token. Without a token
// nothing can be changed through it. The page loads nothing from elsewhere, and what it
// shows is text, whatever it says.
package web

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"time"

	"golang.org/x/net/netutil"
	"golang.org/x/time/rate"

	"github.com/earlydrop/earlydrop/cmd/earlydrop/control"
	"github.com/earlydrop/earlydrop/cmd/earlydrop/event"
)

// What clients can have the server do at most.
const (
	maxConns     = 64
	maxHeader    = 8 << 10
	maxBody      = 4 << 10
	headerWithin = 5 * time.Second
	bodyWithin   = 10 * time.Second
	answerWithin = 10 * time.Second // for a client that does not read on
	idleWithin   = time.Minute
	askWithin    = 10 * time.Second // for the daemon
	closeWithin  = 2 * time.Second
)

// MinToken is how many bytes a token has at least.
const MinToken = 16

// Config says what a server is for.
type Config struct {
	// Address to listen at, HOST:PORT.
	Address string
	// Daemon is asked for all that is shown.
	Daemon *control.Client
	// Token (optional) is asked for whatever is read or changed, of at least MinToken bytes.
	// Without it nothing can be changed.
	Token string
	// Certificate (optional) and its key; without it the server speaks plain HTTP.
	Certificate *tls.Certificate
	// Explain (optional) says what a verdict depends on, given the capture (pcapng) that it was
	// made from. It is called by one at a time.
	Explain func(ctx context.Context, v *event.Verdict, capture []byte) (*Explained, error)
}

// ErrExposed is the error of an address that others than this machine could reach, where a
// token or a certificate is missing.
var ErrExposed = errors.New("others than this machine could reach it")

// Server answers browsers.
type Server struct {
	config   Config
	token    [sha256.Size]byte // its hash, so that a comparison tells nothing of its length
	listener net.Listener
	http     *http.Server
	served   chan struct{} // closed when no connection is accepted any more; nil: not begun

	wrongTokens *rate.Limiter
	live        snapshots
	events      *hub
	explained   explanations
}

// Listen takes the address. Who connects waits until Serve. The error wraps ErrExposed where
// the address is none of this machine's own, unless there are token and certificate.
func Listen(c Config) (*Server, error) {
	host, port, err := net.SplitHostPort(c.Address)
	if err != nil || host == "" || port == "" {
		return nil, fmt.Errorf("%q is no address to listen at: write HOST:PORT, such as 127.0.0.1:9480", c.Address)
	}
	if c.Token != "" && len(c.Token) < MinToken {
		return nil, fmt.Errorf("the token has %d bytes: at least %d can't be guessed", len(c.Token), MinToken)
	}
	address, err := net.ResolveTCPAddr("tcp", c.Address)
	if err != nil {
		return nil, err
	}
	if !address.IP.IsLoopback() && (c.Token == "" || c.Certificate == nil) {
		return nil, fmt.Errorf("%s: %w", c.Address, ErrExposed)
	}
	l, err := net.ListenTCP("tcp", address)
	if err != nil {
		return nil, err
	}
	ctx, ending := context.WithCancel(context.Background())
	s := &Server{
		config: c, token: sha256.Sum256([]byte(c.Token)), listener: netutil.LimitListener(l, maxConns),
		// More than a person mistypes, and far too few to find a token.
		wrongTokens: rate.NewLimiter(2, 10),
		live:        snapshots{daemon: c.Daemon},
		events:      newHub(ctx, c.Daemon),
		explained:   explanations{explain: c.Explain, one: make(chan struct{}, 1)},
	}
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true) // one request at a time on each of the connections that are counted
	s.http = &http.Server{
		Handler:           s.guard(s.routes()),
		ReadHeaderTimeout: headerWithin, ReadTimeout: bodyWithin, IdleTimeout: idleWithin, MaxHeaderBytes: maxHeader, Protocols: protocols,
		BaseContext: func(net.Listener) context.Context { return ctx },
		ErrorLog:    slog.NewLogLogger(slog.Default().Handler(), slog.LevelDebug),
	}
	s.http.RegisterOnShutdown(ending) // ends the streams
	if c.Certificate != nil {
		s.listener = tls.NewListener(s.listener, &tls.Config{Certificates: []tls.Certificate{*c.Certificate}, MinVersion: tls.VersionTLS12})
	}
	return s, nil
}

// Addr returns where it listens.
func (s *Server) Addr() net.Addr { return s.listener.Addr() }

// URL is what a browser on this machine is to open.
func (s *Server) URL() string {
	scheme := "http"
	if s.config.Certificate != nil {
		scheme = "https"
	}
	return scheme + "://" + s.Addr().String() + "/"
}

// Serve answers from now on, until Close. It returns at once, and is called once.
func (s *Server) Serve() {
	s.served = make(chan struct{})
	go func() {
		defer close(s.served)
		if err := s.http.Serve(s.listener); !errors.Is(err, http.ErrServerClosed) {
			slog.Error("the page is served no more", "address", s.Addr(), "error", err)
		}
	}()
}

// Done is closed when the server answers no more.
func (s *Server) Done() <-chan struct{} { return s.served }

// Close ends what browsers have asked for, and gives the address back.
func (s *Server) Close() {
	ctx, cancel := context.WithTimeout(context.Background(), closeWithin)
	defer cancel()
	if s.http.Shutdown(ctx) != nil {
		_ = s.http.Close()
	}
	_ = s.listener.Close()
	if s.served != nil {
		<-s.served
	}
	s.events.wait()
}
