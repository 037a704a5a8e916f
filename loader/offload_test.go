// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"

	"github.com/earlydrop/earlydrop/loader/assembly"
	"github.com/earlydrop/earlydrop/loader/flow"
	f "github.com/earlydrop/earlydrop/loader/internal/frames"
)

// TestPartialSums: whether a segment that has no more than the sum of the pseudo-header is a
// decoy hangs on the hook that it comes by, and on ingress on the kind of the interface.
func TestPartialSums(t *testing.T) {
	const data = f.ACK | f.PSH
	for _, kind := range []partialSums{partialUnsure, partialRight, partialWrong} {
		k := loadKernel(t, config{partial: kind})
		for _, ends := range [][2]netip.AddrPort{{client, server}, {peer6, host6}} {
			for _, p := range paths {
				seg := func(up bool, seq, ack uint32, flags byte, body []byte) hop {
					src, dst, hook := ends[0], ends[1], p.client
					if !up {
						src, dst, hook = dst, src, p.server
					}
					return hop{hook, f.Ethernet(f.IP(src, dst, f.TCP, f.Numbered(f.Segment(src, dst, flags, nil, body), seq, ack)))}
				}
				// partial replaces a segment's checksum.
				partial := func(h hop) hop {
					at := 14 + 20
					if ends[0].Addr().Is6() {
						at = 14 + 40
					}
					sum := f.PseudoSum(ends[0], ends[1], f.TCP, len(h.frame)-at)
					return hop{h.hook, f.With(h.frame, at+16, byte(sum>>8), byte(sum))}
				}
				begin := []hop{seg(true, 1, 0, f.SYN, nil), seg(false, 1, 2, f.SYN|f.ACK, nil), seg(true, 2, 2, f.ACK, nil)}
				page, other := f.Payload(300), make([]byte, 300)
				decoy, ahead := partial(seg(true, 2, 2, data, other)), partial(seg(true, 70_000, 2, data, other))
				if kind != partialWrong || p.client == egress {
					decoy = partial(seg(true, 2, 2, data, page))
				}
				rest := []hop{seg(true, 2, 2, data, page), seg(true, 302, 2, data, f.Payload(1200))}
				for _, tt := range []struct {
					name     string
					hops     []hop
					partials uint64 // of the client
					signals  []string
					sample   bool
				}{
					{"none", slices.Concat(begin, rest), 0, nil, true},
					{"segment in place", slices.Concat(begin, []hop{decoy}, rest), 1, []string{"decoy"}, true},
					{"segment out of place", slices.Concat(begin, []hop{ahead}, rest), 1, nil, true},
					{"a third segment proves nothing", slices.Concat(begin[:2], []hop{partial(begin[2]), decoy}, rest), 2, nil, true},
					{"mid-stream", []hop{decoy, rest[0]}, 1, nil, false},
					{"a right checksum that happens to be the same", slices.Concat(begin, []hop{sameSum(t, seg, ends)}, rest[1:]), 0, nil, true},
				} {
					t.Run(fmt.Sprintf("%d/%s/client by %s/%s", kind, ends[0].Addr(), p.client, tt.name), func(t *testing.T) {
						k := k.emptied(t)
						var want, got []seen
						a := assembly.New(assembly.Options{IdleTimeout: time.Hour, StrictChecksums: true, OffCable: kind == partialWrong},
							func(_ *assembly.Flow, s *flow.Sample) { want = append(want, look(s)) }, nil)
						for i, h := range tt.hops {
							if k.run(h.hook, h.frame) {
								t.Error("a packet was dropped")
							}
							a.PacketFrom(step{hook: h.hook}.side(false), time.Unix(1, int64(i)*1000), h.frame, len(h.frame))
						}
						for _, s := range k.samples() {
							got = append(got, look(s))
						}
						counts, wantDecoys, wantPartials := k.counts(), uint64(0), uint64(0)
						var signals []string
						switch {
						case p.client == egress: // always an offload's
						case kind == partialUnsure:
							wantPartials = tt.partials
						case kind == partialWrong:
							wantDecoys, signals = tt.partials, tt.signals
						}
						if counts["decoys"]+counts["out_of_place"] < wantDecoys || wantDecoys == 0 && counts["decoys"] != 0 || counts["partial_sums"] != wantPartials {
							t.Errorf("counters %v, want %d decoys, %d partial_sums", counts, wantDecoys, wantPartials)
						}
						var seenSignals [][]string
						for _, s := range got {
							seenSignals = append(seenSignals, s.Signals)
						}
						if tt.sample && (len(got) != 1 || !slices.Equal(got[0].Signals, signals)) {
							t.Errorf("signals of what was handed over %q, want one capture with %q", seenSignals, signals)
						}
						if diff := cmp.Diff(want, got); diff != "" {
							t.Errorf("assembly and kernel differ (-assembly +kernel):\n%s", diff)
						}
					})
				}
			}
		}
	}
}

