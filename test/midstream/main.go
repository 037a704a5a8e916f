// SPDX-License-Identifier: Apache-2.0

// Midstream measures how often ordinary flows would be dropped if they were captured
// from their middle, as attach and replay do with --mid-stream capture:
//
//	go run ./test/midstream [-model FILE] [-seed 1] CAPTURE-OR-FOLDER...
//	sudo go run ./test/midstream -record FOLDER
//
// Of each TCP flow whose SYN is in a capture file it takes the packets from a random
// time on, drawn between the first and the last packet with payload, as an attach
// comes at a random time. It counts the flows that a rule over the built-in policy's
// classes, at the model's threshold, passes when it sees their beginning, and drops, with
// mid_stream: true, from their middle on. The captures should hold ordinary traffic only.
// With -record it makes such captures first: downloads with curl from nginx, in the lab of
// package lab.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"math"
	"math/rand/v2"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/earlydrop/earlydrop/classifier"
	"github.com/earlydrop/earlydrop/classifier/onnx"
	"github.com/earlydrop/earlydrop/loader/assembly"
	"github.com/earlydrop/earlydrop/loader/flow"
	"github.com/earlydrop/earlydrop/loader/flow/headers"
	"github.com/earlydrop/earlydrop/models"
	"github.com/earlydrop/earlydrop/policy"
	"github.com/earlydrop/earlydrop/test/onnxruntime"
)

func main() {
	// The program that `go run` builds has no library beside it.
	if path, err := onnxruntime.Find(); err == nil {
		_ = os.Setenv("EARLYDROP_ONNXRUNTIME", path)
	}
	model := flag.String("model", "", "model `FILE` (default: the shipped one)")
	seed := flag.Uint64("seed", 1, "seed of the times at which flows are cut")
	folder := flag.String("record", "", "record downloads into a new `FOLDER`, and measure those as well (needs root)")
	flag.Parse()
	paths := flag.Args()
	if *folder != "" {
		paths = append(paths, *folder)
	}
	if len(paths) == 0 {
		fmt.Fprintln(os.Stderr, "midstream: name captures, or folders of captures, or record some with -record")
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	var err error
	if *folder != "" {
		err = record(ctx, *folder, *seed, downloads)
	}
	if err == nil {
		err = run(os.Stdout, *model, *seed, paths)
	}
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "midstream:", err)
		os.Exit(1)
	}
}

func run(out io.Writer, model string, seed uint64, paths []string) error {
	name, data := models.Default()
	if model != "" {
		var err error
		if data, err = classifier.ReadModelFile(model); err != nil {
			return err
		}
		name = model
	}
	engine, err := onnx.Open(name, data, onnx.Options{Workers: 1})
	if err != nil {
		return err
	}
	defer engine.Close()
	m := engine.Manifest()
	p, err := policy.Default(&policy.Model{Labels: m.Labels, Thresholds: m.Thresholds, AnyThreshold: m.AnyThreshold, Unknown: m.Unknown > 0})
	if err != nil {
		return err
	}
	// Each flow by itself, at the model's threshold.
	p = p.WithoutEvidence()
	for i := range p.Rules {
		r := &p.Rules[i]
		r.MidStream, r.Complete, r.MinConfidence = true, nil, m.AnyThreshold
	}
	s := &study{engine: engine, policy: p, rand: rand.New(rand.NewPCG(seed, 0))}
	for _, path := range paths {
		err := filepath.WalkDir(path, func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() {
				return err
			}
			return s.file(path)
		})
		if err != nil {
			return err
		}
	}
	return s.print(out)
}

// packet is one of a flow.
type packet struct {
	at      time.Time
	frame   []byte
	wireLen int
	payload int
	fromLo  bool
}

// connection is one TCP flow, from its SYN on.
type connection struct {
	packets     []packet
	initiatorLo bool
}

// study counts.
type study struct {
	engine *classifier.Engine
	policy *policy.Policy
	rand   *rand.Rand

	files, unreadable int
	kinds             [numKinds]struct{ flows, dropped int }
	// left out: dropped from the beginning, one packet with payload only, a
	// handshake that is not all there, another one after the cut, incomplete
	wanted, short, unproven, again, incomplete int
}

// The kinds of flows that are counted.
const (
	all = iota
	toHTTPS
	toHTTP
	toOther
	download // of 100 KB or more
	numKinds
)

var kindNames = [numKinds]string{"all", "to port 443", "to port 80", "to other ports", "responder sent 100 KB or more"}

const downloadBytes = 100_000

// file cuts and judges the flows of one capture file.
func (s *study) file(path string) error {
	f, err := assembly.Open(path)
	if err != nil {
		s.unreadable++
		return nil
	}
	defer f.Close()
	s.files++
	open := map[flow.Key]*connection{}
	var order []*connection
	for {
		at, frame, wireLen, err := f.Next()
		if err != nil { // what could be read is used
			break
		}
		p, verdict := headers.ParseCaptured(frame, wireLen)
		if verdict != headers.OK || p.Key.Proto != flow.TCP {
			continue
		}
		c := open[p.Key]
		if p.Flags.Opens() && (c == nil || len(c.packets) > 1) {
			c = &connection{initiatorLo: p.SrcIsLo}
			open[p.Key] = c
			order = append(order, c)
		}
		if c != nil {
			c.packets = append(c.packets, packet{at, append([]byte(nil), frame...), wireLen, p.PayloadLen, p.SrcIsLo})
		}
	}
	for _, c := range order {
		if err := s.connection(c); err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
	}
	return nil
}

