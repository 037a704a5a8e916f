// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
)

// Ciphers are the AEAD ciphers of shadowsocks-libev.
var Ciphers = []string{"aes-128-gcm", "aes-192-gcm", "aes-256-gcm", "chacha20-ietf-poly1305", "xchacha20-ietf-poly1305"}

// Securities are the VMess encryptions of Debian's v2ray. ("zero" came with a
// later version.)
var Securities = []string{"auto", "aes-128-gcm", "chacha20-poly1305", "none"}

var fileNumber atomic.Int64

// Subdir makes a new directory of the lab for one program.
func (l *Lab) Subdir(name string) (string, error) {
	dir := filepath.Join(l.dir, fmt.Sprintf("%s-%d", name, fileNumber.Add(1)))
	if err := os.Mkdir(dir, 0o755); err != nil {
		return "", fmt.Errorf("directory for %s: %w", name, err)
	}
	return dir, nil
}

// FreePort returns a TCP port that nothing in the namespace listens on now and
// that it has not returned before, as its taker may be slow to listen.
func (n *Namespace) FreePort() (uint16, error) {
	for {
		ln, err := n.Listen("tcp", "0.0.0.0:0")
		if err != nil {
			return 0, fmt.Errorf("find a free port: %w", err)
		}
		port := uint16(ln.Addr().(*net.TCPAddr).Port)
		if err := ln.Close(); err != nil {
			return 0, fmt.Errorf("find a free port: %w", err)
		}
		if _, given := n.given.LoadOrStore(port, true); !given {
			return port, nil
		}
	}
}

func (n *Namespace) portOr(port uint16) (uint16, error) {
	if port != 0 {
		return port, nil
	}
	return n.FreePort()
}

// NginxConfig sets up the web server.
type NginxConfig struct {
	HTTPPort, HTTPSPort uint16 // (optional: free ones)

	// LargeMB is the size of the file /large. (optional: 24)
	LargeMB int

	// Files are served as well, by their names. (optional)
	Files map[string][]byte

	// Key is the kind of the certificate's key: "ec" or "rsa". (optional: ec)
	Key string

	// Seed of the files' random contents.
	Seed uint64
}

// Nginx is a running web server. It serves files of random bytes, /1k, /4k,
// /16k, /64k, /256k, /1m and /large, a text /page.html, and answers any
// request below /upload with 204. It listens on all addresses of the server,
// with TLS 1.2, 1.3 and HTTP/2 on HTTPSPort.
type Nginx struct {
	*Proc
	HTTPPort, HTTPSPort uint16
	LargeBytes          int64 // size of /large
}

// StartNginx starts nginx on the server with a fresh self-signed certificate.
func (l *Lab) StartNginx(ctx context.Context, cfg NginxConfig) (*Nginx, error) {
	dir, err := l.Subdir("nginx")
	if err != nil {
		return nil, err
	}
	if cfg.LargeMB == 0 {
		cfg.LargeMB = 24
	}
	if cfg.HTTPPort, err = l.Server.portOr(cfg.HTTPPort); err != nil {
		return nil, err
	}
	if cfg.HTTPSPort, err = l.Server.portOr(cfg.HTTPSPort); err != nil {
		return nil, err
	}
	if err := l.Certificate(ctx, dir, cfg.Key); err != nil {
		return nil, err
	}
	root := filepath.Join(dir, "www")
	if err := os.Mkdir(root, 0o755); err != nil {
		return nil, err
	}
	large := cfg.LargeMB << 20
	for name, size := range map[string]int{"1k": 1 << 10, "4k": 4 << 10, "16k": 16 << 10, "64k": 64 << 10, "256k": 256 << 10, "1m": 1 << 20, "large": large} {
		if err := writeRandom(filepath.Join(root, name), size, cfg.Seed+uint64(size)); err != nil {
			return nil, err
		}
	}
	for name, content := range cfg.Files {
		if err := os.WriteFile(filepath.Join(root, name), content, 0o644); err != nil {
			return nil, fmt.Errorf("file to serve: %w", err)
		}
	}
	page := "<!doctype html><title>lab</title>\n" + strings.Repeat("<p>The quick brown fox jumps over the lazy dog.</p>\n", 200)
	if err := os.WriteFile(filepath.Join(root, "page.html"), []byte(page), 0o644); err != nil {
		return nil, err
	}
	// One process: a killed master would leave its workers.
	conf := fmt.Sprintf(`user root;
daemon off;
master_process off;
pid %[1]s/pid;
error_log stderr warn;
events { worker_connections 512; }
http {
  access_log off;
  client_body_temp_path %[1]s/body;
  proxy_temp_path %[1]s/proxy;
  fastcgi_temp_path %[1]s/fastcgi;
  uwsgi_temp_path %[1]s/uwsgi;
  scgi_temp_path %[1]s/scgi;
  types { text/html html; }
  default_type application/octet-stream;
  client_max_body_size 0;
  server {
    listen 0.0.0.0:%[2]d;
    listen [::]:%[2]d;
    listen 0.0.0.0:%[3]d ssl http2;
    listen [::]:%[3]d ssl http2;
    server_name _;
    ssl_certificate %[1]s/cert.pem;
    ssl_certificate_key %[1]s/key.pem;
    ssl_protocols TLSv1.2 TLSv1.3;
    root %[4]s;
    location /upload { return 204; }
  }
}
`, dir, cfg.HTTPPort, cfg.HTTPSPort, root)
	file := filepath.Join(dir, "nginx.conf")
	if err := os.WriteFile(file, []byte(conf), 0o644); err != nil {
		return nil, err
	}
	p, err := l.Start(l.Server, "nginx", "nginx", "-c", file, "-e", "stderr")
	if err != nil {
		return nil, err
	}
	for _, port := range []uint16{cfg.HTTPPort, cfg.HTTPSPort} {
		if err := l.WaitReady(ctx, l.Server, netip.AddrPortFrom(l.ServerAddr(4), port), p); err != nil {
			return nil, err
		}
	}
	return &Nginx{Proc: p, HTTPPort: cfg.HTTPPort, HTTPSPort: cfg.HTTPSPort, LargeBytes: int64(large)}, nil
}

