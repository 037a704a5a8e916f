// SPDX-License-Identifier: Apache-2.0

// Record makes labelled captures of real programs in the lab of package lab.
//
//	make record-programs
//	sudo go run ./test/lab/record --out DIR --budget 30m --seed 1 [--resume]
//
// Under each of a number of network conditions it runs tunnels and background
// and writes for every activity of every program one capture that holds just
// its flows: the label is known by construction, as each program has a server
// port of its own. manifest.tsv in DIR has a line for each capture, with the
// condition as its group. The network is drawn without regard to what runs in
// it, and every class runs under every condition; which ciphers, forms and
// further servers do, and what the tunnels carry, is drawn for each condition.
// A recording that was interrupted goes on with --resume; one that is done, or
// out of budget, ends by itself.
//
// Labels are background and the tunnels: shadowsocks, v2ray (VMess), vless,
// trojan, obfs4, openvpn, wireguard, ssh, socks5. Most come from several
// independent programs (column program), so that one can be left out of
// training. Programs that Debian lacks are built by --install, from the
// versions in package lab, into --programs; what is missing is left out with a
// warning, so that tests do with Debian's programs. VMess in TLS (cipher tls
// and ws-tls), VLESS in TLS and Trojan look like other TLS in what is captured
// of a flow; they are recorded so that this can be measured.
//
// Background of kind random-like looks random from its first bytes on. Its
// program custom is the hardest: encrypted protocols under framings that are
// drawn anew for each condition, which carry what the tunnels carry.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"hash/fnv"
	"log/slog"
	"maps"
	"math/rand/v2"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/earlydrop/earlydrop/test/lab"
)

type options struct {
	out        string
	budget     time.Duration
	seed       uint64
	resume     bool
	conditions int
	parallel   int
	workers    int
	scale      float64
	only       string
	programs   string
	install    bool
	packages   string
	verbose    bool
}

func main() {
	var o options
	flag.StringVar(&o.out, "out", "", "directory for the captures and the manifest")
	flag.DurationVar(&o.budget, "budget", 30*time.Minute, "time after which no further condition is begun")
	flag.Uint64Var(&o.seed, "seed", 1, "seed of all draws")
	flag.BoolVar(&o.resume, "resume", false, "go on with an interrupted recording")
	flag.IntVar(&o.conditions, "conditions", 110, "number of network conditions")
	flag.IntVar(&o.parallel, "parallel", 4, "conditions at a time")
	flag.IntVar(&o.workers, "workers", 12, "programs at a time under one condition")
	flag.Float64Var(&o.scale, "scale", 1, "flows of each program, as a multiple of the usual number")
	flag.StringVar(&o.only, "only", "", "run only the activities whose name contains this, as background")
	flag.StringVar(&o.programs, "programs", "bin/lab", "directory of the programs that --install builds")
	flag.BoolVar(&o.install, "install", false, "build the programs that no Debian package has, and end")
	flag.StringVar(&o.packages, "packages", "", "print the Debian packages that the lab (\"lab\") or a recording (\"record\") needs, and end")
	flag.BoolVar(&o.verbose, "v", false, "log each failure")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, o)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "record:", err)
		os.Exit(1)
	}
}

// overrun is how long the conditions under way may go on after the budget.
const overrun = 2 * time.Minute

func run(ctx context.Context, o options) (err error) {
	if o.packages != "" {
		names, err := packages(o.packages)
		if err == nil {
			fmt.Println(strings.Join(names, "\n"))
		}
		return err
	}
	if o.install {
		return lab.Install(ctx, o.programs, os.Stderr)
	}
	if o.out == "" {
		return errors.New("no --out directory given")
	}
	dir, err := filepath.Abs(o.programs)
	if err != nil {
		return err
	}
	if err := os.Setenv("PATH", dir+string(filepath.ListSeparator)+os.Getenv("PATH")); err != nil {
		return err
	}
	if o.conditions < 1 || o.parallel < 1 || o.workers < 1 || o.scale <= 0 || o.budget <= 0 {
		return errors.New("--conditions, --parallel, --workers, --scale and --budget have to be positive")
	}
	if missing := lab.Missing(); missing != "" {
		return errors.New(missing)
	}
	// Its QUIC connections through tunnels are no sockets, which is no news.
	if err := os.Setenv("QUIC_GO_DISABLE_RECEIVE_BUFFER_WARNING", "true"); err != nil {
		return err
	}
	level := slog.LevelWarn
	if o.verbose {
		level = slog.LevelInfo
	}
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level}))
	for _, name := range append(slices.Collect(maps.Keys(programs)), slices.Collect(maps.Keys(lab.Modules))...) {
		if _, err := lab.Program(name); err != nil {
			log.Warn("program missing, its traffic is left out", "program", name, "package", programs[name])
		}
	}
	// Others on the machine come first.
	if nice, err := syscall.Getpriority(syscall.PRIO_PROCESS, 0); err == nil && nice == 20 { // the call's way to say 0
		if err := syscall.Setpriority(syscall.PRIO_PROCESS, 0, 10); err != nil {
			return fmt.Errorf("lower own priority: %w", err)
		}
	}
	if _, err := lab.Sweep(); err != nil {
		log.Warn("leftovers of an earlier run", "err", err)
	}
	if err := os.MkdirAll(o.out, 0o755); err != nil {
		return err
	}
	m, err := openManifest(o.out, o.resume)
	if err != nil {
		return err
	}
	defer m.close()
	t, err := newTemplates()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, t.close()) }()

	start := time.Now()
	ctx, cancel := context.WithTimeout(ctx, o.budget+overrun)
	defer cancel()
	var wg sync.WaitGroup
	slots := make(chan struct{}, o.parallel)
	for i := range o.conditions {
		select {
		case slots <- struct{}{}:
		case <-ctx.Done():
		}
		if ctx.Err() != nil || time.Since(start) > o.budget {
			fmt.Printf("stopped before condition %d of %d\n", i, o.conditions)
			break
		}
		wg.Go(func() {
			defer func() { <-slots }()
			began := time.Now()
			err := record(ctx, o, m, t, drawCondition(o.seed, i), newPorts(o.seed, i), log)
			f := m.progress()
			fmt.Printf("condition %3d of %d: %5.1fs, in all %5.0fs: %s\n", i, o.conditions, time.Since(began).Seconds(), time.Since(start).Seconds(), f)
			if err != nil {
				log.Error("condition failed", "condition", i, "err", err)
			}
		})
	}
	wg.Wait()
	fmt.Printf("%sin %v\n", m.summary(), time.Since(start).Round(time.Second))
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("stopped early: %w", err)
	}
	return nil
}

