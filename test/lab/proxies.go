// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"context"
	"encoding/base64"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// Module is a program that comes as a Go module and not as a Debian package.
type Module struct {
	Path    string // of its main package
	Version string
}

// Modules maps programs to the modules that they are built from. They are no
// part of what [Missing] asks for: who wants them calls [Install] and puts
// its directory on the PATH.
var Modules = map[string]Module{
	"xray":         {"github.com/xtls/xray-core/main", "v1.260327.0"},
	"sing-box":     {"github.com/sagernet/sing-box/cmd/sing-box", "v1.14.1"},
	"wireguard-go": {"golang.zx2c4.com/wireguard", "v0.0.0-20260522210424-ecfc5a8d5446"},
}

// Proxy programs that hold many tunnels in one process on each side.
const (
	V2Ray   = "v2ray"    // Debian's, version 4
	Xray    = "xray"     // a fork of V2Ray with protocols of its own
	SingBox = "sing-box" // independent of these
)

// Protocols of a [ProxyConfig].
const (
	Shadowsocks = "shadowsocks"
	VMess       = "vmess"
	VLESS       = "vless"
	Trojan      = "trojan"
	SOCKS5      = "socks5" // the server's inbound, without a client program
)

// ProxyConfig describes one tunnel of a proxy program.
type ProxyConfig struct {
	Protocol string // one of the constants above

	// Method is Shadowsocks' cipher or VMess' security. (optional: the first
	// of Methods)
	Method string

	// Transport is "" for plain TCP, "tls", "ws-tls" (WebSocket in TLS) or
	// "http" (the first packets look like HTTP; V2Ray only). Trojan needs tls.
	Transport string

	// AlterID of VMess, V2Ray and SingBox only: 0 authenticates headers,
	// more is the older form.
	AlterID int

	// Padding has SingBox pad VMess' chunks and authenticate their lengths.
	Padding bool

	// Mux carries several connections in one flow. Not for SOCKS5, nor of
	// SingBox.
	Mux bool

	Port    uint16 // of the server (optional: a free one)
	Version int    // of IP between the two, 4 or 6 (optional: 4)

	// Via is where the client's program connects to in place of the server,
	// such as a relay on the client's loopback. (optional)
	Via netip.AddrPort
}

// peer is where the client's program connects to.
func (c ProxyConfig) peer(t *Tunnel) netip.AddrPort {
	if c.Via.IsValid() {
		return c.Via
	}
	return t.Server
}

// Methods returns what a proxy program can do in a protocol: Shadowsocks'
// ciphers or VMess' securities; nil where it lacks the protocol or the
// protocol has no choice.
func Methods(program, protocol string) []string {
	aead := []string{"aes-256-gcm", "aes-128-gcm", "chacha20-ietf-poly1305"}
	edition2022 := []string{"2022-blake3-aes-128-gcm", "2022-blake3-aes-256-gcm", "2022-blake3-chacha20-poly1305"}
	switch protocol {
	case Shadowsocks:
		switch program {
		case V2Ray:
			return aead
		case Xray:
			return slices.Concat(aead, []string{"xchacha20-ietf-poly1305"}, edition2022)
		case SingBox:
			return slices.Concat(aead, []string{"aes-192-gcm", "xchacha20-ietf-poly1305"}, edition2022)
		}
	case VMess:
		if program == V2Ray {
			return Securities
		}
		return append(slices.Clone(Securities), "zero")
	}
	return nil
}

// object is a JSON object.
type object = map[string]any

// tunnelSecret is what both sides know of one tunnel.
type tunnelSecret struct {
	id       string // UUID of VMess and VLESS
	password string
	sni      string
}

