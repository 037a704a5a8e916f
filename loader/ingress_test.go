// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"

	"github.com/earlydrop/earlydrop/loader/flow"
	f "github.com/earlydrop/earlydrop/loader/internal/frames"
)

// What has no network card's driver beneath gains nothing by XDP.
func TestAutoTakesTCXOnVirtualInterfaces(t *testing.T) {
	inNamespace(t)
	named := func(name string) netlink.LinkAttrs { return netlink.LinkAttrs{Name: name} }
	for _, l := range []netlink.Link{
		&netlink.Bridge{LinkAttrs: named("br0")},
		&netlink.Tuntap{LinkAttrs: named("tun0"), Mode: netlink.TUNTAP_MODE_TUN}, &netlink.Tuntap{LinkAttrs: named("tap0"), Mode: netlink.TUNTAP_MODE_TAP},
	} {
		if err := netlink.LinkAdd(l); err != nil {
			t.Fatal(err)
		}
	}
	for name, want := range map[string]string{"v0": "a veth ", "br0": "a bridge ", "tun0": "a tuntap ", "tap0": "a tuntap ", "lo": "the loopback interface "} {
		s, err := Look(name, Sizes{})
		if err != nil || s.Ingress != string(IngressTCX) || !strings.HasPrefix(s.IngressWhy, want) {
			t.Errorf("%s: %s, %q, %v; want %q", name, s.Ingress, s.IngressWhy, err, want)
		}
		d := attachTo(t, name)
		if hook := d.Info.Ingress; hook == string(IngressXDP) || !strings.HasPrefix(d.Info.IngressWhy, want) {
			t.Errorf("%s: %s, %q; want %q", name, hook, d.Info.IngressWhy, want)
		}
		if err := d.Detach(); err != nil {
			t.Error(err)
		}
	}
}

func TestIngressAndXDPModeAreAskedForTogether(t *testing.T) {
	inNamespace(t)
	if _, err := Attach(Options{Interface: "v0", Ingress: IngressTCX, XDPMode: XDPGeneric}); err == nil || !strings.Contains(err.Error(), "exclude one another") {
		t.Errorf("error %v", err)
	}
	for _, s := range []string{"auto", "xdp", "tcx"} {
		if in, err := ParseIngress(s); err != nil || string(in) != s {
			t.Errorf("%s: %s, %v", s, in, err)
		}
	}
	if _, err := ParseIngress("clsact"); err == nil {
		t.Error("clsact is taken")
	}
}

// A program in front of ours is no obstacle on TCX, and is told of.
func TestTCXGoesBehindAnotherXDPProgram(t *testing.T) {
	inNamespace(t)
	v0, err := netlink.LinkByName("v0")
	if err != nil {
		t.Fatal(err)
	}
	other, err := link.AttachXDP(link.XDPOptions{Program: passAll(t, "somebody_else"), Interface: v0.Attrs().Index})
	if err != nil {
		t.Fatal(err)
	}
	d := attach(t, Options{})
	if d.Info.Bypasses.InFront != "somebody_else" || d.Info.XDPMode != XDPNone {
		t.Errorf("info %+v", d.Info)
	}
	if err := d.Detach(); err != nil {
		t.Error(err)
	}
	if err := other.Close(); err != nil {
		t.Error(err)
	}
	nothingLeft(t)
}

