// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
)

// StartResolving starts a program in a namespace with a file /etc/resolv.conf
// of its own that names a DNS server, and further files or folders in place of
// those of the machine (binds, from path to path). The program sees them in a
// mount namespace of its own.
func (l *Lab) StartResolving(n *Namespace, name string, resolve netip.Addr, binds map[string]string, argv ...string) (*Proc, error) {
	if len(argv) == 0 {
		return nil, fmt.Errorf("start %s: no program given", name)
	}
	program, err := Program(argv[0])
	if err != nil {
		return nil, err
	}
	dir, err := l.Subdir("resolve")
	if err != nil {
		return nil, err
	}
	file := filepath.Join(dir, "resolv.conf")
	if err := os.WriteFile(file, []byte("nameserver "+resolve.String()+"\n"), 0o644); err != nil {
		return nil, err
	}
	script := `mount --bind "$1" /etc/resolv.conf && shift`
	args := []string{file}
	for from, to := range binds {
		script += ` && mount --bind "$1" "$2" && shift 2`
		args = append(args, from, to)
	}
	all := append([]string{"unshare", "--mount", "--propagation", "private", "sh", "-c", script + ` && exec "$@"`, "sh"}, args...)
	return l.Start(n, name, append(append(all, program), argv[1:]...)...)
}

// ServerConfig sets up a proxy server that resolves names itself.
type ServerConfig struct {
	Port    uint16     // (optional: a free one)
	Version int        // of IP, 4 or 6 (optional: 4)
	Resolve netip.Addr // DNS server
}

// StartTrojan starts Debian's trojan on the server and on the client.
func (l *Lab) StartTrojan(ctx context.Context, cfg ServerConfig) (*Tunnel, error) {
	dir, t, err := l.openTunnel("trojan", cfg.Version, cfg.Port)
	if err != nil {
		return nil, err
	}
	if err := l.Certificate(ctx, dir, ""); err != nil {
		return nil, err
	}
	secret := []string{password("")}
	tcp := object{"no_delay": true, "keep_alive": true, "reuse_port": false, "fast_open": false}
	server := object{
		"run_type": "server", "local_addr": t.Server.Addr().String(), "local_port": t.Server.Port(), "remote_addr": "127.0.0.1", "remote_port": 80,
		"password": secret, "log_level": 2, "tcp": tcp,
		"ssl": object{"cert": filepath.Join(dir, "cert.pem"), "key": filepath.Join(dir, "key.pem"), "alpn": []string{"http/1.1"}},
	}
	client := object{
		"run_type": "client", "local_addr": "127.0.0.1", "local_port": t.SOCKS.Port(), "remote_addr": t.Server.Addr().String(), "remote_port": t.Server.Port(),
		"password": secret, "log_level": 2, "tcp": tcp,
		"ssl": object{"verify": false, "verify_hostname": false, "sni": "www.lab.example", "alpn": []string{"h2", "http/1.1"}},
	}
	serverFile, clientFile := filepath.Join(dir, "server.json"), filepath.Join(dir, "client.json")
	if err := writeJSON(serverFile, server); err != nil {
		return nil, err
	}
	if err := writeJSON(clientFile, client); err != nil {
		return nil, err
	}
	if t.ServerProc, err = l.StartResolving(l.Server, "trojan server", cfg.Resolve, nil, "trojan", "-c", serverFile); err != nil {
		return nil, err
	}
	if t.ClientProc, err = l.Start(l.Client, "trojan client", "trojan", "-c", clientFile); err != nil {
		return nil, err
	}
	return t, l.tunnelReady(ctx, t)
}

