// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/features"
	"github.com/cilium/ebpf/link"
	"github.com/safchain/ethtool"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	f "github.com/earlydrop/earlydrop/loader/internal/frames"

	"github.com/earlydrop/earlydrop/loader/flow"
)

// inNamespace gives the test a network namespace with the veth pair v0 and v1 and
// a BPF file system of its own. Both vanish with the test.
func inNamespace(t *testing.T) {
	t.Helper()
	leave, err := enterNamespace(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := leave(); err != nil {
			t.Error(err)
		}
	})
}

// enterNamespace is inNamespace for examples. Mount is an empty folder, and leave has the
// namespace vanish.
func enterNamespace(mount string) (leave func() error, err error) {
	runtime.LockOSThread()
	old, err := netns.Get()
	if err != nil {
		return nil, err
	}
	fresh, err := netns.New()
	if err != nil {
		return nil, errors.Join(err, old.Close())
	}
	saved := pinRoot
	pinRoot = filepath.Join(mount, "earlydrop")
	leave = func() error {
		if err := netns.Set(old); err != nil {
			panic(err) // the thread is of no use to other tests
		}
		runtime.UnlockOSThread()
		pinRoot = saved
		return errors.Join(fresh.Close(), old.Close(), unix.Unmount(mount, unix.MNT_DETACH))
	}
	err = netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "v0"}, PeerName: "v1"})
	err = errors.Join(err, unix.Mount("bpf", mount, "bpf", 0, ""))
	if err != nil {
		return nil, errors.Join(err, leave())
	}
	return leave, nil
}

// A driver that takes either kind of VLAN tag out of what it receives is found out.
func TestStripsVLANs(t *testing.T) {
	inNamespace(t)
	tool, err := ethtool.NewEthtool()
	if err != nil {
		t.Fatal(err)
	}
	defer tool.Close()
	for _, tt := range []struct{ ctag, stag, want bool }{{false, false, false}, {true, false, true}, {false, true, true}, {true, true, true}} {
		if err := tool.Change("v0", map[string]bool{"rx-vlan-hw-parse": tt.ctag, "rx-vlan-stag-hw-parse": tt.stag}); err != nil {
			t.Fatal(err)
		}
		if got := stripsVLANs("v0"); got != tt.want {
			t.Errorf("802.1Q %v, 802.1ad %v: strips is %v", tt.ctag, tt.stag, got)
		}
	}
	if stripsVLANs("lacking") {
		t.Error("an interface that is not there strips tags")
	}
}

