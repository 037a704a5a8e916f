// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/klauspost/compress/zstd"
	"github.com/quic-go/quic-go"
	"github.com/quic-go/quic-go/http3"
	utls "github.com/refraction-networking/utls"
)

// moreActivities are of the servers below.
func moreActivities() []activity {
	list := []activity{
		act("https-browser", "https", "nginx", "utls", ordinary, 10, true, browser("https")),
		{name: "quic-relayed", service: "quic-go", datagrams: true, run: quicGet("quic-go", true)},
		act("quic-go", "quic-go", "quic-go", "quic-go", ordinary, 5, false, quicGet("quic-go", false)),
		act("quic-caddy", "caddy", "caddy", "quic-go", ordinary, 4, false, quicGet("caddy", false)),
		act("caddy-https", "caddy", "caddy", "utls", ordinary, 3, true, browser("caddy")),
		act("lighttpd", "lighttpd", "lighttpd", "curl", ordinary, 3, true, httpCurl("http", "lighttpd")),
		act("lighttpd-go", "lighttpd", "lighttpd", "go", ordinary, 2, true, webGo("http", "lighttpd")),
		act("apache-browser", "apache", "apache2", "utls", ordinary, 3, true, browser("apache")),
		act("apache-curl", "apache", "apache2", "curl", ordinary, 3, true, httpCurl("https", "apache")),
		act("apache-openssl", "apache", "apache2", "openssl", ordinary, 2, true, openssl("apache")),
		act("haproxy-browser", "haproxy", "haproxy", "utls", ordinary, 3, true, browser("haproxy")),
		act("haproxy-go", "haproxy", "haproxy", "go", ordinary, 2, true, webGo("https", "haproxy")),
		act("imap", "imap", "dovecot", "curl", ordinary, 4, true, mail("imap", "imap", false)),
		act("imap-starttls", "imap", "dovecot", "curl-starttls", ordinary, 3, true, mail("imap", "imap", true)),
		act("imaps", "imaps", "dovecot", "curl", ordinary, 3, true, mail("imaps", "imaps", false)),
		act("pop3", "pop3", "dovecot", "curl", ordinary, 3, true, mail("pop3", "pop3", false)),
		act("pop3-starttls", "pop3", "dovecot", "curl-starttls", ordinary, 2, true, mail("pop3", "pop3", true)),
		act("pop3s", "pop3s", "dovecot", "curl", ordinary, 2, true, mail("pop3s", "pop3s", false)),
		act("redis-tls", "redis-tls", "stunnel", "go", ordinary, 3, true, overTLS("redis-tls", func(a *attempt) [][2]string {
			return [][2]string{{fmt.Sprintf("SET %s %s\r\n", a.name(), a.name()), "OK"}, {"PING\r\n", "PONG"}}
		})),
		act("irc-tls", "irc-tls", "stunnel", "go", ordinary, 3, true, overTLS("irc-tls", func(a *attempt) [][2]string {
			nick := fmt.Sprintf("n%d", a.r.IntN(1e7))
			return [][2]string{{fmt.Sprintf("NICK %s\r\nUSER %s 0 * :%s\r\n", nick, nick, a.name()), " 376 "}, {"QUIT\r\n", "ERROR"}}
		})),
		act("smtps", "smtps", "stunnel", "go", ordinary, 3, true, overTLS("smtps", func(a *attempt) [][2]string {
			return [][2]string{{"", "220"}, {"EHLO " + a.name() + "\r\n", "250 "}, {"QUIT\r\n", "221"}}
		})),
		act("mqtts", "mqtts", "stunnel", "mosquitto_pub", ordinary, 3, true, mqttTLS),
		act("dot-kdig", "dot", "stunnel", "kdig", ordinary, 4, true, kdig),
		act("dot-go", "dot", "stunnel", "go", ordinary, 4, true, dnsOverTLS),
		act("doh", "go-https", "go-https", "doh", ordinary, 4, true, dnsOverHTTPS),
		act("smtp-starttls", "smtp-starttls", "aiosmtpd", "curl", ordinary, 3, true, smtpStartTLS),
		act("dtls", "dtls", "gnutls-serv", "gnutls", ordinary, 3, false, dtls),
		act("ldap", "ldap", "slapd", "ldapsearch", ordinary, 4, true, ldap),
		act("ntp", "ntp", "chrony", "raw", ordinary, 4, false, ntp),
		act("snmp-2c", "snmp", "snmpd", "v2c", ordinary, 3, false, snmp(false)),
		act("snmp-3", "snmp", "snmpd", "v3", ordinary, 3, false, snmp(true)),
		act("stun", "turn", "coturn", "stun", ordinary, 3, false, stun),
		act("turn", "turn", "coturn", "turn", ordinary, 2, false, turn),
		act("nats", "nats", "nats-server", "raw", ordinary, 4, true, nats),
		act("beanstalk", "beanstalk", "beanstalkd", "raw", ordinary, 3, true, beanstalk),
		act("svn", "svn", "svnserve", "svn", ordinary, 3, true, svn),
		act("vnc", "vnc", "tigervnc", "raw", ordinary, 3, true, vnc),
		act("xmpp", "xmpp", "prosody", "go", ordinary, 4, true, xmpp(false)),
		act("xmpp-starttls", "xmpp", "prosody", "go-starttls", ordinary, 3, true, xmpp(true)),
		act("postgres", "postgres", "postgresql", "psql", ordinary, 4, true, psql(false)),
		act("postgres-prefer", "postgres", "postgresql", "psql-prefer", ordinary, 4, true, psql(true)),
		act("postgres-bench", "postgres", "postgresql", "pgbench", ordinary, 3, true, pgbench),
		act("mariadb", "mariadb", "mariadb", "mariadb", ordinary, 4, true, mariadb(false)),
		act("mariadb-tls", "mariadb", "mariadb", "mariadb-tls", ordinary, 4, true, mariadb(true)),
		act("mariadb-dump", "mariadb", "mariadb", "dump", ordinary, 2, true, mariadbDump),
		act("smb", "samba", "samba", "smbclient", ordinary, 4, true, smb(false)),
		act("smb-encrypted", "samba", "samba", "smbclient-encrypted", ordinary, 3, true, smb(true)),
		act("etcd", "etcd", "etcd", "etcdctl", ordinary, 3, true, etcd("etcd")),
		act("etcd-tls", "etcd-tls", "etcd", "etcdctl-tls", ordinary, 3, true, etcd("etcd-tls")),
		act("unbound-udp", "unbound", "unbound", "kdig", ordinary, 4, false, unboundQuery("unbound")),
		act("unbound-tcp", "unbound", "unbound", "kdig-tcp", ordinary, 2, true, unboundQuery("unbound", "+tcp")),
		act("unbound-tls", "unbound-tls", "unbound", "kdig-tls", ordinary, 3, true, unboundQuery("unbound-tls", "+tls")),
		act("unbound-https", "unbound-https", "unbound", "kdig-https", ordinary, 3, true, unboundQuery("unbound-https", "+https")),
		act("iperf3", "iperf3", "iperf3", "iperf3", ordinary, 2, false, iperf),
		act("rsync-ssh", "ssh", "openssh", "rsync", ordinary, 2, false, rsyncSSH).tunnelOf(sshLabel),
	}
	list = append(list, torrentActivities()...)
	for _, v := range datagramVariants {
		list = append(list, act(v.name, "scripted-udp", "lab", v.name, v.kind, 3, false, scriptedUDP(v.draw)))
	}
	for _, v := range []string{"bittorrent", "sip-tcp", "syslog-tcp", "telnet", "http-gzip", "tls-alert"} {
		list = append(list, act(v, "random-tcp", "lab", v, ordinary, 3, false, randomTCP(v)))
	}
	return list
}

