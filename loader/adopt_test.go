// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/earlydrop/earlydrop/loader/flow"
	f "github.com/earlydrop/earlydrop/loader/internal/frames"
)

// pinLayout2 leaves what a program of layout 2 leaves, as far as a newer one looks at it:
// an attached ingress program and its link, the attachment, and blocks. It returns the
// id of the link.
func pinLayout2(t *testing.T, blocks map[flow.Key]block2) link.ID {
	t.Helper()
	dir := pinDir("v0")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	pin := func(what interface{ Pin(string) error }, name string) {
		t.Helper()
		if err := what.Pin(filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	newMap := func(spec *ebpf.MapSpec) *ebpf.Map {
		t.Helper()
		m, err := ebpf.NewMap(spec)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { m.Close() })
		return m
	}
	about := newMap(&ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: 344, MaxEntries: 1})
	value := make([]byte, 344)
	value[0] = 2
	copy(value[16:], "seed") // where the version of the blocks is now
	if err := about.Update(uint32(0), value, ebpf.UpdateAny); err != nil {
		t.Fatal(err)
	}
	pin(about, "attachment")
	blocked := newMap(&ebpf.MapSpec{Type: ebpf.Hash, KeySize: 44, ValueSize: 72, MaxEntries: 65536})
	for key, b := range blocks {
		k := toKernelKey(key)
		if err := blocked.Update(&k, &b, ebpf.UpdateAny); err != nil {
			t.Fatal(err)
		}
	}
	pin(blocked, "blocked")
	prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: "ed_ingress", Type: ebpf.XDP, AttachType: ebpf.AttachXDP, Flags: unix.BPF_F_XDP_HAS_FRAGS, License: "GPL",
		Instructions: asm.Instructions{asm.LoadImm(asm.R0, xdpPass, asm.DWord), asm.Return()},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer prog.Close()
	v0, err := netlink.LinkByName("v0")
	if err != nil {
		t.Fatal(err)
	}
	l, err := link.AttachXDP(link.XDPOptions{Program: prog, Interface: v0.Attrs().Index})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	pin(l, "link_ingress")
	return linkID(t, l)
}

func linkID(t *testing.T, l link.Link) link.ID {
	t.Helper()
	info, err := l.Info()
	if err != nil {
		t.Fatal(err)
	}
	return info.ID
}

func TestBlocksSurviveTheUpgradeFromLayout2(t *testing.T) {
	udpKey, _ := flow.NewKey(client, server, flow.UDP, 0, 0)
	over, _ := flow.NewKey(peer6, host6, flow.TCP, 7, 0)
	blocks := func() map[flow.Key]block2 {
		now := monotonic()
		b := block2{ExpiresNs: now + uint64(time.Hour), SinceNs: now - 1000, SureUntil: 1 << 60, Packets: 3, Bytes: 300}
		fixed(b.Class[:], "shadowsocks")
		fixed(b.Rule[:], "tunnels")
		expired := b
		expired.ExpiresNs = now - 1
		return map[flow.Key]block2{tcpKey(): b, udpKey: b, over: expired}
	}
	drops := func(d *DataPath, frame []byte) bool {
		t.Helper()
		ret, err := d.coll.Programs[string(ingress)].Run(&ebpf.RunOptions{Data: frame})
		if err != nil {
			t.Fatal(err)
		}
		return ret == xdpDrop
	}
	for _, monitor := range []bool{false, true} {
		inNamespace(t)
		before := pinLayout2(t, blocks())
		d := attach(t, Options{Monitor: monitor})
		if d.Info.Adopted || d.Info.Replaced == "" || d.Info.BlocksLost != nil {
			t.Errorf("info %+v", d.Info)
		}
		if linkID(t, d.ingress) != before {
			t.Error("the ingress program was not swapped in place")
		}
		if _, err := os.Stat(filepath.Join(d.Info.PinDir, "link_ingress")); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("a link is pinned under its old name: %v", err)
		}
		got, err := d.Blocked()
		if err != nil {
			t.Fatal(err)
		}
		if monitor {
			if len(got) != 0 || d.Info.BlocksRemoved != 2 || drops(d, up(f.ACK, 10)) {
				t.Errorf("monitor: blocked %+v, info %+v", got, d.Info)
			}
		} else {
			if len(got) != 2 || d.Info.BlocksAdopted != 2 {
				t.Fatalf("blocked %+v, info %+v", got, d.Info)
			}
			for _, b := range got {
				if b.Packets != 3 || b.Bytes != 300 || b.Class != "shadowsocks" || b.Rule != "tunnels" || time.Until(b.Expires) < 59*time.Minute {
					t.Errorf("block %+v", b)
				}
			}
			if !drops(d, up(f.ACK, 10)) || !drops(d, udp(false, 10)) {
				t.Error("a packet of a blocked flow passes")
			}
			if _, err := d.Unblock(tcpKey()); err != nil || drops(d, up(f.ACK, 10)) {
				t.Errorf("unblock: %v", err)
			}
		}
		if err := d.Detach(); err != nil {
			t.Fatal(err)
		}
		nothingLeft(t)
	}
}

