// SPDX-License-Identifier: Apache-2.0

package web

import (
	"bufio"
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/earlydrop/earlydrop/cmd/earlydrop/control"
	"github.com/earlydrop/earlydrop/cmd/earlydrop/event"
)

const token = "0123456789abcdef0123456789abcdef"

// request sends one and returns the answer with its body read.
func request(t *testing.T, method, url, body string, headers ...string) (*http.Response, string) {
	t.Helper()
	r, err := http.NewRequestWithContext(within(t), method, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(headers); i += 2 {
		if headers[i] == "Host" {
			r.Host = headers[i+1]
		}
		r.Header.Set(headers[i], headers[i+1])
	}
	answer, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(answer.Body)
	if err != nil {
		t.Fatal(err)
	}
	return answer, string(text)
}

// What is not asked for as it should be is refused with one line, and changes nothing.
func TestRequestsAreRefused(t *testing.T) {
	f := newFake(t)
	f.block("10.0.0.2:1000", "192.0.2.7:443", "shadowsocks", "tunnels")
	f.treat("10.0.0.2/32", "192.0.2.7:8388")
	daemon := daemonOf(t, f)
	open := serve(t, Config{Daemon: daemon})
	closed := serve(t, Config{Daemon: daemon, Token: token})
	const flow = `{"interface":"eth0","proto":"tcp","ends":["10.0.0.2:1000","192.0.2.7:443"]}`
	const pair = `{"initiator":"10.0.0.2/32","server":"192.0.2.7:8388","vlan":0,"inner_vlan":0}`
	const know = "Bearer " + token
	port := func(s *Server) string { _, p, _ := net.SplitHostPort(s.Addr().String()); return p }
	lift := func(headers ...string) []string {
		return append([]string{"Authorization", know, "Content-Type", "application/json"}, headers...)
	}
	for _, tt := range []struct {
		name, method, path, body string
		s                        *Server
		headers                  []string
		code                     int
		want                     string
	}{
		{"a name that points here", "GET", "/", "", open, []string{"Host", "evil.example:" + port(open)}, 421, "not called that"},
		{"a name that points here, of the API", "GET", "/api/live", "", open, []string{"Host", "evil.example"}, 421, "not called that"},
		{"a name that begins as ours", "GET", "/api/live", "", open, []string{"Host", "127.0.0.1.evil.example"}, 421, "not called that"},
		{"localhost of another domain", "GET", "/api/live", "", open, []string{"Host", "localhost.evil.example"}, 421, "not called that"},
		{"another address", "GET", "/api/live", "", open, []string{"Host", "192.0.2.7"}, 421, "not called that"},
		{"a number for an address", "GET", "/api/live", "", open, []string{"Host", "2130706433"}, 421, "not called that"},
		{"localhost", "GET", "/", "", open, []string{"Host", "localhost:8080"}, 200, "<html"},
		{"localhost in capitals", "GET", "/api/live", "", open, []string{"Host", "LOCALHOST"}, 200, "eth0"},
		{"the address", "GET", "/api/live", "", open, []string{"Host", "127.0.0.1"}, 200, "eth0"},
		{"no such page", "GET", "/index.htm", "", open, nil, 404, "not found"},
		{"what is embedded and no page", "GET", "/LICENSE-uplot", "", open, nil, 404, "not found"},
		{"a path that climbs", "GET", "/..%2f..%2fetc/passwd", "", open, nil, 404, "not found"},
		{"a page is posted to", "POST", "/", "", open, nil, 405, ""},
		{"live is posted to", "POST", "/api/live", "", closed, lift(), 405, ""},
		{"read by another site", "GET", "/api/live", "", open, []string{"Sec-Fetch-Site", "cross-site"}, 403, "another site"},
		{"read by another port of this machine", "GET", "/api/live", "", open, []string{"Sec-Fetch-Site", "same-site"}, 403, "another site"},
		{"a link from another site to the page", "GET", "/", "", open, []string{"Sec-Fetch-Site", "cross-site", "Sec-Fetch-Mode", "navigate"}, 200, "<html"},
		{"a link from another site to the API", "GET", "/api/live", "", open, []string{"Sec-Fetch-Site", "cross-site", "Sec-Fetch-Mode", "navigate"}, 403, "another site"},
		{"a change without any token", "POST", "/api/blocks/lift", flow, open, []string{"Content-Type", "application/json"}, 403, "without a token"},
		{"read without the token", "GET", "/api/live", "", closed, nil, 401, "token"},
		{"read with another token", "GET", "/api/live", "", closed, []string{"Authorization", "Bearer " + strings.Repeat("x", 32)}, 401, "token"},
		{"read with an empty token", "GET", "/api/live", "", closed, []string{"Authorization", "Bearer "}, 401, "token"},
		{"read with a part of the token", "GET", "/api/live", "", closed, []string{"Authorization", know[:len(know)-1]}, 401, "token"},
		{"read with the token as a password", "GET", "/api/live", "", closed, []string{"Authorization", "Basic " + token}, 401, "token"},
		{"read with the token as a parameter", "GET", "/api/live?token=" + token, "", closed, nil, 401, "token"},
		{"events without the token", "GET", "/api/events", "", closed, nil, 401, "token"},
		{"the page itself needs none", "GET", "/", "", closed, nil, 200, "<html"},
		{"a change without the token", "POST", "/api/blocks/lift", flow, closed, []string{"Content-Type", "application/json"}, 401, "token"},
		{"a change from another site", "POST", "/api/blocks/lift", flow, closed, lift("Sec-Fetch-Site", "cross-site"), 403, "another site"},
		{"a change from another origin", "POST", "/api/blocks/lift", flow, closed, lift("Origin", "http://evil.example"), 403, "another site"},
		{"a change from another port", "POST", "/api/blocks/lift", flow, closed, lift("Origin", "http://127.0.0.1:1"), 403, "another site"},
		{"a change as forms send it", "POST", "/api/blocks/lift", flow, closed, lift("Content-Type", "text/plain"), 415, "application/json"},
		{"a change by GET", "GET", "/api/blocks/lift", "", closed, lift(), 405, ""},
		{"too much", "POST", "/api/blocks/lift", `{"interface":"` + strings.Repeat("a", 1<<20) + `"}`, closed, lift(), 413, "too large"},
		{"no JSON", "POST", "/api/blocks/lift", "ends=1", closed, lift(), 400, "body"},
		{"two objects", "POST", "/api/blocks/lift", flow + flow, closed, lift(), 400, "follows"},
		{"a field too many", "POST", "/api/blocks/lift", `{"all":true}`, closed, lift(), 400, "all"},
		{"no flow", "POST", "/api/blocks/lift", `{"interface":"eth0","proto":"tcp"}`, closed, lift(), 400, "two ends"},
		{"no interface", "POST", "/api/blocks/lift", `{"proto":"tcp","ends":["10.0.0.2:1000","192.0.2.7:443"]}`, closed, lift(), 400, "interface"},
		{"no such interface", "POST", "/api/blocks/lift", strings.Replace(flow, "eth0", "eth7", 1), closed, lift(), 404, "not blocked"},
		{"a bad network", "GET", "/api/blocks?cidr=10.0.0.1/8", "", open, nil, 400, "is 10.0.0.0/8 meant?"},
		{"an unknown parameter", "GET", "/api/blocks?colour=red", "", open, nil, 400, "colour"},
		{"a bad limit", "GET", "/api/blocks?limit=1000000", "", open, nil, 400, "limit"},
		{"a bad order", "GET", "/api/blocks?sort=colour", "", open, nil, 400, "colour"},
		{"a bad escape", "GET", "/api/blocks?cidr=%zz", "", open, nil, 400, "query"},
		{"a bad escape, of pairs", "GET", "/api/pairs?cidr=%zz", "", open, nil, 400, "query"},
		{"a bad network, of pairs", "GET", "/api/pairs?cidr=10.0.0.1/8", "", open, nil, 400, "is 10.0.0.0/8 meant?"},
		{"a bad escape, of the history", "GET", "/api/history?class=%zz", "", open, nil, 400, "query"},
		{"a bad time", "GET", "/api/history?since=yesterday", "", open, nil, 400, "yesterday"},
		{"too many events", "GET", "/api/history?limit=501", "", open, nil, 400, "at most 500"},
		{"an unknown kind of event", "GET", "/api/history?event=verdcit", "", open, nil, 400, "did you mean verdict?"},
		{"no history", "GET", "/api/history", "", open, nil, 404, "no history"},
		{"why, of nothing", "GET", "/api/why", "", open, nil, 400, "neither an address nor a network"},
		{"why, of a name", "GET", "/api/why?of=example.org", "", open, nil, 400, "example.org"},
		{"a pair without any token", "POST", "/api/pairs/forget", pair, open, []string{"Content-Type", "application/json"}, 403, "without a token"},
		{"a pair without the token", "POST", "/api/pairs/forget", pair, closed, []string{"Content-Type", "application/json"}, 401, "token"},
		{"a pair from another site", "POST", "/api/pairs/forget", pair, closed, lift("Sec-Fetch-Site", "same-site"), 403, "another site"},
		{"a pair that is none", "POST", "/api/pairs/forget", `{"initiator":"10.0.0.2"}`, closed, lift(), 400, "server"},
		{"a pair that is not treated", "POST", "/api/pairs/forget", strings.Replace(pair, "8388", "8389", 1), closed, lift(), 404, "not treated"},
	} {
		answer, text := request(t, tt.method, "http://"+tt.s.Addr().String()+tt.path, tt.body, tt.headers...)
		if answer.StatusCode != tt.code || !strings.Contains(text, tt.want) {
			t.Errorf("%s: %d %q, want %d %q", tt.name, answer.StatusCode, text, tt.code, tt.want)
		}
		if tt.code >= 400 && tt.code != 404 && tt.code != 405 {
			var told map[string]string
			if err := json.Unmarshal([]byte(text), &told); err != nil || len(told) != 1 || told["error"] == "" || strings.Count(text, "\n") != 1 {
				t.Errorf("%s: the body is %q, %v", tt.name, text, err)
			}
		}
		for name, want := range map[string]string{
			"X-Frame-Options": "DENY", "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer", "Content-Security-Policy": contentPolicy,
			"Cross-Origin-Resource-Policy": "same-origin", "Access-Control-Allow-Origin": "",
		} {
			if got := answer.Header.Get(name); got != want {
				t.Errorf("%s: %s is %q", tt.name, name, got)
			}
		}
	}
	if f.blocked() != 1 || len(f.pairs) != 1 {
		t.Error("something was changed")
	}
	if answer, text := request(t, "POST", "http://"+closed.Addr().String()+"/api/pairs/forget", pair, lift()...); answer.StatusCode != 200 || len(f.pairs) != 0 {
		t.Errorf("%d %s", answer.StatusCode, text)
	}
	answer, text := request(t, "POST", "http://"+closed.Addr().String()+"/api/blocks/lift", flow, lift("Origin", "http://"+closed.Addr().String(), "Sec-Fetch-Site", "same-origin")...)
	if answer.StatusCode != 200 || f.blocked() != 0 {
		t.Errorf("%d %s", answer.StatusCode, text)
	}
}

func TestTokensCanNotBeTriedOut(t *testing.T) {
	s := serve(t, Config{Daemon: daemonOf(t, newFake(t)), Token: token})
	ask := func(token string) int {
		answer, _ := request(t, "GET", "http://"+s.Addr().String()+"/api/live", "", "Authorization", "Bearer "+token)
		return answer.StatusCode
	}
	for tries := 0; ask("wrong") != http.StatusTooManyRequests; tries++ {
		if tries > 1000 {
			t.Fatal("any number can be tried")
		}
	}
	if code := ask(token); code != 200 {
		t.Errorf("who knows it is kept out by those who do not: %d", code)
	}
}

// selfSigned returns a certificate for a name and an address, as files.
func selfSigned(t *testing.T, name string, ip net.IP) (certFile, keyFile string, pool *x509.CertPool) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, DNSNames: []string{name}, IPAddresses: []net.IP{ip},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	certFile, keyFile = filepath.Join(t.TempDir(), "cert.pem"), filepath.Join(t.TempDir(), "key.pem")
	cert := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	if err := errors.Join(os.WriteFile(certFile, cert, 0o644), os.WriteFile(keyFile, pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: keyDER}), 0o600)); err != nil {
		t.Fatal(err)
	}
	pool = x509.NewCertPool()
	pool.AppendCertsFromPEM(cert)
	return certFile, keyFile, pool
}

