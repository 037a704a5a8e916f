// SPDX-License-Identifier: Apache-2.0

// Package replay says what would become of the flows in capture files: it takes them
// through the same assembly, classifier and policy as live traffic, on all cores, and
// tells of them in the order in which they began.
package replay

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"runtime"
	"sync"

	"github.com/earlydrop/earlydrop/classifier"
	"github.com/earlydrop/earlydrop/cmd/earlydrop/captures"
	"github.com/earlydrop/earlydrop/cmd/earlydrop/event"
	"github.com/earlydrop/earlydrop/loader/assembly"
	"github.com/earlydrop/earlydrop/loader/assembly/scratch"
	"github.com/earlydrop/earlydrop/loader/flow"
	"github.com/earlydrop/earlydrop/policy"
	"github.com/earlydrop/earlydrop/policy/evidence"
)

// Batch is how many flows are classified at once: what the engine's MaxBatch should be.
const Batch = 32

// oneWayShare is how many of a capture's TCP connections may lack a direction before a
// warning says so. A file is all that there is, so the share alone counts.
const oneWayShare = 0.05

// Config says how captures are replayed.
type Config struct {
	Engine *classifier.Engine
	Policy *policy.Policy
	// Options say which flows are captured, and when.
	Options assembly.Options
	// Verdict gets the flows of each capture in order of their start; those of a pipe
	// with Live in the order of their start among those that are told of together. An
	// error of it ends Read. The verdict is used again after the call.
	Verdict func(*event.Verdict) error
	// Warn (optional) is told what is odd about a capture.
	Warn func(Warning)
	// Live (optional) has the flows of a pipe told of while it goes on, within a second
	// of their verdict, and is called after some were. An error of it ends Read.
	Live func() error
	// Progress (optional) is told how many bytes of regular files were read so far.
	Progress func(bytes int64)
}

// Warning says that a share of a capture is not judged.
type Warning struct {
	Cause Cause
	// Title names the file, or the first file of several and how many more there are.
	Title string
	// N of All are concerned: flows, TCP connections, IPv4 packets or initiators.
	N, All uint64
	// Alert says more of LimitReached.
	Alert evidence.Alert
}

// Cause is what a Warning is about.
type Cause int

// The causes.
const (
	// Incomplete flows: of packets with payload the file holds fewer than
	// flow.IncompleteBytes of it, so that no rule drops them.
	Incomplete Cause = iota
	// OneWay is TCP connections of which one direction alone is there, where the
	// options leave these out.
	OneWay
	// BadChecksum is IPv4 packets with a wrong header checksum, which are part of no flow.
	BadChecksum
	// LimitReached says that flows of so many initiators were treated that what rules do
	// without evidence pauses.
	LimitReached
)

// Summary counts what was in all captures.
type Summary struct {
	Flows      uint64
	Incomplete uint64            // of them
	Classes    map[string]uint64 // flows that are not incomplete, by what the policy calls them
	Drops      uint64            // flows that the policy drops
	Counters   assembly.Counters
}

// Replay takes files through assembly, classifier and policy. Its methods are for one
// goroutine.
type Replay struct {
	config Config

	jobs    chan *job
	spare   chan *job      // empty ones; their number bounds memory
	workers sync.WaitGroup // running workers
	pending sync.WaitGroup // jobs not done yet
	coder   *coder
	last    chan struct{} // closed once the latest job is decided; nil before the first one
	state   *evidence.State
	mu      sync.Mutex
	alerts  []evidence.Alert
	sorter  *scratch.Sorter // the flows that were classified and not told of, by seq
	err     error           // the first error of a worker

	record  record     // the same for all flows, to spare memory
	ahead   sortedFlow // the next one of sorter, once the capture has ended
	early   int        // flows that were told of live
	latest  lastVerdict
	job     *job  // being filled
	liveErr error // the first error of telling live
	done    int64 // bytes of the regular files that were read
	summary Summary
}

// lastVerdict is what the latest verdict added to the summary.
type lastVerdict struct {
	seq              uint64
	called           string
	counted, dropped uint64
}

// job is a batch of flows to be classified.
type job struct {
	samples []*flow.Sample // the first len(seqs) are in use
	seqs    []uint64
	// Jobs are decided one after another, as flows were handed over: decisions depend on
	// earlier ones.
	before <-chan struct{} // closed when it is its turn; nil for the first one
	done   chan struct{}   // it closes this then
}

// sortedFlow is a flow that comes out of a sorter.
type sortedFlow struct {
	ready bool
	key   uint64
	data  []byte
}

