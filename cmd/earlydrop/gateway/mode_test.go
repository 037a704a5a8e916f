// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"context"
	"slices"
	"testing"
	"time"

	"github.com/earlydrop/earlydrop/cmd/earlydrop/event"
	"github.com/earlydrop/earlydrop/loader"
	"github.com/earlydrop/earlydrop/policy"
)

// An interface that is removed and returns has the mode that it had, and not the one of the
// start.
func TestInterfaceThatReturnsHasTheModeThatItHad(t *testing.T) {
	if !inOwnNamespace(t) {
		return
	}
	config, text := newConfig(t, 2)
	config.Wait = true
	goes := config.Attach[1].Interface
	attached := make(chan string, 9)
	config.Attached = func(iface string, _ loader.Info) { attached <- iface }
	g, err := New(config)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	over := make(chan error, 1)
	go func() {
		_, err := g.Run(ctx)
		over <- err
	}()
	next := func() {
		t.Helper()
		select {
		case <-attached:
		case <-ctx.Done():
			t.Fatal("it is not attached")
		}
	}
	next()
	next()
	if changed, err := g.SetMode(policy.Monitor, goes); err != nil || !slices.Equal(changed, []string{goes}) {
		t.Errorf("%v, %v", changed, err)
	}
	removeLink(t, goes)
	addVeth(t, goes, "again0")
	next()
	dp := dataPath(g, goes)
	if enforces, err := dp.Enforces(); err != nil || enforces {
		t.Errorf("it is in mode enforce again: %v", err)
	}
	cancel()
	if err := <-over; err != nil {
		t.Error(err)
	}
	config.Events.Close()
	var modes []string
	for _, e := range kinds(t, text) {
		switch e := e.(type) {
		case *event.Attached:
			modes = append(modes, e.Mode)
		case *event.ModeChanged:
			modes = append(modes, "then "+e.Mode)
		}
	}
	if want := []string{"enforce", "enforce", "then monitor", "monitor"}; !slices.Equal(modes, want) {
		t.Errorf("modes %q, want %q", modes, want)
	}
}
