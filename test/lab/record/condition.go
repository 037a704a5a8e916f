// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/earlydrop/earlydrop/test/lab"
)

// condition is one state of the network. Every class runs under every
// condition, and nothing of it is drawn from a class, so that no model can
// tell classes by the network they were recorded in.
type condition struct {
	ID      string
	Config  lab.Config
	Version int    // of IP
	Point   string // device where the capture is taken
	Text    string // the draws, for the manifest
}

// devices where a capture can be taken.
var points = []string{lab.ClientDev, lab.GatewayClientDev, lab.GatewayServerDev, lab.ServerDev}

// drawCondition returns condition number i of a seed, always the same.
func drawCondition(seed uint64, i int) condition {
	r := rand.New(rand.NewPCG(seed, 1<<32+uint64(i)))
	c := condition{ID: fmt.Sprintf("lab-%d-%03d", seed, i), Version: 4, Point: pick(r, points...)}
	var text []string
	note := func(k string, v any) { text = append(text, fmt.Sprintf("%s=%v", k, v)) }

	if r.Float64() < 0.4 {
		c.Version = 6
	}
	note("ip", c.Version)
	note("point", c.Point)

	c.Config.ClientNet4, c.Config.ServerNet4 = drawNet4(r), drawNet4(r)
	for c.Config.ServerNet4.Overlaps(c.Config.ClientNet4) {
		c.Config.ServerNet4 = drawNet4(r)
	}
	c.Config.ClientNet6, c.Config.ServerNet6 = drawNet6(r, 1), drawNet6(r, 2)

	if r.Float64() < 0.25 {
		c.Config.VLAN = uint16(1 + r.IntN(4094))
	}
	note("vlan", c.Config.VLAN)

	mtu := pick(r, 1500, 1500, 1500, 1492, 1480, 1460, 1420, 1400, 1380, 1280, 9000, 1280+r.IntN(221))
	near, far := mtu, mtu
	if r.Float64() < 0.2 { // a path MTU that one end learns
		far = pick(r, 1500, 1450, 1360)
	}
	note("mtu", fmt.Sprintf("%d/%d", near, far))
	noOffload := r.Float64() < 0.5
	note("offload", !noOffload)
	for _, l := range []struct {
		cfg *lab.LinkConfig
		mtu int
	}{{&c.Config.ClientLink, near}, {&c.Config.ServerLink, far}} {
		l.cfg.MTU, l.cfg.NoOffload = l.mtu, noOffload
		l.cfg.NearMAC, l.cfg.FarMAC = drawMAC(r), drawMAC(r)
	}

	// Two thirds have a leg with delay: which packets wait for which, and
	// where ACKs fall between them, depends on it.
	if r.Float64() < 0.67 {
		var rc lab.RelayConfig
		rc.Delay = time.Duration(float64(time.Millisecond) * pick(r, 0.5, 1, 2, 5, 8, 12, 20, 30, 45, 60, 80))
		if r.Float64() < 0.6 {
			rc.Jitter = time.Duration(r.Float64() * 0.4 * float64(rc.Delay))
		}
		if r.Float64() < 0.35 {
			rc.Loss = r.Float64() * 0.02
		}
		if r.Float64() < 0.3 {
			rc.Reorder = r.Float64() * 0.03
		}
		if r.Float64() < 0.35 {
			rc.Rate = pick[int64](r, 4e6, 10e6, 25e6, 50e6, 100e6)
		}
		rc.Seed = r.Uint64()
		where := "server"
		if r.Float64() < 0.35 {
			where, c.Config.ClientLink.Relay = "client", rc
		} else {
			c.Config.ServerLink.Relay = rc
		}
		note("relay", where)
		note("delay", rc.Delay.Round(100*time.Microsecond))
		note("jitter", rc.Jitter.Round(100*time.Microsecond))
		note("loss", strconv.FormatFloat(rc.Loss, 'f', 4, 64))
		note("reorder", strconv.FormatFloat(rc.Reorder, 'f', 4, 64))
		note("rate", rc.Rate)
	}

	for _, h := range []struct {
		name string
		cfg  *lab.HostConfig
	}{{"client", &c.Config.Client}, {"server", &c.Config.Server}} {
		h.cfg.TTL = pick(r, 64, 64, 64, 128, 128, 255, 32+r.IntN(224))
		rmem := pick(r, 32768, 65536, 87380, 131072, 262144, 524288)
		h.cfg.Sysctl = map[string]string{
			"net.ipv4.tcp_timestamps":         onOff(r, 0.65),
			"net.ipv4.tcp_sack":               onOff(r, 0.85),
			"net.ipv4.tcp_window_scaling":     onOff(r, 0.85),
			"net.ipv4.tcp_ecn":                pick(r, "0", "1", "2", "2"),
			"net.ipv4.tcp_congestion_control": pick(r, congestionControls()...),
			// Some servers drop root's rights before they bind.
			"net.ipv4.ip_unprivileged_port_start": "0",
			"net.ipv4.tcp_rmem":                   fmt.Sprintf("4096 %d 6291456", rmem),
			"net.ipv4.ip_local_port_range":        "32768 60999",
		}
		s := h.cfg.Sysctl
		note(h.name, fmt.Sprintf("ttl:%d,ts:%s,sack:%s,ws:%s,ecn:%s,cc:%s,rmem:%d", h.cfg.TTL,
			s["net.ipv4.tcp_timestamps"], s["net.ipv4.tcp_sack"], s["net.ipv4.tcp_window_scaling"], s["net.ipv4.tcp_ecn"], s["net.ipv4.tcp_congestion_control"], rmem))
	}
	c.Text = strings.Join(text, " ")
	return c
}

