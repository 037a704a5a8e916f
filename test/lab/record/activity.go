// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/earlydrop/earlydrop/test/lab"
)

// attempt is one execution of an activity: one flow, with few exceptions.
type attempt struct {
	e    *env
	via  *lab.Tunnel // nil: directly
	r    *rand.Rand
	file string // prefix of names for temporary files, its own

	// at is where the server is found, when that is not its own address.
	at netip.Addr
	// byAddress has the client send no names for a tunnel's end to resolve.
	byAddress bool
}

type activityFunc func(ctx context.Context, a *attempt) error

// activity is something that an ordinary client does with one service.
type activity struct {
	name    string
	service string // whose port is recorded when it runs directly
	program string // of the server
	variant string // of the client, for the manifest's cipher column
	kind    string // ordinary or random-like
	direct  int    // flows under each condition when it runs directly
	tunnel  bool   // may be carried through a tunnel
	run     activityFunc

	label     string // of its own flows (optional: background)
	datagrams bool   // may be carried through a relay of datagrams
}

// tunnelOf makes it one of label's own programs.
func (a activity) tunnelOf(label string) activity {
	a.label = label
	return a
}

// Kinds of flows.
const (
	ordinary   = "ordinary"
	randomLike = "random-like"
	tunnelKind = "tunnel"
)

func act(name, service, program, variant, kind string, direct int, tunnel bool, run activityFunc) activity {
	return activity{name: name, service: service, program: program, variant: variant, kind: kind, direct: direct, tunnel: tunnel, run: run}
}

var activities []activity

func init() { // not a variable's value, as some activities run others
	activities = append(ordinaryActivities(), moreActivities()...)
	for _, v := range variants {
		activities = append(activities, act(v, "random-tcp", "lab", v, randomLike, 3, false, randomTCP(v)))
	}
	for i, f := range vpnForms {
		activities = append(activities, act(f.name, f.name, "openvpn", strings.TrimPrefix(f.name, "openvpn-"), tunnelKind, 2, f.proto == "tcp", connectVPN(i)).tunnelOf(openvpn))
	}
}

