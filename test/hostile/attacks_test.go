// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"testing"
	"time"

	"github.com/earlydrop/earlydrop/cmd/earlydrop/event"
	"github.com/earlydrop/earlydrop/test/e2e/rig"
)

// inArena runs fn with a gateway that enforces, and ends it in order.
func inArena(t *testing.T, ttl string, fn func(ctx context.Context, a *arena)) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	a, err := newArena(ctx, options{binary: program}, ttl)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := a.close(ctx); err != nil {
			t.Error(err)
		}
	}()
	fn(ctx, a)
}

// spared fails for each attack that did harm.
func spared(t *testing.T, all []harm, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	for _, h := range all {
		if err := h.check(); err != nil {
			t.Error(err)
		}
	}
}

func TestForgedSegmentsCutNoRunningConnection(t *testing.T) {
	inArena(t, "10m", func(ctx context.Context, a *arena) {
		all, err := a.hijack(ctx, cuts(), 1)
		spared(t, all, err)
	})
}

func TestForgedSegmentsCutNoConnectionToCome(t *testing.T) {
	inArena(t, "10m", func(ctx context.Context, a *arena) {
		all, err := a.poison(ctx, cuts(), 2)
		spared(t, all, err)
	})
}

func TestForgedSegmentsHideNoTunnel(t *testing.T) {
	inArena(t, "10m", func(ctx context.Context, a *arena) {
		all, err := a.hide(ctx, hidings(), 3)
		spared(t, all, err)
	})
}

// A connection that is still there when its block ends is blocked on.
func TestAConnectionThatOutlivesItsBlockStaysBlocked(t *testing.T) {
	inArena(t, "3s", func(ctx context.Context, a *arena) {
		tuple, err := a.tunnel(ctx, hiding{})
		if err != nil {
			t.Fatal(err)
		}
		if e, err := a.judged(ctx, tuple); err != nil || e.Decision != "drop" {
			t.Fatal(e.Decision, err)
		}
		conn := a.opened[len(a.opened)-1]
		first, ok, err := a.Block(ctx, tuple.client, tuple.server)
		if err != nil || !ok {
			t.Fatal("it is not blocked", err)
		}
		// More data, so that the client's kernel goes on sending for longer than the
		// block lasts.
		if _, err := conn.Write(randomBytes(4000)); err != nil {
			t.Fatal(err)
		}
		err = rig.Until(ctx, func() (bool, error) {
			b, ok, err := a.Block(ctx, tuple.client, tuple.server)
			if err == nil && ok && b.Expires.Sub(first.Expires) >= 2*3*time.Second {
				return true, nil
			}
			if err == nil && time.Since(first.Since) > 2*time.Minute {
				err = fmt.Errorf("two minutes later it ends at %s, at first it was to end at %s (there: %v)", b.Expires, first.Expires, ok)
			}
			return false, err
		})
		if err != nil {
			t.Fatal(err)
		}
		if all, _ := a.verdicts(tuple); all != 1 {
			t.Errorf("%d verdicts about one connection", all)
		}
	})
}

// A block is of one connection: the next one on the same ports, which may be another
// customer's behind the same address, is judged by itself.
func TestAPortIsFreeOnceANewConnectionIsMade(t *testing.T) {
	inArena(t, "10m", func(ctx context.Context, a *arena) {
		tuple, err := a.tunnel(ctx, hiding{})
		if err != nil {
			t.Fatal(err)
		}
		if e, err := a.judged(ctx, tuple); err != nil || e.Decision != "drop" {
			t.Fatal(e.Decision, err)
		}
		old := a.opened[len(a.opened)-1].(*net.TCPConn)
		if err := errors.Join(old.SetLinger(0), old.Close()); err != nil {
			t.Fatal(err)
		}
		conn, again, err := a.dial(ctx, tuple.client.Port(), tuple.server)
		if err != nil {
			t.Fatal("the next connection on the same ports:", err)
		}
		defer conn.Close()
		if again != tuple {
			t.Fatalf("%v, want %v", again, tuple)
		}
		if _, err := conn.Write(aDecoy.payload); err != nil {
			t.Fatal(err)
		}
		if err := drained(conn); err != nil {
			t.Fatal("its payload does not pass:", err)
		}
		seen := 0
		e, err := rig.Wait(ctx, a.daemon, "the second verdict", func(e *event.Verdict) bool {
			if e.Src == tuple.client && e.Dst == tuple.server {
				seen++
			}
			return seen == 2
		})
		if err != nil {
			t.Fatal(err)
		}
		if e.Decision != "pass" {
			t.Error(e.Decision)
		}
		soon, cancel := context.WithTimeout(ctx, time.Minute)
		defer cancel()
		err = rig.Until(soon, func() (bool, error) {
			_, ok, err := a.Block(soon, tuple.client, tuple.server)
			return !ok, err
		})
		if err != nil {
			t.Error("it is still blocked:", err)
		}
	})
}