// Others than this machine are served with TLS and a token only, under the names that the
// certificate has.
func TestOtherAddressesNeedTLSAndAToken(t *testing.T) {
	certFile, keyFile, pool := selfSigned(t, "gateway.example", net.IPv4(127, 0, 0, 1))
	cert, err := ReadCertificate(certFile, keyFile)
	if err != nil {
		t.Fatal(err)
	}
	daemon := daemonOf(t, newFake(t))
	for _, address := range []string{"0.0.0.0:0", "[::]:0"} {
		for _, c := range []Config{{}, {Token: token}, {Certificate: cert}} {
			c.Address, c.Daemon = address, daemon
			if s, err := Listen(c); !errors.Is(err, ErrExposed) {
				t.Errorf("%s: %v", address, err)
				if err == nil {
					s.Close()
				}
			}
		}
	}
	s := serve(t, Config{Address: "0.0.0.0:0", Daemon: daemon, Token: token, Certificate: cert})
	_, port, _ := net.SplitHostPort(s.Addr().String())
	client := &http.Client{Timeout: time.Minute, Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}}}
	for host, want := range map[string]int{"gateway.example": 200, "gateway.example:1": 200, "127.0.0.1": 200, "evil.example": 421, "": 421} {
		r, _ := http.NewRequestWithContext(within(t), "GET", "https://127.0.0.1:"+port+"/api/live", nil)
		r.Host = host
		if host == "" {
			r.Host = "192.0.2.1"
		}
		r.Header.Set("Authorization", "Bearer "+token)
		answer, err := client.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		_ = answer.Body.Close()
		if answer.StatusCode != want || answer.ProtoMajor != 1 {
			t.Errorf("%q: %d %s, want %d", host, answer.StatusCode, answer.Proto, want)
		}
	}
	if answer, text := request(t, "GET", "http://127.0.0.1:"+port+"/", ""); answer.StatusCode != 400 {
		t.Errorf("plain HTTP: %d %s", answer.StatusCode, text)
	}
}

