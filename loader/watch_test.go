// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// remove deletes an interface.
func remove(t *testing.T, name string) {
	t.Helper()
	l, err := netlink.LinkByName(name)
	if err == nil {
		err = netlink.LinkDel(l)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func TestRemovedInterfaceIsNoticed(t *testing.T) {
	for _, opts := range []Options{{}, {forceClsact: true}} {
		inNamespace(t)
		d := attach(t, opts)
		rename(t, "v0", "w0")
		remove(t, "w0")
		// The name of one that nobody looked at since is the old one.
		if _, err := d.Check(); err == nil || err.Error() != "interface v0 was removed" {
			t.Errorf("error %v", err)
		}
		// Another one of the same name and index is another one.
		l := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "v0", Index: int(d.index.Load())}, PeerName: "v1"}
		if err := netlink.LinkAdd(l); err != nil {
			t.Fatal(err)
		}
		if _, err := d.Check(); err == nil {
			t.Error("another interface of the same index is taken for the old one")
		}
		if err := d.Detach(); err != nil {
			t.Error(err)
		}
		nothingLeft(t)
	}
}

// Somebody takes a program away by force: then packets go unseen, which must not go
// unnoticed.
func TestDetachedProgramIsNoticed(t *testing.T) {
	for _, tt := range []struct {
		opts Options
		pins []string
		want string
	}{
		{Options{}, []string{pinTCXIngress}, "the ingress program was detached from v0 by somebody else"},
		{Options{}, []string{pinTCXIngress, pinTCX}, "the programs were detached from v0 by somebody else"},
		{Options{Ingress: IngressXDP}, []string{pinXDP}, "the ingress program was detached from v0 by somebody else"},
		{Options{}, []string{pinTCX}, "the egress program was detached from v0 by somebody else"},
		{Options{Ingress: IngressXDP}, []string{pinXDP, pinTCX}, "the programs were detached from v0 by somebody else"},
	} {
		inNamespace(t)
		if !haveTCX(t) && !slices.Equal(tt.pins, []string{pinXDP}) {
			continue // the other programs have no links
		}
		d := attach(t, tt.opts)
		for _, pin := range tt.pins {
			l, err := link.LoadPinnedLink(filepath.Join(d.Info.PinDir, pin), nil)
			if err == nil {
				err = errors.Join(l.Detach(), l.Close())
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		if _, err := d.Check(); err == nil || err.Error() != tt.want {
			t.Errorf("%v: %v", tt.pins, err)
		}
		if err := d.Release(); err != nil {
			t.Fatal(err)
		}
		// The next attach makes it whole again.
		if d = attach(t, Options{}); !d.Info.Adopted {
			t.Errorf("info %+v", d.Info)
		}
		if xdp, egress := attached(t); xdp == 0 || len(egress) != 1 {
			t.Errorf("attached: xdp %d, egress %v", xdp, egress)
		}
		if err := d.Detach(); err != nil {
			t.Error(err)
		}
		nothingLeft(t)
	}
}

// watched runs Watch in the test's network namespace, on its thread, while change does
// something with a handle on it; it returns what was reported and how it ended.
func watched(t *testing.T, d *DataPath, subscribe func(chan<- netlink.LinkUpdate, <-chan struct{}) error, change func(nl *netlink.Handle, wait func(what string, done func() bool)) error) ([]Change, error) {
	t.Helper()
	nl, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		t.Fatal(err)
	}
	defer nl.Close()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	subscribed, changed := make(chan struct{}, 1), make(chan struct{})
	go func() {
		defer close(changed)
		<-subscribed
		err := change(nl, func(what string, done func() bool) {
			for !done() {
				select {
				case <-ctx.Done():
					t.Errorf("wait for %s: %v", what, ctx.Err())
					return
				case <-time.After(5 * time.Millisecond):
				}
			}
		})
		if err != nil {
			t.Error(err)
			cancel()
		}
	}()
	var changes []Change
	err = d.watch(ctx, func(to chan<- netlink.LinkUpdate, done <-chan struct{}) error {
		defer func() {
			select {
			case subscribed <- struct{}{}:
			default:
			}
		}()
		return subscribe(to, done)
	}, func(c Change) { changes = append(changes, c) })
	if ctx.Err() != nil {
		t.Error("nothing ended the watch")
	}
	<-changed
	return changes, err
}

// The kernel tells of a port that leaves a bridge as of one that is removed. Renamed, it
// is still the same.
func TestPortThatLeavesItsBridgeIsStillThere(t *testing.T) {
	inNamespace(t)
	d := attach(t, Options{})
	if err := netlink.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "br0"}}); err != nil {
		t.Fatal(err)
	}
	changes, err := watched(t, d, subscribeLinks, func(nl *netlink.Handle, wait func(string, func() bool)) error {
		port, err := nl.LinkByName("v0")
		if err != nil {
			return err
		}
		bridge, err := nl.LinkByName("br0")
		if err != nil {
			return err
		}
		if err := errors.Join(nl.LinkSetMaster(port, bridge), nl.LinkSetNoMaster(port), nl.LinkDel(bridge), nl.LinkSetName(port, "w0")); err != nil {
			return err
		}
		wait("the new name", func() bool { return d.Interface() == "w0" })
		return nl.LinkDel(port)
	})
	if err == nil || err.Error() != "interface w0 was removed" {
		t.Errorf("ended with %v", err)
	}
	if len(changes) != 1 || changes[0] != (Change{Was: "v0"}) {
		t.Errorf("changes %+v", changes)
	}
	if err := d.Detach(); err != nil {
		t.Error(err)
	}
}

