// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// A process that attaches to an interface locks the folder of its pins as long as it
// lives. The kernel lets go of the lock when the process dies, however it dies, and tells
// in /proc/locks who has it. That is by whom a data path is held; the process id in the
// map `attachment` is only of the process that wrote it.

// lockPatience is how long a lock is waited for that no daemon is seen to hold:
// [daemonOf] of another process has it for an instant.
const lockPatience = 100 * time.Millisecond

// tryLock locks a folder, with LOCK_EX or LOCK_SH. The error wraps EWOULDBLOCK when
// another process has it, and [os.ErrNotExist] when the folder was removed.
func tryLock(folder *os.File, how int) error {
	for deadline := time.Now().Add(lockPatience); ; time.Sleep(time.Millisecond) {
		err := unix.Flock(int(folder.Fd()), how|unix.LOCK_NB)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if errors.Is(err, unix.EWOULDBLOCK) && time.Now().Before(deadline) && lockedBy(folder) == 0 {
			continue
		}
		if err != nil {
			return fmt.Errorf("lock %s: %w", folder.Name(), err)
		}
		break
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(folder.Fd()), &st); err != nil {
		return fmt.Errorf("stat %s: %w", folder.Name(), err)
	}
	if st.Nlink == 0 {
		return fmt.Errorf("lock %s: %w", folder.Name(), os.ErrNotExist)
	}
	return nil
}

// makeFolder creates a folder of pins, unless it is there, and locks it. The error wraps
// EWOULDBLOCK when another process has it.
func makeFolder(dir string) (*os.File, error) {
	for try := 0; ; try++ {
		folder, err := func() (*os.File, error) {
			if err := os.MkdirAll(dir, rootMode); err != nil {
				return nil, err
			}
			folder, err := openFolder(dir)
			if err != nil {
				return nil, err
			}
			if err := tryLock(folder, unix.LOCK_EX); err != nil {
				return nil, errors.Join(err, folder.Close())
			}
			return folder, nil
		}()
		// Somebody who detached may have removed it in between.
		if err == nil || !errors.Is(err, os.ErrNotExist) || try == 10 {
			return folder, err
		}
	}
}

// lockedBy returns the process that has a folder locked exclusively; 0 if there is none,
// or one of a PID namespace that can't be seen from here.
func lockedBy(folder *os.File) int {
	id, err := lockID(folder)
	if err != nil {
		return 0
	}
	text, err := os.ReadFile("/proc/locks")
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(text)) {
		if pid, of := parseLock(line); of == id {
			return pid
		}
	}
	return 0
}

// isHeld reports whether a process that can be seen from here has locked a folder.
func isHeld(dir string) bool {
	folder, err := openFolder(dir)
	if err != nil {
		return false
	}
	defer folder.Close()
	return lockedBy(folder) != 0
}

// lockID is how /proc names the file that a lock is on.
func lockID(folder *os.File) (string, error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(folder.Fd()), &st); err != nil {
		return "", err
	}
	return fmt.Sprintf("%02x:%02x:%d", unix.Major(st.Dev), unix.Minor(st.Dev), st.Ino), nil
}

// parseLock reads a line of /proc/locks, which /proc/PID/fdinfo has as well:
//
//	1: FLOCK  ADVISORY  WRITE 4711 00:27:33115 0 EOF
//
// of is empty unless it is a flock for writing. Those who wait have an arrow after the
// number.
func parseLock(line string) (pid int, of string) {
	f := strings.Fields(line)
	if len(f) < 6 || f[1] != "FLOCK" || f[3] != "WRITE" {
		return 0, ""
	}
	pid, err := strconv.Atoi(f[4])
	if err != nil {
		return 0, ""
	}
	return pid, f[5]
}

// hasLock reports whether the process has the folder locked.
func hasLock(pid int, folder *os.File) bool {
	id, err := lockID(folder)
	if err != nil {
		return false
	}
	found, err := fdinfoHas(pid, func(line string) bool {
		rest, ok := strings.CutPrefix(line, "lock:")
		_, of := parseLock(rest)
		return ok && of == id
	})
	if errors.Is(err, os.ErrPermission) {
		// The files of a process with more rights are not shown. Then what /proc/locks
		// says is all there is.
		return lockedBy(folder) == pid
	}
	return found
}

// fdinfoHas reports whether a line that fits is in what /proc tells of the open files of
// a process.
func fdinfoHas(pid int, fits func(line string) bool) (bool, error) {
	dir := fmt.Sprintf("/proc/%d/fdinfo", pid)
	entries, err := os.ReadDir(dir)
	if err != nil {
		return false, err
	}
	for _, e := range entries {
		text, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if errors.Is(err, os.ErrPermission) {
			return false, err
		}
		for line := range strings.Lines(string(text)) {
			if fits(line) {
				return true, nil
			}
		}
	}
	return false, nil
}

