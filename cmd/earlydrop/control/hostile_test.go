// SPDX-License-Identifier: Apache-2.0

package control

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/earlydrop/earlydrop/loader/flow"
)

// raw sends what it is given, and returns all that comes back. A server that closes early
// is what a hostile client gets.
func raw(t *testing.T, path, text string) string {
	t.Helper()
	c, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(time.Minute))
	_, _ = io.WriteString(c, text) // it may be closed before it has read all
	_ = c.(*net.UnixConn).CloseWrite()
	answer, _ := io.ReadAll(c)
	return string(answer)
}

// Each is answered with one JSON error that says what is wrong, changes nothing, and the
// next client is served.
func TestHostileRequests(t *testing.T) {
	f := newFake(t)
	s, c := serve(t, f)
	kept := key("10.0.0.1:1", "10.0.0.2:2", flow.TCP)
	if _, err := c.Block(within(t), "eth0", kept, time.Hour); err != nil {
		t.Fatal(err)
	}
	get := func(path string) string { return "GET " + path + " HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n" }
	with := func(method, path, body string) string {
		return fmt.Sprintf("%s %s HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s", method, path, len(body), body)
	}
	post := func(body string) string { return with("POST", "/v1/blocks", body) }
	const good = `"proto":"tcp","ends":["10.0.0.3:1","10.0.0.4:2"]`
	for _, tt := range []struct {
		name, request string
		code          int
		want          string // in the error
	}{
		{"no HTTP", "EHLO earlydrop\r\n\r\n", 400, "no HTTP"},
		{"binary", "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400, "no HTTP"},
		{"HTTP/2", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 404, "here"},
		{"HTTP/9.9", "GET /v1/status HTTP/9.9\r\nHost: x\r\n\r\n", 505, "HTTP/1.1"},
		{"no host", "GET /v1/status HTTP/1.1\r\n\r\n", 400, "no HTTP"},
		{"two hosts", "GET /v1/status HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400, "no HTTP"},
		{"a header that is none", "GET /v1/status HTTP/1.1\r\nHost: x\r\nno colon\r\n\r\n", 400, "no HTTP"},
		{"two lengths", "POST /v1/blocks HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello", 400, "no HTTP"},
		{"negative length", "POST /v1/blocks HTTP/1.1\r\nHost: x\r\nContent-Length: -5\r\n\r\nhello", 400, "no HTTP"},
		{"length and chunks", "POST /v1/blocks HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", 400, ""},
		{"unknown encoding", "POST /v1/blocks HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip\r\n\r\nhello", 501, "encoding"},
		{"large header", "GET /v1/status HTTP/1.1\r\nHost: x\r\nX: " + strings.Repeat("a", 64<<10) + "\r\n\r\n", 431, "too large"},
		{"long path", get("/v1/" + strings.Repeat("a", 64<<10)), 431, "too large"},
		{"many headers", "GET /v1/status HTTP/1.1\r\nHost: x\r\n" + strings.Repeat("X: a\r\n", 20_000) + "\r\n", 431, "too large"},
		{"expectation", "GET /v1/status HTTP/1.1\r\nHost: x\r\nExpect: a miracle\r\nConnection: close\r\n\r\n", 417, "expects"},
		{"other path", get("/"), 404, `no \"/\"`},
		{"other version", get("/v2/status"), 404, "/v2/status"},
		{"out of it", get("/v1/../../../etc/passwd"), 404, "etc/passwd"},
		{"encoded path", get("/v1/blocks%2f..%2f..%00"), 404, "here"},
		{"other method", with("PATCH", "/v1/blocks", ""), 405, "GET, POST, DELETE"},
		{"method of its own", with("DETACH", "/v1/status", ""), 405, "GET"},
		{"connect", "CONNECT 192.0.2.1:80 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", 404, ""},
		{"body of a get", with("GET", "/v1/status", "{}"), 400, "no body"},
		{"body of a delete", with("DELETE", "/v1/blocks?all=true", "{}"), 400, "no body"},
		{"unknown parameter", get("/v1/blocks?clas=http"), 400, "did you mean class?"},
		{"repeated parameter", get("/v1/blocks?class=http&class=ssh"), 400, "2 times"},
		{"empty parameter", with("DELETE", "/v1/blocks?class=", ""), 400, "says nothing"},
		{"bad escape", get("/v1/blocks?class=%zz"), 400, "query"},
		{"line end in a parameter", with("DELETE", "/v1/blocks?rule=a%0a2026-11-25%20forged", ""), 400, "rule"},
		{"bad sort", get("/v1/blocks?sort=colour"), 400, "colour"},
		{"bad limit", get("/v1/blocks?limit=-1"), 400, "limit"},
		{"pairs, one end", get("/v1/pairs?initiator=10.0.0.1"), 400, "give both"},
		{"pairs, a wide initiator", get("/v1/pairs?initiator=10.0.0.0/8&server=192.0.2.7:443"), 400, "neither an IPv4 address nor"},
		{"pairs, no port", get("/v1/pairs?initiator=10.0.0.1&server=192.0.2.7"), 400, "no endpoint"},
		{"pairs, port 0", get("/v1/pairs?initiator=10.0.0.1&server=192.0.2.7:0"), 400, "no address and port"},
		{"pairs, a VLAN of nothing", get("/v1/pairs?vlan=7"), 400, "belong to a pair"},
		{"pairs, too high a VLAN", get("/v1/pairs?initiator=10.0.0.1&server=192.0.2.7:443&vlan=4096"), 400, "4095"},
		{"pairs, host bits", get("/v1/pairs?cidr=10.0.0.1/8"), 400, "10.0.0.0/8"},
		{"pairs, unknown", get("/v1/pairs?ends=1"), 400, "unknown parameter"},
		{"pairs, all of them, unsaid", with("DELETE", "/v1/pairs", ""), 400, "every pair"},
		{"pairs, all and some", with("DELETE", "/v1/pairs?all=true&rule=a", ""), 400, "exclude"},
		{"pairs, of an interface", with("DELETE", "/v1/pairs?interface=eth0", ""), 400, "all interfaces"},
		{"pairs, not treated", with("DELETE", "/v1/pairs?initiator=10.0.0.9&server=192.0.2.7:443", ""), 404, "not treated: tcp 10.0.0.9"},
		{"why, of nobody", get("/v1/why"), 400, "of is missing"},
		{"why, of nothing", get("/v1/why?of="), 400, "of"},
		{"why, of a name", get("/v1/why?of=example.org"), 400, "neither an address nor a network"},
		{"why, of port 0", get("/v1/why?of=10.0.0.1:0"), 400, "no port 0"},
		{"why, of too high a port", get("/v1/why?of=10.0.0.1:65536"), 400, "no port"},
		{"why, of a zone", get("/v1/why?of=fe80::1%25eth0"), 400, "zone"},
		{"why, of a zone with a port", get("/v1/why?of=[fe80::1%25eth0]:443"), 400, "zone"},
		{"why, of host bits", get("/v1/why?of=10.0.0.1/8"), 400, "10.0.0.0/8"},
		{"why, of mixed families", get("/v1/why?of=::ffff:10.0.0.0/90"), 400, "mixes"},
		{"why, half a bracket", get("/v1/why?of=[::1"), 400, "neither an address nor a network"},
		{"why, limit 0", get("/v1/why?of=10.0.0.1&limit=0"), 400, "1 to 1000"},
		{"why, too many", get("/v1/why?of=10.0.0.1&limit=1001"), 400, "1 to 1000"},
		{"why, changed", with("POST", "/v1/why", "{}"), 405, "GET"},
		{"pairs, no limit", get("/v1/pairs?limit=0"), 400, "limit"},
		{"pairs, bad sort", get("/v1/pairs?sort=flow"), 400, "can't sort by"},
		{"pairs are not forgotten by a list's order", with("DELETE", "/v1/pairs?sort=pair", ""), 400, "sort"},
		{"no limit", get("/v1/blocks?limit=0"), 400, "limit"},
		{"huge limit", get("/v1/blocks?limit=99999999999999999999"), 400, "limit"},
		{"bad network", get("/v1/blocks?cidr=10.0.0.0/99"), 400, "10.0.0.0/99"},
		{"network with host bits", with("DELETE", "/v1/blocks?cidr=10.0.0.1/8", ""), 400, "is 10.0.0.0/8 meant?"},
		{"all of IPv4 as IPv6", with("DELETE", "/v1/blocks?cidr=::ffff:0:0/90", ""), 400, "mixes"},
		{"all without saying so", with("DELETE", "/v1/blocks", ""), 400, "all=true"},
		{"all of an interface without saying so", with("DELETE", "/v1/blocks?interface=eth0", ""), 400, "all=true"},
		{"all and one", with("DELETE", "/v1/blocks?all=true&class=http", ""), 400, "exclude"},
		{"all of a sort", with("DELETE", "/v1/blocks?all=yes", ""), 400, "true"},
		{"one end", with("DELETE", "/v1/blocks?proto=tcp&ends=10.0.0.1:1", ""), 400, "two endpoints"},
		{"an end that is none", with("DELETE", "/v1/blocks?proto=tcp&ends=10.0.0.1:1,10.0.0.2", ""), 400, "no endpoint"},
		{"flow without protocol", with("DELETE", "/v1/blocks?ends=10.0.0.1:1,10.0.0.2:2", ""), 400, "protocol"},
		{"tag without flow", with("DELETE", "/v1/blocks?vlan=5", ""), 400, "vlan"},
		{"tag too large", with("DELETE", "/v1/blocks?proto=tcp&vlan=4096&ends=10.0.0.1:1,10.0.0.2:2", ""), 400, "4095"},
		{"body too large", post(`{"interface":"` + strings.Repeat("a", 1<<20) + `"}`), 413, "too large"},
		{"no body", post(""), 400, "body"},
		{"no JSON", post("ttl=10m"), 400, "body"},
		{"JSON cut short", post(`{"interface":"eth0",`), 400, "body"},
		{"deep JSON", post(strings.Repeat("[", 15_000)), 400, "body"},
		{"two objects", post(`{` + good + `,"interface":"eth0","ttl":"1m"}{}`), 400, "follows"},
		{"unknown field", post(`{` + good + `,"interface":"eth0","ttl":"1m","time":1}`), 400, "time"},
		{"wrong type", post(`{` + good + `,"interface":7,"ttl":"1m"}`), 400, "interface"},
		{"no time", post(`{` + good + `,"interface":"eth0"}`), 400, "ttl"},
		{"time as number", post(`{` + good + `,"interface":"eth0","ttl":60}`), 400, "ttl"},
		{"negative time", post(`{` + good + `,"interface":"eth0","ttl":"-1m"}`), 400, "-1m"},
		{"endless time", post(`{` + good + `,"interface":"eth0","ttl":"99999999999w"}`), 400, "99999999999w"},
		{"which interface?", post(`{` + good + `,"ttl":"1m"}`), 400, "interface is missing"},
		{"no such interface", post(`{` + good + `,"ttl":"1m","interface":"eth7"}`), 404, "eth7"},
		{"an interface with a line end", post(`{` + good + `,"ttl":"1m","interface":"a\nb"}`), 400, `a\\nb`},
		{"unknown protocol", post(`{"proto":"icmp","ends":["10.0.0.3:1","10.0.0.4:2"],"ttl":"1m","interface":"eth0"}`), 400, "icmp"},
		{"port 0", post(`{"proto":"tcp","ends":["10.0.0.3:0","10.0.0.4:2"],"ttl":"1m","interface":"eth0"}`), 400, "port 0"},
		{"no ends", post(`{"proto":"tcp","ttl":"1m","interface":"eth0"}`), 400, "two ends"},
		{"a zone", post(`{"proto":"tcp","ends":["[fe80::1%eth0]:1","[fe80::2]:2"],"ttl":"1m","interface":"eth0"}`), 400, "zone"},
		{"two families", post(`{"proto":"tcp","ends":["10.0.0.3:1","[fe80::2]:2"],"ttl":"1m","interface":"eth0"}`), 400, "IPv4 or IPv6"},
		{"unknown mode", with("POST", "/v1/mode", `{"mode":"off"}`), 400, "off"},
		{"no mode", with("POST", "/v1/mode", `{}`), 400, "mode"},
		{"mode of no interface", with("POST", "/v1/mode", `{"mode":"monitor","interface":"eth7"}`), 404, "eth7"},
		{"mode by GET", get("/v1/mode?mode=monitor"), 405, "POST"},
		{"body of a reload", with("POST", "/v1/reload", `{"policy":"/etc/passwd"}`), 400, "no body"},
		{"reload by GET", get("/v1/reload"), 405, "POST"},
		{"no model", with("POST", "/v1/model", `{}`), 400, "file"},
		{"relative model", with("POST", "/v1/model", `{"file":"../m.onnx"}`), 400, "absolute"},
		{"unknown kind of event", get("/v1/events?event=verdcit"), 400, "did you mean verdict?"},
		{"unknown filter", get("/v1/events?decison=drop"), 400, "did you mean decision?"},
		{"unknown decision", get("/v1/events?decision=quit"), 400, "pass, drop"},
		{"empty value", get("/v1/events?class=http,,ssh"), 400, "class"},
	} {
		answer := raw(t, s.Path(), tt.request)
		r, err := http.ReadResponse(bufio.NewReader(strings.NewReader(answer)), nil)
		if err != nil {
			t.Errorf("%s: %q: %v", tt.name, answer, err)
			continue
		}
		body, err := io.ReadAll(r.Body)
		var told map[string]any
		switch {
		case err != nil || json.Unmarshal(body, &told) != nil || len(told) != 1 || told["error"] == "" || bytes.Count(body, []byte("\n")) != 1:
			t.Errorf("%s: the body is %q, %v", tt.name, body, err)
		case r.StatusCode != tt.code || !strings.Contains(string(body), tt.want) || r.Header.Get("Content-Type") != "application/json":
			t.Errorf("%s: %d %s, want %d %s", tt.name, r.StatusCode, body, tt.code, tt.want)
		}
	}
	if b, err := c.Blocks(within(t), BlockFilter{}, "", 0); err != nil || b.Matched != 1 || KeyOf(&b.Blocks[0]) != kept {
		t.Errorf("something was changed: %+v, %v", b, err)
	}
}

// Who connects and says nothing takes what its user may have, and no more.
func TestConnectionsAreFew(t *testing.T) {
	s, c := serve(t, newFake(t))
	var held []net.Conn
	defer func() {
		for _, h := range held {
			_ = h.Close()
		}
	}()
	for range maxConns {
		h, err := net.Dial("unix", s.Path())
		if err != nil {
			t.Fatal(err)
		}
		held = append(held, h)
	}
	var told *Error
	if _, err := c.Status(within(t)); !errors.As(err, &told) || told.Status != http.StatusServiceUnavailable {
		t.Errorf("one too many: %v", err)
	}
	// They are closed when they have said nothing for headerWithin.
	for begin := time.Now(); ; time.Sleep(50 * time.Millisecond) {
		_, err := c.Status(within(t))
		if err == nil {
			break
		}
		if time.Since(begin) > headerWithin+time.Minute {
			t.Fatalf("still: %v", err)
		}
	}
}

const actAs = "EARLYDROP_TEST_ACT_AS"

// TestMain is also what runs as another user: it asks for things, and prints what comes of each.
func TestMain(m *testing.M) {
	path := os.Getenv(actAs)
	if path == "" {
		os.Exit(m.Run())
	}
	for _, request := range []string{
		"GET /v1/status", "GET /v1/blocks", "POST /v1/blocks", "DELETE /v1/blocks?all=true", "GET /v1/events?event=ended", "POST /v1/mode", "POST /v1/reload", "POST /v1/model",
	} {
		method, at, _ := strings.Cut(request, " ")
		var body io.Reader
		switch request {
		case "POST /v1/blocks":
			body = strings.NewReader(`{"interface":"eth0","proto":"tcp","ends":["10.0.0.3:1","10.0.0.4:2"],"ttl":"1m"}`)
		case "POST /v1/mode":
			body = strings.NewReader(`{"mode":"monitor"}`)
		case "POST /v1/model":
			body = strings.NewReader(`{"file":"/m.onnx"}`)
		}
		r, err := http.NewRequest(method, "http://x"+at, body)
		if err != nil {
			panic(err)
		}
		answer, err := NewClient(path).http.Do(r)
		switch {
		case errors.Is(err, unix.EACCES):
			fmt.Println("no way in")
		case err != nil:
			fmt.Println(err)
		default:
			fmt.Println(answer.StatusCode)
			_ = answer.Body.Close()
		}
	}
}

// askAs has a process of a user ask for things, and returns what came of each.
func askAs(t *testing.T, path string, uid, gid uint32, groups ...uint32) string {
	t.Helper()
	cmd := exec.Command("/proc/self/exe") // whose folder others can't enter
	cmd.Env = append(os.Environ(), actAs+"="+path)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: gid, Groups: groups}}
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return strings.Join(strings.Fields(strings.ReplaceAll(string(out), "no way in", "-")), " ")
}

