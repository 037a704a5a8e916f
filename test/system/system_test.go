// SPDX-License-Identifier: Apache-2.0

//go:build booted

package system

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// The machine routes between a client and a server, each in a network namespace of its
// own. It is attached to the client's side.
const (
	inside = "inside0"
	config = "interface: [" + inside + "]\nwait: true\nmode: enforce\npolicy: /etc/earlydrop/policy.yaml\nevents: /var/log/earlydrop/events.jsonl\nquiet: true\njournal: true\npersist: true\n"
	page   = "127.0.0.1:9480"
)

var (
	client = netip.MustParseAddr("10.1.0.2")
	server = netip.MustParseAddr("10.2.0.2")
)

// run returns what a command prints.
func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v: %s", name, strings.Join(args, " "), err, out)
	}
	return strings.TrimSpace(string(out))
}

// until waits for something to become so.
func until(t *testing.T, what string, is func() bool) {
	t.Helper()
	for deadline := time.Now().Add(5 * time.Minute); !is(); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("it took too long until %s\n%s", what, journal())
		}
	}
}

func journal() string {
	out, _ := exec.Command("journalctl", "-q", "--no-pager", "-n", "40", "-u", "earlydrop", "-u", "earlydrop-web").CombinedOutput()
	return string(out)
}

// property returns one of a unit's properties.
func property(t *testing.T, unit, name string) string {
	t.Helper()
	return run(t, "systemctl", "show", "--value", "-p", name, unit)
}

// entries returns what the journal has, as field and value.
func entries(t *testing.T, matches ...string) (all []map[string]any) {
	t.Helper()
	for line := range strings.Lines(run(t, "journalctl", append([]string{"-q", "--no-pager", "--all", "-o", "json"}, matches...)...)) {
		var e map[string]any
		if err := json.Unmarshal([]byte(line), &e); err != nil {
			t.Fatalf("%v: %s", err, line)
		}
		all = append(all, e)
	}
	return all
}

// ask sends a request to the page, and returns the answer's code and text; 0 where none came.
func ask(method, path string) (code int, text string) {
	r, err := http.NewRequest(method, "http://"+page+path, strings.NewReader(""))
	if err != nil {
		return 0, err.Error()
	}
	r.Header.Set("Content-Type", "application/json")
	c := http.Client{Timeout: time.Minute, Transport: &http.Transport{DisableKeepAlives: true}}
	answer, err := c.Do(r)
	if err != nil {
		return 0, err.Error()
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(answer.Body)
	if err != nil {
		return 0, err.Error()
	}
	return answer.StatusCode, string(body)
}

// showsDaemon waits for the page to tell of the daemon.
func showsDaemon(t *testing.T, pid int) {
	t.Helper()
	until(t, "the page tells of the daemon", func() bool {
		code, text := ask("GET", "/api/live")
		return code == http.StatusOK && strings.Contains(text, `"interface":"`+inside+`"`) && strings.Contains(text, fmt.Sprintf(`"pid":%d,`, pid))
	})
}

// inNamespace calls f on a thread that is in a namespace.
func inNamespace(t *testing.T, name string, f func() error) {
	t.Helper()
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // for good: the thread ends with the goroutine
		ns, err := netns.GetFromName(name)
		if err == nil {
			defer ns.Close()
			if err = netns.Set(ns); err == nil {
				err = f()
			}
		}
		done <- err
	}()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

// A network is what a test sends through the machine: datagrams from the client to the
// server, on a flow that goes on all the time, and TCP connections.
type network struct {
	got  atomic.Int64 // datagrams that arrived
	sent atomic.Int64
	flow []string // the flow of datagrams, as "earlydrop blocked" has it
}

func newNetwork(t *testing.T) *network {
	t.Helper()
	for _, side := range []struct{ ns, iface, address, gateway string }{
		{"client", inside, client.String(), "10.1.0.1"},
		{"server", "outside0", server.String(), "10.2.0.1"},
	} {
		run(t, "ip", "netns", "add", side.ns)
		run(t, "ip", "link", "add", side.iface, "type", "veth", "peer", "name", "eth0", "netns", side.ns)
		run(t, "ip", "address", "add", side.gateway+"/24", "dev", side.iface)
		run(t, "ip", "link", "set", side.iface, "up")
		for _, args := range []string{"link set lo up", "address add " + side.address + "/24 dev eth0", "link set eth0 up", "route add default via " + side.gateway} {
			run(t, "ip", append([]string{"-n", side.ns}, strings.Fields(args)...)...)
		}
	}
	if err := os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0o644); err != nil {
		t.Fatal(err)
	}
	n := new(network)
	var receive, send net.Conn
	inNamespace(t, "server", func() (err error) {
		receive, err = net.ListenUDP("udp4", &net.UDPAddr{IP: server.AsSlice(), Port: 7000})
		return err
	})
	inNamespace(t, "client", func() (err error) {
		send, err = net.DialUDP("udp4", &net.UDPAddr{IP: client.AsSlice(), Port: 40000}, &net.UDPAddr{IP: server.AsSlice(), Port: 7000})
		return err
	})
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(func() {
		cancel()
		_ = receive.Close()
		_ = send.Close()
		for _, ns := range []string{"client", "server"} {
			_ = exec.Command("ip", "netns", "del", ns).Run()
		}
	})
	go func() {
		for b := make([]byte, 100); ; n.got.Add(1) {
			if _, err := receive.Read(b); err != nil {
				return
			}
		}
	}()
	go func() {
		for tick := time.NewTicker(5 * time.Millisecond); ctx.Err() == nil; <-tick.C {
			if _, err := send.Write([]byte("datagram")); err == nil {
				n.sent.Add(1)
			}
		}
	}()
	n.flow = []string{"udp", netip.AddrPortFrom(client, 40000).String(), netip.AddrPortFrom(server, 7000).String()}
	return n
}

