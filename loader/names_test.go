// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"
)

func TestNamesAreCheckedAsTheKernelDoes(t *testing.T) {
	inNamespace(t)
	names := []string{"", ".", "..", "...", ".x", "-x", "x.", "eth0.100", "br-lan.20", "../x", "../../../../tmp", "/", "a/b", "ä", "à", "a b",
		"abcdefghijklmno", "abcdefghijklmnop", strings.Repeat("x", 200)}
	for c := 1; c < 256; c++ {
		names = append(names, "x"+string([]byte{byte(c)})+"y")
	}
	for _, name := range names {
		if strings.Contains(name, "%") {
			continue // a pattern for the kernel to number, when an interface is made
		}
		// An empty name has the kernel choose one.
		want := false
		if name != "" {
			bridge := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: name}}
			if want = netlink.LinkAdd(bridge) == nil; want {
				if err := netlink.LinkDel(bridge); err != nil {
					t.Fatal(err)
				}
			}
		}
		if err := checkName(name); (err == nil) != want {
			t.Errorf("%q: %v, but the kernel takes it: %v", name, err, want)
		}
	}
}

// Different names have different folders, which the BPF file system takes and from which
// the names can be told.
func TestFolderNamesAreReversible(t *testing.T) {
	inNamespace(t)
	if err := os.Mkdir(pinRoot, rootMode); err != nil {
		t.Fatal(err)
	}
	var names []string
	letters := []string{".", "%", "2", "5", "e", "ä"}
	var extend func(name string, n int)
	extend = func(name string, n int) {
		if checkName(name) == nil {
			names = append(names, name)
		}
		for _, l := range letters {
			if n > 0 {
				extend(name+l, n-1)
			}
		}
	}
	extend("", 4)
	names = append(names, strings.Repeat(".", 15))
	folders := make(map[string]string)
	for _, name := range names {
		folder := folderName(name)
		if other, taken := folders[folder]; taken {
			t.Fatalf("%q and %q have one folder, %q", name, other, folder)
		}
		folders[folder] = name
		if back, ok := interfaceOf(folder); !ok || back != name {
			t.Errorf("%q becomes %q, which is %q, %v", name, folder, back, ok)
		}
		if err := os.Mkdir(filepath.Join(pinRoot, folder), rootMode); err != nil {
			t.Fatal(err)
		}
	}
	if name, ok := interfaceOf("eth0%2e100%net4026531840"); !ok || name != "eth0.100" {
		t.Errorf("of a network namespace: %q, %v", name, ok)
	}
	for _, folder := range []string{"", ".", "..", "a.b", "%", "%2E", "%41", "a%2", "a b", "%2e", "%2e%2e", "abcdefghijklmnop", "v0%net", "v0%net-1", "v0%net01", "v0%net1%net1", "%net1", "v0%nets"} {
		if name, ok := interfaceOf(folder); ok {
			t.Errorf("folder %q is taken for that of %q", folder, name)
		}
	}
}

// Whatever is pinned can be removed again.
func TestEveryPinIsOurs(t *testing.T) {
	spec, err := loadDatapath()
	if err != nil {
		t.Fatal(err)
	}
	for name := range spec.Maps {
		if outlives(name) && !slices.Contains(ownPins, pinName(name)) {
			t.Errorf("map %s is pinned and never removed", name)
		}
	}
	for name, v := range spec.Variables {
		if (v.SectionName == mapBlockFilter) != (name == datapathVarBlockFilter) {
			t.Errorf("variable %s is in section %s: what is pinned has block_filter alone", name, v.SectionName)
		}
	}
}

// foreignPin pins a map that is none of ours.
func foreignPin(t *testing.T, path string) {
	t.Helper()
	m, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: 4, MaxEntries: 1})
	if err == nil {
		err = errors.Join(os.MkdirAll(filepath.Dir(path), 0o700), m.Pin(path), m.Close())
	}
	if err != nil {
		t.Fatal(err)
	}
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

