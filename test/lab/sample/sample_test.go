// SPDX-License-Identifier: Apache-2.0

package main

import (
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"github.com/gopacket/gopacket/pcapgo"
)

// capture writes two interleaved flows of 10 frames with 1000 bytes each.
func capture(t *testing.T, path string, host byte) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	w := pcapgo.NewWriter(f)
	if err := w.WriteFileHeader(2048, layers.LinkTypeEthernet); err != nil {
		t.Fatal(err)
	}
	for i := range 20 {
		ip := &layers.IPv4{Version: 4, TTL: 64, Protocol: layers.IPProtocolTCP, SrcIP: net.IP{10, 0, 0, host}, DstIP: net.IP{10, 0, 0, 1}}
		tcp := &layers.TCP{SrcPort: layers.TCPPort(1000 + i%2), DstPort: 443, ACK: true, FIN: i >= 18}
		if err := tcp.SetNetworkLayerForChecksum(ip); err != nil {
			t.Fatal(err)
		}
		b := gopacket.NewSerializeBuffer()
		if err := gopacket.SerializeLayers(b, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true},
			&layers.Ethernet{SrcMAC: make([]byte, 6), DstMAC: make([]byte, 6), EthernetType: layers.EthernetTypeIPv4}, ip, tcp, gopacket.Payload(make([]byte, 946))); err != nil {
			t.Fatal(err)
		}
		ci := gopacket.CaptureInfo{Timestamp: time.Unix(int64(i), 0), CaptureLength: len(b.Bytes()), Length: len(b.Bytes())}
		if err := w.WritePacket(ci, b.Bytes()); err != nil {
			t.Fatal(err)
		}
	}
}

func TestSampleTakesDifferentFlows(t *testing.T) {
	from, out := t.TempDir(), t.TempDir()
	manifest := []string{"path\tlabel\tgroup\tprogram\tcipher\tcarried\tkind"}
	for i, row := range []string{
		"shadowsocks\tc0\tss\taes\thttp\ttunnel",
		"shadowsocks\tc1\tss\taes\tssh\ttunnel",
		"shadowsocks\tc1\tss\tchacha\tssh\ttunnel",
		"background\tc1\tnginx\tcurl\thttp\tordinary",
		"background\tc1\tnginx\tcurl\thttps\tordinary",
		"background\tc2\tlab\tudp\trandom-udp\trandom-like",
	} {
		name := filepath.Join("c", string(rune('a'+i))+".pcap")
		capture(t, filepath.Join(from, name), byte(10+i))
		manifest = append(manifest, name+"\t"+row)
	}
	if err := os.WriteFile(filepath.Join(from, "manifest.tsv"), []byte(strings.Join(manifest, "\n")+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := run(from, out, 2, 1); err != nil {
		t.Fatal(err)
	}
	for file, flows := range map[string]int{"shadowsocks.pcap": 2, "background.pcap": 3} {
		f, err := os.Open(filepath.Join(out, file))
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		r, err := pcapgo.NewReader(f)
		if err != nil {
			t.Fatal(err)
		}
		n := 0
		var last time.Time
		for {
			_, ci, err := r.ReadPacketData()
			if err != nil {
				break
			}
			if ci.Timestamp.Before(last) {
				t.Errorf("%s: packet %d is earlier than the one before", file, n)
			}
			last = ci.Timestamp
			n++
		}
		if want := flows * (2 + 1); n != want { // 2 reach flowBytes, then the FIN
			t.Errorf("%s has %d packets, want %d", file, n, want)
		}
	}
	labels, err := os.ReadFile(filepath.Join(out, "labels.tsv"))
	if err != nil {
		t.Fatal(err)
	}
	if got := strings.Count(string(labels), "\n"); got != 1+5 {
		t.Errorf("%d lines in labels.tsv, want a header and 5 flows:\n%s", got, labels)
	}
	// Of three flows of shadowsocks, two with the same cipher, it takes one of each.
	for _, cipher := range []string{"\taes\t", "\tchacha\t"} {
		if strings.Count(string(labels), cipher) != 1 {
			t.Errorf("not one flow with%s:\n%s", cipher, labels)
		}
	}
	if !strings.Contains(string(labels), "shadowsocks.pcap\ttcp\t10.0.0.1") {
		t.Errorf("labels.tsv does not name the endpoints:\n%s", labels)
	}
}

func TestSampleRefusesWhatIsNoRecording(t *testing.T) {
	dir := t.TempDir()
	for _, text := range []string{"", "path\tlabel\nx\ty\n"} {
		if err := os.WriteFile(filepath.Join(dir, "manifest.tsv"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := run(dir, t.TempDir(), 1, 1); err == nil {
			t.Errorf("manifest %q is accepted", text)
		}
	}
	if err := run(filepath.Join(dir, "none"), t.TempDir(), 1, 1); err == nil {
		t.Error("a directory that does not exist is accepted")
	}
}