// connect opens a TCP connection from the client to the server, sends so much that it gets a
// verdict, and returns its ends.
func (n *network) connect(t *testing.T) (from, to netip.AddrPort) {
	t.Helper()
	var l net.Listener
	inNamespace(t, "server", func() (err error) {
		l, err = net.Listen("tcp4", netip.AddrPortFrom(server, 7001).String())
		return err
	})
	defer l.Close()
	go func() {
		if c, err := l.Accept(); err == nil {
			_, _ = io.Copy(io.Discard, c)
			_ = c.Close()
		}
	}()
	inNamespace(t, "client", func() error {
		c, err := net.Dial("tcp4", l.Addr().String())
		if err != nil {
			return err
		}
		defer c.Close()
		from, to = c.LocalAddr().(*net.TCPAddr).AddrPort(), c.RemoteAddr().(*net.TCPAddr).AddrPort()
		_, err = c.Write(bytes.Repeat([]byte("a line of text\n"), 200))
		return err
	})
	return from, to
}

// passes waits for the next datagram to arrive.
func (n *network) passes(t *testing.T) {
	t.Helper()
	before := n.got.Load()
	until(t, "datagrams arrive", func() bool { return n.got.Load() > before })
}

// blocked calls f and fails when a datagram arrives meanwhile, or none is sent.
func (n *network) blocked(t *testing.T, f func()) {
	t.Helper()
	// What is on its way arrives before the second one that is sent from now on.
	sent := n.sent.Load()
	until(t, "datagrams are sent", func() bool { return n.sent.Load() > sent+2 })
	got, sent := n.got.Load(), n.sent.Load()
	f()
	until(t, "datagrams are sent", func() bool { return n.sent.Load() > sent+10 })
	if more := n.got.Load() - got; more != 0 {
		t.Errorf("%d datagrams of a blocked flow arrived (%d were sent)\n%s", more, n.sent.Load()-sent, journal())
	}
}

// version returns the installed program's.
func version(t *testing.T) string { return strings.Fields(run(t, "earlydrop", "version"))[1] }

// mainPID returns the daemon's process, 0 if there is none.
func mainPID(t *testing.T) int {
	t.Helper()
	pid, err := strconv.Atoi(property(t, "earlydrop", "MainPID"))
	if err != nil {
		t.Fatal(err)
	}
	return pid
}

