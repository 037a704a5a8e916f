// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// withChecksum gives the packets of a capture of captureBytes, which are of IPv4, the
// checksum 0, or spoils it by one bit: those for which change is true.
func withChecksum(file []byte, empty bool, change func(i int) bool) []byte {
	file = bytes.Clone(file)
	for i, at := 0, 24; at < len(file); i++ {
		if sum := file[at+16+14+10:]; change(i) && empty {
			sum[0], sum[1] = 0, 0
		} else if change(i) {
			sum[1] ^= 1
		}
		at += 16 + int(binary.LittleEndian.Uint32(file[at+8:]))
	}
	return file
}

func TestReplaySaysThatChecksumsAreWrong(t *testing.T) {
	talk := captureBytes(t, append(eagerFlow(0, 2000), eagerFlow(time.Second, 2001)...)...)
	noTTL := captureBytes(t, eagerFlow(0, 2000)[0])
	noTTL[24+16+14+8] = 0
	all, none := func(int) bool { return true }, func(int) bool { return false }
	dir := writeFiles(t, map[string][]byte{
		"right.pcap": talk, "empty.pcap": withChecksum(talk, true, all), "wrong.pcap": withChecksum(talk, false, all),
		"one.pcap": withChecksum(talk, false, func(i int) bool { return i == 8 }), "half.pcap": withChecksum(talk, false, func(i int) bool { return i < 6 }),
		// Malformed, but by its time to live.
		"ttl.pcap": withChecksum(noTTL, true, all), "none.pcap": withChecksum(talk[:24], false, none),
	})
	path := func(name string) string { return filepath.Join(dir, name) }
	const advice = ", as no host accepts that (were addresses changed after the capture? tcprewrite --fixcsum puts the checksums right; one of 0, which is left to the network card, is believed)\n"
	warning := func(name, text string) string { return "warning: " + path(name) + ": " + text + advice }
	wrong := warning("wrong.pcap", "12 of 12 IPv4 packets have a wrong header checksum and are part of no flow")
	half := warning("half.pcap", "6 of 12 IPv4 packets have a wrong header checksum and are part of no flow")
	for _, tt := range []struct {
		args           []string
		flows          int
		counted, words string // in the summary, and as warnings
	}{
		{[]string{"right.pcap"}, 2, "", ""},
		{[]string{"empty.pcap"}, 2, "", ""},
		{[]string{"wrong.pcap"}, 0, " malformed 12 bad_checksum 12", wrong},
		{[]string{"half.pcap"}, 1, " malformed 6 bad_checksum 6", half},
		{[]string{"one.pcap"}, 2, " malformed 1 bad_checksum 1", warning("one.pcap", "1 of 12 IPv4 packets has a wrong header checksum and is part of no flow")},
		{[]string{"ttl.pcap"}, 0, " malformed 1\n", ""},
		{[]string{"none.pcap"}, 0, "", ""},
		{[]string{"half.pcap", "right.pcap", "wrong.pcap"}, 3, " malformed 18 bad_checksum 18", half + wrong},
		{[]string{"--join", "wrong.pcap", "half.pcap"}, 1, " malformed 18 bad_checksum 18", wrong + half},
	} {
		args := []string{"replay", "--model", tinyModel}
		for _, arg := range tt.args {
			if strings.HasSuffix(arg, ".pcap") {
				arg = path(arg)
			}
			args = append(args, arg)
		}
		code, stdout, stderr := runForTest(args...)
		if code != exitOK || stderr != tt.words {
			t.Errorf("%v: exit code %d, stderr %q, want %q", tt.args, code, stderr, tt.words)
		}
		if !strings.Contains(stdout, count(uint64(tt.flows), "flow")+" in ") || !strings.Contains(stdout, tt.counted) || tt.counted == "" && strings.Contains(stdout, "bad_checksum") {
			t.Errorf("%v: want %d flows and %q:\n%s", tt.args, tt.flows, tt.counted, stdout)
		}
	}
}

// emptyFiles are captures that have no packet yet, and what is said of them.
func emptyFiles(t *testing.T, whole []byte) map[string]string {
	t.Helper()
	dir := writeFiles(t, map[string][]byte{"nothing.pcap": nil, "header.pcap": whole[:20], "gzip.pcap": zipped(t, nil), "gzip-header.pcap": zipped(t, whole)[:7]})
	return map[string]string{
		filepath.Join(dir, "nothing.pcap"):     "it is empty",
		filepath.Join(dir, "header.pcap"):      "its file header is cut off",
		filepath.Join(dir, "gzip.pcap"):        "it is empty",
		filepath.Join(dir, "gzip-header.pcap"): "its gzip header is cut off",
		fifoOf(t, nil):                         "it is empty",
	}
}