// job is the runs of one program's port, one after the other.
type job struct {
	via   *lab.Tunnel
	ports []uint16
	runs  []jobRun
}

type jobRun struct {
	act                          activity
	label, program, cipher, kind string
	flows                        int
	path                         string
}

// record does all that is still missing of one condition.
func record(ctx context.Context, o options, m *manifest, t *templates, c condition, p *ports, log *slog.Logger) (err error) {
	// A resumed run need not start a condition that is complete.
	done := filepath.Join(o.out, c.ID, "complete")
	if _, err := os.Stat(done); err == nil {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(done), 0o755); err != nil {
		return err
	}
	l, err := lab.New(ctx, withLogger(c.Config, log))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.Close()) }()
	r := rand.New(rand.NewPCG(o.seed, hash(c.ID)))
	e, err := startServices(ctx, l, c, p, t, log)
	if e != nil {
		defer e.close()
	}
	if err != nil {
		return err
	}
	jobs, err := tunnels(ctx, o, e, r, p, log)
	if err != nil {
		return err
	}
	jobs = append(jobs, backgroundJobs(o, e, r)...)
	r.Shuffle(len(jobs), func(i, j int) { jobs[i], jobs[j] = jobs[j], jobs[i] })

	rec, err := newRecorder(l, c)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, rec.close()) }()

	var wg sync.WaitGroup
	work := make(chan job)
	errs := make(chan error, len(jobs))
	for range o.workers {
		wg.Go(func() {
			for j := range work {
				errs <- j.record(ctx, o, m, e, rec, log)
			}
		})
	}
	for _, j := range jobs {
		work <- j
	}
	close(work)
	wg.Wait()
	close(errs)
	for err2 := range errs {
		err = errors.Join(err, err2)
	}
	if err == nil && ctx.Err() == nil {
		err = os.WriteFile(done, nil, 0o644)
	}
	return err
}

func withLogger(cfg lab.Config, log *slog.Logger) lab.Config {
	cfg.Logger = log
	return cfg
}

func hash(s string) uint64 {
	h := fnv.New64a()
	_, _ = h.Write([]byte(s)) // never fails
	return h.Sum64()
}

// attemptLimit bounds one attempt, drainLimit the wait for its flows to close.
const (
	attemptLimit = 12 * time.Second
	drainLimit   = 700 * time.Millisecond
)

// record does a job's runs. A failing attempt is counted; only failures of
// the recording itself are errors.
func (j job) record(ctx context.Context, o options, m *manifest, e *env, rec *recorder, log *slog.Logger) error {
	for _, run := range j.runs {
		if m.has(run.path) {
			continue
		}
		if ctx.Err() != nil {
			return nil
		}
		s, err := newSection(filepath.Join(o.out, run.path))
		if err != nil {
			return err
		}
		rec.begin(s, j.ports...)
		failed := j.attempts(ctx, o, e, run, log)
		flows, err := s.finish(drainLimit+2*max(e.c.Config.ClientLink.Relay.Delay, e.c.Config.ServerLink.Relay.Delay), run.flows)
		rec.end(j.ports...)
		if err != nil {
			return err
		}
		if ctx.Err() != nil || flows == 0 {
			if ctx.Err() == nil {
				log.Warn("nothing recorded", "path", run.path, "failed", failed)
			} else if flows > 0 { // cut short: recorded again by a resumed run
				return os.Remove(filepath.Join(o.out, run.path))
			}
			continue
		}
		row := row{Path: run.path, Label: run.label, Group: e.c.ID, Program: run.program, Cipher: run.cipher, Carried: run.act.name, Kind: run.kind,
			Flows: flows, Failed: failed, Condition: e.c.Text}
		if err := m.add(row); err != nil {
			return err
		}
	}
	return nil
}

// attempts runs an activity as often as wanted, two at a time, and returns
// how many failed.
func (j job) attempts(ctx context.Context, o options, e *env, run jobRun, log *slog.Logger) (failed int) {
	var mu sync.Mutex
	var wg sync.WaitGroup
	slots := make(chan struct{}, 2)
	for i := range run.flows {
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			ctx, cancel := context.WithTimeout(ctx, attemptLimit)
			defer cancel()
			id := fmt.Sprintf("%s-%d", strings.ReplaceAll(run.path, "/", "-"), i)
			a := &attempt{e: e, via: j.via, r: rand.New(rand.NewPCG(o.seed, hash(id))), file: filepath.Join(e.dir, id)}
			if err := run.act.run(ctx, a); err != nil && ctx.Err() == nil || ctx.Err() != nil {
				mu.Lock()
				failed++
				mu.Unlock()
				log.Info("attempt failed", "run", run.path, "err", err)
			}
		})
	}
	wg.Wait()
	return failed
}
