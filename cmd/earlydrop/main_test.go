// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/urfave/cli/v2"
)

// runForTest runs one command line, the program's name left out.
func runForTest(args ...string) (code int, stdout, stderr string) {
	var out, err bytes.Buffer
	code = run(append([]string{"earlydrop"}, args...), &out, &err)
	return code, out.String(), err.String()
}

func TestBadCommandLinesAreOneLineAndCode2(t *testing.T) {
	tests := []struct {
		args string
		want string
	}{
		{"nonsense", `unknown command "nonsense" (see earlydrop --help)`},
		{"versoin", `unknown command "versoin", did you mean version? (see earlydrop --help)`},
		{"--bogus", "unknown flag --bogus (see earlydrop --help)"},
		{"version --hlep", "unknown flag --hlep, did you mean --help? (see earlydrop version --help)"},
		{"version now", `version takes no argument, got "now" (see earlydrop version --help)`},
		{"version -z", "unknown flag -z (see earlydrop version --help)"},
		{"policy", "policy needs a command: check, diff, default (see earlydrop policy --help)"},
		{"policy chekc", `unknown command "chekc", did you mean check? (see earlydrop policy --help)`},
		{"policy check", "policy check needs FILE (see earlydrop policy check --help)"},
		{"policy check a b", `unexpected argument "b" (see earlydrop policy check --help)`},
		{"bogus --help", `unknown command "bogus" (see earlydrop --help)`},
		{"-h versoin", `unknown command "versoin", did you mean version? (see earlydrop --help)`},
		{"bogus version --help", `unknown command "bogus" (see earlydrop --help)`},
		{"bogus --json -i eth0", `unknown command "bogus" (see earlydrop --help)`},
		{"policy bogus --help", `unknown command "bogus" (see earlydrop policy --help)`},
		{"blocked -h lst", `unknown command "lst", did you mean list? (see earlydrop blocked --help)`},
		{"--bogus version", "unknown flag --bogus (see earlydrop --help)"},
		{"--bogus bogus", "unknown flag --bogus (see earlydrop --help)"},
		{"why", "why needs an address, such as 192.0.2.7, 192.0.2.7:443 or [2001:db8::1]:443 (see earlydrop why --help)"},
		{"why 192.0.2.7 443", `unexpected argument "443" (see earlydrop why --help)`},
		{"why eth0", `"eth0" is neither an address nor a network: write 192.0.2.7, 192.0.2.7:443, [2001:db8::1]:443, 192.0.2.0/24 or 2001:db8::/32, or one address (see earlydrop why --help)`},
		{"why 192.0.2.7 -n 0", `-n "0": use a whole number from 1 to 1000 (see earlydrop why --help)`},
		{"why 192.0.2.7 --control /nonexistent/c.sock", "no daemon answers at /nonexistent/c.sock: attach serves it, and --control names another path"},
		{"help polic", `no command "earlydrop polic", did you mean policy?`},
		{"help policy check more", `no command "earlydrop policy check more"`},
	}
	for _, tt := range tests {
		t.Run(tt.args, func(t *testing.T) {
			code, stdout, stderr := runForTest(strings.Fields(tt.args)...)
			if want := "earlydrop: " + tt.want + "\n"; stderr != want {
				t.Errorf("stderr:\n got %q\nwant %q", stderr, want)
			}
			if code != exitBadInput {
				t.Errorf("exit code %d, want %d", code, exitBadInput)
			}
			if stdout != "" {
				t.Errorf("stdout %q, want nothing", stdout)
			}
		})
	}
}

func TestHelpGoesToStdout(t *testing.T) {
	tests := []struct{ args, want string }{
		{"", "COMMANDS:"},
		{"--help", "COMMANDS:"},
		{"-h", "COMMANDS:"},
		{"help", "COMMANDS:"},
		{"policy --help", "check and compare policy files"},
		{"policy check --help", "policy check [command options] FILE"},
		{"policy check some-file -h", "policy check [command options] FILE"},
		{"help policy check", "policy check [command options] FILE"},
		{"help policy", "check and compare policy files"},
	}
	for _, tt := range tests {
		code, stdout, stderr := runForTest(strings.Fields(tt.args)...)
		if code != exitOK || stderr != "" || !strings.Contains(stdout, tt.want) {
			t.Errorf("earlydrop %s: code %d, stderr %q, stdout without %q:\n%s", tt.args, code, stderr, tt.want, stdout)
		}
	}
}

// Every command has to say what it is for and show an example, and must not
// use the library's Required (it dumps the help; requireFlags does not).
func TestEveryCommandIsDocumented(t *testing.T) {
	var walk func(path string, commands []*cli.Command)
	walk = func(path string, commands []*cli.Command) {
		for _, c := range commands {
			name := path + " " + c.Name
			if c.Usage == "" {
				t.Errorf("%s has no Usage", name)
			}
			if len(c.Subcommands) == 0 && !strings.Contains(c.Description, "earlydrop "+c.Name) &&
				!strings.Contains(c.Description, strings.TrimSpace(name)) {
				t.Errorf("%s: Description has no example", name)
			}
			for _, f := range c.Flags {
				if r, ok := f.(cli.RequiredFlag); ok && r.IsRequired() {
					t.Errorf("%s: flag %s is Required; use requireFlags", name, f.Names()[0])
				}
			}
			walk(name, c.Subcommands)
		}
	}
	walk("earlydrop", commands())
}