// moreServices are servers beyond those of services.go.
var moreServices = []service{
	{"quic-go", (*env).startQUIC},
	{"caddy", (*env).startCaddy},
	{"lighttpd", (*env).startLighttpd},
	{"apache", (*env).startApache},
	{"haproxy", (*env).startHAProxy},
	{"imap", (*env).startDovecot},
	{"redis-tls", stunnel("redis-tls", "redis")},
	{"irc-tls", stunnel("irc-tls", "ngircd")},
	{"smtps", stunnel("smtps", "aiosmtpd")},
	{"mqtts", stunnel("mqtts", "mosquitto")},
	{"dot", stunnel("dot", "dns")},
	{"smtp-starttls", (*env).startSMTPStartTLS},
	{"dtls", (*env).startDTLS},
	{"ldap", (*env).startLDAP},
	{"ntp", (*env).startNTP},
	{"snmp", (*env).startSNMP},
	{"turn", (*env).startTURN},
	{"nats", (*env).startNATS},
	{"beanstalk", (*env).startBeanstalk},
	{"svn", (*env).startSVN},
	{"vnc", (*env).startVNC},
	{"xmpp", (*env).startXMPP},
	{"postgres", (*env).startPostgres},
	{"mariadb", (*env).startMariaDB},
	{"etcd", startEtcd("etcd", false)},
	{"etcd-tls", startEtcd("etcd-tls", true)},
	{"unbound", (*env).startUnbound},
	{"iperf3", (*env).startIperf},
	{"samba", (*env).startSamba},
	{"libtorrent", (*env).startLibtorrent},
	{"aria2", (*env).startAria2},
	{"scripted-udp", (*env).startScriptedUDP},
}

// certificate makes a key and a certificate for a service in its directory.
func (e *env) certificate(ctx context.Context, name, text string) (file, dir string, err error) {
	if file, dir, err = e.config(name, text); err == nil {
		err = e.l.Certificate(ctx, dir, pick(e.draws(name), "ec", "rsa"))
	}
	return file, dir, err
}

func (e *env) tlsConfig(ctx context.Context, name string, protocols ...string) (*tls.Config, error) {
	_, dir, err := e.certificate(ctx, name, "")
	if err != nil {
		return nil, err
	}
	cert, err := tls.LoadX509KeyPair(filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem"))
	return &tls.Config{Certificates: []tls.Certificate{cert}, NextProtos: protocols}, err
}

// site makes the files that the web servers have.
func (e *env) site(dir string) (string, error) {
	root := filepath.Join(dir, "www")
	if err := os.Mkdir(root, 0o755); err != nil {
		return "", err
	}
	r := e.draws("site")
	for name, n := range map[string]int{"1k": 1 << 10, "4k": 4 << 10, "16k": 16 << 10, "64k": 64 << 10} {
		if err := os.WriteFile(filepath.Join(root, name), randomBytes(r, n), 0o644); err != nil {
			return "", err
		}
	}
	return root, os.WriteFile(filepath.Join(root, "page.html"), append([]byte("<!doctype html>"), words(r, 9000)...), 0o644)
}

// tlsName returns a name to ask a server for. Caddy wants one that its
// certificate has.
func (a *attempt) tlsName(service string) string {
	name := a.name()
	if service == "caddy" {
		name, _, _ = strings.Cut(name, ".")
		name += ".example"
	}
	return name
}

// browser fetches a page with a TLS handshake that a browser would send.
func browser(service string) activityFunc {
	return func(ctx context.Context, a *attempt) error {
		host := a.tlsName(service)
		c, err := a.dial(ctx, a.host(), a.e.port[service])
		if err != nil {
			return err
		}
		defer c.Close()
		d, _ := ctx.Deadline()
		_ = c.SetDeadline(d)
		id := pick(a.r, utls.HelloChrome_Auto, utls.HelloChrome_Auto, utls.HelloChrome_120, utls.HelloChrome_102, utls.HelloFirefox_Auto, utls.HelloFirefox_105, utls.HelloSafari_Auto,
			utls.HelloIOS_Auto, utls.HelloEdge_Auto, utls.HelloAndroid_11_OkHttp)
		t := utls.UClient(c, &utls.Config{ServerName: host, InsecureSkipVerify: true}, id)
		if err := t.HandshakeContext(ctx); err != nil {
			return err
		}
		if t.ConnectionState().NegotiatedProtocol == "h2" {
			// The preface and first frames as a browser sends them; the
			// answer's first frame is enough.
			settings := []byte{0, 0, 18, 4, 0, 0, 0, 0, 0, 0, 1, 0, 1, 0, 0, 0, 4, 0, 0x60, 0, 0, 0, 3, 0, 0, 3, 0xe8, 0, 0, 4, 8, 0, 0, 0, 0, 0, 0, 0xef, 0, 1}
			b := append([]byte("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"), settings...)
			if _, err := t.Write(append(b, h2Get(a, host)...)); err != nil {
				return err
			}
			_, err := io.ReadFull(t, make([]byte, 200))
			return err
		}
		req := fmt.Sprintf("GET %s HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n", a.path("https"), host)
		for k, v := range a.headers() {
			req += k + ": " + v[0] + "\r\n"
		}
		if _, err := t.Write([]byte(req + "\r\n")); err != nil {
			return err
		}
		_, err = io.Copy(io.Discard, t)
		return err
	}
}

// h2Get returns a HEADERS frame for a request, with names and values as
// literals of HPACK.
func h2Get(a *attempt, host string) []byte {
	block := []byte{0x82, 0x87} // GET, https
	literal := func(index byte, v string) {
		block = append(append(block, index, byte(min(len(v), 126))), v[:min(len(v), 126)]...)
	}
	literal(0x41, host)
	literal(0x44, a.path("https"))
	literal(0x7a, pick(a.r, agents...))
	n := len(block)
	return append([]byte{byte(n >> 16), byte(n >> 8), byte(n), 1, 5, 0, 0, 0, 1}, block...)
}

func (e *env) startQUIC(ctx context.Context, port uint16) error {
	cfg, err := e.tlsConfig(ctx, "quic-go", "h3")
	if err != nil {
		return err
	}
	pc, err := e.l.Server.ListenPacket("udp", netip.AddrPortFrom(e.server(), port).String())
	if err != nil {
		return err
	}
	mux := http.NewServeMux()
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		_, _ = w.Write(bytes.Repeat([]byte("0123456789"), 400))
	})
	srv := &http3.Server{Handler: mux, TLSConfig: http3.ConfigureTLSConfig(cfg)}
	context.AfterFunc(e.ctx, func() { srv.Close(); pc.Close() })
	e.wg.Go(func() { _ = srv.Serve(pc) })
	return nil
}