func active(t *testing.T) bool { return property(t, "earlydrop", "ActiveState") == "active" }

// readsJSON fails unless a file has lines, each of them a JSON object.
func readsJSON(t *testing.T, file string) {
	t.Helper()
	data, err := os.ReadFile(file)
	if err != nil || len(data) == 0 {
		t.Errorf("%s: %d bytes, %v", file, len(data), err)
	}
	for line := range bytes.Lines(data) {
		if !json.Valid(line) {
			t.Errorf("%s: line %q", file, line)
		}
	}
}

// TestPackage goes through a package's life in the order in which an operator does.
func TestPackage(t *testing.T) {
	n := newNetwork(t)
	n.passes(t)
	step := func(name string, f func(t *testing.T)) {
		if !t.Failed() {
			t.Run(name, f)
		}
	}

	step("installs, and starts nothing before an interface is named", func(t *testing.T) {
		run(t, "dpkg", "-i", "/mnt/older.deb")
		if v := version(t); v != "v0.0.1" {
			t.Errorf("version %s", v)
		}
		if active(t) {
			t.Error("it runs")
		}
		run(t, "getent", "group", "earlydrop")
		for _, file := range []string{"/usr/share/man/man8/earlydrop.8.gz", "/usr/share/bash-completion/completions/earlydrop"} {
			if _, err := os.Stat(file); err != nil {
				t.Error(err)
			}
		}
		run(t, "earlydrop", "policy", "check", "/etc/earlydrop/policy.yaml")
		if err := os.WriteFile("/etc/earlydrop/earlydrop.yaml", []byte(config), 0o644); err != nil {
			t.Fatal(err)
		}
	})
	step("is ready when it is attached", func(t *testing.T) {
		defer func() {
			if t.Failed() {
				t.Log(journal())
			}
		}()
		run(t, "systemctl", "enable", "--now", "earlydrop")
		// Root's shell sees the unit's pins.
		if out := run(t, "earlydrop", "status", "-i", inside); !strings.Contains(out, "running, pid "+strconv.Itoa(mainPID(t))) {
			t.Errorf("status: %s\n%s", out, journal())
		}
		n.passes(t)
	})
	step("runs with the capabilities that it needs and no others", func(t *testing.T) {
		// Members of the group ask it.
		if info, err := os.Stat("/run/earlydrop/control.sock"); err != nil || info.Mode().Perm() != 0o660 {
			t.Errorf("control socket: %v, %v", info, err)
		}
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", mainPID(t)))
		if err != nil {
			t.Fatal(err)
		}
		const may = 1<<unix.CAP_BPF | 1<<unix.CAP_PERFMON | 1<<unix.CAP_NET_ADMIN
		for line := range strings.Lines(string(text)) {
			name, value, _ := strings.Cut(strings.TrimSpace(line), ":\t")
			switch name {
			case "CapEff", "CapPrm", "CapBnd":
				if has, err := strconv.ParseUint(value, 16, 64); err != nil || has&^may != 0 {
					t.Errorf("%s: %v", line, err)
				}
			case "NoNewPrivs":
				if value != "1" {
					t.Error(line)
				}
			}
		}
	})
	step("sends verdicts to the journal, which finds them by field", func(t *testing.T) {
		from, to := n.connect(t)
		var found []map[string]any
		until(t, "the verdict is in the journal", func() bool {
			found = entries(t, "EARLYDROP_EVENT=verdict", "EARLYDROP_SRC="+from.String())
			return len(found) > 0
		})
		e := found[0]
		for field, want := range map[string]string{
			"EARLYDROP_DST": to.String(), "EARLYDROP_INTERFACE": inside, "EARLYDROP_PROTO": "tcp", "SYSLOG_IDENTIFIER": "earlydrop", "_SYSTEMD_UNIT": "earlydrop.service",
		} {
			if e[field] != want {
				t.Errorf("%s is %v, want %s", field, e[field], want)
			}
		}
		var v struct{ Event, Src, Decision string }
		text, _ := e["EARLYDROP_JSON"].(string)
		if err := json.Unmarshal([]byte(text), &v); err != nil || v.Event != "verdict" || v.Src != from.String() || v.Decision != e["EARLYDROP_DECISION"] {
			t.Errorf("EARLYDROP_JSON: %v, %q", err, text)
		}
		if message, _ := e["MESSAGE"].(string); len(found) != 1 || !strings.Contains(message, fmt.Sprintf("tcp %s > %s", from, to)) {
			t.Errorf("%d entries, message %q", len(found), message)
		}
		if none := entries(t, "EARLYDROP_EVENT=verdict", "EARLYDROP_SRC="+to.String()); len(none) != 0 {
			t.Errorf("of the other end: %v", none)
		}
		// What the daemon says on standard error is there as well.
		if !slices.ContainsFunc(entries(t, "_SYSTEMD_UNIT=earlydrop.service", "_TRANSPORT=stdout"), func(e map[string]any) bool {
			text, _ := e["MESSAGE"].(string)
			return strings.Contains(text, "control socket: ")
		}) {
			t.Errorf("the unit's own lines are not there\n%s", journal())
		}
	})
	step("shows its page to this machine alone, and lets nobody change anything", func(t *testing.T) {
		if out, err := exec.Command("systemctl", "is-enabled", "earlydrop-web").Output(); err == nil {
			t.Errorf("the page is %s", out)
		}
		run(t, "systemctl", "start", "earlydrop-web")
		showsDaemon(t, mainPID(t))
		if code, text := ask("GET", "/"); code != http.StatusOK || !strings.Contains(text, "<html") {
			t.Errorf("GET /: %d, %s", code, text)
		}
		for _, path := range []string{"/api/blocks/lift", "/api/pairs/forget"} {
			if code, text := ask("POST", path); code != http.StatusForbidden || !strings.Contains(text, "token") {
				t.Errorf("POST %s without a token: %d, %s", path, code, text)
			}
		}
		inNamespace(t, "client", func() error {
			if c, err := net.Dial("tcp4", "10.1.0.1:9480"); err == nil {
				_ = c.Close()
				t.Error("it listens to others")
			}
			return nil
		})
		// It is nobody in particular, of the group that may ask.
		text, err := os.ReadFile("/proc/" + property(t, "earlydrop-web", "MainPID") + "/status")
		if err != nil {
			t.Fatal(err)
		}
		_, gid, _ := strings.Cut(run(t, "getent", "group", "earlydrop"), ":x:")
		gid = strings.TrimSuffix(gid, ":")
		for line := range strings.Lines(string(text)) {
			name, value, _ := strings.Cut(strings.TrimSpace(line), ":\t")
			switch words := strings.Fields(value); {
			case name == "Uid" && slices.Contains(words, "0"), name == "Gid" && slices.Contains(words, "0"), name == "NoNewPrivs" && value != "1",
				strings.HasPrefix(name, "Cap") && strings.Trim(value, "0") != "", name == "Groups" && !slices.Contains(words, gid):
				t.Errorf("group earlydrop is %s; the page's process has %s", gid, line)
			}
		}
	})
	step("shows its page after a restart", func(t *testing.T) {
		web := property(t, "earlydrop-web", "MainPID")
		run(t, "systemctl", "restart", "earlydrop")
		showsDaemon(t, mainPID(t))
		if now := property(t, "earlydrop-web", "MainPID"); now != web {
			t.Errorf("the page was process %s, and is %s", web, now)
		}
	})
	step("drops what is blocked", func(t *testing.T) {
		run(t, "earlydrop", append([]string{"blocked", "add", "-i", inside, "--ttl", "1d"}, n.flow...)...)
		n.blocked(t, func() {})
	})
	step("is upgraded and lets nothing through", func(t *testing.T) {
		before := mainPID(t)
		n.blocked(t, func() { run(t, "dpkg", "-i", "/mnt/newer.deb") })
		if v := version(t); v != "v0.0.2" || mainPID(t) == before || !active(t) {
			t.Errorf("version %s, active %v\n%s", v, active(t), journal())
		}
		showsDaemon(t, mainPID(t))
		if text, err := os.ReadFile("/etc/earlydrop/earlydrop.yaml"); err != nil || string(text) != config {
			t.Errorf("the operator's configuration is %q, %v", text, err)
		}
	})
	step("is killed, and comes back", func(t *testing.T) {
		n.blocked(t, func() {
			before := mainPID(t)
			if err := unix.Kill(before, unix.SIGKILL); err != nil {
				t.Fatal(err)
			}
			until(t, "it runs again", func() bool { pid := mainPID(t); return pid != 0 && pid != before && active(t) })
		})
	})
	step("hangs, and is started anew by the watchdog", func(t *testing.T) {
		const dropIn = "/etc/systemd/system/earlydrop.service.d/watchdog.conf"
		if err := os.MkdirAll(filepath.Dir(dropIn), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(dropIn, []byte("[Service]\nWatchdogSec=10s\n"), 0o644); err != nil {
			t.Fatal(err)
		}
		defer os.RemoveAll(filepath.Dir(dropIn))
		run(t, "systemctl", "daemon-reload")
		run(t, "systemctl", "restart", "earlydrop")
		before := mainPID(t)
		n.blocked(t, func() {
			if err := unix.Kill(before, unix.SIGSTOP); err != nil {
				t.Fatal(err)
			}
			until(t, "it runs again", func() bool { pid := mainPID(t); return pid != 0 && pid != before && active(t) })
		})
	})
	step("reads its policy again", func(t *testing.T) {
		const policy = "/etc/earlydrop/policy.yaml"
		good, err := os.ReadFile(policy)
		if err != nil {
			t.Fatal(err)
		}
		run(t, "systemctl", "reload", "earlydrop")
		if err := os.WriteFile(policy, []byte("rules: [{nam: x}]\n"), 0o644); err != nil {
			t.Fatal(err)
		}
		if out, err := exec.Command("systemctl", "reload", "earlydrop").CombinedOutput(); err == nil {
			t.Errorf("a policy with an error was read: %s", out)
		}
		if err := os.WriteFile(policy, good, 0o644); err != nil {
			t.Fatal(err)
		}
		if !active(t) {
			t.Error("it does not run any more")
		}
	})
	step("its events are rotated", func(t *testing.T) {
		const events = "/var/log/earlydrop/events.jsonl"
		readsJSON(t, events)
		run(t, "logrotate", "-f", "/etc/logrotate.d/earlydrop")
		readsJSON(t, events+".1")
		// The next event is in the new file.
		run(t, "systemctl", "restart", "earlydrop")
		until(t, "the new file has events", func() bool {
			info, err := os.Stat(events)
			return err == nil && info.Size() > 0
		})
		readsJSON(t, events)
	})
	step("waits for an interface that went away", func(t *testing.T) {
		run(t, "ip", "link", "del", inside)
		run(t, "ip", "link", "add", inside, "type", "veth", "peer", "name", "eth0", "netns", "client")
		run(t, "ip", "link", "set", inside, "up")
		until(t, "it is attached again", func() bool {
			return exec.Command("earlydrop", "status", "-i", inside).Run() == nil
		})
		if !active(t) {
			t.Errorf("it does not run\n%s", journal())
		}
	})
	step("is purged and leaves nothing", func(t *testing.T) {
		run(t, "dpkg", "--purge", "earlydrop")
		for _, file := range []string{"/sys/fs/bpf/earlydrop", "/etc/earlydrop", "/var/log/earlydrop", "/var/lib/earlydrop", "/run/earlydrop", "/usr/lib/earlydrop", "/usr/bin/earlydrop", "/usr/share/doc/earlydrop"} {
			if _, err := os.Stat(file); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("%s: %v", file, err)
			}
		}
		if code, text := ask("GET", "/"); code != 0 {
			t.Errorf("the page is there: %d, %s", code, text)
		}
		if state := property(t, "earlydrop-web", "LoadState"); state != "not-found" {
			t.Errorf("the page's unit is %s", state)
		}
		if out, err := exec.Command("getent", "group", "earlydrop").Output(); err == nil {
			t.Errorf("the group is there: %s", out)
		}
		if out := run(t, "ip", "-d", "link", "show", inside); strings.Contains(out, "xdp") {
			t.Errorf("a program is attached: %s", out)
		}
	})
}
