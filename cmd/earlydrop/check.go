// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"errors"
	"fmt"
	"io"

	"github.com/prometheus/procfs"
	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"

	"github.com/earlydrop/earlydrop/classifier/onnx"
	"github.com/earlydrop/earlydrop/cmd/earlydrop/event"
	"github.com/earlydrop/earlydrop/cmd/earlydrop/gateway"
	"github.com/earlydrop/earlydrop/loader"
)

func checkCommand() *cli.Command {
	return &cli.Command{
		Name:  "check",
		Usage: "say what would go well, and what would not, if an interface were attached",
		Description: `Changes nothing. Each line is ok, a warning (attach works, but something is not as an
operator would expect) or a failure (it does not work), with what to do about it.

Exit codes: 0 there is no failure, 1 there is one, 2 bad input.

Examples:
   earlydrop check -i eth0
   earlydrop check -i eth0 --policy /etc/earlydrop/policy.yaml`,
		Flags: []cli.Flag{
			interfaceFlag(),
			&cli.StringFlag{Name: "policy", Usage: "the policy `FILE` (default: the built-in one)", TakesFile: true},
			&cli.StringFlag{Name: "model", Usage: "the model `FILE`, or the shipped \"paper\" (default: the shipped compact one)", TakesFile: true},
			deviceFlag(),
		},
		Action: check,
	}
}

// findings are printed as they are found.
type findings struct {
	out    io.Writer
	failed int
}

func (f *findings) say(state, what, format string, args ...any) {
	fmt.Fprintf(f.out, "%-8s %-13s %s\n", state, what, oneLine(fmt.Sprintf(format, args...)))
}

func (f *findings) ok(what, format string, args ...any) { f.say("ok", what, format, args...) }

func (f *findings) warn(what, format string, args ...any) { f.say("warning", what, format, args...) }

func (f *findings) fail(what string, err error) {
	f.failed++
	f.say("FAILURE", what, "%v", err)
}

func check(c *cli.Context) error {
	if err := errors.Join(requireFlags(c, "interface"), requireArgs(c, 0, 0, "")); err != nil {
		return err
	}
	name := c.String("interface")
	survey, err := loader.Look(name, loader.Sizes{})
	if err != nil {
		return fromLoader(err)
	}
	f := &findings{out: c.App.Writer}
	checkMachine(f)
	checkInterface(f, name, survey)
	checkMemory(f, survey.Memory)
	checkDecisions(f, c)
	checkClock(f)
	if f.failed > 0 {
		return fmt.Errorf("%d of these would keep earlydrop from working on %s", f.failed, name)
	}
	return nil
}

// checkMachine looks at what does not depend on the interface.
func checkMachine(f *findings) {
	var uname unix.Utsname
	_ = unix.Uname(&uname)
	for _, r := range loader.Requirements() {
		switch {
		case r.Err != nil:
			f.fail(r.Name, fromLoader(r.Err))
		case r.Name == "kernel":
			f.ok(r.Name, "Linux %s has all that is needed", unix.ByteSliceToString(uname.Release[:]))
		default:
			f.ok(r.Name, "all that are needed")
		}
	}
	switch {
	case loader.PrivatePins():
		f.warn("pins", "the BPF file system is of this mount namespace alone, or will be; %s", enterInstead("attach"))
	case !loader.HaveBPFFS():
		f.warn("pins", "no BPF file system at /sys/fs/bpf: attach mounts it, if root runs it")
	default:
		f.ok("pins", "the BPF file system is mounted")
	}
	if err := gateway.TryRealTime(); err != nil {
		f.warn("threads", "readers are ordinary threads, so verdicts come later while the machine is busy: %v; RLIMIT_RTPRIO of 1 allows it", err)
	} else {
		f.ok("threads", "readers may come before ordinary threads")
	}
}

