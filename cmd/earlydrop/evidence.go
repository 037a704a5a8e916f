// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/earlydrop/earlydrop/cmd/earlydrop/event"
	"github.com/earlydrop/earlydrop/cmd/earlydrop/event/eventlog"
	"github.com/earlydrop/earlydrop/loader"
	"github.com/earlydrop/earlydrop/policy"
	"github.com/earlydrop/earlydrop/policy/evidence"
)

// stateVariable names another folder than /var/lib/earlydrop for what is known from one run to
// the next.
const stateVariable = "EARLYDROP_STATE"

var stateDir = cmp.Or(os.Getenv(stateVariable), "/var/lib/earlydrop")

// keepEvery is how often it is written: so much is lost when the program dies.
const keepEvery = 30 * time.Second

func evidenceFlag() cli.Flag {
	return &cli.StringFlag{Name: "evidence", Usage: "keep what is known of pairs in `FILE`, once there is something; an empty name: keep it nowhere", DefaultText: stateDir + "/INTERFACE.json", TakesFile: true}
}

// forInterfaces returns the policy as interfaces can have it. Where many hosts are one initiator,
// no pair must be treated: a policy that treats pairs is refused there, and the built-in one
// treats flows alone. Then told says so in a line, else it is empty.
func forInterfaces(p *policy.Policy, builtIn bool, interfaces []string) (_ *policy.Policy, told string, err error) {
	if !p.TreatsPairs() {
		return p, "", nil
	}
	for _, iface := range interfaces {
		m, found := loader.FindMasquerade(iface)
		if !found {
			continue
		}
		inside := "the interface of the clients' side"
		if len(m.Inside) > 0 {
			inside += ": " + strings.Join(m.Inside, " or ")
		}
		by := "nftables'"
		if m.Legacy {
			by = "iptables-legacy's"
		}
		why := fmt.Sprintf("behind %s all hosts are one initiator: %s table %q changes the source addresses of what leaves there (masquerade)", iface, by, m.Table)
		if builtIn {
			return p.WithoutEvidence(), fmt.Sprintf("the built-in policy treats flows alone here, and no pairs, as %s; pairs can be had at %s", why, inside), nil
		}
		return nil, "", badInput("the policy has a rule with evidence, which treats an initiator and a server together, but %s; attach to %s", why, inside)
	}
	return p, "", nil
}

// openEvidence returns what was known of pairs where iface is the first interface, and a function that keeps it in its file from
// now on, until ctx ends, which is to be called at most once. Whatever is wrong with the file
// is logged, and nothing is known then.
func openEvidence(c *cli.Context, iface string, events *eventlog.Log) (s *evidence.State, keep func(context.Context)) {
	s = evidence.New(evidence.Options{Alert: func(a evidence.Alert) {
		e := &event.LimitReached{Time: time.Now(), Interface: a.Source.Interface, Limit: a.Limit, Proven: a.Proven,
			Initiators: a.Initiators, Treated: a.Treated, Until: a.Until}
		events.Put(e)
		slog.Warn("a limit of the policy was reached: what rules do without evidence pauses", "limit", a.Limit, "proven", a.Proven,
			"interface", a.Source.Interface, "initiators", a.Initiators, "treated", a.Treated, "until", event.Clock(a.Until))
	}})
	path := c.String("evidence")
	if !c.IsSet("evidence") {
		path = filepath.Join(stateDir, iface+".json")
	}
	if path == "" {
		return s, func(context.Context) {}
	}
	if err := s.Load(path); err != nil {
		slog.Warn("what is known of pairs can't be read, so nothing is known of any", "error", err)
	}
	return s, func(ctx context.Context) {
		s.Keep(ctx, path, keepEvery, func(err error) {
			slog.Warn("what is known of pairs can't be written, and is lost at the end", "error", err)
		})
	}
}
