// SPDX-License-Identifier: Apache-2.0

// Package e2e tries the whole program on real traffic: earlydrop attached to the
// gateway of a lab, real clients and servers on both sides of it, the shipped
// model. It needs root and the lab's programs; without them it fails.
package e2e

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/earlydrop/earlydrop/classifier"
	"github.com/earlydrop/earlydrop/cmd/earlydrop/event"
	"github.com/earlydrop/earlydrop/cmd/earlydrop/status"
	"github.com/earlydrop/earlydrop/loader/flow"
	"github.com/earlydrop/earlydrop/models"
	"github.com/earlydrop/earlydrop/policy"
	"github.com/earlydrop/earlydrop/test/e2e/rig"
	"github.com/earlydrop/earlydrop/test/lab"
)

// binary is the program under test, built by TestMain.
var binary string

func TestMain(m *testing.M) {
	code, err := run(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, "e2e:", err)
		code = 1
	}
	os.Exit(code)
}

func run(m *testing.M) (code int, err error) {
	for _, name := range []string{"bpftool", "chromium", "ip", "nft", "nsenter", "prometheus", "promtool", "setpriv", "tmux", "unshare", "wireguard-go"} {
		if _, err := lab.Program(name); err != nil {
			return 1, err
		}
	}
	err = rig.WithProgram(context.Background(), "e2e", func(dir, program string) error {
		binary = program
		pins, _ := filepath.Glob("/sys/fs/bpf/earlydrop/*")
		code = m.Run()
		if n := identified.connections.Load(); n > 0 {
			fmt.Printf("%d of %d connections through tunnels were identified\n", identified.drop.Load(), n)
		}
		return left(dir, pins)
	})
	return code, err
}

// left looks for what the tests should have removed.
func left(dir string, pinsBefore []string) error {
	var errs []error
	names, _ := filepath.Glob(fmt.Sprintf("/var/run/netns/ed-lab-%d-*", os.Getpid()))
	if len(names) > 0 {
		errs = append(errs, fmt.Errorf("network namespaces are left: %v", names))
	}
	// The machine's own BPF file system is none of the tests' business.
	if pins, _ := filepath.Glob("/sys/fs/bpf/earlydrop/" + rig.Device); len(pins) > 0 && !strings.Contains(strings.Join(pinsBefore, " "), pins[0]) {
		errs = append(errs, fmt.Errorf("pins are left: %v", pins))
	}
	exes, _ := filepath.Glob("/proc/[0-9]*/exe")
	for _, exe := range exes {
		if target, err := os.Readlink(exe); err == nil && strings.HasPrefix(target, dir) {
			errs = append(errs, fmt.Errorf("a process is left: %s runs %s", exe, target))
		}
	}
	return errors.Join(errs...)
}

// scene is a lab with earlydrop's gateway and the servers that the tests use.
type scene struct {
	*rig.Rig
	t   *testing.T
	ctx context.Context
	web *lab.Nginx

	ownTCX int         // programs of the lab itself at each TCX hook: one where it tags frames
	daemon *rig.Daemon // of tests with one

	talking []func() <-chan struct{} // ends a UDP flow, see udpFlow.run
}

// slow has a download take seconds instead of an instant, so that "it was cut"
// and "it was over before" can't be confused. The leg at earlydrop stays a veth.
var slow = lab.LinkConfig{Relay: lab.RelayConfig{Delay: time.Millisecond, Rate: 80e6}}

const largeMB = 16 // 1.7 s on a slow leg

// limit bounds a test, so that one that waits in vain says for what. They take some
// seconds each, and minutes where twenty other programs want the CPU.
const limit = 5 * time.Minute

func newScene(t *testing.T, cfg lab.Config) *scene {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	t.Cleanup(cancel)
	l, err := lab.New(ctx, cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Errorf("close the lab: %v", err)
		}
	})
	r, err := rig.New(ctx, l, binary)
	if err != nil {
		t.Fatal(err)
	}
	s := &scene{Rig: r, t: t, ctx: ctx}
	if cfg.VLAN != 0 {
		s.ownTCX = 1
	}
	if s.web, err = l.StartNginx(ctx, lab.NginxConfig{LargeMB: largeMB}); err != nil {
		t.Fatal(err)
	}
	return s
}

