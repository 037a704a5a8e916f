// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/earlydrop/earlydrop/cmd/earlydrop/event"
	"github.com/earlydrop/earlydrop/test/e2e/rig"
	"github.com/earlydrop/earlydrop/test/lab"
)

// The protocols that strategies are tried on.
const (
	shadowsocks = "shadowsocks"
	vmess       = "vmess"
	https       = "https"
)

var protocols = []string{shadowsocks, vmess, https}

// tunnelClasses are the classes of tunnels that a policy can name.
var tunnelClasses = []string{"shadowsocks", "v2ray", "vless", "obfs4", "trojan", "openvpn", "wireguard", "socks5"}

// policyText has a rule over all of them.
const policyText = `mode: %s
rules:
  - name: tunnels
    class: [%s]
    action: drop
    ttl: 10m
`

// page is what each connection fetches, and how long it is.
const (
	page     = "/16k"
	pageSize = 16 << 10
)

// timeLimit bounds one connection. It is far beyond what the slowest strategy takes, so
// that a busy machine fails none.
const timeLimit = 40 * time.Second

// scene is a lab whose client and server have a relay that strategies work in.
type scene struct {
	*rig.Rig
	flows  *flows
	web    *lab.Nginx
	policy map[string]string // files, by mode

	tunnels   map[tunnelKey]*tunnel
	listeners []net.Listener // of the relays on the client's loopback

	mu       sync.Mutex
	nextPort uint16
}

func (s *scene) close() error {
	var errs []error
	for _, ln := range s.listeners {
		errs = append(errs, ln.Close())
	}
	return errors.Join(append(errs, s.Lab.Close())...)
}

type tunnelKey struct {
	protocol string
	ipv6     bool
}

// tunnel is a proxy's program pair, of which the client's program connects to a relay on
// its loopback, which makes the connection to the server.
type tunnel struct {
	*lab.Tunnel
	one     sync.Mutex       // for whoever wants the next connection
	pending chan *connection // at most one
}

// connection is one of a strategy's in one protocol.
type connection struct {
	*flow
	protocol string
	accepted chan struct{} // by the relay on the client's loopback
	err      error         // nil: the page came whole
}

func newScene(ctx context.Context, binary string, ipv6 bool) (_ *scene, err error) {
	s := &scene{flows: &flows{all: map[uint16]*flow{}}, policy: map[string]string{}, tunnels: map[tunnelKey]*tunnel{}, nextPort: 9999}
	link := func(shaper lab.Shaper) lab.LinkConfig { return lab.LinkConfig{Relay: lab.RelayConfig{Shaper: shaper}} }
	l, err := lab.New(ctx, lab.Config{
		ClientLink: link(clientRelay{s.flows}), ServerLink: link(serverRelay{s.flows}),
		// TCP Fast Open for servers that don't ask for it (0x400), with cookies.
		Server: lab.HostConfig{Sysctl: map[string]string{"net.ipv4.tcp_fastopen": "1026"}},
		// Each path is measured anew: what is kept of a host's last connections would
		// have strategies act on one another. Cookies are kept all the same.
		Client: lab.HostConfig{Sysctl: map[string]string{"net.ipv4.tcp_no_metrics_save": "1", "net.ipv4.tcp_fastopen_blackhole_timeout_sec": "0"}},
	})
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.close())
		}
	}()
	s.Rig = &rig.Rig{Lab: l}
	if s.Rig, err = rig.New(ctx, l, binary); err != nil {
		return nil, err
	}
	for _, mode := range []string{"monitor", "enforce"} {
		s.policy[mode] = filepath.Join(l.Dir(), mode+".yaml")
		text := fmt.Sprintf(policyText, mode, strings.Join(tunnelClasses, ", "))
		if err := os.WriteFile(s.policy[mode], []byte(text), 0o600); err != nil {
			return nil, err
		}
	}
	if s.web, err = l.StartNginx(ctx, lab.NginxConfig{LargeMB: 1}); err != nil {
		return nil, err
	}
	for _, six := range []bool{false, true} {
		for _, protocol := range []string{shadowsocks, vmess} {
			if six && !ipv6 {
				continue
			}
			if err := s.startTunnel(ctx, tunnelKey{protocol, six}); err != nil {
				return nil, err
			}
		}
	}
	return s, s.fetchCookies(ctx, ipv6)
}