// quicGet fetches over HTTP/3, directly or through a relay of datagrams.
func quicGet(service string, relayed bool) activityFunc {
	return func(ctx context.Context, a *attempt) error {
		to := netip.AddrPortFrom(a.e.server(), a.e.port[service])
		var pc net.PacketConn
		var err error
		if relayed {
			var c net.Conn
			if c, err = a.e.l.Client.DialSOCKSUDP(ctx, a.via.SOCKS, to); err == nil {
				pc = c.(net.PacketConn)
			}
		} else {
			pc, err = a.e.l.Client.ListenPacket("udp", netip.AddrPortFrom(a.e.l.ClientAddr(a.e.c.Version), 0).String())
		}
		if err != nil {
			return err
		}
		defer pc.Close()
		tr := &quic.Transport{Conn: pc, ConnectionIDLength: pick(a.r, 0, 4, 8, 8)}
		defer tr.Close()
		h3 := &http3.Transport{
			TLSClientConfig: &tls.Config{InsecureSkipVerify: true, ServerName: a.tlsName(service)},
			QUICConfig:      &quic.Config{InitialPacketSize: uint16(pick(a.r, 1200, 1200, 1250, 1280)), HandshakeIdleTimeout: 8 * time.Second, DisablePathMTUDiscovery: true},
			Dial: func(ctx context.Context, _ string, t *tls.Config, q *quic.Config) (*quic.Conn, error) {
				return tr.DialEarly(ctx, net.UDPAddrFromAddrPort(to), t, q)
			},
		}
		defer h3.Close()
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+a.name()+a.path("https"), nil)
		if err != nil {
			return err
		}
		req.Header = a.headers()
		return fetch(h3, req)
	}
}

func (e *env) startCaddy(ctx context.Context, port uint16) error {
	file, dir, err := e.certificate(ctx, "caddy", "")
	if err != nil {
		return err
	}
	root, err := e.site(dir)
	if err != nil {
		return err
	}
	at := netip.AddrPortFrom(e.server(), port)
	// Without a name in it the address would make caddy want one.
	conf := fmt.Sprintf("{\n\tadmin off\n\tauto_https off\n\tdefault_sni lab.example\n\tdefault_bind %s\n}\nhttps://:%d {\n\ttls %s/cert.pem %s/key.pem\n\troot * %s\n\tfile_server\n}\n", at.Addr(), port, dir, dir, root)
	if err := os.WriteFile(file, []byte(conf), 0o644); err != nil {
		return err
	}
	p, err := e.l.StartEnv(e.l.Server, "caddy", []string{"HOME=" + dir, "XDG_DATA_HOME=" + dir, "XDG_CONFIG_HOME=" + dir}, "caddy", "run", "--adapter", "caddyfile", "--config", file)
	if err != nil {
		return err
	}
	return e.l.WaitReady(ctx, e.l.Server, at, p)
}

func (e *env) startLighttpd(ctx context.Context, port uint16) error {
	file, dir, err := e.config("lighttpd", "")
	if err != nil {
		return err
	}
	root, err := e.site(dir)
	if err != nil {
		return err
	}
	family := ""
	if e.server().Is6() {
		family = "server.use-ipv6 = \"enable\"\n"
	}
	conf := fmt.Sprintf("server.document-root = %q\nserver.port = %d\nserver.bind = %q\n%sindex-file.names = (\"page.html\")\nmimetype.assign = (\".html\" => \"text/html\")\n", root, port, e.server().String(), family)
	if err := os.WriteFile(file, []byte(conf), 0o644); err != nil {
		return err
	}
	return e.run(ctx, port, "lighttpd", "-D", "-f", file)
}

func (e *env) startApache(ctx context.Context, port uint16) error {
	file, dir, err := e.certificate(ctx, "apache", "")
	if err != nil {
		return err
	}
	root, err := e.site(dir)
	if err != nil {
		return err
	}
	var conf strings.Builder
	for _, m := range []string{"mpm_event", "authz_core", "ssl", "dir", "mime", "http2"} {
		fmt.Fprintf(&conf, "LoadModule %s_module /usr/lib/apache2/modules/mod_%s.so\n", m, m)
	}
	fmt.Fprintf(&conf, `ServerRoot %[1]s
PidFile %[1]s/pid
DefaultRuntimeDir %[1]s
ErrorLog /dev/stderr
ServerName lab.example
Listen %[2]s
Protocols h2 http/1.1
SSLSessionCache none
SSLEngine on
SSLCertificateFile %[1]s/cert.pem
SSLCertificateKeyFile %[1]s/key.pem
TypesConfig /etc/mime.types
StartServers 1
DocumentRoot %[3]s
<Directory %[3]s>
Require all granted
</Directory>
`, dir, netip.AddrPortFrom(e.server(), port), root)
	if err := os.WriteFile(file, []byte(conf.String()), 0o644); err != nil {
		return err
	}
	return e.run(ctx, port, "apache2", "-D", "FOREGROUND", "-d", dir, "-f", file)
}

// startHAProxy ends TLS in front of nginx.
func (e *env) startHAProxy(ctx context.Context, port uint16) error {
	file, dir, err := e.certificate(ctx, "haproxy", "")
	if err != nil {
		return err
	}
	var pem []byte
	for _, n := range []string{"cert.pem", "key.pem"} {
		b, err := os.ReadFile(filepath.Join(dir, n))
		if err != nil {
			return err
		}
		pem = append(pem, b...)
	}
	conf := fmt.Sprintf("global\n  stats timeout 1s\ndefaults\n  mode http\n  timeout connect 5s\n  timeout client 30s\n  timeout server 30s\nfrontend f\n  bind %s ssl crt %s/both.pem alpn h2,http/1.1\n  default_backend b\nbackend b\n  server n 127.0.0.1:%d\n",
		netip.AddrPortFrom(e.server(), port), dir, e.port["http"])
	if err := errors.Join(os.WriteFile(filepath.Join(dir, "both.pem"), pem, 0o600), os.WriteFile(file, []byte(conf), 0o644)); err != nil {
		return err
	}
	return e.run(ctx, port, "haproxy", "-db", "-f", file)
}

// nobody is the user and group of that name, as mail is never root's.
const nobody = 65534

// startDovecot starts IMAP and POP3, each plain and with TLS, on four ports.
func (e *env) startDovecot(ctx context.Context, port uint16) error {
	file, dir, err := e.certificate(ctx, "dovecot", "")
	if err != nil {
		return err
	}
	ports := e.mailPorts
	conf := fmt.Sprintf(`base_dir = %[1]s/run
state_dir = %[1]s/state
log_path = /dev/stderr
protocols = imap pop3
listen = %[2]s
ssl = yes
ssl_cert = <%[1]s/cert.pem
ssl_key = <%[1]s/key.pem
disable_plaintext_auth = no
mail_location = maildir:%[1]s/mail/%%u
default_process_limit = 40
passdb {
  driver = static
  args = nopassword=y
}
userdb {
  driver = static
  args = uid=%[7]d gid=%[7]d home=%[1]s/mail
}
service imap-login {
  inet_listener imap {
    port = %[3]d
  }
  inet_listener imaps {
    port = %[4]d
  }
}
service pop3-login {
  inet_listener pop3 {
    port = %[5]d
  }
  inet_listener pop3s {
    port = %[6]d
  }
}
`, dir, e.server(), port, ports[0], ports[1], ports[2], nobody)
	r := e.draws("mail")
	box := filepath.Join(dir, "mail", "lab")
	for _, d := range []string{"cur", "new", "tmp", ""} {
		d = filepath.Join(box, d)
		if err := errors.Join(os.MkdirAll(d, 0o755), os.Chown(d, nobody, nobody)); err != nil {
			return err
		}
	}
	for i := range 3 {
		text := fmt.Sprintf("From: <a@lab.example>\nSubject: %s\n\n%s\n", bytes.TrimSpace(words(r, 20)), words(r, logUniform(r, 200, 6000)))
		if err := os.WriteFile(filepath.Join(box, "cur", fmt.Sprintf("%d.M1.lab:2,S", i)), []byte(text), 0o644); err != nil {
			return err
		}
	}
	if err := os.WriteFile(file, []byte(conf), 0o644); err != nil {
		return err
	}
	if err := e.run(ctx, port, "dovecot", "-F", "-c", file); err != nil {
		return err
	}
	e.set(func() { e.port["imaps"], e.port["pop3"], e.port["pop3s"] = ports[0], ports[1], ports[2] })
	return nil
}

