// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"github.com/gopacket/gopacket/pcapgo"

	"github.com/earlydrop/earlydrop/cmd/earlydrop/dataset"
	"github.com/earlydrop/earlydrop/loader/flow"
)

// testPacket is a packet of a capture that a test writes.
type testPacket struct {
	at       time.Duration // since testStart
	src, dst string        // "10.0.0.1:1000"
	udp      bool
	flags    string // of S, A, F, R
	payload  []byte
	padding  int // bytes behind the IP packet
}

var testStart = time.Date(2026, 5, 4, 3, 2, 1, 234567000, time.UTC)

// conversation returns a TCP connection from src to dst that carries one
// message each way.
func conversation(at time.Duration, src, dst string, request, response []byte) []testPacket {
	ms := time.Millisecond
	return []testPacket{
		{at: at, src: src, dst: dst, flags: "S"},
		{at: at + 1*ms, src: dst, dst: src, flags: "SA"},
		{at: at + 2*ms, src: src, dst: dst, flags: "A"},
		{at: at + 3*ms, src: src, dst: dst, flags: "A", payload: request},
		{at: at + 4*ms, src: dst, dst: src, flags: "A", payload: response},
		{at: at + 5*ms, src: src, dst: dst, flags: "FA"},
	}
}

// captureBytes returns a pcap file of the packets. Segments are numbered as the
// sender's stack would do it, from 0.
func captureBytes(t testing.TB, packets ...testPacket) []byte {
	t.Helper()
	var file bytes.Buffer
	w := pcapgo.NewWriter(&file)
	if err := w.WriteFileHeader(65535, layers.LinkTypeEthernet); err != nil {
		t.Fatal(err)
	}
	next := map[string]uint32{} // sequence numbers by sender and receiver
	for _, p := range packets {
		src, err := net.ResolveTCPAddr("tcp", p.src)
		if err != nil {
			t.Fatal(err)
		}
		dst, err := net.ResolveTCPAddr("tcp", p.dst)
		if err != nil {
			t.Fatal(err)
		}
		eth := &layers.Ethernet{SrcMAC: net.HardwareAddr{2, 0, 0, 0, 0, 1}, DstMAC: net.HardwareAddr{2, 0, 0, 0, 0, 2},
			EthernetType: layers.EthernetTypeIPv4}
		ip := &layers.IPv4{Version: 4, TTL: 64, Id: uint16(len(file.Bytes())), SrcIP: src.IP, DstIP: dst.IP, Protocol: layers.IPProtocolTCP}
		var transport interface {
			gopacket.SerializableLayer
			SetNetworkLayerForChecksum(gopacket.NetworkLayer) error
		} = &layers.TCP{SrcPort: layers.TCPPort(src.Port), DstPort: layers.TCPPort(dst.Port),
			Window: 65535, SYN: strings.Contains(p.flags, "S"), ACK: strings.Contains(p.flags, "A"),
			FIN: strings.Contains(p.flags, "F"), RST: strings.Contains(p.flags, "R")}
		if tcp, ok := transport.(*layers.TCP); ok {
			tcp.Seq = next[p.src+p.dst]
			if tcp.ACK {
				tcp.Ack = next[p.dst+p.src]
			}
			next[p.src+p.dst] += uint32(len(p.payload) + strings.Count(p.flags, "S") + strings.Count(p.flags, "F"))
		}
		if p.udp {
			ip.Protocol = layers.IPProtocolUDP
			transport = &layers.UDP{SrcPort: layers.UDPPort(src.Port), DstPort: layers.UDPPort(dst.Port)}
		}
		if err := transport.SetNetworkLayerForChecksum(ip); err != nil {
			t.Fatal(err)
		}
		buf := gopacket.NewSerializeBuffer()
		if err := gopacket.SerializeLayers(buf, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}, eth, ip, transport,
			gopacket.Payload(p.payload)); err != nil {
			t.Fatal(err)
		}
		frame := append(buf.Bytes(), make([]byte, p.padding)...)
		if err := w.WritePacket(gopacket.CaptureInfo{Timestamp: testStart.Add(p.at), CaptureLength: len(frame), Length: len(frame)}, frame); err != nil {
			t.Fatal(err)
		}
	}
	return file.Bytes()
}