func must[T any](v T, err error) func(*testing.T) T {
	return func(t *testing.T) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

// attach starts earlydrop; it must be able to be ended in order when the test
// has not done so itself.
func (s *scene) attach(args ...string) *rig.Daemon {
	s.t.Helper()
	d, err := s.Attach(s.ctx, args...)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() {
		d.Kill()
		if s.t.Failed() {
			for _, e := range d.Events() {
				if v, ok := e.(*event.Verdict); ok {
					s.t.Log(v.Text(true))
				} else {
					s.t.Logf("%s %+v", e.Kind(), e)
				}
			}
			if text := d.Stderr(); text != "" {
				s.t.Logf("standard error:\n%s", text)
			}
		}
	})
	return d
}

// stop ends earlydrop as Ctrl-C does and makes sure that nothing stays behind.
func (s *scene) stop(d *rig.Daemon) *event.Ended {
	s.t.Helper()
	last, err := d.Stop(s.ctx)
	if err != nil {
		s.t.Fatal(err)
	}
	s.clean()
	return last
}

// file writes a file into the lab's folder and returns its path.
func (s *scene) file(name, text string) string {
	s.t.Helper()
	path := filepath.Join(s.Dir(), name)
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		s.t.Fatal(err)
	}
	return path
}

// transfer is a download that is going on, directly when tunnel is nil.
type transfer struct {
	tunnel *lab.Tunnel
	bytes  atomic.Int64
	cancel context.CancelFunc
	done   chan struct{}
	result lab.Result
}

// download begins to fetch the large file. It ends with the test.
func (s *scene) download(tun *lab.Tunnel) *transfer {
	ctx, cancel := context.WithCancel(s.ctx)
	tr := &transfer{tunnel: tun, cancel: cancel, done: make(chan struct{})}
	go func() {
		defer close(tr.done)
		tr.result = s.Download(ctx, tun, s.URL("https", 4, s.web.HTTPSPort, "/large"), tr.bytes.Store)
	}()
	s.t.Cleanup(tr.stop)
	return tr
}

func (tr *transfer) stop() {
	tr.cancel()
	<-tr.done
}

// server is where the flows of the download go that earlydrop sees.
func (tr *transfer) server(s *scene) netip.AddrPort {
	if tr.tunnel != nil {
		return tr.tunnel.Server
	}
	return netip.AddrPortFrom(s.ServerAddr(4), s.web.HTTPSPort)
}

// complete waits for the whole file.
func (s *scene) complete(what string, tr *transfer) {
	s.t.Helper()
	select {
	case <-tr.done:
	case <-s.ctx.Done():
		s.t.Fatalf("%s: not complete after %d bytes", what, tr.bytes.Load())
	}
	if tr.result.Err != nil || tr.result.Bytes != s.web.LargeBytes {
		s.t.Errorf("%s: %d of %d bytes, %v", what, tr.result.Bytes, s.web.LargeBytes, tr.result.Err)
	}
}

// risen waits until the kernel has dropped n packets more of the flow than now.
func (s *scene) risen(v *event.Verdict, n uint64) status.Block {
	s.t.Helper()
	b, err := s.Dropped(s.ctx, v.Src, v.Dst, n)
	if err != nil {
		s.t.Fatal(err)
	}
	return b
}

// policy writes a policy that drops the classes of the built-in one, at the model's
// threshold, for so long.
func (s *scene) policy(mode, ttl string) string {
	s.t.Helper()
	return s.file(mode+"-"+ttl+".yaml", fmt.Sprintf(`mode: %s
rules:
  - name: tunnels
    class: [%s]
    action: drop
    ttl: %s
`, mode, strings.Join(tunnelClasses, ", "), ttl))
}

// enforce starts earlydrop with such a policy.
func (s *scene) enforce(args ...string) *rig.Daemon {
	s.t.Helper()
	return s.attach(append([]string{"--policy", s.policy("enforce", "10m")}, args...)...)
}

// tries bounds how many connections a tunnel gets to be identified. The model does
// not know each at once (its card tells how many); what is tested here is what
// becomes of one that it does know.
const tries = 5

// identified counts the tunnels' connections and those of them that the policy
// wants dropped.
var identified struct{ connections, drop atomic.Int64 }

// tunnelled downloads through a tunnel until the verdict about a connection is to
// drop it, which is checked, and returns that connection's download.
func (s *scene) tunnelled(d *rig.Daemon, tun *lab.Tunnel, enforced bool) (*transfer, *event.Verdict) {
	s.t.Helper()
	for n := range tries {
		tr := s.download(tun)
		v := must(d.Verdict(s.ctx, tun.Server, n))(s.t)
		identified.connections.Add(1)
		if v.Decision == "drop" {
			identified.drop.Add(1)
			dropVerdict(s.t, v, enforced)
			return tr, v
		}
		s.t.Logf("connection %d to %s was not identified: %s, scores %v", n, v.Dst, v.Called(), v.Scores)
		tr.stop()
	}
	s.t.Fatalf("none of %d connections to %s was identified", tries, tun.Server)
	panic("unreachable")
}