// New starts the workers. Close ends them.
func New(c Config) *Replay {
	if c.Warn == nil {
		c.Warn = func(Warning) {}
	}
	if c.Progress == nil {
		c.Progress = func(int64) {}
	}
	n := runtime.GOMAXPROCS(0)
	r := &Replay{config: c, jobs: make(chan *job, 2*n), spare: make(chan *job, 2*n), coder: newCoder(c.Engine.Manifest()),
		summary: Summary{Classes: map[string]uint64{}}}
	for range 2 * n {
		r.spare <- &job{}
	}
	for range n {
		r.workers.Go(r.work)
	}
	return r
}

// Close ends the workers. The engine stays open.
func (r *Replay) Close() {
	close(r.jobs)
	r.workers.Wait()
}

// Summary returns what was in the captures so far.
func (r *Replay) Summary() Summary { return r.summary }

// Read tells of the flows of one capture, which may be cut into several files. Where
// files could not be read whole, it returns their *assembly.FileError, joined; what could
// be read was told of then. A *scratch.Error is one of a temporary file. An interrupt of a
// pipe ends the capture.
func (r *Replay) Read(files []*captures.File) (err error) {
	r.sorter = scratch.NewSorter("", 0)
	r.ahead, r.early, r.alerts = sortedFlow{}, 0, nil
	// Each capture is of a time and a place of its own.
	r.state = evidence.New(evidence.Options{Alert: func(a evidence.Alert) {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.alerts = append(r.alerts, a)
	}})
	defer func() {
		r.pending.Wait()
		err = errors.Join(err, r.sorter.Close())
	}()
	ended := false
	var endErr error
	var a *assembly.Assembler
	a = assembly.New(r.config.Options, r.add, func(t assembly.Totals) {
		if !ended { // the first flow of the capture; all are handed over
			ended, endErr = true, cmp.Or(a.Err(), r.finish())
		}
		if endErr == nil {
			endErr = r.end(&t)
		}
	})
	var readErr error
	for _, file := range files {
		before := a.Counters()
		err := r.feed(a, file)
		if r.liveErr != nil {
			return r.liveErr
		}
		if a.Err() != nil {
			break // Flush returns it
		}
		after := a.Counters()
		if bad := after[assembly.BadChecksum] - before[assembly.BadChecksum]; bad > 0 {
			r.config.Warn(Warning{Cause: BadChecksum, Title: file.Title(), N: bad, All: after[assembly.IPv4] - before[assembly.IPv4]})
		}
		readErr = errors.Join(readErr, file.End(err))
		if file.Interrupted {
			break
		}
	}
	flushErr := a.Flush()
	if err := cmp.Or(flushErr, endErr, r.finish()); err != nil {
		return err
	}
	if r.early != 0 {
		return fmt.Errorf("%d flows that were told of early did not end", r.early)
	}
	r.count(a.Counters(), files)
	return readErr
}

// count adds what a capture has to the summary, and warns of what is odd about it.
func (r *Replay) count(counters assembly.Counters, files []*captures.File) {
	r.summary.Counters.Add(&counters)
	r.summary.Flows += counters.Samples() - counters[assembly.Again]
	r.summary.Incomplete += counters[assembly.Incomplete]
	title := files[0].Title()
	if len(files) > 1 {
		title += fmt.Sprintf(" and %d more", len(files)-1)
	}
	if n := counters[assembly.Incomplete]; n > 0 {
		r.config.Warn(Warning{Cause: Incomplete, Title: title, N: n, All: counters.Samples()})
	}
	for _, a := range r.alerts {
		r.config.Warn(Warning{Cause: LimitReached, Title: title, N: uint64(a.Treated), All: uint64(a.Initiators), Alert: a})
	}
	n := counters[assembly.OneWay]
	if all := n + counters[assembly.Opened]; !r.config.Options.OneWay && float64(n) > oneWayShare*float64(all) {
		r.config.Warn(Warning{Cause: OneWay, Title: title, N: n, All: all})
	}
}

// feed gives the packets of one file to a.
func (r *Replay) feed(a *assembly.Assembler, file *captures.File) error {
	f, err := file.Open()
	if err != nil {
		return err
	}
	defer f.Close()
	f.Source.File = file.Name
	if file.Regular() {
		err = f.Feed(a, func(pos int64) { r.config.Progress(r.done + pos) })
		r.done += f.Size()
		r.config.Progress(r.done)
		return err
	}
	if r.config.Live != nil {
		file.CatchUp(func() error {
			r.liveErr = r.flushLive(a)
			return r.liveErr
		})
	}
	return f.Feed(a, nil)
}

// add takes a sample that was handed over.
func (r *Replay) add(f *assembly.Flow, s *flow.Sample) {
	if r.job == nil {
		r.job = <-r.spare
	}
	n := len(r.job.seqs)
	if len(r.job.samples) == n {
		r.job.samples = append(r.job.samples, new(flow.Sample))
	}
	r.job.samples[n].CopyFrom(s) // s is used again after this call
	r.job.seqs = append(r.job.seqs, f.Seq)
	if len(r.job.seqs) == Batch {
		r.submit()
	}
}

