// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/earlydrop/earlydrop/test/lab"
)

// vpnForms are the forms of OpenVPN: a server runs for each.
var vpnForms = []struct{ name, proto, control string }{
	{"openvpn-tcp", "tcp", ""},
	{"openvpn-tcp-crypt", "tcp", "--tls-crypt"},
	{"openvpn-udp", "udp", ""},
	{"openvpn-udp-auth", "udp", "--tls-auth"},
	{"openvpn-udp-crypt", "udp", "--tls-crypt"},
}

// startVPN starts the OpenVPN server of one form.
func startVPN(form int) func(e *env, ctx context.Context, port uint16) error {
	f := vpnForms[form]
	return func(e *env, ctx context.Context, port uint16) error {
		dir, err := e.l.Subdir(f.name)
		if err != nil {
			return err
		}
		if err := e.l.Certificate(ctx, dir, pick(e.draws(f.name), "ec", "rsa")); err != nil {
			return err
		}
		keys := []string{"--ca", filepath.Join(dir, "cert.pem"), "--cert", filepath.Join(dir, "cert.pem"), "--key", filepath.Join(dir, "key.pem")}
		if f.control != "" {
			shared := filepath.Join(dir, "shared.key")
			if _, err := e.l.Exec(ctx, e.l.Server, "openvpn", "--genkey", "secret", shared); err != nil {
				return err
			}
			keys = append(keys, f.control, shared)
		}
		e.set(func() { e.vpn[f.name] = keys })
		proto := fmt.Sprintf("%s%d", f.proto, e.c.Version)
		if f.proto == "tcp" {
			proto += "-server"
		}
		argv := []string{"openvpn", "--mode", "server", "--tls-server", "--dev", "tap", "--dev-type", "tap", "--proto", proto,
			"--local", e.server().String(), "--port", num(port), "--dh", "none", "--duplicate-cn", "--verb", "1"}
		p, err := e.l.Start(e.l.Server, f.name, append(argv, keys...)...)
		if err != nil {
			return err
		}
		_, err = waitOutput(ctx, p, "Initialization Sequence Completed")
		return err
	}
}

// connectVPN connects for a second or two. Its device is a null one, as only
// what runs on the way to the server matters.
func connectVPN(form int) activityFunc {
	f := vpnForms[form]
	return func(ctx context.Context, a *attempt) error {
		addr := netip.AddrPortFrom(a.server(), a.e.port[f.name])
		if f.proto == "tcp" {
			var err error
			if addr, err = a.addr(a.e.port[f.name]); err != nil {
				return err
			}
		}
		proto := f.proto + "4"
		if addr.Addr().Is6() {
			proto = f.proto + "6"
		}
		if f.proto == "tcp" {
			proto += "-client"
		}
		argv := []string{"openvpn", "--tls-client", "--pull", "--dev", "null", "--dev-type", "tap", "--proto", proto, "--nobind",
			"--remote", addr.Addr().String(), num(addr.Port()), "--verb", "3", "--connect-retry-max", "1"}
		long := 2*time.Second + 12*(a.e.c.Config.ClientLink.Relay.Delay+a.e.c.Config.ServerLink.Relay.Delay)
		short, cancel := context.WithTimeout(ctx, long)
		defer cancel()
		out, err := a.e.l.Exec(short, a.e.l.Client, append(argv, a.e.vpn[f.name]...)...)
		if !bytes.Contains(out, []byte("Peer Connection Initiated")) {
			return fmt.Errorf("openvpn did not connect: %w: %s", err, out)
		}
		return nil // it runs until it is stopped
	}
}

// wireguardNet is inside the tunnels. Each has 256 addresses of it: the server
// is the first there, the client the second.
var wireguardNet = netip.MustParsePrefix("10.213.0.0/16")

func (e *env) startWireGuard(ctx context.Context, port uint16) error {
	d, err := e.l.StartWireGuard(ctx, e.l.Server, netip.PrefixFrom(wireguardNet.Addr().Next(), wireguardNet.Bits()))
	if err != nil {
		return err
	}
	context.AfterFunc(e.ctx, d.Stop)
	e.set(func() { e.wg0 = d })
	return d.Set("private_key="+d.PrivateKey(), "listen_port="+num(port))
}