// writeFiles writes files below a new folder and returns it.
func writeFiles(t testing.TB, files map[string][]byte) string {
	t.Helper()
	dir := t.TempDir()
	for name, b := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, b, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// datasetFixture is a folder with two manifests and a folder of background.
func datasetFixture(t testing.TB) string {
	long := bytes.Repeat([]byte("v"), 1200)
	ss := captureBytes(t, conversation(0, "10.0.0.1:1001", "10.9.0.1:8388", []byte("ss one"), long)...)
	v2 := captureBytes(t, conversation(0, "10.0.0.1:1002", "10.9.0.2:443", long, nil)...)
	dns := captureBytes(t, testPacket{at: 0, src: "10.0.0.1:53001", dst: "10.9.0.3:53", udp: true, payload: []byte("q")},
		testPacket{at: 1500*time.Microsecond + 499, src: "10.9.0.3:53", dst: "10.0.0.1:53001", udp: true, payload: []byte("answer")})
	// The same packets on another port: the same image.
	again := captureBytes(t, testPacket{at: 0, src: "10.0.0.1:53002", dst: "10.9.0.3:53", udp: true, payload: []byte("q")},
		testPacket{at: 7 * time.Millisecond, src: "10.9.0.3:53", dst: "10.0.0.1:53002", udp: true, payload: []byte("answer")})
	return writeFiles(t, map[string][]byte{
		"lab/one.tsv":         []byte("path\tlabel\tgroup\tprogram\n\nruns\tshadowsocks\tlab-1\tlibev\n"),
		"lab/two.tsv":         []byte("group\tcipher\tpath\tlabel\r\nlab-2\taes\tv2.pcap\tv2ray\r\n"),
		"lab/runs/a.pcap":     ss,
		"lab/runs/.hidden":    []byte("ignored"),
		"lab/v2.pcap":         v2,
		"pcaps/x/y/dns.pcap":  dns,
		"pcaps/z/again.pcap":  again,
		"pcaps/top.pcap":      captureBytes(t, conversation(0, "10.0.0.1:1003", "10.9.0.4:25", []byte("EHLO"), nil)...),
		"pcaps/z/cut.pcap":    append(captureBytes(t, conversation(0, "10.0.0.1:1004", "10.9.0.4:25", []byte("MAIL"), nil)...), 1, 2, 3),
		"pcaps/z/readme.text": []byte("no capture"),
	})
}

func TestDatasetHoldsTheSamples(t *testing.T) {
	dir := datasetFixture(t)
	out := filepath.Join(dir, "out")
	code, stdout, stderr := runForTest("dataset", "--manifest", filepath.Join(dir, "lab/one.tsv"), "--manifest", filepath.Join(dir, "lab/two.tsv"),
		"--captures", filepath.Join(dir, "pcaps"), "--label", "background", "--out", out)
	if code != exitOK {
		t.Fatalf("exit code %d: %s", code, stderr)
	}
	for _, want := range []string{"warning: 2 files could not be read", "1 x not a pcap or pcapng file, first", "1 x file is cut off in the middle of a record"} {
		if !strings.Contains(stderr, want) {
			t.Errorf("stderr lacks %q:\n%s", want, stderr)
		}
	}

	table, err := os.ReadFile(filepath.Join(out, dataset.SamplesFile))
	if err != nil {
		t.Fatal(err)
	}
	want := strings.Join([]string{
		"index	label	group	file	src	dst	proto	captured	reason	cipher	program",
		"0	background	pcaps	top.pcap	10.0.0.1:1003	10.9.0.4:25	tcp	328	closed		",
		"1	background	x	x/y/dns.pcap	10.0.0.1:53001	10.9.0.3:53	udp	91	end		",
		"2	background	z	z/cut.pcap	10.0.0.1:1004	10.9.0.4:25	tcp	328	closed		",
		"3	shadowsocks	lab-1	runs/a.pcap	10.0.0.1:1001	10.9.0.1:8388	tcp	1024	full		libev",
		"4	v2ray	lab-2	v2.pcap	10.0.0.1:1002	10.9.0.2:443	tcp	1024	full	aes	",
	}, "\n") + "\n"
	if diff := cmp.Diff(want, string(table)); diff != "" {
		t.Errorf("%s (-want +got):\n%s", dataset.SamplesFile, diff)
	}

	capture := readNpy(t, filepath.Join(out, dataset.CaptureFile), "{'descr': '|u1', 'fortran_order': False, 'shape': (5, 1024), }", 5*1024)
	mask := readNpy(t, filepath.Join(out, dataset.MaskFile), "{'descr': '|u1', 'fortran_order': False, 'shape': (5, 1024), }", 5*1024)
	fields := readNpy(t, filepath.Join(out, dataset.FieldsFile), "{'descr': '|u1', 'fortran_order': False, 'shape': (5, 1024), }", 5*1024)
	packets := readNpy(t, filepath.Join(out, dataset.PacketsFile), "{'descr': '<i4', 'fortran_order': False, 'shape': (5, 32, 6), }", 5*32*6*4)
	session := readNpy(t, filepath.Join(out, dataset.SessionFile), "{'descr': '<i4', 'fortran_order': False, 'shape': (5, 64, 6), }", 5*64*6*4)

	dns, dnsMask := capture[1024:2048], mask[1024:2048]
	if !bytes.Equal(dns[:6], []byte{2, 0, 0, 0, 0, 2}) || dns[42] != 'q' || string(dns[85:91]) != "answer" || dns[91] != 0 {
		t.Errorf("capture of the DNS flow: %x", dns[:100])
	}
	// MAC addresses and ports for both recipes, TTL for strict only, payload kept.
	for off, want := range map[int]byte{0: 3, 12: 0, 22: 2, 34: 3, 42: 0, 43: 3, 90: 0} {
		if dnsMask[off] != want {
			t.Errorf("mask of byte %d is %d, want %d", off, dnsMask[off], want)
		}
	}
	var records [3][6]int32
	if _, err := binary.Decode(packets[32*6*4:], binary.LittleEndian, &records); err != nil {
		t.Fatal(err)
	}
	if want := [3][6]int32{{0, 43, 1, 0, 42, 1}, {43, 48, 0, 1500, 85, 6}, {-1}}; records != want {
		t.Errorf("packets of the DNS flow %v, want %v", records, want)
	}
	// The capture of the Shadowsocks flow ends in the answer, its session with the FIN.
	var sizes [7][6]int32
	if _, err := binary.Decode(session[3*64*6*4:], binary.LittleEndian, &sizes); err != nil {
		t.Fatal(err)
	}
	if want := [7][6]int32{{54, 0, 1, 0, 0x02, 65535}, {54, 0, 0, 1000, 0x12, 65535}, {54, 0, 1, 2000, 0x10, 65535},
		{60, 6, 1, 3000, 0x10, 65535}, {1254, 1200, 0, 4000, 0x10, 65535}, {54, 0, 1, 5000, 0x11, 65535}, {-1}}; sizes != want {
		t.Errorf("session of the Shadowsocks flow %v, want %v", sizes, want)
	}

	var d dataset.Info
	text, err := os.ReadFile(filepath.Join(out, dataset.InfoFile))
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(text, &d); err != nil {
		t.Fatal(err)
	}
	for off, want := range map[int]string{0: "Ethernet destination", 12: "EtherType", 22: "IPv4 TTL", 34: "UDP source port", 42: "payload", 43: "Ethernet destination", 90: "payload", 91: "payload"} {
		if number := fields[1024+off]; int(number) >= len(d.Fields) || d.Fields[number] != want {
			t.Errorf("byte %d of the DNS flow is of field %d of %q, want %q", off, number, d.Fields, want)
		}
	}
	d.Fields = nil
	h := sha256.New()
	for _, name := range []string{dataset.CaptureFile, dataset.MaskFile, dataset.FieldsFile, dataset.PacketsFile, dataset.SessionFile, dataset.SamplesFile} {
		b, err := os.ReadFile(filepath.Join(out, name))
		if err != nil {
			t.Fatal(err)
		}
		h.Write(b)
	}
	d.Counters = nil
	wantSet := dataset.Info{
		Format: 2, Samples: 5, Labels: map[string]int{"background": 3, "shadowsocks": 1, "v2ray": 1},
		Groups: map[string]map[string]int{"background": {"pcaps": 1, "x": 1, "z": 1}, "shadowsocks": {"lab-1": 1},
			"v2ray": {"lab-2": 1}},
		Duplicates: map[string]int{"background": 1}, Incomplete: map[string]int{}, Files: 7, Digest: "sha256:" + hex.EncodeToString(h.Sum(nil)),
	}
	if diff := cmp.Diff(wantSet, d); diff != "" {
		t.Errorf("%s (-want +got):\n%s", dataset.InfoFile, diff)
	}
	if !strings.Contains(stdout, "digest "+d.Digest+"\n") || !strings.Contains(stdout, "5 samples of 7 files") {
		t.Errorf("stdout:\n%s", stdout)
	}
}

// readNpy returns the data of a NumPy file and checks its header.
func readNpy(t *testing.T, path, header string, size int) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if len(b) != 128+size {
		t.Fatalf("%s has %d bytes, want %d", path, len(b), 128+size)
	}
	if string(b[:8]) != "\x93NUMPY\x01\x00" || int(binary.LittleEndian.Uint16(b[8:])) != 128-10 ||
		strings.TrimRight(string(b[10:128-1]), " ") != header || b[128-1] != '\n' {
		t.Fatalf("header of %s: %q, want %q", path, b[:128], header)
	}
	return b[128:]
}

