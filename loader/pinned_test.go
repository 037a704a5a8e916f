// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/earlydrop/earlydrop/loader/flow"
)

func rename(t *testing.T, from, to string) {
	t.Helper()
	l, err := netlink.LinkByName(from)
	if err == nil {
		err = netlink.LinkSetName(l, to)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func addVeth(t *testing.T, name, peer string) {
	t.Helper()
	if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: name}, PeerName: peer}); err != nil {
		t.Fatal(err)
	}
}

func attachTo(t *testing.T, name string) *DataPath {
	t.Helper()
	d, err := Attach(Options{Interface: name})
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// blockedOn returns the flows that are blocked on the interface of that name.
func blockedOn(t *testing.T, name string) (keys []flow.Key) {
	t.Helper()
	tables, err := Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer tables.Close()
	if tables.Interface() != name {
		t.Errorf("what was opened as %s is called %s", name, tables.Interface())
	}
	blocks, err := tables.Blocked()
	if err != nil {
		t.Fatal(err)
	}
	for _, b := range blocks {
		keys = append(keys, b.Key)
	}
	return keys
}

// VLAN interfaces have a dot in their names, and the BPF file system takes none.
func TestInterfaceNamesWithDots(t *testing.T) {
	for _, name := range []string{"eth0.100", "br-lan.20", "...", ".x.", "ä.1"} {
		inNamespace(t)
		rename(t, "v0", name)
		d := attachTo(t, name)
		if d.Interface() != name || strings.Contains(filepath.Base(d.PinDir()), ".") {
			t.Errorf("interface %q, pinned at %s", d.Interface(), d.PinDir())
		}
		if err := errors.Join(d.Apply(tcpKey(), drop(time.Hour, "shadowsocks", "r")), d.Release()); err != nil {
			t.Fatal(err)
		}
		if got := blockedOn(t, name); len(got) != 1 {
			t.Errorf("%q: blocked %v", name, got)
		}
		all, err := OpenAll()
		if err != nil || len(all) != 1 || all[0].Interface() != name {
			t.Errorf("%q: all %v, %v", name, all, err)
		}
		if d = attachTo(t, name); !d.Info.Adopted || d.Info.BlocksAdopted != 1 {
			t.Errorf("%q: %+v", name, d.Info)
		}
		if err := errors.Join(d.Release(), Detach(name, false)); err != nil {
			t.Error(err)
		}
		rename(t, name, "v0")
		nothingLeft(t)
	}
}

// A renamed interface goes by its new name, whether or not a process has noticed; the
// old name is free for another interface.
func TestRenamedInterfaceGoesByItsNewName(t *testing.T) {
	for _, daemon := range []string{"noticed", "has not noticed", "dead"} {
		t.Run(daemon, func(t *testing.T) {
			inNamespace(t)
			d := attach(t, Options{})
			if err := d.Apply(tcpKey(), drop(time.Hour, "shadowsocks", "r")); err != nil {
				t.Fatal(err)
			}
			rename(t, "v0", "w.9")
			switch daemon {
			case "noticed":
				if c, err := d.Check(); err != nil || c != (Change{Was: "v0"}) || d.Interface() != "w.9" || d.PinDir() != pinDir("w.9") {
					t.Errorf("%+v, %v; %s at %s", c, err, d.Interface(), d.PinDir())
				}
				if c, err := d.Check(); err != nil || c != (Change{}) {
					t.Errorf("told twice: %+v, %v", c, err)
				}
			case "dead":
				if err := d.Release(); err != nil {
					t.Fatal(err)
				}
			}
			if got := blockedOn(t, "w.9"); len(got) != 1 {
				t.Errorf("blocked %v", got)
			}
			for what, err := range map[string]error{"open": openErr("v0"), "detach": Detach("v0", false)} {
				if !errors.Is(err, ErrNotAttached) {
					t.Errorf("%s by the old name: %v", what, err)
				}
			}
			// Another interface gets the old name, and is attached beside it.
			addVeth(t, "v0", "v2")
			if err := openErr("v0"); !errors.Is(err, ErrNotAttached) {
				t.Errorf("the new interface of the old name: %v", err)
			}
			other := attach(t, Options{})
			if other.Info.Adopted {
				t.Error("another interface's pins were adopted")
			}
			if c, err := d.Check(); daemon == "has not noticed" && (err != nil || c.Was != "v0" || c.Restored != 0) {
				t.Errorf("%+v, %v", c, err)
			}
			all, err := OpenAll()
			if err != nil {
				t.Fatal(err)
			}
			var names []string
			for _, tables := range all {
				names = append(names, tables.Interface()+" "+filepath.Base(tables.PinDir()))
				_ = tables.Close()
			}
			if !slices.Equal(names, []string{"v0 v0", "w.9 w%2e9"}) {
				t.Errorf("interfaces %v", names)
			}
			if got := blockedOn(t, "v0"); len(got) != 0 {
				t.Errorf("blocked on the other one: %v", got)
			}
			if daemon == "dead" {
				d = attachTo(t, "w.9")
				if !d.Info.Adopted || d.Info.BlocksAdopted != 1 || d.Info.PinDir != pinDir("w.9") {
					t.Errorf("adopted by the new name: %+v", d.Info)
				}
				err = d.Release()
			} else {
				err = d.Release()
			}
			if err := errors.Join(err, Detach("w.9", false)); err != nil {
				t.Error(err)
			}
			if got := blockedOn(t, "v0"); len(got) != 0 {
				t.Error("the other one was detached as well")
			}
			if err := other.Detach(); err != nil {
				t.Error(err)
			}
			nothingLeft(t)
		})
	}
}

func openErr(name string) error {
	tables, err := Open(name)
	if err == nil {
		_ = tables.Close()
	}
	return err
}

// Two interfaces that exchange their names keep what is theirs, although the other one's
// folder is in the way of the first that is looked at.
func TestInterfacesExchangeNames(t *testing.T) {
	inNamespace(t)
	a, b := attachTo(t, "v0"), attachTo(t, "v1")
	keyOf := map[*DataPath]flow.Key{a: tcpKey(), b: {Lo: client, Hi: server, Proto: flow.UDP}}
	for d, key := range keyOf {
		if err := d.Apply(key, drop(time.Hour, "", "")); err != nil {
			t.Fatal(err)
		}
	}
	rename(t, "v0", "tmp")
	rename(t, "v1", "v0")
	rename(t, "tmp", "v1")
	for _, d := range []*DataPath{a, b, a} {
		if c, err := d.Check(); err != nil || c.Restored != 0 || c.PinsErr != nil {
			t.Errorf("%+v, %v", c, err)
		}
	}
	for name, d := range map[string]*DataPath{"v1": a, "v0": b} {
		if d.Interface() != name {
			t.Errorf("%s is called %s", name, d.Interface())
		}
		if got := blockedOn(t, name); len(got) != 1 || got[0] != keyOf[d] {
			t.Errorf("blocked on %s: %v", name, got)
		}
		if called, _ := interfaceOf(filepath.Base(d.PinDir())); called != name || !exists(filepath.Join(d.PinDir(), "blocked")) {
			t.Errorf("%s has no pins at %s", name, d.PinDir())
		}
	}
	if err := errors.Join(a.Release(), b.Release(), Detach("v0", false)); err != nil {
		t.Fatal(err)
	}
	if got := blockedOn(t, "v1"); len(got) != 1 || got[0] != keyOf[a] {
		t.Errorf("after the detach of the other one, blocked on v1: %v", got)
	}
	a = attachTo(t, "v1")
	if !a.Info.Adopted {
		t.Errorf("%+v", a.Info)
	}
	if err := a.Detach(); err != nil {
		t.Fatal(err)
	}
	nothingLeft(t)
}

// inOther gives the test a second network namespace, with handles on it and its own one.
func inOther(t *testing.T) (other netns.NsHandle, there, here *netlink.Handle) {
	t.Helper()
	own, err := netns.Get()
	if err != nil {
		t.Fatal(err)
	}
	if other, err = netns.New(); err != nil {
		t.Fatal(err)
	}
	if err := netns.Set(own); err != nil {
		t.Fatal(err)
	}
	there, errThere := netlink.NewHandleAt(other, unix.NETLINK_ROUTE)
	here, errHere := netlink.NewHandleAt(own, unix.NETLINK_ROUTE)
	if err := errors.Join(errThere, errHere); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		there.Close()
		here.Close()
		_ = other.Close()
		_ = own.Close()
	})
	return other, there, here
}

