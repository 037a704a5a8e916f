// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"context"
	"crypto/sha1"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/earlydrop/earlydrop/test/lab"
)

// programs that the recorder runs beyond lab.Packages, with their Debian
// packages. One that is missing is left out, with a warning.
var programs = map[string]string{
	"redis-server":     "redis-server",
	"redis-cli":        "redis-tools",
	"memcached":        "memcached",
	"mosquitto":        "mosquitto",
	"mosquitto_pub":    "mosquitto-clients",
	"ngircd":           "ngircd",
	"microsocks":       "microsocks",
	"tinyproxy":        "tinyproxy",
	"rsync":            "rsync",
	"git":              "git",
	"dig":              "bind9-dnsutils",
	"gnutls-cli":       "gnutls-bin",
	"obfs4proxy":       "obfs4proxy",
	"openvpn":          "openvpn",
	"apache2":          "apache2-bin",
	"beanstalkd":       "beanstalkd",
	"caddy":            "caddy",
	"chronyd":          "chrony",
	"dovecot":          "dovecot-imapd",
	"haproxy":          "haproxy",
	"kdig":             "knot-dnsutils",
	"ldapsearch":       "ldap-utils",
	"lighttpd":         "lighttpd",
	"nats-server":      "nats-server",
	"prosody":          "prosody",
	"slapd":            "slapd",
	"snmpd":            "snmpd",
	"snmpget":          "snmp",
	"stunnel4":         "stunnel4",
	"svnserve":         "subversion",
	"turnserver":       "coturn",
	"Xtigervnc":        "tigervnc-standalone-server",
	"dropbear":         "dropbear-bin",
	"danted":           "dante-server",
	"trojan":           "trojan",
	"/usr/bin/python3": "python3",
	"aria2c":           "aria2",
	"etcd":             "etcd-server",
	"etcdctl":          "etcd-client",
	"iperf3":           "iperf3",
	"mariadb":          "mariadb-client",
	"mariadbd":         "mariadb-server",
	"smbclient":        "smbclient",
	"smbd":             "samba",
	"unbound":          "unbound",

	postgres("postgres"): "postgresql",
	postgres("psql"):     "postgresql-client",
}

// modules are packages beyond those of programs: of Python, and of dovecot.
var modules = []string{"dovecot-pop3d", "python3-aiosmtpd", "python3-libtorrent", "python3-pyftpdlib"}

// packages returns the Debian packages for a recording, or only those for the
// lab itself.
func packages(which string) ([]string, error) {
	names := lab.DebianPackages()
	switch which {
	case "lab":
		return names, nil
	case "record":
		names = append(names, modules...)
		for _, p := range programs {
			names = append(names, p)
		}
		slices.Sort(names)
		return slices.Compact(names), nil
	}
	return nil, fmt.Errorf("--packages %q: want lab or record", which)
}

// env is what runs on the server under one condition.
type env struct {
	l    *lab.Lab
	c    condition
	dir  string // for files of clients
	dns  *lab.DNS
	web  *lab.Nginx
	ssh  *lab.SSH
	port map[string]uint16 // of each service that runs, by name
	// drawn has the ports of all services; it is not written once they start.
	drawn        map[string]uint16
	mailPorts    [3]uint16 // further ones of the mail server
	unboundPorts [2]uint16 // further ones of the second name server
	more         map[string][]uint16

	vpn         map[string][]string // options that name OpenVPN's keys, by service
	dropbearKey string              // file of its client's private key
	certs       map[string]string   // files of certificates, by service
	torrents    map[string]string   // files of metainfo, by service
	samba       string              // file of its settings
	wg0         *lab.WireGuard      // the server's
	wgPeers     int
	iperf       sync.Mutex // held by its client
	templates   *templates

	scripts sync.Map // client address -> chan script, of the random-like servers
	wg      sync.WaitGroup
	ctx     context.Context
	cancel  context.CancelFunc

	mu       sync.Mutex
	forwards map[forwardKey]netip.AddrPort
}

type forwardKey struct {
	via  *lab.Tunnel
	port uint16
}

func (e *env) server() netip.Addr { return e.l.ServerAddr(e.c.Version) }

// set changes e under its lock, as services start at the same time.
func (e *env) set(change func()) {
	e.mu.Lock()
	defer e.mu.Unlock()
	change()
}

// draws returns a source of random numbers for a service's settings.
func (e *env) draws(name string) *rand.Rand {
	return rand.New(rand.NewPCG(hash(e.c.ID), hash(name)))
}