// URL returns the address of a file of the server, by IP version 4 or 6.
func (l *Lab) URL(scheme string, version int, port uint16, path string) string {
	return fmt.Sprintf("%s://%s%s", scheme, netip.AddrPortFrom(l.ServerAddr(version), port), path)
}

func writeRandom(path string, size int, seed uint64) error {
	b := make([]byte, size)
	var key [32]byte
	for i := range 8 {
		key[i] = byte(seed >> (8 * i))
	}
	_, _ = rand.NewChaCha8(key).Read(b) // never fails
	if err := os.WriteFile(path, b, 0o644); err != nil {
		return fmt.Errorf("file to serve: %w", err)
	}
	return nil
}

// Certificate makes a self-signed certificate cert.pem with key.pem in dir;
// kind is "ec" (also when empty) or "rsa".
func (l *Lab) Certificate(ctx context.Context, dir, kind string) error {
	algo := []string{"-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"}
	switch kind {
	case "", "ec":
	case "rsa":
		algo = []string{"-newkey", "rsa:2048"}
	default:
		return fmt.Errorf("certificate key %q: want ec or rsa", kind)
	}
	argv := append([]string{"openssl", "req", "-x509", "-nodes", "-days", "30", "-subj", "/CN=lab.example",
		"-addext", "subjectAltName=DNS:lab.example,DNS:*.example", "-keyout", filepath.Join(dir, "key.pem"), "-out", filepath.Join(dir, "cert.pem")}, algo...)
	if _, err := l.Exec(ctx, l.Server, argv...); err != nil {
		return fmt.Errorf("make certificate: %w", err)
	}
	return nil
}

// Tunnel is a proxy program pair: connections to SOCKS, an address inside the
// client's namespace, leave the server's program towards their targets, and
// between client and server they run as one flow each to Server.
type Tunnel struct {
	SOCKS  netip.AddrPort
	Server netip.AddrPort

	ClientProc, ServerProc *Proc
}

// ShadowsocksConfig sets up ss-server and ss-local.
type ShadowsocksConfig struct {
	Cipher  string     // one of Ciphers (optional: aes-256-gcm)
	Port    uint16     // of ss-server (optional: a free one)
	Version int        // of IP between the two, 4 or 6 (optional: 4)
	Resolve netip.Addr // DNS server for names asked through the tunnel (optional)
	NoDelay bool       // TCP_NODELAY in both programs
	UDP     bool       // relay datagrams as well

	Password string // (optional: a random one)

	// Via is where the client's program connects to in place of the server,
	// such as a relay on the client's loopback. (optional)
	Via netip.AddrPort
}

// openTunnel makes a folder for the files of a tunnel's programs and finds its ends: a
// free port on the client's loopback, and port of the server, or a free one for 0.
func (l *Lab) openTunnel(name string, version int, port uint16) (dir string, t *Tunnel, err error) {
	if dir, err = l.Subdir(name); err != nil {
		return "", nil, err
	}
	if port, err = l.Server.portOr(port); err != nil {
		return "", nil, err
	}
	local, err := l.Client.FreePort()
	if err != nil {
		return "", nil, err
	}
	return dir, &Tunnel{
		SOCKS:  netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), local),
		Server: netip.AddrPortFrom(l.ServerAddr(version), port),
	}, nil
}

