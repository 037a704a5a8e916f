// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"github.com/earlydrop/earlydrop/loader"
)

// Every command that takes the name of an interface refuses what can't be one.
func TestNamesOfNoInterfaceAreRefused(t *testing.T) {
	flow := []string{"tcp", "10.0.0.2:40000", "192.0.2.7:8388"}
	for _, command := range [][]string{
		{"attach", "--model", tinyModel}, {"detach"}, {"status"}, {"status", "--json"}, {"blocked", "list"}, {"blocked", "del", "--all"},
		append([]string{"blocked", "add"}, flow...), append([]string{"blocked", "del"}, flow...),
	} {
		for _, name := range []string{"../x", "../../../../tmp", ".", "..", "", "a b", "a:b", "eth0/", "abcdefghijklmnop"} {
			args := append(command[:len(command):len(command)], "-i", name)
			code, stdout, stderr := runForTest(args...)
			if code != exitBadInput || stdout != "" || strings.Count(stderr, "\n") != 1 || !strings.Contains(stderr, `"`+name+`" can't be the name of an interface`) {
				t.Errorf("earlydrop %q: code %d, stdout %q, stderr %q", args, code, stdout, stderr)
			}
		}
	}
}

func TestAdviceForOccupiedInterfaces(t *testing.T) {
	for _, tt := range []struct {
		o    loader.OccupiedError
		want string
	}{
		{loader.OccupiedError{Program: "x", Mode: loader.XDPNative}, "detach it first: ip link set dev eth0 xdpdrv off"},
		{loader.OccupiedError{Program: "x", Mode: loader.XDPGeneric}, "detach it first: ip link set dev eth0 xdpgeneric off"},
		{loader.OccupiedError{Program: "x"}, "detach it first: ip link set dev eth0 xdpoffload off"},
		{loader.OccupiedError{Program: "x", Mode: loader.XDPNative, Links: []uint32{7}}, "detach it first: bpftool link detach id 7"},
		{loader.OccupiedError{Program: "ed_ingress", Own: true, Links: []uint32{7, 8}}, "detach it first: bpftool link detach id 7 && bpftool link detach id 8"},
		{loader.OccupiedError{Program: "ed_ingress", Own: true, Links: []uint32{7, 8}, PID: 4711}, "stop process 4711, or: bpftool link detach id 7 && bpftool link detach id 8"},
		{loader.OccupiedError{Mode: loader.XDPGeneric}, "detach it first, as root: bpftool link list shows its link and bpftool link detach id N detaches it; without a link: ip link set dev eth0 xdpgeneric off"},
	} {
		tt.o.Interface = "eth0"
		if got := detachOther(&tt.o); got != tt.want {
			t.Errorf("%+v:\n got %s\nwant %s", tt.o, got, tt.want)
		}
	}
}

func TestWarningsOfAnInterface(t *testing.T) {
	for _, tt := range []struct {
		info  loader.Info
		words []string // of the only warning
	}{
		{loader.Info{}, nil},
		{loader.Info{Loopback: true}, []string{"eth0", "twice", "ip route get"}},
		{loader.Info{Bridge: true, Ports: []string{"p0", "p1"}}, []string{"eth0 is a bridge", "attach to a port of it (p0, p1)"}},
		{loader.Info{Bridge: true}, []string{"eth0 is a bridge", "(none now)"}},
		{loader.Info{Bypasses: loader.Bypasses{Bond: "bond0"}}, []string{"attach to bond0"}},
		{loader.Info{Bypasses: loader.Bypasses{Flowtables: []string{"inet fw ft"}}}, []string{`"inet fw ft"`, "hardware"}},
		{loader.Info{Bypasses: loader.Bypasses{TCOffload: true}}, []string{"ethtool -K eth0 hw-tc-offload off"}},
		{loader.Info{Bypasses: loader.Bypasses{Redirectors: []string{"eth1", "eth2"}}}, []string{"eth1, eth2", "redirects to eth0"}},
		{loader.Info{PrivatePins: true}, []string{"mount namespace", "blocks end", "nsenter --net="}},
	} {
		got := warnings("eth0", tt.info)
		if len(tt.words) == 0 {
			if len(got) != 0 {
				t.Errorf("%+v: %q", tt.info, got)
			}
			continue
		}
		for _, w := range tt.words {
			if len(got) != 1 || !strings.Contains(got[0], w) || strings.Contains(got[0], "\n") {
				t.Errorf("%+v: %q lacks %q", tt.info, got, w)
			}
		}
	}
}

