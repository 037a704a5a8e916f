// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"net/netip"
	"os"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/earlydrop/earlydrop/cmd/earlydrop/event"
	"github.com/earlydrop/earlydrop/test/e2e/rig"
	"github.com/earlydrop/earlydrop/test/lab"
)

// mostMemory is what one process on three interfaces may take, in MB (resident).
const mostMemory = 100

// resident returns how many bytes of a process are in memory.
func resident(t *testing.T, pid int) (bytes uint64) {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if _, err := fmt.Sscanf(line, "VmRSS: %d kB", &bytes); err == nil {
			return bytes << 10
		}
	}
	t.Fatalf("no VmRSS in\n%s", text)
	return 0
}

// Of three interfaces one comes, joins a bridge and leaves it, is renamed, is removed and
// returns, while connections go through the other two: each of these is judged, once, and the
// process stays small.
func TestOneOfThreeInterfacesComesAndGoes(t *testing.T) {
	t.Parallel()
	s := newScene(t, lab.Config{})
	nl := s.Gateway.Netlink()
	d := s.both("-i", secondDevice, "--wait")
	is := func(what, device string, n int) {
		t.Helper()
		must(rig.Wait(s.ctx, d, what+" "+device, func(e *event.Attached) bool {
			if e.Interface == device {
				n--
			}
			return n < 0
		}))(t)
	}
	must(rig.Wait(s.ctx, d, "waiting", func(e *event.Waiting) bool { return e.Interface == secondDevice && e.Error == "" }))(t)

	// Traffic through the other two, all the time.
	web := netip.AddrPortFrom(s.ServerAddr(4), s.web.HTTPSPort)
	stop, done := make(chan struct{}), make(chan struct{})
	var fetched atomic.Int64
	go func() {
		defer close(done)
		for {
			select {
			case <-stop:
				return
			default:
			}
			if r := s.Curl(s.ctx, nil, s.URL("https", 4, s.web.HTTPSPort, "/1m")); r.Err != nil {
				t.Errorf("https: %v", r.Err)
				return
			}
			fetched.Add(1)
		}
	}()
	traffic := func() { // some, between two steps
		t.Helper()
		before := fetched.Load()
		err := rig.Until(s.ctx, func() (bool, error) {
			select {
			case <-done:
				return false, fmt.Errorf("the traffic has ended")
			default:
			}
			return fetched.Load() > before, nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	// A connection by the third interface is judged there.
	third := func(name string) {
		t.Helper()
		server := s.exchange(netip.MustParseAddr("10.77.3.1"), 700, 1500)
		if v := must(d.Verdict(s.ctx, server, 0))(t); v.Interface != name {
			t.Errorf("judged at %s, want %s", v.Interface, name)
		}
	}

	traffic()
	s.secondLink()
	is("attached to", secondDevice, 0)
	third(secondDevice)
	traffic()

	link := must(nl.LinkByName(secondDevice))(t)
	bridge := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "ed-br"}}
	if err := nl.LinkAdd(bridge); err != nil {
		t.Fatal(err)
	}
	if err := nl.LinkSetMaster(link, bridge); err != nil {
		t.Fatal(err)
	}
	traffic()
	if err := nl.LinkSetNoMaster(link); err != nil {
		t.Fatal(err)
	}
	third(secondDevice)
	for _, name := range []string{"ed-up0", secondDevice} {
		if err := nl.LinkSetName(link, name); err != nil {
			t.Fatal(err)
		}
		s.says(d, "renamed")
		err := rig.Until(s.ctx, func() (bool, error) { return s.statuses()[name].Running, nil })
		if err != nil {
			t.Fatalf("not attached to %s: %v", name, err)
		}
		third(name)
		traffic()
	}

	if err := nl.LinkDel(link); err != nil {
		t.Fatal(err)
	}
	ended := must(rig.Wait(s.ctx, d, "the end of the third", func(e *event.Ended) bool { return true }))(t)
	if ended.Interface != secondDevice || !strings.Contains(ended.Error, "was removed") || ended.Counters["classified"] != 4 {
		t.Errorf("ended: %+v", ended)
	}
	traffic()
	s.secondLink()
	is("attached again to", secondDevice, 1)
	third(secondDevice)
	traffic()
	all := s.statuses()
	if len(all) != 3 {
		t.Errorf("status of %d interfaces", len(all))
	}
	for name, st := range all {
		if !st.Running || st.PID != d.PID() {
			t.Errorf("%s: %+v", name, st)
		}
	}
	close(stop)
	<-done
	size := resident(t, d.PID())
	t.Logf("one process on three interfaces has %.1f MB in memory", float64(size)/1e6)
	if size > mostMemory*1e6 {
		t.Errorf("more than %d MB", mostMemory)
	}
	s.stop(d)
	if got, want := len(d.Verdicts(web)), int(fetched.Load()); got != want {
		t.Errorf("%d verdicts about %d connections through the other two", got, want)
	}
	counted := uint64(0)
	for _, e := range rig.Of[*event.Ended](d.Events()) {
		counted += e.Counters["classified"]
	}
	if n := len(rig.Of[*event.Verdict](d.Events())); counted != uint64(n) {
		t.Errorf("%d verdicts were counted and %d told", counted, n)
	}
}

// detach takes one interface away from a process that has two, and the last one ends it.
func TestDetachOfOneOfTwoInterfaces(t *testing.T) {
	t.Parallel()
	s := newScene(t, lab.Config{})
	for _, args := range [][]string{nil, {"--persist"}} {
		d := s.both(args...)
		must(s.Earlydrop(s.ctx, "detach", "-i", lab.GatewayServerDev))(t)
		ended := must(rig.Wait(s.ctx, d, "the end of the first", func(*event.Ended) bool { return true }))(t)
		if ended.Interface != lab.GatewayServerDev || !strings.Contains(ended.Error, "detached") {
			t.Errorf("%q: ended: %+v", args, ended)
		}
		if all := s.statuses(); len(all) != 1 || !all[lab.GatewayClientDev].Running || all[lab.GatewayClientDev].PID != d.PID() {
			t.Errorf("%q: status %+v", args, all)
		}
		if r := s.Curl(s.ctx, nil, s.URL("https", 4, s.web.HTTPSPort, "/1m")); r.Err != nil {
			t.Fatal(r.Err)
		}
		if v := must(d.Verdict(s.ctx, netip.AddrPortFrom(s.ServerAddr(4), s.web.HTTPSPort), 0))(t); v.Interface != lab.GatewayClientDev {
			t.Errorf("%q: verdict %+v", args, v)
		}
		must(s.Earlydrop(s.ctx, "detach", "-i", lab.GatewayClientDev))(t)
		if code, err := d.Exited(s.ctx); err != nil || code != 0 {
			t.Errorf("%q: exit code %d, %v: %s", args, code, err, d.Stderr())
		}
		s.clean()
	}
}
