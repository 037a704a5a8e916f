// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/google/go-cmp/cmp"
)

// nothingKnown fails unless no flow is decided, collecting or blocked.
func (k *kernel) nothingKnown() {
	k.t.Helper()
	if got := k.samples(); len(got) > 0 {
		k.t.Errorf("%d samples, the first of %s", len(got), got[0].Key)
	}
	if o, err := k.Occupancy(); err != nil || o != (Occupancy{}) {
		k.t.Errorf("%+v, %v", o, err)
	}
}

// Whoever sends from one side alone has nobody judged, whatever the size of his datagrams
// and whatever direction they claim.
func TestForgedDatagramsOfEachSizeTreatNobody(t *testing.T) {
	k := loadKernel(t, config{})
	for hook, e := range []entry{ingress, egress} {
		for n := 1; n <= 1472; n++ {
			for i, frame := range [][]byte{udp(true, n), udp(false, n), udp(true, n)} {
				from, to := 26, 30 // each size and side has a flow of its own
				if i == 1 {
					from, to = to, from
				}
				readdress(frame, from, 0x0b000000+hook<<16+n)
				readdress(frame, to, 0x0c000000+hook<<16+n)
				if k.run(e, frame) {
					t.Fatalf("%s: a datagram of %d bytes was dropped", e, n)
				}
			}
		}
		k.nothingKnown()
	}
	if c := k.counts(); c["udp_waiting"] != 4*1472 || c["udp_opened"] != 0 {
		t.Errorf("counters %v", c)
	}
}

// datagram is one of a packet table: its hook, its direction and the bytes of its payload.
type datagram struct {
	hook       entry
	fromClient bool
	n          int
}

// A flow begins with the other side's first datagram, on that side's hook, and what
// strangers send meanwhile changes nothing.
func TestUDPFlowsBeginOnBothHooks(t *testing.T) {
	ask, answer := datagram{egress, true, 200}, datagram{ingress, false, 200}
	fromClient := func(s string) (is []bool) {
		for _, c := range s {
			is = append(is, c == 'c')
		}
		return is
	}
	for _, tt := range []struct {
		name    string
		packets []datagram
		from    string // the sample's packets, by whom; empty: none is handed over
		counts  map[string]uint64
	}{
		{"question and answer", []datagram{ask, answer}, "cs", map[string]uint64{"udp_waiting": 1, "udp_opened": 1}},
		{"several questions", []datagram{ask, ask, ask, answer}, "cccs", map[string]uint64{"udp_waiting": 1, "udp_opened": 1}},
		{"a question of the other side", []datagram{{ingress, true, 5}, {egress, false, 6}}, "cs", map[string]uint64{"udp_waiting": 1, "udp_opened": 1}},
		{"an empty answer", []datagram{ask, {ingress, false, 0}}, "cs", map[string]uint64{"udp_waiting": 1, "udp_opened": 1}},
		{"an empty question", []datagram{{egress, true, 0}, answer}, "", map[string]uint64{"udp_waiting": 1, "header_only": 1}},
		{"a full capture waits as well", []datagram{{egress, true, 1400}, {egress, true, 1400}, answer}, "c", map[string]uint64{"udp_waiting": 1, "udp_opened": 1, "handed_full": 1}},
		{"answer from the side of the question", []datagram{ask, {egress, false, 200}}, "", map[string]uint64{"udp_waiting": 2}},
		{"forged question first", []datagram{{ingress, true, 9}, ask, answer}, "cs", map[string]uint64{"udp_waiting": 2, "udp_opened": 1}},
		{"forged answer first", []datagram{ask, {egress, false, 9}, answer}, "cs", map[string]uint64{"udp_waiting": 2, "udp_opened": 1}},
		{"forged datagrams behind", []datagram{ask, answer, {ingress, true, 8}, {egress, false, 8}, {egress, true, 9}}, "csc", map[string]uint64{"udp_waiting": 1, "udp_opened": 1, "wrong_side": 2}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			k := loadKernel(t, config{idle: 1})
			for _, d := range tt.packets {
				if k.run(d.hook, udp(d.fromClient, d.n)) {
					t.Fatal("a datagram was dropped")
				}
			}
			k.sweep()
			counts := k.counts()
			for _, name := range []string{"packets_ingress", "packets_egress", "handed_idle"} {
				delete(counts, name)
			}
			if diff := cmp.Diff(tt.counts, counts); diff != "" {
				t.Errorf("counters (-want +got):\n%s", diff)
			}
			if tt.from == "" {
				k.nothingKnown()
				return
			}
			got := k.samples()
			if len(got) != 1 || got[0].Resumed || !got[0].InitiatorIsLo {
				t.Fatalf("%d samples, %+v", len(got), got)
			}
			if diff := cmp.Diff(fromClient(tt.from), look(got[0]).FromInitiator); diff != "" {
				t.Errorf("packets (-want +got):\n%s", diff)
			}
		})
	}
}