// StartShadowsocks starts ss-server on the server and ss-local on the client.
func (l *Lab) StartShadowsocks(ctx context.Context, cfg ShadowsocksConfig) (*Tunnel, error) {
	if cfg.Cipher == "" {
		cfg.Cipher = "aes-256-gcm"
	}
	dir, t, err := l.openTunnel("shadowsocks", cfg.Version, cfg.Port)
	if err != nil {
		return nil, err
	}
	if cfg.Password == "" {
		cfg.Password = "a password for the lab " + strconv.Itoa(rand.Int())
	}
	common := map[string]any{
		"server": t.Server.Addr().String(), "server_port": t.Server.Port(), "password": cfg.Password,
		"method": cfg.Cipher, "timeout": 60, "mode": "tcp_only", "no_delay": cfg.NoDelay,
	}
	if cfg.UDP {
		common["mode"] = "tcp_and_udp"
	}
	if cfg.Resolve.IsValid() {
		common["nameserver"] = cfg.Resolve.String()
	}
	serverFile := filepath.Join(dir, "server.json")
	if err := writeJSON(serverFile, common); err != nil {
		return nil, err
	}
	delete(common, "nameserver")
	common["local_address"], common["local_port"] = t.SOCKS.Addr().String(), t.SOCKS.Port()
	if cfg.Via.IsValid() {
		common["server"], common["server_port"] = cfg.Via.Addr().String(), cfg.Via.Port()
	}
	clientFile := filepath.Join(dir, "client.json")
	if err := writeJSON(clientFile, common); err != nil {
		return nil, err
	}
	if t.ServerProc, err = l.Start(l.Server, "ss-server", "ss-server", "-c", serverFile); err != nil {
		return nil, err
	}
	if t.ClientProc, err = l.Start(l.Client, "ss-local", "ss-local", "-c", clientFile); err != nil {
		return nil, err
	}
	return t, l.tunnelReady(ctx, t)
}

// VMessConfig sets up v2ray's VMess on both sides.
type VMessConfig struct {
	Security string // one of Securities (optional: auto)
	Port     uint16 // of the VMess inbound (optional: a free one)
	Version  int    // of IP between the two, 4 or 6 (optional: 4)

	// AlterID 0 is VMess with authenticated headers; more is the older form.
	AlterID int

	// HTTPHeader has the first packets look like HTTP (header type http).
	HTTPHeader bool

	// Mux carries several connections in one flow.
	Mux bool

	Resolve netip.Addr // DNS server for names asked through the tunnel (optional)

	// Via is where the client's program connects to in place of the server,
	// such as a relay on the client's loopback. (optional)
	Via netip.AddrPort
}

// StartVMess starts one v2ray on the server and one on the client.
func (l *Lab) StartVMess(ctx context.Context, cfg VMessConfig) (*Tunnel, error) {
	ts, err := l.StartVMessAll(ctx, []VMessConfig{cfg})
	if err != nil {
		return nil, err
	}
	return ts[0], nil
}

// StartVMessAll starts one v2ray on the server and one on the client that
// hold a tunnel for each configuration; the DNS server is the first one's.
func (l *Lab) StartVMessAll(ctx context.Context, cfgs []VMessConfig) ([]*Tunnel, error) {
	var resolve netip.Addr
	var all []ProxyConfig
	for i, c := range cfgs {
		if i == 0 {
			resolve = c.Resolve
		}
		p := ProxyConfig{Protocol: VMess, Method: c.Security, AlterID: c.AlterID, Mux: c.Mux, Port: c.Port, Version: c.Version, Via: c.Via}
		if c.HTTPHeader {
			p.Transport = "http"
		}
		all = append(all, p)
	}
	return l.StartProxies(ctx, V2Ray, resolve, all)
}

// tunnelReady asks each program from its own host, so that no packet of the
// question crosses the gateway.
func (l *Lab) tunnelReady(ctx context.Context, t *Tunnel) error {
	if err := l.WaitReady(ctx, l.Server, t.Server, t.ServerProc); err != nil {
		return err
	}
	return l.WaitReady(ctx, l.Client, t.SOCKS, t.ClientProc)
}

func writeJSON(path string, v any) error {
	b, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return fmt.Errorf("encode %s: %w", path, err)
	}
	return os.WriteFile(path, b, 0o600)
}

// uuid returns a random version 4 UUID.
func uuid() string {
	var b [16]byte
	for i := range b {
		b[i] = byte(rand.Uint32())
	}
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}

// SSH is a running sshd that lets root in with Key.
type SSH struct {
	*Proc
	Port uint16
	Key  string // file of the client's private key
}