// StartSOCKS starts a plain SOCKS5 server, "microsocks" or "danted", on the
// server. Clients speak SOCKS5 to it over the network.
func (l *Lab) StartSOCKS(ctx context.Context, program string, cfg ServerConfig) (*Tunnel, error) {
	dir, err := l.Subdir(program)
	if err != nil {
		return nil, err
	}
	if cfg.Port, err = l.Server.portOr(cfg.Port); err != nil {
		return nil, err
	}
	at := netip.AddrPortFrom(l.ServerAddr(cfg.Version), cfg.Port)
	t := &Tunnel{SOCKS: at, Server: at}
	var argv []string
	switch program {
	case "microsocks":
		argv = []string{program, "-i", at.Addr().String(), "-p", fmt.Sprint(cfg.Port)}
	case "danted":
		file := filepath.Join(dir, "conf")
		conf := fmt.Sprintf(`logoutput: stderr
internal: %s port = %d
external: %s
clientmethod: none
socksmethod: none
user.privileged: root
user.unprivileged: root
client pass { from: 0/0 to: 0/0 }
socks pass { from: 0/0 to: 0/0 }
`, at.Addr(), cfg.Port, ServerDev)
		if err := os.WriteFile(file, []byte(conf), 0o644); err != nil {
			return nil, err
		}
		argv = []string{program, "-f", file, "-p", filepath.Join(dir, "pid")}
	default:
		return nil, fmt.Errorf("SOCKS server %q: want microsocks or danted", program)
	}
	if t.ServerProc, err = l.StartResolving(l.Server, program, cfg.Resolve, nil, argv...); err != nil {
		return nil, err
	}
	return t, l.WaitReady(ctx, l.Server, at, t.ServerProc)
}

// blinksocksName stands for the server in blinksocks' configuration, which
// knows no IPv6 addresses.
const blinksocksName = "blinksocks.lab.example"

// BlinksocksMethods are Shadowsocks' ciphers of the npm package blinksocks.
var BlinksocksMethods = []string{"aes-128-gcm", "aes-192-gcm", "aes-256-gcm", "chacha20-ietf-poly1305", "xchacha20-ietf-poly1305"}

// StartBlinksocks starts blinksocks on the server and on the client, for
// protocol [Shadowsocks] or [VMess] (the form before authenticated headers).
func (l *Lab) StartBlinksocks(ctx context.Context, protocol, method string, cfg ServerConfig) (*Tunnel, error) {
	dir, t, err := l.openTunnel("blinksocks", cfg.Version, cfg.Port)
	if err != nil {
		return nil, err
	}
	var presets []any
	switch protocol {
	case Shadowsocks:
		presets = []any{object{"name": "ss-base"}, object{"name": "ss-aead-cipher", "params": object{"method": method}}}
	case VMess:
		presets = []any{object{"name": "v2ray-vmess", "params": object{"id": uuid(), "security": method}}}
	default:
		return nil, fmt.Errorf("protocol %q of blinksocks: want %s or %s", protocol, Shadowsocks, VMess)
	}
	hosts := filepath.Join(dir, "hosts")
	// It also wants an IPv4 address for a UDP socket; the IPv6 one comes first.
	names := fmt.Appendf(nil, "%v %s\n", t.Server.Addr(), blinksocksName)
	if t.Server.Addr().Is6() {
		names = fmt.Appendf(names, "%v %s\n", l.ServerAddr(4), blinksocksName)
	}
	if err := os.WriteFile(hosts, names, 0o644); err != nil {
		return nil, err
	}
	server := object{"service": fmt.Sprintf("tcp://%s:%d", blinksocksName, t.Server.Port()), "key": password(""), "presets": presets,
		"log_level": "error", "log_path": filepath.Join(dir, "server.log")}
	client := object{"service": "socks5://" + t.SOCKS.String(), "server": server, "log_level": "error", "log_path": filepath.Join(dir, "client.log")}
	start := func(n *Namespace, side string, content object) (*Proc, error) {
		file := filepath.Join(dir, side+".json")
		if err := writeJSON(file, content); err != nil {
			return nil, err
		}
		return l.StartResolving(n, "blinksocks "+side, cfg.Resolve, map[string]string{hosts: "/etc/hosts"}, "blinksocks", "-c", file)
	}
	if t.ServerProc, err = start(l.Server, "server", server); err != nil {
		return nil, err
	}
	if t.ClientProc, err = start(l.Client, "client", client); err != nil {
		return nil, err
	}
	return t, l.tunnelReady(ctx, t)
}