func ordinaryActivities() []activity {
	return []activity{
		act("http-curl", "http", "nginx", "curl", ordinary, 6, true, httpCurl("http", "http")),
		act("http-go", "http", "nginx", "go", ordinary, 5, true, webGo("http", "http")),
		act("upload-http", "http", "nginx", "curl", ordinary, 3, true, uploadCurl("http", "http")),
		act("line-http", "http", "nginx", "raw", ordinary, 3, true, httpRaw),
		act("https-curl", "https", "nginx", "curl", ordinary, 8, true, httpCurl("https", "https")),
		act("https-go", "https", "nginx", "go", ordinary, 8, true, webGo("https", "https")),
		act("https-openssl", "https", "nginx", "openssl", ordinary, 5, true, openssl("https")),
		act("https-gnutls", "https", "nginx", "gnutls", ordinary, 5, true, gnutls("https")),
		act("https-python", "https", "nginx", "python", ordinary, 3, true, python("https")),
		act("upload-https", "https", "nginx", "curl", ordinary, 4, true, uploadCurl("https", "https")),
		act("parallel-https", "https", "nginx", "curl", ordinary, 2, true, parallelCurl),
		act("idle-http", "http", "nginx", "raw", ordinary, 2, true, idleHTTP),
		act("gohttp-curl", "go-http", "go-http", "curl", ordinary, 2, true, httpCurl("http", "go-http")),
		act("websocket", "go-http", "go-http", "go", ordinary, 5, true, webSocket(false)),
		act("gohttps-curl", "go-https", "go-https", "curl", ordinary, 3, true, httpCurl("https", "go-https")),
		act("gohttps-go", "go-https", "go-https", "go", ordinary, 4, true, webGo("https", "go-https")),
		act("websocket-tls", "go-https", "go-https", "go", ordinary, 3, true, webSocket(true)),
		act("ssh-command", "ssh", "openssh", "command", ordinary, 4, true, sshCommand).tunnelOf(sshLabel),
		act("ssh-transfer", "ssh", "openssh", "transfer", ordinary, 2, true, sshTransfer).tunnelOf(sshLabel),
		act("ssh-socks", "ssh", "openssh", "socks", ordinary, 3, false, sshSOCKS).tunnelOf(sshLabel),
		act("dropbear", "dropbear", "dropbear", "dbclient", ordinary, 8, true, dropbear).tunnelOf(sshLabel),
		act("go-ssh", "go-ssh", "go-ssh", "x-crypto", ordinary, 8, true, goSSH).tunnelOf(sshLabel),
		act("wireguard", "wireguard", "wireguard-go", "userspace", ordinary, 8, false, viaWireGuard).tunnelOf(wireguard),
		{name: "dns-relayed", service: "dns", datagrams: true, run: dnsRelayed},
		act("dns-udp-dig", "dns", "dnsmasq", "dig", ordinary, 8, false, dig),
		act("dns-udp-go", "dns", "dnsmasq", "go", ordinary, 8, false, lookup("udp")),
		act("dns-tcp", "dns", "dnsmasq", "go", ordinary, 3, true, dnsTCP),
		act("tftp", "tftp", "dnsmasq", "curl", ordinary, 2, false, tftp),
		act("smtp", "aiosmtpd", "aiosmtpd", "curl", ordinary, 5, true, smtp),
		act("redis", "redis", "redis-server", "redis-cli", ordinary, 5, true, redis),
		act("memcached", "memcached", "memcached", "go", ordinary, 4, true, memcached),
		act("mqtt", "mosquitto", "mosquitto", "mosquitto_pub", ordinary, 4, true, mqtt),
		act("irc", "ngircd", "ngircd", "go", ordinary, 4, true, irc),
		act("ftp", "ftp", "pyftpdlib", "curl", ordinary, 3, false, ftp),
		act("rsync", "rsync", "rsync", "rsync", ordinary, 3, true, rsync),
		act("git", "git", "git", "git", ordinary, 3, true, gitRemote),
		act("http-proxy", "tinyproxy", "tinyproxy", "curl", ordinary, 5, false, httpProxy),
		act("random-udp", "random-udp", "lab", "udp", randomLike, 3, false, randomUDP),
	}
}

// host returns a name for the server, or its address; behind a tunnel the far
// end resolves it.
func (a *attempt) host() string {
	if a.byAddress || a.r.Float64() < 0.3 {
		return a.server().String()
	}
	return a.name()
}

func (a *attempt) name() string {
	part := func() string {
		const letters = "abcdefghijklmnopqrstuvwxyz0123456789"
		b := make([]byte, 2+a.r.IntN(12))
		for i := range b {
			b[i] = letters[a.r.IntN(26+10*min(i, 1))]
		}
		return string(b)
	}
	return pick(a.r, "", "", "www.", "api.", "cdn."+part()+".", part()+".") + part() + pick(a.r, ".com", ".org", ".net", ".io", ".example", ".de", ".co.uk", ".cn")
}

var agents = []string{
	"Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/124.0.0.0 Safari/537.36",
	"Mozilla/5.0 (X11; Linux x86_64; rv:125.0) Gecko/20100101 Firefox/125.0",
	"Mozilla/5.0 (Macintosh; Intel Mac OS X 14_4) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/17.4 Safari/605.1.15",
	"curl/7.88.1", "Wget/1.21.3", "python-requests/2.31.0", "okhttp/4.12.0", "Go-http-client/1.1",
}

