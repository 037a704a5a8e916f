// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"os/signal"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	"github.com/coreos/go-systemd/v22/journal"
	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"

	"github.com/earlydrop/earlydrop/classifier"
	"github.com/earlydrop/earlydrop/classifier/onnx"
	"github.com/earlydrop/earlydrop/cmd/earlydrop/event"
	"github.com/earlydrop/earlydrop/cmd/earlydrop/event/eventlog"
	"github.com/earlydrop/earlydrop/cmd/earlydrop/gateway"
	"github.com/earlydrop/earlydrop/loader"
	"github.com/earlydrop/earlydrop/loader/flow"
	"github.com/earlydrop/earlydrop/policy"
)

func attachCommand() *cli.Command {
	least, most := loader.SizeBounds()
	return &cli.Command{
		Name:  "attach",
		Usage: "identify the connections of an interface and, if asked to, drop some of them",
		Description: `Runs in the foreground until SIGINT or SIGTERM and prints a line per verdict. In
mode monitor, the default, it drops nothing; in mode enforce the kernel drops
the flows that the policy's rules name. When the program dies, blocked flows
stay blocked and new flows pass; the next attach adopts what is there.

-i may be repeated: one process, one policy and one stream of events serve all
interfaces, each with tables of its own. It attaches to all of them or to none. Where
one is removed while it runs, the others go on. With --wait it is attached to again
when it returns, by the name that was given, and those that are not there at the start
are waited for as well. A flow that crosses two of them is judged once, and dropped at
the first. Between the interfaces of a --group flows move: these share their tables.

SIGHUP opens the event file again, so that logrotate can rename it, and reloads the
policy (earlydrop reload --help says what that does). A terminal that is closed does not
end the program.

An event is one JSON object on a line: attached, waiting (--wait), verdict,
block_ended, pair_treated, pair_ended, left_out (in passes_left_out what --events-pass left
out since the last one, every 10 s), mode_changed, reloaded, device_failed, disagreed or ended.
A verdict says

   class            what the model calls the flow; unknown if no label is likely enough
   likeliest        its likeliest label; confidence is the probability of that one
   scores           the probability of each label
   rule, reason     the rule that was asked, and why the flow is dropped or passes
   rule_confidence  the probability that it is of one of the rule's classes
   rule_classes     those of the rule's classes that this comes from
   detected         it was enough for a rule, even if the flow passes by an exception
   decision         pass, drop or log; enforced if the kernel drops it, error if it can't
   scope            pair if it is about all flows of the initiator to this server and port
   start            the time of the flow's first packet, in UTC
   packets, bytes   what the verdict was made from: the captured packets, and their
                    length on the wire

The class of block_ended is that of the map: the likeliest of the rule's classes.

TCP flows that are open already are left alone. With --mid-stream capture they are
captured from their middle, where models err: they mistake 83 % of open HTTPS
downloads for tunnels (200 of 240 in the lab; the manual's page about policies has
more). So only rules that say mid_stream: true drop them, and mode enforce needs such
a rule then. Their verdicts
have mid_stream: true.

Examples:
   earlydrop attach -i eth0
   earlydrop attach -i eth0 --policy /etc/earlydrop/policy.yaml --mode enforce --quiet
   earlydrop attach -i eth0 -i eth1
   earlydrop attach -i lan0 --group wan0,wan1
   earlydrop attach --config /etc/earlydrop/attach.yaml
   earlydrop attach -i eth0 --events /var/log/earlydrop.jsonl --persist
   earlydrop attach -i eth0 --json | jq 'select(.decision == "drop")'`,
		Flags: slices.Concat([]cli.Flag{
			&cli.StringFlag{Name: "config", Usage: "read settings from `FILE`: YAML, with the long names of these flags as keys; flags override them"},
			listFlag{&cli.StringSliceFlag{Name: "interface", Aliases: []string{"i"}, Usage: "network `INTERFACE`; may be repeated"}},
			listFlag{&cli.StringSliceFlag{Name: "group", Usage: "`INTERFACES` between which flows move, such as uplinks (wan0,wan1): they share tables; may be repeated"}},
			&cli.StringFlag{Name: "policy", Usage: "read the policy from `FILE` instead of the built-in one (earlydrop policy default)", TakesFile: true},
			&cli.StringFlag{Name: "model", Usage: "use the model `FILE`, or the shipped \"paper\", instead of the default", TakesFile: true},
			&cli.StringFlag{Name: "shadow", Usage: "judge with the model `FILE` as well, when there is time, and tell where the two disagree; nothing else comes of it", TakesFile: true},
			&cli.StringFlag{Name: "mode", Usage: "`monitor` or enforce; overrides the policy's"},
			&cli.StringFlag{Name: "ingress", Value: string(loader.IngressAuto), Usage: "see what comes in by xdp or tcx; `auto` takes xdp where a network card's driver loses no offload by it, tcx elsewhere, and keeps what it adopts"},
			&cli.StringFlag{Name: "xdp", Value: string(loader.XDPAuto), Usage: "take XDP on ingress, in the driver (native) or in front of the stack (generic); where --ingress says xdp, `auto` tries both"},
			midStreamFlag(),
			udpIdleFlag(),
			spanFlag("udp-warmup", "count UDP flows that are new within `TIME` of the first attach as resumed ones, as they may have been open before; 0: none", loader.DefaultUDPWarmup, 0),
			&cli.BoolFlag{Name: "one-hook", Usage: "expect both directions at one hook, as at a mirror port or a one-armed router; to enforce, the policy has to say one_hook: true"},
			oneWayFlag(),
			sizeFlag("pending", "let `SIZE` of a TCP connection that begins with random bytes pass until its verdict, in mode enforce; more is dropped for at most 5 ms, and TCP sends it again; 0: let all pass", loader.DefaultPending, loader.MaxPending),
			deviceFlag(),
			&cli.StringFlag{Name: "events", Usage: "append one JSON object per event to `FILE`; - is standard output, instead of the text", TakesFile: true},
			&cli.BoolFlag{Name: "journal", Usage: "send events to systemd's journal as well, with fields such as EARLYDROP_RULE"},
			&cli.StringFlag{Name: "events-pass", Value: "all", Usage: "of the verdicts on undetected flows write `all`, none, so many per second (100/s) or a share (1/100)"},
			numberFlag("max-flows", "remember the verdicts of `N` flows; the least recently used make room", "262144, or as adopted", uint64(least.Flows), uint64(most.Flows)),
			numberFlag("max-blocked", "drop `N` flows at a time at most", "65536, or as adopted", uint64(least.Blocked), uint64(most.Blocked)),
			numberFlag("max-collecting", "capture `N` flows at a time; more pass unseen", "8192, or as adopted", uint64(least.Collecting), uint64(most.Collecting)),
			numberFlag("max-handshakes", "keep `N` TCP handshakes, rounded up to a power of two; old ones make room", "65536, or as adopted", uint64(least.Handshakes), uint64(most.Handshakes)),
			evidenceFlag(),
			metricsFlag(),
			&cli.BoolFlag{Name: "persist", Usage: "leave the data path attached at the end: blocked flows stay blocked"},
			&cli.BoolFlag{Name: "wait", Usage: "wait for interfaces that are not there, or that are removed while it runs, and attach to each as soon as it appears"},
			controlFlag("answer status, blocked, events and others at the unix socket `PATH`; none: nowhere"),
			&cli.BoolFlag{Name: "json", Usage: "the same as --events -"},
			&cli.BoolFlag{Name: "quiet", Aliases: []string{"q"}, Usage: "print no verdicts that pass"},
			&cli.BoolFlag{Name: "verbose", Usage: "print more of each verdict: scores, reason, model, latency"},
		}, historyFlags()),
		Action: attach,
	}
}

