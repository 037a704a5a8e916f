// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/procfs"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// namePrefix starts the name of every namespace of this package. The rest is
// PID, start time of that process (a PID alone may be reused), a number and
// the role.
const namePrefix = "ed-lab-"

// runDir is where iproute2 and vishvananda/netns keep named namespaces.
const runDir = "/var/run/netns"

// Namespace is a named network namespace that `ip netns` knows too. Its
// methods may be called concurrently.
type Namespace struct {
	Name string

	handle netns.NsHandle
	nl     *netlink.Handle
	given  sync.Map // ports that FreePort has returned
}

func newNamespace(name string) (*Namespace, error) {
	n := &Namespace{Name: name, handle: netns.None()}
	err := onThread(func() error {
		h, err := netns.NewNamed(name)
		if err != nil {
			return err
		}
		n.handle = h
		return nil
	})
	if err == nil {
		n.nl, err = netlink.NewHandleAt(n.handle)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("create network namespace %s: %w", name, err), n.close())
	}
	return n, nil
}

// close deletes the namespace. It can be called on a half made one.
func (n *Namespace) close() error {
	if n.nl != nil {
		n.nl.Close()
	}
	if n.handle.IsOpen() {
		n.handle.Close()
	}
	return deleteNamed(n.Name)
}

func deleteNamed(name string) error {
	path := filepath.Join(runDir, name)
	if err := unmountAll(path); err != nil {
		return err
	}
	err := os.Remove(path)
	if errors.Is(err, unix.EBUSY) {
		err = removeHidden(path)
	}
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove namespace: %w", err)
	}
	return nil
}

// unmountAll takes off every mount on path.
func unmountAll(path string) error {
	for {
		err := unix.Unmount(path, unix.MNT_DETACH)
		if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) {
			return nil // no more
		}
		if err != nil {
			return fmt.Errorf("unmount %s: %w", path, err)
		}
	}
}

// removeHidden removes a namespace's file that has a mount which no path
// reaches: when somebody runs `ip netns add` for the first time, it mounts the
// directory over itself, with copies of the mounts below. A mount namespace
// of its own, on a thread that ends with it, can take the upper layer off and
// remove the file, which makes the kernel drop its mounts everywhere.
func removeHidden(path string) error {
	errc := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // and never unlock
		errc <- func() error {
			if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
				return fmt.Errorf("new mount namespace: %w", err)
			}
			if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
				return fmt.Errorf("make mounts private: %w", err)
			}
			for range 10 {
				if err := unmountAll(path); err != nil {
					return err
				}
				if err := os.Remove(path); !errors.Is(err, unix.EBUSY) {
					return err
				}
				if err := unix.Unmount(runDir, unix.MNT_DETACH); err != nil {
					return fmt.Errorf("unmount %s, in a copy: %w", runDir, err)
				}
			}
			return fmt.Errorf("%s stays mounted", path)
		}()
	}()
	return <-errc
}

// onThread runs fn on a thread whose network namespace is put back when fn
// returns. A thread that can't be put back ends with its goroutine.
func onThread(fn func() error) error {
	errc := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		home, err := netns.Get()
		if err != nil {
			runtime.UnlockOSThread()
			errc <- fmt.Errorf("open own network namespace: %w", err)
			return
		}
		err = fn()
		back := netns.Set(home)
		home.Close()
		if back == nil {
			runtime.UnlockOSThread()
		}
		errc <- err
	}()
	return <-errc
}

// Do runs fn on a thread inside the namespace. Sockets that fn makes and
// processes that it starts belong to the namespace for good; goroutines that
// it starts do not.
func (n *Namespace) Do(fn func() error) error {
	return onThread(func() error {
		if err := netns.Set(n.handle); err != nil {
			return fmt.Errorf("enter network namespace %s: %w", n.Name, err)
		}
		return fn()
	})
}

// Netlink returns a route netlink handle of the namespace; it is closed with
// the namespace.
func (n *Namespace) Netlink() *netlink.Handle { return n.nl }

// Path is the file that names the namespace, for programs that enter it.
func (n *Namespace) Path() string { return filepath.Join(runDir, n.Name) }

// Sysctl writes a setting such as "net.ipv4.tcp_timestamps".
func (n *Namespace) Sysctl(name, value string) error {
	return n.Do(func() error {
		path := "/proc/sys/" + strings.ReplaceAll(name, ".", "/")
		if err := os.WriteFile(path, []byte(value), 0); err != nil {
			return fmt.Errorf("set %s to %q: %w", name, value, err)
		}
		return nil
	})
}

// Dial connects from inside the namespace. address must be a literal IP
// address and port: names would be resolved on other threads, outside.
func (n *Namespace) Dial(ctx context.Context, network, address string) (net.Conn, error) {
	if _, _, err := splitLiteral(address); err != nil {
		return nil, err
	}
	var c net.Conn
	err := n.Do(func() error {
		var d net.Dialer
		var err error
		c, err = d.DialContext(ctx, network, address)
		return err
	})
	return c, err
}

