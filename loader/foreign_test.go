// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
)

// Names of our pins in a folder of ours may belong to something else: where a group has
// the folder, whoever is in it may have put it there. What it leads to is left alone, the
// other interfaces are shown all the same, and an attach takes the name back.
func TestForeignPinsWithOurNames(t *testing.T) {
	for _, tt := range []struct {
		what   string
		clsact bool // the egress program is a filter, which has no pin
	}{
		{"map", false}, {"folder", false}, {"symbolic link", false}, {"link of another program", false}, {"link of another data path", false},
		{"map", true}, {"link of another program", true}, {"link of another data path", true},
	} {
		what := tt.what
		t.Run(fmt.Sprintf("%s, filter %v", what, tt.clsact), func(t *testing.T) {
			inNamespace(t)
			attachXDP := func(t *testing.T, name string) *DataPath {
				t.Helper()
				d, err := Attach(Options{Interface: name, Ingress: IngressXDP, forceClsact: tt.clsact})
				if err != nil {
					t.Fatal(err)
				}
				return d
			}
			addVeth(t, "w0", "w1")
			addVeth(t, "x0", "x1")
			good := attachXDP(t, "x0")
			w0, err := netlink.LinkByName("w0")
			if err != nil {
				t.Fatal(err)
			}
			other, err := link.AttachXDP(link.XDPOptions{Program: passAll(t, "somebody_else"), Interface: w0.Attrs().Index})
			if err != nil {
				t.Fatal(err)
			}
			defer other.Close()
			dir := pinDir("v0")
			pin := filepath.Join(dir, pinXDP)
			err = os.Mkdir(dir, rootMode)
			switch what {
			case "map":
				foreignPin(t, pin)
			case "folder":
				err = errors.Join(err, os.Mkdir(pin, 0o700))
			case "symbolic link":
				elsewhere := filepath.Join(filepath.Dir(pinRoot), "other")
				err = errors.Join(err, other.Pin(elsewhere), os.Symlink(elsewhere, pin))
			case "link of another program":
				err = errors.Join(err, other.Pin(pin))
			case "link of another data path":
				err = errors.Join(err, os.Symlink(filepath.Join(good.PinDir(), pinXDP), pin))
			}
			if err != nil {
				t.Fatal(err)
			}
			untouched := func(when string) {
				t.Helper()
				l, err := netlink.LinkByName("w0")
				if err != nil || !hasXDP(l) {
					t.Errorf("%s: the other program is detached (%v)", when, err)
				}
				if _, err := good.Check(); err != nil {
					t.Errorf("%s: the other data path: %v", when, err)
				}
			}
			for _, name := range []string{"v0", "w0"} {
				if tables, err := Open(name); err == nil {
					_ = tables.Close()
					t.Errorf("opened %s", name)
				}
			}
			all, err := OpenAll()
			if err == nil || len(all) != 1 || all[0].Interface() != "x0" {
				t.Errorf("all: %v, %v", all, err)
			}
			for _, tables := range all {
				_ = tables.Close()
			}
			if err := Detach("w0", true); !errors.Is(err, ErrNotAttached) {
				t.Errorf("detached from w0: %v", err)
			}
			untouched("after detach of w0")

			d := attachXDP(t, "v0")
			if err := isPin(pin); err != nil {
				t.Error(err)
			}
			untouched("after attach")
			// While it is held, the name is taken back as well.
			if err := errors.Join(os.Remove(pin), os.Symlink(filepath.Join(good.PinDir(), pinXDP), pin)); err != nil {
				t.Fatal(err)
			}
			if c, err := d.Check(); err != nil || c.Restored != 1 || isPin(pin) != nil {
				t.Errorf("check: %+v, %v, %v", c, err, isPin(pin))
			}
			if err := d.Release(); err != nil {
				t.Fatal(err)
			}
			// And a detach of what is left attached goes by what is ours.
			if err := errors.Join(os.Remove(pin), os.Symlink(filepath.Join(good.PinDir(), pinXDP), pin)); err != nil {
				t.Fatal(err)
			}
			if err := Detach("v0", true); err != nil {
				t.Error(err)
			}
			untouched("after detach of v0")
			if err := errors.Join(other.Close(), good.Detach()); err != nil {
				t.Error(err)
			}
			waitForNoXDP(t)
			nothingLeft(t)
		})
	}
}

// waitForNoXDP waits until the kernel has taken away a program whose last pin is gone.
func waitForNoXDP(t *testing.T) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		if xdp, _ := attached(t); xdp == 0 {
			return
		}
	}
	t.Error("the program is still attached")
}

// A map that is reached through a symbolic link is somebody else's.
func TestPinnedMapsAreNoSymbolicLinks(t *testing.T) {
	inNamespace(t)
	addVeth(t, "x0", "x1")
	good := attachTo(t, "x0")
	d := attach(t, Options{})
	pin := filepath.Join(d.PinDir(), "blocked")
	if err := errors.Join(d.Release(), os.Remove(pin), os.Symlink(filepath.Join(good.PinDir(), "blocked"), pin)); err != nil {
		t.Fatal(err)
	}
	if tables, err := Open("v0"); err == nil {
		_ = tables.Close()
		t.Error("opened the map of another data path")
	}
	d = attach(t, Options{})
	if d.Info.Adopted {
		t.Error("adopted the map of another data path")
	}
	if err := errors.Join(d.Detach(), good.Detach()); err != nil {
		t.Error(err)
	}
	nothingLeft(t)
}
