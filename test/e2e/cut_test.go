// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/earlydrop/earlydrop/cmd/earlydrop/event"
	"github.com/earlydrop/earlydrop/test/e2e/rig"
	"github.com/earlydrop/earlydrop/test/lab"
)

// ordinary uses HTTPS, SSH and DNS through the gateway and makes sure that all of
// it arrives. It returns the servers' endpoints.
func (s *scene) ordinary() []netip.AddrPort {
	s.t.Helper()
	dns := must(s.StartDNS(s.ctx, lab.DNSConfig{}))(s.t)
	defer dns.Stop()
	ssh := must(s.StartSSH(s.ctx, 0))(s.t)
	check := func(what string, r lab.Result, want int64) {
		s.t.Helper()
		if r.Err != nil || r.Bytes != want {
			s.t.Errorf("%s was touched: %d of %d bytes, %v", what, r.Bytes, want, r.Err)
		}
	}
	var servers []netip.AddrPort
	for _, v := range []int{4, 6} {
		check("https", s.Curl(s.ctx, nil, s.URL("https", v, s.web.HTTPSPort, "/1m")), 1<<20)
		check("https by HTTP/1.1", s.Curl(s.ctx, nil, s.URL("https", v, s.web.HTTPSPort, "/large"), "--http1.1"), s.web.LargeBytes)
		check("ssh command", s.SSHCommand(s.ctx, ssh, v, "printf hello"), 5)
		check("ssh transfer", s.SSHTransfer(s.ctx, ssh, v, 1<<20), 1<<20)
		check("dns", s.Lookup(s.ctx, dns, v, "udp", "www.lab.example"), 4+16)
		check("dns over tcp", s.Lookup(s.ctx, dns, v, "tcp", "www.lab.example"), 4+16)
		for _, port := range []uint16{s.web.HTTPSPort, ssh.Port, dns.Port} {
			servers = append(servers, netip.AddrPortFrom(s.ServerAddr(v), port))
		}
	}
	return servers
}

// passed makes sure that every server's flows were classified, and none as one to
// drop.
func (s *scene) passed(d *rig.Daemon, servers []netip.AddrPort) {
	s.t.Helper()
	for _, server := range servers {
		if _, err := d.Verdict(s.ctx, server, 1); err != nil {
			s.t.Fatal(err)
		}
		for _, v := range d.Verdicts(server) {
			if v.Decision != "pass" || *v.Enforced {
				s.t.Errorf("an ordinary flow to %s: %s %.4f, decision %s, enforced %v", v.Dst, v.Class, v.Confidence, v.Decision, *v.Enforced)
			}
		}
	}
}

// With the policy and the model that the program ships, ordinary traffic passes.
func TestBuiltInPolicyLeavesOrdinaryTrafficAlone(t *testing.T) {
	t.Parallel()
	s := newScene(t, lab.Config{})
	d := s.attach("--mode", "enforce")
	if d.Attached.Policy != "built-in" {
		t.Errorf("attached: %+v", d.Attached)
	}
	s.passed(d, s.ordinary())
	if blocks := must(s.Blocks(s.ctx))(t); len(blocks) != 0 {
		t.Errorf("blocked: %+v", blocks)
	}
	s.stop(d)
}

// Enforce cuts what runs through Shadowsocks and VMess and leaves ordinary
// traffic on the same interface alone.
func TestEnforceCutsTunnelsAndNothingElse(t *testing.T) {
	t.Parallel()
	s := newScene(t, lab.Config{ServerLink: slow})
	d := s.enforce()
	if d.Attached.Ingress != "tcx" || !strings.HasPrefix(d.Attached.IngressWhy, "a veth ") || d.Attached.XDP != "none" || d.Attached.Egress != "tcx" || d.Attached.Mode != "enforce" || d.Attached.Adopted {
		t.Errorf("attached: %+v", d.Attached)
	}
	tunnels := []*lab.Tunnel{
		must(s.StartShadowsocks(s.ctx, lab.ShadowsocksConfig{Cipher: "aes-256-gcm"}))(t),
		must(s.StartShadowsocks(s.ctx, lab.ShadowsocksConfig{Cipher: "chacha20-ietf-poly1305"}))(t),
		must(s.StartVMess(s.ctx, lab.VMessConfig{}))(t),
	}
	for _, tun := range tunnels {
		tr, v := s.tunnelled(d, tun, true)
		s.stalled(tr, v)
	}
	// The tunnels' downloads hang while ordinary traffic goes on beside them.
	servers := s.ordinary()
	s.passed(d, servers)
	blocks := must(s.Blocks(s.ctx))(t)
	if len(blocks) < len(tunnels) {
		t.Errorf("%d blocks, want one per download: %+v", len(blocks), blocks)
	}
	for _, b := range blocks {
		if !slices.ContainsFunc(tunnels, func(tun *lab.Tunnel) bool { return b.Lo == tun.Server || b.Hi == tun.Server }) {
			t.Errorf("blocked, but no tunnel: %+v", b)
		}
	}
	if c := must(s.Status(s.ctx))(t).Counters; c["dropped_packets"] == 0 || c["dropped_bytes"] == 0 {
		t.Errorf("counters show no drop: %v", c)
	}
	last := s.stop(d)
	tunnelled := uint64(0)
	for _, class := range tunnelClasses {
		tunnelled += last.Classes[class]
	}
	if tunnelled < 3 || last.Counters["blocked"] < 3 || last.Persisted {
		t.Errorf("summary %+v", last)
	}
}