// sameSum is the client's first segment with a payload for which the right checksum is the
// sum of the pseudo-header.
func sameSum(t *testing.T, seg func(up bool, seq, ack uint32, flags byte, body []byte) hop, ends [2]netip.AddrPort) hop {
	t.Helper()
	body := f.Payload(300)
	at := 14 + 20
	if ends[0].Addr().Is6() {
		at = 14 + 40
	}
	for word := range 1 << 16 {
		binary.BigEndian.PutUint16(body, uint16(word))
		h := seg(true, 2, 2, f.ACK|f.PSH, body)
		if binary.BigEndian.Uint16(h.frame[at+16:]) == f.PseudoSum(ends[0], ends[1], f.TCP, len(h.frame)-at) {
			return h
		}
	}
	t.Fatal("no payload has such a checksum")
	return hop{}
}

// Of UDP the same holds, where a side has sent right datagrams as well.
func TestPartialSumsOfDatagrams(t *testing.T) {
	for _, kind := range []partialSums{partialUnsure, partialRight, partialWrong} {
		k := loadKernel(t, config{partial: kind})
		for _, p := range paths {
			for _, first := range []bool{true, false} { // it waits for an answer, or is captured at once
				k := k.emptied(t)
				right := udpWithSum(true, 100, false)
				decoy := udpWithSum(true, 200, true)
				hops := []hop{{p.client, right}, {p.client, decoy}, {p.server, udpWithSum(false, 100, false)}, {p.client, udpWithSum(true, 1000, false)}}
				if !first {
					hops[1], hops[2] = hops[2], hops[1]
				}
				for _, h := range hops {
					k.run(h.hook, h.frame)
				}
				got := k.samples()
				if len(got) != 1 {
					t.Fatalf("%d samples", len(got))
				}
				wantPackets, wantSignals := 4, flow.Signals(0)
				if kind == partialWrong && p.client != egress {
					wantPackets, wantSignals = 3, flow.SignalDecoy
				}
				if len(got[0].Packets) != wantPackets || got[0].Signals != wantSignals {
					t.Errorf("kind %d, client by %s, first %v: %d packets, signals %v, want %d, %v", kind, p.client, first, len(got[0].Packets), got[0].Signals.Names(), wantPackets, wantSignals.Names())
				}
			}
		}
	}
}

// udpWithSum is a datagram of the client or the server with a checksum, right or partial.
func udpWithSum(fromClient bool, n int, partial bool) []byte {
	src, dst := client, server
	if !fromClient {
		src, dst = dst, src
	}
	frame := udp(fromClient, n)
	const at = 14 + 20
	sum := f.PseudoSum(src, dst, f.UDP, len(frame)-at)
	if !partial {
		total := uint32(sum)
		d := slices.Concat(frame[at:at+6], []byte{0, 0}, frame[at+8:])
		if len(d)%2 == 1 {
			d = append(d, 0)
		}
		for ; len(d) > 0; d = d[2:] {
			total += uint32(binary.BigEndian.Uint16(d))
		}
		for total > 0xffff {
			total = total>>16 + total&0xffff
		}
		sum = ^uint16(total)
	}
	return f.With(frame, at+6, byte(sum>>8), byte(sum))
}