// headers returns request headers of a browser or of a small client.
func (a *attempt) headers() http.Header {
	h := http.Header{"User-Agent": {pick(a.r, agents...)}}
	if a.r.Float64() < 0.6 {
		h.Set("Accept", "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8")
		h.Set("Accept-Language", pick(a.r, "en-US,en;q=0.5", "de,en;q=0.7", "zh-CN,zh;q=0.9"))
	}
	if a.r.Float64() < 0.4 {
		h.Set("Cookie", "session="+base64.RawURLEncoding.EncodeToString(randomBytes(a.r, logUniform(a.r, 8, 400))))
	}
	if a.r.Float64() < 0.3 {
		h.Set("Referer", "https://"+a.name()+"/")
	}
	return h
}

func (a *attempt) path(service string) string {
	if strings.HasPrefix(service, "go-") {
		return fmt.Sprintf("/%s?n=%d", a.name(), logUniform(a.r, 1, 60000))
	}
	if a.r.Float64() < 0.15 {
		return "/" + a.name() // not found
	}
	return pick(a.r, "/1k", "/4k", "/4k", "/16k", "/64k", "/page.html", "/page.html")
}

// curl runs curl with options and URL to a service; the certificate is not
// checked.
func (a *attempt) curl(ctx context.Context, scheme, service string, paths []string, options ...string) error {
	port := num(a.e.port[service])
	host := a.host()
	argv := []string{"curl", "-q", "-sS", "-k", "--noproxy", "", "--max-time", "10"}
	switch {
	case a.via != nil && a.r.Float64() < 0.8:
		argv = append(argv, "--socks5-hostname", a.via.SOCKS.String())
	case a.via != nil:
		host = a.server().String()
		argv = append(argv, "--socks5", a.via.SOCKS.String())
	case net.ParseIP(host) == nil:
		argv = append(argv, "--connect-to", "::"+net.JoinHostPort(a.server().String(), port))
	}
	for k, v := range a.headers() {
		argv = append(argv, "-H", k+": "+v[0])
	}
	argv = append(argv, options...)
	for _, p := range paths {
		argv = append(argv, "-o", "/dev/null", scheme+"://"+net.JoinHostPort(host, port)+p)
	}
	_, err := a.e.l.Exec(ctx, a.e.l.Client, argv...)
	return err
}

// tlsOptions draws the TLS settings of curl.
func (a *attempt) tlsOptions(scheme string) []string {
	if scheme != "https" {
		return nil
	}
	var o []string
	switch a.r.IntN(4) {
	case 0:
		o = append(o, "--tls-max", "1.2")
		if a.r.Float64() < 0.5 {
			o = append(o, "--ciphers", pick(a.r, "ECDHE+AESGCM", "ECDHE+CHACHA20", "HIGH:!aNULL"))
		}
	case 1:
		o = append(o, "--tlsv1.3")
	}
	if a.r.Float64() < 0.3 {
		o = append(o, "--curves", pick(a.r, "X25519:P-256", "P-256", "P-384:P-256", "P-521:P-256"))
	}
	return append(o, pick(a.r, "--http1.1", "--http2", "--http2", "--no-alpn"))
}

func httpCurl(scheme, service string) activityFunc {
	return func(ctx context.Context, a *attempt) error {
		o := a.tlsOptions(scheme)
		paths := []string{a.path(service)}
		if a.r.Float64() < 0.2 { // further requests on the same connection
			paths = append(paths, a.path(service), a.path(service))
		}
		if a.r.Float64() < 0.1 {
			o = append(o, "--head")
		}
		return a.curl(ctx, scheme, service, paths, o...)
	}
}

func uploadCurl(scheme, service string) activityFunc {
	return func(ctx context.Context, a *attempt) error {
		data := randomBytes(a.r, logUniform(a.r, 100, 60000))
		if a.r.Float64() < 0.5 {
			data = words(a.r, len(data))
		}
		if err := os.WriteFile(a.file, data, 0o600); err != nil {
			return err
		}
		defer os.Remove(a.file)
		// Not HTTP/2: nginx resets a stream whose body it does not want.
		o := append(a.tlsOptions(scheme), "--http1.1", pick(a.r, "--data-binary", "--upload-file", "--form"))
		if o[len(o)-1] == "--upload-file" {
			o = append(o, a.file)
		} else if o[len(o)-1] == "--form" {
			o = append(o, "file=@"+a.file)
		} else {
			o = append(o, "@"+a.file)
		}
		return a.curl(ctx, scheme, service, []string{"/upload/x"}, o...)
	}
}

