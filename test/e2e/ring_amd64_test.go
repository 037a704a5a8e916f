// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/earlydrop/earlydrop/cmd/earlydrop/event"
	"github.com/earlydrop/earlydrop/test/e2e/rig"
	"github.com/earlydrop/earlydrop/test/lab"
)

// fdInfo returns what the kernel says of the descriptors of a process.
func fdInfo(pid int) (map[int]string, error) {
	infos, err := filepath.Glob(fmt.Sprintf("/proc/%d/fdinfo/*", pid))
	if err != nil {
		return nil, err
	}
	all := map[int]string{}
	for _, info := range infos {
		text, err := os.ReadFile(info)
		if err != nil {
			continue // closed in the meantime
		}
		var fd int
		if _, err := fmt.Sscan(filepath.Base(info), &fd); err != nil {
			return nil, err
		}
		all[fd] = string(text)
	}
	return all, nil
}

// ringEpoll returns the descriptor of the epoll instance that a process watches a
// ring buffer with.
func ringEpoll(pid int) (int, error) {
	const ringBuffer = "map_type:\t27\n"
	all, err := fdInfo(pid)
	if err != nil {
		return 0, err
	}
	for fd, text := range all {
		for line := range strings.Lines(text) {
			var watched int
			if n, _ := fmt.Sscanf(line, "tfd: %d ", &watched); n == 1 && strings.Contains(all[watched], ringBuffer) {
				return fd, nil
			}
		}
	}
	return 0, fmt.Errorf("process %d watches no ring buffer", pid)
}

// replaceDescriptor has a process put its standard input into the place of another
// descriptor, as if by dup2, which it does not notice.
func replaceDescriptor(pid, fd int) (err error) {
	runtime.LockOSThread() // ptrace is for one thread
	defer runtime.UnlockOSThread()
	wait := func() error {
		var status unix.WaitStatus
		if _, err := unix.Wait4(pid, &status, unix.WALL, nil); err != nil {
			return fmt.Errorf("wait for the stopped process: %w", err)
		}
		if !status.Stopped() {
			return fmt.Errorf("the process is not stopped: %#x", status)
		}
		return nil
	}
	for range 1000 {
		if err := unix.PtraceAttach(pid); err != nil {
			return fmt.Errorf("attach to the process: %w", err)
		}
		done, err := func() (bool, error) {
			if err := wait(); err != nil {
				return false, err
			}
			var saved unix.PtraceRegs
			if err := unix.PtraceGetRegs(pid, &saved); err != nil {
				return false, err
			}
			code := make([]byte, 2)
			if _, err := unix.PtracePeekText(pid, uintptr(saved.Rip)-2, code); err != nil {
				return false, err
			}
			if !bytes.Equal(code, []byte{0x0f, 0x05}) { // the instruction syscall
				return false, nil // it was running: try again when it waits
			}
			regs := saved
			regs.Rip -= 2
			regs.Rax, regs.Rdi, regs.Rsi = unix.SYS_DUP2, 0, uint64(fd)
			regs.Orig_rax = ^uint64(0) // what was interrupted is not begun again yet
			if err := errors.Join(unix.PtraceSetRegs(pid, &regs), unix.PtraceSingleStep(pid)); err != nil {
				return false, err
			}
			if err := wait(); err != nil {
				return false, err
			}
			if err := unix.PtraceGetRegs(pid, &regs); err != nil {
				return false, err
			}
			if regs.Rax != uint64(fd) {
				return false, fmt.Errorf("dup2 in the process returned %d", int64(regs.Rax))
			}
			return true, unix.PtraceSetRegs(pid, &saved)
		}()
		if err := errors.Join(err, unix.PtraceDetach(pid)); err != nil || done {
			return err
		}
		time.Sleep(time.Millisecond)
	}
	return errors.New("the process never waits")
}

// A daemon that can't read the ring buffer any more ends with an error, and leaves
// what the kernel does as it is.
func TestBrokenRingBufferEndsTheDaemonAndLeavesBlocks(t *testing.T) {
	t.Parallel()
	s := newScene(t, lab.Config{ServerLink: slow})
	d := s.enforce()
	tr, v := s.blockedDownload(d)
	epoll, err := ringEpoll(d.PID())
	if err == nil {
		err = replaceDescriptor(d.PID(), epoll)
	}
	if err != nil {
		t.Fatal(err)
	}
	// The wait that is under way still ends with the next capture.
	if r := s.Curl(s.ctx, nil, s.URL("https", 4, s.web.HTTPSPort, "/64k")); r.Err != nil {
		t.Error(r.Err)
	}
	if code, err := d.Exited(s.ctx); err != nil || code != 1 {
		t.Fatalf("exit code %d, %v, want 1; it said %s", code, err, d.Stderr())
	}
	last := must(rig.Wait(s.ctx, d, "the last event", func(*event.Ended) bool { return true }))(t)
	if !last.Persisted {
		t.Errorf("last event %+v", last)
	}
	s.says(d, "the data path stays attached to "+rig.Device, "earlydrop: read the ring buffer: ", "blocked flows stay blocked, new flows pass")
	s.stalled(tr, v)
	if r := s.Curl(s.ctx, nil, s.URL("https", 4, s.web.HTTPSPort, "/64k")); r.Err != nil {
		t.Errorf("a new flow: %v", r.Err)
	}
	if st := must(s.Status(s.ctx))(t); st.Running || st.Mode != "enforce" {
		t.Errorf("status %+v", st)
	}
	d = s.enforce()
	if !d.Attached.Adopted {
		t.Errorf("not adopted: %+v", d.Attached)
	}
	s.says(d, "1 flows stay blocked")
	s.stop(d)
	s.complete("the download after the detachment", tr)
}