func TestAddressesThatCanNotBeHad(t *testing.T) {
	s := serve(t, Config{Daemon: daemonOf(t, newFake(t))})
	for address, want := range map[string]string{
		s.Addr().String(): "address already in use", "9480": "HOST:PORT", ":9480": "HOST:PORT", "127.0.0.1:": "HOST:PORT", "127.0.0.1:99999": "99999", "": "HOST:PORT",
	} {
		got, err := Listen(Config{Address: address})
		if err == nil {
			got.Close()
		}
		if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%q: %v, want %q", address, err, want)
		}
	}
}

func TestFilesOfSecrets(t *testing.T) {
	dir := t.TempDir()
	put := func(name, text string, mode os.FileMode, gid int) string {
		path := filepath.Join(dir, name)
		if err := errors.Join(os.WriteFile(path, []byte(text), 0o600), os.Chown(path, -1, gid), os.Chmod(path, mode)); err != nil {
			t.Fatal(err)
		}
		return path
	}
	const others = 54321 // a group
	fifo := filepath.Join(dir, "fifo")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct{ path, want string }{
		{put("good", token+"\n", 0o600, others), ""},
		{put("read-only", token, 0o400, others), ""},
		{put("credential", token, 0o440, 0), ""},
		{put("group", token, 0o640, others), "others than its owner can read or change it (mode 0640): chmod 0600"},
		{put("group-writes", token, 0o620, others), "others than its owner"},
		{put("world", token, 0o604, 0), "others than its owner"},
		{put("all", token, 0o644, others), "others than its owner"},
		{put("short", "secret\n", 0o600, others), "6 bytes"},
		{put("empty", "", 0o600, others), "0 bytes"},
		{put("words", "correct horse battery staple", 0o600, others), "one word"},
		{put("bytes", strings.Repeat("\x00", 32), 0o600, others), "one word"},
		{put("huge", strings.Repeat("x", 1<<20), 0o600, others), "larger than"},
		{fifo, "no plain file"},
		{dir, "no plain file"},
		{filepath.Join(dir, "none"), "no such file"},
	} {
		got, err := ReadToken(tt.path)
		switch {
		case tt.want == "" && (err != nil || got != token):
			t.Errorf("%s: %q, %v", tt.path, got, err)
		case tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want) || strings.Contains(err.Error(), "\n") || strings.Contains(err.Error(), token)):
			t.Errorf("%s: %q, %v, want %q", tt.path, got, err, tt.want)
		}
	}

	certFile, keyFile, _ := selfSigned(t, "a.example", net.IPv4(192, 0, 2, 1))
	other, _, _ := selfSigned(t, "b.example", net.IPv4(192, 0, 2, 1))
	if _, err := ReadCertificate(other, keyFile); err == nil || strings.Contains(err.Error(), "\n") {
		t.Errorf("another's key: %v", err)
	}
	if err := os.Chmod(keyFile, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := ReadCertificate(certFile, keyFile); err == nil || !strings.Contains(err.Error(), "others than its owner") {
		t.Errorf("a key for all to read: %v", err)
	}
}