func TestMonitorDropsNothingAndReportsTheSame(t *testing.T) {
	t.Parallel()
	s := newScene(t, lab.Config{ServerLink: slow})
	d := s.attach("--policy", s.policy("monitor", "10m"))
	if d.Attached.Mode != "monitor" {
		t.Errorf("attached: %+v", d.Attached)
	}
	for what, tun := range map[string]*lab.Tunnel{
		"shadowsocks": must(s.StartShadowsocks(s.ctx, lab.ShadowsocksConfig{}))(t),
		"vmess":       must(s.StartVMess(s.ctx, lab.VMessConfig{}))(t),
	} {
		tr, _ := s.tunnelled(d, tun, false)
		s.complete(what, tr)
	}
	if blocks := must(s.Blocks(s.ctx))(t); len(blocks) > 0 {
		t.Errorf("monitor has blocked: %+v", blocks)
	}
	s.stop(d)
}

// cut has a tunnel's connection cut: by the policy, or, in a VLAN, by hand, as the
// model has seen few tags and may not know a tunnel behind one.
func (s *scene) cut(d *rig.Daemon, tun *lab.Tunnel, vlan uint16) (*transfer, *event.Verdict) {
	s.t.Helper()
	if vlan == 0 {
		return s.tunnelled(d, tun, true)
	}
	tr := s.download(tun)
	v := must(d.Verdict(s.ctx, tun.Server, 0))(s.t)
	must(s.Earlydrop(s.ctx, "blocked", "add", "-i", rig.Device, "--vlan", fmt.Sprint(vlan), "tcp", v.Src.String(), v.Dst.String()))(s.t)
	return tr, v
}

// The same on other kinds of frames and the other XDP mode.
func TestEnforceOnOtherPaths(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name    string
		cfg     lab.Config
		args    []string
		version int
		xdp     string
	}{
		{"ipv6", lab.Config{}, nil, 6, "none"},
		{"native", lab.Config{}, []string{"--xdp", "native"}, 4, "native"},
		{"native vlan", lab.Config{VLAN: 77}, []string{"--ingress", "xdp"}, 4, "native"},
		{"vlan", lab.Config{VLAN: 77}, nil, 4, "none"},
		{"vlan ipv6", lab.Config{VLAN: 4094}, nil, 6, "none"},
		{"generic", lab.Config{}, []string{"--xdp", "generic"}, 4, "generic"},
		{"generic vlan", lab.Config{VLAN: 77}, []string{"--xdp", "generic"}, 4, "generic"},
		{"no offload", lab.Config{ClientLink: lab.LinkConfig{NoOffload: true}}, nil, 4, "none"},
		{"jumbo", lab.Config{ClientLink: lab.LinkConfig{MTU: 9000}}, nil, 4, "none"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			tt.cfg.ServerLink = slow
			s := newScene(t, tt.cfg)
			d := s.enforce(tt.args...)
			if d.Attached.XDP != tt.xdp {
				t.Errorf("xdp %s, want %s", d.Attached.XDP, tt.xdp)
			}
			tun := must(s.StartShadowsocks(s.ctx, lab.ShadowsocksConfig{Version: tt.version}))(t)
			tr, v := s.cut(d, tun, tt.cfg.VLAN)
			// The fourth packet is there only if both directions have one key:
			// the capture is full with the third of the client's.
			if v.VLAN != tt.cfg.VLAN || v.InnerVLAN != 0 || v.Src.Addr() != s.ClientAddr(tt.version) {
				t.Errorf("flow %s > %s vlan %d.%d, want from %s in vlan %d", v.Src, v.Dst, v.VLAN, v.InnerVLAN, s.ClientAddr(tt.version), tt.cfg.VLAN)
			}
			s.stalled(tr, v)
			for _, version := range []int{4, 6} {
				if r := s.Curl(s.ctx, nil, s.URL("https", version, s.web.HTTPSPort, "/1m")); r.Err != nil || r.Bytes != 1<<20 {
					t.Errorf("https by IPv%d was touched: %+v", version, r)
				}
			}
			s.stop(d)
		})
	}
}