func TestPartialSumsByTheKindOfInterface(t *testing.T) {
	for _, tt := range []struct {
		name, kind, driver, bus string
		want                    partialSums
	}{
		{"network card", "device", "ixgbe", "0000:01:00.0", partialWrong},
		{"network card on a system's own bus", "device", "st_gmac", "1c30000.ethernet", partialWrong},
		{"USB adapter", "device", "r8152", "usb-0000:00:14.0-1", partialWrong},
		{"card that a machine emulates", "device", "e1000e", "0000:00:04.0", partialWrong},
		{"virtio", "device", "virtio_net", "0000:00:03.0", partialRight},
		{"virtio without PCI", "device", "virtio_net", "virtio0", partialRight},
		{"Xen", "device", "vif", "vif-0", partialRight},
		{"VMware", "device", "vmxnet3", "0000:03:00.0", partialUnsure},
		{"Hyper-V", "device", "hv_netvsc", "", partialUnsure},
		{"Amazon", "device", "ena", "0000:00:05.0", partialUnsure},
		{"one without a bus", "device", "e1000e", "", partialUnsure},
		{"one that does not say what it is", "device", "", "", partialUnsure},
		{"veth", "veth", "veth", "", partialRight},
		{"netkit", "netkit", "netkit", "", partialRight},
		{"tap", "tuntap", "tun", "tap", partialRight},
		{"VLAN", "vlan", "802.1Q VLAN Support", "N/A", partialUnsure},
		{"bond", "bond", "bonding", "", partialUnsure},
		{"bridge", "bridge", "bridge", "N/A", partialUnsure},
		{"WireGuard", "wireguard", "wireguard", "", partialUnsure},
		{"wireless", "wlan", "iwlwifi", "0000:02:00.0", partialUnsure},
	} {
		if got := partialSumsOf(tt.kind, tt.driver, tt.bus); got != tt.want {
			t.Errorf("%s: %d, want %d", tt.name, got, tt.want)
		}
	}
}

// What the kernel says of devices that can be made anywhere; and the programs are told.
func TestPartialSumsAreToldToThePrograms(t *testing.T) {
	inNamespace(t)
	add := func(l netlink.Link) {
		t.Helper()
		if err := netlink.LinkAdd(l); err != nil {
			t.Fatalf("add %s: %v", l.Type(), err)
		}
	}
	named := func(name string) netlink.LinkAttrs { return netlink.LinkAttrs{Name: name} }
	add(&netlink.Veth{LinkAttrs: named("veth0"), PeerName: "veth1"})
	add(&netlink.Bridge{LinkAttrs: named("br0")})
	add(&netlink.Tuntap{LinkAttrs: named("tap0"), Mode: netlink.TUNTAP_MODE_TAP})
	add(&netlink.Tuntap{LinkAttrs: named("tun0"), Mode: netlink.TUNTAP_MODE_TUN})
	for name, want := range map[string]partialSums{
		"lo": partialRight, "veth0": partialRight, "tap0": partialRight, "tun0": partialRight,
		"br0": partialUnsure,
	} {
		ifc, err := findInterface(name)
		if err != nil {
			t.Fatal(err)
		}
		spec, err := configuredSpec(Options{}, ifc, ingressPlan{hook: IngressXDP})
		if err != nil {
			t.Fatal(err)
		}
		var told partialSums
		if err := spec.Variables[datapathVarCfgPartialSums].Get(&told); err != nil || told != want {
			t.Errorf("%s: %d, want %d (%v)", name, told, want, err)
		}
	}
}
