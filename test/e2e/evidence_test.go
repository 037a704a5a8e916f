// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"

	"github.com/earlydrop/earlydrop/cmd/earlydrop/event"
	"github.com/earlydrop/earlydrop/cmd/earlydrop/status"
	"github.com/earlydrop/earlydrop/cmd/earlydrop/why"
	"github.com/earlydrop/earlydrop/policy"
	"github.com/earlydrop/earlydrop/test/e2e/rig"
	"github.com/earlydrop/earlydrop/test/lab"
)

// A rule with evidence acts at the third flow of a pair that is detected, not at the second,
// and then on each flow of the pair; and the program that comes next goes on with it.
func TestEvidenceActsAtTheThirdFlow(t *testing.T) {
	t.Parallel()
	// The first two downloads must not be over before the third one is judged.
	s := newScene(t, lab.Config{ServerLink: lab.LinkConfig{Relay: lab.RelayConfig{Delay: time.Millisecond, Rate: 10e6}}})
	tun := must(s.StartShadowsocks(s.ctx, lab.ShadowsocksConfig{}))(t)
	text := fmt.Sprintf(`mode: enforce
rules:
  - name: pairs
    class: [%s]
    proto: tcp
    meanwhile: log
    action: drop
    ttl: 10m
    evidence: {flows: 3, share: 0.1, within: 1h}
`, strings.Join(tunnelClasses, ", "))
	args := []string{"--policy", s.file("pairs.yaml", text), "--evidence", filepath.Join(s.Dir(), "state", "pairs.json")}
	d := s.attach(args...)
	detected, n := 0, 0
	var before []*transfer
	var verdicts []*event.Verdict
	for ; detected < 3; n++ {
		if n == 3*tries {
			t.Fatalf("%d of %d connections were detected", detected, n)
		}
		tr := s.download(tun)
		v := must(d.Verdict(s.ctx, tun.Server, n))(t)
		if v.Detected {
			detected++
		}
		switch {
		case !v.Detected && v.Decision != "pass", detected < 3 && v.Detected && (v.Decision != "log" || v.Reason != policy.ReasonMeanwhile || *v.Enforced || v.EvidenceFlows != detected):
			t.Errorf("connection %d, %d detected: %s", n, detected, v.Text(true))
		case detected == 3:
			// The two before it are open still, and are cut with it.
			if v.EarlierBlocked != 2 || v.Decision != "drop" || v.Reason != policy.ReasonEvidence || v.Scope != "pair" || !*v.Enforced || v.EvidenceJudged != n+1 {
				t.Errorf("the third one that was detected: %s", v.Text(true))
			}
			s.stalled(tr, v)
			for i, open := range before {
				b, blocked, err := s.Block(s.ctx, verdicts[i].Src, verdicts[i].Dst)
				if err != nil || !blocked || b.Rule != "pairs" {
					t.Errorf("%s is open: blocked %v by %q, %v", verdicts[i].Src, blocked, b.Rule, err)
				}
				open.stop()
				if open.result.Bytes == s.web.LargeBytes {
					t.Errorf("%s: the whole file came", verdicts[i].Src)
				}
			}
		}
		if v.Detected && detected < 3 {
			before, verdicts = append(before, tr), append(verdicts, v)
		} else {
			tr.stop()
		}
	}
	treated := must(rig.Wait(s.ctx, d, "the pair", func(*event.PairTreated) bool { return true }))(t)
	if treated.Server != tun.Server || treated.Action != "drop" || treated.Rule != "pairs" || treated.EvidenceFlows != 3 {
		t.Errorf("treated: %+v", treated)
	}
	s.pairDropped(d, tun)
	s.saysWhy(tun, n)
	// A reload of the same policy leaves it.
	must(s.Earlydrop(s.ctx, "reload"))(t)
	s.pairDropped(d, tun)
	last := s.stop(d)
	if last.Counters["pairs_treated"] != 1 || last.Counters["pair_connections"] < 2 || last.Counters["pair_flows"] != 0 {
		t.Errorf("counters %v", last.Counters)
	}

	// The next program knows of it by its file.
	d = s.attach(args...)
	must(rig.Wait(s.ctx, d, "the pair", func(*event.PairTreated) bool { return true }))(t)
	s.pairDropped(d, tun)
	// Without a program the kernel goes on, and the one after that adopts it.
	d.Kill()
	s.pairDropped(nil, tun)
	d = s.attach(args...)
	s.pairDropped(d, tun)
	if n := len(rig.Of[*event.PairTreated](d.Events())); !d.Attached.Adopted || n != 0 {
		t.Errorf("adopted is %v, and %d pairs are new", d.Attached.Adopted, n)
	}
	// Somebody ends it, and it takes as much evidence as at first.
	s.endsInTop(treated, tun.Server)
	ended := must(rig.Wait(s.ctx, d, "the end of the pair", func(*event.PairEnded) bool { return true }))(t)
	if ended.Reason != "by_hand" || ended.Connections == 0 || ended.DroppedPackets == 0 || ended.Server != tun.Server {
		t.Errorf("ended: %+v", ended)
	}
	if audit := must(rig.Wait(s.ctx, d, "the audit", func(e *event.Audit) bool { return e.Action == "pairs_del" }))(t); audit.Pairs != 1 || audit.Outcome != event.Done {
		t.Errorf("audit: %+v", audit)
	}
	tr := s.download(tun)
	if v := must(d.Verdict(s.ctx, tun.Server, 0))(t); v.Decision == "drop" || v.Scope == "pair" {
		t.Errorf("after the end: %s", v.Text(true))
	}
	tr.stop()
	s.stop(d)
}

