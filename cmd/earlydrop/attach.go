// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"math"
	"os"
	"os/signal"
	"time"

	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"

	"github.com/earlydrop/earlydrop/classifier"
	"github.com/earlydrop/earlydrop/loader"
	"github.com/earlydrop/earlydrop/policy"
)

func attachCommand() *cli.Command {
	return &cli.Command{
		Name:  "attach",
		Usage: "identify the connections of an interface and, if asked to, drop some of them",
		Description: `Runs in the foreground until SIGINT or SIGTERM and prints a line per verdict. In
mode monitor, the default, it drops nothing; in mode enforce the kernel drops
the flows that the policy's rules name. When the program dies, blocked flows
stay blocked and new flows pass; the next attach adopts what is there.

Examples:
   earlydrop attach -i eth0
   earlydrop attach -i eth0 --policy /etc/earlydrop/policy.yaml --mode enforce --quiet
   earlydrop attach -i eth0 --events /var/log/earlydrop.jsonl --persist
   earlydrop attach -i eth0 --json | jq 'select(.decision == "drop")'`,
		Flags: []cli.Flag{
			interfaceFlag(),
			&cli.StringFlag{Name: "policy", Usage: "read the policy from `FILE` instead of the built-in one (earlydrop policy default)"},
			&cli.StringFlag{Name: "model", Usage: "use the model `FILE`, or the shipped \"paper\", instead of the default"},
			&cli.StringFlag{Name: "mode", Usage: "`monitor` or enforce; overrides the policy's"},
			&cli.StringFlag{Name: "xdp", Value: string(loader.XDPAuto), Usage: "attach in the driver (native), in the stack (generic), or whichever works (`auto`)"},
			midStreamFlag(),
			udpIdleFlag(),
			&cli.DurationFlag{Name: "udp-warmup", Value: loader.DefaultUDPWarmup, DefaultText: shortDuration(loader.DefaultUDPWarmup),
				Usage: "take UDP flows that are new within `TIME` of the first attach for resumed ones, as they may have been open before; 0: none"},
			&cli.StringFlag{Name: "device", Value: "cpu", Usage: "classify on `cpu` or cuda:N"},
			&cli.StringFlag{Name: "events", Usage: "append one JSON object per event to `FILE`; - is standard output, instead of the text"},
			&cli.UintFlag{Name: "max-flows", Usage: "remember the verdicts of `N` flows; the least recently used make room", DefaultText: "262144, or as adopted"},
			&cli.UintFlag{Name: "max-blocked", Usage: "drop `N` flows at a time at most", DefaultText: "65536, or as adopted"},
			&cli.UintFlag{Name: "max-collecting", Usage: "capture `N` flows at a time; more pass unseen", DefaultText: "8192, or as adopted"},
			&cli.UintFlag{Name: "max-handshakes", Usage: "keep `N` TCP handshakes, rounded up to a power of two; old ones make room", DefaultText: "65536, or as adopted"},
			&cli.BoolFlag{Name: "persist", Usage: "leave the data path attached at the end: blocked flows stay blocked"},
			&cli.BoolFlag{Name: "json", Usage: "the same as --events -"},
			&cli.BoolFlag{Name: "quiet", Aliases: []string{"q"}, Usage: "print no verdicts that pass"},
			&cli.BoolFlag{Name: "verbose", Usage: "print more of each verdict: scores, reason, model, latency"},
		},
		Action: attach,
	}
}

func interfaceFlag() cli.Flag {
	return &cli.StringFlag{Name: "interface", Aliases: []string{"i"}, Usage: "network `INTERFACE`"}
}

// midStreamFlag says what becomes of TCP flows that were open before, the same for
// live traffic and for files.
func midStreamFlag() cli.Flag {
	return &cli.StringFlag{Name: "mid-stream", Value: "ignore", Usage: "`ignore` TCP flows seen without their SYN, or capture them from their next payload byte on"}
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
	return &cli.DurationFlag{Name: "udp-idle", Value: loader.DefaultUDPIdle, DefaultText: shortDuration(loader.DefaultUDPIdle),
		Usage: "capture a UDP flow that is decided again after `TIME` of silence, as a resumed one, which only rules with mid_stream: true take"}
}

func udpIdle(c *cli.Context) (time.Duration, error) {
	d := c.Duration("udp-idle")
	if d < time.Second {
		return 0, badInput("--udp-idle %s: use 1s or more", d)
	}
	return d, nil
}

// udpWarmup returns what --udp-warmup is for the loader.
func udpWarmup(c *cli.Context) (time.Duration, error) {
	d := c.Duration("udp-warmup")
	switch {
	case d < 0:
		return 0, badInput("--udp-warmup %s: use 0 or more", d)
	case d == 0:
		return -1, nil
	}
	return d, nil
}