// parallelCurl opens several connections at once.
func parallelCurl(ctx context.Context, a *attempt) error {
	return a.curl(ctx, "https", "https", []string{"/4k", "/1k", "/16k"}, "--http1.1", "--parallel", "--parallel-immediate")
}

// webGo fetches with Go's HTTP client, over its own TLS.
func webGo(scheme, service string) activityFunc {
	return func(ctx context.Context, a *attempt) error {
		host, port := a.host(), a.e.port[service]
		cfg := &tls.Config{InsecureSkipVerify: true, ServerName: host}
		if a.r.Float64() < 0.25 {
			cfg.MaxVersion = tls.VersionTLS12
		}
		if a.r.Float64() < 0.4 {
			cfg.CurvePreferences = []tls.CurveID{pick(a.r, tls.X25519, tls.CurveP256, tls.CurveP384), tls.CurveP256}
		}
		tr := &http.Transport{
			TLSClientConfig: cfg, ForceAttemptHTTP2: a.r.Float64() < 0.5, DisableKeepAlives: true, DisableCompression: a.r.Float64() < 0.3,
			DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return a.dial(ctx, host, port) },
		}
		defer tr.CloseIdleConnections()
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, scheme+"://"+net.JoinHostPort(host, num(port))+a.path(service), nil)
		if err != nil {
			return err
		}
		req.Header = a.headers()
		return fetch(tr, req)
	}
}