func version(ipv6 bool) int {
	if ipv6 {
		return 6
	}
	return 4
}

func (s *scene) startTunnel(ctx context.Context, key tunnelKey) error {
	ln, err := s.Client.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return fmt.Errorf("listen for the tunnel's program: %w", err)
	}
	t := &tunnel{pending: make(chan *connection, 1)}
	s.listeners = append(s.listeners, ln)
	via := ln.Addr().(*net.TCPAddr).AddrPort()
	if key.protocol == vmess {
		t.Tunnel, err = s.StartVMess(ctx, lab.VMessConfig{Security: "aes-128-gcm", Version: version(key.ipv6), Via: via})
	} else {
		t.Tunnel, err = s.StartShadowsocks(ctx, lab.ShadowsocksConfig{Version: version(key.ipv6), Via: via})
	}
	if err != nil {
		return err
	}
	s.tunnels[key] = t
	go func() {
		for {
			local, err := ln.Accept()
			if err != nil {
				return
			}
			select {
			case c := <-t.pending:
				close(c.accepted)
				go s.relay(local, c)
			default: // nobody's
				local.Close()
			}
		}
	}()
	return nil
}

// relay makes the connection to a tunnel's server for the client's program.
func (s *scene) relay(local net.Conn, c *connection) {
	ctx, cancel := context.WithTimeout(context.Background(), timeLimit)
	defer cancel()
	up, err := s.dial(ctx, c)
	if err != nil {
		local.Close()
		return
	}
	lab.Splice(ctx, local, up)
}

// connect makes a connection, and fetches a page over it.
func (s *scene) connect(ctx context.Context, st *strategy, protocol string) *connection {
	ctx, cancel := context.WithTimeout(ctx, timeLimit)
	defer cancel()
	v := version(st.ipv6)
	c := &connection{flow: &flow{strategy: st}, protocol: protocol, accepted: make(chan struct{})}
	c.client = netip.AddrPortFrom(s.ClientAddr(v), s.port())
	t := s.tunnels[tunnelKey{protocol, st.ipv6}]
	if t == nil {
		c.server = netip.AddrPortFrom(s.ServerAddr(v), s.web.HTTPSPort)
		s.flows.add(c.flow)
		c.err = fetch(ctx, s.URL("https", v, s.web.HTTPSPort, page), func(ctx context.Context) (net.Conn, error) { return s.dial(ctx, c) })
		return c
	}
	c.server = t.Server
	s.flows.add(c.flow)
	// Which of the program's connections belongs to which request is known because there
	// is one at a time.
	t.one.Lock()
	t.pending <- c
	done := make(chan error, 1)
	go func() {
		done <- fetch(ctx, s.URL("http", v, s.web.HTTPPort, page), func(ctx context.Context) (net.Conn, error) {
			return s.Client.DialSOCKS(ctx, t.SOCKS, netip.AddrPortFrom(s.ServerAddr(v), s.web.HTTPPort).String())
		})
	}()
	select {
	case <-c.accepted:
		t.one.Unlock()
		c.err = <-done
	case c.err = <-done:
		select {
		case <-t.pending:
		default:
		}
		t.one.Unlock()
	}
	return c
}

