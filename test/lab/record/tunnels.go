// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/earlydrop/earlydrop/test/lab"
)

// Labels of what is recorded. All but background are tunnels.
const (
	background  = "background"
	shadowsocks = "shadowsocks"
	v2ray       = "v2ray" // VMess, of whatever program
	vless       = "vless"
	trojan      = "trojan"
	socks5      = "socks5"
	obfs4       = "obfs4"
	openvpn     = "openvpn"
	wireguard   = "wireguard"
	sshLabel    = "ssh"
)

// family is the tunnels of one label by one program. Under each condition
// draw of them are started, and each carries runs activities.
type family struct {
	label, program string
	draw, runs     int
	offers         []offer
}

// offer is one tunnel that can be started: by start, or, where that is nil, as
// one of the tunnels that the family's program holds in one process.
type offer struct {
	cipher string
	proxy  lab.ProxyConfig
	start  func(ctx context.Context, e *env, r *rand.Rand, port uint16) (*lab.Tunnel, error)
	udp    bool // relays datagrams as well
}

// families is what can be drawn under a condition.
func families() []family {
	methods := func(program, protocol string) (list []offer) {
		for _, m := range lab.Methods(program, protocol) {
			list = append(list, offer{cipher: m, proxy: lab.ProxyConfig{Protocol: protocol, Method: m}, udp: protocol == lab.Shadowsocks})
		}
		return list
	}
	transports := func(protocol string, names ...string) (list []offer) {
		for _, t := range names {
			name := t
			if t == "" {
				name = "plain"
			}
			list = append(list, offer{cipher: name, proxy: lab.ProxyConfig{Protocol: protocol, Transport: t}})
		}
		return list
	}
	one := func(cipher string, start func(ctx context.Context, e *env, r *rand.Rand, port uint16) (*lab.Tunnel, error)) []offer {
		return []offer{{cipher: cipher, start: start}}
	}
	var libev, blinkSS, blinkVMess []offer
	for _, m := range lab.Ciphers {
		libev = append(libev, offer{cipher: m, udp: true, start: func(ctx context.Context, e *env, r *rand.Rand, port uint16) (*lab.Tunnel, error) {
			return e.l.StartShadowsocks(ctx, lab.ShadowsocksConfig{Cipher: m, Port: port, Version: e.c.Version, Resolve: e.server(), NoDelay: r.Float64() < 0.5, UDP: true})
		}})
	}
	blink := func(protocol, method string) offer {
		return offer{cipher: method, start: func(ctx context.Context, e *env, _ *rand.Rand, port uint16) (*lab.Tunnel, error) {
			return e.l.StartBlinksocks(ctx, protocol, method, e.serverConfig(port))
		}}
	}
	for _, m := range lab.BlinksocksMethods {
		blinkSS = append(blinkSS, blink(lab.Shadowsocks, m))
	}
	for _, m := range []string{"aes-128-gcm", "chacha20-poly1305", "none"} {
		blinkVMess = append(blinkVMess, blink(lab.VMess, m))
	}
	v2rayVMess := append(methods(lab.V2Ray, lab.VMess),
		offer{cipher: "auto-http-header", proxy: lab.ProxyConfig{Protocol: lab.VMess, Transport: "http"}},
		offer{cipher: "auto-alterid", proxy: lab.ProxyConfig{Protocol: lab.VMess, AlterID: 16}})
	singVMess := append(methods(lab.SingBox, lab.VMess),
		offer{cipher: "auto-padding", proxy: lab.ProxyConfig{Protocol: lab.VMess, Padding: true}},
		offer{cipher: "auto-alterid", proxy: lab.ProxyConfig{Protocol: lab.VMess, AlterID: 16}})
	return []family{
		{shadowsocks, "shadowsocks-libev", 3, 3, libev},
		{shadowsocks, lab.V2Ray, 2, 2, methods(lab.V2Ray, lab.Shadowsocks)},
		{shadowsocks, lab.Xray, 3, 2, methods(lab.Xray, lab.Shadowsocks)},
		{shadowsocks, lab.SingBox, 3, 2, methods(lab.SingBox, lab.Shadowsocks)},
		{shadowsocks, "blinksocks", 1, 4, blinkSS},
		{v2ray, lab.V2Ray, 4, 2, v2rayVMess},
		{v2ray, lab.Xray, 4, 2, methods(lab.Xray, lab.VMess)},
		{v2ray, lab.SingBox, 4, 2, singVMess},
		{v2ray, "blinksocks", 1, 4, blinkVMess},
		// These look like any other TLS; they are here to measure that.
		{v2ray, lab.V2Ray, 1, 2, transports(lab.VMess, "tls", "ws-tls")},
		{v2ray, lab.Xray, 1, 2, transports(lab.VMess, "tls", "ws-tls")},
		{vless, lab.V2Ray, 2, 2, transports(lab.VLESS, "", "tls")},
		{vless, lab.Xray, 2, 2, transports(lab.VLESS, "", "tls")},
		{vless, lab.SingBox, 2, 2, transports(lab.VLESS, "", "tls")},
		{trojan, "trojan", 1, 4, one("tls", func(ctx context.Context, e *env, _ *rand.Rand, port uint16) (*lab.Tunnel, error) {
			return e.l.StartTrojan(ctx, e.serverConfig(port))
		})},
		{trojan, lab.Xray, 1, 4, transports(lab.Trojan, "tls")},
		{trojan, lab.SingBox, 1, 4, transports(lab.Trojan, "tls")},
		{socks5, "microsocks", 1, 4, one("plain", func(ctx context.Context, e *env, _ *rand.Rand, port uint16) (*lab.Tunnel, error) {
			return e.l.StartSOCKS(ctx, "microsocks", e.serverConfig(port))
		})},
		{socks5, "dante", 1, 4, one("plain", func(ctx context.Context, e *env, _ *rand.Rand, port uint16) (*lab.Tunnel, error) {
			return e.l.StartSOCKS(ctx, "danted", e.serverConfig(port))
		})},
		{socks5, lab.Xray, 1, 4, transports(lab.SOCKS5, "")},
		{socks5, lab.SingBox, 1, 4, transports(lab.SOCKS5, "")},
		{obfs4, "obfs4proxy", 1, 5, one("iat", func(ctx context.Context, e *env, r *rand.Rand, port uint16) (*lab.Tunnel, error) {
			return e.startObfs4(ctx, port, pick(r, "0", "0", "1", "2"))
		})},
	}
}

