// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"github.com/gopacket/gopacket/pcapgo"
	"golang.org/x/sys/unix"

	"github.com/earlydrop/earlydrop/cmd/earlydrop/event"
	"github.com/earlydrop/earlydrop/test/e2e/rig"
	"github.com/earlydrop/earlydrop/test/lab"
)

// The times of UDP flows in these tests, shorter than any that an operator wants.
const (
	udpWarmup = 4 * time.Second
	udpIdle   = time.Second
	udpTTL    = 2 * time.Second
)

// suspicious is a model that takes everything for a tunnel, so that a flow passes for what
// else is known of it or not at all.
var suspicious = func() string {
	path, err := filepath.Abs("../../classifier/testdata/suspicious.onnx")
	if err != nil {
		panic(err)
	}
	return path
}()

// suspiciousPolicy drops all that this model takes for a tunnel.
const suspiciousPolicy = "mode: enforce\nrules: [{name: both, class: [shadowsocks, v2ray], min_confidence: 0.01, action: drop, ttl: 2s, udp_unproven: true}]\n"

// of reports whether an event is about the flow, whoever spoke first.
func (f *udpFlow) of(e event.Endpoints) bool {
	return e.Src == f.src && e.Dst == f.dst || e.Src == f.dst && e.Dst == f.src
}

// verdicts returns the verdicts about the flow so far.
func (f *udpFlow) verdicts(d *rig.Daemon) []*event.Verdict {
	return slices.DeleteFunc(rig.Of[*event.Verdict](d.Events()), func(v *event.Verdict) bool { return !f.of(v.Endpoints) })
}

// udpTrial has flows go through situations and counts what becomes of them.
type udpTrial struct {
	*scene
	counts map[string]map[string][2]int // situation, kind: how many are as they should be, of how many
	order  []string                     // of the situations
}

// count notes whether a flow is as it should be.
func (u *udpTrial) count(situation string, f *udpFlow, good bool) {
	if u.counts[situation] == nil {
		u.counts[situation] = map[string][2]int{}
		u.order = append(u.order, situation)
	}
	n := u.counts[situation][f.kind]
	n[1]++
	if good {
		n[0]++
	}
	u.counts[situation][f.kind] = n
}

// goesOn fails unless data of each flow arrives three times more.
func (u *udpTrial) goesOn(situation string, flows []*udpFlow) {
	u.t.Helper()
	type state struct{ arrived, lost int64 }
	at := map[*udpFlow]state{}
	for _, f := range flows {
		at[f] = state{f.arrived.Load(), f.lost.Load()}
	}
	for _, f := range flows {
		err := rig.Until(u.ctx, func() (bool, error) {
			return f.arrived.Load() >= at[f].arrived+3 || f.lost.Load() > at[f].lost, nil
		})
		if err != nil || f.lost.Load() > at[f].lost {
			u.t.Errorf("%s: nothing arrives of %s %s > %s", situation, f.kind, f.src, f.dst)
		}
	}
}

// resumed waits for a verdict about each flow, beyond those of before, and fails unless
// all verdicts say that it is resumed and passes, no flow is blocked, and its data arrives.
func (u *udpTrial) resumed(situation string, d *rig.Daemon, flows []*udpFlow, before map[*udpFlow]int) {
	u.t.Helper()
	for _, f := range flows {
		_, err := rig.Wait(u.ctx, d, fmt.Sprintf("%s: a verdict about %s %s > %s", situation, f.kind, f.src, f.dst), func(*event.Verdict) bool {
			return len(f.verdicts(d)) > before[f]
		})
		if err != nil {
			u.t.Fatal(err)
		}
	}
	u.goesOn(situation, flows)
	for _, f := range flows {
		good := true
		for _, v := range f.verdicts(d)[before[f]:] {
			if !v.Resumed || v.Decision != "pass" || v.Rule != "" && v.Reason != "mid-stream" {
				u.t.Errorf("%s: %s: %+v", situation, f.kind, v)
				good = false
			}
		}
		u.count(situation, f, good)
	}
	if blocks := must(u.Blocks(u.ctx))(u.t); len(blocks) > 0 {
		u.t.Errorf("%s: blocked: %+v", situation, blocks)
	}
}

// seen is how many verdicts there are about each flow.
func seen(d *rig.Daemon, flows []*udpFlow) map[*udpFlow]int {
	n := map[*udpFlow]int{}
	for _, f := range flows {
		n[f] = len(f.verdicts(d))
	}
	return n
}

// print logs how many flows of each kind were as they should be.
func (u *udpTrial) print() {
	kinds := slices.Sorted(maps.Keys(u.counts[u.order[0]]))
	var text strings.Builder
	fmt.Fprintf(&text, "%-44s %s\n", "", strings.Join(kinds, " | "))
	for _, situation := range u.order {
		fmt.Fprintf(&text, "%-44s", situation)
		for _, kind := range kinds {
			n := u.counts[situation][kind]
			fmt.Fprintf(&text, " %*s |", len(kind)-1, fmt.Sprintf("%d/%d", n[0], n[1]))
		}
		text.WriteByte('\n')
	}
	u.t.Logf("flows as they should be:\n%s", text.String())
}