// Listen listens inside the namespace; address as for [Namespace.Dial].
func (n *Namespace) Listen(network, address string) (net.Listener, error) {
	if _, _, err := splitLiteral(address); err != nil {
		return nil, err
	}
	var ln net.Listener
	err := n.Do(func() error {
		var err error
		ln, err = net.Listen(network, address)
		return err
	})
	return ln, err
}

// ListenPacket opens a UDP socket inside the namespace; address as for
// [Namespace.Dial].
func (n *Namespace) ListenPacket(network, address string) (net.PacketConn, error) {
	if _, _, err := splitLiteral(address); err != nil {
		return nil, err
	}
	var c net.PacketConn
	err := n.Do(func() error {
		var err error
		c, err = net.ListenPacket(network, address)
		return err
	})
	return c, err
}

func splitLiteral(address string) (net.IP, string, error) {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return nil, "", fmt.Errorf("address %q: %w", address, err)
	}
	ip := net.ParseIP(host)
	if ip == nil {
		return nil, "", fmt.Errorf("address %q: %q is not an IP address", address, host)
	}
	return ip, port, nil
}

// processes returns the ids of processes in the network namespace at path,
// this one left out.
func processes(path string) ([]int, error) {
	var want unix.Stat_t
	if err := unix.Stat(path, &want); err != nil {
		return nil, fmt.Errorf("stat %s: %w", path, err)
	}
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	var pids []int
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		var st unix.Stat_t
		if unix.Stat(filepath.Join("/proc", e.Name(), "ns/net"), &st) != nil {
			continue // gone meanwhile
		}
		if st.Ino == want.Ino && st.Dev == want.Dev {
			pids = append(pids, pid)
		}
	}
	return pids, nil
}

// killInside ends every process in the namespace at path and waits until they
// are gone. It repeats until none is left, as a dying process may fork.
func killInside(path string) error {
	for range 10 {
		pids, err := processes(path)
		if err != nil {
			if errors.Is(err, os.ErrNotExist) {
				return nil
			}
			return err
		}
		if len(pids) == 0 {
			return nil
		}
		for _, pid := range pids {
			if err := killWait(pid, 20*time.Second); err != nil {
				return err
			}
		}
	}
	return fmt.Errorf("processes keep appearing in %s", path)
}

// killWait kills one process and waits for its end, which a pidfd reports.
func killWait(pid int, limit time.Duration) error {
	fd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("open process %d: %w", pid, err)
	}
	defer unix.Close(fd)
	if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("kill process %d: %w", pid, err)
	}
	deadline := time.Now().Add(limit)
	for {
		fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		n, err := unix.Poll(fds, int(max(0, time.Until(deadline).Milliseconds())))
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return fmt.Errorf("wait for process %d: %w", pid, err)
		case n == 0:
			return fmt.Errorf("process %d did not end within %v of SIGKILL", pid, limit)
		default:
			return nil
		}
	}
}

// startTime returns when a process started, in clock ticks since boot.
func startTime(pid int) (string, error) {
	p, err := procfs.NewProc(pid)
	if err != nil {
		return "", err
	}
	stat, err := p.Stat()
	return strconv.FormatUint(stat.Starttime, 10), err
}

// Sweep removes the namespaces, and the processes in them, that runs of this
// package left behind when they were killed: those whose process, identified
// by PID and start time in the namespace's name, is no more. Labs of living
// processes are left alone. It returns the names removed.
func Sweep() ([]string, error) {
	entries, err := os.ReadDir(runDir)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list namespaces: %w", err)
	}
	var removed []string
	var errs []error
	for _, e := range entries {
		rest, ok := strings.CutPrefix(e.Name(), namePrefix)
		if !ok {
			continue
		}
		parts := strings.Split(rest, "-")
		if len(parts) != 4 {
			continue
		}
		pid, err := strconv.Atoi(parts[0])
		if err != nil {
			continue
		}
		if start, err := startTime(pid); err == nil && start == parts[1] {
			continue
		}
		path := filepath.Join(runDir, e.Name())
		if err := errors.Join(killInside(path), deleteNamed(e.Name())); err != nil {
			errs = append(errs, err)
			continue
		}
		removed = append(removed, e.Name())
	}
	dirs, _ := filepath.Glob(filepath.Join(os.TempDir(), namePrefix+"*"))
	for _, d := range dirs {
		parts := strings.Split(strings.TrimPrefix(filepath.Base(d), namePrefix), "-")
		if len(parts) != 3 {
			continue
		}
		pid, err := strconv.Atoi(parts[0])
		if err != nil {
			continue
		}
		if start, err := startTime(pid); err == nil && start == parts[1] {
			continue
		}
		errs = append(errs, os.RemoveAll(d))
	}
	return removed, errors.Join(errs...)
}