// What the loader refuses is bad input, with the command or the flag that mends it.
func TestAdviceOnWhatIsRefused(t *testing.T) {
	for _, tt := range []struct {
		err  error
		code int
		want string // behind the error
	}{
		{loader.ErrNoInterface, exitBadInput, " (ip link shows what there is)"},
		{loader.ErrNoBPFFS, exitBadInput, ": run as root, or mount it before: mount -t bpf bpf /sys/fs/bpf"},
		{&loader.XDPModeError{Mode: loader.XDPNative}, exitBadInput, " (the driver may lack it: use --ingress tcx, or --xdp generic)"},
		{&loader.XDPModeError{Mode: loader.XDPGeneric}, exitFailure, ""},
	} {
		err := fmt.Errorf("refused: %w", tt.err)
		if got := fromLoader(err); got.Error() != err.Error()+tt.want || exitCode(got) != tt.code {
			t.Errorf("%v: exit code %d, %q", tt.err, exitCode(got), got)
		}
	}
	if code, _, stderr := runForTest("attach", "--model", tinyModel, "-i", "nope0"); code != exitBadInput || !strings.Contains(stderr, "no such interface: nope0 (ip link shows") {
		t.Errorf("exit code %d, %q", code, stderr)
	}
}

func TestAdviceAboutSides(t *testing.T) {
	for _, tt := range []struct {
		name            string
		counters        map[string]uint64
		oneHook, oneWay bool
		words           []string // of the only line
	}{
		{"all is well", map[string]uint64{"tcp_opened": 1000, "one_way": 19, "reflected": 30}, false, false, nil},
		{"a few of few", map[string]uint64{"one_way": 19}, false, false, nil},
		{"asymmetric routing", map[string]uint64{"tcp_opened": 180, "one_way": 20, "packets_ingress": 1000, "packets_egress": 500}, false, false, []string{"10 %", "eth0", "--one-way"}},
		{"asymmetric routing, and known", map[string]uint64{"tcp_opened": 180, "one_way": 20}, false, true, nil},
		{"one arm", map[string]uint64{"reflected": 40, "tcp_opened": 3}, false, false, []string{"--one-hook", "40"}},
		{"one arm, and known", map[string]uint64{"reflected": 40, "tcp_opened": 3}, true, false, nil},
		{"one arm or mirror port, UDP alone", map[string]uint64{"udp_unanswered": 500, "udp_opened": 5}, false, false, []string{"500 UDP flows", "eth0", "mirror port or a one-armed router", "--one-hook"}},
		{"the same, and known", map[string]uint64{"udp_unanswered": 500, "udp_opened": 5}, true, false, nil},
		{"UDP that nobody answers among what is answered", map[string]uint64{"udp_unanswered": 500, "udp_opened": 6}, false, false, nil},
		{"a few datagrams that nobody answers", map[string]uint64{"udp_unanswered": 19}, false, false, nil},
		{"one arm, TCP and UDP", map[string]uint64{"reflected": 40, "udp_unanswered": 500}, false, false, []string{"handshakes", "--one-hook"}},
		{"mirror port", map[string]uint64{"one_way": 40, "packets_ingress": 1000, "packets_egress": 2}, false, false, []string{"mirror port", "--one-hook"}},
	} {
		got := sidesAdvice("eth0", tt.counters, tt.oneHook, tt.oneWay)
		if len(tt.words) == 0 && len(got) != 0 || len(tt.words) > 0 && len(got) != 1 {
			t.Errorf("%s: %q", tt.name, got)
		}
		for _, w := range tt.words {
			if len(got) == 1 && !strings.Contains(got[0], w) {
				t.Errorf("%s: %q lacks %q", tt.name, got[0], w)
			}
		}
	}
}

// Where both directions come through one hook, a flow is dropped only by a policy that
// knows.
func TestAttachRefusesToEnforceThroughOneHookUnasked(t *testing.T) {
	const rules = "rules: [{class: v2ray, min_confidence: 0.9, action: drop, ttl: 1m}]\n"
	dir := writeFiles(t, map[string][]byte{
		"plain.yaml": []byte("mode: enforce\n" + rules), "knows.yaml": []byte("mode: enforce\none_hook: true\n" + rules),
	})
	for _, tt := range []struct{ args, want string }{
		{"--one-hook --policy plain.yaml", `needs "one_hook: true" in the policy`},
		{"--one-hook --policy plain.yaml --mode monitor", "no such interface"},
		{"--one-hook --policy knows.yaml", "no such interface"},
		{"--policy plain.yaml", "no such interface"},
	} {
		args := []string{"attach", "-i", "nosuch", "--model", tinyModel}
		for _, arg := range strings.Fields(tt.args) {
			if strings.HasSuffix(arg, ".yaml") {
				arg = filepath.Join(dir, arg)
			}
			args = append(args, arg)
		}
		if code, _, stderr := runForTest(args...); code != exitBadInput || !strings.Contains(stderr, tt.want) {
			t.Errorf("%s: exit code %d, %q, want %q in it", tt.args, code, stderr, tt.want)
		}
	}
}