func attach(c *cli.Context) error {
	if err := errors.Join(requireFlags(c, "interface"), requireArgs(c, 0, 0, "")); err != nil {
		return err
	}
	xdp, err := loader.ParseXDPMode(c.String("xdp"))
	if err != nil {
		return asBadInput(err)
	}
	midStream, err := parseMidStream(c.String("mid-stream"))
	if err != nil {
		return err
	}
	idle, err := udpIdle(c)
	if err != nil {
		return err
	}
	warmup, err := udpWarmup(c)
	if err != nil {
		return err
	}
	if c.Bool("quiet") && c.Bool("verbose") {
		return badInput("--quiet and --verbose exclude each other")
	}
	sizes, err := tableSizes(c)
	if err != nil {
		return err
	}
	// Everything that can be wrong is found before anything is attached.
	name, onnx, err := readModel(c.String("model"))
	if err != nil {
		return err
	}
	engine, err := openEngine(name, onnx, classifier.Options{Device: c.String("device")})
	if err != nil {
		return err
	}
	defer engine.Close()
	manifest := engine.Manifest()
	pol, err := loadPolicy(c.String("policy"), policyModel(manifest))
	if err != nil {
		return err
	}
	mode := pol.Mode
	if c.IsSet("mode") {
		if mode, err = policy.ParseMode(c.String("mode")); err != nil {
			return asBadInput(err)
		}
	}
	out, err := openSinks(c)
	if err != nil {
		return err
	}
	defer out.close()

	// From here on a signal ends the program in order, not at once. A reader of
	// standard output that ends (attach --json | head) must not end it either: that
	// would be a crash, which leaves everything attached.
	signal.Ignore(unix.SIGPIPE)
	ctx, stop := signal.NotifyContext(c.Context, unix.SIGINT, unix.SIGTERM)
	defer stop()
	model := manifest.Name + " " + manifest.Version
	policyName := c.String("policy")
	if policyName == "" {
		policyName = "built-in"
	}
	dp, err := loader.Attach(loader.Options{
		Interface: c.String("interface"),
		XDPMode:   xdp,
		MidStream: midStream,
		UDPIdle:   idle,
		UDPWarmup: warmup,
		Monitor:   mode == policy.Monitor,
		Sizes:     sizes,
		Version:   programVersion(),
		Model:     model,
		Policy:    policyName,
	})
	if err != nil {
		out.uncreate()
		return fromLoader(err)
	}
	d := &daemon{
		dp: dp, engine: engine, policy: pol, mode: mode,
		model: model, out: out, started: time.Now(),
	}
	out.attached(d, policyName)
	runErr := d.run(ctx)
	// The summary needs the maps, so it comes before they go.
	summary := d.summary()
	if c.Bool("persist") {
		err = dp.Release()
	} else {
		err = dp.Detach()
	}
	out.ended(summary, c.Bool("persist") && err == nil)
	return errors.Join(runErr, err)
}

// tableSizes reads the flags --max-...; one that is not given is 0.
func tableSizes(c *cli.Context) (loader.Sizes, error) {
	var s loader.Sizes
	for name, to := range map[string]*uint32{
		"max-flows": &s.Flows, "max-blocked": &s.Blocked, "max-collecting": &s.Collecting, "max-handshakes": &s.Handshakes,
	} {
		n := c.Uint(name)
		if c.IsSet(name) && n == 0 || n > math.MaxUint32 {
			return s, badInput("--%s %d: use a positive number below 2^32", name, n)
		}
		*to = uint32(n)
	}
	return s, nil
}

func detachCommand() *cli.Command {
	return &cli.Command{
		Name:  "detach",
		Usage: "remove programs, maps and blocks from an interface",
		Description: `Ends the process that holds the interface, if there is one, and leaves nothing
behind: no program, no map, no pin. Blocked flows pass again.

Example:
   earlydrop detach -i eth0`,
		Flags: []cli.Flag{interfaceFlag()},
		Action: func(c *cli.Context) error {
			if err := errors.Join(requireFlags(c, "interface"), requireArgs(c, 0, 0, "")); err != nil {
				return err
			}
			if err := loader.Detach(c.String("interface"), true); err != nil {
				return fromLoader(err)
			}
			fmt.Fprintf(c.App.Writer, "detached from %s\n", c.String("interface"))
			return nil
		},
	}
}

// openSinks opens what the flags --events, --json, --quiet and --verbose ask for.
func openSinks(c *cli.Context) (*sinks, error) {
	s := &sinks{quiet: c.Bool("quiet"), verbose: c.Bool("verbose"), stderr: c.App.ErrWriter}
	path := c.String("events")
	if c.Bool("json") {
		if path != "" && path != "-" {
			// Lines on standard output and in the file.
			s.json = append(s.json, c.App.Writer)
		} else {
			path = "-"
		}
	}
	switch path {
	case "":
	case "-":
		s.json = append(s.json, c.App.Writer)
	default:
		if _, err := os.Lstat(path); errors.Is(err, os.ErrNotExist) {
			s.created = path
		}
		f, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o640)
		if err != nil {
			return nil, badInput("open the event file: %w", err)
		}
		s.closers = append(s.closers, f)
		s.json = append(s.json, f)
	}
	if !c.Bool("json") && path != "-" {
		s.text = c.App.Writer
	}
	s.start()
	return s, nil
}