// StartProxies starts a proxy program on the server and, when there is a
// tunnel that needs it, on the client. They hold a tunnel for each
// configuration; names are resolved by resolve, if valid.
func (l *Lab) StartProxies(ctx context.Context, program string, resolve netip.Addr, cfgs []ProxyConfig) ([]*Tunnel, error) {
	dir, err := l.Subdir(program)
	if err != nil {
		return nil, err
	}
	if err := l.Certificate(ctx, dir, ""); err != nil {
		return nil, err
	}
	var server, client proxyFile
	switch program {
	case V2Ray, Xray:
		server, client = newRayFile(resolve), newRayFile(netip.Addr{})
	case SingBox:
		server, client = newSingFile(resolve), newSingFile(netip.Addr{})
	default:
		return nil, fmt.Errorf("proxy program %q: want %s, %s or %s", program, V2Ray, Xray, SingBox)
	}
	var ts []*Tunnel
	clients := 0
	for _, cfg := range cfgs {
		if m := Methods(program, cfg.Protocol); cfg.Method == "" && len(m) > 0 {
			cfg.Method = m[0]
		}
		if cfg.Port, err = l.Server.portOr(cfg.Port); err != nil {
			return nil, err
		}
		s := tunnelSecret{id: uuid(), password: password(cfg.Method), sni: fmt.Sprintf("s%x.example", rand.Uint64()>>(8*rand.IntN(8)))}
		t := &Tunnel{Server: netip.AddrPortFrom(l.ServerAddr(cfg.Version), cfg.Port)}
		ts = append(ts, t)
		if err := server.listen(cfg, s, t.Server, dir); err != nil {
			return nil, err
		}
		if t.SOCKS = t.Server; cfg.Protocol == SOCKS5 {
			continue
		}
		local, err := l.Client.FreePort()
		if err != nil {
			return nil, err
		}
		t.SOCKS = netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), local)
		client.connect(cfg, s, t)
		clients++
	}
	start := func(n *Namespace, side string, f proxyFile) (*Proc, error) {
		file := filepath.Join(dir, side+".json")
		if err := writeJSON(file, f.content()); err != nil {
			return nil, err
		}
		argv := []string{program, "run", "-c", file}
		if program == V2Ray {
			argv = []string{program, "-config", file}
		}
		// The certificate is its own authority.
		return l.StartEnv(n, program+" "+side, []string{"SSL_CERT_FILE=" + filepath.Join(dir, "cert.pem")}, argv...)
	}
	sp, err := start(l.Server, "server", server)
	if err != nil {
		return nil, err
	}
	var cp *Proc
	if clients > 0 {
		if cp, err = start(l.Client, "client", client); err != nil {
			return nil, err
		}
	}
	for _, t := range ts {
		t.ServerProc = sp
		if err := l.WaitReady(ctx, l.Server, t.Server, sp); err != nil {
			return nil, err
		}
		if t.SOCKS != t.Server {
			t.ClientProc = cp
			if err := l.WaitReady(ctx, l.Client, t.SOCKS, cp); err != nil {
				return nil, err
			}
		}
	}
	return ts, nil
}

// password returns a key of the length that a cipher of the 2022 edition
// wants, in base 64, and for the others a text.
func password(method string) string {
	n := 9 + rand.IntN(20)
	switch {
	case strings.HasPrefix(method, "2022-blake3-aes-128"):
		n = 16
	case strings.HasPrefix(method, "2022-"):
		n = 32
	}
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(rand.Uint32())
	}
	return base64.StdEncoding.EncodeToString(b)
}

// proxyFile is the configuration of one side.
type proxyFile interface {
	listen(cfg ProxyConfig, s tunnelSecret, at netip.AddrPort, dir string) error
	connect(cfg ProxyConfig, s tunnelSecret, t *Tunnel)
	content() object
}

// rayFile is the format of V2Ray 4, which its relatives read too.
type rayFile struct {
	in, out, rules []any
	dns            object
}

func newRayFile(resolve netip.Addr) *rayFile {
	f := &rayFile{}
	free := object{"protocol": "freedom"}
	if resolve.IsValid() {
		f.dns = object{"servers": []string{resolve.String()}}
		free["settings"] = object{"domainStrategy": "UseIP"}
	}
	f.out = []any{free}
	return f
}

