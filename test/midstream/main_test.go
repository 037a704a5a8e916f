// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"errors"
	"fmt"
	"net"
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

// counted returns the number of flows of each kind.
func counted(t *testing.T, out string) map[string]int {
	t.Helper()
	flows := map[string]int{}
	for line := range strings.Lines(out) {
		for _, kind := range kindNames {
			if rest, ok := strings.CutPrefix(line, kind+" "); ok {
				var n, dropped int
				if _, err := fmt.Sscanf(strings.ReplaceAll(rest, ",", " "), "%d %d", &n, &dropped); err != nil || dropped > n {
					t.Errorf("%q: %v", line, err)
				}
				flows[kind] = n
			}
		}
	}
	return flows
}

// Every flow that is cut is captured from its middle, which decide checks, and counted
// once; the same seed cuts at the same places.
func TestEachFlowIsCutOnce(t *testing.T) {
	var out [3]bytes.Buffer
	for i, seed := range []uint64{1, 1, 2} {
		if err := run(&out[i], "", seed, []string{"../testdata"}); err != nil {
			t.Fatal(err)
		}
	}
	if out[0].String() != out[1].String() {
		t.Errorf("one seed, two answers:\n%s%s", &out[0], &out[1])
	}
	flows := counted(t, out[0].String())
	if all := flows[kindNames[all]]; all < 10 || all != flows[kindNames[toHTTPS]]+flows[kindNames[toHTTP]]+flows[kindNames[toOther]] {
		t.Errorf("flows of each kind %v in:\n%s", flows, &out[0])
	}
}

// A handshake may come behind payload: data in the SYN, or a capture that lacks packets.
// What begins after the cut is no middle.
func TestFlowThatBeginsAfterTheCutIsLeftOut(t *testing.T) {
	file, err := os.Create(filepath.Join(t.TempDir(), "a.pcap"))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	w := pcapgo.NewWriter(file)
	if err := w.WriteFileHeader(1<<16, layers.LinkTypeEthernet); err != nil {
		t.Fatal(err)
	}
	client, server := net.IPv4(10, 0, 0, 1), net.IPv4(10, 0, 0, 2)
	write := func(at time.Duration, src, dst net.IP, tcp layers.TCP, payload string) {
		t.Helper()
		ip := &layers.IPv4{Version: 4, TTL: 64, SrcIP: src, DstIP: dst, Protocol: layers.IPProtocolTCP}
		tcp.SrcPort, tcp.DstPort, tcp.Window = 4000, 4000, 1000
		err := tcp.SetNetworkLayerForChecksum(ip)
		buf := gopacket.NewSerializeBuffer()
		err = errors.Join(err, gopacket.SerializeLayers(buf, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true},
			&layers.Ethernet{SrcMAC: make(net.HardwareAddr, 6), DstMAC: make(net.HardwareAddr, 6), EthernetType: layers.EthernetTypeIPv4}, ip, &tcp, gopacket.Payload(payload)))
		frame := buf.Bytes()
		err = errors.Join(err, w.WritePacket(gopacket.CaptureInfo{Timestamp: time.Unix(1, 0).Add(at), CaptureLength: len(frame), Length: len(frame)}, frame))
		if err != nil {
			t.Fatal(err)
		}
	}
	// No time passes after the SYN, so that the cut is right behind it.
	write(0, client, server, layers.TCP{SYN: true, Seq: 10}, "GET")
	write(time.Second, server, client, layers.TCP{SYN: true, ACK: true, Seq: 50, Ack: 14}, "")
	write(time.Second, client, server, layers.TCP{ACK: true, Seq: 14, Ack: 51}, " /")
	var out bytes.Buffer
	if err := run(&out, "", 1, []string{file.Name()}); err != nil {
		t.Fatal(err)
	}
	if flows := counted(t, out.String()); flows[kindNames[all]] != 0 || !strings.Contains(out.String(), ", 1 with another one after the cut, ") {
		t.Errorf("counted:\n%s", &out)
	}
}

func TestRecordedDownloadsAreMeasured(t *testing.T) {
	if missing := lab.Missing(); missing != "" {
		if os.Getenv("EARLYDROP_NEED_LAB") != "" {
			t.Fatalf("EARLYDROP_NEED_LAB is set, but: %s", missing)
		}
		t.Skip(missing)
	}
	folder := filepath.Join(t.TempDir(), "downloads")
	few := []transfer{{name: "https", flows: 4, https: true, options: []string{"--http2"}}, {name: "http", flows: 3, text: true}}
	if err := record(t.Context(), folder, 1, few); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if err := run(&out, "", 1, []string{folder}); err != nil {
		t.Fatal(err)
	}
	want := map[string]int{"all": 7, "to port 443": 4, "to port 80": 3, "to other ports": 0, "responder sent 100 KB or more": 7}
	if diff := cmp.Diff(want, counted(t, out.String())); diff != "" {
		t.Errorf("flows (-want +got):\n%s\n%s", diff, &out)
	}
	if err := record(t.Context(), folder, 1, few); !errors.Is(err, os.ErrExist) {
		t.Errorf("into the folder that is there: %v", err)
	}
}
