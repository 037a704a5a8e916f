// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/earlydrop/earlydrop/cmd/earlydrop/event"
	"github.com/earlydrop/earlydrop/test/e2e/rig"
	"github.com/earlydrop/earlydrop/test/lab"
)

// uplinks attaches to the two ways between client and gateway, as to uplinks that share flows.
func (s *scene) uplinks(args ...string) *rig.Daemon {
	s.t.Helper()
	d := s.attachGroup(args...)
	for _, device := range []string{rig.Device, secondDevice} {
		must(rig.Wait(s.ctx, d, "the attached event of "+device, func(e *event.Attached) bool { return e.Interface == device }))(s.t)
	}
	return d
}

func (s *scene) attachGroup(args ...string) *rig.Daemon {
	s.t.Helper()
	return s.daemonOf(append([]string{s.Binary(), "attach", "--json", "--group", rig.Device + "," + secondDevice}, args...)...)
}

// dropped is how many packets each of the two ways has dropped.
func (s *scene) droppedAt() map[string]uint64 {
	s.t.Helper()
	sum := map[string]uint64{}
	for device, st := range s.statuses() {
		sum[device] = st.Counters["dropped_packets"]
	}
	return sum
}

// A connection that moves from one uplink to the other in the middle of its beginning is
// judged as a whole, once.
func TestFailoverInTheBeginning(t *testing.T) {
	t.Parallel()
	s := newScene(t, lab.Config{})
	moveThere := s.secondLink()
	d := s.uplinks()

	l, err := s.Server.Listen("tcp", netip.AddrPortFrom(s.ServerAddr(4), 0).String())
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	server := l.Addr().(*net.TCPAddr).AddrPort()
	accepted := make(chan net.Conn, 1)
	go func() {
		defer close(accepted)
		if c, err := l.Accept(); err == nil {
			accepted <- c
		}
	}()
	client, err := s.Client.Dial(s.ctx, "tcp", server.String())
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	served, ok := <-accepted
	if !ok {
		t.Fatal("nothing was accepted")
	}
	defer served.Close()
	random := rand.NewChaCha8([32]byte{7})
	send := func(from, to net.Conn, n int) {
		t.Helper()
		bytes := make([]byte, n)
		_, _ = random.Read(bytes)
		_ = to.SetDeadline(time.Now().Add(limit))
		if _, err := from.Write(bytes); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(to, bytes); err != nil {
			t.Fatal(err)
		}
	}
	send(client, served, 100)
	send(served, client, 100)
	moveThere()
	send(client, served, 100)
	send(served, client, 3000)
	v := must(rig.Wait(s.ctx, d, "a whole verdict", func(v *event.Verdict) bool { return v.Dst == server && v.Complete }))(t)
	if v.MidStream || v.Interface != secondDevice || v.Captured != 1024 {
		t.Errorf("verdict %+v", v)
	}
	// The handshake and the first bytes of each side came by one way, the rest by the other.
	for device, st := range s.statuses() {
		if st.Counters["packets_ingress"] == 0 || st.Counters["mid_stream"] != 0 {
			t.Errorf("%s: %v", device, st.Counters)
		}
	}
	if _, err := d.Stop(s.ctx); err != nil {
		t.Fatal(err)
	}
	s.clean()
	for _, v := range d.Verdicts(server) {
		if v.MidStream || v.Revised == 0 && !v.Complete && !v.Provisional {
			t.Errorf("another verdict %+v", v)
		}
	}
}

// What is blocked at one uplink stays blocked at the other, also after the daemon was killed
// and another one has adopted both.
func TestFailoverOfABlockedConnection(t *testing.T) {
	t.Parallel()
	s := newScene(t, lab.Config{ServerLink: slow})
	moveThere := s.secondLink()
	file := s.policy("enforce", "10m")
	d := s.uplinks("--policy", file)
	tun := must(s.StartShadowsocks(s.ctx, lab.ShadowsocksConfig{}))(t)
	tr, v := s.tunnelled(d, tun, true)
	s.risen(v, 1)
	if n := s.droppedAt()[secondDevice]; n != 0 {
		t.Errorf("%d packets were dropped where none was", n)
	}
	passed := tr.bytes.Load()
	moveThere()
	err := rig.Until(s.ctx, func() (bool, error) { return s.droppedAt()[secondDevice] >= 2, nil })
	if err != nil {
		t.Fatalf("nothing is dropped at the other uplink: %v", err)
	}
	s.risen(v, 1)

	d.Kill()
	before := s.droppedAt()[secondDevice]
	err = rig.Until(s.ctx, func() (bool, error) { return s.droppedAt()[secondDevice] > before, nil })
	if err != nil {
		t.Fatalf("nothing is dropped while no daemon runs: %v", err)
	}
	d = s.uplinks("--policy", file)
	for _, e := range rig.Of[*event.Attached](d.Events()) {
		if !e.Adopted {
			t.Errorf("%s is not adopted", e.Interface)
		}
	}
	s.risen(v, 1)
	if now := tr.bytes.Load(); now > s.web.LargeBytes/4 {
		t.Errorf("%d bytes of the blocked download passed, %d before the failover", now, passed)
	}
	tr.stop()
	s.stop(d)
}
