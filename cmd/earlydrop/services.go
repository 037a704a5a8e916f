// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"os"
	"os/signal"
	"sync"

	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"

	"github.com/earlydrop/earlydrop/cmd/earlydrop/control"
	"github.com/earlydrop/earlydrop/cmd/earlydrop/event/eventlog"
	"github.com/earlydrop/earlydrop/cmd/earlydrop/gateway"
	"github.com/earlydrop/earlydrop/cmd/earlydrop/history"
	"github.com/earlydrop/earlydrop/cmd/earlydrop/metrics"
)

// services are what attach does beside the work of its gateway: it answers at the control
// socket and to Prometheus, keeps what is known of pairs and what was logged, reads the policy again at SIGHUP,
// and talks to systemd.
type services struct {
	c       *cli.Context
	door    *control.Server // nil: none
	said    func(*eventlog.Log)
	scraped *metrics.Server // nil: none
	keep    func(context.Context)
	history *history.History // nil: none
	reload  chan os.Signal

	stop    context.CancelFunc
	running sync.WaitGroup
}

// openServices takes the addresses that the flags name, and gives config the evidence. close
// has to follow.
func openServices(c *cli.Context, config *gateway.Config) (s *services, err error) {
	s = &services{c: c, reload: make(chan os.Signal, 1), stop: func() {}}
	if s.door, s.said, err = listenControl(c); err != nil {
		return nil, err
	}
	if s.scraped, err = listenMetrics(c); err != nil {
		s.close()
		return nil, err
	}
	if s.history, err = openHistory(c, config.Events); err != nil {
		s.close()
		return nil, err
	}
	config.History = s.history
	config.Evidence, s.keep = openEvidence(c, config.Attach[0].Interface, config.Events)
	signal.Notify(s.reload, unix.SIGHUP)
	return s, nil
}

// start serves a gateway that is attached.
func (s *services) start(g *gateway.Gateway, events *eventlog.Log) {
	ctx, stop := context.WithCancel(s.c.Context)
	s.stop = stop
	s.said(events)
	if s.door != nil {
		s.door.Serve(served{g, events})
	}
	s.scraped.Serve(g)
	s.running.Go(func() { s.keep(ctx) })
	s.running.Go(func() { s.reloadAsked(ctx, g) })
	s.running.Go(func() { tellSystemd(ctx, g) })
}

// reloadAsked reads the policy again at each SIGHUP, until ctx ends.
func (s *services) reloadAsked(ctx context.Context, g *gateway.Gateway) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-s.reload:
			if _, err := g.Reload(); err != nil {
				report(s.c.App.ErrWriter, err)
			}
		}
	}
}

// close ends all that was opened and started.
func (s *services) close() {
	signal.Stop(s.reload)
	s.stop()
	s.running.Wait()
	s.scraped.Close()
	if s.door != nil {
		s.door.Close()
	}
	s.history.Close()
}