// fetch sends a request and reads the whole answer, whatever it is.
func fetch(tr http.RoundTripper, req *http.Request) error {
	resp, err := tr.RoundTrip(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	_, err = io.Copy(io.Discard, resp.Body)
	return err
}

// open connects and bounds all further reads and writes by ctx.
func (a *attempt) open(ctx context.Context, service string) (net.Conn, error) {
	host := ""
	if a.via != nil && !a.byAddress && a.r.Float64() < 0.6 {
		host = a.name()
	}
	c, err := a.dial(ctx, host, a.e.port[service])
	if err == nil {
		d, _ := ctx.Deadline()
		_ = c.SetDeadline(d)
	}
	return c, err
}

// httpRaw writes a request by hand, now and then in pieces.
func httpRaw(ctx context.Context, a *attempt) error {
	c, err := a.open(ctx, "http")
	if err != nil {
		return err
	}
	defer c.Close()
	req := fmt.Sprintf("GET %s HTTP/1.%d\r\nHost: %s\r\nConnection: close\r\n", a.path("http"), a.r.IntN(2), a.name())
	for k, v := range a.headers() {
		req += k + ": " + v[0] + "\r\n"
	}
	req += "\r\n"
	cut := len(req)
	if a.r.Float64() < 0.4 {
		cut = 1 + a.r.IntN(len(req)-1)
	}
	if _, err := c.Write([]byte(req[:cut])); err != nil {
		return err
	}
	if cut < len(req) {
		time.Sleep(time.Duration(a.r.IntN(40)) * time.Millisecond) // a slow writer
		if _, err := c.Write([]byte(req[cut:])); err != nil {
			return err
		}
	}
	_, err = io.Copy(io.Discard, c)
	return err
}

// idleHTTP is silent for a while before a small request.
func idleHTTP(ctx context.Context, a *attempt) error {
	c, err := a.open(ctx, "http")
	if err != nil {
		return err
	}
	defer c.Close()
	select {
	case <-time.After(time.Duration(200+a.r.IntN(1500)) * time.Millisecond):
	case <-ctx.Done():
		return ctx.Err()
	}
	if _, err := fmt.Fprintf(c, "GET /1k HTTP/1.0\r\nHost: %s\r\n\r\n", a.name()); err != nil {
		return err
	}
	_, err = io.Copy(io.Discard, c)
	return err
}

// program runs a client program against a service that it reaches directly or
// by a forwarder; argv is made from the address.
func (a *attempt) program(ctx context.Context, service string, input []byte, argv func(addr netip.AddrPort) []string) error {
	addr, err := a.addr(a.e.port[service])
	if err != nil {
		return err
	}
	_, err = a.e.l.ExecInput(ctx, a.e.l.Client, input, argv(addr)...)
	return err
}

func (a *attempt) request() []byte {
	return fmt.Appendf(nil, "GET %s HTTP/1.0\r\nHost: %s\r\nUser-Agent: %s\r\n\r\n", a.path("https"), a.name(), pick(a.r, agents...))
}

func openssl(service string) activityFunc {
	return func(ctx context.Context, a *attempt) error {
		return a.program(ctx, service, a.request(), func(addr netip.AddrPort) []string {
			argv := []string{"openssl", "s_client", "-quiet", "-connect", addr.String()}
			switch a.r.IntN(4) {
			case 0:
				argv = append(argv, "-tls1_2", "-cipher", pick(a.r, "ECDHE-ECDSA-AES128-GCM-SHA256:ECDHE-RSA-AES128-GCM-SHA256", "ALL", "HIGH"))
			case 1:
				argv = append(argv, "-tls1_3", "-ciphersuites", pick(a.r, "TLS_AES_128_GCM_SHA256", "TLS_CHACHA20_POLY1305_SHA256", "TLS_AES_256_GCM_SHA384"))
			}
			if a.r.Float64() < 0.3 {
				return append(argv, "-noservername")
			}
			return append(argv, "-servername", a.name())
		})
	}
}

func gnutls(service string) activityFunc {
	return func(ctx context.Context, a *attempt) error {
		return a.program(ctx, service, a.request(), func(addr netip.AddrPort) []string {
			return []string{"gnutls-cli", "--insecure", "--logfile=/dev/null", "--no-ca-verification", "--sni-hostname=" + a.name(), "--alpn=" + pick(a.r, "http/1.1", "h2"),
				"--priority=" + pick(a.r, "NORMAL", "NORMAL:-VERS-TLS1.3", "SECURE128", "PERFORMANCE"), "-p", num(addr.Port()), addr.Addr().String()}
		})
	}
}

const pythonClient = `import socket,ssl,sys
c=ssl.create_default_context(); c.check_hostname=False; c.verify_mode=ssl.CERT_NONE
if sys.argv[4]=="1.2": c.maximum_version=ssl.TLSVersion.TLSv1_2
s=socket.create_connection((sys.argv[1],int(sys.argv[2])),20)
t=c.wrap_socket(s,server_hostname=sys.argv[3])
t.sendall(sys.stdin.buffer.read())
while t.recv(65536): pass
t.close()
`

func python(service string) activityFunc {
	return func(ctx context.Context, a *attempt) error {
		return a.program(ctx, service, a.request(), func(addr netip.AddrPort) []string {
			return []string{"/usr/bin/python3", "-c", pythonClient, addr.Addr().String(), num(addr.Port()), a.name(), pick(a.r, "1.2", "1.3", "1.3")}
		})
	}
}

func (a *attempt) ssh(ctx context.Context, input []byte, command string) error {
	if a.e.ssh == nil {
		return errors.New("no sshd")
	}
	return a.program(ctx, "ssh", input, func(addr netip.AddrPort) []string {
		return append(a.e.ssh.SSHArgs(addr, a.sshOptions()...), command)
	})
}

// sshOptions draws the settings of an ssh client.
func (a *attempt) sshOptions() []string {
	o := []string{
		"-c", pick(a.r, "chacha20-poly1305@openssh.com", "aes128-gcm@openssh.com", "aes256-gcm@openssh.com", "aes128-ctr", "aes256-ctr", "aes256-cbc"),
		"-o", "HostKeyAlgorithms=" + pick(a.r, "ssh-ed25519", "ecdsa-sha2-nistp256", "rsa-sha2-512"),
	}
	if a.r.Float64() < 0.6 {
		o = append(o, "-o", "KexAlgorithms="+pick(a.r, "curve25519-sha256", "ecdh-sha2-nistp256", "sntrup761x25519-sha512@openssh.com", "diffie-hellman-group14-sha256"))
	}
	if a.r.Float64() < 0.2 {
		o = append(o, "-C")
	}
	return o
}

func sshCommand(ctx context.Context, a *attempt) error {
	return a.ssh(ctx, nil, pick(a.r, "true", "uname -a", "ls /", "cat /proc/cpuinfo", "echo hello; sleep 0.2; echo bye"))
}

func sshTransfer(ctx context.Context, a *attempt) error {
	n := logUniform(a.r, 1000, 60000)
	if a.r.Float64() < 0.5 {
		return a.ssh(ctx, randomBytes(a.r, n), "cat >/dev/null")
	}
	return a.ssh(ctx, nil, fmt.Sprintf("head -c %d /dev/urandom", n))
}

// ip is the kind of address that the name server has.
func (a *attempt) ip() string { return fmt.Sprintf("ip%d", a.e.c.Version) }

func dig(ctx context.Context, a *attempt) error {
	argv := []string{"dig", "@" + a.server().String(), "-p", num(a.e.port["dns"]), "+tries=2", "+time=3", pick(a.r, "+edns", "+noedns", "+dnssec", "+nocookie", "+adflag"),
		pick(a.r, a.name(), "lab.example"), pick(a.r, "A", "AAAA", "A", "AAAA", "TXT", "MX", "NS", "HTTPS", "SOA")}
	_, err := a.e.l.Exec(ctx, a.e.l.Client, argv...)
	return err
}

func lookup(network string) activityFunc {
	return func(ctx context.Context, a *attempt) error {
		r := a.e.l.Resolver(a.e.dns, a.e.c.Version, network)
		if a.r.Float64() < 0.3 {
			_, err := r.LookupTXT(ctx, "lab.example.")
			return err
		}
		_, err := r.LookupNetIP(ctx, a.ip(), a.name()+".")
		return err
	}
}

// dnsTCP also goes through tunnels.
func dnsTCP(ctx context.Context, a *attempt) error {
	r := &net.Resolver{PreferGo: true, StrictErrors: true,
		Dial: func(ctx context.Context, _, _ string) (net.Conn, error) { return a.open(ctx, "dns") }}
	_, err := r.LookupNetIP(ctx, a.ip(), a.name()+".")
	return err
}

// dnsRelayed asks by UDP through a tunnel that relays datagrams.
func dnsRelayed(ctx context.Context, a *attempt) error {
	r := &net.Resolver{PreferGo: true, StrictErrors: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return a.e.l.Client.DialSOCKSUDP(ctx, a.via.SOCKS, netip.AddrPortFrom(a.e.server(), a.e.port["dns"]))
	}}
	_, err := r.LookupNetIP(ctx, a.ip(), a.name()+".")
	return err
}