// stalled makes sure that a blocked transfer gets nothing any more while the
// kernel goes on dropping its packets, and that it has not got far.
func (s *scene) stalled(tr *transfer, v *event.Verdict) {
	s.t.Helper()
	// What was on its way and in the programs' buffers comes out while the first
	// packets are being dropped, already; a download that is not cut never rests.
	b := s.risen(v, 2)
	before := tr.bytes.Load()
	for rounds := 1; ; rounds++ {
		b = s.risen(v, 2)
		now := tr.bytes.Load()
		if now == before {
			break
		}
		if rounds == 10 {
			s.t.Errorf("the blocked download went on: %d bytes, then %d, %d packets dropped", before, now, b.Packets)
			break
		}
		before = now
	}
	if limit := s.web.LargeBytes / 4; before > limit {
		s.t.Errorf("%d bytes passed of the blocked download, want less than %d", before, limit)
	}
	select {
	case <-tr.done:
		s.t.Errorf("the blocked download ended: %+v", tr.result)
	default:
	}
	s.t.Logf("%s: %s, %.4f, after %.1f ms, %d packets; %d of %d bytes passed, %d packets (%d bytes) dropped",
		v.Dst, v.Called(), v.Deciding(0), v.VerdictMS, v.Packets, before, s.web.LargeBytes, b.Packets, b.Bytes)
}

// tunnelClasses are the classes of the policies' rule, those that the built-in
// policy names, and threshold is what the model has a rule ask of their sum. The first 1024 bytes of Shadowsocks and of VMess are alike, so the
// model may take one for the other or say that it does not know which; the rule asks
// whether a flow is one of them.
var tunnelClasses, threshold = func() ([]string, float64) {
	m, err := classifier.ReadManifest(models.Default())
	if err != nil {
		panic(err)
	}
	p, err := policy.Default(&policy.Model{Labels: m.Labels, Thresholds: m.Thresholds, AnyThreshold: m.AnyThreshold})
	if err != nil {
		panic(err)
	}
	return p.Rules[0].Classes, m.AnyThreshold
}()

// dropVerdict checks what a verdict about a tunnel says.
func dropVerdict(t *testing.T, v *event.Verdict, enforced bool) {
	t.Helper()
	if !slices.Contains(tunnelClasses, v.Class) && v.Class != flow.Unknown || v.Decision != "drop" || v.Enforced == nil || *v.Enforced != enforced {
		t.Fatalf("verdict about %s: class %q, scores %v, decision %q, enforced %v; want one of %v, drop, %v",
			v.Dst, v.Class, v.Scores, v.Decision, v.Enforced != nil && *v.Enforced, tunnelClasses, enforced)
	}
	sum, all, most := 0.0, 0.0, 0.0
	for i, class := range v.Scores.Labels {
		p := v.Scores.Values[i]
		all += p
		most = max(most, p)
		if slices.Contains(tunnelClasses, class) {
			sum += p
		}
	}
	if v.Confidence != most || v.Class != flow.Unknown && most != v.Scores.Of(v.Class) || math.Abs(v.Deciding(0)-sum) > 1e-9 || sum < threshold || math.Abs(all-1) > 1e-6 {
		t.Errorf("confidence %v, of the rule %v, scores %v", v.Confidence, v.Deciding(0), v.Scores)
	}
	// What decided is named, and has nearly all of the sum.
	named := 0.0
	for _, class := range v.RuleClasses {
		if !slices.Contains(tunnelClasses, class) {
			t.Errorf("%s is named, and the rule is about %v", class, tunnelClasses)
		}
		named += v.Scores.Of(class)
	}
	if named < 0.95*sum || !slices.Contains(v.RuleClasses, v.Likeliest) || v.Scores.Of(v.Likeliest) != most || !v.Detected {
		t.Errorf("decided by %v, likeliest %s, detected %v, scores %v", v.RuleClasses, v.Likeliest, v.Detected, v.Scores)
	}
	if v.Rule == "" || v.Proto != "tcp" || v.Packets < 4 || v.Captured == 0 || v.Captured > 1024 || v.VerdictMS <= 0 {
		t.Errorf("verdict lacks something: %+v", v)
	}
}