// What else changes about the tables does not cost the blocks either.
func TestBlocksSurviveOtherSizesAndLayouts(t *testing.T) {
	for name, spoil := range map[string]func(d *DataPath) Options{
		"another layout of the other maps": func(d *DataPath) Options {
			var a datapathAttached
			if err := d.att.Lookup(uint32(0), &a); err != nil {
				t.Fatal(err)
			}
			a.LayoutVersion = layoutVersion + 1
			if err := d.att.Update(uint32(0), &a, ebpf.UpdateAny); err != nil {
				t.Fatal(err)
			}
			return Options{}
		},
		// It had the daemon's counters in the attachment.
		"layout 3": func(d *DataPath) Options {
			about, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: 400, MaxEntries: 1})
			if err != nil {
				t.Fatal(err)
			}
			defer about.Close()
			value := make([]byte, 400)
			value[0], value[16] = 3, 3
			pin := filepath.Join(d.Info.PinDir, datapathMapAttachment)
			err = errors.Join(about.Update(uint32(0), value, ebpf.UpdateAny), os.Remove(pin),
				os.Remove(filepath.Join(d.Info.PinDir, datapathMapDaemonCounters)))
			if err == nil {
				err = about.Pin(pin)
			}
			blocked, errB := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Hash, KeySize: 44, ValueSize: 112, MaxEntries: 65536})
			if errB != nil {
				t.Fatal(errB)
			}
			defer blocked.Close()
			k, b := toKernelKey(tcpKey()), block3{ExpiresNs: monotonic() + uint64(time.Hour), SinceNs: monotonic(), Packets: 5}
			fixed(b.Class[:], "obfs4")
			pin = filepath.Join(d.Info.PinDir, datapathMapBlocked)
			if err := errors.Join(err, blocked.Update(&k, &b, ebpf.UpdateAny), os.Remove(pin), blocked.Pin(pin)); err != nil {
				t.Fatal(err)
			}
			return Options{}
		},
		"other sizes": func(*DataPath) Options { return Options{Sizes: Sizes{Blocked: 16}} },
	} {
		t.Run(name, func(t *testing.T) {
			inNamespace(t)
			d := attach(t, Options{})
			if err := d.Apply(tcpKey(), drop(time.Hour, "obfs4", "r")); err != nil {
				t.Fatal(err)
			}
			oldXDP, _ := attached(t)
			opts := spoil(d)
			if err := d.Release(); err != nil {
				t.Fatal(err)
			}
			d = attach(t, opts)
			if xdp, egress := attached(t); d.Info.Adopted || d.Info.Replaced == "" || xdp == oldXDP || len(egress) != 1 {
				t.Errorf("info %+v, xdp %d -> %d, egress %v", d.Info, oldXDP, xdp, egress)
			}
			if blocks, err := d.Blocked(); err != nil || len(blocks) != 1 || blocks[0].Class != "obfs4" || d.Info.BlocksAdopted != 1 {
				t.Errorf("blocked %+v, %v", blocks, err)
			}
			if err := d.Detach(); err != nil {
				t.Fatal(err)
			}
			nothingLeft(t)
		})
	}
}

func TestBlocksThatFindNoRoomAreToldOf(t *testing.T) {
	inNamespace(t)
	d := attach(t, Options{})
	key := tcpKey()
	for i := range 20 {
		key.VLAN = uint16(i)
		if err := d.Apply(key, drop(time.Hour, "", "")); err != nil {
			t.Fatal(err)
		}
		// One that dropped nothing for a while would give way to another.
		var b datapathBlock
		raw := toKernelKey(key)
		if err := d.blocked.Lookup(&raw, &b); err != nil {
			t.Fatal(err)
		}
		b.Packets = 1
		if err := d.blocked.Update(&raw, &b, ebpf.UpdateExist); err != nil {
			t.Fatal(err)
		}
	}
	if err := d.Release(); err != nil {
		t.Fatal(err)
	}
	d = attach(t, Options{Sizes: Sizes{Blocked: 16}})
	if d.Info.BlocksAdopted != 16 || d.Info.BlocksLost == nil {
		t.Errorf("info %+v", d.Info)
	}
	if err := d.Detach(); err != nil {
		t.Fatal(err)
	}
	nothingLeft(t)
}

// What can't be replaced after all goes on as it is.
func TestFailedReplacementLeavesWhatIsPinned(t *testing.T) {
	inNamespace(t)
	d := attach(t, Options{})
	if err := d.Apply(tcpKey(), drop(time.Hour, "", "")); err != nil {
		t.Fatal(err)
	}
	if err := d.Release(); err != nil {
		t.Fatal(err)
	}
	xdp, egress := attached(t)
	if _, err := Attach(Options{Interface: "v0", Sizes: Sizes{Blocked: 17}, failLoad: true}); err == nil {
		t.Fatal("attached")
	}
	if nowXDP, nowEgress := attached(t); nowXDP != xdp || len(nowEgress) != len(egress) {
		t.Errorf("attached: xdp %d -> %d, egress %v -> %v", xdp, nowXDP, egress, nowEgress)
	}
	d = attach(t, Options{})
	if !d.Info.Adopted || d.Info.BlocksAdopted != 1 {
		t.Errorf("info %+v", d.Info)
	}
	if err := d.Detach(); err != nil {
		t.Fatal(err)
	}
	nothingLeft(t)
}