// A name that leads out of the folder is refused by each function that takes one.
func TestNamesThatAreNoneRemoveNothing(t *testing.T) {
	inNamespace(t)
	mount := filepath.Dir(pinRoot)
	outside := t.TempDir() // not a BPF file system
	kept := []string{
		filepath.Join(mount, "other", "flows"), filepath.Join(mount, "other", pinXDP),
		filepath.Join(pinRoot, "flows"), filepath.Join(pinRoot, "a", "b", "flows"),
	}
	for _, path := range kept {
		foreignPin(t, path)
	}
	for _, name := range []string{"empty", "flows"} {
		path := filepath.Join(outside, name)
		if err := os.Mkdir(path, 0o700); err != nil {
			t.Fatal(err)
		}
		kept = append(kept, path)
	}
	up := strings.Repeat("../", 12)
	for _, name := range []string{"", ".", "..", "../other", "a/b", "/", "../../" + filepath.Base(mount), up + outside + "/empty", up + outside, "%2e%2e/other", "a:b", "a b", "other\x00"} {
		var refused *RefusedError
		if err := Detach(name, true); !errors.As(err, &refused) || strings.Contains(err.Error(), "\n") {
			t.Errorf("detach %q: %v", name, err)
		}
		if _, err := Open(name); !errors.As(err, &refused) {
			t.Errorf("open %q: %v", name, err)
		}
		if _, err := Attach(Options{Interface: name}); !errors.As(err, &refused) {
			t.Errorf("attach %q: %v", name, err)
		}
	}
	for _, path := range kept {
		if !exists(path) {
			t.Errorf("%s was removed", path)
		}
	}
	if all, err := OpenAll(); err != nil || len(all) != 0 {
		t.Errorf("what others pinned is listed: %v, %v", all, err)
	}
}

// In the folder of an interface, too, only what is ours is removed.
func TestDetachLeavesWhatIsNotOurs(t *testing.T) {
	for _, released := range []bool{false, true} {
		inNamespace(t)
		d := attach(t, Options{})
		folder := d.Info.PinDir
		foreignPin(t, filepath.Join(folder, "theirs"))
		foreignPin(t, filepath.Join(folder, "sub", "flows"))
		var err error
		if released {
			if err := d.Release(); err != nil {
				t.Fatal(err)
			}
			err = Detach("v0", false)
		} else {
			err = d.Detach()
		}
		if err == nil || !strings.Contains(err.Error(), "theirs") || !strings.Contains(err.Error(), folder) {
			t.Errorf("error %v", err)
		}
		entries, err := os.ReadDir(folder)
		if err != nil || len(entries) != 2 || !exists(filepath.Join(folder, "theirs")) || !exists(filepath.Join(folder, "sub", "flows")) {
			t.Errorf("left: %v, %v", entries, err)
		}
		if xdp, egress := attached(t); xdp != 0 || len(egress) != 0 {
			t.Errorf("still attached: xdp %d, egress %v", xdp, egress)
		}
		if err := Detach("v0", false); !errors.Is(err, ErrNotAttached) {
			t.Errorf("a second detach: %v", err)
		}
		// The folder can be used again.
		d = attach(t, Options{})
		if d.Info.Adopted || d.Info.Replaced != "" {
			t.Errorf("info %+v", d.Info)
		}
		_ = d.Detach()
	}
}

// A symbolic link in place of the folder does not lead a removal elsewhere.
func TestDetachFollowsNoSymbolicLink(t *testing.T) {
	inNamespace(t)
	other := filepath.Join(filepath.Dir(pinRoot), "other")
	foreignPin(t, filepath.Join(other, "flows"))
	if err := errors.Join(os.Mkdir(pinRoot, rootMode), os.Symlink(other, filepath.Join(pinRoot, "v0"))); err != nil {
		t.Fatal(err)
	}
	if err := Detach("v0", false); err == nil || !exists(filepath.Join(other, "flows")) {
		t.Errorf("detach: %v; the other pin is there: %v", err, exists(filepath.Join(other, "flows")))
	}
	if d, err := Attach(Options{Interface: "v0"}); err == nil {
		t.Error("attached through a symbolic link")
		_ = d.Detach()
	}
}

// A root that was prepared for somebody is still there after the last detach.
func TestPreparedRootStays(t *testing.T) {
	inNamespace(t)
	if err := errors.Join(os.Mkdir(pinRoot, rootMode), os.Chmod(pinRoot, 0o770), os.Chown(pinRoot, 0, 65534)); err != nil {
		t.Fatal(err)
	}
	if err := attach(t, Options{}).Detach(); err != nil {
		t.Fatal(err)
	}
	if entries, err := os.ReadDir(pinRoot); err != nil || len(entries) != 0 {
		t.Errorf("%v, %v", entries, err)
	}
}