// What the kernel tells may be lost; what is so is found out all the same.
func TestRemovalIsNoticedWithoutNotice(t *testing.T) {
	for _, tt := range []struct {
		name      string
		subscribe func(chan<- netlink.LinkUpdate, <-chan struct{}) error
	}{
		{"refused", func(chan<- netlink.LinkUpdate, <-chan struct{}) error { return unix.ENOBUFS }},
		{"ended", func(to chan<- netlink.LinkUpdate, _ <-chan struct{}) error { close(to); return nil }},
		{"silent", func(to chan<- netlink.LinkUpdate, done <-chan struct{}) error {
			go func() { <-done; close(to) }()
			return nil
		}},
		{"about others only", func(to chan<- netlink.LinkUpdate, done <-chan struct{}) error {
			go func() {
				defer close(to)
				other := netlink.LinkUpdate{}
				other.Index, other.Header.Type = 1<<20, unix.RTM_DELLINK
				for {
					select {
					case to <- other:
					case <-done:
						return
					}
				}
			}()
			return nil
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			inNamespace(t)
			d := attach(t, Options{})
			_, err := watched(t, d, tt.subscribe, func(nl *netlink.Handle, _ func(string, func() bool)) error {
				l, err := nl.LinkByName("v0")
				if err != nil {
					return err
				}
				return nl.LinkDel(l)
			})
			if err == nil || err.Error() != "interface v0 was removed" {
				t.Errorf("ended with %v", err)
			}
			if err := d.Detach(); err != nil {
				t.Error(err)
			}
		})
	}
}

// bpffs mounts one more BPF file system at the place of the test's.
func mountOver(t *testing.T) {
	t.Helper()
	mount := filepath.Dir(pinRoot)
	if err := unix.Mount("bpf", mount, "bpf", 0, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(mount, unix.MNT_DETACH) })
}

// pinCount is how many pins a data path has on this kernel.
func pinCount(t *testing.T) int {
	t.Helper()
	n := len(ownPins) - len(formerPins) - 2 // of three for ingress one is there
	if !haveTCX(t) {
		n-- // a filter is not pinned
	}
	return n
}

// Pins that others take away are put back, however they went, with everything in them.
func TestLostPinsArePutBack(t *testing.T) {
	all := pinCount(t)
	for _, tt := range []struct {
		name string
		lose func(t *testing.T, dir string)
		want int
	}{
		{"one map", func(t *testing.T, dir string) {
			if err := os.Remove(filepath.Join(dir, "flows")); err != nil {
				t.Fatal(err)
			}
		}, 1},
		{"what is on ingress", func(t *testing.T, dir string) {
			pin := pinTCXIngress
			if !haveTCX(t) {
				pin = pinClsact
			}
			if err := os.Remove(filepath.Join(dir, pin)); err != nil {
				t.Fatal(err)
			}
		}, 1},
		{"the folder", func(t *testing.T, dir string) {
			if err := os.RemoveAll(dir); err != nil {
				t.Fatal(err)
			}
		}, all},
		{"the root", func(t *testing.T, dir string) {
			if err := os.RemoveAll(filepath.Dir(dir)); err != nil {
				t.Fatal(err)
			}
		}, all},
		{"the file system", func(t *testing.T, dir string) {
			if err := unix.Unmount(filepath.Dir(filepath.Dir(dir)), unix.MNT_DETACH); err != nil {
				t.Fatal(err)
			}
		}, all},
		{"hidden by another file system", func(t *testing.T, _ string) { mountOver(t) }, all},
	} {
		t.Run(tt.name, func(t *testing.T) {
			inNamespace(t)
			d := attach(t, Options{})
			if err := d.Apply(tcpKey(), drop(time.Hour, "", "")); err != nil {
				t.Fatal(err)
			}
			tt.lose(t, d.Info.PinDir)
			for i, want := range []Change{{Restored: tt.want}, {}} {
				if c, err := d.Check(); err != nil || c != want {
					t.Errorf("look %d: %+v, %v", i, c, err)
				}
			}
			if got := blockedOn(t, "v0"); len(got) != 1 {
				t.Errorf("blocked %v", got)
			}
			if _, err := Attach(Options{Interface: "v0"}); !errors.Is(err, unix.EWOULDBLOCK) {
				t.Errorf("the folder is not locked: %v", err)
			}
			// It outlives the process as before.
			if err := d.Release(); err != nil {
				t.Fatal(err)
			}
			if xdp, egress := attached(t); xdp == 0 || len(egress) != 1 {
				t.Errorf("attached: xdp %d, egress %v", xdp, egress)
			}
			if d = attach(t, Options{}); !d.Info.Adopted || d.Info.BlocksAdopted != 1 {
				t.Errorf("info %+v", d.Info)
			}
			if err := d.Detach(); err != nil {
				t.Fatal(err)
			}
			nothingLeft(t)
		})
	}
}

