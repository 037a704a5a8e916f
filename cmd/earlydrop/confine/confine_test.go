// SPDX-License-Identifier: Apache-2.0

package confine

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// The three that attaching takes.
var three = []int{unix.CAP_BPF, unix.CAP_PERFMON, unix.CAP_NET_ADMIN}

// rawCall makes a system call whose arguments change nothing where it is allowed.
func rawCall(number uintptr, args ...uintptr) func() error {
	return func() error {
		var a [6]uintptr
		copy(a[:], args)
		if _, _, errno := syscall.RawSyscall6(number, a[0], a[1], a[2], a[3], a[4], a[5]); errno != 0 {
			return errno
		}
		return nil
	}
}

func socketOf(family, kind int) func() error {
	return func() error {
		fd, err := unix.Socket(family, kind, 0)
		if err == nil {
			err = unix.Close(fd)
		}
		return err
	}
}

// attempt is something that is tried before and after.
type attempt struct {
	name string
	try  func() error
}

// attempts are what must not be possible any more, and what has to be. Of the former, none
// changes anything where it is possible; what is wrong with its arguments is no EPERM.
func attempts(dir string) (no, yes []attempt) {
	const bad = ^uintptr(0) // no address, no file, no magic number
	no = []attempt{
		{"run a program", func() error { return exec.Command("/bin/true").Run() }},
		{"run a program that is not there", rawCall(unix.SYS_EXECVE, bad, 0, 0)},
		{"execveat", rawCall(unix.SYS_EXECVEAT, bad, bad, 0, 0, 0)},
		{"ptrace init", rawCall(unix.SYS_PTRACE, 0x4206 /* PTRACE_SEIZE */, 0x7fffffff, 0, 0)},
		{"read another process", rawCall(unix.SYS_PROCESS_VM_READV, uintptr(os.Getppid()), 0, 0, 0, 0, 0)},
		{"mount", rawCall(unix.SYS_MOUNT, bad, bad, bad, 0, 0)},
		{"umount", rawCall(unix.SYS_UMOUNT2, bad, 0)},
		{"pivot_root", rawCall(unix.SYS_PIVOT_ROOT, bad, bad)},
		{"chroot", rawCall(unix.SYS_CHROOT, bad)},
		{"open_tree", rawCall(unix.SYS_OPEN_TREE, bad, bad, 0)},
		{"unshare", rawCall(unix.SYS_UNSHARE, 0)},
		{"setns", rawCall(unix.SYS_SETNS, bad, 0)},
		{"new user namespace", func() error {
			if _, _, errno := syscall.RawSyscall6(unix.SYS_CLONE, unix.CLONE_NEWUSER|unix.CLONE_FS, 0, 0, 0, 0, 0); errno != 0 {
				return errno // EINVAL where it is looked at: the two don't go together
			}
			panic("it is a process of its own")
		}},
		{"mknod", rawCall(unix.SYS_MKNODAT, bad, bad, 0, 0)},
		{"load a module", rawCall(unix.SYS_FINIT_MODULE, bad, bad, 0)},
		{"kexec", rawCall(unix.SYS_KEXEC_LOAD, 0, bad, bad, bad)},
		{"reboot", rawCall(unix.SYS_REBOOT, bad, bad, bad, 0)},
		{"set the clock", rawCall(unix.SYS_CLOCK_SETTIME, bad, bad)},
		{"setuid", rawCall(unix.SYS_SETRESUID, bad, bad, bad)},
		{"setgroups", rawCall(unix.SYS_SETGROUPS, bad, 0)},
		{"chown", rawCall(unix.SYS_FCHOWNAT, bad, bad, bad, bad, 0)},
		{"keyctl", rawCall(unix.SYS_KEYCTL, bad)},
		{"io_uring", rawCall(unix.SYS_IO_URING_SETUP, 0, bad)},
		{"userfaultfd", rawCall(unix.SYS_USERFAULTFD, bad)},
		{"perf_event_open", rawCall(unix.SYS_PERF_EVENT_OPEN, bad, 0, 0, bad, 0)},
		{"packet socket", socketOf(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC)},
		{"raw socket", func() error {
			fd, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_ICMP)
			if err == nil {
				err = unix.Close(fd)
			}
			return err
		}},
		{"TCP", socketOf(unix.AF_INET, unix.SOCK_STREAM)},
		{"TCP over IPv6", socketOf(unix.AF_INET6, unix.SOCK_STREAM|unix.SOCK_NONBLOCK)},
		{"vsock", socketOf(unix.AF_VSOCK, unix.SOCK_STREAM)},
		{"write another's file", func() error {
			f, err := os.OpenFile(filepath.Join(dir, "others"), os.O_WRONLY, 0)
			if err == nil {
				err = f.Close()
			}
			return err
		}},
		{"make a file in another's folder", func() error {
			path := filepath.Join(dir, "folder", fmt.Sprint(unix.Gettid()))
			f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE, 0o600)
			if err == nil {
				err = errors.Join(f.Close(), os.Remove(path))
			}
			return err
		}},
	}
	yes = []attempt{
		{"unix socket", socketOf(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC)},
		{"netlink", func() error {
			_, err := netlink.LinkByName("lo")
			return err
		}},
		{"socket for ioctls", socketOf(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC)},
		{"listen at a unix socket", func() error {
			l, err := net.Listen("unix", filepath.Join(dir, fmt.Sprint(unix.Gettid())))
			if err == nil {
				err = l.Close()
			}
			return err
		}},
		{"append to an own file", func() error {
			f, err := os.OpenFile(filepath.Join(dir, "own"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o640)
			if err == nil {
				err = f.Close()
			}
			return err
		}},
		{"BPF map", func() error {
			m, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Hash, KeySize: 4, ValueSize: 4, MaxEntries: 1})
			if err == nil {
				err = m.Close()
			}
			return err
		}},
		{"new thread", func() error {
			done := make(chan struct{})
			go func() {
				runtime.LockOSThread() // it ends with the goroutine, and a new one is made
				close(done)
			}()
			<-done
			return nil
		}},
	}
	return no, yes
}

