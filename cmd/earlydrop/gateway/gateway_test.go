// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/earlydrop/earlydrop/classifier"
	"github.com/earlydrop/earlydrop/classifier/onnx"
	"github.com/earlydrop/earlydrop/cmd/earlydrop/event"
	"github.com/earlydrop/earlydrop/cmd/earlydrop/event/eventlog"
	"github.com/earlydrop/earlydrop/cmd/earlydrop/event/eventtest"
	"github.com/earlydrop/earlydrop/loader"
	"github.com/earlydrop/earlydrop/models"
	"github.com/earlydrop/earlydrop/policy"
)

// A gateway on eth0, in mode monitor with the shipped model and policy, until Ctrl-C. Its
// events are JSON on standard output.
func Example() {
	name, data := models.Default()
	engine, err := onnx.Open(name, data, onnx.Options{})
	if err != nil {
		fmt.Println(err)
		return
	}
	m := engine.Manifest()
	p, err := policy.Default(&policy.Model{Labels: m.Labels, Thresholds: m.Thresholds, AnyThreshold: m.AnyThreshold, Unknown: m.Unknown > 0})
	if err != nil {
		fmt.Println(err)
		return
	}
	events, err := eventlog.Open(eventlog.Config{JSON: os.Stdout})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer events.Close()
	g, err := New(Config{Attach: []loader.Options{{Interface: "eth0"}}, Engine: engine, Policy: p, PolicyName: "built-in", Events: events})
	if err != nil {
		fmt.Println(err)
		return
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if _, err := g.Run(ctx); err != nil {
		fmt.Println(err)
	}
}

// inOwnNamespace runs a test in a process with a network namespace of its own, and
// reports whether this is that process.
func inOwnNamespace(t *testing.T) bool {
	t.Helper()
	const mark = "EARLYDROP_TEST_NAMESPACE"
	if os.Getenv(mark) == t.Name() {
		return true
	}
	if os.Geteuid() != 0 {
		t.Skip("needs root, to attach")
	}
	cmd := exec.Command(os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v")
	cmd.Env = append(os.Environ(), mark+"="+t.Name())
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET}
	out, err := cmd.CombinedOutput()
	if err != nil || !bytes.Contains(out, []byte("--- PASS: "+t.Name())) {
		t.Errorf("%v:\n%s", err, out)
	}
	return false
}

func openTiny(t *testing.T) *classifier.Engine {
	t.Helper()
	engine, err := onnx.OpenFile("../../../classifier/testdata/tiny.onnx", onnx.Options{Workers: 1})
	if err != nil {
		t.Fatal(err)
	}
	return engine
}

// newConfig returns one for so many new interfaces, and what its events are written to.
func newConfig(t *testing.T, interfaces int) (Config, *bytes.Buffer) {
	t.Helper()
	var attach []loader.Options
	for i := range interfaces {
		iface := fmt.Sprintf("gw%d-%d", os.Getpid()%1_000_000, i)
		if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: iface}, PeerName: fmt.Sprintf("peer%d", i)}); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = loader.Detach(iface, false) }) // where the test did not
		attach = append(attach, loader.Options{Interface: iface, XDPMode: loader.XDPGeneric})
	}
	p, err := policy.Parse("p.yaml", []byte("rules: [{name: all, class: v2ray, min_confidence: 0.5, action: drop, ttl: 1m}]"), nil)
	if err != nil {
		t.Fatal(err)
	}
	text := new(bytes.Buffer)
	events, err := eventlog.Open(eventlog.Config{JSON: text})
	if err != nil {
		t.Fatal(err)
	}
	return Config{Attach: attach, Engine: openTiny(t), Policy: p, PolicyName: "p.yaml", Mode: policy.Enforce, Events: events}, text
}

// attachedTo reports whether anything is attached to the interface of a configuration.
func attachedTo(t *testing.T, o loader.Options) bool {
	t.Helper()
	tables, err := loader.Open(o.Interface)
	if errors.Is(err, loader.ErrNotAttached) {
		return false
	}
	if err != nil {
		t.Fatal(err)
	}
	_ = tables.Close()
	return true
}

