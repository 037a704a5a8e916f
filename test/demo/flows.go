// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/earlydrop/earlydrop/cmd/earlydrop/event"
	"github.com/earlydrop/earlydrop/cmd/earlydrop/status"
	"github.com/earlydrop/earlydrop/test/e2e/rig"
	"github.com/earlydrop/earlydrop/test/lab"
)

const largeMB = 8

// connections bounds how many a tunnel gets until one is cut: the model misses some,
// as its card tells.
const connections = 3

// flow is one row of the demonstration: one use of the network.
type flow struct {
	what   string
	tunnel bool // to be cut; all else is to be left alone

	verdict event.Verdict // the zero one when there was none
	passed  int64         // bytes of content that the client got
	wanted  int64         // bytes that there were to get
	block   status.Block  // what the kernel dropped, of a tunnel
	ok      bool          // it went as it should
}

// useNetwork runs every program, one after the other, and tells what became of it.
func useNetwork(ctx context.Context, r *rig.Rig, d *rig.Daemon) ([]*flow, error) {
	web, err := r.StartNginx(ctx, lab.NginxConfig{LargeMB: largeMB})
	if err != nil {
		return nil, err
	}
	sshd, err := r.StartSSH(ctx, 0)
	if err != nil {
		return nil, err
	}
	dns, err := r.StartDNS(ctx, lab.DNSConfig{})
	if err != nil {
		return nil, err
	}
	url := func(scheme string, version int, path string) string {
		port := web.HTTPSPort
		if scheme == "http" {
			port = web.HTTPPort
		}
		return r.URL(scheme, version, port, path)
	}
	at := func(version int, port uint16) netip.AddrPort { return netip.AddrPortFrom(r.ServerAddr(version), port) }

	const mb = 1 << 20
	var flows []*flow
	for _, o := range []struct {
		what   string
		server netip.AddrPort
		want   int64
		use    func() lab.Result
	}{
		{"https", at(4, web.HTTPSPort), web.LargeBytes, func() lab.Result { return r.Curl(ctx, nil, url("https", 4, "/large")) }},
		{"https, HTTP/1.1", at(6, web.HTTPSPort), web.LargeBytes, func() lab.Result { return r.Curl(ctx, nil, url("https", 6, "/large"), "--http1.1") }},
		{"http", at(4, web.HTTPPort), mb, func() lab.Result { return r.Curl(ctx, nil, url("http", 4, "/1m")) }},
		{"ssh", at(4, sshd.Port), mb, func() lab.Result { return r.SSHTransfer(ctx, sshd, 4, mb) }},
		{"dns", at(4, dns.Port), 20, func() lab.Result { return r.Lookup(ctx, dns, 4, "udp", "www.lab.example") }},
	} {
		res := o.use()
		f := &flow{what: o.what, passed: res.Bytes, wanted: o.want}
		v, err := d.Verdict(ctx, o.server, 0)
		if err != nil {
			return nil, errors.Join(err, res.Err)
		}
		f.verdict = *v
		// One name costs two flows, for IPv4 and IPv6 addresses.
		dropped := slices.ContainsFunc(d.Verdicts(o.server), func(v *event.Verdict) bool { return v.Decision != "pass" })
		f.ok = res.Err == nil && f.passed == f.wanted && !dropped
		flows = append(flows, f)
	}

	type tunnel struct {
		what string
		*lab.Tunnel
	}
	var tunnels []tunnel
	for i, cipher := range lab.Ciphers {
		version, what := 4, "shadowsocks "+strings.TrimSuffix(cipher, "-ietf-poly1305")
		if i == 1 {
			version = 6
		}
		tun, err := r.StartShadowsocks(ctx, lab.ShadowsocksConfig{Cipher: cipher, Version: version})
		if err != nil {
			return nil, err
		}
		tunnels = append(tunnels, tunnel{what, tun})
	}
	vmess := []lab.VMessConfig{{Security: "aes-128-gcm"}, {Security: "chacha20-poly1305"}}
	all, err := r.StartVMessAll(ctx, vmess)
	if err != nil {
		return nil, err
	}
	for i, tun := range all {
		tunnels = append(tunnels, tunnel{"vmess " + strings.TrimSuffix(vmess[i].Security, "-poly1305"), tun})
	}
	for _, tun := range tunnels {
		// As somebody would whose download was cut or was not: once more.
		for n := range connections {
			f, err := useTunnel(ctx, r, d, tun.Tunnel, n, url("https", 4, "/large"), web.LargeBytes)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", tun.what, err)
			}
			f.what = tun.what
			flows = append(flows, f)
			if f.ok {
				break
			}
		}
	}
	return flows, nil
}

// useTunnel downloads over the n-th connection of a tunnel until that ends or has
// come to a standstill while the kernel drops its packets.
func useTunnel(ctx context.Context, r *rig.Rig, d *rig.Daemon, tun *lab.Tunnel, n int, url string, size int64) (*flow, error) {
	f := &flow{tunnel: true, wanted: size}
	var passed atomic.Int64
	downloading, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		r.Download(downloading, tun, url, passed.Store)
	}()
	defer func() {
		cancel()
		<-done
	}()

	v, err := d.Verdict(ctx, tun.Server, n)
	if err != nil {
		return nil, err
	}
	f.verdict = *v
	if f.verdict.Decision != "drop" {
		// Not identified: it runs to its end, or at least to a clear case.
		select {
		case <-done:
		case <-time.After(5 * time.Second):
		case <-ctx.Done():
		}
		f.passed = passed.Load()
		return f, nil
	}
	// Each packet is one more that the two sides have sent in vain. What the
	// programs still had in their buffers comes out meanwhile.
	for range 2 {
		f.passed = passed.Load()
		if f.block, err = r.Dropped(ctx, f.verdict.Src, f.verdict.Dst, 2); err != nil {
			return nil, err
		}
	}
	f.ok = passed.Load() == f.passed && f.passed < size/2 && f.verdict.Enforced != nil && *f.verdict.Enforced
	f.passed = passed.Load()
	return f, nil
}

// conclude says in one line what the flows show. All is as it should be when every
// tunnel had a connection cut and no ordinary flow was disturbed.
func conclude(flows []*flow) (asExpected bool, words string) {
	cutTunnels := map[string]bool{}
	var cut, tunnelled, ordinary, untouched, packets int
	var passed, wanted int64
	var slowest float64
	for _, f := range flows {
		if !f.tunnel {
			ordinary++
			if f.ok {
				untouched++
			}
			continue
		}
		tunnelled++
		passed += f.passed
		wanted += f.wanted
		cutTunnels[f.what] = cutTunnels[f.what] || f.ok
		if f.ok {
			cut++
			slowest, packets = max(slowest, f.verdict.VerdictMS), max(packets, f.verdict.Packets)
		}
	}
	all := true
	for _, ok := range cutTunnels {
		all = all && ok
	}
	words = fmt.Sprintf("%d of %d connections through %d tunnels cut", cut, tunnelled, len(cutTunnels))
	if cut > 0 {
		words += fmt.Sprintf(", each within %d packets and %.1f ms", packets, slowest)
	}
	words += fmt.Sprintf("; %d of %d bytes got through. %d of %d ordinary flows untouched.", passed, wanted, untouched, ordinary)
	return len(cutTunnels) > 0 && ordinary > 0 && all && untouched == ordinary, words
}
