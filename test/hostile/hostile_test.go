// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/earlydrop/earlydrop/test/e2e/rig"
)

var program string

func TestMain(m *testing.M) { rig.TestMain("hostile", m, &program) }

// short is what `make test` has time for, at a rate that leaves the other packages' tests
// some of the machine; the command has longer floods, as fast as they go.
func short(t *testing.T) (context.Context, options) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	t.Cleanup(cancel)
	return ctx, options{binary: program, duration: 6 * time.Second, rate: 150_000, cycles: 5, logf: t.Logf}
}

func TestConnectionsAreIdentifiedDuringFloods(t *testing.T) {
	for _, kind := range []string{"flood", "forged", "handshakes"} {
		t.Run(kind, func(t *testing.T) {
			ctx, o := short(t)
			if kind != "flood" {
				o.rate = 50_000 // flows, of several frames each
			}
			r, err := tcpFlood(ctx, o, kind)
			if err := errors.Join(err, r.check()); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestOneHostCanNotTakeAllCaptures(t *testing.T) {
	ctx, o := short(t)
	o.rate = 500
	r, err := oneByte(ctx, o)
	if err := errors.Join(err, r.check()); err != nil {
		t.Error(err)
	}
}

func TestCollectingFlowsSurviveAUDPFlood(t *testing.T) {
	ctx, o := short(t)
	r, err := udpFlood(ctx, o)
	if err := errors.Join(err, r.check()); err != nil {
		t.Error(err)
	}
}

func TestStoppedReaderComesBack(t *testing.T) {
	ctx, o := short(t)
	r, err := stoppedReader(ctx, o)
	if err := errors.Join(err, r.check()); err != nil {
		t.Error(err)
	}
}

func TestTwoInterfacesAndAttachAgainAndAgain(t *testing.T) {
	ctx, o := short(t)
	r, err := cycles(ctx, o)
	if err := errors.Join(err, r.check(o.cycles)); err != nil {
		t.Error(err)
	}
}

// The targets must be able to be missed.
func TestChecksNameWhatIsMissed(t *testing.T) {
	for _, tt := range []struct {
		name string
		err  error
		ok   bool
	}{
		{"flood", floodResult{seen: 1e6, opened: 100, identified: 99}.check(), true},
		{"flood, more verdicts than connections", floodResult{seen: 1e6, opened: 100, identified: 101}.check(), true},
		{"flood, missed", floodResult{seen: 1e6, opened: 100, identified: 98}.check(), false},
		{"flood, stray", floodResult{seen: 1e6, opened: 100, identified: 100, strays: 1}.check(), false},
		{"flood, none", floodResult{opened: 100, identified: 100}.check(), false},
		{"udp", udpResult{waiting: 1e6, asked: 100, answered: 99, held: 100, complete: 95, slots: 10, most: 5}.check(), true},
		{"udp, none", udpResult{asked: 100, answered: 99, held: 100, complete: 95}.check(), false},
		{"udp, incomplete", udpResult{waiting: 1e6, asked: 100, answered: 99, held: 100, complete: 94}.check(), false},
		{"udp, others unseen", udpResult{waiting: 1e6, asked: 100, answered: 98, held: 100, complete: 95}.check(), false},
		{"udp, slots taken", udpResult{waiting: 1e6, asked: 100, answered: 99, held: 1, complete: 1, slots: 10, most: 6}.check(), false},
		{"udp, refused", udpResult{waiting: 1e6, asked: 100, answered: 99, held: 1, complete: 1, slotsFull: 1}.check(), false},
		{"udp, early", udpResult{waiting: 1e6, asked: 100, answered: 99, held: 1, complete: 1, early: 1}.check(), false},
		{"reader", readerResult{ringFull: 1, passed: true, identified: time.Second}.check(), true},
		{"reader, late", readerResult{ringFull: 1, passed: true, identified: time.Second + 1}.check(), false},
		{"reader, nothing passed", readerResult{ringFull: 1, identified: 1}.check(), false},
		{"cycles", cyclesResult{cycles: 5, identified: [2]int{1, 1}}.check(5), true},
		{"cycles, left", cyclesResult{cycles: 5, left: 1, identified: [2]int{1, 1}}.check(5), false},
		{"cycles, one interface", cyclesResult{cycles: 5, identified: [2]int{1, 0}}.check(5), false},
	} {
		if (tt.err == nil) != tt.ok {
			t.Errorf("%s: %v", tt.name, tt.err)
		}
	}
}
