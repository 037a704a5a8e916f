// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"github.com/gopacket/gopacket/pcapgo"

	"github.com/earlydrop/earlydrop/test/lab"
)

func TestManifestResumesAfterATornLine(t *testing.T) {
	dir := t.TempDir()
	m, err := openManifest(dir, false)
	if err != nil {
		t.Fatal(err)
	}
	first := row{Path: "c/a.pcap", Label: "shadowsocks", Group: "c", Program: "p", Cipher: "x", Carried: "http", Kind: "tunnel", Flows: 3, Condition: "ip=4"}
	if err := m.add(first); err != nil {
		t.Fatal(err)
	}
	m.close()
	path := filepath.Join(dir, "manifest.tsv")
	f, err := os.OpenFile(path, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	fmt.Fprint(f, "c/b.pcap\tv2r")
	f.Close()

	if _, err := openManifest(dir, false); err == nil || !strings.Contains(err.Error(), "--resume") {
		t.Errorf("an existing manifest without resume: %v", err)
	}
	m, err = openManifest(dir, true)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]row{first}, m.rows); diff != "" {
		t.Errorf("rows after resume (-want +got):\n%s", diff)
	}
	if !m.has("c/a.pcap") || m.has("c/b.pcap") {
		t.Error("what is recorded is not known")
	}
	second := row{Path: "c/b.pcap", Label: "v2ray", Flows: 1}
	if err := m.add(second); err != nil {
		t.Fatal(err)
	}
	m.close()
	if m, err = openManifest(dir, true); err != nil {
		t.Fatal(err)
	}
	defer m.close()
	if diff := cmp.Diff([]row{first, second}, m.rows); diff != "" {
		t.Errorf("rows at last (-want +got):\n%s", diff)
	}
}

func TestManifestOfOtherColumnsIsRefused(t *testing.T) {
	for _, text := range []string{"path\tlabel\n", strings.Join(columns, "\t") + "\nonly one\n", strings.Join(columns, "\t") + "\n" + strings.Repeat("x\t", len(columns)-1) + "x\n"} {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, "manifest.tsv"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if m, err := openManifest(dir, true); err == nil {
			m.close()
			t.Errorf("%q is accepted", text)
		}
	}
}

func TestConditionsAreDrawnFromTheSeedAlone(t *testing.T) {
	seen := map[string]bool{}
	versions, vlans, relays := map[int]int{}, 0, 0
	for i := range 200 {
		a, b := drawCondition(7, i), drawCondition(7, i)
		if a.Text != b.Text || a.Config.ClientNet4 != b.Config.ClientNet4 {
			t.Fatalf("condition %d differs:\n%s\n%s", i, a.Text, b.Text)
		}
		seen[a.Text] = true
		versions[a.Version]++
		if a.Config.VLAN > 0 {
			vlans++
		}
		if strings.Contains(a.Text, "relay=") {
			relays++
		}
		if strings.ContainsAny(a.Text, "\t\n") {
			t.Errorf("condition text %q does not fit a manifest", a.Text)
		}
		if m := a.Config.ClientLink.FarMAC; m[0]&1 != 0 {
			t.Errorf("%v is a multicast address", m)
		}
	}
	if len(seen) < 195 {
		t.Errorf("only %d of 200 conditions differ", len(seen))
	}
	for what, n := range map[string]int{"IPv4": versions[4], "IPv6": versions[6], "VLAN": vlans, "relay": relays} {
		if n < 20 || n > 180 {
			t.Errorf("%s in %d of 200 conditions", what, n)
		}
	}
	if drawCondition(8, 0).Text == drawCondition(7, 0).Text {
		t.Error("another seed draws the same condition")
	}
}

func TestPortsAreGivenOnce(t *testing.T) {
	p := newPorts(1, 0)
	seen := map[uint16]bool{53: true, 69: true}
	usual := 0
	for range 60 {
		port := p.next()
		if seen[port] {
			t.Fatalf("port %d is given twice", port)
		}
		if port >= 30000 {
			t.Errorf("port %d is in the range of clients or of FTP", port)
		}
		for _, u := range usualPorts {
			if u == port {
				usual++
			}
		}
		seen[port] = true
	}
	if usual == 0 {
		t.Error("no usual port is given")
	}
}

