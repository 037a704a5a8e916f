// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/earlydrop/earlydrop/cmd/earlydrop/event"
	"github.com/earlydrop/earlydrop/loader"
	"github.com/earlydrop/earlydrop/loader/flow"
	"github.com/earlydrop/earlydrop/test/e2e/rig"
	"github.com/earlydrop/earlydrop/test/lab"
)

// act starts earlydrop with a rule over some classes that has these keys.
func (s *scene) act(classes []string, keys string, args ...string) *rig.Daemon {
	s.t.Helper()
	file := s.file("act.yaml", fmt.Sprintf("mode: enforce\nrules: [{name: tunnels, class: [%s], ttl: 10m, %s}]\n", strings.Join(classes, ", "), keys))
	return s.attach(append([]string{"--policy", file}, args...)...)
}

// noise is a connection between a client and a server that speak at random. The model mostly does
// not know what that is.
type noise struct{ client, server net.Conn }

func (n noise) close() {
	_ = n.client.Close()
	_ = n.server.Close()
}

// noisy connects, has the client speak first, and waits for the verdict. Connections that the
// policy does not treat are closed, and others made.
func (s *scene) noisy(d *rig.Daemon, version int, decision string) (noise, *event.Verdict) {
	s.t.Helper()
	l := must(s.Server.Listen("tcp", netip.AddrPortFrom(s.ServerAddr(version), 0).String()))(s.t)
	defer l.Close()
	addr := netip.MustParseAddrPort(l.Addr().String())
	for i := range tries {
		client := must(s.Client.Dial(s.ctx, "tcp", addr.String()))(s.t)
		n := noise{client, must(l.Accept())(s.t)}
		s.t.Cleanup(n.close)
		first := make([]byte, 1200)
		rand.Read(first)
		must(client.Write(first))(s.t)
		must(io.ReadFull(n.server, first))(s.t)
		v := must(d.Verdict(s.ctx, addr, i))(s.t)
		if v.Decision == decision {
			if !*v.Enforced {
				s.t.Fatalf("not enforced: %s", v.Text(true))
			}
			return n, v
		}
		n.close()
	}
	s.t.Fatalf("none of %d connections was identified", tries)
	panic("unreachable")
}

// speak writes noise until an error ends it, and returns that.
func speak(c net.Conn) error {
	data := make([]byte, 16<<10)
	rand.Read(data)
	for {
		if _, err := c.Write(data); err != nil {
			return err
		}
	}
}

// listen reads until an error ends it, and returns that and how much was read.
func listen(c net.Conn) (n int64, err error) {
	n, err = io.Copy(io.Discard, c)
	if err == nil {
		err = io.EOF
	}
	return n, err
}

// The ends of a connection that is reset learn it at once: of them, the client also where it
// only waits.
func TestResetEndsConnectionsAtOnce(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name    string
		cfg     lab.Config
		args    []string
		version int
	}{
		{"tcx", lab.Config{}, nil, 4},
		{"tcx ipv6", lab.Config{}, nil, 6}, // the lab would tag an answer in a VLAN twice
		{"native ipv6", lab.Config{}, []string{"--xdp", "native"}, 6},
		{"generic", lab.Config{}, []string{"--xdp", "generic"}, 4},
		{"generic vlan ipv6", lab.Config{VLAN: 77}, []string{"--xdp", "generic"}, 6},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s := newScene(t, tt.cfg)
			d := s.act([]string{flow.Unknown}, "action: reset", tt.args...)
			s.resets(d, tt.version, func(n noise) error { // the client waits
				_, err := listen(n.client)
				return err
			}, func(n noise) error { return speak(n.server) })
			native := slices.Contains(tt.args, "native")
			if !native {
				// Nobody tells the server, until it sends something.
				s.resets(d, tt.version, func(n noise) error { return speak(n.client) }, nil)
			}
			last := s.stop(d)
			if last.Counters["resets"] == 0 || last.Counters["blocked"] == 0 {
				t.Errorf("counters %v", last.Counters)
			}
			warned := strings.Contains(d.Stderr(), "action reset is as drop")
			if warned != native {
				t.Errorf("warned: %v, standard error:\n%s", warned, d.Stderr())
			}
		})
	}
}