// Routing sends forged datagrams back through the interface: they are no answer, even if
// the kernel does not say where they came in (a VRF, a program of this machine).
func TestReflectedDatagramsBeginNoFlow(t *testing.T) {
	const self, stacked, other = 7, 8, 9
	for _, tt := range []struct {
		name   string
		device uint32 // that the kernel says the reflected datagrams were received by
		counts map[string]uint64
	}{
		{"by the interface itself", self, map[string]uint64{"udp_waiting": 2, "reflected": 0}},
		{"by a device on it", stacked, map[string]uint64{"udp_waiting": 2, "reflected": 0}},
		// Nothing says so, but the same came in a moment ago.
		{"by a device that nothing is known of", other, map[string]uint64{"udp_waiting": 2, "reflected": 4}},
		{"by nothing", 0, map[string]uint64{"udp_waiting": 2, "reflected": 4}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			k := loadKernel(t, config{})
			for _, device := range []uint32{self, stacked} {
				if err := k.coll.Maps[datapathMapSameSide].Update(device, uint8(1), ebpf.UpdateAny); err != nil {
					t.Fatal(err)
				}
			}
			for _, frame := range [][]byte{udp(true, 700), udp(false, 700), udp(true, 701), udp(false, 1400)} {
				k.run(ingress, frame)
				if _, err := k.coll.Programs[string(egress)].Run(&ebpf.RunOptions{Data: frame, Context: receivedBy(tt.device)}); err != nil {
					t.Fatal(err)
				}
			}
			k.nothingKnown()
			counts := k.counts()
			for name, want := range tt.counts {
				if counts[name] != want {
					t.Errorf("%s is %d, want %d", name, counts[name], want)
				}
			}
			// The real answer is one, though a forged one was as long.
			answer := udp(false, 1400)
			answer[40], answer[41] = 0x12, 0x34 // its checksum
			if k.run(egress, answer); len(k.samples()) != 1 {
				t.Errorf("the real answer is none: %v", k.counts())
			}
		})
	}
}

// waitingFlow returns the entry of a flow of which one side has spoken, and its number.
func (k *kernel) waitingFlow(fromLo bool) (id uint32, w datapathWaiting) {
	k.t.Helper()
	m, want := k.coll.Maps[datapathMapWaitingFlows], toKernelKey(udpKey())
	for id = range m.MaxEntries() {
		if err := m.Lookup(id, &w); err != nil {
			k.t.Fatal(err)
		}
		if w.Key == want && w.FromLo == bit(fromLo) {
			return id, w
		}
	}
	k.t.Fatal("no such flow waits")
	return id, w
}

// ageWaiting makes the capture that waits older.
func (k *kernel) ageWaiting(by time.Duration) {
	k.t.Helper()
	id, w := k.waitingFlow(true)
	w.StartNs -= uint64(by)
	w.LastNs -= uint64(by)
	if err := k.coll.Maps[datapathMapWaitingFlows].Update(id, &w, ebpf.UpdateExist); err != nil {
		k.t.Fatal(err)
	}
}

// inUse is how many captures wait.
func (k *kernel) inUse() (n uint32) {
	k.t.Helper()
	if err := k.coll.Maps[datapathMapWaitingQuota].Lookup(uint32(waitingInUse), &n); err != nil {
		k.t.Fatal(err)
	}
	return n
}

