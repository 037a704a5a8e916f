// SPDX-License-Identifier: Apache-2.0

package eventlog

import (
	"testing"

	"github.com/earlydrop/earlydrop/cmd/earlydrop/event"
)

// Those who follow get what is logged while they do; one that is too slow learns how much
// it has lost, and the end of the log is their end.
func TestFollowersGetWhatIsLogged(t *testing.T) {
	l, err := Open(Config{})
	if err != nil {
		t.Fatal(err)
	}
	l.Add(&event.LeftOut{PassesLeftOut: 1})
	all, slow, gone := l.Follow(10), l.Follow(1), l.Follow(10)
	gone.Close()
	gone.Close() // once more is nothing
	l.Add(&event.LeftOut{PassesLeftOut: 2})
	l.Put(&event.LeftOut{PassesLeftOut: 3})
	l.Close()
	count := func(f *Follower) (n uint64) {
		for e := range f.Events() {
			n = 10*n + e.(*event.LeftOut).PassesLeftOut
		}
		return n
	}
	if got := count(all); got != 23 || all.TakeLost() != 0 {
		t.Errorf("all: %d", got)
	}
	if got := count(slow); got != 2 || slow.TakeLost() != 1 || slow.TakeLost() != 0 {
		t.Errorf("slow: %d", got)
	}
	select {
	case e := <-gone.Events():
		t.Errorf("who has gone got %v", e)
	default:
	}
	if got := count(l.Follow(1)); got != 0 {
		t.Errorf("after the end: %d", got)
	}
	all.Close()
}
