// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/earlydrop/earlydrop/test/kernels/machine"
)

const suite = "bookworm"

// suitePackages are beside a minimal system's what the tests use; systemd is its init.
var suitePackages = []string{"systemd-sysv", "iproute2", "kmod", "libstdc++6", "logrotate", "passwd", "procps"}

// systemModules are what the disks need, and what the tests use.
var systemModules = []string{"virtio_pci", "virtio_blk", "ext4", "veth", "sch_ingress", "cls_bpf", "ipv6"}

// testUnit runs the tests once the system is up, and switches the machine off.
const testUnit = `[Unit]
Description=Tests of earlydrop's packages
After=multi-user.target

[Service]
Type=oneshot
Environment=HOME=/root
ExecStart=/bin/sh -c '/mnt/test $(cat /mnt/arguments); printf "\n` + machine.EndMark + `%%d\n" $?'
ExecStopPost=/bin/sync
ExecStopPost=/bin/systemctl --force poweroff
StandardOutput=file:/dev/ttyS0
StandardError=file:/dev/ttyS0
TimeoutStartSec=infinity
`

// masked are units that take an emulated machine's time and do nothing here.
var masked = []string{
	"apt-daily.timer", "apt-daily-upgrade.timer", "dpkg-db-backup.timer", "e2scrub_all.timer", "fstrim.timer", "systemd-tmpfiles-clean.timer",
	"getty.target", "console-getty.service", "serial-getty@ttyS0.service", "systemd-udev-trigger.service", "systemd-update-utmp.service", "systemd-networkd.service",
}

// testSystem boots a Debian with systemd on its own kernel and runs the tests of package
// test/system in it, with the packages in the folder dist.
func testSystem(ctx context.Context, o options, work, dist string, out io.Writer) (_ *result, err error) {
	name := o.kernels[0] // the oldest: the suite's own
	k, err := openKernel(ctx, o.cache, name)
	if err != nil {
		return nil, err
	}
	base, err := baseImage(ctx, o.cache)
	if err != nil {
		return nil, err
	}
	payload, err := payloadImage(ctx, o, work, dist)
	if err != nil {
		return nil, err
	}
	root := filepath.Join(work, "system.gz")
	if err := packRoot(ctx, k, systemModules, work, root, nil); err != nil {
		return nil, err
	}
	return bootMachine(ctx, o, k, "system-"+name, root, out,
		"-drive", "file="+base+",if=virtio,format=raw,snapshot=on",
		"-drive", "file="+payload+",if=virtio,format=raw,readonly=on")
}

// baseImage returns a disk with a minimal Debian. It is made once.
func baseImage(ctx context.Context, cache string) (_ string, err error) {
	image := filepath.Join(cache, suite+"-"+digest(append(append([]string{testUnit}, suitePackages...), masked...))+".ext4")
	if _, err := os.Stat(image); err == nil || !errors.Is(err, fs.ErrNotExist) {
		return image, err
	}
	mirror, err := mirrorOf(ctx, suite)
	if err != nil {
		return "", err
	}
	// Not in the cache, where only files of whoever runs this lie: these are root's.
	work, err := os.MkdirTemp("", "ed-system-")
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(work)) }()
	tree := filepath.Join(work, "tree")
	if _, err := command(ctx, "", "debootstrap", "--variant=minbase", "--include="+strings.Join(suitePackages, ","), suite, tree, mirror); err != nil {
		return "", err
	}
	units := filepath.Join(tree, "etc/systemd/system")
	wants := filepath.Join(units, "multi-user.target.wants")
	if err := os.MkdirAll(wants, 0o755); err != nil {
		return "", err
	}
	if err := os.WriteFile(filepath.Join(units, "earlydrop-test.service"), []byte(testUnit), 0o644); err != nil {
		return "", err
	}
	if err := os.Symlink("../earlydrop-test.service", filepath.Join(wants, "earlydrop-test.service")); err != nil {
		return "", err
	}
	for _, unit := range masked {
		if err := os.Symlink("/dev/null", filepath.Join(units, unit)); err != nil {
			return "", err
		}
	}
	// Packages that debootstrap has fetched are installed by now.
	if err := os.RemoveAll(filepath.Join(tree, "var/cache/apt/archives")); err != nil {
		return "", err
	}
	part := image + ".part"
	if err := makeImage(ctx, tree, part, 1024); err != nil {
		return "", err
	}
	return image, os.Rename(part, image)
}

// payloadImage returns a disk with the test program, its arguments and the packages.
func payloadImage(ctx context.Context, o options, work, dist string) (string, error) {
	tree := filepath.Join(work, "payload")
	if err := os.MkdirAll(tree, 0o755); err != nil {
		return "", err
	}
	if err := build(ctx, filepath.Join(tree, "test"), "test", "./test/system", "booted"); err != nil {
		return "", err
	}
	packages, err := filepath.Glob(filepath.Join(dist, "*", "*_amd64.deb"))
	if err != nil {
		return "", err
	}
	if len(packages) != 2 {
		return "", fmt.Errorf("%s holds %d packages for amd64 in its folders, want an older and a newer one", dist, len(packages))
	}
	for _, p := range packages {
		data, err := os.ReadFile(p)
		if err != nil {
			return "", err
		}
		if err := os.WriteFile(filepath.Join(tree, filepath.Base(filepath.Dir(p))+".deb"), data, 0o644); err != nil {
			return "", err
		}
	}
	if err := os.WriteFile(filepath.Join(tree, "arguments"), []byte(strings.Join(testArguments(o), " ")), 0o644); err != nil {
		return "", err
	}
	image := filepath.Join(work, "payload.ext4")
	return image, makeImage(ctx, tree, image, 256)
}

// makeImage writes a file system of so many MiB that holds what is in a folder.
func makeImage(ctx context.Context, tree, image string, size int) error {
	_, err := command(ctx, "", "mke2fs", "-q", "-F", "-t", "ext4", "-O", "^has_journal", "-d", tree, image, fmt.Sprintf("%dM", size))
	return err
}

// mirrorOf returns the address from which this machine gets a suite's packages.
func mirrorOf(ctx context.Context, suite string) (string, error) {
	out, err := command(ctx, "", "apt-get", "indextargets", "--format", "$(CODENAME) $(REPO_URI)", "Created-By: Packages")
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(string(out)) {
		if name, uri, ok := strings.Cut(strings.TrimSpace(line), " "); ok && name == suite {
			return uri, nil
		}
	}
	return "", fmt.Errorf("the package sources offer no %s: run apt-get update on a Debian that has it", suite)
}
