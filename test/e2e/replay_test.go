// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"math"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/earlydrop/earlydrop/cmd/earlydrop/event"
	"github.com/earlydrop/earlydrop/cmd/earlydrop/event/eventtest"
	"github.com/earlydrop/earlydrop/test/lab"
)

// replayed returns the flows that `earlydrop replay --json` has printed. Each line has to
// fit the schema.
func replayed(t testing.TB, out string) (flows []*event.Verdict) {
	t.Helper()
	for line := range strings.Lines(out) {
		e, err := eventtest.Decode([]byte(line))
		if err != nil {
			t.Fatal(err)
		}
		flows = append(flows, e.(*event.Verdict))
	}
	return flows
}

// A recording made at earlydrop's device gives, flow by flow, the verdicts that
// were given while it was made: the path through the kernel and the path through a
// file end in the same bytes.
func TestReplayGivesTheLiveVerdicts(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name string
		cfg  lab.Config
		args []string
	}{
		// Super-packets and checksums that are still to be filled in.
		{"offload", lab.Config{}, nil},
		{"slow", lab.Config{ServerLink: slow}, nil},
		{"no offload", lab.Config{ClientLink: lab.LinkConfig{NoOffload: true}, ServerLink: lab.LinkConfig{NoOffload: true}}, nil},
		{"vlan", lab.Config{VLAN: 5}, nil},
		{"native", lab.Config{}, []string{"--xdp", "native"}},
		{"generic", lab.Config{}, []string{"--xdp", "generic"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s := newScene(t, tt.cfg)
			d := s.attach(tt.args...)
			file := filepath.Join(s.Dir(), "recording.pcap")
			rec := must(s.Record(file))(t)
			s.t.Cleanup(func() { _ = rec.Stop() })
			var servers []netip.AddrPort
			for _, version := range []int{4, 6} {
				ss := must(s.StartShadowsocks(s.ctx, lab.ShadowsocksConfig{Version: version}))(t)
				vmess := must(s.StartVMess(s.ctx, lab.VMessConfig{Version: version}))(t)
				web := netip.AddrPortFrom(s.ServerAddr(version), s.web.HTTPSPort)
				servers = append(servers, ss.Server, vmess.Server, web)
				for range 3 {
					for _, tun := range []*lab.Tunnel{ss, vmess, nil} {
						if r := s.Download(s.ctx, tun, s.URL("https", version, s.web.HTTPSPort, "/64k"), nil); r.Err != nil {
							t.Fatal(r.Err)
						}
					}
				}
			}
			// By both ends: a client may use a port with several servers at once.
			live := map[[2]netip.AddrPort]*event.Verdict{}
			for _, server := range servers {
				must(d.Verdict(s.ctx, server, 2))(t)
				for _, v := range d.Verdicts(server) {
					live[[2]netip.AddrPort{v.Src, v.Dst}] = v
				}
			}
			if err := rec.Stop(); err != nil {
				t.Fatal(err)
			}
			s.stop(d)

			// No rights, no namespace: any user can replay.
			out := must(s.Earlydrop(s.ctx, "replay", "--json", file))(t)
			matched := 0
			for _, r := range replayed(t, out) {
				v, ok := live[[2]netip.AddrPort{r.Src, r.Dst}]
				if !ok {
					continue // not one of the flows above, or not decided while it ran
				}
				matched++
				if !slices.Equal(r.RuleClasses, v.RuleClasses) || math.Abs(r.Deciding(0)-v.Deciding(0)) > 1e-6 ||
					r.Likeliest != v.Likeliest || r.Detected != v.Detected || r.Reason != v.Reason {
					t.Errorf("%s > %s\nlive:   %v %.7f, likeliest %s, detected %v, %s\nreplay: %v %.7f, likeliest %s, detected %v, %s", r.Src, r.Dst,
						v.RuleClasses, v.Deciding(0), v.Likeliest, v.Detected, v.Reason, r.RuleClasses, r.Deciding(0), r.Likeliest, r.Detected, r.Reason)
				}
				if r.Class != v.Class || math.Abs(r.Confidence-v.Confidence) > 1e-6 || r.Decision != v.Decision || r.Rule != v.Rule ||
					r.Captured != v.Captured || r.Packets != v.Packets || r.Bytes != v.Bytes || r.Complete != v.Complete || r.Endpoints != v.Endpoints ||
					r.FlowPackets < uint64(r.Packets) || r.FlowBytes < r.Bytes || r.Start.Sub(v.Start).Abs() > time.Second {
					t.Errorf("%s > %s\nlive:   %s %.7f %s, %d packets of %d bytes from %s, %d bytes captured\nreplay: %s %.7f %s, %d packets of %d bytes from %s, %d bytes captured",
						r.Src, r.Dst, v.Class, v.Confidence, v.Decision, v.Packets, v.Bytes, v.Start, v.Captured, r.Class, r.Confidence, r.Decision, r.Packets, r.Bytes, r.Start, r.Captured)
				}
			}
			if matched != len(live) || matched < 3*len(servers) {
				t.Errorf("%d of %d live verdicts are in the replay, want all and at least %d", matched, len(live), 3*len(servers))
			}
			t.Logf("%d flows", matched)
		})
	}
}

// A recording has every frame that came before its end, also those that it has not
// come to yet.
func TestRecordingHasAllThatCameBeforeItsEnd(t *testing.T) {
	t.Parallel()
	s := newScene(t, lab.Config{})
	server, err := s.Gateway.ListenPacket("udp", netip.AddrPortFrom(s.gatewayAddr(4), 0).String())
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	client, err := s.Client.Dial(s.ctx, "udp", server.LocalAddr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	for round := range 5 {
		file := filepath.Join(s.Dir(), "recording.pcap")
		rec := must(s.Record(file))(t)
		t.Cleanup(func() { _ = rec.Stop() })
		const batches, batch = 5, 40 // no more at a time than a socket's buffer holds
		const n = 2 + batches*batch
		payload, buf := make([]byte, 1000), make([]byte, 2000)
		// Both sides speak, or it is no flow.
		if _, err := client.Write(payload); err != nil {
			t.Fatal(err)
		}
		_ = server.SetReadDeadline(time.Now().Add(time.Minute))
		_, from, err := server.ReadFrom(buf)
		if err == nil {
			_, err = server.WriteTo(payload, from)
		}
		if err != nil {
			t.Fatal(err)
		}
		for range batches {
			for range batch {
				if _, err := client.Write(payload); err != nil {
					t.Fatal(err)
				}
			}
			for range batch { // what has arrived has passed the device
				_ = server.SetReadDeadline(time.Now().Add(time.Minute))
				if _, _, err := server.ReadFrom(buf); err != nil {
					t.Fatal(err)
				}
			}
		}
		if err := rec.Stop(); err != nil {
			t.Fatal(err)
		}
		out := must(s.Earlydrop(s.ctx, "replay", "--json", file))(t)
		packets := uint64(0)
		for _, v := range replayed(t, out) {
			packets += v.FlowPackets
		}
		if packets != n {
			t.Errorf("round %d: %d packets are recorded of %d", round, packets, n)
		}
	}
}