func (f *rayFile) content() object {
	o := object{"log": object{"loglevel": "warning"}, "inbounds": f.in, "outbounds": f.out, "routing": object{"rules": f.rules}}
	if f.dns != nil {
		o["dns"] = f.dns
	}
	return o
}

func rayStream(cfg ProxyConfig, sni, dir string) object {
	o := object{"network": "tcp"}
	if strings.HasPrefix(cfg.Transport, "ws") {
		o["network"], o["wsSettings"] = "ws", object{"path": "/" + sni}
	}
	if strings.HasSuffix(cfg.Transport, "tls") {
		o["security"] = "tls"
		settings := object{"serverName": sni}
		if dir != "" {
			settings = object{"certificates": []any{object{"certificateFile": filepath.Join(dir, "cert.pem"), "keyFile": filepath.Join(dir, "key.pem")}}}
		}
		o["tlsSettings"] = settings
	}
	if cfg.Transport == "http" {
		header := object{"type": "http"}
		if dir == "" {
			header["request"] = object{
				"version": "1.1", "method": "GET", "path": []string{"/"},
				"headers": object{
					"Host":            []string{"www.lab.example", "cdn.lab.example"},
					"User-Agent":      []string{"Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/86.0 Safari/537.36", "Mozilla/5.0 (iPhone; CPU iPhone OS 14_0 like Mac OS X) AppleWebKit/605.1.15"},
					"Accept-Encoding": []string{"gzip, deflate"},
					"Connection":      []string{"keep-alive"},
				}}
		}
		o["tcpSettings"] = object{"header": header}
	}
	return o
}

func (f *rayFile) listen(cfg ProxyConfig, s tunnelSecret, at netip.AddrPort, dir string) error {
	protocol := cfg.Protocol
	var settings object
	switch cfg.Protocol {
	case Shadowsocks:
		settings = object{"method": cfg.Method, "password": s.password, "network": "tcp,udp"}
	case VMess:
		settings = object{"clients": []any{object{"id": s.id, "alterId": cfg.AlterID}}}
	case VLESS:
		settings = object{"clients": []any{object{"id": s.id}}, "decryption": "none"}
	case Trojan:
		settings = object{"clients": []any{object{"password": s.password}}}
	case SOCKS5:
		protocol, settings = "socks", object{"auth": "noauth", "udp": false}
	default:
		return fmt.Errorf("protocol %q of a proxy is not known", cfg.Protocol)
	}
	f.in = append(f.in, object{"listen": at.Addr().String(), "port": at.Port(), "protocol": protocol, "settings": settings, "streamSettings": rayStream(cfg, s.sni, dir)})
	return nil
}

func (f *rayFile) connect(cfg ProxyConfig, s tunnelSecret, t *Tunnel) {
	peer := cfg.peer(t)
	server := object{"address": peer.Addr().String(), "port": peer.Port()}
	settings := object{}
	switch cfg.Protocol {
	case Shadowsocks:
		maps.Copy(server, object{"method": cfg.Method, "password": s.password})
		settings["servers"] = []any{server}
	case Trojan:
		server["password"] = s.password
		settings["servers"] = []any{server}
	case VMess:
		server["users"] = []any{object{"id": s.id, "alterId": cfg.AlterID, "security": cfg.Method}}
		settings["vnext"] = []any{server}
	case VLESS:
		server["users"] = []any{object{"id": s.id, "encryption": "none"}}
		settings["vnext"] = []any{server}
	}
	tag := strconv.Itoa(len(f.in))
	f.in = append(f.in, object{"tag": "in" + tag, "listen": "127.0.0.1", "port": t.SOCKS.Port(), "protocol": "socks",
		"settings": object{"auth": "noauth", "udp": cfg.Protocol == Shadowsocks, "ip": "127.0.0.1"}})
	out := object{"tag": "out" + tag, "protocol": cfg.Protocol, "settings": settings, "streamSettings": rayStream(cfg, s.sni, "")}
	if cfg.Mux {
		out["mux"] = object{"enabled": true, "concurrency": 4}
	}
	f.out = append(f.out, out)
	f.rules = append(f.rules, object{"type": "field", "inboundTag": []string{"in" + tag}, "outboundTag": "out" + tag})
}