// connection cuts one flow.
func (s *study) connection(c *connection) error {
	first, last, answer := -1, -1, 0
	for i, p := range c.packets {
		if p.payload == 0 {
			continue
		}
		if first < 0 {
			first = i
		}
		last = i
		if p.fromLo != c.initiatorLo {
			answer += p.payload
		}
	}
	if first < 0 || first == last {
		s.short++
		return nil
	}
	whole, err := s.decide(c.packets, false)
	switch {
	case err != nil:
		return err
	case whole == nil:
		s.unproven++
		return nil
	case whole.Reason == policy.ReasonIncomplete:
		s.incomplete++
		return nil
	case whole.Action == flow.Drop:
		s.wanted++
		return nil
	}
	// Behind the first packet with payload, else it would not be the middle.
	from, to := c.packets[first+1].at, c.packets[last].at
	cut := from.Add(time.Duration(s.rand.Float64() * float64(to.Sub(from))))
	begin := first + 1
	for begin < last && c.packets[begin].at.Before(cut) {
		begin++
	}
	middle, err := s.decide(c.packets[begin:], true)
	if errors.Is(err, errBeginning) {
		s.again++
		return nil
	}
	if err != nil {
		return err
	}
	if middle == nil || middle.Reason == policy.ReasonIncomplete {
		s.incomplete++
		return nil
	}
	kinds := []int{all}
	switch responder := s.port(c); responder {
	case 443:
		kinds = append(kinds, toHTTPS)
	case 80:
		kinds = append(kinds, toHTTP)
	default:
		kinds = append(kinds, toOther)
	}
	if answer >= downloadBytes {
		kinds = append(kinds, download)
	}
	for _, k := range kinds {
		s.kinds[k].flows++
		if middle.Action == flow.Drop {
			s.kinds[k].dropped++
		}
	}
	return nil
}

// port returns the responder's port.
func (s *study) port(c *connection) uint16 {
	p, _ := headers.ParseCaptured(c.packets[0].frame, c.packets[0].wireLen)
	if c.initiatorLo {
		return p.Key.Hi.Port()
	}
	return p.Key.Lo.Port()
}

// errBeginning means that what should be the middle of a flow has a beginning: a
// handshake that came late, or once more.
var errBeginning = errors.New("not mid-stream")

// decide returns what becomes of the first capture of these packets, nil when there
// is none.
func (s *study) decide(packets []packet, midStream bool) (d *policy.Decision, err error) {
	results := make([]flow.Result, 1)
	a := assembly.New(assembly.Options{MidStream: midStream}, func(_ *assembly.Flow, sample *flow.Sample) {
		if d != nil || err != nil {
			return
		}
		if sample.MidStream != midStream {
			err = fmt.Errorf("%s: %w", sample.Key, errBeginning)
			return
		}
		if err = s.engine.Classify([]*flow.Sample{sample}, results); err == nil {
			decision := s.policy.Decide(&sample.Meta, results[0])
			d = &decision
		}
	}, nil)
	for _, p := range packets {
		a.Packet(p.at, p.frame, p.wireLen)
	}
	if flushErr := a.Flush(); err == nil {
		err = flushErr
	}
	return d, err
}

func (s *study) print(out io.Writer) error {
	fmt.Fprintf(out, "%d captures (%d more could not be read), model %s, classes of the built-in policy at the model's threshold\n", s.files, s.unreadable, s.engine.Manifest().Name)
	fmt.Fprintf(out, "left out: %d flows dropped from their beginning, %d with one packet with payload or none, %d whose handshake is not all there, %d with another one after the cut, %d incomplete\n\n",
		s.wanted, s.short, s.unproven, s.again, s.incomplete)
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "FLOWS PASSED FROM THEIR BEGINNING\tCOUNT\tDROPPED FROM THEIR MIDDLE\t95 % INTERVAL")
	for k, n := range s.kinds {
		share, low, high := wilson(n.dropped, n.flows)
		fmt.Fprintf(w, "%s\t%d\t%d, %.1f %%\t%.1f to %.1f %%\n", kindNames[k], n.flows, n.dropped, share, low, high)
	}
	return w.Flush()
}

// wilson returns k of n in percent, with the 95 % interval of Wilson's score.
func wilson(k, n int) (share, low, high float64) {
	if n == 0 {
		return 0, 0, 100
	}
	const z = 1.959964
	p, m := float64(k)/float64(n), float64(n)
	center := (p + z*z/(2*m)) / (1 + z*z/m)
	half := z / (1 + z*z/m) * math.Sqrt(p*(1-p)/m+z*z/(4*m*m))
	return 100 * p, 100 * max(0, center-half), 100 * min(1, center+half)
}
