// SPDX-License-Identifier: Apache-2.0

//go:build cgo

package guard

// #define _GNU_SOURCE
// #include <errno.h>
// #include <signal.h>
// #include <stdlib.h>
// #include <string.h>
// #include <sys/syscall.h>
// #include <time.h>
// #include <unistd.h>
//
// // One that nobody uses: the first ones are the C library's.
// #define GUARD_SIGNAL (SIGRTMIN + 9)
//
// // Of a thread and its own signal handler alone.
// struct guard {
// 	volatile unsigned int steps; // that the thread has made
// 	unsigned int seen;	     // when it was looked at
// 	volatile unsigned int ended; // its urgency was ended
// 	int timer;
// 	char ordinary[56]; // struct sched_attr
// };
//
// static __thread struct guard *guard;
//
// static void look_at_steps(int signal)
// {
// 	int saved = errno;
//
// 	if (!guard)
// 		return; // somebody else has sent it
// 	if (guard->steps != guard->seen)
// 		guard->seen = guard->steps;
// 	else if (!syscall(SYS_sched_setattr, 0, guard->ordinary, 0))
// 		guard->ended = 1;
// 	errno = saved;
// }
//
// // Makes the guard of the calling thread, which looks after each so many nanoseconds of the
// // thread's time on a core. Returns NULL and sets errno where there can be none.
// static struct guard *new_guard(const void *ordinary, long each)
// {
// 	struct sigaction action = {.sa_handler = look_at_steps, .sa_flags = SA_ONSTACK | SA_RESTART};
// 	struct itimerspec times = {{0, each}, {0, each}};
// 	struct sigevent event;
//
// 	if (!(guard = calloc(1, sizeof(*guard))))
// 		return NULL;
// 	memcpy(guard->ordinary, ordinary, sizeof(guard->ordinary));
// 	memset(&event, 0, sizeof(event));
// 	event.sigev_notify = SIGEV_THREAD_ID;
// 	event.sigev_signo = GUARD_SIGNAL;
// 	event._sigev_un._tid = syscall(SYS_gettid);
// 	// The kernel's timer: those of the C library are not of a thread.
// 	if (sigaction(GUARD_SIGNAL, &action, NULL) || syscall(SYS_timer_create, CLOCK_THREAD_CPUTIME_ID, &event, &guard->timer))
// 		goto failed;
// 	if (!syscall(SYS_timer_settime, guard->timer, 0, &times, NULL))
// 		return guard;
// 	syscall(SYS_timer_delete, guard->timer);
// failed:
// 	free(guard);
// 	guard = NULL;
// 	return NULL;
// }
//
// static void end_guard(void)
// {
// 	struct guard *last = guard;
//
// 	syscall(SYS_timer_delete, last->timer);
// 	guard = NULL;
// 	free(last);
// }
import "C"

import (
	"fmt"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Guard keeps an urgent thread from waiting in a loop for one that it keeps from running. So it
// would be when it comes back into Go while the collector looks at its stack, and has just pushed
// the collector's thread, an ordinary one, off its core (runtime.exitsyscall): until the kernel
// takes the core from it, for most of a second. The guard looks each [Each] of the thread's time
// on a core, and ends the thread's urgency when it has made no step since. It is its
// thread's alone.
type Guard C.struct_guard

// Each is far more than a step takes. The kernel's own step is a tick, 1 to 10 ms.
const Each = 4 * time.Millisecond

// New returns the guard of the calling thread, which ends urgency by scheduling it so.
func New(ordinary unix.SchedAttr) (*Guard, error) {
	g, err := C.new_guard(unsafe.Pointer(&ordinary), C.long(Each))
	if g == nil {
		return nil, fmt.Errorf("make a timer of a thread's time: %w", err)
	}
	return (*Guard)(g), nil
}

// Step is called by the thread after whatever it does. It reports whether its urgency was ended.
func (g *Guard) Step() (ended bool) {
	atomic.AddUint32((*uint32)(&g.steps), 1)
	return atomic.SwapUint32((*uint32)(&g.ended), 0) != 0
}

// End is called by the thread, at last.
func (g *Guard) End() { C.end_guard() }
