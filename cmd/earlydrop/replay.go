// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"os"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/earlydrop/earlydrop/classifier"
	"github.com/earlydrop/earlydrop/classifier/onnx"
	"github.com/earlydrop/earlydrop/loader/assembly"
	"github.com/earlydrop/earlydrop/loader/assembly/scratch"
	"github.com/earlydrop/earlydrop/loader/flow"
	"github.com/earlydrop/earlydrop/loader/flow/headers"
	"github.com/earlydrop/earlydrop/policy"
)

// startFormat is how the start of a flow is printed for people, in UTC.
const startFormat = "2006-01-02 15:04:05.000"

// replayGC is by how many percent the heap grows until it is collected.
const replayGC = 40

// replayBatch is how many flows replay classifies at once.
const replayBatch = 32

func replayCommand() *cli.Command {
	return &cli.Command{
		Name:      "replay",
		Usage:     "say what would become of the flows in capture files",
		ArgsUsage: "FILE...",
		Description: `Reads pcap and pcapng files (also compressed with gzip) and treats their flows as
the live data path does: the same first 1024 bytes, model and policy. Needs no root
and changes nothing. FILE may be a pipe; - is standard input. An interrupt (Ctrl-C)
ends a pipe, and what was read of it is printed.

Link types: Ethernet, raw IP, Linux cooked (v1, v2), BSD loopback, PPP, PPPoE, Cisco
HDLC, Linux netfilter log, 802.11 (plain, radiotap, Prism, AVS), PPI, PKTAP, FDDI, ATM,
MPLS, OpenBSD pflog and enc. Packets of others are skipped and counted.

Each flow with payload, whose beginning is in the file, is one line. A TCP connection
begins with a SYN, a SYN+ACK that acknowledges it, and a segment that acknowledges that,
a UDP flow when both sides have spoken, the second within 30 seconds;
where pcapng or Linux cooked packets say their direction, from the right sides of the
interface. With --one-way a TCP connection of which one direction alone is there begins
with a SYN and its sender's next segment, or with a SYN+ACK and its sender's; without it,
a warning says so when those are more than 5 % of a capture. Segments that are not in
place, by their numbers, are not captured. IPv4 packets whose header has a wrong checksum
are part of no flow, and a warning for each file counts them; a checksum of 0, left to
the network card, is believed.

In the table, SRC is the side that opened the flow, PACKETS and BYTES count the whole
flow (bytes on the wire, link header included), CAPTURED is what the model saw, and
DECISION is what the policy says, whatever its mode. Where a rule was asked, the confidence is the probability
that the flow is of one of the rule's classes, and the class names those of them that
it comes from, as in shadowsocks|v2ray. Otherwise both are the model's; the class is
unknown where no label is likely enough. The likeliest label is in brackets where it is
not the class. A summary says what else was in the files.

With --json each line is a verdict as attach --json writes it (attach --help), and the
summary goes to the error output. The time is that of the capture; packets and bytes are
those of the capture that was judged, as live, and flow_packets and flow_bytes count the
whole flow. file is there instead of interface, and what only live traffic has is not:
mode, enforced, error, verdict_ms and latency_us. The flows of a pipe
are then printed within a second of their verdict: they are in order of their start only
within that second, and flow_packets and flow_bytes count the flow only until then. Five
fields are there, and true, where they hold; the table has them as a note:
   cut         of some captured packet the file lacks bytes, as with a small snap length
   incomplete  too many of them: of a packet with payload fewer than 32 bytes of it are
               in the file, or fewer than all if it has fewer. No rule drops such a
               flow, and a warning counts them
   mid_stream  captured from its middle (--mid-stream capture): only rules with
               mid_stream: true drop it
   resumed     a UDP flow that was silent for --udp-idle before: the same
   one_way     one direction alone of a TCP connection is in the file (--one-way): only
               rules with one_way: true drop it

Memory is bounded but for 50 bytes per flow, or per SYN that begins none. What more is
needed of many flows goes to temporary files in TMPDIR (/tmp without it), sorted in
parts that are merged at the end: some 80 bytes per flow of a file with more than
200 000, and each capture, with 150 bytes more, whenever it has to wait as 16 384
others were open at the same time and had packets since. The files have no names:
nothing stays behind, however replay ends.

Each file is a capture of its own. With --join the files are one capture that was
cut into several: flows go on from file to file. The files are read in order of the
time of their first packet, however they are named; file is where a flow begins.

A file that is cut off, or has packets of which nothing can be read, is reported as
far as it goes; then the exit code is 1. So it is when a file among others is empty, or
too short for a file header: that one is skipped.

Examples:
   earlydrop replay capture.pcapng
   ssh gateway tcpdump -i eth0 -U -w - | earlydrop replay --json -
   earlydrop replay --join ring.pcap*
   earlydrop replay --json *.pcap | jq 'select(.decision == "drop")'
   earlydrop replay --policy strict.yaml --model my.onnx capture.pcap.gz`,
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "policy", Usage: "policy `FILE` (default: the shipped policy)", TakesFile: true},
			&cli.StringFlag{Name: "model", Usage: "model `FILE`, or the shipped \"paper\" (default: the shipped compact one)", TakesFile: true},
			midStreamFlag(),
			oneWayFlag(),
			udpIdleFlag(),
			&cli.BoolFlag{Name: "join", Usage: "read all files as one capture, in order of time"},
			&cli.BoolFlag{Name: "json", Usage: "print one JSON object per flow on a line"},
		},
		Action: runReplay,
	}
}