// uPlot is what its package has, and nobody has changed it.
func TestVendoredFilesAreThosePinned(t *testing.T) {
	for name, want := range map[string]string{
		"uplot.js":      "19c8d4c6ad88929a79f4ae49d6f7161566dfd0ba3d15cc495e974f787eb78f1f",
		"uplot.css":     "df630c6a8d6f8eeaff264b50f73ce5b114f646ffd9a0bb74f049b0a00135fa04",
		"LICENSE-uplot": "8f989229699b4fe2f1a0432d0e9edc338a8a911e250e2d1b01ecd770a5f5b1bd",
	} {
		data, err := files.ReadFile("static/" + name)
		sum := sha256.Sum256(data)
		if err != nil || hex.EncodeToString(sum[:]) != want {
			t.Errorf("%s is not the pinned one: %v", name, err)
		}
	}
}

// Each file of the page is served, as what it is.
func TestFilesAreServed(t *testing.T) {
	s := serve(t, Config{Daemon: daemonOf(t, newFake(t))})
	entries, err := fs.ReadDir(files, "static")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if e.Name() == "LICENSE-uplot" {
			continue
		}
		at := e.Name()
		if at == "index.html" {
			at = ""
		}
		answer, text := request(t, "GET", s.URL()+at, "")
		if answer.StatusCode != 200 || text == "" || answer.Header.Get("Content-Type") != contentTypes[e.Name()] {
			t.Errorf("%s: %d %s, %d bytes", e.Name(), answer.StatusCode, answer.Header.Get("Content-Type"), len(text))
		}
		again, text := request(t, "GET", s.URL()+at, "", "If-None-Match", answer.Header.Get("ETag"))
		if again.StatusCode != http.StatusNotModified || text != "" {
			t.Errorf("%s again: %d %q", e.Name(), again.StatusCode, text)
		}
	}
	if len(entries) != len(contentTypes)+1 {
		t.Errorf("%d files, %d types", len(entries), len(contentTypes))
	}
}