func mail(scheme, service string, starttls bool) activityFunc {
	return func(ctx context.Context, a *attempt) error {
		return a.program(ctx, service, nil, func(addr netip.AddrPort) []string {
			argv := []string{"curl", "-q", "-sS", "-k", "--noproxy", "", "--max-time", "10", "-o", "/dev/null", "-u", "lab:" + a.name()}
			if starttls {
				argv = append(argv, "--ssl-reqd")
			}
			url := scheme + "://" + addr.String() + "/"
			if strings.HasPrefix(scheme, "imap") {
				return append(argv, url+pick(a.r, "", "INBOX;MAILINDEX=1", "INBOX;MAILINDEX=2", "INBOX?ALL"))
			}
			return append(argv, url+pick(a.r, "", "1", "2"))
		})
	}
}

// stunnel ends TLS in front of another service.
func stunnel(name, behind string) func(e *env, ctx context.Context, port uint16) error {
	return func(e *env, ctx context.Context, port uint16) error {
		file, dir, err := e.certificate(ctx, name, "")
		if err != nil {
			return err
		}
		e.set(func() { e.certs[name] = filepath.Join(dir, "cert.pem") })
		to := netip.AddrPortFrom(e.server(), e.drawn[behind])
		conf := fmt.Sprintf("foreground = yes\nsyslog = no\npid =\n[s]\naccept = %s\nconnect = %s\ncert = %s/cert.pem\nkey = %s/key.pem\n", hostPort(e.server(), port), hostPort(to.Addr(), to.Port()), dir, dir)
		if err := os.WriteFile(file, []byte(conf), 0o644); err != nil {
			return err
		}
		return e.run(ctx, port, "stunnel4", file)
	}
}

// hostPort writes an address without brackets, as stunnel wants it.
func hostPort(a netip.Addr, port uint16) string { return a.String() + ":" + num(port) }

// overTLS has a conversation in lines inside TLS.
func overTLS(service string, dialogue func(a *attempt) [][2]string) activityFunc {
	return func(ctx context.Context, a *attempt) error {
		c, err := a.openTLS(ctx, service)
		if err != nil {
			return err
		}
		defer c.Close()
		return lines(c, dialogue(a)...)
	}
}

func (a *attempt) openTLS(ctx context.Context, service string, protocols ...string) (net.Conn, error) {
	raw, err := a.open(ctx, service)
	if err != nil {
		return nil, err
	}
	cfg := &tls.Config{InsecureSkipVerify: true, ServerName: a.name(), NextProtos: protocols}
	if a.r.Float64() < 0.25 {
		cfg.MaxVersion = tls.VersionTLS12
	}
	c := tls.Client(raw, cfg)
	if err := c.HandshakeContext(ctx); err != nil {
		raw.Close()
		return nil, err
	}
	return c, nil
}

func mqttTLS(ctx context.Context, a *attempt) error {
	return a.program(ctx, "mqtts", randomBytes(a.r, logUniform(a.r, 10, 4000)), func(addr netip.AddrPort) []string {
		return []string{"mosquitto_pub", "-h", addr.Addr().String(), "-p", num(addr.Port()), "-i", a.name(), "-t", "lab/" + a.name(), "-q", "1",
			"--cafile", a.e.certs["mqtts"], "--insecure", "-s"}
	})
}

// query is a DNS question for a name's addresses.
func (a *attempt) query() []byte {
	b := append(randomBytes(a.r, 2), 1, 0, 0, 1, 0, 0, 0, 0, 0, 0)
	for part := range strings.SplitSeq(a.name(), ".") {
		b = append(append(b, byte(len(part))), part...)
	}
	return append(b, 0, 0, 1, 0, 1)
}

func kdig(ctx context.Context, a *attempt) error {
	return a.program(ctx, "dot", nil, func(addr netip.AddrPort) []string {
		return []string{"kdig", "@" + addr.Addr().String(), "-p", num(addr.Port()), "+tls", "+time=5", "+retry=0", pick(a.r, "+nopadding", "+padding"), a.name(), pick(a.r, "A", "AAAA", "TXT", "HTTPS")}
	})
}

func dnsOverTLS(ctx context.Context, a *attempt) error {
	c, err := a.openTLS(ctx, "dot", "dot")
	if err != nil {
		return err
	}
	defer c.Close()
	for range 1 + a.r.IntN(3) {
		q := a.query()
		if _, err := c.Write(append([]byte{0, byte(len(q))}, q...)); err != nil {
			return err
		}
		var n [2]byte
		if _, err := io.ReadFull(c, n[:]); err != nil {
			return err
		}
		if _, err := io.CopyN(io.Discard, c, int64(binary.BigEndian.Uint16(n[:]))); err != nil {
			return err
		}
	}
	return nil
}

// dnsOverHTTPS asks Go's web server, whose answer has the size of one.
func dnsOverHTTPS(ctx context.Context, a *attempt) error {
	host := a.name()
	tr := &http.Transport{
		TLSClientConfig: &tls.Config{InsecureSkipVerify: true, ServerName: host}, ForceAttemptHTTP2: true, DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return a.dial(ctx, host, a.e.port["go-https"])
		},
	}
	defer tr.CloseIdleConnections()
	url := fmt.Sprintf("https://%s/dns-query?n=%d", net.JoinHostPort(host, num(a.e.port["go-https"])), 60+a.r.IntN(200))
	method, body := http.MethodGet, io.Reader(nil)
	if a.r.Float64() < 0.5 {
		method, body = http.MethodPost, bytes.NewReader(a.query())
	} else {
		url += "&dns=" + base64.RawURLEncoding.EncodeToString(a.query())
	}
	req, err := http.NewRequestWithContext(ctx, method, url, body)
	if err != nil {
		return err
	}
	req.Header.Set("Accept", "application/dns-message")
	req.Header.Set("Content-Type", "application/dns-message")
	return fetch(tr, req)
}

func (e *env) startSMTPStartTLS(ctx context.Context, port uint16) error {
	_, dir, err := e.certificate(ctx, "smtp-starttls", "")
	if err != nil {
		return err
	}
	return e.run(ctx, port, "/usr/bin/python3", "-m", "aiosmtpd", "-n", "-c", "aiosmtpd.handlers.Sink", "-l", hostPort(e.server(), port),
		"--tlscert", filepath.Join(dir, "cert.pem"), "--tlskey", filepath.Join(dir, "key.pem"))
}

func smtpStartTLS(ctx context.Context, a *attempt) error {
	body := fmt.Appendf(nil, "Subject: %s\r\n\r\n%s\r\n", bytes.TrimSpace(words(a.r, 20)), bytes.ReplaceAll(words(a.r, logUniform(a.r, 50, 8000)), []byte("\n"), []byte("\r\n")))
	return a.program(ctx, "smtp-starttls", body, func(addr netip.AddrPort) []string {
		return []string{"curl", "-q", "-sS", "-k", "--ssl-reqd", "--noproxy", "", "--max-time", "10", "smtp://" + addr.String() + "/" + a.name(), "--mail-from", "a@" + a.name(), "--mail-rcpt", "b@" + a.name(), "--upload-file", "-"}
	})
}