// replayJob is a batch of flows to be classified.
type replayJob struct {
	samples []*flow.Sample // the first len(seqs) are in use
	seqs    []uint64
}

// sortedFlow is a flow that comes out of a sorter.
type sortedFlow struct {
	ready bool
	seq   uint64 // math.MaxUint64 behind the last
	data  []byte
}

// replay takes files through assembly, classifier and policy.
type replay struct {
	engine *classifier.Engine
	policy *policy.Policy
	// options say which flows are captured, and when.
	options assembly.Options
	// print gets the flows of each capture in order of their start.
	print func(*replayRecord) error
	warn  func(string)
	// live (optional) makes the flows of a pipe printed while it goes on, and is
	// called after some were; liveErr is the first error of that.
	live    func() error
	liveErr error

	jobs    chan *replayJob
	spare   chan *replayJob // empty ones; their number bounds memory
	workers sync.WaitGroup  // running workers
	pending sync.WaitGroup  // jobs not done yet
	coder   *recordCoder
	mu      sync.Mutex
	sorter  *scratch.Sorter // the flows that were classified and not printed, by seq
	err     error           // the first error of a worker

	record   replayRecord // the same for all flows, to spare memory
	ahead    sortedFlow   // the next one of sorter, once the capture has ended
	early    int          // flows that were printed live
	job      *replayJob   // being filled
	counters assembly.Counters
	classes  map[string]int
	drops    int
}

// openModel opens the model that --model names, for captures from files.
func openModel(c *cli.Context) (*classifier.Engine, error) {
	name, data, err := readModel(c.String("model"))
	if err != nil {
		return nil, err
	}
	return openEngine(name, data, onnx.Options{MaxBatch: replayBatch})
}

func runReplay(c *cli.Context) (err error) {
	if err := requireArgs(c, 1, -1, "FILE"); err != nil {
		return err
	}
	midStream, err := parseMidStream(c.String("mid-stream"))
	if err != nil {
		return err
	}
	in, err := openCaptures(c, c.Args().Slice(), false) // before anything is printed
	if err != nil {
		return err
	}
	defer in.close()
	groups := slices.Collect(slices.Chunk(in.list, 1))
	if c.Bool("join") {
		in.sortByTime()
		groups = [][]*capture{in.list}
	}

	// Of a long capture the heap is mostly figures, which cost the garbage collector
	// nothing: let it come more often instead of waiting until memory has doubled.
	if os.Getenv("GOGC") == "" {
		defer debug.SetGCPercent(debug.SetGCPercent(replayGC))
	}
	engine, err := openModel(c)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, engine.Close()) }()
	p, err := loadPolicy(c.String("policy"), policyModel(engine.Manifest()))
	if err != nil {
		return err
	}

	bar := newProgress(c.App.ErrWriter, "replaying", in.size())
	defer bar.done()
	out := bufio.NewWriter(c.App.Writer)
	var lines replayPrinter = newReplayTable(out, c.NArg() > 1)
	if c.Bool("json") {
		lines = &replayJSON{json.NewEncoder(out)}
	}

	r := startReplay(engine, p)
	r.options = assembly.Options{MidStream: midStream, UDPIdle: spanOf(c, "udp-idle"), OneWay: c.Bool("one-way")}
	r.print = lines.print
	r.warn = func(text string) { fmt.Fprintf(c.App.ErrWriter, "warning: %s\n", text) }
	if c.Bool("json") {
		r.live = out.Flush
	}
	defer r.stop()

	cut := skipped(in.empty)
	for _, group := range groups {
		if err := c.Context.Err(); err != nil {
			return err
		}
		err := r.read(group, bar)
		var fileErr *assembly.FileError
		switch {
		case errors.As(err, &fileErr):
			cut = errors.Join(cut, err)
		case err != nil:
			return adviseTempDir(err)
		}
		if err := out.Flush(); err != nil {
			return err
		}
		if slices.ContainsFunc(group, func(f *capture) bool { return f.interrupted }) {
			break
		}
	}
	bar.done()
	if err := errors.Join(lines.flush(), out.Flush()); err != nil {
		return err
	}
	summary := c.App.Writer
	if c.Bool("json") {
		summary = c.App.ErrWriter
	}
	if err := r.summary(summary, len(in.list)); err != nil {
		return err
	}
	return cut
}

