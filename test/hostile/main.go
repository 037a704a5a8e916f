// SPDX-License-Identifier: Apache-2.0

// Command hostile puts earlydrop under pressure and prints what becomes of ordinary
// connections meanwhile. It needs root and the programs of package lab; all of it
// happens in network namespaces of its own.
//
//	go run ./test/hostile flood          # SYNs from spoofed sources, 60 s
//	go run ./test/hostile forged         # SYNs, each followed by a byte
//	go run ./test/hostile handshakes     # whole connections, forged from one side
//	go run ./test/hostile onebyte        # real connections of one byte, from one host
//	go run ./test/hostile attacks        # forged segments that are to cut or to hide
//	go run ./test/hostile udp            # one-packet UDP flows, 60 s
//	go run ./test/hostile reader         # the daemon is stopped and goes on
//	go run ./test/hostile cycles         # 200 times attach and detach under traffic
//	go run ./test/hostile all
//
// The exit code is 1 when a target is missed.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"time"

	"golang.org/x/sys/unix"

	"github.com/earlydrop/earlydrop/test/e2e/rig"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM)
	err := run(ctx, os.Args[1:])
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "hostile:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("hostile", flag.ExitOnError)
	o := options{logf: func(format string, args ...any) { fmt.Printf(format+"\n", args...) }}
	flags.DurationVar(&o.duration, "d", time.Minute, "how long a flood lasts")
	flags.DurationVar(&o.rtt, "rtt", 0, "round trip added between gateway and server")
	flags.IntVar(&o.rate, "rate", 0, "`flows` per second of a flood; 0: as many as go")
	flags.IntVar(&o.handshakes, "max-handshakes", 0, "as of earlydrop attach; 0: its default")
	flags.IntVar(&o.cycles, "n", 200, "how many `times` to attach and detach")
	if len(args) == 0 {
		return errors.New("name a scenario: flood, forged, handshakes, onebyte, attacks, udp, reader, cycles or all")
	}
	if err := flags.Parse(args[1:]); err != nil {
		return err
	}
	if o.duration < 4*time.Second || o.cycles < 1 || flags.NArg() > 0 {
		return fmt.Errorf("-d %s, -n %d, %q: a flood takes 4 s at least, cycles are positive, there is no argument", o.duration, o.cycles, flags.Args())
	}
	return rig.WithProgram(ctx, "hostile", func(_, binary string) error {
		o.binary = binary
		return scenario(ctx, args[0], o)
	})
}

// scenario runs the one of that name, or all.
func scenario(ctx context.Context, name string, o options) (err error) {
	all := []struct {
		name string
		run  func(context.Context, options) error
	}{
		{"flood", func(ctx context.Context, o options) error {
			r, err := tcpFlood(ctx, o, "flood")
			return errors.Join(err, r.check())
		}},
		{"forged", func(ctx context.Context, o options) error {
			r, err := tcpFlood(ctx, o, "forged")
			return errors.Join(err, r.check())
		}},
		{"handshakes", func(ctx context.Context, o options) error {
			r, err := tcpFlood(ctx, o, "handshakes")
			return errors.Join(err, r.check())
		}},
		{"onebyte", func(ctx context.Context, o options) error {
			if o.rate == 0 {
				o.rate = 2000
			}
			r, err := oneByte(ctx, o)
			return errors.Join(err, r.check())
		}},
		{"attacks", attacks},
		{"udp", func(ctx context.Context, o options) error {
			r, err := udpFlood(ctx, o)
			return errors.Join(err, r.check())
		}},
		{"reader", func(ctx context.Context, o options) error {
			r, err := stoppedReader(ctx, o)
			return errors.Join(err, r.check())
		}},
		{"cycles", func(ctx context.Context, o options) error {
			r, err := cycles(ctx, o)
			return errors.Join(err, r.check(o.cycles))
		}},
	}
	known := false
	for _, s := range all {
		if name == s.name || name == "all" {
			known = true
			if e := s.run(ctx, o); e != nil {
				err = errors.Join(err, fmt.Errorf("%s: %w", s.name, e))
			}
		}
	}
	if !known {
		return fmt.Errorf("unknown scenario %q: use flood, forged, handshakes, onebyte, attacks, udp, reader, cycles or all", name)
	}
	return err
}

// check compares with the targets.
func (r floodResult) check() error {
	var errs []error
	if r.seen < 1000 {
		errs = append(errs, fmt.Errorf("that was no flood: earlydrop saw %d SYNs", r.seen))
	}
	if r.opened == 0 || r.share() < 0.99 {
		errs = append(errs, fmt.Errorf("%d of %d connections were identified, want 99 %%", r.identified, r.opened))
	}
	if r.strays > 0 || r.cut > 0 {
		errs = append(errs, fmt.Errorf("%d header-only flows reached user space, %d captures begin late", r.strays, r.cut))
	}
	return errors.Join(errs...)
}

func (r oneByteResult) check() error {
	var errs []error
	if r.made == 0 || r.refused == 0 {
		errs = append(errs, fmt.Errorf("that was no flood: %d connections, %d of them refused a capture", r.made, r.refused))
	}
	if r.opened == 0 || r.failed > 0 || r.share() < 0.99 {
		errs = append(errs, fmt.Errorf("%d of %d connections were identified, want 99 %%; %d failed", r.identified, r.opened, r.failed))
	}
	return errors.Join(errs...)
}

func (r udpResult) check() error {
	var errs []error
	if r.waiting < 100_000 {
		errs = append(errs, fmt.Errorf("that was no flood: %d flows", r.waiting))
	}
	if r.slotsFull > 0 || r.most > r.slots/2 {
		errs = append(errs, fmt.Errorf("the flood took captures: %d of %d at once, %d refused", r.most, r.slots, r.slotsFull))
	}
	if r.asked == 0 || float64(r.answered) < 0.99*float64(r.asked) {
		errs = append(errs, fmt.Errorf("%d of %d UDP flows of others were identified, want 99 %%", r.answered, r.asked))
	}
	if float64(r.freshCompleted) < 0.99*float64(r.fresh) {
		errs = append(errs, fmt.Errorf("%d of %d TCP flows were identified, want 99 %%", r.freshCompleted, r.fresh))
	}
	if r.held == 0 || float64(r.complete) < 0.95*float64(r.held) {
		errs = append(errs, fmt.Errorf("%d of %d flows that were collecting before completed, want 95 %%", r.complete, r.held))
	}
	if r.early > 0 || r.late > 100*time.Millisecond {
		errs = append(errs, fmt.Errorf("a block let %d packets pass early and ended %s late", r.early, r.late))
	}
	return errors.Join(errs...)
}

func (r readerResult) check() error {
	var errs []error
	if r.ringFull == 0 {
		errs = append(errs, errors.New("the ring never was full"))
	}
	if !r.passed {
		errs = append(errs, errors.New("traffic did not pass while the reader was stopped"))
	}
	if r.identified == 0 || r.identified > time.Second {
		errs = append(errs, fmt.Errorf("the first verdict came %s after the reader was back, want a second at most", r.identified))
	}
	return errors.Join(errs...)
}

func (r cyclesResult) check(want int) error {
	var errs []error
	if r.cycles != want || r.left > 0 {
		errs = append(errs, fmt.Errorf("%d of %d cycles, %d objects left in the kernel", r.cycles, want, r.left))
	}
	if r.identified[0] == 0 || r.identified[1] == 0 {
		errs = append(errs, fmt.Errorf("verdicts on two interfaces: %v", r.identified))
	}
	return errors.Join(errs...)
}