// serve handles connections until the services end; the listener is then
// closed. The handler closes the connection.
func (e *env) serve(ln net.Listener, handle func(net.Conn)) {
	context.AfterFunc(e.ctx, func() { ln.Close() })
	e.wg.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			stop := context.AfterFunc(e.ctx, func() { c.Close() })
			e.wg.Go(func() {
				defer stop()
				handle(c)
			})
		}
	})
}

// server returns the server's address as the attempt's client knows it.
func (a *attempt) server() netip.Addr {
	if a.at.IsValid() {
		return a.at
	}
	return a.e.server()
}

// addr returns where a client program finds a service: the server itself, or
// a forwarder on its own loopback that leads through a tunnel.
func (a *attempt) addr(port uint16) (netip.AddrPort, error) {
	target := netip.AddrPortFrom(a.server(), port)
	if a.via == nil {
		return target, nil
	}
	a.e.mu.Lock()
	defer a.e.mu.Unlock()
	k := forwardKey{a.via, port}
	if at, ok := a.e.forwards[k]; ok {
		return at, nil
	}
	at, err := a.e.l.Forward(a.via, target.String())
	if err == nil {
		a.e.forwards[k] = at
	}
	return at, err
}

// dial connects a Go client to a service; host is a name for the far end of a
// tunnel to resolve, or "".
func (a *attempt) dial(ctx context.Context, host string, port uint16) (net.Conn, error) {
	if a.via == nil {
		return a.e.l.Client.Dial(ctx, "tcp", netip.AddrPortFrom(a.server(), port).String())
	}
	if host == "" {
		host = a.server().String()
	}
	return a.e.l.Client.DialSOCKS(ctx, a.via.SOCKS, net.JoinHostPort(host, num(port)))
}

// service is one server program: start returns when it is ready on the port.
type service struct {
	name  string
	start func(e *env, ctx context.Context, port uint16) error
}

var services = []service{
	{"redis", (*env).startRedis},
	{"memcached", (*env).startMemcached},
	{"mosquitto", (*env).startMosquitto},
	{"ngircd", (*env).startNgircd},
	{"aiosmtpd", (*env).startSMTP},
	{"ftp", (*env).startFTP},
	{"tinyproxy", (*env).startTinyproxy},
	{"rsync", (*env).startRsync},
	{"git", (*env).startGit},
	{"go-http", (*env).startGoHTTP},
	{"go-https", (*env).startGoHTTPS},
	{"dropbear", (*env).startDropbear},
	{"go-ssh", (*env).startGoSSH},
	{"wireguard", (*env).startWireGuard},
	{vpnForms[0].name, startVPN(0)},
	{vpnForms[1].name, startVPN(1)},
	{vpnForms[2].name, startVPN(2)},
	{vpnForms[3].name, startVPN(3)},
	{vpnForms[4].name, startVPN(4)},
	{"random-tcp", (*env).startRandomTCP},
	{"random-udp", (*env).startRandomUDP},
}

// moreShare is the chance of each of moreServices to run under a condition:
// starting them all would take longer than what they then do.
const moreShare = 0.6