func TestDatasetDigestDoesNotDependOnTheOrder(t *testing.T) {
	dir := datasetFixture(t)
	one, two, pcaps := filepath.Join(dir, "lab/one.tsv"), filepath.Join(dir, "lab/two.tsv"), filepath.Join(dir, "pcaps")
	digest := regexp.MustCompile(`digest (sha256:[0-9a-f]{64})`)
	var digests []string
	for _, args := range [][]string{
		{"--manifest", one, "--manifest", two, "--captures", pcaps, "--label", "background"},
		{"--captures", pcaps, "--label", "background", "--manifest", two, "--manifest", one},
	} {
		// The second run replaces the first one's folder.
		code, stdout, stderr := runForTest(append([]string{"dataset", "--out", filepath.Join(dir, "out")}, args...)...)
		match := digest.FindStringSubmatch(stdout)
		if code != exitOK || match == nil {
			t.Fatalf("exit code %d, stdout %q, stderr %q", code, stdout, stderr)
		}
		digests = append(digests, match[1])
	}
	if digests[0] != digests[1] {
		t.Errorf("digests differ: %v", digests)
	}
}

func TestDatasetRefusesBadInput(t *testing.T) {
	good := captureBytes(t, conversation(0, "10.0.0.1:1001", "10.9.0.1:443", []byte("hello"), nil)...)
	dir := writeFiles(t, map[string][]byte{
		"good.pcap":        good,
		"cut.pcap":         good[:len(good)-1],
		"silent.pcap":      captureBytes(t, testPacket{src: "10.0.0.1:1001", dst: "10.9.0.1:443", flags: "S"}),
		"mixed/good.pcap":  good,
		"mixed/notes.text": []byte("no capture"),
		"words/notes.text": []byte("no capture"),
		"words/more.text":  []byte("none either"),
		"quiet/a.pcap":     captureBytes(t, testPacket{src: "10.0.0.1:1001", dst: "10.9.0.1:443", flags: "S"}),
		"quiet/notes.text": []byte("no capture"),
		"taken/file":       []byte("precious"),
	})
	if err := os.Mkdir(filepath.Join(dir, "hollow"), 0o755); err != nil {
		t.Fatal(err)
	}
	header := "path\tlabel\tgroup\n"
	tests := []struct {
		name     string
		manifest string
		args     string // instead of --manifest; DIR is replaced
		want     string
	}{
		{"no --out", "", "--captures DIR/mixed --label a", "dataset needs --out"},
		{"no input", "", "--out DIR/out", "dataset needs --manifest or --captures"},
		{"captures without label", "", "--captures DIR/mixed --out DIR/out", "each --captures needs one --label: got 1 and 0"},
		{"an argument", "", "x --out DIR/out", `takes no argument, got "x"`},
		{"missing manifest", "", "--manifest DIR/none.tsv --out DIR/out", "DIR/none.tsv: no such file"},
		{"missing folder", "", "--captures DIR/none --label a --out DIR/out", "DIR/none: no such file"},
		{"captures is a file", "", "--captures DIR/good.pcap --label a --out DIR/out", "DIR/good.pcap is no folder"},
		{"empty folder", "", "--captures DIR/hollow --label a --out DIR/out", "DIR/hollow holds no file"},
		{"captures without a capture", "", "--captures DIR/words --label a --out DIR/out",
			"--captures DIR/words: none of its 2 files is a capture, the first is DIR/words/more.text: not a pcap or pcapng file"},
		{"captures without a flow", "", "--captures DIR/quiet --label a --out DIR/out",
			"--captures DIR/quiet: no capture in it holds a flow with payload whose beginning is there"},
		{"captures without a flow, of a label that has others", "", "--captures DIR/mixed --label a --captures DIR/quiet --label a --out DIR/out",
			"--captures DIR/quiet: no capture in it holds a flow"},
		{"label unknown", "", "--captures DIR/mixed --label unknown --out DIR/out", `label "unknown" is what a model answers`},
		{"manifest is a folder", "", "--manifest DIR/mixed --out DIR/out", "DIR/mixed: is a directory"},
		{"manifest is a capture", "", "--manifest DIR/good.pcap --out DIR/out", "DIR/good.pcap:1: no column \"path\""},
		{"label of captures", "", "--captures DIR/mixed --label Bad! --out DIR/out", `label "Bad!"`},
		{"out holds other files", "", "--captures DIR/mixed --label a --out DIR/taken", "DIR/taken holds other files"},
		{"out is a file", "", "--captures DIR/mixed --label a --out DIR/good.pcap", "not a directory"},
		{"empty manifest", "", "", "names no capture"},
		{"header alone", header, "", "names no capture"},
		{"missing column", "path\tlabel\ngood.pcap\ta\n", "", `manifest.tsv:1: no column "group"`},
		{"column twice", "path\tlabel\tgroup\tpath\n", "", `column "path" is there twice`},
		{"column without name", "path\tlabel\tgroup\t\n", "", "column 4 has no name"},
		{"column of ours", "path\tlabel\tgroup\tsrc\n", "", `column "src" is one that every dataset has`},
		{"too few fields", header + "good.pcap\ta\n", "", "manifest.tsv:2: 2 fields, but the header has 3"},
		{"missing file", header + "none.pcap\ta\tg\n", "", "manifest.tsv:2: lstat DIR/none.pcap: no such file"},
		{"empty label", header + "good.pcap\t\tg\n", "", "manifest.tsv:2: the label is empty"},
		{"bad label", header + "good.pcap\tShadow Socks\tg\n", "", `label "Shadow Socks"`},
		{"label in the wrong case", header + "good.pcap\tshadowsocks\tg\nsilent.pcap\tShadowsocks\tg\n", "",
			`manifest.tsv:3: label "Shadowsocks": labels are lower-case and without spaces, did you mean "shadowsocks"?`},
		{"label with a space", header + "good.pcap\tv2ray \tg\n", "", `manifest.tsv:2: label "v2ray ": labels are lower-case and without spaces, did you mean "v2ray"?`},
		{"label unknown in a manifest", header + "good.pcap\tUnknown\tg\n", "", `manifest.tsv:2: label "Unknown" is what a model answers about flows that are like none of its labels`},
		{"label too long", header + "good.pcap\t" + strings.Repeat("a", 65) + "\tg\n", "", "use up to 64 of"},
		{"empty group", header + "good.pcap\ta\t\n", "", `manifest.tsv:2: column "group" is empty`},
		{"folder without file", header + "hollow\ta\tg\n", "", "manifest.tsv:2: folder DIR/hollow holds no file"},
		{"folder with a file that is no capture", header + "mixed\ta\tg\n", "", "DIR/mixed/notes.text: not a pcap or pcapng file"},
		{"cut capture", header + "cut.pcap\ta\tg\n", "", "DIR/cut.pcap: file is cut off"},
		{"class without sample", header + "good.pcap\ta\tg\nsilent.pcap\tb\tg\n", "", "no capture of label b holds a flow with payload"},
		{"file named twice", header + "good.pcap\ta\tg\n./good.pcap\tb\tg\n", "", "DIR/good.pcap is named twice, as a of group g and as b of group g"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if tt.args == "" {
				tt.args = "--manifest DIR/manifest.tsv --out DIR/out"
			}
			if err := os.WriteFile(filepath.Join(dir, "manifest.tsv"), []byte(tt.manifest), 0o644); err != nil {
				t.Fatal(err)
			}
			before := listing(t, dir)
			code, stdout, stderr := runForTest(append([]string{"dataset"}, strings.Fields(strings.ReplaceAll(tt.args, "DIR", dir))...)...)
			if code != exitBadInput || stdout != "" {
				t.Errorf("exit code %d, want %d; stdout %q", code, exitBadInput, stdout)
			}
			if want := strings.ReplaceAll(tt.want, "DIR", dir); !strings.Contains(stderr, want) || strings.Count(stderr, "\n") != 1 {
				t.Errorf("stderr %q, want one line with %q", stderr, want)
			}
			if diff := cmp.Diff(before, listing(t, dir)); diff != "" {
				t.Errorf("files changed:\n%s", diff)
			}
		})
	}
}