// adviseTempDir adds to the error of a temporary file what to do about it.
func adviseTempDir(err error) error {
	var temp *scratch.Error
	if errors.As(err, &temp) {
		return fmt.Errorf("%w: set TMPDIR to a folder with more room (replay --help says how much)", err)
	}
	return err
}

// startReplay starts the workers. stop ends them.
func startReplay(engine *classifier.Engine, p *policy.Policy) *replay {
	n := runtime.GOMAXPROCS(0)
	r := &replay{engine: engine, policy: p, jobs: make(chan *replayJob, 2*n), spare: make(chan *replayJob, 2*n),
		coder: newRecordCoder(engine.Manifest()), classes: map[string]int{}, warn: func(string) {}}
	for range 2 * n {
		r.spare <- &replayJob{}
	}
	for range n {
		r.workers.Go(r.work)
	}
	return r
}

func (r *replay) stop() {
	close(r.jobs)
	r.workers.Wait()
}

// work classifies and decides batches.
func (r *replay) work() {
	results := make([]flow.Result, replayBatch)
	var record []byte
	for job := range r.jobs {
		n := len(job.seqs)
		err := r.engine.Classify(job.samples[:n], results[:n])
		for i := 0; i < n && err == nil; i++ {
			s := job.samples[i]
			d := r.policy.Decide(&s.Meta, results[i])
			record = r.coder.encode(record[:0], s, &results[i], &d)
			r.mu.Lock()
			err = r.sorter.Add(job.seqs[i], record)
			r.mu.Unlock()
		}
		if err != nil {
			r.mu.Lock()
			r.err = cmp.Or(r.err, err)
			r.mu.Unlock()
		}
		job.seqs = job.seqs[:0]
		r.spare <- job
		r.pending.Done()
	}
}

// read prints the flows of one capture, which may be cut into several files, in order
// of their start. Those of a pipe are printed before, if r.live is set. When files could
// not be read whole, it returns their *assembly.FileError, joined; what could be read
// was printed then. An interrupt ends the capture.
func (r *replay) read(files []*capture, bar *progress) (err error) {
	r.sorter = scratch.NewSorter("", 0)
	r.ahead, r.early = sortedFlow{}, 0
	defer func() {
		r.pending.Wait()
		err = errors.Join(err, r.sorter.Close())
	}()
	ended := false
	var endErr error
	var a *assembly.Assembler
	a = assembly.New(r.options, r.add, func(t assembly.Totals) {
		if !ended { // the first flow of the capture; all are handed over
			ended, endErr = true, cmp.Or(a.Err(), r.finish())
			bar.clear()
		}
		if endErr == nil {
			endErr = r.end(&t)
		}
	})
	var readErr error
	for _, file := range files {
		before := a.Counters()
		err := r.feed(a, file, bar)
		if r.liveErr != nil {
			return r.liveErr
		}
		if a.Err() != nil {
			break // Flush returns it
		}
		after := a.Counters()
		if bad := after[assembly.BadChecksum] - before[assembly.BadChecksum]; bad > 0 {
			bar.clear()
			r.warn(checksumWarning(file, bad, after[assembly.IPv4]-before[assembly.IPv4]))
		}
		readErr = errors.Join(readErr, file.end(err))
		if file.interrupted {
			break
		}
	}
	flushErr := a.Flush()
	if err := cmp.Or(flushErr, endErr, r.finish()); err != nil {
		return err
	}
	if r.early != 0 {
		return fmt.Errorf("%s printed early did not end", count(uint64(r.early), "flow"))
	}
	counters := a.Counters()
	r.counters.Add(&counters)
	if n := counters[assembly.Incomplete]; n > 0 {
		bar.clear()
		r.warn(incompleteWarning(files, n, counters.Samples()))
	}
	n := counters[assembly.OneWay]
	if all := n + counters[assembly.Opened]; !r.options.OneWay && float64(n) > oneWayShare*float64(all) {
		bar.clear()
		r.warn(oneWayWarning(files, n, all))
	}
	return readErr
}

