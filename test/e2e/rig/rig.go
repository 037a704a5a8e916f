// SPDX-License-Identifier: Apache-2.0

// Package rig runs the earlydrop program on the gateway of a lab, as an operator
// would, and tells what it leaves there.
//
// Each Rig has a BPF file system of its own, mounted at /sys/fs/bpf for the
// programs that run in it and for nobody else. So several labs can be used at the
// same time although their gateways' devices have the same names, and an
// earlydrop that protects the machine itself is left alone.
package rig

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/earlydrop/earlydrop/cmd/earlydrop/status"
	"github.com/earlydrop/earlydrop/test/lab"
)

// Device is the device of the gateway that earlydrop is attached to.
const Device = lab.GatewayClientDev

// PinDir is where the data path is pinned, for programs that run in the rig.
const PinDir = "/sys/fs/bpf/earlydrop/" + Device

// Rig runs programs on the gateway of its lab. Its methods may be called
// concurrently. It ends with the lab; there is no Close.
type Rig struct {
	*lab.Lab
	binary string
	holder *lab.Proc // keeps the mount namespace alive
}

// New gives a lab's gateway a BPF file system, and hides those of the machine. binary is the program's path, as
// Build returns it.
func New(ctx context.Context, l *lab.Lab, binary string) (*Rig, error) {
	holder, err := l.Start(l.Gateway, "mount namespace", "unshare", "--mount", "sh", "-c",
		"while umount --lazy /sys/fs/bpf 2>/dev/null; do :; done; mount -t bpf bpf /sys/fs/bpf && exec sleep infinity")
	if err != nil {
		return nil, err
	}
	r := &Rig{Lab: l, binary: binary, holder: holder}
	// It is ready when the shell has become sleep.
	err = Until(ctx, func() (bool, error) {
		select {
		case <-holder.Done():
			return false, fmt.Errorf("mount a BPF file system: %s", holder.Output())
		default:
		}
		name, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", holder.PID()))
		return strings.TrimSpace(string(name)) == "sleep", err
	})
	if err != nil {
		return nil, fmt.Errorf("rig: %w", err)
	}
	return r, nil
}

// Binary is the path of the earlydrop program.
func (r *Rig) Binary() string { return r.binary }

