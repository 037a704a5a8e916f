// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/earlydrop/earlydrop/cmd/earlydrop/history"
)

// wireshark returns what one of Wireshark's programs prints, and fails where it complains.
func wireshark(t *testing.T, argv ...string) string {
	t.Helper()
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Env = append(os.Environ(), "HOME="+t.TempDir(), "LC_ALL=C.UTF-8") // nobody's settings
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	var complaints []string
	for l := range strings.Lines(stderr.String()) {
		if !strings.HasPrefix(l, "Running as user \"root\"") {
			complaints = append(complaints, l)
		}
	}
	if err != nil || len(complaints) > 0 {
		t.Fatalf("%.80q: %v, %.2000q", argv, err, complaints)
	}
	return string(out)
}

// A capture that was kept opens in Wireshark: its packets, their ports, and what the verdict was,
// whatever rules are called.
func TestKeptCaptureOpensInWireshark(t *testing.T) {
	dir := explainFixture(t)
	for name, tt := range map[string]struct {
		capture   string
		addresses history.Addresses
		rule      string
		want      string // in the comment, of the rule
	}{
		"TCP":         {"one.pcap", history.AddressesKept, "tunnels", "tunnels"},
		"UDP, hashed": {"dns.pcap", history.AddressesHashed, "tunnels", "tunnels"},
		"hostile": {
			"one.pcap", history.AddressesKept, "earlydrop capture 1 {}\n<script>alert(1)</script>\r\n\x1b[31m\u202e\x00\xff\xfe", "<script>alert(1)</script>",
		},
		"long": {"one.pcap", history.AddressesLeftOut, strings.Repeat("\u00e4", 64<<10), strings.Repeat("\u00e4", 16<<10)},
	} {
		t.Run(name, func(t *testing.T) {
			path, id, s := pastBy(t, filepath.Join(dir, tt.capture), tt.addresses, tt.rule)
			code, file, stderr := runForTest("capture", "--control", "none", "--history", path, id.String())
			if code != exitOK || stderr != "" {
				t.Fatalf("exit code %d, %s", code, stderr)
			}
			kept := filepath.Join(t.TempDir(), "why.pcapng")
			if err := os.WriteFile(kept, []byte(file), 0o600); err != nil {
				t.Fatal(err)
			}
			proto := s.Key.Proto.String()
			var want strings.Builder
			for i := range s.Packets {
				from, to := s.Initiator().Port(), s.Responder().Port()
				if !s.Packets[i].FromInitiator {
					from, to = to, from
				}
				fmt.Fprintf(&want, "%d\t%d\t%d\t%d\n", i+1, from, to, s.Packets[i].WireLen)
			}
			if got := wireshark(t, "tshark", "-n", "-r", kept, "-T", "fields", "-e", "frame.number", "-e", proto+".srcport", "-e", proto+".dstport", "-e", "frame.len"); got != want.String() {
				t.Errorf("packets\n%swant\n%s", got, want.String())
			}
			said := wireshark(t, "capinfos", "-k", kept)
			if !utf8.ValidString(said) || !strings.Contains(said, "drop   ") || !strings.Contains(said, tt.want) {
				t.Errorf("comments %.3000q, want %.100q", said, tt.want)
			}
			// And it goes on to explain.
			if code, _, stderr := runForTest("explain", kept, "--model", tinyModel); code != exitOK {
				t.Errorf("explain: %d, %s", code, stderr)
			}
		})
	}
}