func tftp(ctx context.Context, a *attempt) error {
	url := "tftp://" + netip.AddrPortFrom(a.server(), a.e.port["tftp"]).String() + pick(a.r, "/1k", "/4k")
	_, err := a.e.l.Exec(ctx, a.e.l.Client, "curl", "-q", "-sS", "--max-time", "10", "--tftp-blksize", strconv.Itoa(512+a.r.IntN(700)), "-o", "/dev/null", url)
	return err
}

func smtp(ctx context.Context, a *attempt) error {
	body := fmt.Sprintf("From: <%s>\r\nTo: <%s>\r\nSubject: %s\r\n\r\n%s\r\n", "a@"+a.name(), "b@"+a.name(), words(a.r, 20), bytes.ReplaceAll(words(a.r, logUniform(a.r, 50, 8000)), []byte("\n"), []byte("\r\n")))
	return a.program(ctx, "aiosmtpd", []byte(body), func(addr netip.AddrPort) []string {
		return []string{"curl", "-q", "-sS", "--noproxy", "", "--max-time", "10", "smtp://" + addr.String() + "/" + a.name(), "--mail-from", "a@" + a.name(), "--mail-rcpt", "b@" + a.name(), "--upload-file", "-"}
	})
}

func redis(ctx context.Context, a *attempt) error {
	var in strings.Builder
	for range 1 + a.r.IntN(6) {
		key := a.name()
		fmt.Fprintf(&in, "SET %s %s\nGET %s\n", key, base64.RawURLEncoding.EncodeToString(randomBytes(a.r, logUniform(a.r, 4, 2000))), key)
	}
	if a.r.Float64() < 0.3 {
		in.WriteString("INFO\n")
	}
	return a.program(ctx, "redis", []byte(in.String()), func(addr netip.AddrPort) []string {
		return []string{"redis-cli", "-h", addr.Addr().String(), "-p", num(addr.Port())}
	})
}