// What the history has is found a page at a time.
func TestHistoryIsSearched(t *testing.T) {
	f := newFake(t)
	var all []*event.Verdict
	for i := range 30 {
		class := "background"
		if i%3 == 0 {
			class = "shadowsocks"
		}
		all = append(all, verdict(fmt.Sprintf("10.0.0.%d:4000", i+1), "192.0.2.7:8388", class, "tunnels"))
	}
	f.keep(t, all...)
	s := serve(t, Config{Daemon: daemonOf(t, f)})
	ids := func(query string) (ids []event.ID, more bool) {
		answer, text := request(t, "GET", s.URL()+"api/history?"+query, "")
		var found Found
		if err := json.Unmarshal([]byte(text), &found); err != nil || answer.StatusCode != 200 {
			t.Fatalf("%s: %d %s: %v", query, answer.StatusCode, text, err)
		}
		for _, line := range found.Events {
			e, err := event.Decode(line)
			if err != nil {
				t.Fatal(err)
			}
			ids = append(ids, event.IDOf(e))
		}
		return ids, found.More
	}
	for query, want := range map[string]struct {
		ids  []event.ID
		more bool
	}{
		"limit=2":               {[]event.ID{30, 29}, true},
		"detected=true&limit=3": {[]event.ID{28, 25, 22}, true},
		"detected=true&limit=3&before=" + event.ID(5).String(): {[]event.ID{4, 1}, false},
		"cidr=10.0.0.7":              {[]event.ID{7}, false},
		"class=v2ray":                {nil, false},
		"id=" + event.ID(9).String(): {[]event.ID{9}, false},
	} {
		if got, more := ids(query); !slices.Equal(got, want.ids) || more != want.more {
			t.Errorf("%s: %v, %v, want %v", query, got, more, want)
		}
	}
	if answer, text := request(t, "GET", s.URL()+"api/history?id="+event.ID(99).String(), ""); answer.StatusCode != 404 {
		t.Errorf("%d %s", answer.StatusCode, text)
	}
}