func (e *env) serverConfig(port uint16) lab.ServerConfig {
	return lab.ServerConfig{Port: port, Version: e.c.Version, Resolve: e.server()}
}

// shared are the programs that hold many tunnels in one process.
var shared = []string{lab.V2Ray, lab.Xray, lab.SingBox}

// clientFirst are services in whose protocols the client speaks first.
var clientFirst = []string{"http", "https", "go-http", "go-https", "apache", "caddy", "haproxy", "lighttpd", "redis", "memcached", "dns", "dot"}

// drawn is a tunnel to be started.
type drawn struct {
	family
	offer
	port uint16
	r    *rand.Rand
	via  *lab.Tunnel
}

// tunnels draws and starts tunnels of every family and draws what each
// carries.
func tunnels(ctx context.Context, o options, e *env, r *rand.Rand, p *ports, log *slog.Logger) ([]job, error) {
	if o.only != "" {
		return nil, nil
	}
	var all []*drawn
	byProgram := map[string][]*drawn{}
	for _, f := range append(families(), family{background, "custom", 5, 3, customOffers(r, 5)}) {
		r.Shuffle(len(f.offers), func(a, b int) { f.offers[a], f.offers[b] = f.offers[b], f.offers[a] })
		for _, of := range f.offers[:f.draw] {
			d := &drawn{family: f, offer: of, port: p.next(), r: rand.New(rand.NewPCG(r.Uint64(), 0))}
			all = append(all, d)
			if of.start == nil {
				byProgram[f.program] = append(byProgram[f.program], d)
			}
		}
	}
	var wg sync.WaitGroup
	leftOut := func(what string, err error) {
		log.Warn("tunnel left out", "condition", e.c.ID, "what", what, "err", err)
	}
	for _, program := range shared {
		wg.Go(func() {
			var cfgs []lab.ProxyConfig
			for _, d := range byProgram[program] {
				cfg := d.proxy
				cfg.Port, cfg.Version = d.port, e.c.Version
				cfgs = append(cfgs, cfg)
			}
			ts, err := e.l.StartProxies(ctx, program, e.server(), cfgs)
			if err != nil {
				leftOut(program, err)
				return
			}
			for i, d := range byProgram[program] {
				d.via = ts[i]
			}
		})
	}
	for _, d := range all {
		if d.start == nil {
			continue
		}
		wg.Go(func() {
			t, err := d.start(ctx, e, d.r, d.port)
			if err != nil {
				leftOut(d.label+" "+d.program+" "+d.cipher, err)
				return
			}
			d.via = t
		})
	}
	wg.Wait()

	var carried, datagrams []activity
	for _, a := range activities {
		if _, ok := e.port[a.service]; !ok {
			continue
		}
		switch {
		case a.tunnel:
			carried = append(carried, a)
		case a.datagrams:
			datagrams = append(datagrams, a)
		}
	}
	var jobs []job
	for i, d := range all {
		if d.via == nil {
			continue
		}
		kind := tunnelKind
		if d.label == background {
			kind = randomLike
		}
		j := job{via: d.via, ports: []uint16{d.port}}
		run := func(a activity, cipher string, flows int) {
			j.runs = append(j.runs, jobRun{act: a, label: d.label, kind: kind, flows: flows, program: d.program, cipher: cipher,
				path: filepath.Join(e.c.ID, fmt.Sprintf("%s.%s.%s.%d.%s.pcap", d.label, d.program, cipher, i, a.name))})
		}
		mine := carried
		if d.program == "blinksocks" { // it waits for what its client says first
			mine = nil
			for _, a := range carried {
				if slices.Contains(clientFirst, a.service) {
					mine = append(mine, a)
				}
			}
		}
		for _, a := range drawActivities(d.r, mine, scaled(o, d.runs)) {
			run(a, d.cipher, 2)
		}
		if d.udp {
			for _, a := range drawActivities(d.r, datagrams, 1) {
				run(a, d.cipher+"-udp", 2)
			}
		}
		jobs = append(jobs, j)
	}
	return jobs, nil
}

