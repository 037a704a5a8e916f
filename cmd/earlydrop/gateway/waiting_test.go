// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/vishvananda/netlink"

	"github.com/earlydrop/earlydrop/cmd/earlydrop/event"
	"github.com/earlydrop/earlydrop/cmd/earlydrop/status"
	"github.com/earlydrop/earlydrop/loader"
)

func addVeth(t *testing.T, name, peer string) netlink.Link {
	t.Helper()
	if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: name}, PeerName: peer}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = loader.Detach(name, false) }) // where the test did not
	link, err := netlink.LinkByName(name)
	if err != nil {
		t.Fatal(err)
	}
	return link
}

// An interface that is not there, one that is removed and returns, and one that returns with
// somebody else's program: each is attached to as soon as it can be, and the one that stays
// is left alone.
func TestGatewayWaitsForInterfaces(t *testing.T) {
	if !inOwnNamespace(t) {
		return
	}
	config, text := newConfig(t, 2)
	stays, goes := config.Attach[0].Interface, config.Attach[1].Interface
	comes := fmt.Sprintf("gwl%d", os.Getpid()) // nobody else's: all have the same bpffs
	config.Attach = append(config.Attach, loader.Options{Interface: comes, XDPMode: loader.XDPGeneric})
	config.Wait = true
	attached, ended := make(chan string, 9), make(chan Summary, 9)
	config.Attached = func(iface string, _ loader.Info) { attached <- iface }
	config.Ended = func(s Summary) { ended <- s }
	occupied := make(chan struct{}, 99)
	config.Explain = func(err error) error {
		if errors.As(err, new(*loader.OccupiedError)) {
			occupied <- struct{}{}
		}
		return err
	}
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
	is := func(want string) {
		t.Helper()
		select {
		case got := <-attached:
			if got != want {
				t.Fatalf("attached to %s, want %s", got, want)
			}
		case <-ctx.Done():
			t.Fatalf("%s is not attached to", want)
		}
	}
	is(stays)
	is(goes)
	first := dataPath(g, stays)

	addVeth(t, comes, "late0")
	is(comes)
	for range 2 {
		removeLink(t, goes)
		if s := <-ended; s.Interface != goes || s.Err == nil {
			t.Errorf("ended: %+v", s)
		}
		addVeth(t, goes, "again0")
		is(goes)
	}

	// It returns with a program of somebody else, who takes it away after a while.
	removeLink(t, comes)
	<-ended
	other := addVeth(t, "other0", "other1")
	prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: "somebody_else", Type: ebpf.XDP, License: "GPL",
		Instructions: asm.Instructions{asm.LoadImm(asm.R0, 2, asm.DWord), asm.Return()}, // XDP_PASS
	})
	if err != nil {
		t.Fatal(err)
	}
	defer prog.Close()
	const generic = 2 // XDP_FLAGS_SKB_MODE
	for _, err := range []error{netlink.LinkSetXdpFdWithFlags(other, prog.FD(), generic), netlink.LinkSetName(other, comes)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	for range 2 { // it is told of once, nevertheless
		select {
		case <-occupied:
		case <-ctx.Done():
			t.Fatal("it was not tried")
		}
	}
	if attachedTo(t, config.Attach[2]) {
		t.Fatal("it is attached beside another program")
	}
	if err := netlink.LinkSetXdpFdWithFlags(other, -1, generic); err != nil {
		t.Fatal(err)
	}
	is(comes)

	if first == nil || dataPath(g, stays) != first {
		t.Error("the one that stays was attached to again")
	}
	cancel()
	if err := <-over; err != nil {
		t.Error(err)
	}
	for _, o := range config.Attach {
		if attachedTo(t, o) {
			t.Errorf("something stays attached to %s", o.Interface)
		}
	}
	config.Events.Close()
	var told, reasons []string
	for _, e := range kinds(t, text) {
		switch e := e.(type) {
		case *event.Attached:
			told = append(told, "attached "+e.Interface)
		case *event.Waiting:
			// Another reason is told as well: there may be one while the program goes.
			if slices.Contains(reasons, e.Error) {
				t.Errorf("told twice: %s", e.Error)
			}
			if e.Error != "" {
				reasons = append(reasons, e.Error)
			}
			if e.Error == "" || len(reasons) == 1 {
				told = append(told, fmt.Sprintf("waiting %s %v", e.Interface, e.Error != ""))
			}
		case *event.Ended:
			told = append(told, "ended "+e.Interface)
		}
	}
	again := []string{"ended " + goes, "waiting " + goes + " false", "attached " + goes}
	want := slices.Concat([]string{"attached " + stays, "attached " + goes, "waiting " + comes + " false", "attached " + comes}, again, again,
		[]string{"ended " + comes, "waiting " + comes + " false", "waiting " + comes + " true", "attached " + comes, "ended " + stays, "ended " + goes, "ended " + comes})
	if !slices.Equal(told, want) {
		t.Errorf("told\n%q\nwant\n%q\nreasons to wait\n%q", told, want, reasons)
	}
}

