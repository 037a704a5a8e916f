// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/earlydrop/earlydrop/test/e2e/rig"
	"github.com/earlydrop/earlydrop/test/lab"
)

// peer is a program that can be put on the gateway, or nothing.
type peer struct {
	name string
	// cuts says that it is told to cut Shadowsocks.
	cuts bool
	// absent says in a line why it can't be measured here; it is empty if it can.
	absent string
	// start returns when what is to be forwarded from then on is looked at.
	start func(ctx context.Context, r *rig.Rig) (*running, error)
}

// running is a peer that runs. pid is 0 of nothing.
type running struct {
	pid  int
	stop func(ctx context.Context) error
}

// The port of iperf3, whose content looks like a tunnel's, is excepted from what is cut.
const peerPolicy = `allow:
  - port: %d
rules:
  - name: tunnels
    class: [shadowsocks, v2ray, obfs4]
    action: drop
    ttl: 10m
`

// peers are all, the one that the others are compared with first.
func (o options) peers(ctx context.Context, policy string) []peer {
	list := []peer{{name: nothing, start: func(context.Context, *rig.Rig) (*running, error) {
		return &running{stop: func(context.Context) error { return nil }}, nil
	}}}
	chooses := hasFlag(ctx, o.program, "ingress") // among hooks
	for _, hook := range []struct {
		name, ingress string
		args, before  []string
	}{{"XDP native", "xdp", []string{"--xdp", "native"}, nil}, {"XDP generic", "xdp", []string{"--xdp", "generic"}, nil}, {"TCX", "tcx", nil, nil},
		{"TCX, nothing waits", "tcx", []string{"--pending", "0"}, nil}, {"TCX, ordinary reader", "tcx", nil, readers[1].argv}} {
		args := append(hook.args, "--mode", "enforce", "--policy", policy, "--events-pass", "none")
		if chooses {
			args = append(args, "--ingress", hook.ingress)
		}
		argv := slices.Concat(hook.before, []string{o.program, "attach", "--json", "-i", rig.Device}, args)
		p := peer{name: "earlydrop, " + hook.name, cuts: true, start: func(ctx context.Context, r *rig.Rig) (*running, error) {
			d, err := r.Daemon(ctx, argv...)
			if err != nil {
				return nil, err
			}
			return &running{d.PID(), func(ctx context.Context) error {
				_, err := d.Stop(ctx)
				return err
			}}, nil
		}}
		if !chooses && hook.ingress != "xdp" {
			p.absent = o.program + " has no --ingress"
		}
		list = append(list, p)
	}
	return append(list, o.openGFW(), o.suricata())
}

// hasFlag reports whether attach of a program has a flag.
func hasFlag(ctx context.Context, program, flag string) bool {
	out, err := exec.CommandContext(ctx, program, "attach", "--help").CombinedOutput()
	return err == nil && strings.Contains(string(out), "--"+flag+" ")
}

// Numbers of queues to which the firewall hands packets. That of OpenGFW is built in.
const (
	openGFWQueue  = 100
	suricataQueue = 101
)

// openGFW blocks what is random from its first byte on (its analyzer fet). It sets the firewall
// up by itself: by iptables, as its PATH has no nft.
func (o options) openGFW() peer {
	p := peer{name: "OpenGFW", cuts: true, absent: given("opengfw", o.openGFWProgram)}
	p.start = func(ctx context.Context, r *rig.Rig) (*running, error) {
		dir, err := r.Subdir("opengfw")
		if err != nil {
			return nil, err
		}
		if err := writeFiles(dir, map[string]string{
			"config.yaml": "io:\n  queueSize: 1024\n  local: false\n",
			"rules.yaml":  fmt.Sprintf("- name: tunnels\n  action: block\n  expr: fet != nil && fet.yes && port.dst != %d\n", iperfPort),
		}); err != nil {
			return nil, err
		}
		for _, name := range []string{"iptables", "ip6tables"} {
			legacy, err := lab.Program(name + "-legacy")
			if err != nil {
				return nil, err
			}
			if err := os.Symlink(legacy, filepath.Join(dir, name)); err != nil && !errors.Is(err, os.ErrExist) {
				return nil, err
			}
		}
		return startQueued(ctx, r, openGFWQueue, []string{"PATH=" + dir},
			o.openGFWProgram, "-c", filepath.Join(dir, "config.yaml"), filepath.Join(dir, "rules.yaml"))
	}
	return p
}