// singFile is the format of sing-box.
type singFile struct {
	in, out, rules []any
	resolve        netip.Addr
}

func newSingFile(resolve netip.Addr) *singFile {
	return &singFile{out: []any{object{"type": "direct", "tag": "direct"}}, resolve: resolve}
}

func (f *singFile) content() object {
	route := object{"rules": f.rules, "final": "direct"}
	o := object{"log": object{"level": "warn", "timestamp": false}, "inbounds": f.in, "outbounds": f.out, "route": route}
	if f.resolve.IsValid() {
		o["dns"] = object{"servers": []any{object{"type": "udp", "tag": "lab", "server": f.resolve.String()}}}
		route["default_domain_resolver"] = "lab"
	}
	return o
}

func singTransport(cfg ProxyConfig, sni, dir string) object {
	o := object{}
	if strings.HasPrefix(cfg.Transport, "ws") {
		o["transport"] = object{"type": "ws", "path": "/" + sni}
	}
	if strings.HasSuffix(cfg.Transport, "tls") {
		settings := object{"enabled": true, "server_name": sni}
		if dir != "" {
			settings = object{"enabled": true, "certificate_path": filepath.Join(dir, "cert.pem"), "key_path": filepath.Join(dir, "key.pem")}
		}
		o["tls"] = settings
	}
	return o
}

func (f *singFile) listen(cfg ProxyConfig, s tunnelSecret, at netip.AddrPort, dir string) error {
	o := object{"type": cfg.Protocol, "listen": at.Addr().String(), "listen_port": at.Port()}
	switch cfg.Protocol {
	case Shadowsocks:
		maps.Copy(o, object{"method": cfg.Method, "password": s.password})
	case VMess:
		o["users"] = []any{object{"uuid": s.id, "alterId": cfg.AlterID}}
	case VLESS:
		o["users"] = []any{object{"uuid": s.id}}
	case Trojan:
		o["users"] = []any{object{"password": s.password}}
	case SOCKS5:
		o["type"] = "socks"
	default:
		return fmt.Errorf("protocol %q of a proxy is not known", cfg.Protocol)
	}
	maps.Copy(o, singTransport(cfg, s.sni, dir))
	f.in = append(f.in, o)
	return nil
}

func (f *singFile) connect(cfg ProxyConfig, s tunnelSecret, t *Tunnel) {
	tag := strconv.Itoa(len(f.in))
	o := object{"type": cfg.Protocol, "tag": "out" + tag, "server": cfg.peer(t).Addr().String(), "server_port": cfg.peer(t).Port()}
	switch cfg.Protocol {
	case Shadowsocks:
		maps.Copy(o, object{"method": cfg.Method, "password": s.password})
	case VMess:
		maps.Copy(o, object{"uuid": s.id, "security": cfg.Method, "alter_id": cfg.AlterID, "global_padding": cfg.Padding, "authenticated_length": cfg.Padding})
	case VLESS:
		o["uuid"] = s.id
	case Trojan:
		o["password"] = s.password
	}
	maps.Copy(o, singTransport(cfg, s.sni, ""))
	f.in = append(f.in, object{"type": "socks", "tag": "in" + tag, "listen": "127.0.0.1", "listen_port": t.SOCKS.Port()})
	f.out = append(f.out, o)
	f.rules = append(f.rules, object{"inbound": []string{"in" + tag}, "outbound": "out" + tag})
}