func TestOnlyWhoHasTheRightIsServed(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root, to be others")
	}
	dir, err := os.MkdirTemp("", "earlydrop-control-") // that others can enter
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	many := make([]uint32, 300)
	for i := range many {
		many[i] = uint32(60_000 + i)
	}
	const nobody, all, edit, none, closed = 65534, "200 200 200 200 200 200 200 200", "200 200 200 200 200 403 403 403", "403 403 403 403 403 403 403 403", "- - - - - - - -"
	for i, tt := range []struct {
		name     string
		group    int         // of the socket
		mode     os.FileMode // of the socket, if it was changed
		uid, gid uint32
		groups   []uint32
		want     string
	}{
		{"root", testGroup, 0, 0, 0, nil, all},
		{"root, where there is no group", -1, 0, 0, 0, nil, all},
		{"root in no group", testGroup, 0, 0, nobody, nil, all},
		{"a member by its first group", testGroup, 0, nobody, testGroup, nil, edit},
		{"a member by another group", testGroup, 0, nobody, nobody, []uint32{100, testGroup}, edit},
		{"a member of many groups", testGroup, 0, nobody, nobody, append(many, testGroup), edit},
		{"nobody", testGroup, 0, nobody, nobody, nil, closed},
		{"nobody, where there is no group", -1, 0, nobody, nobody, nil, closed},
		{"root's group", testGroup, 0, nobody, 0, []uint32{0}, closed},
		// The socket's mode is not what it hangs on.
		{"nobody at an open socket", testGroup, 0o666, nobody, nobody, nil, none},
		{"a member of others at an open socket", testGroup, 0o666, nobody, 100, many, none},
		{"nobody at an open socket without a group", -1, 0o666, nobody, nobody, []uint32{testGroup}, none},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := newFake(t)
			path := filepath.Join(dir, strconv.Itoa(i)+".sock")
			s := listenFor(t, f, Config{Path: path, Group: tt.group})
			defer s.Close()
			if tt.mode != 0 {
				if err := os.Chmod(path, tt.mode); err != nil {
					t.Fatal(err)
				}
			}
			if got := askAs(t, path, tt.uid, tt.gid, tt.groups...); got != tt.want {
				t.Errorf("got %s, want %s", got, tt.want)
			}
			refused := 0
			for _, a := range f.audits(t) {
				if a.UID != tt.uid || a.GID != tt.gid || a.PID == 0 {
					t.Errorf("audited as %+v", a)
				}
				if a.Outcome == "refused" {
					refused++
				}
			}
			if want := map[string]int{none: 5, edit: 3}[tt.want]; refused != want {
				t.Errorf("%d refusals were audited, want %d", refused, want)
			}
		})
	}
}