// suricata is told of the connections that it has seen enough of to leave them alone (bypass).
// Without a file of rules it drops nothing.
func (o options) suricata() peer {
	p := peer{name: "Suricata", cuts: o.suricataRules != "", absent: given("suricata", o.suricataProgram)}
	p.start = func(ctx context.Context, r *rig.Rig) (*running, error) {
		dir, err := r.Subdir("suricata")
		if err != nil {
			return nil, err
		}
		rules := o.suricataRules
		if rules == "" {
			rules = os.DevNull
		}
		const mark = "0x1/0x1"
		// What it marks is a packet; the connection has the mark from then on.
		marking := [][]string{
			{"mangle", "PREROUTING", "-j", "CONNMARK", "--restore-mark"},
			{"mangle", "POSTROUTING", "-j", "CONNMARK", "--save-mark"},
			{"filter", "FORWARD", "-m", "mark", "!", "--mark", mark, "-j", "NFQUEUE", "--queue-num", fmt.Sprint(suricataQueue), "--queue-bypass"},
		}
		firewall := func(ctx context.Context, do string) error {
			var errs []error
			for _, rule := range marking {
				errs = append(errs, gatewayTool(ctx, r, slices.Concat([]string{"iptables-legacy", "-w", "-t", rule[0], do}, rule[1:])...))
			}
			return errors.Join(errs...)
		}
		if err := firewall(ctx, "-A"); err != nil {
			return nil, errors.Join(err, firewall(ctx, "-D")) // of those that are there
		}
		run, err := startQueued(ctx, r, suricataQueue, nil, o.suricataProgram, "-q", fmt.Sprint(suricataQueue), "-l", dir, "-S", rules,
			"-k", "none", // on veth, sums are left to a card that never comes
			"--set", "nfq.mode=accept", "--set", "nfq.bypass-mark=1", "--set", "nfq.bypass-mask=1", "--set", "stream.bypass=true")
		if err != nil {
			return nil, errors.Join(err, firewall(ctx, "-D"))
		}
		end := run.stop
		run.stop = func(ctx context.Context) error { return errors.Join(end(ctx), firewall(ctx, "-D")) }
		return run, nil
	}
	return p
}

// given says why a program can't be measured that has to be named, if it was not.
func given(option, program string) string {
	if program == "" {
		return fmt.Sprintf("its program was not named (-%s)", option)
	}
	if _, err := os.Stat(program); err != nil {
		return err.Error()
	}
	return ""
}

func writeFiles(dir string, files map[string]string) error {
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// startQueued starts a program on the gateway and waits until it takes packets out of a queue
// of the firewall.
func startQueued(ctx context.Context, r *rig.Rig, queue int, env []string, argv ...string) (*running, error) {
	p, err := r.Lab.StartEnv(r.Gateway, filepath.Base(argv[0]), env, argv...)
	if err != nil {
		return nil, err
	}
	stop := func(ctx context.Context) error {
		defer p.Stop()
		_ = p.Signal(unix.SIGTERM) // it takes its rules of the firewall away
		ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
		defer cancel()
		select {
		case <-p.Done():
		case <-ctx.Done():
		}
		return nil
	}
	limit, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	err = rig.Until(limit, func() (bool, error) {
		select {
		case <-p.Done():
			return false, fmt.Errorf("%s has ended: %s", argv[0], p.Output())
		default:
		}
		out, err := r.Run(limit, "cat", "/proc/net/netfilter/nfnetlink_queue")
		if err != nil {
			return false, err
		}
		for line := range strings.Lines(out.Stdout) {
			if fields := strings.Fields(line); len(fields) > 0 && fields[0] == fmt.Sprint(queue) {
				return true, nil
			}
		}
		return false, nil
	})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("%s takes no packets from queue %d: %w: %s", argv[0], queue, err, p.Output()), stop(ctx))
	}
	return &running{p.PID(), stop}, nil
}

// gatewayTool runs a program on the gateway; its failure is an error that quotes it.
func gatewayTool(ctx context.Context, r *rig.Rig, argv ...string) error {
	out, err := r.Run(ctx, argv...)
	if err == nil && out.Code != 0 {
		err = fmt.Errorf("%s: exit code %d: %s", strings.Join(argv, " "), out.Code, strings.TrimSpace(out.Stderr+out.Stdout))
	}
	return err
}