// submit gives the batch that is being filled to the workers.
func (r *Replay) submit() {
	if r.job != nil {
		r.pending.Add(1)
		r.job.before, r.job.done = r.last, make(chan struct{})
		r.last = r.job.done
		r.jobs <- r.job
		r.job = nil
	}
}

// work classifies and decides batches.
func (r *Replay) work() {
	results, decisions := make([]flow.Result, Batch), make([]policy.Decision, Batch)
	var encoded []byte
	for j := range r.jobs {
		n := len(j.seqs)
		err := r.config.Engine.Classify(j.samples[:n], results[:n])
		if j.before != nil {
			<-j.before
		}
		for i := 0; i < n && err == nil; i++ {
			decisions[i], _ = r.state.Decide(r.config.Policy, &j.samples[i].Meta, results[i])
		}
		close(j.done)
		for i := 0; i < n && err == nil; i++ {
			s := j.samples[i]
			encoded = r.coder.encode(encoded[:0], s, &results[i], &decisions[i])
			r.mu.Lock()
			err = r.sorter.Add(sortKey(j.seqs[i], s), encoded)
			r.mu.Unlock()
		}
		if err != nil {
			r.mu.Lock()
			r.err = cmp.Or(r.err, err)
			r.mu.Unlock()
		}
		j.seqs = j.seqs[:0]
		r.spare <- j
		r.pending.Done()
	}
}

// sortKey puts the verdicts of a flow behind one another.
func sortKey(seq uint64, s *flow.Sample) uint64 {
	key := seq<<revisionBits | uint64(s.Revision)<<1
	if s.Variant {
		key++
	}
	return key
}

const (
	revisionBits = 4 // 3 and one of the variant
	revisionMask = 1<<revisionBits - 1
)

// finish waits until all flows so far are classified.
func (r *Replay) finish() error {
	r.submit()
	r.pending.Wait()
	return r.err
}

// flushLive tells of the flows of a capture that goes on as far as they were handed over.
func (r *Replay) flushLive(a *assembly.Assembler) (err error) {
	if err := cmp.Or(a.Err(), r.finish()); err != nil {
		return err
	}
	sorter := r.sorter
	r.sorter = scratch.NewSorter("", 0)
	defer func() { err = errors.Join(err, sorter.Close()) }()
	for n := 0; ; n++ {
		key, data, err := sorter.Next()
		switch {
		case err == io.EOF && n == 0:
			return nil
		case err == io.EOF:
			return r.config.Live()
		case err != nil:
			return err
		}
		t := a.Totals(key >> revisionBits)
		if err := r.tell(&t, data); err != nil {
			return err
		}
		if key&revisionMask == 0 {
			r.early++
		}
	}
}

// end tells of the next flow of the capture, whose totals have come, as far as that was not
// done live.
func (r *Replay) end(t *assembly.Totals) error {
	for told := false; ; told = true {
		if err := r.next(); err != nil {
			return err
		}
		seq := r.ahead.key >> revisionBits
		if seq != t.Seq || !r.ahead.ready {
			if told {
				return nil
			}
			if r.early == 0 {
				return fmt.Errorf("flow %d has ended, but flow %d is the next one", t.Seq, seq)
			}
			r.early--
			return nil
		}
		if !told && r.ahead.key&revisionMask != 0 {
			r.early--
		}
		r.ahead.ready = false
		if err := r.tell(t, r.ahead.data); err != nil {
			return err
		}
	}
}

// next makes the next verdict ready, if there is one.
func (r *Replay) next() error {
	if r.ahead.ready {
		return nil
	}
	key, data, err := r.sorter.Next()
	if err == io.EOF {
		r.ahead = sortedFlow{}
		return nil
	}
	r.ahead = sortedFlow{err == nil, key, data}
	return err
}

// tell counts a flow, which the coder has encoded, and tells of it.
func (r *Replay) tell(t *assembly.Totals, data []byte) error {
	record := &r.record
	if err := r.coder.decode(data, record); err != nil {
		return err
	}
	record.FlowPackets, record.FlowBytes = t.Packets, t.Bytes
	// A flow is what its last verdict calls it, and dropped if one of them says so: live, it
	// would be the last one.
	dropped := uint64(0)
	if last := &r.latest; (record.Revised > 0 || record.Variant) && last.seq == t.Seq {
		r.summary.Classes[last.called] -= last.counted
		dropped = last.dropped
	}
	r.latest = lastVerdict{seq: t.Seq, called: record.called, dropped: dropped}
	if !record.Incomplete {
		r.latest.counted = 1
	}
	if record.Drop() {
		r.latest.dropped = 1
	}
	r.summary.Classes[record.called] += r.latest.counted
	r.summary.Drops += r.latest.dropped - dropped
	return r.config.Verdict(&record.Verdict)
}
