// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"errors"
	"io"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/earlydrop/earlydrop/classifier"
	"github.com/earlydrop/earlydrop/cmd/earlydrop/event"
	"github.com/earlydrop/earlydrop/cmd/earlydrop/event/eventlog"
	"github.com/earlydrop/earlydrop/cmd/earlydrop/status"
)

// lost is a GPU that is lost after some runs.
type lost struct {
	sure
	after, runs atomic.Int64
}

func (l *lost) Device() string { return "cuda:0" }

func (l *lost) Run(images []uint8, n int, logits []float32) error {
	if l.runs.Add(1) > l.after.Load() {
		return errors.New("the device is lost")
	}
	return l.sure.Run(images, n, logits)
}

// A GPU that is lost under load costs no verdict; an event, a counter and status say that the
// CPU goes on.
func TestGatewayGoesOnWithoutItsGPU(t *testing.T) {
	if !inOwnNamespace(t) {
		return
	}
	config, _ := newConfig(t, 1)
	var err error
	if config.Events, err = eventlog.Open(eventlog.Config{JSON: io.Discard}); err != nil {
		t.Fatal(err)
	}
	_ = config.Engine.Close()
	var closed atomic.Int64
	spare := network(t, "0", 0, &closed, "class0", "other")
	gpu := &lost{sure: sure{labels: len(spare.Manifest().Labels), class: 1, closed: &closed}}
	gpu.after.Store(1 << 40)
	n, err := classifier.NewNetwork("fake", spare.Manifest(), gpu)
	if err != nil {
		t.Fatal(err)
	}
	n.FallBackOn(spare)
	if config.Engine, err = n.Engine(0); err != nil {
		t.Fatal(err)
	}
	l := newLive(t, &config, "mode: monitor\nrules: []\n")
	a := l.attached[0]
	counts := &a.counts
	report := func() *status.Status {
		t.Helper()
		r, err := l.Report()
		if err != nil {
			t.Fatal(err)
		}
		if s := r.Interfaces[0]; s.Device != r.Device {
			t.Errorf("devices %s and %s", s.Device, r.Device)
		}
		return r.Interfaces[0]
	}
	if s := report(); s.Device != "cuda:0" || len(s.Worries) > 0 {
		t.Errorf("before: device %s, worries %v", s.Device, s.Worries)
	}
	follower := config.Events.Follow(1 << 16)
	failures := make(chan *event.DeviceFailed, 10)
	var watching sync.WaitGroup
	watching.Go(func() {
		for e := range follower.Events() {
			if f, ok := e.(*event.DeviceFailed); ok {
				failures <- f
			}
		}
	})
	done := make(chan struct{})
	var submitted, refused int
	var load sync.WaitGroup
	load.Go(func() { submitted, refused = l.submit(done) })
	classified := func(more uint64) {
		for want := counts[countClassified].Load() + more; counts[countClassified].Load() < want; {
			time.Sleep(time.Millisecond)
		}
	}
	classified(100)
	if counts[countOnSpare].Load() > 0 {
		t.Error("verdicts of the spare while the GPU works")
	}
	onGPU := counts[countClassified].Load()
	gpu.after.Store(0)
	classified(200)
	close(done)
	load.Wait()
	a.pending.Wait()
	f := <-failures
	if f.Device != "cuda:0" || f.Instead != "cpu" || f.Model != "test 0" || !strings.Contains(f.Error, "the device is lost") || !strings.Contains(f.Text(), "ALERT: cuda:0 failed") {
		t.Errorf("%+v", f)
	}
	all, onSpare := counts[countClassified].Load(), counts[countOnSpare].Load()
	if all != uint64(submitted) || refused > 0 || counts[countNotClassified].Load() > 0 {
		t.Errorf("%d submitted, %d refused, %d judged, %d not", submitted, refused, all, counts[countNotClassified].Load())
	}
	if onSpare < 50 || onSpare > all-onGPU {
		t.Errorf("%d verdicts of the spare, of %d, of which %d came before", onSpare, all, onGPU)
	}
	s := report()
	if s.Device != "cpu" || s.State != status.Degraded || len(s.Worries) != 1 || s.Worries[0].Kind != status.WorryDevice || s.Worries[0].What != "cuda:0" || s.Daemon["on_spare_device"] != onSpare {
		t.Errorf("after: device %s, %s, worries %v, counted %d", s.Device, s.State, s.Worries, s.Daemon["on_spare_device"])
	}
	config.Events.Close()
	watching.Wait()
	if len(failures) > 0 {
		t.Errorf("told %d times more", len(failures))
	}
}