// startServices starts everything on the server; ports are drawn in a fixed
// order. A program that fails is left out and reported; the web server and
// DNS, which all else uses, must start.
func startServices(ctx context.Context, l *lab.Lab, c condition, p *ports, t *templates, log *slog.Logger) (*env, error) {
	e := &env{l: l, c: c, templates: t, port: map[string]uint16{}, more: map[string][]uint16{}, forwards: map[forwardKey]netip.AddrPort{}, vpn: map[string][]string{}, certs: map[string]string{}, torrents: map[string]string{}}
	e.ctx, e.cancel = context.WithCancel(context.Background())
	var err error
	if e.dir, err = l.Subdir("clients"); err != nil {
		return e, err
	}
	e.port["http"], e.port["https"], e.port["ssh"] = p.next(), p.next(), p.next()
	e.port["dns"], e.port["tftp"] = 53, 69
	key := pick(p.r, "ec", "rsa")
	var wg sync.WaitGroup
	fail := func(name string, err error) {
		e.mu.Lock()
		defer e.mu.Unlock()
		delete(e.port, name)
		log.Warn("service left out", "condition", c.ID, "service", name, "err", err)
	}
	e.drawn = maps.Clone(e.port)
	all := slices.Clone(services)
	for _, s := range services {
		e.drawn[s.name] = p.next()
	}
	for _, s := range moreServices {
		e.drawn[s.name] = p.next()
		for s.name == "aria2" && e.drawn[s.name] < 1024 { // refused by it
			e.drawn[s.name] = p.next()
		}
		if s.name == "scripted-udp" || p.r.Float64() < moreShare {
			all = append(all, s)
		}
	}
	for i := range e.mailPorts {
		e.mailPorts[i] = p.next()
	}
	for i := range e.unboundPorts {
		e.unboundPorts[i] = p.next()
	}
	for i := range 10 {
		e.more["ftp"] = append(e.more["ftp"], 31000+uint16(i))
	}
	var webErr, dnsErr error
	wg.Go(func() {
		e.web, webErr = l.StartNginx(ctx, lab.NginxConfig{HTTPPort: e.port["http"], HTTPSPort: e.port["https"], LargeMB: 1, Key: key})
	})
	var tftp string
	tftp, err = tftpFiles(l)
	if err != nil {
		return e, err
	}
	wg.Go(func() { e.dns, dnsErr = l.StartDNS(ctx, lab.DNSConfig{Versions: []int{c.Version}, TFTPRoot: tftp}) })
	sshPort := e.port["ssh"]
	wg.Go(func() {
		s, err := l.StartSSH(ctx, sshPort)
		if err != nil {
			fail("ssh", err)
			return
		}
		e.ssh = s
	})
	for _, s := range all {
		wg.Go(func() {
			if err := s.start(e, ctx, e.drawn[s.name]); err != nil {
				fail(s.name, err)
				return
			}
			e.mu.Lock()
			e.port[s.name] = e.drawn[s.name]
			e.mu.Unlock()
		})
	}
	wg.Wait()
	return e, errors.Join(webErr, dnsErr)
}

func tftpFiles(l *lab.Lab) (string, error) {
	dir, err := l.Subdir("tftp")
	if err != nil {
		return "", err
	}
	r := rand.New(rand.NewPCG(4, 4))
	return dir, errors.Join(os.WriteFile(filepath.Join(dir, "1k"), randomBytes(r, 1024), 0o644), os.WriteFile(filepath.Join(dir, "4k"), words(r, 4096), 0o644))
}

// close ends the servers of this process; the others end with the lab.
func (e *env) close() {
	e.cancel()
	e.wg.Wait()
}

// run starts a server program and waits until it accepts on the port.
func (e *env) run(ctx context.Context, port uint16, argv ...string) error {
	p, err := e.l.Start(e.l.Server, filepath.Base(argv[0]), argv...)
	if err != nil {
		return err
	}
	return e.l.WaitReady(ctx, e.l.Server, netip.AddrPortFrom(e.server(), port), p)
}

func num(port uint16) string { return strconv.Itoa(int(port)) }

// config writes a file in a directory of its own and returns both names.
func (e *env) config(name, text string) (file, dir string, err error) {
	if dir, err = e.l.Subdir(name); err != nil {
		return "", "", err
	}
	file = filepath.Join(dir, "conf")
	return file, dir, os.WriteFile(file, []byte(text), 0o644)
}

func (e *env) startRedis(ctx context.Context, port uint16) error {
	return e.run(ctx, port, "redis-server", "--port", num(port), "--bind", e.server().String(), "--protected-mode", "no", "--save", "", "--appendonly", "no")
}

func (e *env) startMemcached(ctx context.Context, port uint16) error {
	return e.run(ctx, port, "memcached", "-u", "root", "-l", e.server().String(), "-p", num(port), "-U", "0", "-t", "1")
}

func (e *env) startMosquitto(ctx context.Context, port uint16) error {
	file, _, err := e.config("mosquitto", fmt.Sprintf("listener %d %s\nallow_anonymous true\nuser root\npersistence false\n", port, e.server()))
	if err != nil {
		return err
	}
	return e.run(ctx, port, "mosquitto", "-c", file)
}

func (e *env) startNgircd(ctx context.Context, port uint16) error {
	file, _, err := e.config("ngircd", fmt.Sprintf(`[Global]
Name = irc.lab.example
Info = lab
Listen = %s
Ports = %d
ServerUID = root
ServerGID = root
[Limits]
MaxConnectionsIP = 0
[Options]
PAM = no
DNS = no
Ident = no
`, e.server(), port))
	if err != nil {
		return err
	}
	return e.run(ctx, port, "ngircd", "-n", "-f", file)
}