// endsInTop ends the treatment of a pair in the live view, after it was asked whether to.
func (s *scene) endsInTop(treated *event.PairTreated, server netip.AddrPort) {
	s.t.Helper()
	pair := fmt.Sprintf("tcp %s > %s", treated.Initiator.Addr(), server)
	x := s.inTmux(120, 30, fmt.Sprintf("%s top --interval 200ms --control %s; echo ended with $?; cat", s.Binary(), s.Control()))
	x.await("[1 latest]")
	x.press("8")
	x.await("[8 treated]", pair, "drops")
	x.press("u")
	x.await("let " + pair + " connect again? y/n")
	x.press("n")
	x.await("nothing was changed")
	if n := len(must(s.Pairs(s.ctx))(s.t)); n != 1 {
		s.t.Errorf("%d pairs after n", n)
	}
	x.press("u")
	x.await("connect again? y/n")
	x.press("y")
	x.await("1 pairs may connect again", "no pair is treated")
	x.press("q")
	x.await("ended with 0")
	out, err := s.Run(s.ctx, s.Binary(), "pairs", "del", treated.Initiator.Addr().String(), server.String())
	if err != nil || out.Code != 2 || !strings.Contains(out.Stderr, "not treated: "+pair) {
		s.t.Errorf("ended again: %+v, %v", out, err)
	}
}

// saysWhy makes sure that so many decisions about a server are told of, in two forms.
func (s *scene) saysWhy(tun *lab.Tunnel, n int) {
	s.t.Helper()
	text := must(s.Earlydrop(s.ctx, "why", tun.Server.String()))(s.t)
	for _, want := range []string{
		fmt.Sprintf("%s: %d decisions", tun.Server, n), "treated by rule pairs until", "3 of ", "waits for evidence", "pairs.yaml:3) treats the pair until",
		"blocked until", "dropped so far", "on " + rig.Device,
	} {
		if !strings.Contains(strings.Join(strings.Fields(text), " "), want) {
			s.t.Errorf("why says nothing of %q:\n%s", want, text)
		}
	}
	var a why.Answer
	if err := json.Unmarshal([]byte(must(s.Earlydrop(s.ctx, "why", tun.Server.String(), "--json", "-n", "1"))(s.t)), &a); err != nil {
		s.t.Fatal(err)
	}
	if a.Matched != n || len(a.Decisions) != 1 || a.Decisions[0].PolicyLine != 3 || len(a.Pairs) != 1 || a.Pairs[0].Rule != "pairs" {
		s.t.Errorf("%+v", a)
	}
}

// pairDropped makes sure that of the next connection to the tunnel nothing passes and nothing is
// captured, as its pair is treated. The daemon may be nil, where none is there.
func (s *scene) pairDropped(d *rig.Daemon, tun *lab.Tunnel) {
	s.t.Helper()
	seen := func() (p status.Pair) {
		all := must(s.Pairs(s.ctx))(s.t)
		if len(all) != 1 || all[0].Server != tun.Server || all[0].Rule != "pairs" || all[0].Suspended {
			s.t.Fatalf("pairs %+v", all)
		}
		return all[0]
	}
	before, handed, verdicts := seen(), s.captures(), 0
	if d != nil {
		verdicts = len(d.Verdicts(tun.Server))
	}
	tr := s.download(tun)
	defer tr.stop()
	// Its SYN comes again and again.
	err := rig.Until(s.ctx, func() (bool, error) {
		p := seen()
		return p.Connections > before.Connections && p.Packets >= before.Packets+2, nil
	})
	if err != nil {
		s.t.Fatal(err)
	}
	if n := tr.bytes.Load(); n != 0 {
		s.t.Errorf("%d bytes came", n)
	}
	if now := s.captures(); now != handed {
		s.t.Errorf("%d captures were handed over", now-handed)
	}
	if d != nil && len(d.Verdicts(tun.Server)) != verdicts {
		s.t.Error("there is a verdict on it")
	}
}

