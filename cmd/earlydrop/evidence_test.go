// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"github.com/gopacket/gopacket/pcapgo"

	"github.com/earlydrop/earlydrop/cmd/earlydrop/event"
)

// copies is a capture of one connection of testdata/shadowsocks.pcap, made so often: each
// with the addresses and at the time that change says.
func copies(t *testing.T, n int, change func(i int, client net.IP) (net.IP, time.Duration)) string {
	t.Helper()
	return copiesOf(t, 51628, n, change)
}

// copiesOf is copies of the connection from a port.
func copiesOf(t *testing.T, from layers.TCPPort, n int, change func(i int, client net.IP) (net.IP, time.Duration)) string {
	t.Helper()
	in, err := os.Open("../../test/testdata/shadowsocks.pcap")
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	r, err := pcapgo.NewReader(in)
	if err != nil {
		t.Fatal(err)
	}
	type packet struct {
		gopacket.Packet
		at time.Duration
	}
	var packets []packet
	var client, server layers.TCPPort
	var first time.Time
	var clientIP net.IP
	for {
		data, info, err := r.ReadPacketData()
		if err != nil {
			break
		}
		p := gopacket.NewPacket(data, r.LinkType(), gopacket.Default)
		tcp, ok := p.TransportLayer().(*layers.TCP)
		if !ok {
			continue
		}
		if packets == nil && tcp.SrcPort == from {
			client, server, first = tcp.SrcPort, tcp.DstPort, info.Timestamp
			clientIP = p.NetworkLayer().(*layers.IPv4).SrcIP
		}
		if tcp.SrcPort == client && tcp.DstPort == server || tcp.SrcPort == server && tcp.DstPort == client {
			packets = append(packets, packet{p, info.Timestamp.Sub(first)})
		}
	}
	path := filepath.Join(t.TempDir(), "copies.pcap")
	out, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	w := pcapgo.NewWriter(out)
	if err := w.WriteFileHeader(65535, r.LinkType()); err != nil {
		t.Fatal(err)
	}
	for i := range n {
		addr, at := change(i, clientIP)
		for _, p := range packets {
			ip, tcp := *p.NetworkLayer().(*layers.IPv4), *p.TransportLayer().(*layers.TCP)
			if tcp.SrcPort == client {
				ip.SrcIP, tcp.SrcPort = addr, layers.TCPPort(20000+i)
			} else {
				ip.DstIP, tcp.DstPort = addr, layers.TCPPort(20000+i)
			}
			if err := tcp.SetNetworkLayerForChecksum(&ip); err != nil {
				t.Fatal(err)
			}
			buffer := gopacket.NewSerializeBuffer()
			link := p.LinkLayer().(gopacket.SerializableLayer)
			if err := gopacket.SerializeLayers(buffer, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}, link, &ip, &tcp, gopacket.Payload(tcp.Payload)); err != nil {
				t.Fatal(err)
			}
			data := buffer.Bytes()
			when := first.Add(at + p.at)
			if err := w.WritePacket(gopacket.CaptureInfo{Timestamp: when, CaptureLength: len(data), Length: len(data)}, data); err != nil {
				t.Fatal(err)
			}
		}
	}
	return path
}

// fates returns what replay says of each flow, in a word or two, and what it warns of.
func fates(t *testing.T, policy, capture string) (fates []string, warnings string) {
	t.Helper()
	code, stdout, stderr := runForTest("replay", "--json", "--policy", writeFile(t, "p.yaml", policy), capture)
	if code != exitOK {
		t.Fatalf("code %d: %s", code, stderr)
	}
	events, err := event.DecodeAll([]byte(stdout))
	if err != nil {
		t.Fatal(err)
	}
	return fatesOf(events), stderr
}

func fatesOf(events []event.Event) (fates []string) {
	for _, e := range events {
		v := e.(*event.Verdict)
		fates = append(fates, strings.TrimSpace(v.Decision+" "+v.Reason+" "+v.Scope))
	}
	return fates
}

func TestReplayActsOnEvidenceAtTheThirdFlow(t *testing.T) {
	minutely := func(i int, client net.IP) (net.IP, time.Duration) { return client, time.Duration(i) * time.Minute }
	capture := copies(t, 5, minutely)
	const policy = "rules: [{name: pairs, class: [shadowsocks, v2ray, obfs4], proto: tcp, meanwhile: log, action: drop, ttl: 7d, evidence: {flows: 3, share: 0.6, within: 1h}}]"
	const want = "log meanwhile, log meanwhile, drop evidence pair, drop pair pair, drop pair pair"
	for range 5 {
		if got, warnings := fates(t, policy, capture); strings.Join(got, ", ") != want || strings.Contains(warnings, "warning") {
			t.Fatalf("%s, want %s\n%s", strings.Join(got, ", "), want, warnings)
		}
	}
	got, _ := fates(t, strings.Replace(policy, "within: 1h", "within: 90s", 1), capture)
	if text := strings.Join(got, ", "); strings.Contains(text, "pair") {
		t.Errorf("flows a minute apart are no evidence within 90 s: %s", text)
	}
}

// A model, or a rule, that calls everything a tunnel reaches a limit, and what it does pauses.
func TestReplayPausesAboveALimit(t *testing.T) {
	const policy = "rules: [{name: flows, class: [shadowsocks, v2ray, obfs4], action: drop, ttl: 1m}]"
	hosts := copies(t, 40, func(i int, _ net.IP) (net.IP, time.Duration) {
		return net.IPv4(10, 7, 0, byte(i+1)), time.Duration(i) * time.Second
	})
	for range 3 {
		got, warnings := fates(t, policy, hosts)
		dropped, paused := 0, 0
		for _, f := range got {
			switch f {
			case "drop rule":
				dropped++
			case "pass paused":
				paused++
			}
		}
		if len(got) != 40 || dropped != 7 || paused != 33 || !strings.Contains(warnings, "the limit share of the policy was reached: of 8 initiators in an hour, flows of 8 were treated; what rules do without evidence paused until") {
			t.Fatalf("%d dropped, %d paused of %d\n%s", dropped, paused, len(got), warnings)
		}
	}
	if got, warnings := fates(t, "limits: none\n"+policy, hosts); strings.Contains(strings.Join(got, ","), "paused") || strings.Contains(warnings, "limit") {
		t.Errorf("no limits: %v\n%s", got, warnings)
	}
	one := copies(t, 40, func(i int, client net.IP) (net.IP, time.Duration) {
		return client, time.Duration(i) * 60 * time.Millisecond
	})
	if got, warnings := fates(t, policy, one); strings.Join(got, ",") != strings.Repeat("drop rule,", 39)+"drop rule" {
		t.Errorf("one host with a thousand tunnels a minute: %v\n%s", got, warnings)
	}
}

// Where nothing is masqueraded, and without evidence, the policy is as it was.
func TestPoliciesAreAsTheyWereWithoutMasquerade(t *testing.T) {
	model, err := readPolicyModel("")
	if err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{"mode: enforce", "rules: [{class: shadowsocks, action: drop, ttl: 1m, evidence: {flows: 2, share: 1, within: 1h}}]"} {
		p, err := loadPolicy(writeFile(t, "p.yaml", text), model)
		if err != nil {
			t.Fatal(err)
		}
		for _, builtIn := range []bool{false, true} {
			if got, told, err := forInterfaces(p, builtIn, []string{"lo", fmt.Sprintf("no-such-%d", os.Getpid()%1000)}); got != p || told != "" || err != nil {
				t.Errorf("%s: %q, %v", text, told, err)
			}
		}
	}
}