func (e *env) startSMTP(ctx context.Context, port uint16) error {
	return e.run(ctx, port, "/usr/bin/python3", "-m", "aiosmtpd", "-n", "-c", "aiosmtpd.handlers.Sink",
		"-l", e.server().String()+":"+num(port)) // it wants no brackets around IPv6
}

func (e *env) startFTP(ctx context.Context, port uint16) error {
	_, dir, err := e.config("ftp", "")
	if err != nil {
		return err
	}
	for _, n := range []int{700, 5000, 30000} {
		if err := os.WriteFile(filepath.Join(dir, fmt.Sprintf("file%d", n)), randomBytes(rand.New(rand.NewPCG(uint64(n), 0)), n), 0o644); err != nil {
			return err
		}
	}
	first, last := e.more["ftp"][0], e.more["ftp"][len(e.more["ftp"])-1]
	return e.run(ctx, port, "/usr/bin/python3", "-m", "pyftpdlib", "-i", e.server().String(), "-p", num(port), "-d", dir, "-w", "-r", fmt.Sprintf("%d-%d", first, last))
}

func (e *env) startTinyproxy(ctx context.Context, port uint16) error {
	file, _, err := e.config("tinyproxy", fmt.Sprintf("User root\nGroup root\nPort %d\nListen %s\nTimeout 60\nMaxClients 50\nLogLevel Error\n", port, e.server()))
	if err != nil {
		return err
	}
	return e.run(ctx, port, "tinyproxy", "-d", "-c", file)
}

func (e *env) startRsync(ctx context.Context, port uint16) error {
	_, dir, err := e.config("rsync", "")
	if err != nil {
		return err
	}
	conf := fmt.Sprintf("uid = root\ngid = root\nuse chroot = no\nlog file = %s/log\n[files]\npath = %s\nread only = no\n", dir, filepath.Join(dir, "data"))
	if err := errors.Join(os.Mkdir(filepath.Join(dir, "data"), 0o755), os.WriteFile(filepath.Join(dir, "conf"), []byte(conf), 0o644),
		os.WriteFile(filepath.Join(dir, "data", "a"), randomBytes(rand.New(rand.NewPCG(1, 1)), 20000), 0o644),
		os.WriteFile(filepath.Join(dir, "data", "b"), []byte(strings.Repeat("text ", 2000)), 0o644)); err != nil {
		return err
	}
	return e.run(ctx, port, "rsync", "--daemon", "--no-detach", "--config="+filepath.Join(dir, "conf"), "--port="+num(port), "--address="+e.server().String())
}

func (e *env) startGit(ctx context.Context, port uint16) error {
	_, dir, err := e.config("git", "")
	if err != nil {
		return err
	}
	repo := filepath.Join(dir, "repo")
	if err := os.Mkdir(repo, 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(repo, "data"), randomBytes(rand.New(rand.NewPCG(2, 2)), 8000), 0o644); err != nil {
		return err
	}
	git := []string{"git", "-C", repo, "-c", "user.name=lab", "-c", "user.email=lab@lab.example", "-c", "safe.directory=*"}
	for _, args := range [][]string{{"init", "-q"}, {"add", "data"}, {"commit", "-q", "-m", "first"}} {
		if _, err := e.l.Exec(ctx, e.l.Server, append(git, args...)...); err != nil {
			return err
		}
	}
	return e.run(ctx, port, "git", "-c", "safe.directory=*", "daemon", "--reuseaddr", "--export-all", "--base-path="+dir, "--listen="+e.server().String(), "--port="+num(port))
}

// startGoHTTP and startGoHTTPS are Go's own web server, with WebSocket
// messages at /ws, echoed.
func (e *env) startGoHTTP(ctx context.Context, port uint16) error {
	ln, err := e.l.Server.Listen("tcp", netip.AddrPortFrom(e.server(), port).String())
	if err != nil {
		return err
	}
	e.serveHTTP(ln)
	return nil
}