// dataPath returns that of an interface, nil if it is not attached.
func dataPath(g *Gateway, iface string) (dp *loader.DataPath) {
	_ = g.with(iface, func(a *attachment) error {
		dp = a.dp
		return nil
	})
	return dp
}

// An interface of a group that goes and returns has its flows in common with the others again.
func TestGatewayWaitsForAnInterfaceOfAGroup(t *testing.T) {
	if !inOwnNamespace(t) {
		return
	}
	config, _ := newConfig(t, 2)
	defer config.Events.Close()
	stays, goes := config.Attach[0].Interface, config.Attach[1].Interface
	group := loader.NewGroup(stays, goes)
	config.Attach[0].Group, config.Attach[1].Group, config.Wait = group, group, true
	shares := make(chan string, 9)
	config.Attached = func(_ string, info loader.Info) { shares <- info.SharesWith }
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
	for i, want := range []string{"", stays, stays} {
		if i == 2 {
			removeLink(t, goes)
			addVeth(t, goes, "again0")
		}
		select {
		case got := <-shares:
			if got != want {
				t.Errorf("attachment %d shares with %q, want %q", i, got, want)
			}
		case <-ctx.Done():
			t.Fatalf("attachment %d does not come", i)
		}
	}
	cancel()
	if err := <-over; err != nil {
		t.Error(err)
	}
	if attachedTo(t, config.Attach[0]) || attachedTo(t, config.Attach[1]) {
		t.Error("something stays attached")
	}
}

// With no interface at all it waits, and ends in order.
func TestGatewayWaitsWithoutAnyInterface(t *testing.T) {
	if !inOwnNamespace(t) {
		return
	}
	config, text := newConfig(t, 1)
	config.Attach, config.Wait = []loader.Options{{Interface: "nosuch0"}}, true
	g, err := New(config)
	if err != nil {
		t.Fatal(err)
	}
	if r, err := g.Report(); err != nil || len(r.Interfaces) != 0 || len(r.Waiting) != 1 || r.Waiting[0] != (status.Waiting{Interface: "nosuch0", State: status.Awaited}) {
		t.Errorf("report: %+v, %v", r, err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
	defer cancel()
	if sums, err := g.Run(ctx); err != nil || len(sums) != 0 {
		t.Errorf("%+v, %v", sums, err)
	}
	config.Events.Close()
	if events := kinds(t, text); len(events) != 1 || events[0].Kind() != event.KindWaiting {
		t.Errorf("events %s", text)
	}
	config.Engine = openTiny(t)
	defer config.Engine.Close()
	config.Attach[0].Interface = "no/name"
	var refused *loader.RefusedError
	if _, err := New(config); !errors.As(err, &refused) {
		t.Errorf("a name that none can have: %v", err)
	}
}

// What fails is told of once, and tried less and less often; where the interface goes, the
// next one of its name is tried at once.
func TestWaitingGrowsWithFailures(t *testing.T) {
	now := time.Unix(1000, 0)
	occupied, other := errors.New("occupied"), errors.New("other")
	missing := fmt.Errorf("attach: %w", loader.ErrNoInterface)
	w := &waiting{}
	for i, tt := range []struct {
		err  error
		news bool
		wait time.Duration
	}{
		{missing, false, 0},
		{occupied, true, time.Second},
		{occupied, false, 2 * time.Second},
		{other, true, 4 * time.Second},
		{other, false, 8 * time.Second},
		{other, false, 16 * time.Second},
		{other, false, 30 * time.Second},
		{other, false, 30 * time.Second},
		{missing, true, 0},
		{missing, false, 0},
		{other, true, time.Second},
	} {
		news := w.failed(tt.err, now)
		again := now.Add(tt.wait)
		if tt.wait == 0 {
			again = time.Time{}
		}
		if news != tt.news || !w.again.Equal(again) {
			t.Errorf("%d, %v: news %v, again %v; want %v, %v", i, tt.err, news, w.again, tt.news, again)
		}
	}
}
