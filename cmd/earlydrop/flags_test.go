// SPDX-License-Identifier: Apache-2.0

package main

import (
	"strings"
	"testing"

	"github.com/urfave/cli/v2"
)

// What a flag can't have is refused in one line that names the flag, the value and
// what it may have.
func TestBadValuesNameFlagAndWhatIsAllowed(t *testing.T) {
	const add = "blocked add -i v0 tcp 10.0.0.1:1 10.0.0.2:2 "
	for _, tt := range []struct{ args, want string }{
		{"attach -i v0 --max-flows many", `--max-flows "many": use a whole number from 1024 to 67108864 (see earlydrop attach --help)`},
		{"attach -i v0 --max-flows -5", `--max-flows "-5": use a whole number from 1024 to 67108864 (see earlydrop attach --help)`},
		{"attach -i v0 --max-flows=", `--max-flows "": use a whole number from 1024 to 67108864 (see earlydrop attach --help)`},
		{"attach -i v0 --max-flows 0", `--max-flows "0": use a whole number from 1024 to 67108864 (see earlydrop attach --help)`},
		{"attach -i v0 --max-blocked 1e3", `--max-blocked "1e3": use a whole number from 16 to 16777216 (see earlydrop attach --help)`},
		{"attach -i v0 --max-collecting 15", `--max-collecting "15": use a whole number from 16 to 1048576 (see earlydrop attach --help)`},
		{"attach -i v0 --max-handshakes 99999999999999999999", `--max-handshakes "99999999999999999999": use a whole number from 1024 to 4194304 (see earlydrop attach --help)`},
		{"attach -i v0 --persist=maybe", `--persist "maybe": it takes no value, or true or false (see earlydrop attach --help)`},
		{"attach -i v0 -q=2", `-q "2": it takes no value, or true or false (see earlydrop attach --help)`},
		{"attach -i v0 --events-pass 100", `--events-pass "100": use all, none, a rate such as 100/s, or a share such as 1/100`},
		{"attach -i v0 --events-pass 0/s", `--events-pass "0/s": use all, none, a rate such as 100/s, or a share such as 1/100`},
		{"attach -i v0 --events-pass 1/0", `--events-pass "1/0": use all, none, a rate such as 100/s, or a share such as 1/100`},
		{"attach -i v0 --events-pass -1/s", `--events-pass "-1/s": use all, none, a rate such as 100/s, or a share such as 1/100`},
		{"attach -i v0 --events-pass=", `--events-pass "": use all, none, a rate such as 100/s, or a share such as 1/100`},
		{"attach -i v0 --mode block", `unknown mode "block"; write monitor or enforce`},
		{"explain x.pcap --flow first", `--flow "first": use a whole number from 1 to 2147483647 (see earlydrop explain --help)`},
		{add + "--ttl soon", `--ttl "soon" is not a duration; write one such as 30s, 10m, 1h30m, 7d or 2w (see earlydrop blocked add --help)`},
		{add + "--ttl 600", `--ttl "600" has no unit; write 600s, 600m, 600h or 600d (see earlydrop blocked add --help)`},
		{add + "--ttl 0s", `--ttl "0s" is out of range; write at least 1s and at most 365d (a year) (see earlydrop blocked add --help)`},
		{add + "--ttl -1d", `--ttl "-1d" is out of range; write at least 1s and at most 365d (a year) (see earlydrop blocked add --help)`},
		{add + "--vlan 4096", `--vlan "4096": use a whole number from 0 to 4095 (see earlydrop blocked add --help)`},
		{add + "--inner-vlan none", `--inner-vlan "none": use a whole number from 0 to 4095 (see earlydrop blocked add --help)`},
		{"status --json=yes", `--json "yes": it takes no value, or true or false (see earlydrop status --help)`},
	} {
		code, stdout, stderr := runForTest(strings.Fields(tt.args)...)
		if want := "earlydrop: " + tt.want + "\n"; stderr != want || code != exitBadInput || stdout != "" {
			t.Errorf("%s: code %d, stdout %q, stderr\n%swant\n%s", tt.args, code, stdout, stderr, want)
		}
	}
	// A value with whatever is in it still makes one line.
	code, _, stderr := runForTest("explain", "x", "--flow", "a\"b\nc: parse error")
	if want := `earlydrop: --flow "a\"b\nc: parse error": use a whole number from 1 to 2147483647 (see earlydrop explain --help)` + "\n"; stderr != want || code != exitBadInput {
		t.Errorf("code %d, stderr\n%swant\n%s", code, stderr, want)
	}
}