func interfaceFlag() cli.Flag {
	return &cli.StringFlag{Name: "interface", Aliases: []string{"i"}, Usage: "network `INTERFACE`"}
}

// midStreamFlag says what becomes of TCP flows that were open before, the same for
// live traffic and for files.
func midStreamFlag() cli.Flag {
	return &cli.StringFlag{Name: "mid-stream", Value: "ignore", Usage: "`ignore` TCP flows seen without their SYN, or capture them from their next payload byte on; only rules with mid_stream: true treat these"}
}

func parseMidStream(s string) (capture bool, err error) {
	switch s {
	case "ignore":
		return false, nil
	case "capture":
		return true, nil
	}
	return false, badInput("unknown mid-stream policy %q: use ignore or capture", s)
}

// udpIdleFlag says when a silent UDP flow is looked at again, the same for live traffic
// and for files.
func udpIdleFlag() cli.Flag {
	return spanFlag("udp-idle", "after `TIME` of silence capture a decided UDP flow once more, as a resumed one, which only rules with mid_stream: true treat", loader.DefaultUDPIdle, time.Second)
}

// oneWayFlag says what becomes of TCP connections of which one direction is seen, the
// same for live traffic and for files.
func oneWayFlag() cli.Flag {
	return &cli.BoolFlag{Name: "one-way", Usage: "also capture TCP connections of which one direction alone is seen (asymmetric routing); only rules with one_way: true treat them"}
}