// captures returns how many captures the kernel has handed over or is filling.
func (s *scene) captures() uint64 {
	s.t.Helper()
	st := must(s.Status(s.ctx))(s.t)
	return st.Counters["handed_full"] + st.Counters["handed_closed"] + st.Counters["handed_idle"] + uint64(st.Flows.Collecting)
}

// What has an end in a network of the allow-list is not captured, and passes; with exempt: false it is judged.
func TestExemptNetworksAreNotCaptured(t *testing.T) {
	t.Parallel()
	s := newScene(t, lab.Config{})
	tun := must(s.StartShadowsocks(s.ctx, lab.ShadowsocksConfig{}))(t)
	rules := must(os.ReadFile(s.policy("enforce", "10m")))(t)
	allow := func(exempt string) string {
		return s.file("allow.yaml", string(rules)+fmt.Sprintf("allow: [{cidr: %s/32%s}]\n", tun.Server.Addr(), exempt))
	}
	file := allow("")
	d := s.attach("--policy", file)
	s.complete("an exempt download", s.download(tun))
	st := must(s.Status(s.ctx))(t)
	if n := len(d.Verdicts(tun.Server)); n != 0 || s.captures() != 0 || st.Counters["exempt_flows"] == 0 {
		t.Errorf("%d verdicts, counters %v", n, st.Counters)
	}
	allow(", exempt: false")
	must(s.Earlydrop(s.ctx, "reload"))(t)
	s.complete("a download that is judged", s.download(tun))
	if v := must(d.Verdict(s.ctx, tun.Server, 0))(t); v.Decision != "pass" || v.Reason != policy.ReasonAllowList {
		t.Errorf("judged: %s", v.Text(true))
	}
	s.stop(d)
}

// A flow whose block somebody has lifted goes on to its end, whatever verdict comes.
func TestLiftedFlowGoesOn(t *testing.T) {
	t.Parallel()
	s := newScene(t, lab.Config{ServerLink: slow})
	d := s.enforce()
	tr, v := s.blockedDownload(d)
	must(s.Earlydrop(s.ctx, "blocked", "del", "-i", rig.Device, "tcp", v.Src.String(), v.Dst.String()))(t)
	s.complete("the download after the block", tr)
	if blocks := must(s.Blocks(s.ctx))(t); len(blocks) != 0 {
		t.Errorf("blocks %+v", blocks)
	}
	for _, other := range d.Verdicts(tr.tunnel.Server) {
		if other.Src == v.Src && other != v && (other.Decision != "pass" || other.Reason != policy.ReasonExempt) {
			t.Errorf("judged again: %s", other.Text(true))
		}
	}
	s.stop(d)
}

// Behind an interface where connections leave with its own addresses, all hosts are one
// initiator: a pair would be all of them.
func TestPairsAreRefusedBehindMasquerade(t *testing.T) {
	t.Parallel()
	s := newScene(t, lab.Config{})
	name := append([]byte(rig.Device), make([]byte, 16-len(rig.Device))...)
	err := s.Gateway.Do(func() error {
		c, err := nftables.New()
		if err != nil {
			return err
		}
		table := c.AddTable(&nftables.Table{Family: nftables.TableFamilyIPv4, Name: "nat"})
		chain := c.AddChain(&nftables.Chain{Name: "post", Table: table, Type: nftables.ChainTypeNAT, Hooknum: nftables.ChainHookPostrouting, Priority: nftables.ChainPriorityNATSource})
		c.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: []expr.Any{
			&expr.Meta{Key: expr.MetaKeyOIFNAME, Register: 1}, &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: name}, &expr.Masq{}}})
		return c.Flush()
	})
	if err != nil {
		t.Fatal(err)
	}
	flows := "mode: monitor\nrules: [{name: r, class: shadowsocks, min_confidence: 0.9, action: drop, ttl: 1m}]\n"
	pairs := strings.Replace(flows, "ttl: 1m", "ttl: 1m, evidence: {flows: 3, share: 0.6, within: 1h}", 1)
	s.refused(t, []string{s.Binary(), "attach", "-i", rig.Device, "--policy", s.file("pairs.yaml", pairs)}, nil,
		[]string{"evidence", rig.Device, "masquerade", "ip nat", "attach to the interface of the clients' side: gw-"})
	s.clean()
	s.stop(s.attach("--policy", s.file("flows.yaml", flows)))
	// The built-in policy goes without.
	d := s.attach()
	s.stop(d)
	if text := d.Stderr(); strings.Count(text, "the built-in policy treats flows alone here") != 1 || !strings.Contains(text, "pairs can be had at the interface of the clients' side: gw-") {
		t.Errorf("attach says:\n%s", text)
	}
}