// No flag has a value whose parser says no more than "parse error".
func TestFlagsSayWhatTheyTake(t *testing.T) {
	var walk func(commands []*cli.Command)
	walk = func(commands []*cli.Command) {
		for _, c := range commands {
			for _, f := range c.Flags {
				switch f.(type) {
				case *cli.BoolFlag, *cli.StringFlag, *cli.StringSliceFlag, listFlag, *cli.GenericFlag:
				default:
					t.Errorf("%s --%s is a %T: use numberFlag or the like, whose errors say what is allowed", c.Name, f.Names()[0], f)
				}
			}
			walk(c.Subcommands)
		}
	}
	walk(commands())
}

func TestRepeatedFlagsAreRefused(t *testing.T) {
	const twice = "is given twice, as"
	for _, tt := range []struct{ args, want string }{
		{"attach -i v0 -i v1 -i v0", `--interface "v0" is given twice: keep one of them`},
		{"attach -i v0 --group v1,v0", `--group "v0" is given twice: keep one of them`},
		{"attach --group v0,v0", `--group "v0" is given twice: keep one of them`},
		{"attach --group v0,v1 --group v1,v2", `--group "v1" is given twice: keep one of them`},
		{"attach -i v0 --interface=v0", `--interface "v0" is given twice: keep one of them`},
		{"attach --policy a -i v0 --policy b", `--policy is given twice, as "a" and as "b": keep one of them`},
		{"attach -i v0 --mode enforce --mode=monitor", `--mode is given twice, as "enforce" and as "monitor": keep one of them`},
		{"attach -i v0 --max-flows 2000 --max-flows 3000", `--max-flows is given twice, as "2000" and as "3000": keep one of them`},
		{"attach -i v0 --persist --persist=false", `--persist is given twice, as "true" and as "false": keep one of them`},
		{"attach -i v0 -q --quiet=false", `--quiet is given twice, as "true" and as "false": keep one of them`},
		{"replay a --model x b --model y", `--model is given twice, as "x" and as "y": keep one of them`},
		{"blocked add -i v0 --ttl 1m --ttl 2m tcp 10.0.0.1:1 10.0.0.2:2", `--ttl is given twice, as "1m" and as "2m": keep one of them`},
		{"blocked list -i v0 -i v1", `--interface is given twice, as "v0" and as "v1": keep one of them`},
		{"detach -i v0 -i v1", `--interface is given twice, as "v0" and as "v1": keep one of them`},
		{"dataset --out a --out b", `--out is given twice, as "a" and as "b": keep one of them`},
		{"policy check x --model a --model b", `--model is given twice, as "a" and as "b": keep one of them`},
		{"model info --json --json=false", `--json is given twice, as "true" and as "false": keep one of them`},
	} {
		code, stdout, stderr := runForTest(strings.Fields(tt.args)...)
		if want := "earlydrop: " + tt.want + "\n"; stderr != want || code != exitBadInput || stdout != "" {
			t.Errorf("%s: code %d, stdout %q, stderr\n%swant\n%s", tt.args, code, stdout, stderr, want)
		}
	}
	// What collects its values may be repeated, what says the same may, and what
	// follows -- is no flag.
	for _, args := range []string{
		"dataset --manifest a --manifest b", "attach -q -q", "model info --json --json=true", "replay --model a -- --model b", "attach -i v0 --policy -i",
		"attach -i v0 -i v1 --interface v2",
	} {
		if _, _, stderr := runForTest(strings.Fields(args)...); strings.Contains(stderr, twice) {
			t.Errorf("%s: %s", args, stderr)
		}
	}
}