func attach(c *cli.Context) error {
	if err := errors.Join(requireArgs(c, 0, 0, ""), readSettings(c)); err != nil {
		return err
	}
	if !c.IsSet("interface") && !c.IsSet("group") {
		return requireFlags(c, "interface")
	}
	// Neither a terminal that is closed nor logrotate may end it, from the start.
	hangUp := make(chan os.Signal, 1)
	signal.Notify(hangUp, unix.SIGHUP)
	defer signal.Stop(hangUp)
	// The garbage of the start is collected when it is over: meanwhile it would take some 5 ms.
	percent := debug.SetGCPercent(400)
	defer debug.SetGCPercent(percent)
	// Everything that can be wrong is found before anything is attached.
	events, err := logConfig(c)
	if err != nil {
		return err
	}
	config, err := gatewayConfig(c)
	if err != nil {
		return err
	}
	defer config.Engine.Close() // where nothing is attached
	if config.Shadow != nil {
		defer config.Shadow.Close()
	}
	if config.Events, err = eventlog.Open(*events); err != nil {
		return asBadInput(err)
	}
	defer config.Events.Close()
	defer config.Events.ReopenOn(hangUp)()

	// From here on a signal ends the program in order, not at once. A reader of
	// standard output that ends (attach --json | head) must not end it either: that
	// would be a crash, which leaves everything attached.
	signal.Ignore(unix.SIGPIPE)
	ctx, stop := signal.NotifyContext(c.Context, unix.SIGINT, unix.SIGTERM)
	defer stop()
	config.Attached = func(iface string, info loader.Info) { config.Events.Say(attachedText(iface, info, config)) }
	config.Ended = func(sum gateway.Summary) { config.Events.Say(endedText(sum)) }
	others, err := openServices(c, config)
	if err != nil {
		config.Events.Uncreate()
		return err
	}
	defer others.close()
	g, err := gateway.New(*config)
	if err != nil {
		config.Events.Uncreate()
		return fromLoader(err)
	}
	debug.SetGCPercent(percent)
	config.Events.Say(beginText(config))
	others.start(g, config.Events)
	giveUpRights(config.Engine.Device())
	returnCode()
	sums, err := g.Run(ctx)
	if len(sums) > 1 {
		config.Events.Say(totalText(sums))
	}
	var broken *gateway.BrokenError
	if errors.As(err, &broken) {
		return fmt.Errorf("%w (attach adopts it)", err)
	}
	return err
}

// logConfig reads the flags about events: --events, --json, --quiet and so on.
func logConfig(c *cli.Context) (*eventlog.Config, error) {
	passes, err := eventlog.ParsePasses(c.String("events-pass"))
	if err != nil {
		return nil, badInput("--events-pass %w", err)
	}
	if c.Bool("quiet") && c.Bool("verbose") {
		return nil, badInput("--quiet and --verbose exclude each other")
	}
	config := &eventlog.Config{Notes: c.App.ErrWriter, Quiet: c.Bool("quiet"), Verbose: c.Bool("verbose"), Passes: passes, Journal: c.Bool("journal")}
	path := c.String("events")
	if c.Bool("json") || path == "-" {
		config.JSON = c.App.Writer // for machines
	} else if there, _ := journal.StdoutIsJournalStream(); !there || !config.Journal { // else each would be there twice
		config.Text = c.App.Writer
	}
	if path != "-" {
		config.File = path
	}
	return config, nil
}