func TestScriptsPlayToTheEnd(t *testing.T) {
	others := []string{"bittorrent", "sip-tcp", "syslog-tcp", "telnet", "http-gzip", "tls-alert"}
	for _, v := range append(others, variants...) {
		for seed := range uint64(20) {
			s := drawScript(rand.New(rand.NewPCG(seed, 0)), v)
			if len(s) == 0 {
				t.Fatalf("%s: empty script", v)
			}
			a, b := net.Pipe()
			deadline := time.Now().Add(time.Minute)
			_, _ = a.SetDeadline(deadline), b.SetDeadline(deadline)
			errc := make(chan error, 1)
			go func() { errc <- s.play(b, true) }()
			if err := s.play(a, false); err != nil {
				t.Fatalf("%s, seed %d, client: %v", v, seed, err)
			}
			if err := <-errc; err != nil {
				t.Fatalf("%s, seed %d, server: %v", v, seed, err)
			}
			a.Close()
			b.Close()
		}
	}
}

func TestWebSocketFramesReadBack(t *testing.T) {
	for _, n := range []int{0, 1, 125, 126, 3000} {
		data := bytes.Repeat([]byte("x"), n)
		for _, mask := range [][]byte{nil, {1, 2, 3, 4}} {
			var b bytes.Buffer
			if err := writeWebSocket(&b, data, mask); err != nil {
				t.Fatal(err)
			}
			got, err := readWebSocket(bufio.NewReader(&b))
			if err != nil || !bytes.Equal(got, data) {
				t.Errorf("%d bytes, mask %v: got %d bytes, %v", n, mask, len(got), err)
			}
		}
	}
}

var testServer = netip.MustParseAddr("10.0.2.2")

// tcpFrame returns a frame of a client (port 40000+n) to a server port, or
// back.
func tcpFrame(t *testing.T, n, port uint16, back bool, set func(*layers.TCP), payload int) lab.Frame {
	t.Helper()
	ip := &layers.IPv4{Version: 4, TTL: 64, Protocol: layers.IPProtocolTCP, SrcIP: net.IP{10, 0, 1, 2}, DstIP: net.IP(testServer.AsSlice())}
	tcp := &layers.TCP{SrcPort: layers.TCPPort(40000 + n), DstPort: layers.TCPPort(port), ACK: true}
	if back {
		ip.SrcIP, ip.DstIP = ip.DstIP, ip.SrcIP
		tcp.SrcPort, tcp.DstPort = tcp.DstPort, tcp.SrcPort
	}
	if set != nil {
		set(tcp)
	}
	if err := tcp.SetNetworkLayerForChecksum(ip); err != nil {
		t.Fatal(err)
	}
	buf := gopacket.NewSerializeBuffer()
	err := gopacket.SerializeLayers(buf, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true},
		&layers.Ethernet{SrcMAC: make(net.HardwareAddr, 6), DstMAC: make(net.HardwareAddr, 6), EthernetType: layers.EthernetTypeDot1Q},
		&layers.Dot1Q{VLANIdentifier: 9, Type: layers.EthernetTypeIPv4}, ip, tcp, gopacket.Payload(make([]byte, payload)))
	if err != nil {
		t.Fatal(err)
	}
	return lab.Frame{Time: time.Unix(1, 0), Data: buf.Bytes(), Wire: len(buf.Bytes())}
}

func count(t *testing.T, path string) int {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	r, err := pcapgo.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	for n := 0; ; n++ {
		if _, _, err := r.ReadPacketData(); err != nil {
			return n
		}
	}
}