// Of flows that run at an attach, or go on after silence, a restart or a block, none is
// cut, though a rule would drop each of them that began now.
func TestUDPFlowsThatGoOnAreNotCut(t *testing.T) {
	t.Parallel()
	u := &udpTrial{scene: newScene(t, lab.Config{}), counts: map[string]map[string][2]int{}}
	defer u.hush()
	must(u.StartDNS(u.ctx, lab.DNSConfig{}))(t)
	kinds := udpKinds()
	open := func(n int) (flows []*udpFlow) {
		for _, kind := range slices.Sorted(maps.Keys(kinds)) {
			for range n {
				flows = append(flows, kinds[kind](u.scene).run(u.scene))
			}
		}
		return flows
	}
	file := filepath.Join(u.Dir(), "begins.pcap")
	recording := must(u.Record(file))(t)
	old := open(2)
	u.goesOn("before the attach", old)
	middle := time.Now()
	u.goesOn("before the attach", old)
	if err := recording.Stop(); err != nil {
		t.Fatal(err)
	}

	policy := u.file("both.yaml", suspiciousPolicy)
	args := []string{"--policy", policy, "--model", suspicious, "--udp-warmup", udpWarmup.String(), "--udp-idle", udpIdle.String()}
	d := u.attach(args...)
	u.resumed("running at the attach", d, old, nil)

	// Those that begin now are what the rule is about, or are blocked by hand, as some of
	// those that run.
	time.Sleep(time.Until(d.Attached.Time.Add(udpWarmup)))
	began := open(1)
	var blocked []*udpFlow
	for _, f := range began {
		v := must(rig.Wait(u.ctx, d, "the verdict about "+f.kind, func(e *event.Verdict) bool { return f.of(e.Endpoints) }))(t)
		if v.Resumed {
			t.Errorf("%s began after the attach, and is resumed: %+v", f.kind, v)
		}
		u.count("begins: dropped", f, v.Decision == "drop")
		if v.Decision == "drop" {
			blocked = append(blocked, f)
		}
	}
	if len(blocked) == 0 {
		t.Fatal("the rule drops nothing: the test shows nothing")
	}
	var wg sync.WaitGroup
	for i, f := range old {
		if i%2 == 0 {
			blocked = append(blocked, f)
			wg.Go(func() {
				if _, err := u.Earlydrop(u.ctx, "blocked", "add", "-i", rig.Device, "--ttl", udpTTL.String(), "udp", f.src.String(), f.dst.String()); err != nil {
					t.Error(err)
				}
			})
		}
	}
	before := seen(d, blocked)
	wg.Wait()
	for _, f := range blocked {
		ended := must(rig.Wait(u.ctx, d, "the end of the block of "+f.kind, func(e *event.BlockEnded) bool { return f.of(e.Endpoints) }))(t)
		if ended.DroppedPackets == 0 {
			t.Errorf("nothing of %s was dropped", f.kind)
		}
	}
	u.resumed("after the end of a block", d, blocked, before)

	all := slices.Concat(old, began)
	before = seen(d, all)
	silent(all, udpIdle+udpIdle/2)
	u.resumed("silent for longer than --udp-idle", d, all, before)

	d.Kill()
	u.goesOn("without the daemon", all)
	d = u.attach(args...)
	if !d.Attached.Adopted {
		t.Errorf("nothing was adopted: %+v", d.Attached)
	}
	u.goesOn("after kill -9 and an adoption", all)
	silent(all, udpIdle+udpIdle/2)
	u.resumed("silent after kill -9 and an adoption", d, all, nil)

	if _, err := d.Stop(u.ctx); err != nil {
		t.Fatal(err)
	}
	u.goesOn("detached", all)
	d = u.attach("--policy", policy, "--model", suspicious, "--udp-idle", udpIdle.String())
	u.resumed("after a detachment and another attach", d, all, nil)
	u.stop(d)

	u.replayed(file, middle, 65*time.Second, policy, old, "drop")
	u.replayed(file, middle, 11*time.Minute, policy, old, "drop, pass resumed")
	u.print()
}

// replayed replays a recording in whose middle there is a pause, and compares the verdicts
// about each flow.
func (u *udpTrial) replayed(file string, middle time.Time, pause time.Duration, policy string, flows []*udpFlow, want string) {
	u.t.Helper()
	paused := filepath.Join(u.Dir(), pause.String()+".pcap")
	if err := pauseIn(file, paused, middle, pause); err != nil {
		u.t.Fatal(err)
	}
	out := must(u.Earlydrop(u.ctx, "replay", "--json", "--policy", policy, "--model", suspicious, paused))(u.t)
	verdicts := map[*udpFlow][]string{}
	for _, v := range replayed(u.t, out) {
		for _, f := range flows {
			if f.of(v.Endpoints) {
				verdicts[f] = append(verdicts[f], v.Decision+map[bool]string{true: " resumed"}[v.Resumed])
			}
		}
	}
	for _, f := range flows {
		got := strings.Join(verdicts[f], ", ")
		u.count(fmt.Sprintf("replay, silent for %v: %s", pause, want), f, got == want)
		if got != want {
			u.t.Errorf("replay, %v of silence: %s %s > %s: %s, want %s", pause, f.kind, f.src, f.dst, got, want)
		}
	}
}