// gatewayConfig reads all other flags, opens the model and reads the policy.
func gatewayConfig(c *cli.Context) (_ *gateway.Config, err error) {
	config := new(gateway.Config)
	pairsTold := "" // of forInterfaces
	*config = gateway.Config{
		PolicyName: cmp.Or(c.String("policy"), "built-in"), Persist: c.Bool("persist"), Wait: c.Bool("wait"),
		Advise: func(iface string, counters map[string]uint64) []string {
			return sidesAdvice(iface, counters, c.Bool("one-hook"), c.Bool("one-way"))
		},
		Explain: fromLoader, ModeFixed: c.IsSet("mode"), MonitorOnly: monitorOnly,
		LoadPolicy: func(m *classifier.Manifest) (*policy.Policy, error) {
			p, err := loadPolicy(c.String("policy"), policyModel(m))
			if err != nil {
				return nil, err
			}
			p, told, err := forInterfaces(p, c.String("policy") == "", namesOf(config.Attach))
			if told != "" && told != pairsTold { // not at each reload
				slog.Warn(told)
			}
			pairsTold = told
			return p, err
		},
		LoadModel: func(name string) (*classifier.Network, error) {
			return loadNetwork(name, onnx.Options{Device: c.String("device")})
		},
	}
	if config.Attach, err = attachOptions(c); err != nil {
		return nil, err
	}
	loader.Prepare(config.Attach[0]) // while the model is opened
	name, data, err := readModel(c.String("model"))
	if err != nil {
		return nil, err
	}
	if config.Engine, err = openEngine(name, data, onnx.Options{Device: c.String("device")}); err != nil {
		return nil, err
	}
	config.Policy, err = config.LoadPolicy(config.Engine.Manifest())
	if err == nil {
		config.Mode, err = chooseMode(c, config.Policy, config.Attach)
	}
	if err == nil && c.IsSet("shadow") {
		config.Shadow, err = openShadow(c)
	}
	if err != nil {
		return nil, errors.Join(err, config.Engine.Close())
	}
	return config, nil
}

// openShadow opens the second model. One worker and a short queue are enough for what has the
// time that is left.
func openShadow(c *cli.Context) (*classifier.Engine, error) {
	name, data, err := readModel(c.String("shadow"))
	if err != nil {
		return nil, err
	}
	return openEngine(name, data, onnx.Options{Device: c.String("device"), Workers: 1, Queue: 256})
}

// attachOptions reads the flags about the interfaces and their tables.
func attachOptions(c *cli.Context) ([]loader.Options, error) {
	o := loader.Options{
		UDPIdle:   spanOf(c, "udp-idle"),
		UDPWarmup: spanOf(c, "udp-warmup"),
		OneHook:   c.Bool("one-hook"),
		OneWay:    c.Bool("one-way"),
		Pending:   int(sizeOf(c, "pending")),
		Sizes:     tableSizes(c),
		Version:   programVersion(),
	}
	if o.UDPWarmup == 0 {
		o.UDPWarmup = -1 // to the loader, 0 is the default
	}
	if o.Pending == 0 {
		o.Pending = -1 // as well
	}
	var err error
	if o.Ingress, err = loader.ParseIngress(c.String("ingress")); err != nil {
		return nil, asBadInput(err)
	}
	if o.XDPMode, err = loader.ParseXDPMode(c.String("xdp")); err != nil {
		return nil, asBadInput(err)
	}
	if o.Ingress == loader.IngressTCX && o.XDPMode != loader.XDPAuto {
		return nil, badInput("--ingress %s and --xdp %s exclude one another: leave one out", o.Ingress, o.XDPMode)
	}
	if o.MidStream, err = parseMidStream(c.String("mid-stream")); err != nil {
		return nil, err
	}
	var all []loader.Options
	given := map[string]bool{}
	add := func(flag, name string, group *loader.Group) error {
		if given[name] {
			return badInput("--%s %q is given twice: keep one of them", flag, name)
		}
		given[name] = true
		o.Interface, o.Group = name, group
		all = append(all, o)
		return nil
	}
	for _, name := range c.StringSlice("interface") {
		if err := add("interface", name, nil); err != nil {
			return nil, err
		}
	}
	for _, names := range c.StringSlice("group") {
		members, err := parseGroup(names)
		if err != nil {
			return nil, badInput("--group %q: %w", names, err)
		}
		group := loader.NewGroup(members...)
		for _, name := range members {
			if err := add("group", name, group); err != nil {
				return nil, err
			}
		}
	}
	return all, nil
}

