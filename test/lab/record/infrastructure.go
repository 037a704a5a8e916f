// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
)

// startEtcd starts a server of gRPC, that is HTTP/2, without or with TLS.
func startEtcd(name string, tls bool) func(e *env, ctx context.Context, port uint16) error {
	return func(e *env, ctx context.Context, port uint16) error {
		_, dir, err := e.config(name, "")
		if err != nil {
			return err
		}
		peer, err := e.l.Server.FreePort()
		if err != nil {
			return err
		}
		scheme, cert := "http://", filepath.Join(dir, "cert.pem")
		if tls {
			if err := e.l.Certificate(ctx, dir, pick(e.draws(name), "ec", "rsa")); err != nil {
				return err
			}
			scheme = "https://"
			e.set(func() { e.certs[name] = cert })
		}
		url := scheme + netip.AddrPortFrom(e.server(), port).String()
		argv := []string{"etcd", "--data-dir", filepath.Join(dir, "data"), "--listen-client-urls", url, "--advertise-client-urls", url, "--listen-peer-urls", "http://127.0.0.1:" + num(peer),
			"--logger", "zap", "--log-level", "error", "--unsafe-no-fsync"}
		if tls {
			argv = append(argv, "--cert-file", cert, "--key-file", filepath.Join(dir, "key.pem"))
		}
		return e.run(ctx, port, argv...)
	}
}

func etcd(service string) activityFunc {
	return func(ctx context.Context, a *attempt) error {
		return a.program(ctx, service, nil, func(addr netip.AddrPort) []string {
			argv := []string{"etcdctl", "--endpoints", "http://" + addr.String()}
			if a.e.certs[service] != "" {
				argv = []string{"etcdctl", "--endpoints", "https://" + addr.String(), "--insecure-transport=false", "--insecure-skip-tls-verify"}
			}
			switch a.r.IntN(6) {
			case 0, 1:
				return append(argv, "put", a.name(), string(words(a.r, logUniform(a.r, 4, 6000))))
			case 2:
				return append(argv, "get", "", "--prefix", "--limit", strconv.Itoa(logUniform(a.r, 1, 100)))
			case 3:
				return append(argv, "get", a.name())
			case 4:
				return append(argv, "del", a.name())
			}
			return append(argv, pick(a.r, []string{"member", "list"}, []string{"lease", "grant", "60"}, []string{"endpoint", "status"})...)
		})
	}
}

// startUnbound starts a second kind of name server: over UDP and TCP on its
// port, over TLS and HTTPS on two more.
func (e *env) startUnbound(ctx context.Context, port uint16) error {
	file, dir, err := e.certificate(ctx, "unbound", "")
	if err != nil {
		return err
	}
	r := e.draws("unbound")
	conf := fmt.Sprintf(`server:
  directory: "%[1]s"
  chroot: ""
  username: ""
  pidfile: "%[1]s/pid"
  use-syslog: no
  log-local-actions: no
  num-threads: 1
  module-config: "iterator"
  interface: %[2]s@%[3]d
  interface: %[2]s@%[4]d
  interface: %[2]s@%[5]d
  tls-port: %[4]d
  https-port: %[5]d
  tls-service-key: "%[1]s/key.pem"
  tls-service-pem: "%[1]s/cert.pem"
  access-control: 0.0.0.0/0 allow
  access-control: ::/0 allow
  minimal-responses: no
  rrset-roundrobin: yes
  local-zone: "." static
`, dir, e.server(), port, e.unboundPorts[0], e.unboundPorts[1])
	for _, zone := range []string{"com", "org", "net", "example"} { // of those that clients ask for
		conf += fmt.Sprintf("  local-zone: \"%s.\" redirect\n", zone)
		for i := range 1 + r.IntN(8) {
			conf += fmt.Sprintf("  local-data: \"%[1]s. %[2]d A 192.0.2.%[3]d\"\n  local-data: \"%[1]s. %[2]d AAAA 2001:db8::%[3]d\"\n  local-data: '%[1]s. %[2]d TXT \"%[4]x\"'\n",
				zone, 30+r.IntN(3600), 1+i, randomBytes(r, logUniform(r, 5, 60)))
		}
	}
	conf += "remote-control:\n  control-enable: no\n"
	if err := os.WriteFile(file, []byte(conf), 0o644); err != nil {
		return err
	}
	if err := e.run(ctx, port, "unbound", "-d", "-p", "-c", file); err != nil {
		return err
	}
	e.set(func() { e.port["unbound-tls"], e.port["unbound-https"] = e.unboundPorts[0], e.unboundPorts[1] })
	return nil
}

// unboundQuery asks with kdig: options are of the transport.
func unboundQuery(service string, options ...string) activityFunc {
	return func(ctx context.Context, a *attempt) error {
		return a.program(ctx, service, nil, func(addr netip.AddrPort) []string {
			argv := append([]string{"kdig", "@" + addr.Addr().String(), "-p", num(addr.Port()), "+time=5", "+retry=1"}, options...)
			argv = append(argv, pick(a.r, "+noedns", "+edns", "+dnssec", "+cookie", "+padding=128"))
			for range 1 + a.r.IntN(3) {
				argv = append(argv, a.name(), pick(a.r, "A", "A", "AAAA", "TXT", "ANY", "HTTPS", "MX"))
			}
			return argv
		})
	}
}

func (e *env) startIperf(ctx context.Context, port uint16) error {
	return e.run(ctx, port, "iperf3", "-s", "-p", num(port), "--forceflush")
}

// iperf measures a few hundred kilobytes: a conversation in JSON, and streams.
func iperf(ctx context.Context, a *attempt) error {
	a.e.iperf.Lock() // it serves one client at a time
	defer a.e.iperf.Unlock()
	return a.program(ctx, "iperf3", nil, func(addr netip.AddrPort) []string {
		argv := []string{"iperf3", "-c", addr.Addr().String(), "-p", num(addr.Port()), "-n", strconv.Itoa(logUniform(a.r, 2000, 200000)), "-l", strconv.Itoa(logUniform(a.r, 500, 60000)), "--connect-timeout", "3000"}
		if a.r.Float64() < 0.4 {
			argv = append(argv, "-R")
		}
		if a.r.Float64() < 0.3 {
			argv = append(argv, "-P", "2")
		}
		return argv
	})
}