func removeLink(t *testing.T, name string) {
	t.Helper()
	link, err := netlink.LinkByName(name)
	if err == nil {
		err = netlink.LinkDel(link)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// kinds returns the events that were written; each has to fit the schema.
func kinds(t *testing.T, text *bytes.Buffer) (events []event.Event) {
	t.Helper()
	for line := range bytes.Lines(text.Bytes()) {
		e, err := eventtest.Decode(line)
		if err != nil {
			t.Fatal(err)
		}
		events = append(events, e)
	}
	return events
}

func TestGatewayTellsOfItsBeginningAndItsEnd(t *testing.T) {
	if !inOwnNamespace(t) {
		return
	}
	config, text := newConfig(t, 1)
	advised := make(chan map[string]uint64, 1)
	config.Advise = func(iface string, counters map[string]uint64) []string {
		if iface == config.Attach[0].Interface {
			advised <- counters
		}
		return []string{"nothing comes"}
	}
	g, err := New(config)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	go func() {
		<-advised // it works
		cancel()
	}()
	sums, err := g.Run(ctx)
	if err != nil || len(sums) != 1 {
		t.Fatalf("%+v, %v", sums, err)
	}
	if sum := sums[0]; sum.Interface != config.Attach[0].Interface || sum.Mode != policy.Enforce || sum.Persisted || sum.Took <= 0 || sum.Err != nil {
		t.Errorf("%+v", sum)
	}
	if err := g.Close(); err != nil {
		t.Errorf("closed after Run: %v", err)
	}
	if attachedTo(t, config.Attach[0]) {
		t.Error("something stays attached")
	}
	config.Events.Close()
	events := kinds(t, text)
	if len(events) != 2 {
		t.Fatalf("%d events: %s", len(events), text)
	}
	first, ok1 := events[0].(*event.Attached)
	last, ok2 := events[1].(*event.Ended)
	if !ok1 || !ok2 || first.Policy != "p.yaml" || first.Mode != "enforce" || first.Model != "test 0.1.0" || first.Adopted || last.Persisted {
		t.Errorf("events %s", text)
	}
}

func TestGatewayPersistsAndIsAdopted(t *testing.T) {
	if !inOwnNamespace(t) {
		return
	}
	config, text := newConfig(t, 1)
	config.Persist = true
	g, err := New(config)
	if err != nil {
		t.Fatal(err)
	}
	over, cancel := context.WithCancel(context.Background())
	cancel()
	if sums, err := g.Run(over); err != nil || len(sums) != 1 || !sums[0].Persisted {
		t.Errorf("%+v, %v", sums, err)
	}
	tables, err := loader.Open(config.Attach[0].Interface)
	if err != nil {
		t.Fatal(err)
	}
	if a, err := tables.Attachment(); err != nil || a.Policy != "p.yaml" || a.Model != "test 0.1.0" || a.Mode != "enforce" {
		t.Errorf("%+v, %v", a, err)
	}
	_ = tables.Close()

	config.Engine = openTiny(t)
	g, err = New(config)
	if err != nil {
		t.Fatal(err)
	}
	if !dataPath(g, config.Attach[0].Interface).Info.Adopted {
		t.Error("it is not adopted")
	}
	// Close is for a gateway that never ran.
	if err := g.Close(); err != nil {
		t.Error(err)
	}
	if attachedTo(t, config.Attach[0]) {
		t.Error("something stays attached")
	}
	config.Events.Close()
	if events := kinds(t, text); len(events) != 2 || !events[1].(*event.Ended).Persisted {
		t.Errorf("events %s", text)
	}
}

// What the loader refuses is told as it is, and the engine is still the caller's.
func TestGatewayThatCanNotAttachTakesNothing(t *testing.T) {
	if !inOwnNamespace(t) {
		return
	}
	config, _ := newConfig(t, 1)
	defer config.Events.Close()
	config.Attach[0].Interface = "nosuch0"
	_, err := New(config)
	if !errors.Is(err, loader.ErrNoInterface) {
		t.Errorf("%v", err)
	}
	if s := config.Engine.Get(); s == nil {
		t.Error("the engine is closed")
	}
	if err := config.Engine.Close(); err != nil {
		t.Error(err)
	}
}

// A gateway whose interface is removed ends with the reason.
func TestGatewayEndsWithItsInterface(t *testing.T) {
	if !inOwnNamespace(t) {
		return
	}
	config, text := newConfig(t, 1)
	g, err := New(config)
	if err != nil {
		t.Fatal(err)
	}
	removeLink(t, config.Attach[0].Interface)
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	var broken *BrokenError
	sums, err := g.Run(ctx)
	if err == nil || errors.Is(err, context.DeadlineExceeded) || errors.As(err, &broken) || len(sums) != 1 || sums[0].Err == nil {
		t.Errorf("%+v, %v", sums, err)
	}
	config.Events.Close()
	events := kinds(t, text)
	if len(events) != 2 {
		t.Fatalf("events %s", text)
	}
	if last, ok := events[1].(*event.Ended); !ok || !strings.Contains(last.Error, "was removed") {
		t.Errorf("events %s", text)
	}
}

// Of three interfaces one is removed, then another one: the rest goes on, and what becomes of
// each is told of it alone.
func TestGatewayGoesOnWithoutAnInterface(t *testing.T) {
	if !inOwnNamespace(t) {
		return
	}
	config, text := newConfig(t, 3)
	names := make([]string, 3)
	for i, o := range config.Attach {
		names[i] = o.Interface
	}
	ended := make(chan Summary, 3)
	config.Ended = func(s Summary) { ended <- s }
	var attached []string
	config.Attached = func(iface string, info loader.Info) {
		if info.PinDir == "" || info.Adopted {
			t.Errorf("%s: %+v", iface, info)
		}
		attached = append(attached, iface)
	}
	g, err := New(config)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	type outcome struct {
		sums []Summary
		err  error
	}
	over := make(chan outcome, 1)
	go func() {
		sums, err := g.Run(ctx)
		over <- outcome{sums, err}
	}()
	for i, name := range []string{names[0], names[2]} {
		removeLink(t, name)
		if s := <-ended; s.Interface != name || s.Err == nil || s.Persisted {
			t.Errorf("ended: %+v", s)
		}
		// Once it has ended, nothing of it is there, and the others are.
		there := g.Interfaces()
		if len(there) != 2-i || slices.Contains(there, name) || !slices.Contains(there, names[1]) {
			t.Errorf("without %s there are %q", name, there)
		}
		if attachedTo(t, loader.Options{Interface: name}) || !attachedTo(t, config.Attach[1]) {
			t.Errorf("pins are wrong without %s", name)
		}
	}
	cancel()
	got := <-over
	if got.err != nil || len(got.sums) != 3 || got.sums[2].Interface != names[1] || got.sums[2].Err != nil {
		t.Errorf("%+v, %v", got.sums, got.err)
	}
	if attachedTo(t, config.Attach[1]) {
		t.Error("something stays attached")
	}
	config.Events.Close()
	var told []string
	for _, e := range kinds(t, text) {
		switch e := e.(type) {
		case *event.Attached:
			told = append(told, "attached "+e.Interface)
		case *event.Ended:
			told = append(told, fmt.Sprintf("ended %s %v", e.Interface, e.Error != ""))
		}
	}
	want := []string{"attached " + names[0], "attached " + names[1], "attached " + names[2],
		"ended " + names[0] + " true", "ended " + names[2] + " true", "ended " + names[1] + " false"}
	if !slices.Equal(told, want) || !slices.Equal(attached, names) {
		t.Errorf("told\n%q\nwant\n%q\nattached %q", told, want, attached)
	}
}

// Where the last of several interfaces can't be attached to, none is.
func TestGatewayAttachesToAllOrNone(t *testing.T) {
	if !inOwnNamespace(t) {
		return
	}
	config, _ := newConfig(t, 2)
	defer config.Events.Close()
	defer config.Engine.Close()
	config.Attach = append(config.Attach, loader.Options{Interface: "nosuch0"})
	if _, err := New(config); !errors.Is(err, loader.ErrNoInterface) {
		t.Errorf("%v", err)
	}
	if attachedTo(t, config.Attach[0]) || attachedTo(t, config.Attach[1]) {
		t.Error("something is attached")
	}
}

func TestTotalAddsUp(t *testing.T) {
	got := Total([]Summary{
		{Took: time.Second, Mode: policy.Enforce, Classes: map[string]uint64{"v2ray": 1, "background": 2},
			Counters: loader.Counters{{Name: "syns", Value: 3}, {Name: "classified", Value: 3}}},
		{Took: time.Minute, Mode: policy.Enforce, Classes: map[string]uint64{"v2ray": 4}, Counters: loader.Counters{{Name: "classified", Value: 5}, {Name: "blocked", Value: 1}}},
	})
	values := got.Counters.Values()
	if got.Took != time.Minute || got.Mode != policy.Enforce || got.Classes["v2ray"] != 5 || got.Classes["background"] != 2 ||
		len(values) != 3 || values["syns"] != 3 || values["classified"] != 8 || values["blocked"] != 1 {
		t.Errorf("%+v", got)
	}
	if none := Total(nil); none.Took != 0 || len(none.Classes) != 0 || len(none.Counters) != 0 {
		t.Errorf("%+v", none)
	}
}