func TestReplaySkipsEmptyFiles(t *testing.T) {
	whole := captureBytes(t, eagerFlow(0, 2000)...)
	dir := writeFiles(t, map[string][]byte{"a.pcap": whole, "b.pcap": captureBytes(t, eagerFlow(time.Second, 2001)...), "text.pcap": []byte("hello, world\n")})
	a, b := filepath.Join(dir, "a.pcap"), filepath.Join(dir, "b.pcap")
	for _, args := range [][]string{nil, {"--json"}, {"--join"}} {
		for empty, why := range emptyFiles(t, whole) {
			code, stdout, stderr := runForTest(append([]string{"replay", "--model", tinyModel, a, empty, b}, args...)...)
			if code != exitFailure || !strings.Contains(stdout, "10.0.0.1:2000") || !strings.Contains(stdout, "10.0.0.1:2001") {
				t.Errorf("%s, %v: exit code %d, want %d and the other files:\n%s", why, args, code, exitFailure, stdout)
			}
			if want := fmt.Sprintf("earlydrop: %s: not a pcap or pcapng file: %s, skipped\n", empty, why); !strings.HasSuffix(stderr, want) {
				t.Errorf("%v: stderr %q, want it to end with %q", args, stderr, want)
			}
			if !strings.Contains(stdout+stderr, "2 flows in 2 files classified") {
				t.Errorf("%v: it counts as a file:\n%s%s", args, stdout, stderr)
			}
		}
	}
	// What is wrong with another file is bad input, as before, and so it is when there
	// is no other file.
	var both []string
	for empty, why := range emptyFiles(t, whole) {
		code, stdout, stderr := runForTest("replay", "--model", tinyModel, a, empty, filepath.Join(dir, "text.pcap"))
		if code != exitBadInput || stdout != "" || !strings.HasSuffix(stderr, "text.pcap: not a pcap or pcapng file\n") {
			t.Errorf("%s, and a text: exit code %d, stdout %q, stderr %q", why, code, stdout, stderr)
		}
		if !strings.Contains(empty, "fifo") { // which can be read once
			both = append(both, empty)
		}
	}
	code, stdout, stderr := runForTest(append([]string{"replay", "--model", tinyModel}, both...)...)
	if code != exitBadInput || stdout != "" || strings.Count(stderr, "\n") != 1 || strings.Count(stderr, "not a pcap or pcapng file: it") != len(both) || strings.Contains(stderr, "skipped") {
		t.Errorf("nothing else: exit code %d, stdout %q, stderr %q", code, stdout, stderr)
	}
}

func TestDatasetSkipsEmptyFiles(t *testing.T) {
	whole := captureBytes(t, eagerFlow(0, 2000)...)
	dir := writeFiles(t, map[string][]byte{"a.pcap": whole, "text.pcap": []byte("hello, world\n")})
	a, out := filepath.Join(dir, "a.pcap"), filepath.Join(dir, "out")
	manifest := func(name string, files ...string) string {
		text := "path\tlabel\tgroup\n"
		for _, file := range files {
			text += file + "\ta\tg\n"
		}
		return writeFile(t, name, text)
	}
	for _, args := range [][]string{nil, {"--join"}} {
		for empty, why := range emptyFiles(t, whole) {
			// In one folder, so that they may be joined.
			a := filepath.Join(filepath.Dir(empty), "a.pcap")
			if err := os.WriteFile(a, whole, 0o600); err != nil {
				t.Fatal(err)
			}
			code, stdout, stderr := runForTest(append([]string{"dataset", "--manifest", manifest("m.tsv", empty, a), "--out", out}, args...)...)
			want := fmt.Sprintf("earlydrop: %s: not a pcap or pcapng file: %s, skipped\n", empty, why)
			if code != exitFailure || stderr != want || !strings.Contains(stdout, "1 samples of ") {
				t.Errorf("%v: exit code %d, stderr %q, want %q\n%s", args, code, stderr, want, stdout)
			}
			if rows, _ := samplesOf(t, out); len(rows) != 1 {
				t.Errorf("%s, %v: %d samples", why, args, len(rows))
			}
		}
	}
	for empty, why := range emptyFiles(t, whole) {
		for _, m := range []struct{ path, want string }{
			{manifest("m.tsv", empty, filepath.Join(dir, "text.pcap"), a), "text.pcap: not a pcap or pcapng file\n"},
			{manifest("n.tsv", empty), "no capture of label a holds a flow with payload\n"},
		} {
			if strings.Contains(empty, "fifo") { // which can be read once
				continue
			}
			code, stdout, stderr := runForTest("dataset", "--manifest", m.path, "--out", filepath.Join(dir, "none"))
			if code != exitBadInput || stdout != "" || !strings.HasSuffix(stderr, m.want) {
				t.Errorf("%s: exit code %d, stdout %q, stderr %q", why, code, stdout, stderr)
			}
		}
	}
}
