// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"fmt"
	"log/slog"
	"runtime"
	"sync"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/earlydrop/earlydrop/cmd/earlydrop/gateway/guard"
)

const (
	// realTimePriority is the lowest there is: it comes before all ordinary threads, and
	// behind all that somebody else has made urgent.
	realTimePriority = 1

	// All readers together may be urgent for a quarter of one core's time, and for 10 ms on
	// end: about 2500 lone verdicts per second, 100 µs each. What takes more is a flood, in
	// which the kernel's own work for packets (ksoftirqd, an ordinary thread) comes first.
	realTimeShare = 4
	realTimeBurst = 10 * time.Millisecond

	realTimeLook = time.Millisecond // between two looks at the time that a reader has used
)

// realTime is the time that threads which read captures may come before all ordinary threads:
// on a busy machine, waiting for a core is most of a verdict's delay. It is safe for
// concurrent use.
type realTime struct {
	mu      sync.Mutex
	left    time.Duration // of a core's time
	at      time.Time     // when that was so much
	refused sync.Once     // of which it is told
}

// take takes so much of what is left at a time, and returns what is left then.
func (r *realTime) take(used time.Duration, now time.Time) time.Duration {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.at.IsZero() {
		r.left = realTimeBurst
	} else {
		r.left = min(realTimeBurst, r.left+now.Sub(r.at)/realTimeShare)
	}
	r.at = now
	r.left -= used
	return r.left
}

// readerThread is the thread that reads the captures of an interface. It is used by that
// thread alone.
type readerThread struct {
	time   *realTime
	normal unix.SchedAttr // how it is scheduled when it is not urgent
	guard  *guard.Guard   // nil: there can be none, nor is the thread ever urgent
	able   bool           // to be urgent
	urgent bool
	looked time.Time
	used   time.Duration // of a core's time, when it was looked at
}

// thread keeps the calling goroutine on its thread, until end, and makes that urgent if the
// process may (CAP_SYS_NICE, or RLIMIT_RTPRIO of 1; not in every control group). If it may
// not, that is logged once, and the thread is an ordinary one.
func (r *realTime) thread() *readerThread {
	runtime.LockOSThread()
	t := &readerThread{time: r}
	normal, err := unix.SchedGetAttr(0, 0)
	if err == nil {
		// Threads that this one makes are ordinary ones, and the flag is not to be taken back
		// without CAP_SYS_NICE.
		t.normal = unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: normal.Policy, Nice: normal.Nice, Flags: normal.Flags | unix.SCHED_FLAG_RESET_ON_FORK}
		if t.guard, err = guard.New(t.normal); err == nil {
			err = t.setUrgent(true)
		}
	}
	if t.able = err == nil; !t.able {
		r.refused.Do(func() {
			slog.Info("captures are read by an ordinary thread, so verdicts come later while the machine is busy", "error", err)
		})
	}
	t.used = threadTime()
	return t
}

// TryRealTime returns why the process can't have threads that come before ordinary ones; nil
// if it can.
func TryRealTime() error {
	failed := make(chan error)
	go func() {
		runtime.LockOSThread() // for good: the thread ends with it
		failed <- new(readerThread).setUrgent(true)
	}()
	return <-failed
}

// look, called after each capture, ends the thread's urgency when all of the readers' share
// is used up, and makes it urgent again when half of it is there again.
func (t *readerThread) look(now time.Time) {
	if t.able && t.guard.Step() {
		t.urgent = false
	}
	if !t.able || now.Sub(t.looked) < realTimeLook {
		return
	}
	t.looked = now
	all := threadTime()
	used := all - t.used
	t.used = all
	if !t.urgent {
		used = 0
	}
	left := t.time.take(used, now)
	if t.urgent && left <= 0 || !t.urgent && left >= realTimeBurst/2 {
		t.able = t.setUrgent(!t.urgent) == nil
	}
}

func (t *readerThread) setUrgent(urgent bool) error {
	attr := &t.normal
	if urgent {
		attr = &unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_FIFO, Priority: realTimePriority, Flags: unix.SCHED_FLAG_RESET_ON_FORK}
	}
	// The runtime is not told of it, as it is when the call ends that the guard is for.
	if _, _, err := unix.RawSyscall(unix.SYS_SCHED_SETATTR, 0, uintptr(unsafe.Pointer(attr)), 0); err != 0 {
		return fmt.Errorf("change the scheduling of a thread: %w", err)
	}
	t.urgent = urgent
	return nil
}

// end gives the thread back as it was.
func (t *readerThread) end() {
	if t.guard != nil {
		t.guard.End()
	}
	if t.urgent && t.setUrgent(false) != nil {
		return // the goroutine ends on its thread, and the thread with it
	}
	runtime.UnlockOSThread()
}

// threadTime is how long the calling thread has had a core.
func threadTime() time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &ts); err != nil {
		return 0
	}
	return time.Duration(ts.Nano())
}