func attach(t *testing.T, opts Options) *DataPath {
	t.Helper()
	opts.Interface = "v0"
	d, err := Attach(opts)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// haveTCX asks the kernel for TCX, and fails the test where the answer is not what
// the kernel's version says.
func haveTCX(t *testing.T) bool {
	t.Helper()
	const loopback = 1 // in every namespace
	_, err := link.QueryPrograms(link.QueryOptions{Target: loopback, Attach: ebpf.AttachTCXEgress})
	version, versionErr := features.LinuxVersionCode()
	if versionErr != nil {
		t.Fatal(versionErr)
	}
	const since = 6<<16 | 6<<8
	if (err == nil) != (version >= since) {
		t.Fatalf("kernel %d.%d, TCX: %v; it came with 6.6", version>>16, version>>8&0xff, err)
	}
	return err == nil
}

// attached returns the ids of the programs on v0: XDP, TCX or clsact on ingress, of which there
// must be one, or none with id 0, and TCX or clsact on egress.
func attached(t *testing.T) (ingress uint32, egress []ebpf.ProgramID) {
	t.Helper()
	in := attachedIngress(t)
	switch len(in) {
	case 0:
	case 1:
		ingress = uint32(in[0])
	default:
		t.Errorf("programs on ingress: %v", in)
	}
	return ingress, onTC(t, tcEgress)
}

// attachedIngress returns the ids of all programs on v0's ingress.
func attachedIngress(t *testing.T) (ids []ebpf.ProgramID) {
	t.Helper()
	l, err := netlink.LinkByName("v0")
	if err != nil {
		t.Fatal(err)
	}
	if xdp := l.Attrs().Xdp; xdp != nil && xdp.ProgId != 0 {
		ids = append(ids, ebpf.ProgramID(xdp.ProgId))
	}
	return append(ids, onTC(t, tcIngress)...)
}

// onTC returns the ids of the programs at a hook of v0, TCX and clsact.
func onTC(t *testing.T, at tcHook) (ids []ebpf.ProgramID) {
	t.Helper()
	l, err := netlink.LinkByName("v0")
	if err != nil {
		t.Fatal(err)
	}
	if haveTCX(t) {
		res, err := link.QueryPrograms(link.QueryOptions{Target: l.Attrs().Index, Attach: at.attach})
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range res.Programs {
			ids = append(ids, p.ID)
		}
	}
	filters, _ := netlink.FilterList(l, at.parent)
	for _, f := range filters {
		if b, ok := f.(*netlink.BpfFilter); ok {
			ids = append(ids, ebpf.ProgramID(b.Id))
		}
	}
	return ids
}

func nothingLeft(t *testing.T) {
	t.Helper()
	if xdp, egress := attached(t); xdp != 0 || len(egress) != 0 {
		t.Errorf("still attached: xdp %d, egress %v", xdp, egress)
	}
	if _, err := os.Stat(pinRoot); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("pins are left below %s: %v", pinRoot, err)
	}
	l, _ := netlink.LinkByName("v0")
	qdiscs, err := netlink.QdiscList(l)
	if err != nil {
		t.Fatal(err)
	}
	for _, q := range qdiscs {
		if q.Type() == "clsact" {
			t.Error("qdisc clsact is left")
		}
	}
}

func TestAttachAndDetach(t *testing.T) {
	best := "clsact"
	if haveTCX(t) {
		best = "tcx"
	}
	for _, tt := range []struct {
		name    string
		opts    Options
		ingress string
		xdp     XDPMode
		egress  string
	}{
		{"auto", Options{}, best, XDPNone, best},
		{"tcx", Options{Ingress: IngressTCX}, best, XDPNone, best},
		{"xdp", Options{Ingress: IngressXDP}, "xdp", XDPNative, best},
		{"native", Options{XDPMode: XDPNative}, "xdp", XDPNative, best},
		{"generic", Options{XDPMode: XDPGeneric}, "xdp", XDPGeneric, best},
		{"clsact", Options{forceClsact: true}, "clsact", XDPNone, "clsact"},
		{"xdp and clsact", Options{Ingress: IngressXDP, forceClsact: true}, "xdp", XDPNative, "clsact"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			inNamespace(t)
			tt.opts.Version, tt.opts.Model, tt.opts.Policy = "v1", "paper 1", "p.yaml"
			d := attach(t, tt.opts)
			if d.Info.Ingress != tt.ingress || d.Info.IngressWhy == "" || d.Info.XDPMode != tt.xdp || d.Info.Egress != tt.egress || d.Info.XDPFallback != nil || d.Info.Adopted {
				t.Errorf("info %+v", d.Info)
			}
			if xdp, egress := attached(t); xdp == 0 || len(egress) != 1 {
				t.Errorf("attached: xdp %d, egress %v", xdp, egress)
			}
			tables, err := Open("v0")
			if err != nil {
				t.Fatal(err)
			}
			a, err := tables.Attachment()
			if err != nil {
				t.Fatal(err)
			}
			if !a.Alive || a.PID != os.Getpid() || a.Ingress != tt.ingress || a.IngressWhy != d.Info.IngressWhy || a.XDPMode != tt.xdp || a.Egress != tt.egress || a.Mode != "enforce" || a.Version != "v1" || a.Model != "paper 1" || a.Policy != "p.yaml" {
				t.Errorf("attachment %+v", a)
			}
			all, err := OpenAll()
			if err != nil || len(all) != 1 || all[0].Interface() != "v0" || all[0].PinDir() != d.Info.PinDir {
				t.Errorf("open all: %v, %v", all, err)
			}
			for _, other := range all {
				_ = other.Close()
			}
			if _, err := d.Sweep(); err != nil {
				t.Error(err)
			}
			if err := errors.Join(tables.Close(), d.Detach()); err != nil {
				t.Fatal(err)
			}
			nothingLeft(t)
			if _, err := Open("v0"); !errors.Is(err, ErrNotAttached) {
				t.Errorf("open after detach: %v", err)
			}
			if err := Detach("v0", true); !errors.Is(err, ErrNotAttached) {
				t.Errorf("second detach: %v", err)
			}
		})
	}
}