func scaled(o options, n int) int { return max(1, int(float64(n)*o.scale+0.5)) }

// drawActivities draws n different ones, those that the background runs often
// with a greater chance.
func drawActivities(r *rand.Rand, from []activity, n int) []activity {
	left := append([]activity(nil), from...)
	var got []activity
	for range min(n, len(from)) {
		sum := 0
		for _, a := range left {
			sum += a.weight()
		}
		at := r.IntN(sum)
		for i, a := range left {
			if at -= a.weight(); at < 0 {
				got = append(got, a)
				left = append(left[:i], left[i+1:]...)
				break
			}
		}
	}
	return got
}

func (a activity) weight() int {
	if a.label != "" {
		return 2
	}
	return max(1, a.direct)
}

// backgroundJobs makes a job of each service, of what runs directly: the
// background, and tunnels that are reached without a local proxy.
func backgroundJobs(o options, e *env, r *rand.Rand) []job {
	var jobs []job
	at := map[string]int{}
	for _, a := range activities {
		port, ok := e.port[a.service]
		if !ok || a.direct == 0 || !strings.Contains(a.name, o.only) {
			continue
		}
		i, ok := at[a.service]
		if !ok {
			i = len(jobs)
			at[a.service] = i
			jobs = append(jobs, job{ports: append([]uint16{port}, e.more[a.service]...)})
		}
		label, kind := background, a.kind
		if a.label != "" {
			label, kind = a.label, tunnelKind
		}
		jobs[i].runs = append(jobs[i].runs, jobRun{act: a, label: label, kind: kind, flows: scaled(o, a.direct),
			path: filepath.Join(e.c.ID, fmt.Sprintf("%s.%s.pcap", label, a.name)), program: a.program, cipher: a.variant})
	}
	for _, j := range jobs {
		r.Shuffle(len(j.runs), func(a, b int) { j.runs[a], j.runs[b] = j.runs[b], j.runs[a] })
	}
	return jobs
}