// lines runs a dialogue: it writes each line and then reads until a line
// with the wanted text.
func lines(c net.Conn, dialogue ...[2]string) error {
	r := bufio.NewReader(c)
	for _, d := range dialogue {
		if d[0] != "" {
			if _, err := c.Write([]byte(d[0])); err != nil {
				return err
			}
		}
		for d[1] != "" {
			line, err := r.ReadString('\n')
			if strings.Contains(line, d[1]) {
				break
			}
			if err != nil {
				return fmt.Errorf("wait for %q: %w", d[1], err)
			}
		}
	}
	return nil
}

func memcached(ctx context.Context, a *attempt) error {
	c, err := a.open(ctx, "memcached")
	if err != nil {
		return err
	}
	defer c.Close()
	var d [][2]string
	for range 1 + a.r.IntN(4) {
		key := a.name()
		value := base64.RawURLEncoding.EncodeToString(randomBytes(a.r, logUniform(a.r, 10, 3000)))
		d = append(d, [2]string{fmt.Sprintf("set %s 0 0 %d\r\n%s\r\n", key, len(value), value), "STORED"}, [2]string{"get " + key + "\r\n", "END"})
	}
	return lines(c, append(d, [2]string{"quit\r\n", ""})...)
}

func irc(ctx context.Context, a *attempt) error {
	c, err := a.open(ctx, "ngircd")
	if err != nil {
		return err
	}
	defer c.Close()
	nick := fmt.Sprintf("n%d", a.r.IntN(1e7))
	d := [][2]string{{fmt.Sprintf("NICK %s\r\nUSER %s 0 * :%s\r\n", nick, nick, a.name()), " 376 "}, {"JOIN #lab\r\n", " 366 "}}
	for range 1 + a.r.IntN(4) {
		text := bytes.ReplaceAll(words(a.r, logUniform(a.r, 10, 200)), []byte("\n"), []byte(" "))
		d = append(d, [2]string{fmt.Sprintf("PRIVMSG #lab :%s\r\nPING x\r\n", text), "PONG"})
	}
	return lines(c, append(d, [2]string{"QUIT\r\n", "ERROR"})...)
}

func mqtt(ctx context.Context, a *attempt) error {
	return a.program(ctx, "mosquitto", randomBytes(a.r, logUniform(a.r, 10, 4000)), func(addr netip.AddrPort) []string {
		return []string{"mosquitto_pub", "-h", addr.Addr().String(), "-p", num(addr.Port()), "-i", a.name(), "-t", "lab/" + a.name(), "-q", strconv.Itoa(a.r.IntN(3)),
			"-V", pick(a.r, "mqttv311", "mqttv5"), "-s"}
	})
}