// What a verdict depends on is made once, out of the capture that is kept, and is said not to be
// known where there is none.
func TestVerdictsAreExplained(t *testing.T) {
	f := newFake(t)
	f.keep(t, verdict("10.0.0.1:4000", "192.0.2.7:8388", "shadowsocks", "tunnels"), verdict("10.0.0.2:4000", "192.0.2.7:8388", "background", ""))
	daemon := daemonOf(t, f)
	s, without := serve(t, Config{Daemon: daemon, Explain: f.explained}), serve(t, Config{Daemon: daemon})
	for range 3 {
		answer, text := request(t, "GET", s.URL()+"api/explain?id="+event.ID(1).String(), "")
		if answer.StatusCode != 200 || !strings.Contains(text, `"about":"shadowsocks"`) {
			t.Fatalf("%d %s", answer.StatusCode, text)
		}
	}
	if f.explanations != 1 {
		t.Errorf("it was made %d times", f.explanations)
	}
	for _, tt := range []struct {
		s    *Server
		id   string
		code int
		want string
	}{
		{s, event.ID(2).String(), 404, ""}, // it passed
		{s, event.ID(99).String(), 404, "not in the history"},
		{s, "", 400, "id"},
		{s, "../1", 400, "id"},
		{without, event.ID(1).String(), 404, "no model"},
	} {
		if answer, text := request(t, "GET", tt.s.URL()+"api/explain?id="+tt.id, ""); answer.StatusCode != tt.code || !strings.Contains(text, tt.want) {
			t.Errorf("%q: %d %s, want %d %s", tt.id, answer.StatusCode, text, tt.code, tt.want)
		}
	}
}

// Many pages cost the daemon no more than one.
func TestPagesShareWhatTheDaemonTells(t *testing.T) {
	f := newFake(t)
	s := serve(t, Config{Daemon: daemonOf(t, f)})
	begin := time.Now()
	for range 20 {
		if answer, text := request(t, "GET", s.URL()+"api/live", ""); answer.StatusCode != 200 {
			t.Fatal(text)
		}
	}
	if most := 2 + int(time.Since(begin)/keepSnapshot); f.reports() > most {
		t.Errorf("the daemon was asked %d times, at most %d are needed", f.reports(), most)
	}
}

// stream begins to follow the events.
func stream(t *testing.T, s *Server) *bufio.Scanner {
	t.Helper()
	r, _ := http.NewRequestWithContext(within(t), "GET", s.URL()+"api/events", nil)
	answer, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = answer.Body.Close() })
	if answer.StatusCode != 200 {
		t.Fatalf("%d", answer.StatusCode)
	}
	lines := bufio.NewScanner(answer.Body)
	lines.Buffer(nil, 1<<20)
	return lines
}

// received is a batch as it is read.
type received struct {
	Events  []json.RawMessage `json:"events"`
	LeftOut uint64            `json:"left_out"`
	Error   string            `json:"error"`
}

func next(t *testing.T, lines *bufio.Scanner) (b received) {
	t.Helper()
	if !lines.Scan() {
		t.Fatalf("the stream ended: %v", lines.Err())
	}
	if err := json.Unmarshal(lines.Bytes(), &b); err != nil {
		t.Fatalf("%s: %v", lines.Bytes(), err)
	}
	return b
}

// followed waits until the daemon's events are followed.
func followed(t *testing.T, f *fake, lines *bufio.Scanner) {
	t.Helper()
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		for {
			f.log.Add(&event.ModeChanged{Time: time.Now(), Interface: "eth0", Mode: "monitor"})
			select {
			case <-stop:
				return
			case <-time.After(20 * time.Millisecond):
			}
		}
	}()
	for len(next(t, lines).Events) == 0 {
	}
	close(stop)
	<-stopped
}

