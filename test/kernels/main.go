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
	"crypto/sha256"
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
	system    string // folder of packages; empty: the loader's tests
}

// unsuitable are the tests that don't suit these machines: bpftool and iptables are no part of
// their file system; what a map takes is known since Linux 6.4; and attaching under
// traffic, over and over, takes too long where the CPUs are emulated in turn.
const unsuitable = "^(TestBpftoolPrintsNames|TestMasqueradeOfLegacyTables|TestMemoryOfTheTablesIsWhatTheKernelAccounts|TestSwapUnderTrafficPassesNothingBlocked|TestAttachAndDetachAgainAndAgainLeaksNothing)$"

func main() {
	var o options
	kernels := flag.String("kernel", "", "kernel `packages`, separated by commas (default: the newest of each series that the package sources offer)")
	flag.StringVar(&o.run, "run", "^Test", "run the tests that match this `pattern`")
	flag.StringVar(&o.skip, "skip", unsuitable, "leave out the tests that match this `pattern`")
	flag.IntVar(&o.count, "count", 1, "run each test this many `times`")
	flag.DurationVar(&o.timeout, "timeout", 15*time.Minute, "how long the tests of one kernel may take")
	flag.StringVar(&o.cache, "cache", ".cache/kernels", "`folder` for packages and console logs")
	flag.BoolVar(&o.list, "list", false, "only print the packages that would be used")
	flag.StringVar(&o.system, "system", "", "instead boot a Debian with systemd and run the tests of test/system, with the packages older/*.deb and newer/*.deb in this `folder`")
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
	if err := build(ctx, filepath.Join(work, "init"), "build", "./test/kernels/init", ""); err != nil {
		return err
	}
	if o.system != "" {
		r, err := testSystem(ctx, o, work, o.system, out)
		if err == nil {
			err = r.err()
		}
		if err != nil {
			return err
		}
		fmt.Fprintf(out, "PASS system: %d tests with %d subtests\n", len(r.passed), r.subtests)
		return nil
	}
	if err := build(ctx, filepath.Join(work, "test"), "test", "./loader", "emulated"); err != nil {
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

// build links a program of a machine, statically: a command's, or a package's tests.
func build(ctx context.Context, program, kind, pkg, tags string) error {
	args := []string{"build"}
	if kind == "test" {
		args = []string{"test", "-c"}
	}
	args = append(args, "-tags", tags, "-trimpath", "-ldflags", "-s -w", "-o", program, "github.com/earlydrop/earlydrop"+strings.TrimPrefix(pkg, "."))
	cmd := exec.CommandContext(ctx, "go", args...)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH=amd64")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", cmd, err, bytes.TrimSpace(out))
	}
	return nil
}

// testArguments are those of a test program.
func testArguments(o options) []string {
	args := []string{"-test.v", "-test.timeout=" + o.timeout.String(), "-test.count=" + strconv.Itoa(o.count), "-test.run=" + o.run}
	if o.skip != "" {
		args = append(args, "-test.skip="+o.skip)
	}
	return args
}

// digest returns a short name for what something is made by.
func digest(parts []string) string {
	sum := sha256.Sum256([]byte(strings.Join(parts, "\x00")))
	return fmt.Sprintf("%x", sum[:6])
}

// testKernel boots one kernel and returns what its console told.
func testKernel(ctx context.Context, o options, work, name string, out io.Writer) (*result, error) {
	k, err := openKernel(ctx, o.cache, name)
	if err != nil {
		return nil, err
	}
	root := filepath.Join(work, "root.gz")
	if err := packRoot(ctx, k, modules, work, root, testArguments(o)); err != nil {
		return nil, err
	}
	return bootMachine(ctx, o, k, name, root, out)
}

// bootMachine boots a kernel with an initial file system, and more that the emulator is
// told, and returns what its console told. All of that is in the log of this name.
func bootMachine(ctx context.Context, o options, k *kernel, name, root string, out io.Writer, more ...string) (_ *result, err error) {
	log, err := os.Create(filepath.Join(o.cache, name+".log"))
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, log.Close()) }()

	// The test program's own time limit tells more: it gets the chance.
	ctx, cancel := context.WithTimeout(ctx, o.timeout+time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "qemu-system-x86_64", append([]string{
		// CPUs in turn: emulated at the same time by QEMU 7.2, they now and then die of
		// code that the kernel patches (int3), at boot or when programs are attached.
		"-accel", "tcg,thread=single", "-cpu", "max", "-smp", "2", "-m", "2560M",
		"-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-serial", "stdio",
		"-kernel", k.image, "-initrd", root,
		// Where the emulator gets little of the host's time, its timer seems not to tick when
		// the kernel looks whether it does.
		"-append", "console=ttyS0 panic=-1 loglevel=4 mitigations=off no_timer_check rdinit=/init systemd.show_status=no"}, more...)...)
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

// packRoot writes the machine's file system to the file root. Without arguments there is
// no test program in it, and init goes on to the system on the first disk.
func packRoot(ctx context.Context, k *kernel, modules []string, work, root string, args []string) (err error) {
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
	programs := map[string]string{"init": "/init"}
	if len(args) > 0 {
		programs["test"] = machine.Program
		c.file(machine.ArgumentList, []byte(strings.Join(args, "\n")))
	}
	for from, to := range programs {
		data, err := os.ReadFile(filepath.Join(work, from))
		if err != nil {
			return err
		}
		c.file(to, data)
	}
	c.dir(machine.ModuleDir)
	var order []string
	for _, m := range needed {
		c.file(filepath.Join(machine.ModuleDir, m.name), m.data)
		order = append(order, m.name)
	}
	c.file(machine.ModuleList, []byte(strings.Join(order, "\n")))
	return errors.Join(c.close(), z.Close())
}
