// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/earlydrop/earlydrop/loader/flow"
	f "github.com/earlydrop/earlydrop/loader/internal/frames"
)

// Mode monitor suspends every block at once: its packets pass as if it was not there, and it
// counts none. Mode enforce takes up those whose connection is still there.
func TestModeMonitorSuspendsBlocks(t *testing.T) {
	all := map[bool]*kernel{false: loadKernel(t, config{oneHook: true}), true: loadKernel(t, config{oneHook: true, midStream: true})}
	type packet = []byte
	tcp, data := tcpKey(), udpKey()
	judge := func(k *kernel) { k.judged() }
	judgeUDP := func(k *kernel) { k.talk(700, 700) }
	byHand := func(key flow.Key) func(*kernel) error {
		return func(k *kernel) error {
			return k.Apply(key, flow.Treatment{Action: flow.Drop, TTL: time.Hour, Rule: flow.ByHand})
		}
	}
	byRule := func(k *kernel) error { return k.ApplyFlow(&k.judged().Meta, drop(time.Hour, "shadowsocks", "tunnels")) }
	for _, tt := range []struct {
		name      string
		midStream bool
		before    func(*kernel) // optional
		block     func(*kernel) error
		packets   []packet // in monitor
		judged    int      // captures of these
		gone      bool     // whether the block is, by then
		then      []packet // in enforce again
		dropped   bool     // ... and what becomes of these
	}{
		{name: "a connection that a rule blocked", block: byRule,
			packets: []packet{upAt(1402, 2, f.ACK, 9), downAt(2, 1402, f.ACK, 9), upAt(1411, 2, f.ACK, 0), upAt(1411, 2, f.ACK|f.FIN, 0)},
			then:    []packet{upAt(1412, 2, f.ACK, 9), downAt(11, 1412, f.ACK, 9)}, dropped: true},
		{name: "a connection that is blocked by hand", before: judge, block: byHand(tcp),
			packets: []packet{upAt(1402, 2, f.ACK, 9), downAt(2, 1402, f.ACK, 9)},
			then:    []packet{upAt(1412, 2, f.ACK, 9), downAt(11, 1412, f.ACK, 0)}, dropped: true},
		{name: "a connection that nobody knows", block: byHand(tcp),
			packets: []packet{upAt(1402, 2, f.ACK, 9), downAt(2, 1402, f.ACK, 9)},
			then:    []packet{upAt(1412, 2, f.ACK, 9)}, dropped: true},
		{name: "a connection that nobody knows is captured from its middle", midStream: true, block: byHand(tcp),
			packets: []packet{upAt(1402, 2, f.ACK, 1100)}, judged: 1,
			then: []packet{upAt(2502, 2, f.ACK, 9)}, dropped: true},
		{name: "the next connection is judged, and ends the block", before: judge, block: byHand(tcp),
			packets: after(handshakeAt(700, 80), upAt(701, 81, f.ACK, 1100)), judged: 1, gone: true,
			then: []packet{upAt(1801, 81, f.ACK, 9)}},
		{name: "the next connection begins with payload in its SYN", block: byRule,
			packets: []packet{upAt(700, 0, f.SYN, 9), downAt(80, 710, f.SYN|f.ACK, 0), upAt(710, 81, f.ACK, 1100)}, judged: 1, gone: true,
			then: []packet{upAt(1810, 81, f.ACK, 9)}},
		{name: "a UDP flow", before: judgeUDP, block: byHand(data),
			packets: []packet{udp(true, 9), udp(false, 9)}, then: []packet{udp(true, 9), udp(false, 9)}, dropped: true},
		{name: "a UDP flow that nobody knows is judged", block: byHand(data),
			packets: []packet{udp(true, 700), udp(false, 700)}, judged: 1, then: []packet{udp(true, 9)}, dropped: true},
	} {
		for _, e := range hooks {
			t.Run(tt.name+"/"+string(e), func(t *testing.T) {
				k := all[tt.midStream].emptied(t)
				if tt.before != nil {
					tt.before(k)
				}
				if err := tt.block(k); err != nil {
					t.Fatal(err)
				}
				was, err := k.SetMode(false)
				if err != nil || !was {
					t.Fatalf("it was in mode enforce: %v, %v", was, err)
				}
				if enforces, err := k.Enforces(); err != nil || enforces {
					t.Errorf("mode enforce: %v, %v", enforces, err)
				}
				before := k.counts()["dropped_packets"]
				for i, p := range tt.packets {
					if k.run(e, p) {
						t.Errorf("packet %d was dropped in mode monitor", i)
					}
				}
				if got := k.samples(); len(got) != tt.judged {
					t.Errorf("%d captures, want %d", len(got), tt.judged)
				}
				blocks, err := k.Blocked()
				if err != nil || (len(blocks) == 0) != tt.gone {
					t.Errorf("blocks %+v, %v; gone: want %v", blocks, err, tt.gone)
				}
				if c := k.counts(); c["dropped_packets"] != before {
					t.Errorf("%d packets count as dropped", c["dropped_packets"]-before)
				}
				if _, err := k.SetMode(true); err != nil {
					t.Fatal(err)
				}
				for i, p := range tt.then {
					if k.run(e, p) != tt.dropped {
						t.Errorf("packet %d in mode enforce: dropped is not %v", i, tt.dropped)
					}
				}
			})
		}
	}
}