// daemonOf returns whether a process has the folder locked, and its id if that can be
// seen from here.
func daemonOf(folder *os.File) (pid int, alive bool) {
	if pid := lockedBy(folder); pid != 0 {
		return pid, true
	}
	if err := unix.Flock(int(folder.Fd()), unix.LOCK_SH|unix.LOCK_NB); err != nil {
		return 0, errors.Is(err, unix.EWOULDBLOCK)
	}
	_ = unix.Flock(int(folder.Fd()), unix.LOCK_UN)
	return 0, false
}

// pidHint names the process that has a folder locked, if it can be seen.
func pidHint(dir string) string {
	folder, err := openFolder(dir)
	if err != nil {
		return ""
	}
	defer folder.Close()
	if pid := lockedBy(folder); pid != 0 {
		return fmt.Sprintf(" (pid %d)", pid)
	}
	return ""
}

// holdsOthers reports whether a process has other folders of pins locked than this one.
func holdsOthers(pid int, dir string) bool {
	entries, err := os.ReadDir(pinRoot)
	if pid == 0 || err != nil {
		return false
	}
	for _, e := range entries {
		folder, err := openFolder(filepath.Join(pinRoot, e.Name()))
		if err != nil {
			continue
		}
		held := !isAt(folder, dir) && lockedBy(folder) == pid
		_ = folder.Close()
		if held {
			return true
		}
	}
	return false
}

// waitForHolder takes the lock that a process is about to let go of. The error wraps
// [os.ErrNotExist] when it removed the folder.
func waitForHolder(folder *os.File, iface string, pid int) error {
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		err := tryLock(folder, unix.LOCK_EX)
		if !errors.Is(err, unix.EWOULDBLOCK) {
			return err
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("process %d did not let go of %s within 10 s: stop it by hand", pid, iface)
		}
	}
}

// stopHolder asks the process that has the folder locked to end (SIGTERM) and takes the
// lock after it, at most ten seconds later. The error wraps [os.ErrNotExist] when that
// process removed the folder as it ended.
func stopHolder(folder *os.File, iface string) error {
	asked, unseen := 0, 0
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		if err := tryLock(folder, unix.LOCK_EX); !errors.Is(err, unix.EWOULDBLOCK) {
			return err
		}
		pid := lockedBy(folder)
		if pid == 0 {
			// It may have ended just now: the next try tells.
			if unseen++; unseen > 1 {
				return refused(unix.EWOULDBLOCK, "the daemon of %s can't be seen from here, it is in another PID namespace: stop it there", iface)
			}
			continue
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("the daemon of %s, pid %d, did not end within 10 s: stop it by hand", iface, pid)
		}
		if pid == asked {
			continue
		}
		if pid <= 1 || pid == os.Getpid() {
			return refused(unix.EWOULDBLOCK, "the daemon of %s is process %d, which is not stopped from here: stop it by hand", iface, pid)
		}
		sent, err := signalHolder(pid, folder, unix.SIGTERM)
		if err != nil {
			return fmt.Errorf("stop the daemon of %s, pid %d: %w", iface, pid, err)
		}
		if sent {
			asked = pid
		}
	}
}

// HangUp sends SIGHUP to the daemon that holds the interface, and returns its process id. It
// is refused where there is none.
func (t *Tables) HangUp() (pid int, err error) {
	folder, err := openFolder(t.PinDir())
	if err != nil {
		return 0, fmt.Errorf("open the pins of %s: %w", t.Interface(), err)
	}
	defer folder.Close()
	pid, alive := daemonOf(folder)
	switch {
	case !alive:
		return 0, refused(nil, "no daemon runs for %s", t.Interface())
	case pid == 0:
		return 0, refused(nil, "the daemon of %s can't be seen from here, it is in another PID namespace", t.Interface())
	}
	sent, err := signalHolder(pid, folder, unix.SIGHUP)
	if err != nil {
		return 0, fmt.Errorf("signal the daemon of %s, pid %d: %w", t.Interface(), pid, err)
	}
	if !sent {
		return 0, refused(nil, "the daemon of %s has just ended", t.Interface())
	}
	return pid, nil
}

// signalHolder sends a signal to a process, provided that it has the folder locked. Whoever
// got the number of a process that ended is sent nothing; then it returns false.
func signalHolder(pid int, folder *os.File, signal unix.Signal) (sent bool, err error) {
	process, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return false, nil // it has just ended
	}
	if err != nil {
		return false, err
	}
	defer unix.Close(process)
	// From here on the descriptor stays with one process: the one that has the lock?
	if !hasLock(pid, folder) {
		return false, nil
	}
	if err := unix.PidfdSendSignal(process, signal, nil, 0); err != nil {
		if errors.Is(err, unix.ESRCH) {
			return false, nil
		}
		return false, err
	}
	return true, nil
}