func (e *env) startDTLS(ctx context.Context, port uint16) error {
	_, dir, err := e.certificate(ctx, "dtls", "")
	if err != nil {
		return err
	}
	p, err := e.l.Start(e.l.Server, "gnutls-serv", "gnutls-serv", "--udp", "--echo", "--mtu=1200", "-p", num(port), "--disable-client-cert",
		"--x509certfile", filepath.Join(dir, "cert.pem"), "--x509keyfile", filepath.Join(dir, "key.pem"))
	if err != nil {
		return err
	}
	return waitUDP(ctx, p, port)
}

func dtls(ctx context.Context, a *attempt) error {
	addr := netip.AddrPortFrom(a.e.server(), a.e.port["dtls"])
	argv := []string{"gnutls-cli", "--udp", "--mtu=1200", "--insecure", "--no-ca-verification", "--sni-hostname=" + a.name(), "--priority=" + pick(a.r, "NORMAL", "SECURE128", "PERFORMANCE"), "-p", num(addr.Port()), addr.Addr().String()}
	if a.r.Float64() < 0.4 {
		argv = []string{"openssl", "s_client", "-dtls", "-quiet", "-connect", addr.String(), "-servername", a.name()}
	}
	short, cancel := context.WithTimeout(ctx, 4*time.Second)
	defer cancel()
	out, err := a.e.l.ExecInput(short, a.e.l.Client, append(words(a.r, 100), '\n'), argv...)
	if err != nil && short.Err() == nil && len(out) == 0 {
		return err
	}
	return nil
}

func (e *env) startLDAP(ctx context.Context, port uint16) error {
	file, dir, err := e.config("slapd", "")
	if err != nil {
		return err
	}
	conf := fmt.Sprintf("include /etc/ldap/schema/core.schema\npidfile %s/pid\nargsfile %s/args\n", dir, dir)
	if err := os.WriteFile(file, []byte(conf), 0o644); err != nil {
		return err
	}
	return e.run(ctx, port, "slapd", "-d", "0", "-f", file, "-h", "ldap://"+netip.AddrPortFrom(e.server(), port).String())
}

func ldap(ctx context.Context, a *attempt) error {
	return a.program(ctx, "ldap", nil, func(addr netip.AddrPort) []string {
		argv := []string{"ldapsearch", "-x", "-LLL", "-H", "ldap://" + addr.String(), "-s", "base", "-b", pick(a.r, "", "cn=Subschema")}
		return append(argv, pick(a.r, "(objectClass=*)", "(objectClass=top)"), pick(a.r, "+", "*", "namingContexts", "supportedControl"))
	})
}

func (e *env) startNTP(ctx context.Context, port uint16) error {
	file, dir, err := e.config("chrony", "")
	if err != nil {
		return err
	}
	conf := fmt.Sprintf("local stratum %d\nallow all\nport %d\nbindaddress %s\ncmdport 0\nbindcmdaddress /\npidfile %s/pid\n", 1+e.draws("ntp").IntN(10), port, e.server(), dir)
	if err := os.WriteFile(file, []byte(conf), 0o644); err != nil {
		return err
	}
	p, err := e.l.Start(e.l.Server, "chronyd", "chronyd", "-x", "-d", "-u", "root", "-f", file)
	if err != nil {
		return err
	}
	return waitUDP(ctx, p, port)
}

func ntp(ctx context.Context, a *attempt) error {
	c, err := a.e.l.Client.Dial(ctx, "udp", netip.AddrPortFrom(a.e.server(), a.e.port["ntp"]).String())
	if err != nil {
		return err
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(3 * time.Second))
	for range 1 + a.r.IntN(4) {
		q := make([]byte, 48)
		q[0] = pick[byte](a.r, 0x23, 0x1b, 0xe3)
		q[2] = byte(6 + a.r.IntN(5))
		q[3] = 0xe8
		copy(q[40:], randomBytes(a.r, 8))
		if _, err := c.Write(q); err != nil {
			return err
		}
		if _, err := c.Read(make([]byte, 100)); err != nil {
			return err
		}
	}
	return nil
}

func (e *env) startSNMP(ctx context.Context, port uint16) error {
	file, dir, err := e.config("snmpd", "rocommunity public\nrouser lab\nsysLocation lab\nsysContact lab@lab.example\ncreateUser lab SHA authpassword AES privpassword\n")
	if err != nil {
		return err
	}
	if err := os.WriteFile(file, []byte("rocommunity public default\nrocommunity6 public default\nrouser lab\nsysLocation lab\ncreateUser lab SHA authpassword AES privpassword\n"), 0o600); err != nil {
		return err
	}
	transport := "udp:"
	if e.server().Is6() {
		transport = "udp6:"
	}
	p, err := e.l.StartEnv(e.l.Server, "snmpd", []string{"SNMP_PERSISTENT_DIR=" + dir}, "snmpd", "-f", "-Lo", "-C", "-c", file, "-p", filepath.Join(dir, "pid"), "-x", "unix:"+filepath.Join(dir, "agentx"),
		transport+netip.AddrPortFrom(e.server(), port).String())
	if err != nil {
		return err
	}
	return waitUDP(ctx, p, port)
}

func snmp(v3 bool) activityFunc {
	return func(ctx context.Context, a *attempt) error {
		transport := "udp:"
		if a.e.server().Is6() {
			transport = "udp6:"
		}
		argv := []string{pick(a.r, "snmpget", "snmpgetnext", "snmpbulkget"), "-t", "3", "-r", "1"}
		if v3 {
			argv = append(argv, "-v3", "-u", "lab", "-l", "authPriv", "-a", "SHA", "-A", "authpassword", "-x", "AES", "-X", "privpassword")
		} else {
			argv = append(argv, "-v2c", "-c", "public")
		}
		argv = append(argv, transport+netip.AddrPortFrom(a.e.server(), a.e.port["snmp"]).String())
		for range 1 + a.r.IntN(4) {
			argv = append(argv, pick(a.r, ".1.3.6.1.2.1.1.1.0", ".1.3.6.1.2.1.1.3.0", ".1.3.6.1.2.1.1.6.0", ".1.3.6.1.2.1.2.2.1.2.1"))
		}
		_, err := a.e.l.Exec(ctx, a.e.l.Client, argv...)
		return err
	}
}

func (e *env) startTURN(ctx context.Context, port uint16) error {
	_, dir, err := e.config("turn", "")
	if err != nil {
		return err
	}
	return e.run(ctx, port, "turnserver", "-n", "-L", e.server().String(), "-p", num(port), "--no-tls", "--no-dtls", "--no-cli", "--no-stdout-log", "--log-file", filepath.Join(dir, "log"),
		"--pidfile", filepath.Join(dir, "pid"), "--userdb", filepath.Join(dir, "db"), "--lt-cred-mech", "--user", "lab:secret", "--realm", "lab.example", "--allow-loopback-peers", "-m", "1")
}

func stun(ctx context.Context, a *attempt) error {
	c, err := a.e.l.Client.Dial(ctx, "udp", netip.AddrPortFrom(a.e.server(), a.e.port["turn"]).String())
	if err != nil {
		return err
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(3 * time.Second))
	for range 1 + a.r.IntN(3) {
		software := a.name()
		software = software[:len(software)/4*4]
		b := []byte{0, 1, 0, byte(4 + len(software)), 0x21, 0x12, 0xa4, 0x42}
		b = append(append(b, randomBytes(a.r, 12)...), 0x80, 0x22, 0, byte(len(software)))
		if _, err := c.Write(append(b, software...)); err != nil {
			return err
		}
		if _, err := c.Read(make([]byte, 600)); err != nil {
			return err
		}
	}
	return nil
}

