// SPDX-License-Identifier: Apache-2.0

package metrics

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"
)

const (
	headerWithin = 5 * time.Second
	answerWithin = 10 * time.Second
	idleWithin   = 2 * time.Minute
	closeWithin  = 2 * time.Second
	maxHeader    = 8 << 10
	maxScrapes   = 4 // at a time; others are told to come again
)

// Handler answers GET with the metrics, in the format that is asked for.
func Handler(s Source) http.Handler {
	serve := promhttp.HandlerFor(NewRegistry(s), promhttp.HandlerOpts{
		ErrorLog: slog.NewLogLogger(slog.Default().Handler(), slog.LevelWarn), ErrorHandling: promhttp.ContinueOnError,
		MaxRequestsInFlight: maxScrapes, Timeout: answerWithin,
	})
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodGet && r.Method != http.MethodHead {
			w.Header().Set("Allow", "GET, HEAD")
			http.Error(w, "metrics are only read: use GET", http.StatusMethodNotAllowed)
			return
		}
		serve.ServeHTTP(w, r)
	})
}

// Server serves metrics at a TCP address, under /metrics. A nil one does nothing.
type Server struct {
	listener net.Listener
	http     *http.Server
}

// Listen takes the address, such as 127.0.0.1:9417. Who connects waits until Serve.
func Listen(address string) (*Server, error) {
	host, port, err := net.SplitHostPort(address)
	if err != nil || port == "" || host == "" {
		return nil, fmt.Errorf("%q is no address to listen at: write HOST:PORT, such as 127.0.0.1:9417", address)
	}
	l, err := net.Listen("tcp", address)
	if err != nil {
		return nil, err
	}
	return &Server{listener: l, http: &http.Server{
		ReadHeaderTimeout: headerWithin, ReadTimeout: headerWithin, WriteTimeout: 2 * answerWithin, IdleTimeout: idleWithin, MaxHeaderBytes: maxHeader,
		ErrorLog: slog.NewLogLogger(slog.Default().Handler(), slog.LevelDebug),
	}}, nil
}

// Addr returns where it listens.
func (s *Server) Addr() net.Addr { return s.listener.Addr() }

// Serve answers from now on, until Close. It returns at once, and is called once.
func (s *Server) Serve(source Source) {
	if s == nil {
		return
	}
	mux := http.NewServeMux()
	mux.Handle("/metrics", Handler(source))
	s.http.Handler = mux
	go func() {
		if err := s.http.Serve(s.listener); !errors.Is(err, http.ErrServerClosed) {
			slog.Warn("metrics are served no more; the work goes on", "address", s.Addr(), "error", err)
		}
	}()
}

// Close ends it.
func (s *Server) Close() {
	if s == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), closeWithin)
	defer cancel()
	if s.http.Shutdown(ctx) != nil {
		_ = s.http.Close()
	}
	_ = s.listener.Close()
}
