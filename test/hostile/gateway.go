// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/earlydrop/earlydrop/test/e2e/rig"
	"github.com/earlydrop/earlydrop/test/lab"
	"github.com/earlydrop/earlydrop/test/lab/flood"
)

// gateway is a lab whose gateway earlydrop is attached to, with a Shadowsocks tunnel
// and a web server behind it.
type gateway struct {
	*rig.Rig
	daemon *rig.Daemon
	tunnel *lab.Tunnel
	web    *lab.Nginx
}

// tunnelPassword is the Shadowsocks server's.
const tunnelPassword = "a password for hostile clients"

// newGateway builds the lab, with earlydrop in mode monitor. rtt is added between gateway
// and server.
func newGateway(ctx context.Context, binary string, rtt time.Duration, args ...string) (*gateway, error) {
	return newGatewayIn(ctx, "monitor", binary, rtt, args...)
}

func newGatewayIn(ctx context.Context, mode, binary string, rtt time.Duration, args ...string) (_ *gateway, err error) {
	cfg := lab.Config{}
	if rtt > 0 {
		cfg.ServerLink.Relay.Delay = rtt / 2
	}
	l, err := lab.New(ctx, cfg)
	if err != nil {
		return nil, err
	}
	g := &gateway{}
	defer func() {
		if err != nil {
			err = errors.Join(err, l.Close())
		}
	}()
	if g.Rig, err = rig.New(ctx, l, binary); err != nil {
		return nil, err
	}
	if g.web, err = l.StartNginx(ctx, lab.NginxConfig{LargeMB: 1}); err != nil {
		return nil, err
	}
	if g.tunnel, err = l.StartShadowsocks(ctx, lab.ShadowsocksConfig{Password: tunnelPassword}); err != nil {
		return nil, err
	}
	g.daemon, err = g.Attach(ctx, append([]string{"--mode", mode, "--xdp", "native"}, args...)...)
	return g, err
}

// close ends earlydrop in order and the lab.
func (g *gateway) close(ctx context.Context) error {
	_, err := g.daemon.Stop(ctx)
	if err == nil {
		var pins []string
		if pins, err = g.Pins(); err == nil && len(pins) > 0 {
			err = fmt.Errorf("pins are left: %v", pins)
		}
	}
	return errors.Join(err, g.Lab.Close())
}

// flood starts a generator on the client; the returned function ends it and tells how
// many frames it sent.
func (g *gateway) flood(ctx context.Context, frames []flood.Frame, rate int) (stop func() (uint64, error), err error) {
	gen, err := flood.New(g.Client, lab.ClientDev, frames...)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	var sent uint64
	var running errgroup.Group
	running.Go(func() (err error) {
		sent, err = gen.Run(ctx, rate)
		return errors.Join(err, gen.Close())
	})
	return sync.OnceValues(func() (uint64, error) {
		cancel()
		err := running.Wait()
		return sent, err
	}), nil
}

// tunnelled opens connections through the tunnel, one every so often until the time is
// over, and returns how many fetched their page and how many did not. Each is one
// connection from ss-local to ss-server.
func (g *gateway) tunnelled(ctx context.Context, d, every time.Duration) (opened, failed int) {
	var ok, bad atomic.Int64
	var wg sync.WaitGroup
	tick := time.NewTicker(every)
	defer tick.Stop()
	for end := time.Now().Add(d); time.Now().Before(end) && ctx.Err() == nil; {
		wg.Go(func() {
			ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
			defer cancel()
			if g.Download(ctx, g.tunnel, g.URL("http", 4, g.web.HTTPPort, "/1k"), nil).Err != nil {
				bad.Add(1)
			} else {
				ok.Add(1)
			}
		})
		<-tick.C
	}
	wg.Wait()
	return int(ok.Load()), int(bad.Load())
}

// identified counts the tunnel's connections that a verdict was given about, and those
// among them whose capture does not hold a whole handshake. For TCP there is no
// verdict without a SYN.
func (g *gateway) identified() (n, cut int) {
	type connection struct { // ports come again within a minute
		src   netip.AddrPort
		start time.Time
	}
	seen := map[connection]bool{}
	for _, e := range g.daemon.Verdicts(g.tunnel.Server) {
		c := connection{e.Src, e.Start}
		if seen[c] {
			continue
		}
		seen[c] = true
		if e.Packets < 4 {
			cut++
		}
	}
	return len(seen), cut
}

// strays counts verdicts about flows of a flood.
func (g *gateway) strays() int { return len(g.daemon.Verdicts(netip.MustParseAddrPort(nowhere))) }

// settle waits until no verdict has come for a while: idle flows take 2 s.
func (g *gateway) settle(ctx context.Context) error {
	last, since := -1, time.Now()
	return rig.Until(ctx, func() (bool, error) {
		if n := len(g.daemon.Events()); n != last {
			last, since = n, time.Now()
		}
		return time.Since(since) > 2500*time.Millisecond, nil
	})
}

// address is the web server's.
func (g *gateway) address() netip.AddrPort {
	return netip.AddrPortFrom(g.ServerAddr(4), g.web.HTTPPort)
}

// request is a connection to the web server that has sent part of a request: a flow
// that is collecting.
type request struct {
	net.Conn
	src netip.AddrPort
}

func (g *gateway) request(ctx context.Context) (request, error) {
	c, err := g.Client.Dial(ctx, "tcp", g.address().String())
	if err != nil {
		return request{}, err
	}
	if _, err := c.Write([]byte("GET /1k HTTP/1.1\r\nHost: lab\r\nConnection: close\r\n")); err != nil {
		c.Close()
		return request{}, err
	}
	return request{c, c.LocalAddr().(*net.TCPAddr).AddrPort()}, nil
}

// finish sends the rest of the request, and reads the answer.
func (r request) finish() error {
	defer r.Close()
	if _, err := r.Write(append(append([]byte("X-Rest: "), make900()...), "\r\n\r\n"...)); err != nil {
		return err
	}
	_ = r.SetReadDeadline(time.Now().Add(time.Minute))
	buf := make([]byte, 4096)
	_, err := r.Read(buf)
	return err
}

func make900() []byte {
	b := make([]byte, 900)
	for i := range b {
		b[i] = 'x'
	}
	return b
}

// verdictsOf counts those of the connections that a verdict was given about, with
// a complete capture.
func (g *gateway) verdictsOf(list []request) (n int) {
	complete := map[netip.AddrPort]bool{}
	for _, e := range g.daemon.Verdicts(g.address()) {
		complete[e.Src] = complete[e.Src] || e.Complete
	}
	for _, r := range list {
		if complete[r.src] {
			n++
		}
	}
	return n
}