// fetch asks for the page over one connection, and reads all of it.
func fetch(ctx context.Context, url string, dial func(ctx context.Context) (net.Conn, error)) error {
	tr := &http.Transport{
		DialContext:       func(ctx context.Context, _, _ string) (net.Conn, error) { return dial(ctx) },
		TLSClientConfig:   &tls.Config{InsecureSkipVerify: true}, // the lab's own certificate
		DisableKeepAlives: true,
	}
	defer tr.CloseIdleConnections()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	req.Header.Set("User-Agent", "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0")
	req.Header.Set("Accept", "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8")
	resp, err := tr.RoundTrip(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	n, err := io.Copy(io.Discard, resp.Body)
	if err == nil && n != pageSize {
		err = fmt.Errorf("%d of %d bytes came", n, pageSize)
	}
	return err
}

// port returns a port of the client that no connection of the scene has had.
func (s *scene) port() uint16 {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.nextPort++
	return s.nextPort
}

// dial connects a flow's two ends, as its strategy has it.
func (s *scene) dial(ctx context.Context, c *connection) (net.Conn, error) {
	d := net.Dialer{LocalAddr: net.TCPAddrFromAddrPort(c.client)}
	d.SetMultipathTCP(c.mptcp)
	if c.control != nil {
		d.Control = func(_, _ string, raw syscall.RawConn) error {
			var inner error
			return errors.Join(raw.Control(func(fd uintptr) { inner = c.control(int(fd)) }), inner)
		}
	}
	var conn net.Conn
	err := s.Client.Do(func() (err error) {
		conn, err = d.DialContext(ctx, "tcp", c.server.String())
		return err
	})
	if err != nil {
		return nil, err
	}
	return &shaped{Conn: conn, ctx: ctx, c: c}, nil
}

// shaped is a connection whose first write is the strategy's.
type shaped struct {
	net.Conn
	ctx     context.Context
	c       *connection
	written bool
}

func (s *shaped) Write(b []byte) (int, error) {
	if s.written || s.c.write == nil {
		return s.Conn.Write(b)
	}
	s.written = true
	if err := s.c.write(s.ctx, s.c.flow, s.Conn.(*net.TCPConn), b); err != nil {
		return 0, err
	}
	return len(b), nil
}

func (s *shaped) CloseWrite() error { return s.Conn.(*net.TCPConn).CloseWrite() }

// fetchCookies makes a first connection with TCP Fast Open to each address, which gets
// the cookie for all others.
func (s *scene) fetchCookies(ctx context.Context, ipv6 bool) error {
	i := slices.IndexFunc(strategies, func(st strategy) bool { return st.name == "fast-open" })
	for _, six := range []bool{false, true} {
		st := strategies[i]
		if st.ipv6 = six; six && !ipv6 {
			continue
		}
		if c := s.connect(ctx, &st, https); c.err != nil {
			return fmt.Errorf("get the server's cookie for TCP Fast Open: %w", c.err)
		}
	}
	return nil
}

// atOnce is how many connections there are at a time.
const atOnce = 24

// pass makes n connections of each strategy in each of the protocols.
func (s *scene) pass(ctx context.Context, of []*strategy, in []string, n int) ([]*connection, error) {
	var all []*connection
	var mu sync.Mutex
	var wg sync.WaitGroup
	slots := make(chan struct{}, atOnce)
	for range n {
		for _, st := range of {
			for _, protocol := range in {
				slots <- struct{}{}
				wg.Go(func() {
					defer func() { <-slots }()
					c := s.connect(ctx, st, protocol)
					mu.Lock()
					defer mu.Unlock()
					all = append(all, c)
				})
			}
		}
	}
	wg.Wait()
	return all, ctx.Err()
}

// watched is pass with earlydrop attached in a mode; it returns the events, too.
func (s *scene) watched(ctx context.Context, mode string, of []*strategy, in []string, n int) (_ []*connection, _ []*event.Verdict, err error) {
	d, err := s.Attach(ctx, "--policy", s.policy[mode], "--mode", mode)
	if err != nil {
		return nil, nil, err
	}
	all, err := s.pass(ctx, of, in, n)
	if err == nil {
		err = s.settle(ctx, d)
	}
	if err != nil {
		d.Kill()
		return nil, nil, err
	}
	if _, err := d.Stop(ctx); err != nil {
		return nil, nil, err
	}
	return all, rig.Of[*event.Verdict](d.Events()), nil
}

// settle waits until nothing is being captured any more, and what was is judged: a
// capture that is made afterwards, and its verdict, are behind all others.
func (s *scene) settle(ctx context.Context, d *rig.Daemon) error {
	err := rig.Until(ctx, func() (bool, error) {
		st, err := s.Status(ctx)
		return st.Flows.Collecting == 0, err
	})
	if err != nil {
		return fmt.Errorf("wait for the last capture: %w", err)
	}
	last := s.connect(ctx, &strategies[0], https)
	if last.err != nil {
		return fmt.Errorf("a last connection: %w", last.err)
	}
	_, err = rig.Wait(ctx, d, "the verdict about the last connection", func(e *event.Verdict) bool { return e.Src == last.client })
	return err
}
