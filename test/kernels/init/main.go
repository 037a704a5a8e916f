// SPDX-License-Identifier: Apache-2.0

// Command init is the only process of a virtual machine that test/kernels boots:
// it mounts what the tests expect, loads the modules, runs the test program and
// switches the machine off. It is linked statically and started by the kernel.
package main

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/earlydrop/earlydrop/test/kernels/machine"
)

func main() {
	if os.Getpid() != 1 {
		fmt.Fprintln(os.Stderr, "init: started as an ordinary process: this program is the init of test/kernels' machines, run that")
		os.Exit(2)
	}
	status := "0"
	if err := run(); err != nil {
		status = err.Error()
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			status = fmt.Sprint(exit.ExitCode())
		}
	}
	fmt.Printf("\n%s%s\n", machine.EndMark, status)
	// What was written must have left the serial port before the power goes.
	_ = unix.IoctlSetInt(int(os.Stdout.Fd()), unix.TCSBRK, 1)
	unix.Sync()
	_ = unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
	select {} // init may not return
}

func run() error {
	for _, m := range []struct{ kind, at string }{
		{"proc", "/proc"}, {"sysfs", "/sys"}, {"devtmpfs", "/dev"}, {"tmpfs", "/tmp"}, {"bpf", "/sys/fs/bpf"},
	} {
		if err := os.MkdirAll(m.at, 0o755); err != nil {
			return err
		}
		if err := unix.Mount(m.kind, m.at, m.kind, 0, ""); err != nil && !errors.Is(err, unix.EBUSY) {
			return fmt.Errorf("mount %s: %w", m.at, err)
		}
	}
	modules, err := lines(machine.ModuleList)
	if err != nil {
		return err
	}
	for _, name := range modules {
		if err := insert(filepath.Join(machine.ModuleDir, name)); err != nil {
			return err
		}
	}
	args, err := lines(machine.ArgumentList)
	if errors.Is(err, fs.ErrNotExist) {
		return system()
	}
	if err != nil {
		return err
	}
	cmd := exec.Command(machine.Program, args...)
	cmd.Dir = "/"
	cmd.Env = []string{"HOME=/", "TMPDIR=/tmp", "PATH=/bin"}
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stdout
	return cmd.Run()
}

// system goes on to the init of the system on the first disk, with the second one at /mnt
// there. It returns only when that fails.
func system() error {
	const root = "/root"
	for _, m := range []struct {
		disk, at string
		flags    uintptr
	}{{"/dev/vda", root, 0}, {"/dev/vdb", root + "/mnt", unix.MS_RDONLY}} {
		if err := os.MkdirAll(m.at, 0o755); err != nil {
			return err
		}
		// Its driver may still be looking for it.
		for try := 0; ; try++ {
			err := unix.Mount(m.disk, m.at, "ext4", m.flags, "")
			if err == nil {
				break
			}
			if try == 100 || !errors.Is(err, unix.ENOENT) {
				return fmt.Errorf("mount %s: %w", m.disk, err)
			}
			time.Sleep(100 * time.Millisecond)
		}
	}
	// systemd mounts its own; what is left here would lie below.
	for _, at := range []string{"/sys/fs/bpf", "/tmp", "/sys", "/proc"} {
		if err := unix.Unmount(at, unix.MNT_DETACH); err != nil {
			return fmt.Errorf("unmount %s: %w", at, err)
		}
	}
	if err := unix.Mount("/dev", root+"/dev", "", unix.MS_MOVE, ""); err != nil {
		return fmt.Errorf("move /dev: %w", err)
	}
	if err := unix.Chdir(root); err != nil {
		return err
	}
	if err := unix.Mount(root, "/", "", unix.MS_MOVE, ""); err != nil {
		return fmt.Errorf("move the root: %w", err)
	}
	if err := unix.Chroot("."); err != nil {
		return err
	}
	if err := unix.Chdir("/"); err != nil {
		return err
	}
	return unix.Exec("/sbin/init", []string{"/sbin/init"}, []string{"HOME=/", "TERM=linux", "PATH=/usr/sbin:/usr/bin:/sbin:/bin"})
}

func insert(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.FinitModule(int(f.Fd()), "", 0); err != nil {
		return fmt.Errorf("load module %s: %w", path, err)
	}
	return nil
}

func lines(path string) ([]string, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var out []string
	s := bufio.NewScanner(f)
	for s.Scan() {
		if line := strings.TrimSpace(s.Text()); line != "" {
			out = append(out, line)
		}
	}
	return out, s.Err()
}