// A block of a flow that no packet can be of is refused, with the reason, and needs
// no interface to be found out.
func TestBlocksThatCanNeverMatchAreRefused(t *testing.T) {
	for _, tt := range []struct{ flow, want string }{
		{"tcp 0.0.0.0:0 10.0.0.1:80", "0.0.0.0:0: no connection uses port 0; a block is of one flow, so give the port of each end"},
		{"tcp 10.0.0.1:80 10.0.0.2:0", "10.0.0.2:0: no connection uses port 0"},
		{"udp [2001:db8::1]:0 [2001:db8::2]:53", "[2001:db8::1]:0: no connection uses port 0"},
		{"tcp 0.0.0.0:40000 10.0.0.1:80", "0.0.0.0:40000: no connection uses the unspecified address"},
		{"udp 0.0.0.0:40000 10.0.0.1:80", "0.0.0.0:40000: no connection uses the unspecified address"},
		{"tcp [::]:40000 [2001:db8::2]:80", "[::]:40000: no connection uses the unspecified address"},
		{"udp 0.0.0.0:1 0.0.0.0:2", "no connection uses the unspecified address"},
		{"tcp 10.0.0.1:80 224.0.0.1:80", "224.0.0.1:80: TCP does not go to a multicast or broadcast address"},
		{"tcp [ff02::1]:80 [fe80::1]:80", "[ff02::1]:80: TCP does not go to a multicast or broadcast address"},
		{"tcp 255.255.255.255:80 10.0.0.1:80", "255.255.255.255:80: TCP does not go to"},
		{"udp 224.0.0.1:80 239.1.1.1:80", "no packet comes from a multicast or broadcast address"},
		{"udp 255.255.255.255:67 224.0.0.1:80", "no packet comes from a multicast or broadcast address"},
		{"tcp 10.0.0.1:80 [2001:db8::1]:443", "10.0.0.1:80 and [2001:db8::1]:443: a flow is either IPv4 or IPv6 at both ends"},
		{"tcp [fe80::1%other0]:80 [fe80::2]:443", "[fe80::1%other0]:80 is an address on other0, but the interface is none0"},
	} {
		code, stdout, stderr := runForTest(append([]string{"blocked", "add", "-i", "none0"}, strings.Fields(tt.flow)...)...)
		if code != exitBadInput || stdout != "" || !strings.HasPrefix(stderr, "earlydrop: ") || !strings.Contains(stderr, tt.want) || strings.Count(stderr, "\n") != 1 {
			t.Errorf("%s: code %d, stdout %q, stderr %q; want %q", tt.flow, code, stdout, stderr, tt.want)
		}
	}
	// These can: all that is wrong is the interface.
	for _, flow := range []string{
		"tcp 10.0.0.1:80 10.0.0.2:443", "udp 10.0.0.1:5353 224.0.0.251:5353", "udp 0.0.0.0:68 255.255.255.255:67", "udp [fe80::1]:546 [ff02::1:2]:547",
		"tcp [::ffff:10.0.0.1]:80 10.0.0.2:443", "tcp [fe80::1%none0]:80 [fe80::2%none0]:443", "tcp 127.0.0.1:80 127.0.0.1:40000",
	} {
		code, _, stderr := runForTest(append([]string{"blocked", "add", "-i", "none0"}, strings.Fields(flow)...)...)
		if code == exitOK || !strings.Contains(stderr, "none0") || strings.Contains(stderr, "no connection uses") {
			t.Errorf("%s: code %d, stderr %q", flow, code, stderr)
		}
	}
	// What was put there in whatever way can be taken away.
	if _, _, stderr := runForTest("blocked", "del", "-i", "none0", "tcp", "0.0.0.0:0", "10.0.0.1:80"); !strings.Contains(stderr, "not attached to none0") {
		t.Errorf("del: %s", stderr)
	}
}

func TestSizesOfFlags(t *testing.T) {
	for text, want := range map[string]uint64{"0": 0, "4096": 4096, "16KiB": 16 << 10, "1MiB": 1 << 20, "1GiB": 1 << 30} {
		n := size{most: 1 << 30}
		if err := n.Set(text); err != nil || n.value != want {
			t.Errorf("%s: %d, %v", text, n.value, err)
		}
		again := size{most: 1 << 30}
		if err := again.Set(n.String()); err != nil || again != n {
			t.Errorf("%s is written %s: %v", text, &n, err)
		}
	}
	for _, text := range []string{"", "KiB", "-1", "1.5KiB", "16kb", "16 KiB", "2GiB", "1073741825", "18014398509481984KiB", "99999999999999999999"} {
		n := size{value: 7, most: 1 << 30}
		if err := n.Set(text); err == nil || n.value != 7 {
			t.Errorf("%q was taken as %d", text, n.value)
		}
	}
}