// Command prepares a program that runs on the gateway and sees the rig's BPF file
// system. Start starts it.
func (r *Rig) Command(ctx context.Context, argv ...string) (*exec.Cmd, error) {
	nsenter, err := lab.Program("nsenter")
	if err != nil {
		return nil, err
	}
	program, err := lab.Program(argv[0])
	if err != nil {
		return nil, err
	}
	args := append([]string{fmt.Sprintf("--mount=/proc/%d/ns/mnt", r.holder.PID()), "--wd=" + r.Dir(), "--", program}, argv[1:]...)
	cmd := exec.CommandContext(ctx, nsenter, args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	cmd.WaitDelay = 5 * time.Second
	// Other rigs, and whatever else runs on this machine, have sockets and memories of their own.
	cmd.Env = append(os.Environ(), "EARLYDROP_CONTROL="+r.Control(), "EARLYDROP_STATE="+filepath.Join(r.Dir(), "state"))
	return cmd, nil
}

// Control is the path of the control socket of a daemon of this rig.
func (r *Rig) Control() string { return filepath.Join(r.Dir(), "control.sock") }

// Start starts a command of Command. Its process is the program itself.
func (r *Rig) Start(cmd *exec.Cmd) error { return r.Gateway.Do(cmd.Start) }

// Output is what a program came to.
type Output struct {
	Stdout, Stderr string
	Code           int // exit code
}

// Run runs a program on the gateway to its end. The error says that it could not
// be run; its own failure is in Output.Code.
func (r *Rig) Run(ctx context.Context, argv ...string) (Output, error) {
	return r.RunEnv(ctx, nil, argv...)
}

// RunEnv is Run with variables ("NAME=value") added to the environment.
func (r *Rig) RunEnv(ctx context.Context, env []string, argv ...string) (Output, error) {
	cmd, err := r.Command(ctx, argv...)
	if err != nil {
		return Output{}, err
	}
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	cmd.Env = append(cmd.Env, env...)
	if err := r.Start(cmd); err != nil {
		return Output{}, fmt.Errorf("start %s: %w", argv[0], err)
	}
	err = cmd.Wait()
	out := Output{Stdout: stdout.String(), Stderr: stderr.String(), Code: cmd.ProcessState.ExitCode()}
	var exit *exec.ExitError
	if ctx.Err() != nil {
		return out, fmt.Errorf("%s: %w", strings.Join(argv, " "), ctx.Err())
	}
	if err != nil && !errors.As(err, &exit) {
		return out, fmt.Errorf("%s: %w", strings.Join(argv, " "), err)
	}
	return out, nil
}

// Earlydrop runs the program with these arguments to its end; a failure of it is
// an error that quotes what it said. A status that is not well is none.
func (r *Rig) Earlydrop(ctx context.Context, args ...string) (string, error) {
	out, err := r.Run(ctx, append([]string{r.binary}, args...)...)
	if err == nil && out.Code != 0 && (out.Code != 3 || args[0] != "status") {
		err = fmt.Errorf("earlydrop %s: exit code %d: %s", strings.Join(args, " "), out.Code, strings.TrimSpace(out.Stderr))
	}
	return out.Stdout, err
}

// Blocks returns the flows that the kernel drops.
func (r *Rig) Blocks(ctx context.Context) ([]status.Block, error) {
	out, err := r.Earlydrop(ctx, "blocked", "list", "-i", Device, "--json")
	if err != nil {
		return nil, err
	}
	return decodeLines[status.Block](out)
}

// Pairs returns the pairs that are treated, as `pairs list --json` has them.
func (r *Rig) Pairs(ctx context.Context) ([]status.Pair, error) {
	out, err := r.Earlydrop(ctx, "pairs", "list", "-i", Device, "--json")
	if err != nil {
		return nil, err
	}
	return decodeLines[status.Pair](out)
}

// Block returns the block of the flow between two endpoints, in any order.
func (r *Rig) Block(ctx context.Context, a, b netip.AddrPort) (status.Block, bool, error) {
	blocks, err := r.Blocks(ctx)
	for _, bl := range blocks {
		if bl.Lo == a && bl.Hi == b || bl.Lo == b && bl.Hi == a {
			return bl, true, err
		}
	}
	return status.Block{}, false, err
}

// Dropped waits until the kernel has dropped n packets more of a blocked flow than
// at the call. It fails when the flow is not blocked.
func (r *Rig) Dropped(ctx context.Context, a, b netip.AddrPort, n uint64) (status.Block, error) {
	var first, last status.Block
	err := Until(ctx, func() (bool, error) {
		var ok bool
		var err error
		if last, ok, err = r.Block(ctx, a, b); err != nil {
			return false, err
		}
		if !ok {
			return false, errors.New("it is not blocked")
		}
		if first.Since.IsZero() {
			first = last
		}
		return last.Packets >= first.Packets+n && last.Bytes > first.Bytes, nil
	})
	if err != nil {
		return last, fmt.Errorf("wait for dropped packets of %s - %s: %w (%d at first, %d at last)", a, b, err, first.Packets, last.Packets)
	}
	return last, nil
}

// Status asks the program for the status of the device.
func (r *Rig) Status(ctx context.Context) (status.Status, error) {
	all, err := r.Statuses(ctx, "-i", Device)
	if err == nil && len(all) != 1 {
		err = fmt.Errorf("status printed %d objects", len(all))
	}
	if err != nil {
		return status.Status{}, err
	}
	return all[0], nil
}

// Statuses runs `earlydrop status` with more arguments: without any, it is about all
// interfaces.
func (r *Rig) Statuses(ctx context.Context, args ...string) ([]status.Status, error) {
	out, err := r.Earlydrop(ctx, append([]string{"status", "--json"}, args...)...)
	if err != nil {
		return nil, err
	}
	return decodeLines[status.Status](out)
}

func decodeLines[T any](text string) ([]T, error) {
	var all []T
	for line := range strings.Lines(text) {
		var v T
		if err := json.Unmarshal([]byte(line), &v); err != nil {
			return nil, fmt.Errorf("decode %q: %w", line, err)
		}
		all = append(all, v)
	}
	return all, nil
}

// Pins returns the names of everything pinned in the rig, folders left out.
func (r *Rig) Pins() ([]string, error) {
	root := fmt.Sprintf("/proc/%d/root/sys/fs/bpf", r.holder.PID())
	var pins []string
	err := filepath.WalkDir(root, func(path string, d os.DirEntry, err error) error {
		// The kernel puts iterators of its own into each mount.
		if err == nil && path != root && filepath.Base(path) != "maps.debug" && filepath.Base(path) != "progs.debug" {
			pins = append(pins, strings.TrimPrefix(path, root))
		}
		return err
	})
	return pins, err
}

// Until calls done every few milliseconds until it returns true, an error, or ctx
// ends.
func Until(ctx context.Context, done func() (bool, error)) error {
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		ok, err := done()
		if ok || err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
}
