// SPDX-License-Identifier: Apache-2.0

package eventlog

import (
	"bytes"
	"encoding/binary"
	"net"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/earlydrop/earlydrop/cmd/earlydrop/event"
)

const journalMark = "EARLYDROP_TEST_JOURNAL"

// Events are sent to the socket of the journal with their properties as fields, whatever is in
// their texts. The socket is the test's own, in a mount namespace of its own.
func TestEventsGoToTheJournal(t *testing.T) {
	if os.Getenv(journalMark) == "" {
		cmd := exec.Command(os.Args[0], "-test.run", "^TestEventsGoToTheJournal$", "-test.v")
		cmd.Env = append(os.Environ(), journalMark+"=1")
		cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: unix.CLONE_NEWNS}
		out, err := cmd.CombinedOutput()
		if err != nil || !strings.Contains(string(out), "--- PASS") {
			t.Fatalf("%v:\n%s", err, out)
		}
		return
	}
	if err := unix.Mount("tmpfs", "/run", "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(Config{Journal: true}); err == nil || !strings.Contains(err.Error(), "is systemd-journald running?") {
		t.Errorf("without a journal: %v", err)
	}
	if err := os.MkdirAll("/run/systemd/journal", 0o755); err != nil {
		t.Fatal(err)
	}
	listener, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: "/run/systemd/journal/socket", Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	l, err := Open(Config{Journal: true})
	if err != nil {
		t.Fatal(err)
	}
	drop := verdict(7, true)
	drop.Rule, drop.Reason, drop.RuleClasses = "tunnels\nPRIORITY=0", "rule", []string{"shadowsocks", "v2ray"}
	l.Put(drop)
	l.Put(verdict(8, false))
	l.Put(&event.LeftOut{Time: drop.Time, Interface: "v0", PassesLeftOut: 3})
	next := func() map[string]string {
		t.Helper()
		_ = listener.SetReadDeadline(time.Now().Add(time.Minute))
		b := make([]byte, 1<<16)
		n, err := listener.Read(b)
		if err != nil {
			t.Fatal(err)
		}
		fields := map[string]string{}
		for b = b[:n]; len(b) > 0; {
			line, rest, _ := bytes.Cut(b, []byte("\n"))
			if name, value, ok := strings.Cut(string(line), "="); ok {
				fields[name], b = value, rest
				continue
			}
			size := binary.LittleEndian.Uint64(rest) // a value with more than one line
			fields[string(line)], b = string(rest[8:8+size]), rest[8+size+1:]
		}
		return fields
	}
	for _, want := range []map[string]string{
		{"PRIORITY": "5", "SYSLOG_IDENTIFIER": "earlydrop", "EARLYDROP_EVENT": "verdict", "EARLYDROP_RULE": "tunnels\nPRIORITY=0", "EARLYDROP_DECISION": "drop",
			"EARLYDROP_DETECTED": "true", "EARLYDROP_CLASS": "unknown shadowsocks v2ray", "EARLYDROP_SRC": "10.0.0.1:1", "EARLYDROP_DST": "10.0.0.2:2", "EARLYDROP_INTERFACE": "v0", "EARLYDROP_PROTO": "tcp"},
		{"PRIORITY": "6", "EARLYDROP_DECISION": "pass", "EARLYDROP_DETECTED": "false"},
		{"PRIORITY": "6", "EARLYDROP_EVENT": "left_out", "MESSAGE": "2026-11-25T01:02:03.004Z  left out  3 verdicts that pass"},
	} {
		got := next()
		for name, value := range want {
			if got[name] != value {
				t.Errorf("%s is %q, want %q", name, got[name], value)
			}
		}
		e, err := event.Decode([]byte(got["EARLYDROP_JSON"]))
		if err != nil || event.IDOf(e).String() != got["EARLYDROP_ID"] || event.IDOf(e) == 0 || got["MESSAGE"] == "" {
			t.Errorf("%v, %v", got, err)
		}
		if e.Kind() != event.KindVerdict {
			for name := range got {
				if strings.HasPrefix(name, "EARLYDROP_SRC") || name == "EARLYDROP_RULE" {
					t.Errorf("%s of %s", name, e.Kind())
				}
			}
		}
	}
	l.Close()
}