// feed gives the packets of one file to a.
func (r *replay) feed(a *assembly.Assembler, file *capture, bar *progress) error {
	f, err := file.open()
	if err != nil {
		return err
	}
	defer f.Close()
	f.Source.File = file.name
	if file.pipe == nil {
		err = f.Feed(a, bar.at)
		bar.fileDone(f.Size())
		return err
	}
	if r.live != nil {
		file.pipe.catchUp = func() error {
			r.liveErr = r.flushLive(a, bar)
			return r.liveErr
		}
		file.pipe.caughtUp = time.Now()
	}
	return f.Feed(a, nil)
}

// flushLive prints the flows of a capture that goes on as far as they were handed over.
func (r *replay) flushLive(a *assembly.Assembler, bar *progress) (err error) {
	if err := cmp.Or(a.Err(), r.finish()); err != nil {
		return err
	}
	sorter := r.sorter
	r.sorter = scratch.NewSorter("", 0)
	defer func() { err = errors.Join(err, sorter.Close()) }()
	for n := 0; ; n++ {
		seq, data, err := sorter.Next()
		switch {
		case err == io.EOF && n == 0:
			return nil
		case err == io.EOF:
			return r.live()
		case err != nil:
			return err
		}
		if n == 0 {
			bar.clear()
		}
		t := a.Totals(seq)
		if err := r.show(&t, data); err != nil {
			return err
		}
		r.early++
	}
}

// titleOf names a capture in messages.
func titleOf(files []*capture) string {
	title := files[0].title()
	if len(files) > 1 {
		title += fmt.Sprintf(" and %d more", len(files)-1)
	}
	return title
}

// incompleteWarning says that a capture has flows that can't be judged.
func incompleteWarning(files []*capture, n, all uint64) string {
	return fmt.Sprintf("%s: %d of %s incomplete: of packets with payload the file holds fewer than %d bytes of it; no rule drops such a flow (was the snap length small? tcpdump -s 0 keeps whole packets)",
		titleOf(files), n, count(all, "flow"), flow.IncompleteBytes)
}

// oneWayWarning says that much of a capture is not judged, as one direction is missing.
func oneWayWarning(files []*capture, n, all uint64) string {
	return fmt.Sprintf("%s: of %.0f %% of the TCP connections (%d of %d) only one direction is there, so they are not judged; where routing was asymmetric, --one-way captures them",
		titleOf(files), 100*float64(n)/float64(all), n, all)
}

// checksumWarning says that a file has packets that no host accepts.
func checksumWarning(file *capture, n, all uint64) string {
	have, are := "have", "are"
	if n == 1 {
		have, are = "has", "is"
	}
	return fmt.Sprintf("%s: %d of %s %s a wrong header checksum and %s part of no flow, as no host accepts that (were addresses changed after the capture? tcprewrite --fixcsum puts the checksums right; one of 0, which is left to the network card, is believed)",
		file.title(), n, count(all, "IPv4 packet"), have, are)
}

// add takes a sample that was handed over.
func (r *replay) add(f *assembly.Flow, s *flow.Sample) {
	if r.job == nil {
		r.job = <-r.spare
	}
	job := r.job
	n := len(job.seqs)
	if len(job.samples) == n {
		job.samples = append(job.samples, new(flow.Sample))
	}
	copySample(job.samples[n], s) // s is used again after this call
	job.seqs = append(job.seqs, f.Seq)
	if len(job.seqs) == replayBatch {
		r.submit()
	}
}

// finish waits until all flows so far are classified.
func (r *replay) finish() error {
	r.submit()
	r.pending.Wait()
	return r.err
}