func turn(ctx context.Context, a *attempt) error {
	argv := []string{"turnutils_uclient", "-y", "-u", "lab", "-w", "secret", "-n", "3", "-m", "1", "-l", fmt.Sprint(logUniform(a.r, 20, 800)), "-L", a.e.l.ClientAddr(a.e.c.Version).String(),
		"-p", num(a.e.port["turn"]), a.e.server().String()}
	short, cancel := context.WithTimeout(ctx, 4*time.Second)
	defer cancel()
	_, err := a.e.l.Exec(short, a.e.l.Client, argv...)
	if short.Err() != nil {
		return nil // it waits for its peers longer than its flows matter
	}
	return err
}

func (e *env) startNATS(ctx context.Context, port uint16) error {
	return e.run(ctx, port, "nats-server", "-a", e.server().String(), "-p", num(port))
}

func nats(ctx context.Context, a *attempt) error {
	c, err := a.open(ctx, "nats")
	if err != nil {
		return err
	}
	defer c.Close()
	d := [][2]string{{"", "INFO"}, {fmt.Sprintf("CONNECT {\"verbose\":false,\"pedantic\":false,\"lang\":\"go\",\"version\":\"1.28.0\",\"name\":%q}\r\nPING\r\n", a.name()), "PONG"}}
	subject := a.name()
	d = append(d, [2]string{"SUB " + subject + " 1\r\n", ""})
	for range 1 + a.r.IntN(4) {
		text := words(a.r, logUniform(a.r, 5, 900))
		d = append(d, [2]string{fmt.Sprintf("PUB %s %d\r\n%s\r\n", subject, len(text), text), "MSG"})
	}
	return lines(c, d...)
}

func (e *env) startBeanstalk(ctx context.Context, port uint16) error {
	return e.run(ctx, port, "beanstalkd", "-l", e.server().String(), "-p", num(port))
}

func beanstalk(ctx context.Context, a *attempt) error {
	c, err := a.open(ctx, "beanstalk")
	if err != nil {
		return err
	}
	defer c.Close()
	d := [][2]string{{"use " + a.name() + "\r\n", "USING"}}
	for range 1 + a.r.IntN(4) {
		text := words(a.r, logUniform(a.r, 5, 2000))
		d = append(d, [2]string{fmt.Sprintf("put 1 0 60 %d\r\n%s\r\n", len(text), text), "INSERTED"})
	}
	return lines(c, append(d, [2]string{"quit\r\n", ""})...)
}

func (e *env) startSVN(ctx context.Context, port uint16) error {
	_, dir, err := e.config("svn", "")
	if err != nil {
		return err
	}
	if _, err := e.l.Exec(ctx, e.l.Server, "svnadmin", "create", filepath.Join(dir, "repo")); err != nil {
		return err
	}
	return e.run(ctx, port, "svnserve", "-d", "--foreground", "-r", dir, "--listen-host", e.server().String(), "--listen-port", num(port))
}

func svn(ctx context.Context, a *attempt) error {
	return a.program(ctx, "svn", nil, func(addr netip.AddrPort) []string {
		return []string{"svn", pick(a.r, "ls", "info", "log"), "--non-interactive", "--config-dir", a.e.dir, "svn://" + addr.String() + "/repo"}
	})
}

func (e *env) startVNC(ctx context.Context, port uint16) error {
	argv := []string{"Xtigervnc", ":" + fmt.Sprint(100+e.draws("vnc").IntN(30000)), "-rfbport", num(port), "-SecurityTypes", "None", "-geometry", "320x200", "-depth", "16", "-nolisten", "unix", "-ac"}
	if e.server().Is6() {
		argv = append(argv, "-UseIPv6=1", "-UseIPv4=0")
	}
	return e.run(ctx, port, argv...)
}

func vnc(ctx context.Context, a *attempt) error {
	c, err := a.open(ctx, "vnc")
	if err != nil {
		return err
	}
	defer c.Close()
	buf := make([]byte, 4096)
	for _, st := range []struct {
		read  int
		write []byte
	}{{12, []byte("RFB 003.008\n")}, {2, []byte{1}}, {4, []byte{1}}, {24, nil}} {
		if _, err := io.ReadFull(c, buf[:st.read]); err != nil {
			return err
		}
		if len(st.write) > 0 {
			if _, err := c.Write(st.write); err != nil {
				return err
			}
		}
	}
	name := binary.BigEndian.Uint32(buf[20:24])
	if name > uint32(len(buf)) {
		return fmt.Errorf("vnc: the desktop's name is %d bytes long, which is no name", name)
	}
	if _, err := io.ReadFull(c, buf[:name]); err != nil {
		return err
	}
	w, h := uint16(10+a.r.IntN(300)), uint16(10+a.r.IntN(180))
	b := []byte{2, 0, 0, 2, 0, 0, 0, byte(pick(a.r, 5, 16, 7)), 0, 0, 0, 0} // encodings
	b = append(b, 3, 0, 0, 0, 0, 0, byte(w>>8), byte(w), byte(h>>8), byte(h))
	if _, err := c.Write(b); err != nil {
		return err
	}
	_, err = io.ReadFull(c, buf[:16])
	return err
}

func (e *env) startXMPP(ctx context.Context, port uint16) error {
	file, dir, err := e.certificate(ctx, "prosody", "")
	if err != nil {
		return err
	}
	conf := fmt.Sprintf(`run_as_root = true
daemonize = false
pidfile = "%[1]s/pid"
data_path = "%[1]s"
interfaces = { "%[2]s" }
c2s_ports = { %[3]d }
s2s_ports = { }
http_ports = { }
https_ports = { }
modules_enabled = { "roster", "saslauth", "tls", "disco", "ping" }
modules_disabled = { "s2s" }
authentication = "internal_hashed"
c2s_require_encryption = false
log = { error = "*console" }
VirtualHost "lab.example"
  ssl = { certificate = "%[1]s/cert.pem", key = "%[1]s/key.pem" }
`, dir, e.server(), port)
	if err := os.WriteFile(file, []byte(conf), 0o644); err != nil {
		return err
	}
	lua := filepath.Join(dir, "prosody.cfg.lua")
	if err := os.Rename(file, lua); err != nil {
		return err
	}
	return e.run(ctx, port, "prosody", "--config", lua, "-F")
}

func xmpp(starttls bool) activityFunc {
	return func(ctx context.Context, a *attempt) error {
		c, err := a.open(ctx, "xmpp")
		if err != nil {
			return err
		}
		defer c.Close()
		hello := "<?xml version='1.0'?><stream:stream to='lab.example' version='1.0' xml:lang='en' xmlns='jabber:client' xmlns:stream='http://etherx.jabber.org/streams'>"
		r := bufio.NewReader(c)
		until := func(r *bufio.Reader, text string) error {
			var got []byte
			for !bytes.Contains(got, []byte(text)) {
				b, err := r.ReadByte()
				if err != nil {
					return fmt.Errorf("wait for %q: %w", text, err)
				}
				got = append(got, b)
			}
			return nil
		}
		talk := func(c net.Conn, r *bufio.Reader, say, hear string) error {
			if _, err := c.Write([]byte(say)); err != nil {
				return err
			}
			return until(r, hear)
		}
		if err := talk(c, r, hello, "</stream:features>"); err != nil {
			return err
		}
		if starttls {
			if err := talk(c, r, "<starttls xmlns='urn:ietf:params:xml:ns:xmpp-tls'/>", "<proceed"); err != nil {
				return err
			}
			if err := until(r, ">"); err != nil {
				return err
			}
			t := tls.Client(c, &tls.Config{InsecureSkipVerify: true, ServerName: "lab.example"})
			if err := t.HandshakeContext(ctx); err != nil {
				return err
			}
			c, r = t, bufio.NewReader(t)
			if err := talk(c, r, hello, "</stream:features>"); err != nil {
				return err
			}
		}
		auth := base64.StdEncoding.EncodeToString([]byte("\x00" + a.name() + "\x00" + a.name()))
		return talk(c, r, "<auth xmlns='urn:ietf:params:xml:ns:xmpp-sasl' mechanism='PLAIN'>"+auth+"</auth>", "</failure>")
	}
}