// resets makes a connection that is to be reset, and has its ends find out.
func (s *scene) resets(d *rig.Daemon, version int, client, server func(noise) error) {
	s.t.Helper()
	n, v := s.noisy(d, version, "reset")
	var took [2]time.Duration
	errs := [2]error{nil, syscall.ECONNRESET}
	var wg sync.WaitGroup
	begun := time.Now()
	wg.Go(func() {
		errs[0] = client(n)
		took[0] = time.Since(begun)
	})
	if server != nil {
		wg.Go(func() {
			errs[1] = server(n)
			took[1] = time.Since(begun)
		})
	}
	// What tells nothing ends with the test's own patience.
	_ = n.client.SetDeadline(begun.Add(limit / 2))
	_ = n.server.SetDeadline(begun.Add(limit / 2))
	wg.Wait()
	s.t.Logf("%s: the client ended after %s, the server after %s", v.Text(false), took[0], took[1])
	for i, side := range []string{"client", "server"} {
		if !errors.Is(errs[i], syscall.ECONNRESET) && !errors.Is(errs[i], syscall.EPIPE) {
			s.t.Errorf("%s: %v, want a reset", side, errs[i])
		}
	}
	// It takes a millisecond where nothing else runs; TCP would send again after 200.
	if took[0] > 5*time.Second {
		s.t.Errorf("the client noticed after %s", took[0])
	}
}

// curl through a tunnel that is reset fails at once, and does not hang.
func TestResetMakesCurlFail(t *testing.T) {
	t.Parallel()
	s := newScene(t, lab.Config{ServerLink: slow})
	d := s.act(tunnelClasses, "action: reset", "--xdp", "generic")
	tun := must(s.StartShadowsocks(s.ctx, lab.ShadowsocksConfig{}))(t)
	for n := range tries {
		done := make(chan lab.Result, 1)
		go func() { done <- s.Curl(s.ctx, tun, s.URL("https", 4, s.web.HTTPSPort, "/large")) }()
		v := must(d.Verdict(s.ctx, tun.Server, n))(t)
		r := <-done
		ended := time.Since(v.Time)
		if v.Decision != "reset" {
			continue
		}
		if r.Err == nil || s.ctx.Err() != nil {
			t.Errorf("curl: %d bytes, %v", r.Bytes, r.Err)
		}
		t.Logf("curl failed %s after the verdict: %v", ended, r.Err)
		if ended > 10*time.Second {
			t.Errorf("curl failed %s after the verdict", ended)
		}
		s.stop(d)
		return
	}
	t.Fatal("the tunnel was not identified")
}

// What is limited goes on, at the rate.
func TestLimitSlowsDown(t *testing.T) {
	t.Parallel()
	s := newScene(t, lab.Config{})
	d := s.act([]string{flow.Unknown}, "action: limit, rate: 2mbit")
	n, v := s.noisy(d, 4, "limit")
	begun := time.Now()
	go func() { _ = speak(n.server) }()
	const span = 4 * time.Second
	_ = n.client.SetDeadline(begun.Add(span))
	got, err := listen(n.client)
	took := time.Since(begun)
	if ne := net.Error(nil); !errors.As(err, &ne) || !ne.Timeout() {
		t.Errorf("it ended: %v", err)
	}
	// Of what is read, all has passed in this time, or just before.
	most := int64(250_000*took.Seconds()) + loader.LimitBurst
	if got > most || got < 64<<10 {
		t.Errorf("%d bytes in %s, want at most %d", got, took, most)
	}
	blocks := must(s.Blocks(s.ctx))(t)
	if len(blocks) != 1 || blocks[0].Action != "limit" || blocks[0].Rate != 250_000 || blocks[0].Packets == 0 {
		t.Errorf("blocks %+v", blocks)
	}
	if list := must(s.Earlydrop(s.ctx, "blocked", "list"))(t); !strings.Contains(list, "limits to 2mbit") {
		t.Errorf("blocked list:\n%s", list)
	}
	t.Logf("%s: %d bytes in %s", v.Text(false), got, took)
	s.stop(d)
}