// An interface that is moved to another network namespace takes its programs along: the
// work goes on, and it can be seen from there by its name there.
func TestInterfaceMovesToAnotherNamespace(t *testing.T) {
	if !haveTCX(t) {
		return // see TestMoveTakesTheFilterAway
	}
	inNamespace(t)
	home, err := netns.Get()
	if err != nil {
		t.Fatal(err)
	}
	defer home.Close()
	other, there, _ := inOther(t)
	d := attach(t, Options{})
	if err := d.Apply(tcpKey(), drop(time.Hour, "", "")); err != nil {
		t.Fatal(err)
	}
	move := func(l netlink.Link, h *netlink.Handle, to netns.NsHandle) {
		t.Helper()
		if err := h.LinkSetNsFd(l, int(to)); err != nil {
			t.Fatal(err)
		}
	}
	v0, err := netlink.LinkByName("v0")
	if err != nil {
		t.Fatal(err)
	}
	own, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		t.Fatal(err)
	}
	defer own.Close()
	move(v0, own, other)
	for i, want := range []Change{{Moved: true}, {}} {
		if c, err := d.Check(); err != nil || c != want {
			t.Errorf("look %d: %+v, %v", i, c, err)
		}
	}
	// From here it goes by its last name, as long as no other interface has it.
	if got := blockedOn(t, "v0"); len(got) != 1 {
		t.Errorf("blocked %v", got)
	}
	moved, err := there.LinkByName("v0")
	if err == nil {
		err = there.LinkSetName(moved, "w0")
	}
	if err != nil {
		t.Fatal(err)
	}
	if err := netns.Set(other); err != nil {
		t.Fatal(err)
	}
	if got := blockedOn(t, "w0"); len(got) != 1 {
		t.Errorf("there, blocked on w0: %v", got)
	}
	if err := netns.Set(home); err != nil {
		t.Fatal(err)
	}
	addVeth(t, "v0", "v2")
	for what, err := range map[string]error{"open": openErr("v0"), "detach": Detach("v0", false)} {
		if !errors.Is(err, ErrNotAttached) || !strings.Contains(err.Error(), "another network namespace") {
			t.Errorf("%s of an interface here that has its name: %v", what, err)
		}
	}
	beside := attach(t, Options{})
	if beside.Info.Adopted || len(blockedOn(t, "v0")) != 0 {
		t.Errorf("an interface here that has its name: %+v, blocked %v", beside.Info, blockedOn(t, "v0"))
	}
	if err := beside.Detach(); err != nil {
		t.Error(err)
	}
	// It comes back under its new name.
	move(moved, there, home)
	if c, err := d.Check(); err != nil || c != (Change{Was: "v0"}) || d.Interface() != "w0" {
		t.Errorf("back: %+v, %v, called %s", c, err, d.Interface())
	}
	// Away again, and detached from here.
	back, err := netlink.LinkByName("w0")
	if err != nil {
		t.Fatal(err)
	}
	move(back, own, other)
	if err := errors.Join(d.Release(), Detach("w0", false)); err != nil {
		t.Error(err)
	}
	if l, err := there.LinkByName("w0"); err != nil || hasXDP(l) {
		t.Errorf("the program is still attached there, or %v", err)
	}
	nothingLeft(t)
}

