// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"errors"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestUrgencyHasABoundedShare(t *testing.T) {
	begin := time.Unix(1, 0)
	const burst = realTimeBurst
	for _, tt := range []struct {
		name  string
		steps []struct{ at, used, left time.Duration }
	}{
		{"all of it is there at first, and not more later", []struct{ at, used, left time.Duration }{
			{0, 0, burst}, {time.Hour, 0, burst},
		}},
		{"a quarter of what passes comes back", []struct{ at, used, left time.Duration }{
			{0, burst, 0}, {8 * time.Millisecond, 0, 2 * time.Millisecond}, {16 * time.Millisecond, time.Millisecond, 3 * time.Millisecond},
		}},
		{"what was used too much is missing later", []struct{ at, used, left time.Duration }{
			{0, 2 * burst, -burst}, {2 * burst, 0, -burst / 2}, {4 * burst, 0, 0},
		}},
	} {
		var r realTime
		for _, s := range tt.steps {
			if left := r.take(s.used, begin.Add(s.at)); left != s.left {
				t.Errorf("%s: %s are left after %s, want %s", tt.name, left, s.at, s.left)
			}
		}
	}
}

// A reader's thread is urgent, loses that when it works without end, and has it again later.
// Then it is as it was before.
func TestReaderThatNeverRestsIsNotUrgent(t *testing.T) {
	policy := func() uint32 {
		t.Helper()
		a, err := unix.SchedGetAttr(0, 0)
		if err != nil {
			t.Fatal(err)
		}
		return a.Policy
	}
	var r realTime
	thread := r.thread()
	if got := policy(); got != unix.SCHED_FIFO {
		t.Fatalf("the thread's scheduling policy is %d", got)
	}
	begin := threadTime()
	for policy() == unix.SCHED_FIFO {
		thread.look(time.Now())
		if used := threadTime() - begin; used > 10*realTimeBurst {
			t.Fatalf("urgent for %s", used)
		}
	}
	if used := threadTime() - begin; used < realTimeBurst/2 {
		t.Errorf("urgent for %s alone", used)
	}
	for deadline := time.Now().Add(time.Minute); policy() != unix.SCHED_FIFO; thread.look(time.Now()) {
		if time.Now().After(deadline) {
			t.Fatal("it is not urgent again")
		}
		time.Sleep(realTimeLook) // the share comes back with time
	}
	thread.end()
	if got := policy(); got != unix.SCHED_NORMAL {
		t.Errorf("the thread's scheduling policy is %d in the end", got)
	}
}

// Without the right to be urgent the thread is an ordinary one.
func TestReaderWithoutTheRightIsOrdinary(t *testing.T) {
	withoutRealTime(t, func() {
		var r realTime
		thread := r.thread()
		defer thread.end()
		if thread.able || thread.urgent {
			t.Error("the thread is urgent")
		}
		thread.look(time.Now().Add(time.Hour))
		if thread.urgent {
			t.Error("the thread is urgent later")
		}
	})
}

// withoutRealTime calls f on a thread, which ends with it, that has no capability.
func withoutRealTime(t *testing.T, f func()) {
	t.Helper()
	done := make(chan error)
	go func() {
		// Never unlocked.
		runtime.LockOSThread()
		header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
		var none [2]unix.CapUserData
		err := unix.Capset(&header, &none[0])
		if err == nil {
			f()
		}
		done <- err
	}()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

// The collector looks at the stack of a thread that waits. A reader that wakes up meanwhile, on
// the same core, has to let it end: it takes next to no time of its core.
func TestUrgentReaderLetsTheCollectorEnd(t *testing.T) {
	const child = "EARLYDROP_TEST_ONE_CORE"
	if os.Getenv(child) == "" {
		cmd := exec.Command(os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v")
		cmd.Env = append(os.Environ(), child+"=1")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v:\n%s", err, out)
		}
		return
	}
	onOneCore(t)
	var ends [2]int
	if err := unix.Pipe2(ends[:], unix.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	const waits = 4000
	worst := make(chan time.Duration)
	go func() {
		var r realTime
		thread := r.thread()
		defer thread.end()
		var most time.Duration
		onDeepStack(20_000, func() { // which takes the collector a while
			b := make([]byte, 1)
			for range waits {
				begin := threadTime()
				_, err := unix.Read(ends[0], b)
				if most = max(most, threadTime()-begin); err != nil || !thread.able {
					most = time.Hour
				}
				thread.look(time.Now())
			}
		})
		worst <- most
	}()
	go func() {
		for {
			runtime.GC()
		}
	}()
	go func() {
		for range waits {
			time.Sleep(300 * time.Microsecond)
			_, _ = unix.Write(ends[1], []byte{1})
		}
	}()
	// Else it is what the kernel lets urgent threads have, 950 ms.
	most := <-worst
	if t.Logf("a wait took up to %s of the core", most); most > 200*time.Millisecond {
		t.Error("that is too long")
	}
}

// onOneCore keeps all threads of this process on one core.
func onOneCore(t *testing.T) {
	t.Helper()
	var all, one unix.CPUSet
	if err := unix.SchedGetaffinity(0, &all); err != nil {
		t.Fatal(err)
	}
	for i := range 1024 {
		if all.IsSet(i) {
			one.Set(i)
			break
		}
	}
	threads, err := os.ReadDir("/proc/self/task")
	if err != nil {
		t.Fatal(err)
	}
	for _, thread := range threads {
		tid, err := strconv.Atoi(thread.Name())
		if err != nil {
			t.Fatal(err)
		}
		if err := unix.SchedSetaffinity(tid, &one); err != nil && !errors.Is(err, unix.ESRCH) {
			t.Fatal(err)
		}
	}
}

//go:noinline
func onDeepStack(n int, f func()) int {
	if n == 0 {
		f()
		return 0
	}
	var a [8]int
	a[n%8] = onDeepStack(n-1, f)
	return a[0] + a[7]
}