// A flood of events is thinned out: what was detected is shown, and the rest is counted.
func TestFloodOfEventsIsThinnedOut(t *testing.T) {
	f := newFake(t)
	s := serve(t, Config{Daemon: daemonOf(t, f)})
	lines := stream(t, s)
	followed(t, f, lines)
	const flood = 3000
	for i := range flood {
		f.log.Add(verdict(fmt.Sprintf("10.0.0.1:%d", i+1), "192.0.2.1:443", "background", ""))
	}
	f.log.Add(verdict("10.0.0.9:9", "192.0.2.9:8388", "shadowsocks", "tunnels"))
	passes, detected := uint64(0), 0
	for passes+uint64(detected) < flood+1 {
		b := next(t, lines)
		if len(b.Events) > maxBatch {
			t.Fatalf("%d events in a batch", len(b.Events))
		}
		passes += b.LeftOut
		for _, text := range b.Events {
			switch e, err := event.Decode(text); v := e.(type) {
			case *event.Verdict:
				if v.Detected {
					detected++
				} else {
					passes++
				}
			default:
				if err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	if detected != 1 {
		t.Errorf("%d detected flows were shown", detected)
	}
}

// However many pages follow, the daemon gives one stream, and none when the last is gone.
func TestStreamsAreFew(t *testing.T) {
	f := newFake(t)
	s := serve(t, Config{Daemon: daemonOf(t, f)})
	var all []*bufio.Scanner
	for range maxStreams {
		all = append(all, stream(t, s))
	}
	if answer, text := request(t, "GET", s.URL()+"api/events", ""); answer.StatusCode != 503 || !strings.Contains(text, "at most 16") {
		t.Errorf("%d %s", answer.StatusCode, text)
	}
	followed(t, f, all[0])
	f.log.Add(verdict("10.0.0.9:9", "192.0.2.9:8388", "shadowsocks", "tunnels"))
	for _, lines := range all {
		for !slices.ContainsFunc(next(t, lines).Events, func(e json.RawMessage) bool { return bytes.Contains(e, []byte("10.0.0.9:9")) }) {
		}
	}
}

// A page learns that there is no daemon, and goes on when there is one again.
func TestPageOutlivesTheDaemon(t *testing.T) {
	path := filepath.Join(t.TempDir(), "control.sock")
	client := control.NewClient(path)
	t.Cleanup(client.Close)
	s := serve(t, Config{Daemon: client})
	answer, text := request(t, "GET", s.URL()+"api/live", "")
	if answer.StatusCode != 503 || !strings.Contains(text, "no daemon listens at "+path) {
		t.Errorf("%d %s", answer.StatusCode, text)
	}
	lines := stream(t, s)
	for next(t, lines).Error == "" {
	}
	begin := func() (*fake, *control.Server) {
		f := newFake(t)
		d, err := control.Listen(control.Config{Path: path, Group: -1})
		if err != nil {
			t.Fatal(err)
		}
		d.Serve(f)
		t.Cleanup(d.Close)
		return f, d
	}
	f, d := begin()
	followed(t, f, lines)
	d.Close()
	for next(t, lines).Error == "" {
	}
	f, _ = begin()
	followed(t, f, lines)
	if answer, text := request(t, "GET", s.URL()+"api/live", ""); answer.StatusCode != 200 {
		t.Errorf("%d %s", answer.StatusCode, text)
	}
}

// Who connects and says nothing takes a connection, of which there are so many, until its
// time is over.
func TestConnectionsAreFew(t *testing.T) {
	s := serve(t, Config{Daemon: daemonOf(t, newFake(t))})
	begin := time.Now()
	dial := func() net.Conn {
		c, err := net.Dial("tcp", s.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
		return c
	}
	var idle []net.Conn
	for range maxConns {
		idle = append(idle, dial())
	}
	last := dial()
	if _, err := fmt.Fprintf(last, "GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	answers := bufio.NewReader(last)
	_ = last.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
	if line, err := answers.ReadString('\n'); err == nil && time.Since(begin) < headerWithin {
		t.Errorf("one too many is answered: %s", line)
	}
	_ = idle[0].Close()
	_ = last.SetReadDeadline(time.Now().Add(time.Minute))
	if line, err := answers.ReadString('\n'); err != nil || !strings.Contains(line, "200 OK") {
		t.Errorf("%q, %v", line, err)
	}
}

// A browser that follows does not hold up the end.
func TestCloseEndsStreams(t *testing.T) {
	s, err := Listen(Config{Address: "127.0.0.1:0", Daemon: daemonOf(t, newFake(t))})
	if err != nil {
		t.Fatal(err)
	}
	s.Serve()
	lines := stream(t, s)
	next(t, lines)
	s.Close()
	for lines.Scan() {
	}
	if _, err := net.Dial("tcp", s.Addr().String()); err == nil {
		t.Error("it still listens")
	}
}