// XDP in the driver is impossible on a bridge: where XDP is asked for, generic mode is taken.
func TestXDPFallsBackToGeneric(t *testing.T) {
	inNamespace(t)
	if err := netlink.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "d0"}}); err != nil {
		t.Fatal(err)
	}
	d, err := Attach(Options{Interface: "d0", Ingress: IngressXDP})
	if err != nil {
		t.Fatal(err)
	}
	if d.Info.XDPMode != XDPGeneric || d.Info.XDPFallback == nil {
		t.Errorf("info %+v", d.Info)
	}
	if err := d.Detach(); err != nil {
		t.Error(err)
	}
	var refusedErr *RefusedError
	var modeErr *XDPModeError
	if _, err := Attach(Options{Interface: "d0", XDPMode: XDPNative}); !errors.As(err, &refusedErr) || !errors.As(err, &modeErr) || modeErr.Mode != XDPNative {
		t.Errorf("native: %v", err)
	}
	nothingLeft(t)
}

func TestAdoptKeepsBlocksAndSwapsPrograms(t *testing.T) {
	for _, opts := range []Options{{}, {forceClsact: true}, {XDPMode: XDPGeneric, forceClsact: true}} {
		inNamespace(t)
		d := attach(t, opts)
		if err := d.Apply(tcpKey(), drop(time.Hour, "shadowsocks", "r")); err != nil {
			t.Fatal(err)
		}
		oldXDP, oldEgress := attached(t)
		if err := d.Release(); err != nil {
			t.Fatal(err)
		}
		if xdp, egress := attached(t); xdp != oldXDP || len(egress) != 1 {
			t.Fatalf("released data path is not attached: %d, %v", xdp, egress)
		}
		d = attach(t, opts)
		if !d.Info.Adopted || d.Info.BlocksAdopted != 1 || d.Info.Replaced != "" {
			t.Errorf("info %+v", d.Info)
		}
		xdp, egress := attached(t)
		if xdp == oldXDP || xdp == 0 || len(egress) != 1 || egress[0] == oldEgress[0] {
			t.Errorf("programs were not swapped: xdp %d -> %d, egress %v -> %v", oldXDP, xdp, oldEgress, egress)
		}
		if blocks, err := d.Blocked(); err != nil || len(blocks) != 1 || blocks[0].Key != tcpKey() {
			t.Errorf("blocks %v, %v", blocks, err)
		}
		if err := d.Release(); err != nil {
			t.Fatal(err)
		}
		// Monitor drops nothing, so it may not go on dropping either.
		opts.Monitor = true
		d = attach(t, opts)
		if blocks, err := d.Blocked(); err != nil || len(blocks) != 0 || d.Info.BlocksRemoved != 1 {
			t.Errorf("monitor keeps %v, %v, %+v", blocks, err, d.Info)
		}
		if err := d.Detach(); err != nil {
			t.Fatal(err)
		}
		nothingLeft(t)
	}
}