// congestionControls returns what a namespace other than the first may use.
var congestionControls = sync.OnceValue(func() []string {
	b, err := os.ReadFile("/proc/sys/net/ipv4/tcp_allowed_congestion_control")
	if names := strings.Fields(string(b)); err == nil && len(names) > 0 {
		return names
	}
	return []string{"reno"}
})

// namespace returns where the capture point's device is.
func (c condition) namespace(l *lab.Lab) *lab.Namespace {
	switch c.Point {
	case lab.ClientDev:
		return l.Client
	case lab.ServerDev:
		return l.Server
	}
	return l.Gateway
}

func pick[T any](r *rand.Rand, from ...T) T { return from[r.IntN(len(from))] }

func onOff(r *rand.Rand, p float64) string {
	if r.Float64() < p {
		return "1"
	}
	return "0"
}

func drawMAC(r *rand.Rand) net.HardwareAddr {
	m := make(net.HardwareAddr, 6)
	for i := range m {
		m[i] = byte(r.Uint32())
	}
	m[0] &^= 1 // unicast
	return m
}

func drawNet4(r *rand.Rand) netip.Prefix {
	first := pick(r, 10, 10, 192, 172, 45, 84, 103, 198)
	b := [4]byte{byte(first), byte(r.IntN(256)), byte(r.IntN(256)), 0}
	if first == 192 {
		b[1] = 168
	}
	return netip.PrefixFrom(netip.AddrFrom4(b), 24)
}

func drawNet6(r *rand.Rand, leg byte) netip.Prefix {
	b := [16]byte{0x20, 0x01, 0x0d, 0xb8}
	if r.Float64() < 0.5 {
		b = [16]byte{0x2a, byte(r.IntN(16)), byte(r.IntN(256)), byte(r.IntN(256))}
	}
	b[4], b[5], b[6], b[7] = byte(r.IntN(256)), byte(r.IntN(256)), byte(r.IntN(256)), leg
	return netip.PrefixFrom(netip.AddrFrom16(b), 64)
}

// usualPorts are server ports that people pick, for whatever program: classes
// share them, so that a port tells nothing.
var usualPorts = []uint16{80, 443, 22, 25, 110, 143, 465, 587, 993, 1080, 1194, 1883, 2222, 3000, 3128, 3306, 3389, 4443, 5000, 5222, 5432,
	6379, 6667, 8000, 8080, 8081, 8088, 8388, 8389, 8443, 8888, 9000, 9001, 9443, 10000, 10080, 10086, 10443, 11211, 12345, 20000}

// ports hands out server ports, each once.
type ports struct {
	r    *rand.Rand
	used map[uint16]bool
}

func newPorts(seed uint64, i int) *ports {
	return &ports{r: rand.New(rand.NewPCG(seed, 2<<32+uint64(i))), used: map[uint16]bool{53: true, 69: true}}
}

func (p *ports) next() uint16 {
	for {
		port := uint16(1024 + p.r.IntN(30000-1024)) // below the range of clients
		if p.r.Float64() < 0.4 {
			port = pick(p.r, usualPorts...)
		}
		if !p.used[port] {
			p.used[port] = true
			return port
		}
	}
}