// An adoption that takes another hook keeps blocks and flows. While it moves there under
// traffic, not one packet is seen by no hook, and none by both.
func TestIngressIsMovedUnderTraffic(t *testing.T) {
	inNamespace(t)
	// Nothing but the test's packets is IPv4, and none of them is answered.
	for _, name := range []string{"v0", "v1"} {
		if err := os.WriteFile(fmt.Sprintf("/proc/sys/net/ipv6/conf/%s/disable_ipv6", name), []byte("1"), 0); err != nil {
			t.Fatal(err)
		}
	}
	opts := Options{Ingress: IngressXDP}
	d := attach(t, opts)
	key, _ := flow.NewKey(client, server, flow.UDP, 0, 0)
	if err := d.Apply(key, drop(time.Hour, "shadowsocks", "r")); err != nil {
		t.Fatal(err)
	}
	// Each packet without time to live is counted, and remembered by nothing.
	counted := f.With(up(f.ACK, 100), 22, 0)
	tr := startTraffic(t, udp(true, 100), counted)
	for i, next := range []Options{
		{Ingress: IngressTCX}, {XDPMode: XDPGeneric}, {Ingress: IngressTCX, forceClsact: true}, {Ingress: IngressXDP},
	} {
		tr.waitFor(t, 50)
		if err := d.Release(); err != nil {
			t.Fatal(err)
		}
		d = attach(t, next)
		if !d.Info.Adopted || d.Info.IngressWhy != "it was asked for" || (d.Info.XDPMode == XDPNone) != (next.Ingress == IngressTCX) {
			t.Fatalf("step %d: %+v", i, d.Info)
		}
		if in := attachedIngress(t); len(in) != 1 {
			t.Fatalf("step %d: programs on ingress: %v", i, in)
		}
		tr.waitFor(t, 50)
	}
	tr.end()
	// Behind both hooks, the receiver's socket has counted what passed, read or not.
	if err := d.Release(); err != nil {
		t.Fatal(err)
	}
	d = attach(t, Options{}) // keeps what is attached
	if d.Info.Ingress != string(IngressXDP) || !strings.Contains(d.Info.IngressWhy, "before") {
		t.Errorf("info %+v", d.Info)
	}
	c, err := d.Counters()
	if err != nil {
		t.Fatal(err)
	}
	if seen, came := c.Values()["malformed"], tr.delivered(t); seen != came || came == 0 {
		t.Errorf("%d packets were counted of %d that came", seen, came)
	}
	if n := tr.blocked.Load(); n != 0 {
		t.Errorf("%d packets of the blocked flow passed", n)
	}
	if blocks, err := d.Blocked(); err != nil || len(blocks) != 1 || blocks[0].Packets == 0 {
		t.Errorf("blocks %+v, %v", blocks, err)
	}
	if err := d.Detach(); err != nil {
		t.Fatal(err)
	}
	nothingLeft(t)
}

// A move that fails leaves what was attached.
func TestFailedMoveLeavesTheFormerHook(t *testing.T) {
	inNamespace(t)
	d := attach(t, Options{})
	if err := d.Apply(tcpKey(), drop(time.Hour, "shadowsocks", "r")); err != nil {
		t.Fatal(err)
	}
	if err := d.Release(); err != nil {
		t.Fatal(err)
	}
	v0, err := netlink.LinkByName("v0")
	if err != nil {
		t.Fatal(err)
	}
	other, err := link.AttachXDP(link.XDPOptions{Program: passAll(t, "somebody_else"), Interface: v0.Attrs().Index})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Attach(Options{Interface: "v0", Ingress: IngressXDP}); err == nil {
		t.Error("attached beside another XDP program")
	}
	if err := other.Close(); err != nil {
		t.Fatal(err)
	}
	if in := attachedIngress(t); len(in) != 1 {
		t.Errorf("programs on ingress: %v", in)
	}
	d = attach(t, Options{})
	if blocks, err := d.Blocked(); !d.Info.Adopted || err != nil || len(blocks) != 1 {
		t.Errorf("info %+v, blocks %+v, %v", d.Info, blocks, err)
	}
	if err := d.Detach(); err != nil {
		t.Error(err)
	}
	nothingLeft(t)
}

// skbSize is struct __sk_buff as far as BPF_PROG_RUN takes it, with gso_size.
type skbSize struct {
	_       [44]uint32
	GSOSize uint32
	_       [3]uint32
}

// What was joined on receive has no more than the sum of the pseudo-header, also off a cable.
func TestJoinedPacketsHaveNoWrongChecksum(t *testing.T) {
	k := loadKernel(t, config{partial: partialWrong})
	p := path{tcxIngress, egress}
	frame := upAt(2, 2, f.ACK, 1400)
	sum := f.PseudoSum(client, server, f.TCP, len(frame)-34)
	frame = f.With(frame, 50, byte(sum>>8), byte(sum))
	for i, size := range []uint32{0, 700} {
		k := k.emptied(t)
		for _, h := range p.handshake(1, 1) {
			k.run(h.hook, h.frame)
		}
		if _, err := k.program(tcxIngress).Run(&ebpf.RunOptions{Data: frame, Context: skbSize{GSOSize: size}}); err != nil {
			t.Fatal(err)
		}
		got := k.samples()
		if len(got) != i || k.counts()["decoys"] != uint64(1-i) {
			t.Errorf("gso_size %d: %d samples, %v", size, len(got), k.counts())
		}
		for _, s := range got {
			if p := s.Packets[len(s.Packets)-1]; p.OffCable || uint32(p.Segment) != size {
				t.Errorf("of the joined packet it is noted: %+v", p)
			}
		}
	}
}