const (
	confinedMark = "EARLYDROP_TEST_CONFINED"
)

// TestMain is also the process that is confined: it tries everything before, is confined, and
// tries it again on threads that were there before, and on new ones.
func TestMain(m *testing.M) {
	dir := os.Getenv(confinedMark)
	if dir == "" {
		os.Exit(m.Run())
	}
	keep := Keep{Capabilities: three, AllSystemCalls: os.Getenv("EARLYDROP_TEST_ALL_CALLS") != ""}
	no, yes := attempts(dir)
	for _, a := range append(no[:len(no):len(no)], yes...) {
		if err := a.try(); errors.Is(err, unix.EPERM) || errors.Is(err, unix.EACCES) {
			fmt.Printf("at first, %s: %v\n", a.name, err)
		}
	}
	const threads = 4
	confined := make(chan struct{})
	var ready, done sync.WaitGroup
	tries := func(when string) {
		for _, a := range no {
			if err := a.try(); !errors.Is(err, unix.EPERM) && !errors.Is(err, unix.EACCES) {
				fmt.Printf("%s, %s is possible: %v\n", when, a.name, err)
			}
		}
		for _, a := range yes {
			if err := a.try(); err != nil {
				fmt.Printf("%s, %s: %v\n", when, a.name, err)
			}
		}
	}
	for range threads {
		ready.Add(1)
		done.Go(func() {
			runtime.LockOSThread()
			ready.Done()
			<-confined
			tries("on a thread from before")
		})
	}
	ready.Wait()
	if err := To(keep); err != nil {
		fmt.Println("confine:", err)
	}
	close(confined)
	done.Wait()
	done.Go(func() {
		runtime.LockOSThread()
		tries("on a new thread")
	})
	done.Wait()
	if err := To(keep); err != nil { // again is nothing new
		fmt.Println("confine again:", err)
	}
	fmt.Println("end")
}

// runConfined returns what such a process has printed.
func runConfined(t *testing.T, env ...string) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root, to have what is to be given up")
	}
	dir := t.TempDir()
	others, folder := filepath.Join(dir, "others"), filepath.Join(dir, "folder")
	if err := errors.Join(os.WriteFile(others, nil, 0o600), os.Mkdir(folder, 0o700), os.Chown(others, 65534, 65534), os.Chown(folder, 65534, 65534)); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(append(os.Environ(), confinedMark+"="+dir), env...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET}
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return string(out)
}

// What a confined process must not be able to do it can't, on no thread, and could before.
func TestConfinedProcessCanNoMoreThanItMust(t *testing.T) {
	if out := runConfined(t); out != "end\n" {
		t.Error(out)
	}
}

// Without the filter of system calls, what capabilities allow is gone.
func TestConfinedProcessWithAllSystemCalls(t *testing.T) {
	out := runConfined(t, "EARLYDROP_TEST_ALL_CALLS=1")
	for _, gone := range []string{"packet socket", "raw socket", "write another's file", "make a file", "pivot_root", "reboot", "confine", "at first"} {
		if strings.Contains(out, gone) {
			t.Errorf("%s: %s", gone, out)
		}
	}
	if !strings.Contains(out, "run a program is possible") || !strings.HasSuffix(out, "end\n") {
		t.Errorf("the filter is there: %s", out)
	}
}

func TestRefusedSystemCallsAreKnown(t *testing.T) {
	seen := map[string]bool{}
	for _, name := range refused {
		if seen[name] {
			t.Errorf("%s is named twice", name)
		}
		seen[name] = true
	}
}
