// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"debug/elf"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// modules are what the tests use and Debian does not build into the kernel.
var modules = []string{
	"veth", "bridge", "macvlan", "tun", "8021q", "bonding", "sch_ingress", "cls_bpf",
	"nf_tables", "nft_chain_nat", "nft_masq", "nf_flow_table", "nf_flow_table_inet", "nft_flow_offload",
}

// kernel is an unpacked kernel package.
type kernel struct {
	image string            // vmlinuz
	files map[string]string // module name -> path of its file
	built map[string]bool   // names of the modules that are part of the image
}

// command runs a program of the system and returns what it prints.
func command(ctx context.Context, dir, name string, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = dir
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("%s: %w: %s", cmd, err, bytes.TrimSpace(stderr.Bytes()))
	}
	return out, nil
}

// imagePackage matches the names of packages that hold a kernel for virtual
// machines; the groups are the kernel's version and major.minor.
var imagePackage = regexp.MustCompile(`^linux-image-((\d+\.\d+)\.\d[^-]*(?:-\d+)?)-cloud-amd64$`)

// newestPackages returns the newest package of each kernel series (major.minor)
// that the configured package sources offer, oldest series first.
func newestPackages(ctx context.Context) ([]string, error) {
	out, err := command(ctx, "", "apt-cache", "pkgnames", "linux-image-")
	if err != nil {
		return nil, err
	}
	names := newestOfSeries(strings.Fields(string(out)))
	if len(names) == 0 {
		return nil, errors.New("the package sources offer no linux-image-*-cloud-amd64: run apt-get update, or name a package with -kernel")
	}
	return names, nil
}

func newestOfSeries(names []string) []string {
	newest := make(map[string]string)
	for _, name := range names {
		m := imagePackage.FindStringSubmatch(name)
		if m == nil {
			continue
		}
		if old, ok := newest[m[2]]; !ok || slices.Compare(numbers(name), numbers(old)) > 0 {
			newest[m[2]] = name
		}
	}
	out := make([]string, 0, len(newest))
	for _, name := range newest {
		out = append(out, name)
	}
	slices.SortFunc(out, func(a, b string) int { return slices.Compare(numbers(a), numbers(b)) })
	return out
}

var digits = regexp.MustCompile(`\d+`)

// numbers returns the numbers of a package's name, by which versions compare.
func numbers(name string) []int {
	var out []int
	for _, d := range digits.FindAllString(name, -1) {
		n, _ := strconv.Atoi(d) // digits only; one too large is the largest
		out = append(out, n)
	}
	return out
}

// openKernel fetches a package into the cache folder and unpacks it there, unless
// that was done before. Nothing is installed.
func openKernel(ctx context.Context, cache, name string) (*kernel, error) {
	dir := filepath.Join(cache, name)
	if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
		if err := fetch(ctx, cache, name, dir); err != nil {
			return nil, err
		}
	} else if err != nil {
		return nil, err
	}
	images, err := filepath.Glob(filepath.Join(dir, "boot", "vmlinuz-*"))
	if err != nil || len(images) != 1 {
		return nil, fmt.Errorf("%s holds %d kernels below boot/, want 1 (name the package with the image, not a meta-package)", name, len(images))
	}
	k := &kernel{image: images[0], files: make(map[string]string), built: make(map[string]bool)}
	err = filepath.WalkDir(filepath.Join(dir, "lib", "modules"), func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if module, ok := moduleName(path); ok {
			k.files[module] = path
		}
		if d.Name() == "modules.builtin" {
			list, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			for line := range strings.Lines(string(list)) {
				if module, ok := moduleName(strings.TrimSpace(line)); ok {
					k.built[module] = true
				}
			}
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read the modules of %s: %w", name, err)
	}
	return k, nil
}

func fetch(ctx context.Context, cache, name, dir string) (err error) {
	work, err := os.MkdirTemp(cache, "fetch-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(work)) }()
	// Not unpacked by apt, so its own user need not be able to write here.
	if _, err := command(ctx, work, "apt-get", "download", "-q", "-o", "APT::Sandbox::User=root", name); err != nil {
		return err
	}
	packages, err := filepath.Glob(filepath.Join(work, "*.deb"))
	if err != nil || len(packages) != 1 {
		return fmt.Errorf("apt-get download %s brought %d packages, want 1", name, len(packages))
	}
	tree := filepath.Join(work, "tree")
	if _, err := command(ctx, "", "dpkg-deb", "-x", packages[0], tree); err != nil {
		return err
	}
	// Last and in one step: a folder of this name is complete.
	return os.Rename(tree, dir)
}

// moduleName returns the name of the module in a file. The kernel writes names
// with underscores; files are named either way.
func moduleName(path string) (string, bool) {
	name, _, ok := strings.Cut(filepath.Base(path), ".ko")
	return strings.ReplaceAll(name, "-", "_"), ok
}

// module is a kernel module as the kernel loads it.
type module struct {
	name string
	data []byte
}

// load returns the named modules and those that they need, in the order in which
// they have to be loaded.
func (k *kernel) load(ctx context.Context, names []string) ([]module, error) {
	var out []module
	seen := make(map[string]bool)
	var add func(name string) error
	add = func(name string) error {
		if seen[name] || k.built[name] {
			return nil
		}
		seen[name] = true
		path, ok := k.files[name]
		if !ok {
			return fmt.Errorf("%s has no module %s: its kernel can't run the tests", filepath.Base(k.image), name)
		}
		data, err := readModule(ctx, path)
		if err != nil {
			return err
		}
		needs, err := dependencies(data)
		if err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
		for _, n := range needs {
			if err := add(n); err != nil {
				return err
			}
		}
		out = append(out, module{name, data})
		return nil
	}
	for _, name := range names {
		if err := add(name); err != nil {
			return nil, err
		}
	}
	return out, nil
}

func readModule(ctx context.Context, path string) ([]byte, error) {
	switch filepath.Ext(path) {
	case ".ko":
		return os.ReadFile(path)
	case ".xz":
		return command(ctx, "", "xz", "-dc", path)
	case ".zst":
		return command(ctx, "", "zstd", "-dcq", path)
	}
	return nil, fmt.Errorf("%s is compressed in a way that is not known here", path)
}

// dependencies reads from a module which others it needs. (The usual list of
// them, modules.dep, is only made when a package is installed.)
func dependencies(data []byte) ([]string, error) {
	f, err := elf.NewFile(bytes.NewReader(data))
	if err != nil {
		return nil, err
	}
	section := f.Section(".modinfo")
	if section == nil {
		return nil, errors.New("no section .modinfo: not a kernel module")
	}
	info, err := section.Data()
	if err != nil {
		return nil, err
	}
	for entry := range bytes.SplitSeq(info, []byte{0}) {
		if list, ok := bytes.CutPrefix(entry, []byte("depends=")); ok {
			return strings.FieldsFunc(strings.ReplaceAll(string(list), "-", "_"), func(r rune) bool { return r == ',' }), nil
		}
	}
	return nil, nil
}