func rsyncSSH(ctx context.Context, a *attempt) error {
	if a.e.ssh == nil {
		return errors.New("no sshd")
	}
	defer os.RemoveAll(a.file)
	argv := a.e.ssh.SSHArgs(netip.AddrPortFrom(a.server(), a.e.port["ssh"]), a.sshOptions()...)
	host := argv[len(argv)-1]
	host = strings.TrimPrefix(host, "root@")
	if strings.Contains(host, ":") {
		host = "[" + host + "]"
	}
	_, err := a.e.l.Exec(ctx, a.e.l.Client, "rsync", "-a", "--timeout=20", "-e", strings.Join(argv[:len(argv)-1], " "), "root@"+host+":"+filepath.Join(a.e.l.Dir(), "tftp-*", "/")+"/", a.file+"/")
	return err
}

// datagramVariants are conversations over UDP between programs of our own.
var datagramVariants = []struct {
	name, kind string
	draw       func(r *rand.Rand) script
}{
	{"rtp", ordinary, func(r *rand.Rand) script { return rtp(r, false) }},
	{"srtp", randomLike, func(r *rand.Rand) script { return rtp(r, true) }},
	{"sip-udp", ordinary, sipDialogue},
	{"syslog-udp", ordinary, func(r *rand.Rand) script {
		var s script
		for range 2 + r.IntN(12) {
			s = append(s, step{data: syslogLine(r)})
		}
		return s
	}},
	{"game", ordinary, func(r *rand.Rand) script {
		// A fixed head, a counter, positions that change little.
		head := randomBytes(r, 4)
		state := make([]byte, 12+r.IntN(30))
		var s script
		for i := range 10 + r.IntN(30) {
			for range 3 {
				state[r.IntN(len(state))] += byte(r.IntN(3))
			}
			b := binary.BigEndian.AppendUint32(append([]byte(nil), head...), uint32(i))
			s = append(s, step{server: i%2 == 1, data: append(b, state...)})
		}
		return s
	}},
	{"encrypted-udp", randomLike, func(r *rand.Rand) script {
		// A short plain head, as many custom VPNs have, or none.
		head := randomBytes(r, pick(r, 0, 1, 4, 8))
		var s script
		for range 3 + r.IntN(12) {
			s = append(s, step{server: r.Float64() < 0.5, data: append(append([]byte(nil), head...), randomBytes(r, logUniform(r, 20, 1300))...)})
		}
		return s
	}},
	{"handshake-udp", randomLike, func(r *rand.Rand) script {
		// Fixed sizes first, as a key exchange has, then sizes of packets.
		first, second := 40+r.IntN(300), 40+r.IntN(300)
		s := script{{data: randomBytes(r, first)}, {server: true, data: randomBytes(r, second)}}
		over := 16 + r.IntN(40)
		for range 3 + r.IntN(10) {
			s = append(s, step{server: r.Float64() < 0.5, data: randomBytes(r, over+pick(r, 40, 52, 60, 64, 120, 300, 576, 1200))})
		}
		return s
	}},
}

func rtp(r *rand.Rand, secure bool) script {
	kind, size := pick[byte](r, 0, 8, 9, 96, 111), pick(r, 80, 160, 160, 240, 60)
	sources := [2][]byte{randomBytes(r, 4), randomBytes(r, 4)}
	seq, at := uint16(r.Uint32()), r.Uint32()
	var s script
	level := byte(0xd5)
	for i := range 8 + r.IntN(20) {
		side := i % 2
		b := []byte{0x80, kind, byte(seq >> 8), byte(seq)}
		b = append(binary.BigEndian.AppendUint32(b, at), sources[side]...)
		if secure {
			b = append(b, randomBytes(r, size+r.IntN(20)+10)...)
		} else {
			for range size { // A-law of something quiet
				level ^= byte(r.IntN(8))
				b = append(b, level)
			}
		}
		seq, at = seq+1, at+uint32(size)
		s = append(s, step{server: side == 1, data: b})
	}
	return s
}

func syslogLine(r *rand.Rand) []byte {
	return fmt.Appendf(nil, "<%d>Nov %2d %02d:%02d:%02d host%d %s[%d]: %s", r.IntN(190), 1+r.IntN(28), r.IntN(24), r.IntN(60), r.IntN(60), r.IntN(30), pick(r, "sshd", "cron", "kernel", "postfix/smtpd", "app"), r.IntN(60000),
		bytes.ReplaceAll(words(r, logUniform(r, 20, 300)), []byte("\n"), []byte(" ")))
}

func sipDialogue(r *rand.Rand) script {
	id, from, to := r.Uint64(), fmt.Sprintf("a%d@lab.example", r.IntN(1000)), fmt.Sprintf("b%d@lab.example", r.IntN(1000))
	head := fmt.Sprintf("Via: SIP/2.0/UDP 10.0.0.%d:5060;branch=z9hG4bK%x\r\nFrom: <sip:%s>;tag=%x\r\nTo: <sip:%s>\r\nCall-ID: %x\r\n", r.IntN(250), r.Uint64(), from, r.Uint32(), to, id)
	sdp := fmt.Sprintf("v=0\r\no=- %d 1 IN IP4 10.0.0.1\r\ns=-\r\nc=IN IP4 10.0.0.1\r\nt=0 0\r\nm=audio %d RTP/AVP 0 8 101\r\na=rtpmap:0 PCMU/8000\r\n", r.Uint32(), 10000+r.IntN(9000))
	m := func(server bool, first, method, body string) step {
		return step{server: server, data: fmt.Appendf(nil, "%s\r\n%sCSeq: 1 %s\r\nUser-Agent: lab\r\nContent-Length: %d\r\n\r\n%s", first, head, method, len(body), body)}
	}
	return script{m(false, "INVITE sip:"+to+" SIP/2.0", "INVITE", sdp), m(true, "SIP/2.0 100 Trying", "INVITE", ""), m(true, "SIP/2.0 180 Ringing", "INVITE", ""), m(true, "SIP/2.0 200 OK", "INVITE", sdp),
		m(false, "ACK sip:"+to+" SIP/2.0", "ACK", ""), m(false, "BYE sip:"+to+" SIP/2.0", "BYE", ""), m(true, "SIP/2.0 200 OK", "BYE", "")}
}

// startScriptedUDP plays the server's side of scripts over UDP. A datagram that
// is lost ends nothing: each side sends what is its own in time.
func (e *env) startScriptedUDP(_ context.Context, port uint16) error {
	c, err := e.l.Server.ListenPacket("udp", netip.AddrPortFrom(e.server(), port).String())
	if err != nil {
		return err
	}
	context.AfterFunc(e.ctx, func() { c.Close() })
	e.wg.Go(func() {
		buf := make([]byte, 2048)
		type state struct {
			s  script
			at int
		}
		known := map[string]*state{}
		for {
			_, from, err := c.ReadFrom(buf)
			if err != nil {
				return
			}
			st := known[from.String()]
			if st == nil {
				s, err := e.takeScript(e.ctx, from.String())
				if err != nil {
					continue
				}
				st = &state{s: s}
				known[from.String()] = st
			}
			// What follows the client's step that has come.
			for st.at < len(st.s) && st.s[st.at].server {
				st.at++
			}
			for st.at++; st.at < len(st.s) && st.s[st.at].server; st.at++ {
				_, _ = c.WriteTo(st.s[st.at].data, from)
			}
		}
	})
	return nil
}

