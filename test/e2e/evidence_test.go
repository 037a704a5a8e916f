// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"encoding/json"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"

	"github.com/earlydrop/earlydrop/cmd/earlydrop/event"
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
	s.pairDropped(d, tun, n)
	s.saysWhy(tun, n+1)
	last := s.stop(d)
	if last.Counters["pairs_treated"] != 1 || last.Counters["pair_flows"] != 1 {
		t.Errorf("counters %v", last.Counters)
	}
	// The first connection that the next one sees is of a treated pair.
	d = s.attach(args...)
	s.pairDropped(d, tun, 0)
	s.stop(d)
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

// pairDropped makes sure that connection n to the tunnel is dropped as its pair is treated.
func (s *scene) pairDropped(d *rig.Daemon, tun *lab.Tunnel, n int) {
	s.t.Helper()
	tr := s.download(tun)
	defer tr.stop()
	v := must(d.Verdict(s.ctx, tun.Server, n))(s.t)
	if v.Decision != "drop" || v.Reason != policy.ReasonPair || v.Scope != "pair" || !*v.Enforced {
		s.t.Errorf("connection %d of a treated pair: %s", n, v.Text(true))
		return
	}
	s.stalled(tr, v)
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
}