// A connection whose SYN came before an adoption is captured whole after it.
func TestAdoptionKeepsHandshakes(t *testing.T) {
	inNamespace(t)
	run := func(d *DataPath, frames ...[]byte) {
		t.Helper()
		for _, frame := range frames {
			if _, err := d.coll.Programs[string(tcxIngress)].Run(&ebpf.RunOptions{Data: frame}); err != nil {
				t.Fatal(err)
			}
		}
	}
	d := attach(t, Options{OneHook: true})
	run(d, up(f.SYN, 0))
	if err := d.Release(); err != nil {
		t.Fatal(err)
	}
	d = attach(t, Options{OneHook: true})
	if !d.Info.Adopted {
		t.Fatal("nothing was adopted")
	}
	run(d, down(f.SYN|f.ACK, 0), up(f.ACK, 0), up(f.ACK, 1400))
	counters, err := d.Counters()
	if c := counters.Values(); err != nil || c["handed_full"] != 1 || c["mid_stream"] != 0 {
		t.Errorf("handed over %d, mid-stream %d, %v", c["handed_full"], c["mid_stream"], err)
	}
	if err := d.Detach(); err != nil {
		t.Fatal(err)
	}
	nothingLeft(t)
}

func TestAnotherLayoutIsReplacedWhole(t *testing.T) {
	for _, tt := range []struct {
		name  string
		spoil func(t *testing.T, d *DataPath)
	}{
		{"older version", func(t *testing.T, _ *DataPath) {
			tables, err := Open("v0")
			if err != nil {
				t.Fatal(err)
			}
			if err := errors.Join(tables.att.Update(uint32(0), &datapathAttached{LayoutVersion: layoutVersion + 1, BlockLayout: blockLayout}, ebpf.UpdateAny), tables.Close()); err != nil {
				t.Fatal(err)
			}
		}},
		{"missing map", func(t *testing.T, d *DataPath) {
			if err := os.Remove(filepath.Join(d.Info.PinDir, datapathMapBlocked)); err != nil {
				t.Fatal(err)
			}
		}},
		{"other sizes", func(t *testing.T, d *DataPath) {
			pin := filepath.Join(d.Info.PinDir, datapathMapFlows)
			if err := os.Remove(pin); err != nil {
				t.Fatal(err)
			}
			m, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.LRUHash, KeySize: 8, ValueSize: 8, MaxEntries: 8})
			if err != nil {
				t.Fatal(err)
			}
			defer m.Close()
			if err := m.Pin(pin); err != nil {
				t.Fatal(err)
			}
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			inNamespace(t)
			d := attach(t, Options{})
			if err := d.Release(); err != nil {
				t.Fatal(err)
			}
			tt.spoil(t, d)
			d = attach(t, Options{})
			if d.Info.Adopted || d.Info.Replaced == "" {
				t.Errorf("info %+v", d.Info)
			}
			if xdp, egress := attached(t); xdp == 0 || len(egress) != 1 {
				t.Errorf("attached: xdp %d, egress %v", xdp, egress)
			}
			if err := d.Detach(); err != nil {
				t.Fatal(err)
			}
			nothingLeft(t)
		})
	}
}

func TestRefusals(t *testing.T) {
	inNamespace(t)
	isRefused := func(what string, err error, words ...string) {
		t.Helper()
		var r *RefusedError
		if !errors.As(err, &r) {
			t.Errorf("%s: %v is no RefusedError", what, err)
			return
		}
		for _, w := range words {
			if !strings.Contains(err.Error(), w) || strings.Contains(err.Error(), "\n") {
				t.Errorf("%s: %q lacks %q or has several lines", what, err, w)
			}
		}
	}
	_, err := Attach(Options{Interface: "nope0"})
	isRefused("no interface", err, "nope0")
	_, err = Attach(Options{})
	isRefused("no name", err, `""`, "name")
	nothingLeft(t)

	// Another XDP program.
	prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: "somebody_else", Type: ebpf.XDP, License: "GPL",
		Instructions: asm.Instructions{asm.LoadImm(asm.R0, xdpPass, asm.DWord), asm.Return()},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer prog.Close()
	v0, _ := netlink.LinkByName("v0")
	foreign, err := link.AttachXDP(link.XDPOptions{Program: prog, Interface: v0.Attrs().Index})
	if err != nil {
		t.Fatal(err)
	}
	info, _ := prog.Info()
	id, _ := info.ID()
	_, err = Attach(Options{Interface: "v0", Ingress: IngressXDP})
	isRefused("foreign XDP", err, "somebody_else", fmt.Sprint(id))
	if _, err := os.Stat(pinRoot); !errors.Is(err, os.ErrNotExist) {
		t.Error("a refused attach left pins")
	}
	_ = foreign.Close()

	// A second daemon.
	d := attach(t, Options{})
	_, err = Attach(Options{Interface: "v0"})
	isRefused("second attach", err, fmt.Sprint(os.Getpid()))
	isRefused("detach while a daemon runs", Detach("v0", false), fmt.Sprint(os.Getpid()))
	if xdp, egress := attached(t); xdp == 0 || len(egress) != 1 {
		t.Errorf("the refused attach took something away: xdp %d, egress %v", xdp, egress)
	}
	if err := d.Detach(); err != nil {
		t.Fatal(err)
	}
	nothingLeft(t)
}