// Where pins can't be put back the data path goes on; it is said once, and tried again.
func TestPinsThatCanNotBePutBack(t *testing.T) {
	inNamespace(t)
	d := attach(t, Options{})
	if err := d.Apply(tcpKey(), drop(time.Hour, "", "")); err != nil {
		t.Fatal(err)
	}
	mount := filepath.Dir(pinRoot)
	aside := mount + "-aside"
	if err := errors.Join(unix.Unmount(mount, unix.MNT_DETACH), os.Rename(mount, aside)); err != nil {
		t.Fatal(err)
	}
	c, err := d.Check()
	if err != nil || c.PinsErr == nil || !strings.Contains(c.PinsErr.Error(), mount) || c.Restored != 0 {
		t.Errorf("%+v, %v", c, err)
	}
	if c, err := d.Check(); err != nil || c != (Change{}) {
		t.Errorf("said twice: %+v, %v", c, err)
	}
	if xdp, egress := attached(t); xdp == 0 || len(egress) != 1 {
		t.Errorf("attached: xdp %d, egress %v", xdp, egress)
	}
	if blocks, err := d.Blocked(); err != nil || len(blocks) != 1 {
		t.Errorf("blocks %v, %v", blocks, err)
	}
	if err := os.Rename(aside, mount); err != nil {
		t.Fatal(err)
	}
	if c, err := d.Check(); err != nil || c.PinsErr != nil || c.Restored != pinCount(t) {
		t.Errorf("when it can: %+v, %v", c, err)
	}
	if got := blockedOn(t, "v0"); len(got) != 1 {
		t.Errorf("blocked %v", got)
	}
	// At the end, too, what can't stay is said.
	if err := errors.Join(unix.Unmount(mount, unix.MNT_DETACH), os.Rename(mount, aside)); err != nil {
		t.Fatal(err)
	}
	if err := d.Release(); err == nil {
		t.Error("released without pins, and nothing was said")
	}
	if err := errors.Join(os.Rename(aside, mount), unix.Mount("bpf", mount, "bpf", 0, "")); err != nil {
		t.Fatal(err)
	}
	// The kernel takes the hidden pins away a little later, one by one.
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		if xdp, egress := attached(t); xdp == 0 && (len(egress) == 0 || !haveTCX(t)) {
			break
		}
	}
	if !haveTCX(t) { // a filter stays; the next data path takes its place
		if err := attach(t, Options{}).Detach(); err != nil {
			t.Error(err)
		}
	}
	nothingLeft(t)
}

// What another process has pinned in the meantime is not taken for our own.
func TestPinsOfOthersAreNotMixedUp(t *testing.T) {
	inNamespace(t)
	d := attach(t, Options{})
	if err := os.RemoveAll(d.Info.PinDir); err != nil {
		t.Fatal(err)
	}
	foreignPin(t, filepath.Join(d.Info.PinDir, "flows"))
	if c, err := d.Check(); err != nil || c.PinsErr == nil || c.Restored != 0 {
		t.Errorf("%+v, %v", c, err)
	}
	if err := os.Remove(filepath.Join(d.Info.PinDir, "flows")); err != nil {
		t.Fatal(err)
	}
	if c, err := d.Check(); err != nil || c.Restored == 0 {
		t.Errorf("%+v, %v", c, err)
	}
	if err := d.Detach(); err != nil {
		t.Fatal(err)
	}
	nothingLeft(t)
}
