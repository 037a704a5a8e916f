// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/earlydrop/earlydrop/test/e2e/rig"
	"github.com/earlydrop/earlydrop/test/lab"
)

// queueEnv has the test binary take packets out of a queue of the firewall, as peers do. Its value
// is the queue's number and a TCP port to which nothing may pass that has payload.
const queueEnv = "EARLYDROP_TEST_QUEUE"

func TestMain(m *testing.M) {
	var queue, port uint16
	if _, err := fmt.Sscan(os.Getenv(queueEnv), &queue, &port); err == nil {
		fmt.Fprintln(os.Stderr, takeFromQueue(queue, port))
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// takeFromQueue has the first iptables of its PATH hand over what is forwarded, and drops IPv4
// packets to a TCP port that have payload. It returns when something fails.
func takeFromQueue(queue, port uint16) error {
	// Of <linux/netfilter/nfnetlink_queue.h> and <linux/netfilter.h>.
	const (
		subsystem                       = 3 << 8
		packet, verdict, config         = subsystem, subsystem | 1, subsystem | 2
		packetHeader, verdictHeader     = 1, 2
		packetPayload                   = 10
		configCommand, configParameters = 1, 2
		bind, copyPacket                = 1, 2
		drop, accept                    = 0, 1
	)
	c, err := netlink.Dial(unix.NETLINK_NETFILTER, nil)
	if err != nil {
		return err
	}
	message := func(kind netlink.HeaderType, attribute uint16, data []byte) (m netlink.Message, err error) {
		a := netlink.NewAttributeEncoder()
		a.Bytes(attribute, data)
		attributes, err := a.Encode()
		m.Header = netlink.Header{Type: kind, Flags: netlink.Request}
		m.Data = append(binary.BigEndian.AppendUint16([]byte{unix.AF_UNSPEC, 0}, queue), attributes...)
		return m, err
	}
	for _, set := range []struct {
		attribute uint16
		data      []byte
	}{{configCommand, []byte{bind, 0, 0, unix.AF_INET}}, {configParameters, []byte{0, 0, 0xff, 0xff, copyPacket}}} {
		m, err := message(config, set.attribute, set.data)
		if err == nil {
			m.Header.Flags |= netlink.Acknowledge
			_, err = c.Execute(m)
		}
		if err != nil {
			return fmt.Errorf("set the queue up: %w", err)
		}
	}
	out, err := exec.Command("iptables", "-w", "-A", "FORWARD", "-j", "NFQUEUE", "--queue-num", fmt.Sprint(queue), "--queue-bypass").CombinedOutput()
	if err != nil {
		return fmt.Errorf("iptables: %w: %s", err, out)
	}
	for {
		all, err := c.Receive()
		if err != nil {
			return err
		}
		for _, m := range all {
			if m.Header.Type != packet || len(m.Data) < 4 {
				continue
			}
			a, err := netlink.NewAttributeDecoder(m.Data[4:])
			if err != nil {
				return err
			}
			var id []byte
			what := uint32(accept)
			for a.Next() {
				switch a.Type() {
				case packetHeader:
					id = a.Bytes()[:4]
				case packetPayload:
					ip := a.Bytes()
					if tcp := ip[int(ip[0]&15)*4:]; ip[9] == unix.IPPROTO_TCP && binary.BigEndian.Uint16(tcp[2:]) == port && len(tcp) > int(tcp[12]>>4)*4 {
						what = drop
					}
				}
			}
			answer, err := message(verdict, verdictHeader, append(binary.BigEndian.AppendUint32(nil, what), id...))
			if err == nil {
				_, err = c.Send(answer)
			}
			if err != nil {
				return err
			}
		}
	}
}

// A program that takes packets out of a queue is started as those are that do, and has cut what it
// drops.
func TestPeersAtQueuesAreMeasured(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	defer cancel()
	l, err := lab.New(ctx, lab.Config{})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	r, err := rig.New(ctx, l, exe)
	if err != nil {
		t.Fatal(err)
	}
	nginx, err := l.StartNginx(ctx, lab.NginxConfig{})
	if err != nil {
		t.Fatal(err)
	}
	b := &beside{options: options{length: 200 * time.Millisecond, openGFWProgram: exe, suricataProgram: exe, suricataRules: "/dev/null"}, rig: r, web: netip.AddrPortFrom(l.ServerAddr(4), nginx.HTTPSPort)}
	if b.sink, err = startUploads(l); err != nil {
		t.Fatal(err)
	}
	defer b.sink.Close()
	for queue, p := range map[int]peer{openGFWQueue: b.openGFW(), suricataQueue: b.suricata()} {
		if p.absent != "" || !p.cuts {
			t.Fatalf("%s cuts: %v, %s", p.name, p.cuts, p.absent)
		}
		t.Setenv(queueEnv, fmt.Sprint(queue, b.sink.Addr().(*net.TCPAddr).Port))
		run, err := p.start(ctx, r)
		if err != nil {
			t.Fatal(err)
		}
		defer run.stop(ctx)
		w, err := b.browse(ctx)
		if err != nil || len(w.Times) == 0 || w.Failed > 0 {
			t.Errorf("%s: %d HTTPS connections, %d failed, %v", p.name, len(w.Times), w.Failed, err)
		}
		if n, _, wasCut, err := b.sink.open(ctx, l, 0); err != nil || !wasCut || n != 0 {
			t.Errorf("%s: the upload is cut: %v, after %d bytes, %v", p.name, wasCut, n, err)
		}
		if memory, err := memory(run.pid); err != nil || memory < 1<<20 {
			t.Errorf("%s: %d bytes of memory, %v", p.name, memory, err)
		}
		if err := run.stop(ctx); err != nil {
			t.Errorf("%s: %v", p.name, err)
		}
	}
	// The firewall lets pass what nobody takes out of a queue.
	if n, took, wasCut, err := b.sink.open(ctx, l, 0); err != nil || wasCut || n < uploadMost || took <= 0 {
		t.Errorf("without them the upload is cut: %v, after %d bytes and %v, %v", wasCut, n, took, err)
	}

	// One that ends instead says what it said.
	script := filepath.Join(t.TempDir(), "ends")
	if err := os.WriteFile(script, []byte("#!/bin/sh\necho no such rule\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	b.openGFWProgram = script
	if _, err := b.openGFW().start(ctx, r); err == nil || !strings.Contains(err.Error(), "no such rule") {
		t.Errorf("got %v", err)
	}
}

func TestPeersTableSaysWhatWasNotMeasured(t *testing.T) {
	rep := &besideReport{Rows: []besideRow{
		{Name: nothing, Rounds: []besideFigures{{One: bulk{Bytes: 1e9 / 8, Seconds: 1, Busy: 1}, Four: bulk{Bytes: 2e9 / 8, Seconds: 1}, Web: web{Seconds: 1, Busy: 3, Times: []float64{1, 2, 3}}}}},
		{Name: "one", Rounds: []besideFigures{
			{StartUp: 10, Memory: 50e6, One: bulk{Bytes: 3e9 / 8, Seconds: 1}, Four: bulk{Seconds: 1}, Web: web{Seconds: 1, Times: []float64{1}, Failed: 1}},
			{StartUp: 30, Memory: 70e6, One: bulk{Bytes: 5e9 / 8, Seconds: 1}, Four: bulk{Seconds: 1}, Web: web{Seconds: 1, Times: []float64{1}}},
		}, Cut: []cut{{Opened: 4, Bytes: []float64{1000, 2000, 9000}, Times: []float64{5, 6, 70}}}},
		{Name: "other", Absent: given("other", "")},
		{Name: "reader", Offline: 12.3},
	}}
	for _, tt := range []struct {
		row  int
		want string
	}{
		{0, "1.0 2.0 8.59 3 1000.00 2.0 / 3.0 0 of 3 - - - - - - - - -"},
		{1, "4.0 0.0 0.00 1 0.00 1.0 / 1.0 1 of 3 3 of 4 6 2.0 KB / 9.0 KB - - - 60 20 -"},
		{2, "- - - - - - - - - - - - - - - -"},
		{3, "- - - - - - - - - - - - - - - 12"},
	} {
		if got := strings.Trim(fmt.Sprint(rep.Rows[tt.row].cells()), "[]"); got != tt.want {
			t.Errorf("row %d: %s, want %s", tt.row, got, tt.want)
		}
	}
	var out bytes.Buffer
	rep.print(&out)
	if want := "other was not measured: its program was not named (-other)"; !strings.Contains(out.String(), want) {
		t.Errorf("the page lacks %q:\n%s", want, out.String())
	}
	if why := given("other", "/nonexistent"); !strings.Contains(why, "/nonexistent") {
		t.Errorf("got %q", why)
	}
}