// Interfaces of one name in several network namespaces, as those of containers, are
// attached side by side; each is what its name means where it is.
func TestSameNameInTwoNamespaces(t *testing.T) {
	t.Run("links", func(t *testing.T) { sameNameTwice(t, Options{}) })
	t.Run("filters", func(t *testing.T) { sameNameTwice(t, Options{forceClsact: true}) })
}

func sameNameTwice(t *testing.T, opts Options) {
	inNamespace(t)
	home, err := netns.Get()
	if err != nil {
		t.Fatal(err)
	}
	defer home.Close()
	other, _, _ := inOther(t)
	third, _, _ := inOther(t)
	in := func(ns netns.NsHandle) {
		t.Helper()
		if err := netns.Set(ns); err != nil {
			t.Fatal(err)
		}
	}
	keys := []flow.Key{tcpKey(), {Lo: client, Hi: server, Proto: flow.UDP}}
	var paths []*DataPath
	for i, ns := range []netns.NsHandle{home, other} {
		in(ns)
		if i > 0 {
			addVeth(t, "v0", "v1")
		}
		d := attach(t, opts)
		if d.Info.Adopted {
			t.Errorf("the other one's pins were adopted: %+v", d.Info)
		}
		if err := errors.Join(d.Apply(keys[i], drop(time.Hour, "", "")), d.Release()); err != nil {
			t.Fatal(err)
		}
		d = attach(t, opts)
		if !d.Info.Adopted || d.Info.BlocksAdopted != 1 {
			t.Errorf("%+v", d.Info)
		}
		paths = append(paths, d)
	}
	for i, ns := range []netns.NsHandle{home, other} {
		in(ns)
		if got := blockedOn(t, "v0"); len(got) != 1 || got[0] != keys[i] {
			t.Errorf("namespace %d: blocked %v", i, got)
		}
		if c, err := paths[i].Check(); err != nil || c != (Change{}) {
			t.Errorf("namespace %d: %+v, %v", i, c, err)
		}
	}
	// Elsewhere the name means both.
	in(third)
	var refused *RefusedError
	for what, err := range map[string]error{"open": openErr("v0"), "detach": Detach("v0", true)} {
		if !errors.As(err, &refused) || !strings.Contains(err.Error(), "several interfaces called v0") {
			t.Errorf("%s: %v", what, err)
		}
	}
	all, err := OpenAll()
	if err != nil || len(all) != 2 {
		t.Errorf("all %v, %v", all, err)
	}
	for _, tables := range all {
		_ = tables.Close()
	}
	// Removed without a detach, each is there to be detached by the name.
	for i, ns := range []netns.NsHandle{home, other} {
		in(ns)
		if err := paths[i].Release(); err != nil {
			t.Error(err)
		}
		remove(t, "v0")
	}
	in(home)
	addVeth(t, "v0", "v1")
	for range paths {
		if err := Detach("v0", false); err != nil {
			t.Error(err)
		}
	}
	nothingLeft(t)
}

