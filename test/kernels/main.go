// SPDX-License-Identifier: Apache-2.0

// Command kernels runs the tests of package loader on other kernels than this
// machine's: it boots Debian's kernel packages in virtual machines that have
// nothing but the test program, without installing anything and without hardware
// virtualization. The exit code is 1 when a test failed, was skipped, or none ran.
package main

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/earlydrop/earlydrop/test/kernels/machine"
)

type options struct {
	kernels   []string // package names; none: the newest of each series
	run, skip string   // patterns of tests, as go test has them
	count     int
	timeout   time.Duration
	cache     string
	list      bool
}

// unsuitable are the tests that don't suit these machines: bpftool is no part of
// their file system; what a map takes is known since Linux 6.4; and attaching under
// traffic, over and over, takes too long where the CPUs are emulated in turn.
const unsuitable = "^(TestBpftoolPrintsNames|TestMemoryOfTheTablesIsWhatTheKernelAccounts|TestSwapUnderTrafficPassesNothingBlocked|TestAttachAndDetachAgainAndAgainLeaksNothing)$"

func main() {
	var o options
	kernels := flag.String("kernel", "", "kernel `packages`, separated by commas (default: the newest of each series that the package sources offer)")
	flag.StringVar(&o.run, "run", "^Test", "run the tests that match this `pattern`")
	flag.StringVar(&o.skip, "skip", unsuitable, "leave out the tests that match this `pattern`")
	flag.IntVar(&o.count, "count", 1, "run each test this many `times`")
	flag.DurationVar(&o.timeout, "timeout", 15*time.Minute, "how long the tests of one kernel may take")
	flag.StringVar(&o.cache, "cache", ".cache/kernels", "`folder` for packages and console logs")
	flag.BoolVar(&o.list, "list", false, "only print the packages that would be used")
	flag.Parse()
	if flag.NArg() > 0 {
		fmt.Fprintf(os.Stderr, "kernels: unexpected argument %q\n", flag.Arg(0))
		os.Exit(2)
	}
	if *kernels != "" {
		o.kernels = strings.Split(*kernels, ",")
	}
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM)
	err := run(ctx, o, os.Stdout)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "kernels:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, o options, out io.Writer) (err error) {
	if len(o.kernels) == 0 {
		if o.kernels, err = newestPackages(ctx); err != nil {
			return err
		}
	}
	if o.list {
		_, err := fmt.Fprintln(out, strings.Join(o.kernels, "\n"))
		return err
	}
	if o.cache, err = filepath.Abs(o.cache); err != nil {
		return err
	}
	if err := os.MkdirAll(o.cache, 0o755); err != nil {
		return err
	}
	work, err := os.MkdirTemp("", "ed-kernels-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(work)) }()
	if err := build(ctx, work); err != nil {
		return err
	}
	var failures []error
	var summary []string
	for _, name := range o.kernels {
		fmt.Fprintf(out, "=== %s\n", name)
		start := time.Now()
		r, err := testKernel(ctx, o, work, name, out)
		took := time.Since(start).Round(time.Second)
		if err == nil {
			err = r.err()
		}
		if err != nil {
			failures = append(failures, fmt.Errorf("%s: %w", name, err))
			summary = append(summary, fmt.Sprintf("FAIL %s (%s): %v", name, took, err))
			continue
		}
		summary = append(summary, fmt.Sprintf("PASS %s (%s): %d tests with %d subtests", name, took, len(r.passed), r.subtests))
	}
	fmt.Fprintf(out, "\n%s\n", strings.Join(summary, "\n"))
	return errors.Join(failures...)
}

// build links the two programs of a machine, statically.
func build(ctx context.Context, dir string) error {
	for _, args := range [][]string{
		{"test", "-c", "-tags", "emulated", "-trimpath", "-ldflags", "-s -w", "-o", filepath.Join(dir, "test"), "github.com/earlydrop/earlydrop/loader"},
		{"build", "-trimpath", "-ldflags", "-s -w", "-o", filepath.Join(dir, "init"), "github.com/earlydrop/earlydrop/test/kernels/init"},
	} {
		cmd := exec.CommandContext(ctx, "go", args...)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH=amd64")
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("%s: %w: %s", cmd, err, bytes.TrimSpace(out))
		}
	}
	return nil
}

// testKernel boots one kernel and returns what its console told.
func testKernel(ctx context.Context, o options, work, name string, out io.Writer) (_ *result, err error) {
	k, err := openKernel(ctx, o.cache, name)
	if err != nil {
		return nil, err
	}
	root := filepath.Join(work, "root.gz")
	args := []string{"-test.v", "-test.timeout=" + o.timeout.String(), "-test.count=" + strconv.Itoa(o.count), "-test.run=" + o.run}
	if o.skip != "" {
		args = append(args, "-test.skip="+o.skip)
	}
	if err := packRoot(ctx, k, work, root, args); err != nil {
		return nil, err
	}
	log, err := os.Create(filepath.Join(o.cache, name+".log"))
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, log.Close()) }()

	// The test program's own time limit tells more: it gets the chance.
	ctx, cancel := context.WithTimeout(ctx, o.timeout+time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "qemu-system-x86_64",
		// CPUs in turn: emulated at the same time by QEMU 7.2, they now and then die of
		// code that the kernel patches (int3), at boot or when programs are attached.
		"-accel", "tcg,thread=single", "-cpu", "max", "-smp", "2", "-m", "1G",
		"-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-serial", "stdio",
		"-kernel", k.image, "-initrd", root,
		// Where the emulator gets little of the host's time, its timer seems not to tick when
		// the kernel looks whether it does.
		"-append", "console=ttyS0 panic=-1 loglevel=4 mitigations=off no_timer_check rdinit=/init")
	console, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start the machine: %w", err)
	}
	r, err := readConsole(console, log, out)
	if err != nil {
		cancel()
	}
	err = errors.Join(err, cmd.Wait())
	switch {
	case ctx.Err() != nil:
		return nil, fmt.Errorf("the machine was stopped: %w (console: %s)", ctx.Err(), log.Name())
	case err != nil:
		return nil, fmt.Errorf("run the machine: %w: %s (console: %s)", err, bytes.TrimSpace(stderr.Bytes()), log.Name())
	}
	return r, nil
}

// packRoot writes the machine's file system to the file root.
func packRoot(ctx context.Context, k *kernel, work, root string, args []string) (err error) {
	needed, err := k.load(ctx, modules)
	if err != nil {
		return err
	}
	f, err := os.Create(root)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	z, err := gzip.NewWriterLevel(f, gzip.BestSpeed)
	if err != nil {
		return err
	}
	c := newCPIOWriter(z)
	c.dir("/dev")
	// The kernel opens it for init before anything is mounted.
	c.char("/dev/console", 5, 1)
	for from, to := range map[string]string{"init": "/init", "test": machine.Program} {
		data, err := os.ReadFile(filepath.Join(work, from))
		if err != nil {
			return err
		}
		c.file(to, data)
	}
	c.file(machine.ArgumentList, []byte(strings.Join(args, "\n")))
	c.dir(machine.ModuleDir)
	var order []string
	for _, m := range needed {
		c.file(filepath.Join(machine.ModuleDir, m.name), m.data)
		order = append(order, m.name)
	}
	c.file(machine.ModuleList, []byte(strings.Join(order, "\n")))
	return errors.Join(c.close(), z.Close())
}