// StartSSH starts sshd on the server; port 0 takes a free one.
func (l *Lab) StartSSH(ctx context.Context, port uint16) (*SSH, error) {
	dir, err := l.Subdir("sshd")
	if err != nil {
		return nil, err
	}
	if port, err = l.Server.portOr(port); err != nil {
		return nil, err
	}
	for _, k := range [][2]string{{"host_ed25519", "ed25519"}, {"host_ecdsa", "ecdsa"}, {"host_rsa", "rsa"}, {"client", "ed25519"}} {
		argv := []string{"ssh-keygen", "-q", "-N", "", "-C", "lab", "-t", k[1], "-f", filepath.Join(dir, k[0])}
		if k[1] == "rsa" {
			argv = append(argv, "-b", "2048")
		}
		if _, err := l.Exec(ctx, l.Server, argv...); err != nil {
			return nil, fmt.Errorf("make ssh key: %w", err)
		}
	}
	pub, err := os.ReadFile(filepath.Join(dir, "client.pub"))
	if err != nil {
		return nil, err
	}
	keys := filepath.Join(dir, "authorized_keys")
	if err := os.WriteFile(keys, pub, 0o600); err != nil {
		return nil, err
	}
	// sshd insists on its privilege separation directory, which Debian's
	// service makes.
	if err := os.MkdirAll("/run/sshd", 0o755); err != nil {
		return nil, fmt.Errorf("directory that sshd needs: %w", err)
	}
	// A home of its own: what root's shell does when it starts is no part of the lab.
	conf := fmt.Sprintf(`Port %d
ListenAddress 0.0.0.0
ListenAddress ::
HostKey %[2]s/host_ed25519
HostKey %[2]s/host_ecdsa
HostKey %[2]s/host_rsa
AuthorizedKeysFile %[3]s
PidFile none
UsePAM no
UseDNS no
StrictModes no
PasswordAuthentication no
PermitRootLogin prohibit-password
PrintMotd no
PrintLastLog no
MaxStartups 100:30:200
Ciphers +aes128-cbc,aes256-cbc
SetEnv HOME=%[2]s
`, port, dir, keys)
	file := filepath.Join(dir, "sshd_config")
	if err := os.WriteFile(file, []byte(conf), 0o600); err != nil {
		return nil, err
	}
	p, err := l.Start(l.Server, "sshd", "sshd", "-D", "-e", "-f", file)
	if err != nil {
		return nil, err
	}
	s := &SSH{Proc: p, Port: port, Key: filepath.Join(dir, "client")}
	return s, l.WaitReady(ctx, l.Server, netip.AddrPortFrom(l.ServerAddr(4), port), p)
}

// DNSConfig sets up the name server.
type DNSConfig struct {
	Port uint16 // (optional: 53)

	// Versions are the versions of IP whose addresses the server gives for a
	// name. (optional: 4 and 6)
	Versions []int

	// TFTPRoot is a directory to serve by TFTP too, on port 69. (optional)
	TFTPRoot string
}

// DNS is a running dnsmasq. It answers A and AAAA of every name with the
// server's addresses, and TXT and MX of lab.example.
type DNS struct {
	*Proc
	Port uint16
}

// StartDNS starts dnsmasq on the server, on its addresses and its loopback,
// UDP and TCP.
func (l *Lab) StartDNS(ctx context.Context, cfg DNSConfig) (*DNS, error) {
	if cfg.Port == 0 {
		cfg.Port = 53
	}
	if cfg.Versions == nil {
		cfg.Versions = []int{4, 6}
	}
	argv := []string{"dnsmasq", "--keep-in-foreground", "--conf-file=/dev/null", "--no-resolv", "--no-hosts",
		"--no-daemon", "--pid-file=", "--user=root", "--bind-interfaces", "--port=" + strconv.Itoa(int(cfg.Port)),
		fmt.Sprintf("--listen-address=%v,%v,127.0.0.1", l.ServerAddr(4), l.ServerAddr(6)),
		"--txt-record=lab.example,v=spf1 include:mail.lab.example ~all", "--mx-host=lab.example,mail.lab.example,10"}
	for _, v := range cfg.Versions {
		argv = append(argv, "--address=/#/"+l.ServerAddr(v).String())
	}
	if cfg.TFTPRoot != "" {
		argv = append(argv, "--enable-tftp", "--tftp-single-port", "--tftp-root="+cfg.TFTPRoot)
	}
	p, err := l.Start(l.Server, "dnsmasq", argv...)
	if err != nil {
		return nil, err
	}
	return &DNS{p, cfg.Port}, l.WaitReady(ctx, l.Server, netip.AddrPortFrom(l.ServerAddr(4), cfg.Port), p)
}