// end prints the next flow of the capture, whose totals have come, unless it was
// printed live.
func (r *replay) end(t *assembly.Totals) error {
	if !r.ahead.ready {
		seq, data, err := r.sorter.Next()
		if err == io.EOF {
			seq = math.MaxUint64
		} else if err != nil {
			return err
		}
		r.ahead = sortedFlow{true, seq, data}
	}
	if t.Seq < r.ahead.seq && r.early > 0 {
		r.early--
		return nil
	}
	if t.Seq != r.ahead.seq {
		return fmt.Errorf("flow %d has ended, but flow %d is the next one", t.Seq, r.ahead.seq)
	}
	r.ahead.ready = false
	return r.show(t, r.ahead.data)
}

// show prints a flow, which the coder has encoded.
func (r *replay) show(t *assembly.Totals, data []byte) error {
	record := &r.record
	if err := r.coder.decode(data, record); err != nil {
		return err
	}
	record.FlowPackets, record.FlowBytes = t.Packets, t.Bytes
	if !record.Incomplete {
		r.classes[record.called]++
	}
	if record.Drop() {
		r.drops++
	}
	return r.print(record)
}

// copySample makes dst equal to s, in memory of its own.
func copySample(dst, s *flow.Sample) {
	dst.Reset()
	dst.Meta = s.Meta
	dst.Packets = append(dst.Packets, s.Packets...)
	dst.Data = append(dst.Data, s.Data...)
}

// submit gives the batch that is being filled to the workers.
func (r *replay) submit() {
	if r.job != nil {
		r.pending.Add(1)
		r.jobs <- r.job
		r.job = nil
	}
}

// summary says in words what was in the files.
func (r *replay) summary(w io.Writer, files int) error {
	var b strings.Builder
	n := r.counters.Samples()
	fmt.Fprintf(&b, "%s in %s classified", count(n, "flow"), count(uint64(files), "file"))
	for i, class := range slices.Sorted(maps.Keys(r.classes)) {
		b.WriteString([]string{": ", ", "}[min(i, 1)])
		fmt.Fprintf(&b, "%d %s", r.classes[class], class)
	}
	if n := r.counters[assembly.Incomplete]; n > 0 {
		fmt.Fprintf(&b, "; %d incomplete", n)
	}
	fmt.Fprintf(&b, "; the policy drops %d\n", r.drops)
	fmt.Fprintf(&b, "%s:", count(r.counters.Packets(), "packet"))
	for c := range assembly.NumCounters {
		if n := r.counters[c]; n > 0 && c != assembly.Counter(headers.OK) && c != assembly.IPv4 {
			fmt.Fprintf(&b, " %s %d", c, n)
		}
	}
	b.WriteString("\n")
	_, err := io.WriteString(w, b.String())
	return err
}

func count(n uint64, what string) string {
	if n != 1 {
		what += "s"
	}
	return fmt.Sprintf("%d %s", n, what)
}

// replayPrinter writes the flows.
type replayPrinter interface {
	print(*replayRecord) error
	flush() error
}

type replayJSON struct{ e *json.Encoder }

func (j *replayJSON) print(record *replayRecord) error { return j.e.Encode(&record.Verdict) }
func (j *replayJSON) flush() error                     { return nil }

// replayTable prints aligned columns.
type replayTable struct {
	columns *columnTable
	files   bool // with a column for the file
	rows    int
}

func newReplayTable(w io.Writer, files bool) *replayTable {
	return &replayTable{columns: newColumns(w), files: files}
}

func (t *replayTable) print(r *replayRecord) error {
	if t.rows == 0 {
		if err := t.row("FILE", "START", "PROTO", "SRC", "DST", "PACKETS", "BYTES", "CAPTURED", "CLASS", "CONFIDENCE", "DECISION", "RULE", "NOTE"); err != nil {
			return err
		}
	}
	t.rows++
	class, confidence := r.Columns(r.Class, r.Confidence)
	return t.row(r.File, r.Start.Format(startFormat), r.Proto, r.Src.String(), r.Dst.String(), fmt.Sprint(r.FlowPackets), fmt.Sprint(r.FlowBytes),
		fmt.Sprint(r.Captured), class, confidence, r.Decision, cmp.Or(r.Rule, "-"), r.Note())
}

func (t *replayTable) row(cells ...string) error {
	if !t.files {
		cells = cells[1:]
	}
	return t.columns.row(cells...)
}

func (t *replayTable) flush() error { return t.columns.flush() }