func (e *env) startGoHTTPS(ctx context.Context, port uint16) error {
	_, dir, err := e.config("go-https", "")
	if err != nil {
		return err
	}
	if err := e.l.Certificate(ctx, dir, "rsa"); err != nil {
		return err
	}
	cert, err := tls.LoadX509KeyPair(filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem"))
	if err != nil {
		return err
	}
	ln, err := e.l.Server.Listen("tcp", netip.AddrPortFrom(e.server(), port).String())
	if err != nil {
		return err
	}
	e.serveHTTP(tls.NewListener(ln, &tls.Config{Certificates: []tls.Certificate{cert}, NextProtos: []string{"h2", "http/1.1"}}))
	return nil
}

func (e *env) serveHTTP(ln net.Listener) {
	mux := http.NewServeMux()
	mux.HandleFunc("/ws", webSocketEcho)
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		n, _ := strconv.Atoi(r.URL.Query().Get("n"))
		for i := 0; i < min(n, 1<<20); i += 1000 {
			_, _ = w.Write([]byte(strings.Repeat("0123456789", 100)))
		}
	})
	srv := &http.Server{Handler: mux, ErrorLog: slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)}
	e.wg.Go(func() { _ = srv.Serve(ln) })
	context.AfterFunc(e.ctx, func() { srv.Close() })
}

func webSocketEcho(w http.ResponseWriter, r *http.Request) {
	h, ok := w.(http.Hijacker)
	key := r.Header.Get("Sec-WebSocket-Key")
	if !ok || key == "" {
		http.Error(w, "want a WebSocket", http.StatusBadRequest)
		return
	}
	c, buf, err := h.Hijack()
	if err != nil {
		return
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(time.Minute))
	sum := sha1.Sum([]byte(key + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"))
	fmt.Fprintf(buf, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: %s\r\n\r\n", base64.StdEncoding.EncodeToString(sum[:]))
	if buf.Flush() != nil {
		return
	}
	for {
		data, err := readWebSocket(buf.Reader)
		if err != nil {
			return
		}
		if writeWebSocket(c, data, nil) != nil {
			return
		}
	}
}

// readWebSocket reads one unfragmented frame and unmasks it.
func readWebSocket(r *bufio.Reader) ([]byte, error) {
	var head [2]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return nil, err
	}
	n := int(head[1] & 0x7f)
	if n == 126 {
		var ext [2]byte
		if _, err := io.ReadFull(r, ext[:]); err != nil {
			return nil, err
		}
		n = int(ext[0])<<8 | int(ext[1])
	}
	var mask [4]byte
	if head[1]&0x80 != 0 {
		if _, err := io.ReadFull(r, mask[:]); err != nil {
			return nil, err
		}
	}
	data := make([]byte, n)
	if _, err := io.ReadFull(r, data); err != nil {
		return nil, err
	}
	for i := range data {
		data[i] ^= mask[i%4]
	}
	return data, nil
}

// writeWebSocket writes one text frame of less than 64 KiB, masked when mask
// has 4 bytes.
func writeWebSocket(w io.Writer, data, mask []byte) error {
	b := []byte{0x81}
	var bit byte
	if mask != nil {
		bit = 0x80
	}
	if len(data) < 126 {
		b = append(b, bit|byte(len(data)))
	} else {
		b = append(b, bit|126, byte(len(data)>>8), byte(len(data)))
	}
	b = append(b, mask...)
	for i, x := range data {
		if mask != nil {
			x ^= mask[i%4]
		}
		b = append(b, x)
	}
	_, err := w.Write(b)
	return err
}

// waitOutput returns what a program printed after the first occurrence of a
// text.
func waitOutput(ctx context.Context, p *lab.Proc, text string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		if _, rest, ok := strings.Cut(p.Output(), text); ok && strings.Contains(rest, "\n") {
			return rest, nil
		} else if ok && (strings.HasSuffix(text, "DONE") || strings.HasSuffix(text, "Completed")) {
			return rest, nil
		}
		select {
		case <-tick.C:
		case <-p.Done():
			return "", fmt.Errorf("%s ended: %s", p.Name, p.Output())
		case <-ctx.Done():
			return "", fmt.Errorf("%s does not print %q: %w", p.Name, text, ctx.Err())
		}
	}
}

// waitUDP returns when a program has a UDP socket on a port.
func waitUDP(ctx context.Context, p *lab.Proc, port uint16) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	want := fmt.Sprintf(":%04X ", port)
	for {
		for _, file := range []string{"udp", "udp6"} {
			b, err := os.ReadFile(fmt.Sprintf("/proc/%d/net/%s", p.PID(), file))
			if err == nil && strings.Contains(string(b), want) {
				return nil
			}
		}
		select {
		case <-time.After(10 * time.Millisecond):
		case <-p.Done():
			return fmt.Errorf("%s ended: %s", p.Name, p.Output())
		case <-ctx.Done():
			return fmt.Errorf("%s has no UDP port %d: %w", p.Name, port, ctx.Err())
		}
	}
}

func randomBytes(r *rand.Rand, n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	return b
}