// namesOf returns the names of the interfaces.
func namesOf(all []loader.Options) (names []string) {
	for _, o := range all {
		names = append(names, o.Interface)
	}
	return names
}

// parseGroup reads the names of interfaces that share flows.
func parseGroup(s string) ([]string, error) {
	names := strings.Split(s, ",")
	if len(names) < 2 || slices.Contains(names, "") {
		return nil, errors.New("name two interfaces or more in one word, such as \"wan0,wan1\"")
	}
	return names, nil
}

// chooseMode returns the mode of --mode or of the policy, and refuses to enforce a policy
// that does not say what is to become of flows that prove little.
func chooseMode(c *cli.Context, p *policy.Policy, attach []loader.Options) (mode policy.Mode, err error) {
	mode = p.Mode
	if c.IsSet("mode") {
		if mode, err = policy.ParseMode(c.String("mode")); err != nil {
			return mode, asBadInput(err)
		}
	}
	for i := range attach {
		if why := monitorOnly(&attach[i], p); mode == policy.Enforce && why != "" {
			return mode, badInput("%s", why)
		}
	}
	return mode, nil
}

// tableSizes reads the flags --max-...; one that is not given is 0.
func tableSizes(c *cli.Context) loader.Sizes {
	return loader.Sizes{
		Flows:      uint32(numberOf(c, "max-flows")),
		Blocked:    uint32(numberOf(c, "max-blocked")),
		Collecting: uint32(numberOf(c, "max-collecting")),
		Handshakes: uint32(numberOf(c, "max-handshakes")),
	}
}

func detachCommand() *cli.Command {
	return &cli.Command{
		Name:  "detach",
		Usage: "remove programs, maps and blocks from an interface",
		Description: `Ends the process that holds the interface, if there is one, and leaves nothing
behind: no program, no map, no pin. Blocked flows pass again. A process that holds other
interfaces as well goes on with these.

Examples:
   earlydrop detach -i eth0
   earlydrop detach --all`,
		Flags: []cli.Flag{interfaceFlag(), &cli.BoolFlag{Name: "all", Usage: "from every interface that is attached"}},
		Action: func(c *cli.Context) error {
			if err := requireArgs(c, 0, 0, ""); err != nil {
				return err
			}
			names := []string{c.String("interface")}
			switch {
			case c.Bool("all") && c.IsSet("interface"):
				return badInput("--all and --interface exclude each other")
			case c.Bool("all"):
				all, err := loader.OpenAll()
				if err != nil {
					return fromLoader(err)
				}
				names = names[:0]
				for _, t := range all {
					names = append(names, t.Interface())
				}
				closeAll(all)
			default:
				if err := requireFlags(c, "interface"); err != nil {
					return err
				}
			}
			var failed []error
			for _, name := range names {
				if err := loader.Detach(name, true); err == nil {
					fmt.Fprintf(c.App.Writer, "detached from %s\n", name)
				} else if !c.Bool("all") || !errors.Is(err, loader.ErrNotAttached) {
					failed = append(failed, fromLoader(err))
				}
			}
			if len(names) == 0 {
				fmt.Fprintln(c.App.Writer, "nothing is attached"+seenFromHere())
			}
			return errors.Join(failed...)
		},
	}
}

// beginText tells what holds for every interface.
func beginText(c *gateway.Config) string {
	var text strings.Builder
	if c.Attach[0].OneHook {
		fmt.Fprintln(&text, oneHookProof)
	}
	if !c.Policy.TreatsUDP() {
		fmt.Fprintln(&text, policy.UDPNotTreated)
	} else {
		fmt.Fprintln(&text, "UDP flows are treated as rules say udp_unproven: true; who forges datagrams can have flows of others dropped")
	}
	return text.String()
}

