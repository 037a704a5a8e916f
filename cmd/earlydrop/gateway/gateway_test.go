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
	g, err := New(Config{Attach: loader.Options{Interface: "eth0"}, Engine: engine, Policy: p, PolicyName: "built-in", Events: events})
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

// newConfig returns one for a new interface, and what its events are written to.
func newConfig(t *testing.T) (Config, *bytes.Buffer) {
	t.Helper()
	iface := fmt.Sprintf("gw%d", os.Getpid()%1_000_000)
	if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: iface}, PeerName: "peer"}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = loader.Detach(iface, false) }) // where the test did not
	p, err := policy.Parse("p.yaml", []byte("rules: [{name: all, class: v2ray, min_confidence: 0.5, action: drop, ttl: 1m}]"), nil)
	if err != nil {
		t.Fatal(err)
	}
	text := new(bytes.Buffer)
	events, err := eventlog.Open(eventlog.Config{JSON: text})
	if err != nil {
		t.Fatal(err)
	}
	return Config{Attach: loader.Options{Interface: iface, XDPMode: loader.XDPGeneric}, Engine: openTiny(t), Policy: p, PolicyName: "p.yaml", Mode: policy.Enforce, Events: events}, text
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
	config, text := newConfig(t)
	advised := make(chan map[string]uint64, 1)
	config.Advise = func(iface string, counters map[string]uint64) []string {
		if iface == config.Attach.Interface {
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
	sum, err := g.Run(ctx)
	if err != nil || sum.Interface != config.Attach.Interface || sum.Mode != policy.Enforce || sum.Persisted || sum.Took <= 0 {
		t.Errorf("%+v, %v", sum, err)
	}
	if err := g.Close(); err != nil {
		t.Errorf("closed after Run: %v", err)
	}
	if _, err := loader.Open(config.Attach.Interface); !errors.Is(err, loader.ErrNotAttached) {
		t.Errorf("something stays attached: %v", err)
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
	config, text := newConfig(t)
	config.Persist = true
	g, err := New(config)
	if err != nil {
		t.Fatal(err)
	}
	over, cancel := context.WithCancel(context.Background())
	cancel()
	if sum, err := g.Run(over); err != nil || !sum.Persisted {
		t.Errorf("%+v, %v", sum, err)
	}
	tables, err := loader.Open(config.Attach.Interface)
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
	if !g.Info().Adopted {
		t.Error("it is not adopted")
	}
	// Close is for a gateway that never ran.
	if err := g.Close(); err != nil {
		t.Error(err)
	}
	if _, err := loader.Open(config.Attach.Interface); !errors.Is(err, loader.ErrNotAttached) {
		t.Errorf("something stays attached: %v", err)
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
	config, _ := newConfig(t)
	defer config.Events.Close()
	config.Attach.Interface = "nosuch0"
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
	config, text := newConfig(t)
	g, err := New(config)
	if err != nil {
		t.Fatal(err)
	}
	link, err := netlink.LinkByName(config.Attach.Interface)
	if err != nil {
		t.Fatal(err)
	}
	if err := netlink.LinkDel(link); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	var broken *BrokenError
	if _, err := g.Run(ctx); err == nil || errors.Is(err, context.DeadlineExceeded) || errors.As(err, &broken) {
		t.Errorf("%v", err)
	}
	config.Events.Close()
	if events := kinds(t, text); len(events) != 2 || events[1].Kind() != event.KindEnded {
		t.Errorf("events %s", text)
	}
}
