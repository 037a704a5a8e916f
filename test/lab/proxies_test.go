// SPDX-License-Identifier: Apache-2.0

package lab_test

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/earlydrop/earlydrop/test/lab"
)

// proxyConfigs returns every form of a proxy program.
func proxyConfigs(program string) []lab.ProxyConfig {
	var cfgs []lab.ProxyConfig
	for _, m := range lab.Methods(program, lab.Shadowsocks) {
		cfgs = append(cfgs, lab.ProxyConfig{Protocol: lab.Shadowsocks, Method: m})
	}
	for _, m := range lab.Methods(program, lab.VMess) {
		cfgs = append(cfgs, lab.ProxyConfig{Protocol: lab.VMess, Method: m})
	}
	for _, t := range []string{"tls", "ws-tls"} {
		cfgs = append(cfgs, lab.ProxyConfig{Protocol: lab.VMess, Transport: t})
	}
	return append(cfgs,
		lab.ProxyConfig{Protocol: lab.VLESS}, lab.ProxyConfig{Protocol: lab.VLESS, Transport: "tls", Version: 6},
		lab.ProxyConfig{Protocol: lab.Trojan, Transport: "tls"},
		lab.ProxyConfig{Protocol: lab.SOCKS5})
}

// Every form of every proxy program that is there carries a download by
// address and one by name.
func TestProxyProgramsCarryDownloads(t *testing.T) {
	l, ctx := start(t, lab.Config{})
	web, err := l.StartNginx(ctx, lab.NginxConfig{LargeMB: 1})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := l.StartDNS(ctx, lab.DNSConfig{}); err != nil {
		t.Fatal(err)
	}
	carries := func(t *testing.T, what string, tun *lab.Tunnel) {
		t.Helper()
		url := l.URL("https", 4, web.HTTPSPort, "/256k")
		check(t, what, l.Download(ctx, tun, url, nil), 256<<10)
		check(t, what+" by name", l.Download(ctx, tun, strings.Replace(url, l.ServerAddr(4).String(), "www.lab.example", 1), nil), 256<<10)
	}
	for _, program := range []string{lab.V2Ray, lab.Xray, lab.SingBox} {
		t.Run(program, func(t *testing.T) {
			if _, err := lab.Program(program); err != nil {
				t.Skip(err)
			}
			cfgs := proxyConfigs(program)
			if program == lab.SingBox {
				cfgs = append(cfgs, lab.ProxyConfig{Protocol: lab.VMess, Padding: true}, lab.ProxyConfig{Protocol: lab.VMess, AlterID: 3})
			}
			tunnels, err := l.StartProxies(ctx, program, l.ServerAddr(4), cfgs)
			if err != nil {
				t.Fatal(err)
			}
			for i, tun := range tunnels {
				carries(t, fmt.Sprintf("%+v", cfgs[i]), tun)
			}
		})
	}
	for name, start := range map[string]func(context.Context, lab.ServerConfig) (*lab.Tunnel, error){
		"trojan": l.StartTrojan,
		"blinksocks": func(ctx context.Context, cfg lab.ServerConfig) (*lab.Tunnel, error) {
			cfg.Version, cfg.Resolve = 6, l.ServerAddr(6)
			return l.StartBlinksocks(ctx, lab.Shadowsocks, "aes-256-gcm", cfg)
		},
		"microsocks": func(ctx context.Context, cfg lab.ServerConfig) (*lab.Tunnel, error) {
			return l.StartSOCKS(ctx, "microsocks", cfg)
		},
		"danted": func(ctx context.Context, cfg lab.ServerConfig) (*lab.Tunnel, error) {
			return l.StartSOCKS(ctx, "danted", cfg)
		},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := lab.Program(name); err != nil {
				t.Skip(err)
			}
			tun, err := start(ctx, lab.ServerConfig{Resolve: l.ServerAddr(4)})
			if err != nil {
				t.Fatal(err)
			}
			carries(t, name, tun)
		})
	}
}

func TestProxiesRefuseWhatTheyLack(t *testing.T) {
	l, ctx := start(t, lab.Config{})
	for _, c := range []struct {
		program, protocol, want string
	}{{"nonesuch", lab.VMess, "nonesuch"}, {lab.V2Ray, "carrier-pigeon", "carrier-pigeon"}, {lab.SingBox, "carrier-pigeon", "carrier-pigeon"}} {
		_, err := l.StartProxies(ctx, c.program, netip.Addr{}, []lab.ProxyConfig{{Protocol: c.protocol}})
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s, %s: %v", c.program, c.protocol, err)
		}
	}
}