func listing(t *testing.T, dir string) (names []string) {
	t.Helper()
	if err := filepath.WalkDir(dir, func(path string, _ os.DirEntry, err error) error {
		names = append(names, path)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	return names
}

func TestDatasetTimesAndLengthsFitTheirType(t *testing.T) {
	dir := filepath.Join(writeFiles(t, map[string][]byte{"with, comma/a.pcap": captureBytes(t,
		testPacket{src: "10.0.0.1:1001", dst: "10.9.0.1:443", flags: "S"},
		testPacket{src: "10.9.0.1:443", dst: "10.0.0.1:1001", flags: "SA"},
		testPacket{at: time.Hour, src: "10.0.0.1:1001", dst: "10.9.0.1:443", flags: "A", payload: []byte("late")})}), "with, comma")
	out := filepath.Join(dir, "out")
	if code, _, stderr := runForTest("dataset", "--captures", dir, "--label", "a", "--out", out); code != exitOK {
		t.Fatalf("exit code %d: %s", code, stderr)
	}
	packets := readNpy(t, filepath.Join(out, dataset.PacketsFile), "{'descr': '<i4', 'fortran_order': False, 'shape': (1, 32, 6), }", 32*6*4)
	var records [flow.MaxPackets][6]int32
	if _, err := binary.Decode(packets, binary.LittleEndian, &records); err != nil {
		t.Fatal(err)
	}
	if got := records[2][3]; got != 1<<31-1 {
		t.Errorf("time of a packet an hour late: %d µs, want the largest int32", got)
	}
}

// A short frame that a network card padded has no payload, in neither array.
func TestDatasetTakesPaddingForNoPayload(t *testing.T) {
	c := conversation(0, "10.0.0.1:1001", "10.9.0.1:443", []byte("hello"), []byte("x"))
	for i := range c {
		c[i].padding = max(0, 6-len(c[i].payload))
	}
	dir := writeFiles(t, map[string][]byte{"pcaps/a.pcap": captureBytes(t, c...)})
	out := filepath.Join(dir, "out")
	if code, _, stderr := runForTest("dataset", "--captures", filepath.Join(dir, "pcaps"), "--label", "a", "--out", out); code != exitOK {
		t.Fatalf("exit code %d: %s", code, stderr)
	}
	var records [flow.MaxPackets][6]int32
	packets := readNpy(t, filepath.Join(out, dataset.PacketsFile), "{'descr': '<i4', 'fortran_order': False, 'shape': (1, 32, 6), }", 32*6*4)
	if _, err := binary.Decode(packets, binary.LittleEndian, &records); err != nil {
		t.Fatal(err)
	}
	want := [7][6]int32{{0, 54, 1, 0, 54, 0}, {54, 54, 0, 1000, 108, 0}, {108, 54, 1, 2000, 162, 0}, {162, 59, 1, 3000, 216, 5},
		{221, 55, 0, 4000, 275, 1}, {276, 54, 1, 5000, 330, 0}, {-1}}
	if diff := cmp.Diff(want[:], records[:len(want)]); diff != "" {
		t.Errorf("packets (-want +got):\n%s", diff)
	}
	var sizes [64][6]int32
	session := readNpy(t, filepath.Join(out, dataset.SessionFile), "{'descr': '<i4', 'fortran_order': False, 'shape': (1, 64, 6), }", 64*6*4)
	if _, err := binary.Decode(session, binary.LittleEndian, &sizes); err != nil {
		t.Fatal(err)
	}
	for i, p := range sizes[:6] {
		if p[0] != want[i][1] || p[1] != want[i][5] {
			t.Errorf("packet %d of the session: %d bytes, %d of payload, want %d, %d", i, p[0], p[1], want[i][1], want[i][5])
		}
	}
}