// A filter does not come along with its interface.
func TestMoveTakesTheFilterAway(t *testing.T) {
	inNamespace(t)
	other, _, here := inOther(t)
	d := attach(t, Options{Ingress: IngressXDP, forceClsact: true})
	v0, err := netlink.LinkByName("v0")
	if err == nil {
		err = here.LinkSetNsFd(v0, int(other))
	}
	if err != nil {
		t.Fatal(err)
	}
	if _, err := d.Check(); err == nil || !strings.Contains(err.Error(), "moved to another network namespace") {
		t.Errorf("error %v", err)
	}
	if err := d.Detach(); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(pinRoot); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("pins are left (%v)", err)
	}
}

// Removal leaves a filter alone that is in another network namespace: from here it can't
// be removed, and half a data path is none.
func TestFilterElsewhereIsNotHalfRemoved(t *testing.T) {
	t.Run("on egress", func(t *testing.T) { filterElsewhereStays(t, IngressXDP) })
	t.Run("on both hooks", func(t *testing.T) { filterElsewhereStays(t, IngressTCX) })
}

func filterElsewhereStays(t *testing.T, hook Ingress) {
	inNamespace(t)
	other, _, _ := inOther(t)
	d := attach(t, Options{Ingress: hook, forceClsact: true})
	if err := d.Release(); err != nil {
		t.Fatal(err)
	}
	own, err := netns.Get()
	if err == nil {
		err = netns.Set(other)
	}
	if err != nil {
		t.Fatal(err)
	}
	var refused *RefusedError
	if err := Detach("v0", false); !errors.As(err, &refused) || !strings.Contains(err.Error(), "another network namespace") {
		t.Errorf("from another namespace: %v", err)
	}
	if err := netns.Set(own); err != nil {
		t.Fatal(err)
	}
	_ = own.Close()
	if xdp, egress := attached(t); xdp == 0 || len(egress) != 1 {
		t.Errorf("attached: xdp %d, egress %v", xdp, egress)
	}
	if err := Detach("v0", false); err != nil {
		t.Fatal(err)
	}
	nothingLeft(t)
}