func checkInterface(f *findings, name string, s *loader.Survey) {
	driver := s.Driver
	if driver == "" {
		driver = "unknown"
	}
	if s.Up {
		f.ok("interface", "%s is up, driver %s, MTU %d", name, driver, s.MTU)
	} else {
		f.warn("interface", "%s is down, nothing passes it: ip link set %[1]s up", name)
	}
	switch {
	case s.Attached:
		f.ok("ingress", "an earlydrop is attached to %s: a daemon that is gone is adopted by the next attach", name)
	case s.Occupied != nil && s.Occupied.Own:
		f.fail("ingress", fromLoader(s.Occupied))
	case s.Ingress == string(loader.IngressXDP) && s.NativeXDP == nil:
		f.ok("ingress", "attach tries XDP in the driver, and takes tcx where there is none, which can't be told before Linux 6.3")
	default:
		f.ok("ingress", "attach takes %s: %s", s.Ingress, s.IngressWhy)
	}
	if s.HiddenVLANs {
		f.warn("VLANs", "%s takes VLAN tags out of received frames, so that the two directions of tagged flows don't match: ethtool -K %[1]s rxvlan off rx-vlan-stag-hw-parse off", name)
	} else {
		f.ok("VLANs", "no tag is hidden")
	}
	info := s.Info
	info.PrivatePins = false // told of
	seen := warnings(name, info)
	for _, text := range seen {
		f.warn("traffic", "%s", text)
	}
	if len(seen) == 0 {
		f.ok("traffic", "nothing is known to go past the programs")
	}
}

// checkMemory compares what the tables take with what there is.
func checkMemory(f *findings, need uint64) {
	proc, err := procfs.NewDefaultFS()
	if err == nil {
		var m procfs.Meminfo
		if m, err = proc.Meminfo(); err == nil && m.MemAvailableBytes == nil {
			err = errors.New("the kernel does not say what is available")
		}
		if err == nil {
			switch there := *m.MemAvailableBytes; {
			case need > there:
				f.fail("memory", fmt.Errorf("the tables take %s of kernel memory, and %s is available: attach with smaller tables (the flags --max-…)", event.ByteCount(need), event.ByteCount(there)))
			case need > there/4:
				f.warn("memory", "the tables take %s of kernel memory, of %s that is available", event.ByteCount(need), event.ByteCount(there))
			default:
				f.ok("memory", "the tables take %s of kernel memory, of %s that is available", event.ByteCount(need), event.ByteCount(there))
			}
			return
		}
	}
	f.warn("memory", "the tables take %s of kernel memory; what is available can't be read: %v", event.ByteCount(need), err)
}

// checkDecisions opens the model, which runs its self-check, and reads the policy.
func checkDecisions(f *findings, c *cli.Context) {
	name, data, err := readModel(c.String("model"))
	if err != nil {
		f.fail("model", err)
		return
	}
	engine, err := openEngine(name, data, onnx.Options{Device: c.String("device")})
	switch {
	case errors.Is(err, onnx.ErrLibrary):
		f.fail("ONNX Runtime", err)
		return
	case err != nil:
		f.fail("model", err)
		return
	}
	defer engine.Close()
	m := engine.Manifest()
	f.ok("model", "%s %s passes its self-check on %s", m.Name, m.Version, engine.Device())
	p, err := loadPolicy(c.String("policy"), policyModel(m))
	if err != nil {
		f.fail("policy", err)
		return
	}
	f.ok("policy", "%s, mode %s", cmp.Or(c.String("policy"), "built-in"), p.Mode)
}

// checkClock asks whether the time of events can be trusted.
func checkClock(f *findings) {
	state, err := unix.Adjtimex(&unix.Timex{})
	switch {
	case err != nil:
		f.warn("clock", "whether it is right can't be read: %v", err)
	case state == unix.TIME_ERROR:
		f.warn("clock", "nothing keeps it right, so the times of events may be wrong: install chrony or systemd-timesyncd")
	default:
		f.ok("clock", "it is kept right")
	}
}
