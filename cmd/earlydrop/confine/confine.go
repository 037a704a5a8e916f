// SPDX-License-Identifier: Apache-2.0

// Package confine takes from a process what it does not need any more: capabilities, the
// way to new ones, and system calls. It reaches every thread, also those that C code has
// made (the inference engine's), and there is no way back.
package confine

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
	"kernel.org/pub/linux/libs/security/libcap/psx"
)

// Keep is what stays.
type Keep struct {
	// Capabilities (CAP_ numbers) that the process keeps, as far as it has them.
	Capabilities []int
	// AllSystemCalls leaves out the filter of system calls.
	AllSystemCalls bool
}

// To leaves the process no more than keep. After an error a part of it may have been taken:
// the process works on, with more rights than it should have.
func To(keep Keep) error {
	if err := onAllThreads("set no_new_privs", unix.SYS_PRCTL, unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0, 0); err != nil {
		return err
	}
	if err := dropCapabilities(keep.Capabilities); err != nil {
		return err
	}
	if !keep.AllSystemCalls {
		if err := filterSystemCalls(); err != nil {
			return err
		}
	}
	return check(keep)
}

// onAllThreads makes a system call on each thread.
func onAllThreads(what string, call uintptr, args ...uintptr) error {
	var a [6]uintptr
	copy(a[:], args)
	if _, _, errno := psx.Syscall6(call, a[0], a[1], a[2], a[3], a[4], a[5]); errno != 0 {
		return fmt.Errorf("%s: %w", what, os.NewSyscallError("all threads", errno))
	}
	return nil
}

// dropCapabilities leaves the capabilities of keep, and no more can be had by executing a
// program.
func dropCapabilities(keep []int) error {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var sets [2]unix.CapUserData // of 32 capabilities each
	if err := unix.Capget(&header, &sets[0]); err != nil {
		return fmt.Errorf("read own capabilities: %w", err)
	}
	// Without CAP_SETPCAP the bounding set stays. What is in it can't be had all the same, with
	// no_new_privs.
	if sets[0].Effective&(1<<unix.CAP_SETPCAP) != 0 {
		for c := 0; c <= unix.CAP_LAST_CAP; c++ {
			there, err := unix.PrctlRetInt(unix.PR_CAPBSET_READ, uintptr(c), 0, 0, 0)
			if err != nil { // the kernel knows no more
				break
			}
			if there == 1 && !slices.Contains(keep, c) {
				if err := onAllThreads(fmt.Sprintf("drop capability %d from the bounding set", c), unix.SYS_PRCTL, unix.PR_CAPBSET_DROP, uintptr(c)); err != nil {
					return err
				}
			}
		}
	}
	err := onAllThreads("clear the ambient capabilities", unix.SYS_PRCTL, unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL)
	if err != nil && !errors.Is(err, unix.EINVAL) {
		return err
	}
	mask := maskOf(keep)
	for i := range sets {
		part := uint32(mask >> (32 * i))
		sets[i].Effective &= part
		sets[i].Permitted &= part
		sets[i].Inheritable = 0
	}
	_, _, errno := psx.Syscall3(unix.SYS_CAPSET, uintptr(unsafe.Pointer(&header)), uintptr(unsafe.Pointer(&sets[0])), 0)
	if errno != 0 {
		return fmt.Errorf("give up capabilities: %w", os.NewSyscallError("capset", errno))
	}
	return nil
}

func maskOf(capabilities []int) (mask uint64) {
	for _, c := range capabilities {
		mask |= 1 << c
	}
	return mask
}

// check looks whether each thread is left with no more than keep.
func check(keep Keep) error {
	threads, err := os.ReadDir("/proc/self/task")
	if err != nil {
		return fmt.Errorf("look at the threads: %w", err)
	}
	for _, t := range threads {
		text, err := os.ReadFile("/proc/self/task/" + t.Name() + "/status")
		if errors.Is(err, os.ErrNotExist) || errors.Is(err, syscall.ESRCH) {
			continue // it has ended
		}
		if err != nil {
			return fmt.Errorf("look at the threads: %w", err)
		}
		for line := range strings.Lines(string(text)) {
			name, value, _ := strings.Cut(strings.TrimSpace(line), ":\t")
			var has uint64
			wrong := false
			switch name {
			case "CapEff", "CapPrm", "CapInh", "CapAmb":
				_, err := fmt.Sscanf(value, "%x", &has)
				wrong = err != nil || has&^maskOf(keep.Capabilities) != 0
			case "NoNewPrivs":
				wrong = value != "1"
			case "Seccomp":
				wrong = !keep.AllSystemCalls && value != "2"
			}
			if wrong {
				return fmt.Errorf("thread %s has kept more than it should: %s is %s", t.Name(), name, value)
			}
		}
	}
	return nil
}