func scriptedUDP(draw func(r *rand.Rand) script) activityFunc {
	return func(ctx context.Context, a *attempt) error {
		c, err := a.e.l.Client.Dial(ctx, "udp", netip.AddrPortFrom(a.e.server(), a.e.port["scripted-udp"]).String())
		if err != nil {
			return err
		}
		defer c.Close()
		s := draw(a.r)
		if len(s) > 0 && s[0].server { // the client begins
			s = append(script{{data: s[0].data}}, s...)
		}
		a.e.putScript(c.LocalAddr().String(), s)
		buf := make([]byte, 2048)
		for i, st := range s {
			if !st.server {
				if _, err := c.Write(st.data); err != nil {
					return err
				}
				if i+1 < len(s) && !s[i+1].server {
					time.Sleep(time.Duration(a.r.IntN(5)) * time.Millisecond) // a stream's pace
				}
				continue
			}
			_ = c.SetReadDeadline(time.Now().Add(400 * time.Millisecond))
			if _, err := c.Read(buf); err != nil {
				var ne net.Error
				if !errors.As(err, &ne) || !ne.Timeout() { // lost
					return err
				}
			}
		}
		return nil
	}
}

// tcpScript draws conversations over TCP that are not random-like, and some
// that are.
func tcpScript(r *rand.Rand, variant string) script {
	var s script
	say := func(server bool, data []byte) { s = append(s, step{server: server, data: data}) }
	switch variant {
	case "bittorrent": // a plain handshake and messages
		hash := randomBytes(r, 20)
		shake := func() []byte {
			b := append([]byte("\x13BitTorrent protocol"), 0, 0, 0, 0, 0, 0x10, 0, 5)
			return append(append(append(b, hash...), "-qB4520-"...), randomBytes(r, 12)...)
		}
		say(false, shake())
		say(true, append(shake(), message(5, randomBytes(r, 10+r.IntN(200)))...))
		say(false, append(message(5, make([]byte, 10+r.IntN(200))), message(2, nil)...))
		say(true, message(1, nil))
		say(false, message(6, []byte{0, 0, 0, byte(r.IntN(200)), 0, 0, 0, 0, 0, 0, 0x40, 0}))
		say(true, message(7, append(make([]byte, 8), randomBytes(r, 16384)...)))
	case "bittorrent-encrypted": // message stream encryption: keys and padding, then RC4
		say(false, randomBytes(r, 96+r.IntN(513)))
		say(true, randomBytes(r, 96+r.IntN(513)))
		say(false, randomBytes(r, 20+20+8+4+2+r.IntN(513)+2+68))
		say(true, randomBytes(r, 8+4+2+r.IntN(513)+68+5+r.IntN(200)))
		for range 1 + r.IntN(4) {
			say(false, randomBytes(r, 17*(1+r.IntN(8))))
			say(true, randomBytes(r, 13+16384))
		}
	case "noise": // the XX pattern with 2-byte lengths
		record := func(n int) []byte { return append([]byte{byte(n >> 8), byte(n)}, randomBytes(r, n)...) }
		say(false, record(32))
		say(true, record(96+r.IntN(64)))
		say(false, record(64+r.IntN(64)))
		for range 2 + r.IntN(4) {
			say(r.Float64() < 0.5, record(16+logUniform(r, 10, 1500)))
		}
	case "ssh-like-random": // a key exchange of equal sizes, then small records
		n := pick(r, 32, 64, 128, 256)
		say(false, randomBytes(r, n))
		say(true, randomBytes(r, n))
		for range 4 + r.IntN(10) {
			say(r.Float64() < 0.5, randomBytes(r, 16*(1+r.IntN(20))))
		}
	case "zstd", "zstd-upload":
		enc, _ := zstd.NewWriter(nil) // fails on bad options only
		b := enc.EncodeAll(words(r, logUniform(r, 2000, 60000)), nil)
		_ = enc.Close()
		ask := append([]byte(nil), words(r, logUniform(r, 1, 60))...)
		if variant == "zstd" {
			say(false, ask)
			say(true, b)
		} else {
			say(false, b)
			say(true, ask)
		}
	case "encrypted-archive": // OpenPGP: an encrypted session key, then encrypted data
		b := []byte{0x85, 2, 0x0c, 3}
		b = append(b, randomBytes(r, 8)...)
		b = append(append(b, 1, 0x10, 0), randomBytes(r, 512)...)
		b = append(append(b, 0xd2, 0xed, 1), randomBytes(r, logUniform(r, 2000, 60000))...)
		if r.Float64() < 0.5 { // 7-Zip instead
			b = append([]byte{'7', 'z', 0xbc, 0xaf, 0x27, 0x1c, 0, 4}, randomBytes(r, logUniform(r, 2000, 60000))...)
		}
		say(false, words(r, logUniform(r, 4, 40)))
		say(true, b)
	case "http-download": // random contents over HTTP on an odd port
		n := logUniform(r, 1000, 60000)
		say(false, fmt.Appendf(nil, "GET /%x HTTP/1.1\r\nHost: host%d.example\r\nUser-Agent: %s\r\n\r\n", r.Uint64(), r.IntN(1000), pick(r, agents...)))
		say(true, append(fmt.Appendf(nil, "HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\nContent-Length: %d\r\n\r\n", n), randomBytes(r, n)...))
	case "http-gzip":
		b := packed(r, "gzip")
		say(false, fmt.Appendf(nil, "GET /%x HTTP/1.1\r\nHost: host%d.example\r\nAccept-Encoding: gzip\r\n\r\n", r.Uint64(), r.IntN(1000)))
		say(true, append(fmt.Appendf(nil, "HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n", len(b)), b...))
	case "sip-tcp":
		s = sipDialogue(r)
	case "syslog-tcp":
		for range 3 + r.IntN(10) {
			line := syslogLine(r)
			say(false, append(fmt.Appendf(nil, "%d ", len(line)), line...))
		}
	case "telnet":
		say(true, []byte{255, 253, 24, 255, 253, 32, 255, 253, 35, 255, 253, 39})
		say(false, []byte{255, 251, 24, 255, 251, 32, 255, 252, 35, 255, 251, 39})
		say(true, []byte("Debian GNU/Linux 12\r\nlogin: "))
		for _, c := range "lab" {
			say(false, []byte{byte(c)})
			say(true, []byte{byte(c)})
		}
		say(false, []byte("\r\n"))
		say(true, append([]byte("\r\nPassword: \r\nWelcome\r\n$ "), words(r, logUniform(r, 50, 1500))...))
	case "tls-alert": // a handshake that the server refuses
		n := 200 + r.IntN(400)
		b := append([]byte{22, 3, 1, byte(n >> 8), byte(n), 1, 0, byte((n - 4) >> 8), byte(n - 4), 3, 3}, randomBytes(r, 32)...)
		say(false, append(b, randomBytes(r, n+5-len(b))...))
		say(true, []byte{21, 3, 3, 0, 2, 2, 40})
	}
	return s
}

// message is one of BitTorrent's.
func message(kind byte, payload []byte) []byte {
	return append(append(binary.BigEndian.AppendUint32(nil, uint32(1+len(payload))), kind), payload...)
}