// attachedText tells how the data path of an interface was attached.
func attachedText(iface string, info loader.Info, c *gateway.Config) string {
	m := c.Engine.Manifest()
	var text strings.Builder
	say := func(format string, args ...any) { fmt.Fprintf(&text, format+"\n", args...) }
	how, now := "attached", time.Now()
	if info.Adopted {
		how = "adopted"
	}
	ingress := info.Ingress
	if info.XDPMode != loader.XDPNone {
		ingress += " " + string(info.XDPMode)
	}
	say("%s  %s %s: ingress %s, egress %s, mode %s, policy %s, model %s, device %s",
		event.Clock(now), how, iface, ingress, info.Egress, c.Mode, c.PolicyName, m.Name+" "+m.Version, c.Engine.Device())
	say("ingress %s: %s", info.Ingress, info.IngressWhy)
	if info.XDPFallback != nil {
		say("native xdp is not possible on %s, so it is generic: %v", iface, info.XDPFallback)
	}
	if info.Replaced != "" {
		say("what was pinned was replaced: %s", info.Replaced)
	}
	if info.BlocksLost != nil {
		say("not all blocks fit into the new tables: %v", info.BlocksLost)
	}
	if stay := info.BlocksAdopted - info.BlocksHeld; stay > 0 {
		say("%d flows stay blocked", stay)
	}
	if info.PairsAdopted > 0 {
		say("%d treated pairs go on", info.PairsAdopted)
	}
	if info.BlocksRemoved > 0 {
		say("%d blocks removed: mode monitor drops nothing", info.BlocksRemoved)
	}
	if info.BlocksHeld > 0 {
		say("%d blocks by hand are suspended until mode enforce", info.BlocksHeld)
	}
	if info.HiddenVLANs {
		say("%s strips VLAN tags on receive, so the two directions of tagged flows don't match: ethtool -K %s rxvlan off rx-vlan-stag-hw-parse off", iface, iface)
	}
	if info.SharesWith != "" {
		say("flows and blocks are shared with %s", info.SharesWith)
	}
	say("tables: %s; %s of kernel memory", info.Sizes, event.ByteCount(info.Memory))
	say("maps: bpftool map dump pinned %s/blocked", info.PinDir)
	if info.NoResets != "" && c.Policy.Does(flow.Reset) {
		say("warning: where no RST can be sent, action reset is as drop: %s", info.NoResets)
	}
	for _, warning := range warnings(iface, info) {
		say("warning: %s", warning)
	}
	return text.String()
}

// endedText says what became of an interface.
func endedText(sum gateway.Summary) string {
	var text strings.Builder
	fmt.Fprintf(&text, "\n%s  %s after %s, mode %s\n", event.Clock(time.Now()), sum.Interface, sum.Took.Round(time.Millisecond), sum.Mode)
	sayCounted(&text, sum)
	if sum.Persisted {
		fmt.Fprintf(&text, "the data path stays attached to %s (earlydrop detach -i %s removes it)\n", sum.Interface, sum.Interface)
	} else {
		fmt.Fprintf(&text, "detached from %s\n", sum.Interface)
	}
	return text.String()
}

// totalText says what several interfaces come to together.
func totalText(sums []gateway.Summary) string {
	total := gateway.Total(sums)
	var text strings.Builder
	fmt.Fprintf(&text, "\n%s  all interfaces together after %s, mode %s\n", event.Clock(time.Now()), total.Took.Round(time.Millisecond), total.Mode)
	sayCounted(&text, total)
	return text.String()
}

func sayCounted(text *strings.Builder, sum gateway.Summary) {
	for _, class := range slices.Sorted(maps.Keys(sum.Classes)) {
		fmt.Fprintf(text, "  %-20s %10d flows\n", class, sum.Classes[class])
	}
	for _, c := range sum.Counters {
		fmt.Fprintf(text, "  %-20s %10d\n", c.Name, c.Value)
	}
}