// What nobody answers for 30 s is discarded, and what comes then is not the beginning.
func TestUnansweredUDPFlowsAreDiscarded(t *testing.T) {
	for _, tt := range []struct {
		name    string
		age     time.Duration
		resumed bool
	}{
		{"answered in time", 29 * time.Second, false},
		{"answered too late", 31 * time.Second, true},
		{"asked again after very long", 11 * time.Minute, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			k := loadKernel(t, config{udpIdle: DefaultUDPIdle})
			k.run(egress, udp(true, 300))
			k.ageWaiting(tt.age)
			if tt.age > 30*time.Second {
				// A sweep sees a sixteenth of the table.
				for deadline := time.Now().Add(30 * time.Second); k.counts()["udp_unanswered"] == 0; time.Sleep(10 * time.Millisecond) {
					if time.Now().After(deadline) {
						t.Fatal("it was not discarded")
					}
					k.sweep()
				}
				if n := k.inUse(); n != 0 {
					t.Errorf("%d captures wait", n)
				}
				k.run(ingress, udp(false, 0))
				k.nothingKnown()
				k.run(egress, udp(true, 300))
			}
			k.run(ingress, udp(false, 1400))
			got := k.samples()
			if len(got) != 1 || got[0].Resumed != tt.resumed || len(got[0].Packets) != 2 || !got[0].InitiatorIsLo {
				t.Fatalf("%d samples, %+v", len(got), got)
			}
			if n := k.inUse(); n != 0 {
				t.Errorf("%d captures wait at the end", n)
			}
		})
	}
}

// question is one that a host sends out, and answer what comes back.
func question(host, port int) []byte {
	frame := udp(true, 300)
	frame[34], frame[35] = byte(port>>8), byte(port)
	readdress(frame, 26, host)
	return frame
}

func answerTo(host, port int) []byte {
	frame := udp(false, 1400)
	frame[36], frame[37] = byte(port>>8), byte(port)
	readdress(frame, 30, host)
	return frame
}

// A flood of datagrams pushes out its like: who is answered within the time of three
// quarters of a table of them is identified.
func TestUDPFlowsAreIdentifiedInAFlood(t *testing.T) {
	const flows = 200
	k := loadKernel(t, config{slots: 1024, ring: 1 << 20})
	flood := 0
	strangers := func(n int) {
		for range n {
			flood++
			frame := udp(false, 100)
			readdress(frame, 26, 0x0b000000+flood)
			k.run(ingress, frame)
		}
	}
	strangers(20_000)
	for i := range flows {
		k.run(egress, question(0x0c000000+i, 5000))
	}
	strangers(12_000) // 40 ms of 300 000 datagrams/s, or a burst of them
	for i := range flows {
		k.run(ingress, answerTo(0x0c000000+i, 5000))
	}
	// Of 100 such floods 83 cost no flow, 15 one and 2 two.
	if got := len(k.samples()); got < flows*97/100 {
		t.Errorf("%d of %d flows are identified", got, flows)
	}
	if o, err := k.Occupancy(); err != nil || o.Flows > flows || o.Collecting != 0 {
		t.Errorf("the flood left %+v, %v", o, err)
	}
}

// When the table is scarce, no sender has more than an eighth of it, and who forges his
// address on the other side takes nothing from him.
func TestOneSenderTakesAnEighthOfTheWaitingFlows(t *testing.T) {
	const host, victim = 0x0d000001, 0x0d000002
	k := loadKernel(t, config{slots: 64})
	for i := range 40_000 { // three quarters are in use
		frame := udp(false, 100)
		readdress(frame, 26, 0x0b000000+i)
		k.run(ingress, frame)
	}
	send := func(e entry, host int) {
		for port := range 4000 {
			k.run(e, question(host, 1024+port))
		}
	}
	send(egress, host)
	// A flow whose tag is another's takes that one's place: a few in a thousand do.
	refused := k.counts()["initiator_waiting"]
	if refused < 4000-2048-20 || refused > 4000-2048+20 {
		t.Errorf("%d of 4000 flows of one sender were refused, want about %d", refused, 4000-2048)
	}
	send(ingress, victim)
	refused = k.counts()["initiator_waiting"]
	k.run(egress, question(victim, 1000))
	k.run(ingress, answerTo(victim, 1000))
	if got := k.samples(); len(got) != 1 || k.counts()["initiator_waiting"] != refused {
		t.Errorf("%d samples of the host whose address was forged; %d and then %d refused", len(got), refused, k.counts()["initiator_waiting"])
	}
}
