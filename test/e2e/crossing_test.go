// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"encoding/json"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/earlydrop/earlydrop/cmd/earlydrop/event"
	"github.com/earlydrop/earlydrop/cmd/earlydrop/status"
	"github.com/earlydrop/earlydrop/test/e2e/rig"
	"github.com/earlydrop/earlydrop/test/lab"
)

// both attaches one process to both sides of the gateway.
func (s *scene) both(args ...string) *rig.Daemon {
	s.t.Helper()
	d := s.attach(append([]string{"-i", lab.GatewayClientDev, "-i", lab.GatewayServerDev}, args...)...)
	for _, device := range []string{lab.GatewayClientDev, lab.GatewayServerDev} {
		must(rig.Wait(s.ctx, d, "the attached event of "+device, func(e *event.Attached) bool { return e.Interface == device }))(s.t)
	}
	return d
}

// allBlocks returns the blocks of all interfaces.
func (s *scene) allBlocks() (blocks []status.Block) {
	s.t.Helper()
	for line := range strings.Lines(must(s.Earlydrop(s.ctx, "blocked", "list", "--json"))(s.t)) {
		var b status.Block
		if err := json.Unmarshal([]byte(line), &b); err != nil {
			s.t.Fatal(err)
		}
		blocks = append(blocks, b)
	}
	return blocks
}

// masquerade has the gateway hide the client's addresses, as home and office routers do.
func (s *scene) masquerade() {
	s.t.Helper()
	rules := s.file("nat.nft", `table inet nat {
	chain post {
		type nat hook postrouting priority 100;
		oifname "`+lab.GatewayServerDev+`" masquerade
	}
}
`)
	if out := must(s.Run(s.ctx, "nft", "-f", rules))(s.t); out.Code != 0 {
		s.t.Fatalf("nft: %+v", out)
	}
}

// A connection that comes in by one attached interface and leaves by the other is judged
// once, told of once and blocked once, whether or not its addresses are translated.
func TestFlowThroughTwoInterfacesIsTreatedOnce(t *testing.T) {
	t.Parallel()
	for _, nat := range []bool{false, true} {
		name := "routed"
		if nat {
			name = "NAT"
		}
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newScene(t, lab.Config{ServerLink: slow})
			if nat {
				s.masquerade()
			}
			d := s.both("--policy", s.policy("enforce", "10m"))
			crossed := func(n uint64) {
				t.Helper()
				err := rig.Until(s.ctx, func() (bool, error) {
					all := s.statuses()
					return all[lab.GatewayClientDev].Daemon["crossed"]+all[lab.GatewayServerDev].Daemon["crossed"] >= n, nil
				})
				if err != nil {
					t.Fatalf("%d flows are not recognised at the second interface: %v", n, err)
				}
			}
			for range 3 {
				if r := s.Curl(s.ctx, nil, s.URL("https", 4, s.web.HTTPSPort, "/1m")); r.Err != nil {
					t.Fatal(r.Err)
				}
			}
			crossed(3)

			answers := s.answering(func(b []byte) []byte { return append(b, b...) })
			udp := must(s.Client.Dial(s.ctx, "udp", answers.String()))(t)
			defer udp.Close()
			_ = udp.SetDeadline(time.Now().Add(limit))
			question, answer := make([]byte, 300), make([]byte, 1000)
			for range 3 {
				if _, err := udp.Write(question); err != nil {
					t.Fatal(err)
				}
				if n, err := udp.Read(answer); err != nil || n != 600 {
					t.Fatalf("%d bytes of answer, %v", n, err)
				}
			}
			flows := uint64(3)
			if !nat { // behind NAT, UDP is not recognised
				flows++
			}
			crossed(flows)

			tun := must(s.StartShadowsocks(s.ctx, lab.ShadowsocksConfig{}))(t)
			tr, v := s.tunnelled(d, tun, true)
			connections := len(d.Verdicts(tun.Server))
			crossed(flows + uint64(connections))
			blocked := func() status.Block {
				t.Helper()
				blocks := s.allBlocks()
				if len(blocks) != 1 || blocks[0].Interface != v.Interface || blocks[0].Lo != v.Src && blocks[0].Hi != v.Src {
					t.Fatalf("blocks %+v; want one, of %s at %s", blocks, v.Src, v.Interface)
				}
				return blocks[0]
			}
			first := blocked()
			err := rig.Until(s.ctx, func() (bool, error) { return blocked().Packets >= first.Packets+3, nil })
			if err != nil {
				t.Errorf("nothing is dropped: %v", err)
			}
			if passed := tr.bytes.Load(); passed > s.web.LargeBytes/4 {
				t.Errorf("%d bytes of the blocked download passed", passed)
			}
			if nat {
				s.says(d, "translated (NAT)", "inner="+lab.GatewayClientDev)
			} else if strings.Contains(d.Stderr(), "NAT") {
				t.Errorf("NAT is told of: %s", d.Stderr())
			}
			tr.stop()
			s.stop(d)
			if n := len(d.Verdicts(netip.AddrPortFrom(s.ServerAddr(4), s.web.HTTPSPort))); n != 3 {
				t.Errorf("%d verdicts about 3 connections", n)
			}
			if n := len(d.Verdicts(tun.Server)); n != connections {
				t.Errorf("%d verdicts about %d connections", n, connections)
			}
			if n := len(d.Verdicts(answers)); !nat && n != 1 || nat && n != 2 {
				t.Errorf("%d verdicts about UDP", n)
			}
			judged := uint64(0)
			for _, e := range rig.Of[*event.Ended](d.Events()) {
				judged += e.Counters["classified"]
			}
			if n := len(rig.Of[*event.Verdict](d.Events())); judged != uint64(n) {
				t.Errorf("%d verdicts were counted and %d told", judged, n)
			}
			if strings.Count(d.Stderr(), "translated (NAT)") > 1 {
				t.Errorf("told of more than once: %s", d.Stderr())
			}
		})
	}
}