// viaWireGuard has a device of its own carry a web or an SSH session.
func viaWireGuard(ctx context.Context, a *attempt) error {
	var n int
	a.e.set(func() {
		a.e.wgPeers++
		n = a.e.wgPeers
	})
	server, client := netip.AddrFrom4([4]byte{10, 213, byte(n), 1}), netip.AddrFrom4([4]byte{10, 213, byte(n), 2})
	if n > 255 {
		return errors.New("no more inner networks")
	}
	d, err := a.e.l.StartWireGuard(ctx, a.e.l.Client, netip.PrefixFrom(client, 24))
	if err != nil {
		return err
	}
	defer d.Stop()
	if err := a.e.wg0.AddAddr(netip.PrefixFrom(server, 32)); err != nil {
		return err
	}
	if err := a.e.wg0.Set("public_key="+d.PublicKey(), "allowed_ip="+client.String()+"/32"); err != nil {
		return err
	}
	peer := []string{"private_key=" + d.PrivateKey(), "public_key=" + a.e.wg0.PublicKey(),
		"endpoint=" + netip.AddrPortFrom(a.e.server(), a.e.port["wireguard"]).String(), "allowed_ip=" + server.String() + "/32"}
	if a.r.Float64() < 0.3 {
		peer = append(peer, "persistent_keepalive_interval=25")
	}
	if err := d.Set(peer...); err != nil {
		return err
	}
	inner := *a
	inner.at, inner.byAddress = server, true
	var carried []activity
	for _, c := range activities {
		if slices.Contains([]string{"http", "https", "ssh"}, c.service) && c.tunnel {
			carried = append(carried, c)
		}
	}
	return drawActivities(a.r, carried, 1)[0].run(ctx, &inner)
}

// startObfs4 starts the obfs4 transport on both sides. It leads to one fixed
// address on the server, a listener of this process, which is told beside the
// transport what each connection is for.
func (e *env) startObfs4(ctx context.Context, port uint16, iat string) (*lab.Tunnel, error) {
	exit, err := e.l.Server.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	arrived := make(chan net.Conn, 16)
	e.serve(exit, func(c net.Conn) { arrived <- c })
	state := func(side string) (string, error) {
		dir, err := e.l.Subdir("obfs4-" + side)
		return "TOR_PT_STATE_LOCATION=" + dir, err
	}
	sdir, err := state("server")
	if err != nil {
		return nil, err
	}
	cdir, err := state("client")
	if err != nil {
		return nil, err
	}
	const version = "TOR_PT_MANAGED_TRANSPORT_VER=1"
	at := netip.AddrPortFrom(e.server(), port)
	sp, err := e.l.StartEnv(e.l.Server, "obfs4proxy server", []string{version, sdir, "TOR_PT_SERVER_TRANSPORTS=obfs4",
		"TOR_PT_SERVER_BINDADDR=obfs4-" + at.String(), "TOR_PT_ORPORT=" + exit.Addr().String()}, "obfs4proxy")
	if err != nil {
		return nil, err
	}
	if err := e.l.WaitReady(ctx, e.l.Server, at, sp); err != nil {
		return nil, err
	}
	cp, err := e.l.StartEnv(e.l.Client, "obfs4proxy client", []string{version, cdir, "TOR_PT_CLIENT_TRANSPORTS=obfs4"}, "obfs4proxy")
	if err != nil {
		return nil, err
	}
	method, err := waitOutput(ctx, sp, "cert=")
	if err != nil {
		return nil, err
	}
	cert, _, _ := strings.Cut(strings.Fields(method)[0], ",")
	client, err := waitOutput(ctx, cp, "CMETHOD obfs4 socks5 ")
	if err != nil {
		return nil, err
	}
	proxy, err := netip.ParseAddrPort(strings.Fields(client)[0])
	if err != nil {
		return nil, err
	}
	// The check whether the server is there came through as well.
	drain(arrived)
	ln, err := e.l.Client.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	t := &lab.Tunnel{SOCKS: ln.Addr().(*net.TCPAddr).AddrPort(), Server: at, ClientProc: cp, ServerProc: sp}
	one := make(chan struct{}, 1) // opened at a time, so that arrivals are known
	e.serve(ln, func(c net.Conn) {
		defer c.Close()
		target, err := lab.AcceptSOCKS(c)
		if err != nil {
			return
		}
		one <- struct{}{}
		drain(arrived)
		up, far, err := e.throughObfs4(proxy, at, "cert="+cert+";iat-mode="+iat, arrived)
		<-one
		if err != nil {
			return
		}
		defer up.Close()
		defer far.Close()
		// A name is the server's, as all names are.
		_, p, _ := net.SplitHostPort(target)
		to, err := e.l.Server.Dial(e.ctx, "tcp", net.JoinHostPort(e.server().String(), p))
		if err != nil {
			return
		}
		go lab.Splice(e.ctx, far, to)
		lab.Splice(e.ctx, c, up)
	})
	return t, nil
}

func drain(c chan net.Conn) {
	for {
		select {
		case old := <-c:
			old.Close()
		default:
			return
		}
	}
}

func (e *env) throughObfs4(proxy, bridge netip.AddrPort, args string, arrived chan net.Conn) (up, far net.Conn, err error) {
	ctx, cancel := context.WithTimeout(e.ctx, 15*time.Second)
	defer cancel()
	// The transport takes its arguments as user name and password.
	if up, err = e.l.Client.DialSOCKSUser(ctx, proxy, bridge.String(), args[:len(args)-1], args[len(args)-1:]); err != nil {
		return nil, nil, err
	}
	select {
	case far = <-arrived:
		return up, far, nil
	case <-ctx.Done():
		up.Close()
		return nil, nil, errors.Join(errors.New("nothing arrives through obfs4"), ctx.Err())
	}
}