func TestFlowsGoToTheSectionOfTheirStart(t *testing.T) {
	syn := func(t *layers.TCP) { t.SYN, t.ACK = true, false }
	fin := func(t *layers.TCP) { t.FIN = true }
	dir := t.TempDir()
	r := &recorder{server: testServer, sections: map[uint16]*section{}, flows: map[flowKey]*flowState{}}
	d := newDecoder()
	take := func(f lab.Frame) {
		t.Helper()
		p, ok := d.decode(f.Data)
		if !ok {
			t.Fatal("frame is not understood")
		}
		r.take(p, f)
	}
	section := func(name string) *section {
		s, err := newSection(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	a, b := section("a.pcap"), section("b.pcap")

	take(tcpFrame(t, 0, 443, false, syn, 0)) // nobody's
	r.begin(a, 443)
	take(tcpFrame(t, 0, 443, false, nil, 10)) // still nobody's: began before
	take(tcpFrame(t, 1, 443, false, syn, 0))
	take(tcpFrame(t, 1, 443, true, nil, 0))
	take(tcpFrame(t, 1, 443, false, nil, 100))
	take(tcpFrame(t, 2, 80, false, syn, 0)) // another port
	r.begin(b, 443)
	take(tcpFrame(t, 1, 443, true, nil, 100)) // stays with a
	take(tcpFrame(t, 3, 443, false, syn, 0))
	take(tcpFrame(t, 3, 443, false, syn, 0)) // again, lost before
	for range 100 {
		take(tcpFrame(t, 3, 443, false, nil, 100))
	}
	take(tcpFrame(t, 3, 443, false, fin, 0))
	take(tcpFrame(t, 3, 443, true, fin, 0))
	take(tcpFrame(t, 4, 443, false, syn, 0)) // never carries anything

	if flows, err := a.finish(0, 1); flows != 1 || err != nil {
		t.Errorf("first section: %d flows, %v", flows, err)
	}
	if flows, err := b.finish(0, 1); flows != 1 || err != nil {
		t.Errorf("second section: %d flows, %v", flows, err)
	}
	if got := count(t, filepath.Join(dir, "a.pcap")); got != 4 {
		t.Errorf("first section: %d packets, want 4", got)
	}
	// 64 frames of the long flow, its two FINs, and a SYN of the empty one.
	if got := count(t, filepath.Join(dir, "b.pcap")); got != flowFrames+2+1 {
		t.Errorf("second section: %d packets, want %d", got, flowFrames+3)
	}
	c := section("c.pcap")
	if flows, err := c.finish(0, 0); flows != 0 || err != nil {
		t.Errorf("empty section: %d flows, %v", flows, err)
	}
	left, err := filepath.Glob(filepath.Join(dir, "c.pcap*"))
	if err != nil || len(left) != 0 {
		t.Errorf("an empty section leaves %v", left)
	}
}

func TestFinishWaitsForFlowsToClose(t *testing.T) {
	s, err := newSection(filepath.Join(t.TempDir(), "a.pcap"))
	if err != nil {
		t.Fatal(err)
	}
	if s.allClosed(1) {
		t.Error("a section whose flow was not seen yet counts as closed")
	}
	st := &flowState{section: s}
	key := flowKey{}
	s.add(key, st, 0, packet{payload: true}, lab.Frame{Data: []byte{1}, Wire: 1})
	if s.allClosed(1) {
		t.Error("an open flow counts as closed")
	}
	s.add(key, st, 0, packet{fin: true}, lab.Frame{Data: []byte{1}, Wire: 1})
	s.add(key, st, 1, packet{fin: true}, lab.Frame{Data: []byte{1}, Wire: 1})
	if !s.allClosed(1) {
		t.Error("a closed flow counts as open")
	}
	if _, err := s.finish(time.Second, 1); err != nil {
		t.Fatal(err)
	}
}

// A whole small recording: each label is there, every file has its flows, and
// a resumed one has nothing left to do.
func TestRecordingHasAllLabelsAndResumes(t *testing.T) {
	if missing := lab.Missing(); missing != "" {
		if os.Getenv("EARLYDROP_NEED_LAB") != "" {
			t.Fatalf("EARLYDROP_NEED_LAB is set, but: %s", missing)
		}
		t.Skip(missing)
	}
	if testing.Short() {
		t.Skip("takes many seconds")
	}
	o := options{out: t.TempDir(), programs: "nowhere", budget: time.Minute, seed: 5, conditions: 1, parallel: 1, workers: 8, scale: 0.2}
	if err := run(context.Background(), o); err != nil {
		t.Fatal(err)
	}
	m, err := openManifest(o.out, true)
	if err != nil {
		t.Fatal(err)
	}
	m.close()
	labels, kinds := map[string]int{}, map[string]int{}
	for _, r := range m.rows {
		labels[r.Label] += r.Flows
		kinds[r.Kind] += r.Flows
		if n := count(t, filepath.Join(o.out, r.Path)); n < r.Flows {
			t.Errorf("%s has %d packets of %d flows", r.Path, n, r.Flows)
		}
	}
	for label, least := range map[string]int{background: 20, shadowsocks: 6, v2ray: 6, vless: 1, sshLabel: 2} {
		if labels[label] < least {
			t.Errorf("%d flows of %s, want at least %d; by label %v", labels[label], label, least, labels)
		}
	}
	if kinds[randomLike] < 10 || kinds[ordinary] < 10 {
		t.Errorf("flows by kind %v", kinds)
	}
	// Programs that this machine may lack add labels; where they are, so are these.
	for program, label := range map[string]string{"xray": trojan, "obfs4proxy": obfs4, "openvpn": openvpn, "wireguard-go": wireguard, "microsocks": socks5} {
		if _, err := lab.Program(program); err == nil && labels[label] == 0 {
			t.Errorf("%s is there, but nothing of %s was recorded", program, label)
		}
	}
	o.resume = true
	if err := run(context.Background(), o); err != nil {
		t.Fatal(err)
	}
	again, err := openManifest(o.out, true)
	if err != nil {
		t.Fatal(err)
	}
	again.close()
	if diff := cmp.Diff(m.rows, again.rows); diff != "" {
		t.Errorf("resuming a complete recording changed it (-first +second):\n%s", diff)
	}
}