func TestFlagsMayFollowArguments(t *testing.T) {
	root := &cli.Command{Name: "earlydrop", Subcommands: []*cli.Command{
		{Name: "replay", Flags: []cli.Flag{
			&cli.BoolFlag{Name: "json"},
			&cli.StringFlag{Name: "policy", Aliases: []string{"p"}},
		}},
		{Name: "blocked", Subcommands: []*cli.Command{{Name: "add", Flags: []cli.Flag{&cli.DurationFlag{Name: "ttl"}}}}},
	}}
	tests := []struct{ in, want string }{
		{"e", "e"},
		{"e replay a.pcap --json", "e replay --json -- a.pcap"},
		{"e replay --json a.pcap", "e replay --json -- a.pcap"},
		{"e replay a.pcap -p x.yaml b.pcap", "e replay -p x.yaml -- a.pcap b.pcap"},
		{"e replay a.pcap --policy=x.yaml b.pcap", "e replay --policy=x.yaml -- a.pcap b.pcap"},
		{"e replay a.pcap -- --json", "e replay -- a.pcap --json"},
		{"e replay - --json", "e replay --json -- -"},
		{"e replay a.pcap --help", "e replay --help"},
		{"e replay a.pcap --policy", "e replay --policy"},
		{"e replay replay", "e replay -- replay"},
		{"e bogus --help", "e -- bogus"},
		{"e blocked bogus --ttl 1m", "e blocked -- bogus 1m"},
		{"e blocked add 192.0.2.1 --ttl 10m", "e blocked add --ttl 10m -- 192.0.2.1"},
		{"e --version", "e --version"},
	}
	for _, tt := range tests {
		if got, err := flagsFirst(root, strings.Fields(tt.in)); err != nil || !slices.Equal(got, strings.Fields(tt.want)) {
			t.Errorf("flagsFirst(%s) = %v, %v, want %s", tt.in, got, err, tt.want)
		}
	}
	if got, err := flagsFirst(root, nil); err != nil || !slices.Equal(got, []string{"earlydrop"}) {
		t.Errorf("flagsFirst without a program name = %v, %v", got, err)
	}
}

func TestReport(t *testing.T) {
	tests := []struct {
		err  error
		want string
		code int
	}{
		{nil, "", exitOK},
		{errors.New("ring is gone"), "earlydrop: ring is gone\n", exitFailure},
		{badInput("no interface %q", "eth9"), "earlydrop: no interface \"eth9\"\n", exitBadInput},
		{fmt.Errorf("attach: %w", badInput("no such thing")), "earlydrop: attach: no such thing\n", exitBadInput},
		{errors.Join(errors.New("close map"), errors.New("close link")), "earlydrop: close map; close link\n", exitFailure},
		{asBadInput(fs.ErrNotExist), "earlydrop: file does not exist\n", exitBadInput},
		{asBadInput(nil), "", exitOK},
	}
	for _, tt := range tests {
		var w bytes.Buffer
		if code := report(&w, tt.err); code != tt.code || w.String() != tt.want {
			t.Errorf("report(%v) = %d %q, want %d %q", tt.err, code, w.String(), tt.code, tt.want)
		}
	}
	if !errors.Is(asBadInput(fs.ErrNotExist), fs.ErrNotExist) {
		t.Error("asBadInput hides the error that it wraps")
	}
}

func TestRunsMayOverlap(t *testing.T) {
	var group sync.WaitGroup
	for _, args := range []string{"version", "policy --help", "help policy check", "versoin", "--help"} {
		group.Go(func() {
			var out, err bytes.Buffer
			code := runContext(context.Background(), append([]string{"earlydrop"}, strings.Fields(args)...), &out, &err)
			if (code == exitOK) != (args != "versoin") {
				t.Errorf("%s: exit code %d", args, code)
			}
		})
	}
	group.Wait()
}

func TestVersion(t *testing.T) {
	setting := func(pairs ...string) (s []debug.BuildSetting) {
		for i := 0; i < len(pairs); i += 2 {
			s = append(s, debug.BuildSetting{Key: pairs[i], Value: pairs[i+1]})
		}
		return s
	}
	tests := []struct {
		name  string
		given string
		info  *debug.BuildInfo
		want  string
	}{
		{"release", "v1.2.3", &debug.BuildInfo{Main: debug.Module{Version: "v9.9.9"}}, "v1.2.3"},
		{"installed module", "", &debug.BuildInfo{Main: debug.Module{Version: "v1.0.0"}}, "v1.0.0"},
		{"commit", "", &debug.BuildInfo{Main: debug.Module{Version: "(devel)"},
			Settings: setting("vcs.revision", "0123456789abcdef", "vcs.modified", "false")}, "commit-0123456789ab"},
		{"changed commit", "", &debug.BuildInfo{
			Settings: setting("vcs.revision", "0123456789abcdef", "vcs.modified", "true")}, "commit-0123456789ab-dirty"},
		{"no commit", "", &debug.BuildInfo{}, "unknown"},
		{"no build information", "", nil, "unknown"},
	}
	for _, tt := range tests {
		if got := versionFrom(tt.given, tt.info); got != tt.want {
			t.Errorf("%s: got %q, want %q", tt.name, got, tt.want)
		}
	}
	code, stdout, _ := runForTest("version")
	if fields := strings.Fields(stdout); code != exitOK || len(fields) != 4 || fields[0] != "earlydrop" || !strings.Contains(fields[3], "/") {
		t.Errorf("version: code %d, stdout %q", code, stdout)
	}
	if _, flagged, _ := runForTest("--version"); flagged != stdout {
		t.Errorf("--version prints %q, version %q", flagged, stdout)
	}
}