// A block whose connection goes on in mode monitor is renewed as ever: it is there when mode
// enforce comes back.
func TestSuspendedBlockIsRenewed(t *testing.T) {
	k := loadKernel(t, config{oneHook: true})
	k.blockFlow(k.judged(), 30*time.Millisecond)
	k.expect("payload", upAt(1402, 2, f.ACK, 10), true)
	k.enforce(false)
	k.runOut()
	k.expect("payload in mode monitor", upAt(1402, 2, f.ACK, 10), false)
	if c := k.counts(); c["renewed"] != 1 || c["dropped_packets"] != 1 {
		t.Errorf("counters %v", c)
	}
}

// modeIs fails unless the pins of v0 say that it is in a mode.
func modeIs(t *testing.T, want string) {
	t.Helper()
	tables, err := Open("v0")
	if err != nil {
		t.Fatal(err)
	}
	defer tables.Close()
	if a, err := tables.Attachment(); err != nil || a.Mode != want {
		t.Errorf("mode %q, %v; want %q", a.Mode, err, want)
	}
}

// Whoever has the rights changes the mode through what is pinned, with a daemon and without;
// what must not enforce stays in monitor.
func TestModeIsSetThroughThePins(t *testing.T) {
	inNamespace(t)
	set := func(enforce bool) error {
		t.Helper()
		tables, err := Open("v0")
		if err != nil {
			t.Fatal(err)
		}
		defer tables.Close()
		_, err = tables.SetMode(enforce)
		return err
	}
	d := attach(t, Options{})
	modeIs(t, "enforce")
	if err := set(false); err != nil {
		t.Error(err)
	}
	modeIs(t, "monitor")
	if enforces, err := d.Enforces(); err != nil || enforces {
		t.Errorf("the daemon's tables say enforce: %v, %v", enforces, err)
	}
	if err := d.Describe("m", "p", "the policy says nothing of one_hook"); err != nil {
		t.Fatal(err)
	}
	var only *MonitorOnlyError
	if err := set(true); !errors.As(err, &only) || only.Interface != "v0" || !strings.Contains(err.Error(), "one_hook") {
		t.Errorf("error %v", err)
	}
	modeIs(t, "monitor")
	if err := d.Describe("m", "p", ""); err != nil {
		t.Fatal(err)
	}
	if err := d.Release(); err != nil {
		t.Fatal(err)
	}
	if err := set(true); err != nil {
		t.Error(err)
	}
	modeIs(t, "enforce")
	if err := Detach("v0", false); err != nil {
		t.Fatal(err)
	}
	nothingLeft(t)
}

// An attach in mode monitor removes what rules blocked, and suspends what people did.
func TestMonitorKeepsBlocksByHand(t *testing.T) {
	inNamespace(t)
	d := attach(t, Options{})
	if err := d.Apply(tcpKey(), drop(time.Hour, "", flow.ByHand)); err != nil {
		t.Fatal(err)
	}
	if err := d.Apply(udpKey(), drop(time.Hour, "wireguard", "vpn")); err != nil {
		t.Fatal(err)
	}
	if err := d.Release(); err != nil {
		t.Fatal(err)
	}
	for _, sizes := range []Sizes{{}, {Blocked: 2048}} { // adopted, and carried over
		d = attach(t, Options{Monitor: true, Sizes: sizes})
		blocks, err := d.Blocked()
		if err != nil || len(blocks) != 1 || !blocks[0].ByHand() || d.Info.BlocksHeld != 1 || d.Info.BlocksAdopted != 1 {
			t.Errorf("blocks %+v, %v, %+v", blocks, err, d.Info)
		}
		if err := d.Release(); err != nil {
			t.Fatal(err)
		}
	}
	if err := Detach("v0", false); err != nil {
		t.Fatal(err)
	}
	nothingLeft(t)
}