func TestMissingCapabilitiesAreNamed(t *testing.T) {
	for _, tt := range []struct {
		effective uint64
		want      string
	}{
		{0, "CAP_NET_ADMIN CAP_BPF CAP_PERFMON"},
		{1 << unix.CAP_SYS_ADMIN, "CAP_NET_ADMIN"},
		{1<<unix.CAP_NET_ADMIN | 1<<unix.CAP_BPF, "CAP_PERFMON"},
		{1<<unix.CAP_NET_ADMIN | 1<<unix.CAP_BPF | 1<<unix.CAP_PERFMON, ""},
	} {
		if got := strings.Join(missingCapabilities(tt.effective), " "); got != tt.want {
			t.Errorf("%x: missing %q, want %q", tt.effective, got, tt.want)
		}
	}
}

func TestMissingFeatureIsNamed(t *testing.T) {
	err := checkFeatures([]feature{{"time travel", "9.9", func() error { return ebpf.ErrNotSupported }}})
	if err == nil || !strings.Contains(err.Error(), "time travel (since 9.9)") {
		t.Errorf("error %v", err)
	}
	if err := requireFeatures(); err != nil {
		t.Errorf("this machine: %v", err)
	}
}

// The maps as bpftool prints them show fields by name.
func TestBpftoolPrintsNames(t *testing.T) {
	inNamespace(t)
	d := attach(t, Options{})
	defer func() {
		if err := d.Detach(); err != nil {
			t.Error(err)
		}
	}()
	err := errors.Join(d.Apply(flow.Key{Lo: client, Hi: server, Proto: flow.TCP, VLAN: 7}, drop(time.Hour, "shadowsocks", "tunnels")),
		d.TreatPair(testPair, limits), d.SetExempt([]netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}),
		d.Report(Counters{{Name: "verdicts", Value: 7}}))
	if err != nil {
		t.Fatal(err)
	}
	for name, words := range map[string][]string{
		datapathMapBlocked:    {`"lo_port": 40000`, `"hi_port": 443`, `"vlan": 7`, `"class": "shadowsocks"`, `"rule": "tunnels"`, `"expires_ns"`, `"packets": 0`},
		datapathMapPairs:      {`"initiator":`, `"port": 443`, `"expires_ns"`, `"action": 2`, `"rate": 125000`, `"flows": 0`, `"class": "obfs4"`, `"rule": "r"`},
		datapathMapExempt:     {`"prefixlen": 120`, `"exempt": 1`},
		datapathMapCounters:   {`"packets_ingress"`, `"ring_full"`},
		datapathMapAttachment: {`"ingress": "tcx"`, `"egress": "tcx"`},
		datapathMapMode:       {`"enforce": 1`},
		// The list that the test reported, and nothing behind it.
		datapathMapDaemonCounters: {`"name": "verdicts"`, `"value": 7`, `"name": ""`},
	} {
		out, err := exec.Command("bpftool", "map", "dump", "pinned", filepath.Join(d.Info.PinDir, name)).CombinedOutput()
		if err != nil {
			t.Fatalf("bpftool: %v: %s", err, out)
		}
		for _, w := range words {
			if !strings.Contains(string(out), w) {
				t.Errorf("dump of %s lacks %s:\n%s", name, w, out)
			}
		}
	}
}