// pauseIn copies a recording and has the frames after middle come later by so much.
func pauseIn(from, to string, middle time.Time, pause time.Duration) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	r, err := pcapgo.NewReader(in)
	if err != nil {
		return err
	}
	out, err := os.Create(to)
	if err != nil {
		return err
	}
	defer out.Close()
	w := pcapgo.NewWriterNanos(out)
	if err := w.WriteFileHeader(r.Snaplen(), r.LinkType()); err != nil {
		return err
	}
	for {
		data, ci, err := r.ReadPacketData()
		if errors.Is(err, io.EOF) {
			return out.Close()
		}
		if err != nil {
			return err
		}
		if ci.Timestamp.After(middle) {
			ci.Timestamp = ci.Timestamp.Add(pause)
		}
		if err := w.WritePacket(ci, data); err != nil {
			return err
		}
	}
}

// Whoever sends from one side alone, from either, treats nobody, whatever the size of his
// datagrams and whoever they claim to be from.
func TestForgedDatagramsOfEachSizeAreNotEnforced(t *testing.T) {
	t.Parallel()
	s := newScene(t, lab.Config{})
	d := s.attach("--model", suspicious, "--udp-warmup", "0", "--policy", s.file("both.yaml", suspiciousPolicy))
	for i, side := range []struct {
		ns        *lab.Namespace
		dev, near string
	}{{s.Client, lab.ClientDev, lab.GatewayClientDev}, {s.Server, lab.ServerDev, lab.GatewayServerDev}} {
		send := s.rawFrames(side.ns, side.dev, side.near)
		for n := 1; n <= 1472; n++ {
			port := uint16(10000*(i+1) + n) // two attackers on different sides would be both sides
			a, b := netip.AddrPortFrom(s.ClientAddr(4), port), netip.AddrPortFrom(s.ServerAddr(4), port)
			for range 3 {
				send(a, b, n)
				send(b, a, n)
			}
		}
	}
	err := rig.Until(s.ctx, func() (bool, error) {
		st, err := s.Status(s.ctx)
		if err == nil && st.Counters["udp_opened"] > 0 {
			err = fmt.Errorf("flows began: %v", st.Counters)
		}
		// Those from the server's side that claim to come from the client do not get here.
		return st.Counters["udp_waiting"] >= 3*1472, err
	})
	if err != nil {
		t.Fatal(err)
	}
	// A real flow is judged after all of them, and dropped.
	defer s.hush()
	f := natTFlow(s).run(s)
	v := must(rig.Wait(s.ctx, d, "the verdict about a real flow", func(*event.Verdict) bool { return true }))(t)
	if !f.of(v.Endpoints) || v.Decision != "drop" {
		t.Errorf("%+v", v)
	}
	if blocks := must(s.Blocks(s.ctx))(t); len(blocks) > 1 {
		t.Errorf("%d flows are blocked", len(blocks))
	}
	s.stop(d)
}

// rawFrames returns what sends a datagram of so many bytes from a host's device, whatever
// addresses it is to have.
func (s *scene) rawFrames(ns *lab.Namespace, dev, near string) func(src, dst netip.AddrPort, n int) {
	s.t.Helper()
	own := must(ns.Netlink().LinkByName(dev))(s.t).Attrs()
	gateway := must(s.Gateway.Netlink().LinkByName(near))(s.t).Attrs()
	fd := -1
	err := ns.Do(func() (err error) {
		if fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0); err != nil {
			return err
		}
		return unix.Bind(fd, &unix.SockaddrLinklayer{Ifindex: own.Index})
	})
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { _ = unix.Close(fd) })
	return func(src, dst netip.AddrPort, n int) {
		s.t.Helper()
		ip := &layers.IPv4{Version: 4, TTL: 64, Protocol: layers.IPProtocolUDP, SrcIP: src.Addr().AsSlice(), DstIP: dst.Addr().AsSlice()}
		udp := &layers.UDP{SrcPort: layers.UDPPort(src.Port()), DstPort: layers.UDPPort(dst.Port())}
		err := udp.SetNetworkLayerForChecksum(ip)
		buf := gopacket.NewSerializeBuffer()
		if err == nil {
			err = gopacket.SerializeLayers(buf, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true},
				&layers.Ethernet{SrcMAC: own.HardwareAddr, DstMAC: gateway.HardwareAddr, EthernetType: layers.EthernetTypeIPv4}, ip, udp, gopacket.Payload(make([]byte, n)))
		}
		if err == nil {
			_, err = unix.Write(fd, buf.Bytes())
		}
		if err != nil {
			s.t.Fatal(err)
		}
	}
}