func ftp(ctx context.Context, a *attempt) error {
	url := "ftp://" + netip.AddrPortFrom(a.server(), a.e.port["ftp"]).String()
	argv := []string{"curl", "-q", "-sS", "--noproxy", "", "--max-time", "10", "-o", "/dev/null", pick(a.r, "--epsv", "--disable-epsv")}
	switch a.r.IntN(3) {
	case 0:
		argv = append(argv, url+"/")
	default:
		argv = append(argv, url+pick(a.r, "/file700", "/file5000", "/file30000"))
	}
	_, err := a.e.l.Exec(ctx, a.e.l.Client, argv...)
	return err
}

func rsync(ctx context.Context, a *attempt) error {
	defer os.RemoveAll(a.file)
	return a.program(ctx, "rsync", nil, func(addr netip.AddrPort) []string {
		argv := []string{"rsync", "-a", "--timeout=20"}
		if a.r.Float64() < 0.4 {
			argv = append(argv, "-z")
		}
		return append(argv, fmt.Sprintf("rsync://%s/files/%s", addr, pick(a.r, "", "a", "b")), a.file+"/")
	})
}

func gitRemote(ctx context.Context, a *attempt) error {
	defer os.RemoveAll(a.file)
	return a.program(ctx, "git", nil, func(addr netip.AddrPort) []string {
		url := fmt.Sprintf("git://%s/repo", addr)
		if a.r.Float64() < 0.5 {
			return []string{"git", "ls-remote", url}
		}
		return []string{"git", "clone", "-q", "--depth=1", url, a.file}
	})
}

// httpProxy fetches through an HTTP proxy, plainly or with CONNECT.
func httpProxy(ctx context.Context, a *attempt) error {
	scheme := pick(a.r, "http", "https")
	argv := []string{"curl", "-q", "-sS", "-k", "--max-time", "10", "-o", "/dev/null", "--noproxy", "", "-x", "http://" + netip.AddrPortFrom(a.server(), a.e.port["tinyproxy"]).String()}
	for k, v := range a.headers() {
		argv = append(argv, "-H", k+": "+v[0])
	}
	if a.r.Float64() < 0.4 {
		argv = append(argv, "--proxytunnel")
	}
	_, err := a.e.l.Exec(ctx, a.e.l.Client, append(argv, scheme+"://"+netip.AddrPortFrom(a.server(), a.e.port[scheme]).String()+a.path(scheme))...)
	return err
}

func webSocket(secure bool) activityFunc {
	return func(ctx context.Context, a *attempt) error {
		service := "go-http"
		if secure {
			service = "go-https"
		}
		c, err := a.open(ctx, service)
		if err != nil {
			return err
		}
		defer c.Close()
		host := a.name()
		if secure {
			t := tls.Client(c, &tls.Config{InsecureSkipVerify: true, ServerName: host, NextProtos: []string{"http/1.1"}})
			if err := t.HandshakeContext(ctx); err != nil {
				return err
			}
			c = t
		}
		key := base64.StdEncoding.EncodeToString(randomBytes(a.r, 16))
		if _, err := fmt.Fprintf(c, "GET /ws HTTP/1.1\r\nHost: %s\r\nUser-Agent: %s\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: %s\r\nSec-WebSocket-Version: 13\r\n\r\n",
			host, pick(a.r, agents...), key); err != nil {
			return err
		}
		r := bufio.NewReader(c)
		resp, err := http.ReadResponse(r, nil)
		if err != nil {
			return err
		}
		if resp.StatusCode != http.StatusSwitchingProtocols {
			return fmt.Errorf("status %s", resp.Status)
		}
		for range 1 + a.r.IntN(5) {
			if err := writeWebSocket(c, words(a.r, logUniform(a.r, 5, 3000)), randomBytes(a.r, 4)); err != nil {
				return err
			}
			if _, err := readWebSocket(r); err != nil {
				return err
			}
		}
		return nil
	}
}
