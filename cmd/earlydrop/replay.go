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
	"runtime"
	"slices"
	"strings"
	"sync"
	"text/tabwriter"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/earlydrop/earlydrop/classifier"
	"github.com/earlydrop/earlydrop/loader/assembly"
	"github.com/earlydrop/earlydrop/loader/flow"
	"github.com/earlydrop/earlydrop/loader/flow/headers"
	"github.com/earlydrop/earlydrop/policy"
)

// startFormat is how the start of a flow is printed for people, in UTC.
const startFormat = "2006-01-02 15:04:05.000"

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
interface. Segments that are not in place, by their numbers, are not captured. src is the
side that opened the flow; packets and bytes count the whole flow (bytes on the wire, link
header included), captured is what the model saw, and decision is what the policy
says, whatever its mode. The class is unknown where the model's likeliest label, whose
probability is the confidence, is below the model's bound. A summary says what else was
in the files.

With --json each line is an object with the fields file, src, dst, proto, start,
packets, bytes, captured, complete, class, confidence, scores, decision and rule,
and the summary goes to the error output; resumed is there, and true, for a UDP flow
that was silent for --udp-idle before. The flows of a pipe are then printed within
a second of their verdict: they are in order of their start only within that second,
and packets and bytes may count the flow only until its verdict.

Each file is a capture of its own. With --join the files are one capture that was
cut into several: flows go on from file to file. The files are read in order of the
time of their first packet, however they are named; file is where a flow begins.

A file that is cut off, or has packets of which nothing can be read, is reported as
far as it goes; then the exit code is 1.

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
			udpIdleFlag(),
			&cli.BoolFlag{Name: "join", Usage: "read all files as one capture, in order of time"},
			&cli.BoolFlag{Name: "json", Usage: "print one JSON object per flow on a line"},
		},
		Action: runReplay,
	}
}

// replayRecord is one flow in the output. The JSON names are an interface.
type replayRecord struct {
	File       string             `json:"file"`
	Src        string             `json:"src"`
	Dst        string             `json:"dst"`
	Proto      string             `json:"proto"`
	Start      string             `json:"start"`
	Packets    uint64             `json:"packets"`
	Bytes      uint64             `json:"bytes"`
	Captured   int                `json:"captured"`
	Complete   bool               `json:"complete"`
	Class      string             `json:"class"`
	Confidence float64            `json:"confidence"`
	Scores     map[string]float64 `json:"scores"`
	Decision   string             `json:"decision"`
	Rule       string             `json:"rule"`
	Resumed    bool               `json:"resumed,omitempty"`

	seq uint64
}

// replayJob is a batch of flows to be classified.
type replayJob struct {
	samples []*flow.Sample
	records []*replayRecord
}

// replay takes files through assembly, classifier and policy.
type replay struct {
	engine *classifier.Engine
	policy *policy.Policy
	// midStream captures TCP flows whose beginning is not in the file.
	midStream bool
	udpIdle   time.Duration // 0: the default

	jobs    chan *replayJob
	spare   chan *replayJob // empty ones; their number bounds memory
	workers sync.WaitGroup  // running workers
	pending sync.WaitGroup  // jobs not done yet
	mu      sync.Mutex
	err     error // the first error of a worker

	// live (optional) prints the flows of a pipe while it goes on; liveErr is its
	// first error.
	live    func([]*replayRecord) error
	liveErr error

	files    []*capture // of the capture
	begins   fileBegins // of those that were read
	job      *replayJob // being filled
	records  []*replayRecord
	counters assembly.Counters
	classes  map[string]int
	drops    int
}

// openModel opens the model that --model names, for captures from files.
func openModel(c *cli.Context) (*classifier.Engine, error) {
	name, onnx, err := readModel(c.String("model"))
	if err != nil {
		return nil, err
	}
	return openEngine(name, onnx, classifier.Options{MaxBatch: replayBatch})
}

func runReplay(c *cli.Context) (err error) {
	if err := requireArgs(c, 1, -1, "FILE"); err != nil {
		return err
	}
	midStream, err := parseMidStream(c.String("mid-stream"))
	if err != nil {
		return err
	}
	idle, err := udpIdle(c)
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

	engine, err := openModel(c)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, engine.Close()) }()
	p, err := loadPolicy(c.String("policy"), policyModel(engine.Manifest()))
	if err != nil {
		return err
	}

	r := startReplay(engine, p)
	r.midStream, r.udpIdle = midStream, idle
	defer r.stop()
	bar := newProgress(c.App.ErrWriter, "replaying", in.size())
	defer bar.done()
	out := bufio.NewWriter(c.App.Writer)
	var lines replayPrinter = newReplayTable(out, len(in.list) > 1)
	if c.Bool("json") {
		lines = &replayJSON{json.NewEncoder(out)}
	}
	show := func(records []*replayRecord) error {
		bar.clear()
		for _, record := range records {
			if err := lines.print(record); err != nil {
				return err
			}
		}
		return out.Flush()
	}
	if c.Bool("json") {
		r.live = show
	}

	var cut error
	for _, group := range groups {
		if err := c.Context.Err(); err != nil {
			return err
		}
		records, err := r.read(group, bar)
		var fileErr *assembly.FileError
		switch {
		case errors.As(err, &fileErr):
			cut = errors.Join(cut, err)
		case err != nil:
			return err
		}
		if err := show(records); err != nil {
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

// startReplay starts the workers. stop ends them.
func startReplay(engine *classifier.Engine, p *policy.Policy) *replay {
	n := runtime.GOMAXPROCS(0)
	r := &replay{engine: engine, policy: p, jobs: make(chan *replayJob, 2*n), spare: make(chan *replayJob, 2*n),
		classes: map[string]int{}}
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
	for job := range r.jobs {
		n := len(job.records)
		if err := r.engine.Classify(job.samples[:n], results[:n]); err != nil {
			r.mu.Lock()
			r.err = cmp.Or(r.err, err)
			r.mu.Unlock()
		} else {
			for i, record := range job.records {
				record.setResult(&results[i], r.policy.Decide(&job.samples[i].Meta, results[i]))
			}
		}
		job.records = job.records[:0]
		r.spare <- job
		r.pending.Done()
	}
}

// setResult fills in what classifier and policy said. Probabilities are
// rounded, as their last digits depend on the machine.
func (record *replayRecord) setResult(result *flow.Result, d policy.Decision) {
	round := func(p float64) float64 { return math.Round(p*1e6) / 1e6 }
	record.Class, record.Confidence = result.Class, round(result.Confidence)
	record.Scores = make(map[string]float64, len(result.Labels))
	for i, label := range result.Labels {
		record.Scores[label] = round(result.Scores[i])
	}
	record.Decision, record.Rule = d.Action.String(), d.Rule
}

// read returns the flows of one capture, which may be cut into several files, in
// order of their start. Those of a pipe go to live instead, if there is one. When
// files could not be read whole, they come with their *assembly.FileError, joined.
// An interrupt ends the capture.
func (r *replay) read(files []*capture, bar *progress) ([]*replayRecord, error) {
	r.files, r.begins, r.records = files, nil, nil
	a := assembly.New(assembly.Options{MidStream: r.midStream, UDPIdle: r.udpIdle}, r.add, func(f *assembly.Flow) {
		record := f.User.(*replayRecord)
		record.Packets, record.Bytes = f.Packets, f.Bytes
	})
	var readErr error
	for _, file := range files {
		r.begins = append(r.begins, a.Begun())
		err := r.feed(a, file, bar)
		if liveErr := r.liveErr; liveErr != nil {
			return nil, liveErr
		}
		readErr = errors.Join(readErr, file.end(err))
		if file.interrupted {
			break
		}
	}
	a.Flush()
	records, err := r.finish()
	if err != nil {
		return nil, err
	}
	counters := a.Counters()
	r.counters.Add(&counters)
	return records, readErr
}

// feed gives the packets of one file to a.
func (r *replay) feed(a *assembly.Assembler, file *capture, bar *progress) error {
	f, err := file.open()
	if err != nil {
		return err
	}
	defer f.Close()
	if file.pipe == nil {
		err = f.Feed(a, bar.at)
		bar.fileDone(f.Size())
		return err
	}
	if r.live != nil {
		file.pipe.catchUp, file.pipe.caughtUp = r.flushLive, time.Now()
	}
	return f.Feed(a, nil)
}

// finish waits for the verdicts on all flows that were handed over and returns
// those that were not printed yet, in order of their start.
func (r *replay) finish() ([]*replayRecord, error) {
	r.submit()
	r.pending.Wait()
	if r.err != nil {
		return nil, r.err
	}
	records := r.records
	r.records = nil
	for _, record := range records {
		r.classes[record.Class]++
		if record.Decision == policy.Drop.String() {
			r.drops++
		}
	}
	slices.SortFunc(records, func(a, b *replayRecord) int { return cmp.Compare(a.seq, b.seq) })
	return records, nil
}

// flushLive prints the flows of a pipe that were handed over.
func (r *replay) flushLive() error {
	records, err := r.finish()
	if err == nil {
		err = r.live(records)
	}
	r.liveErr = err
	return err
}

// add takes a sample that was handed over.
func (r *replay) add(f *assembly.Flow, s *flow.Sample) {
	record := &replayRecord{
		File: r.files[r.begins.of(f.Seq)].name, Src: s.Initiator().String(), Dst: s.Responder().String(), Proto: s.Key.Proto.String(),
		Start: s.Start.UTC().Format(time.RFC3339Nano), Captured: len(s.Data), Complete: s.Complete(), seq: f.Seq,
		Packets: f.Packets, Bytes: f.Bytes, Resumed: s.Resumed,
	}
	f.User = record
	r.records = append(r.records, record)

	if r.job == nil {
		r.job = <-r.spare
	}
	job := r.job
	if len(job.samples) == len(job.records) {
		job.samples = append(job.samples, new(flow.Sample))
	}
	copySample(job.samples[len(job.records)], s) // s is used again after this call
	job.records = append(job.records, record)
	if len(job.records) == replayBatch {
		r.submit()
	}
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
	fmt.Fprintf(&b, "; the policy drops %d\n", r.drops)
	fmt.Fprintf(&b, "%s:", count(r.counters.Packets(), "packet"))
	for c := range assembly.NumCounters {
		if n := r.counters[c]; n > 0 && c != assembly.Counter(headers.OK) {
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

func (j *replayJSON) print(record *replayRecord) error { return j.e.Encode(record) }
func (j *replayJSON) flush() error                     { return nil }

// replayTable prints aligned columns.
type replayTable struct {
	w     *tabwriter.Writer
	files bool // with a column for the file
	rows  int
}

func newReplayTable(w io.Writer, files bool) *replayTable {
	return &replayTable{w: tabwriter.NewWriter(w, 0, 0, 2, ' ', 0), files: files}
}

func (t *replayTable) print(r *replayRecord) error {
	if t.rows == 0 {
		if err := t.row("FILE", "START", "PROTO", "SRC", "DST", "PACKETS", "BYTES", "CAPTURED", "CLASS", "CONFIDENCE", "DECISION", "RULE"); err != nil {
			return err
		}
	}
	t.rows++
	start, err := time.Parse(time.RFC3339Nano, r.Start)
	if err != nil {
		return err
	}
	return t.row(r.File, start.Format(startFormat), r.Proto, r.Src, r.Dst, fmt.Sprint(r.Packets), fmt.Sprint(r.Bytes),
		fmt.Sprint(r.Captured), r.Class, fmt.Sprintf("%.4f", r.Confidence), r.Decision, cmp.Or(r.Rule, "-"))
}

func (t *replayTable) row(cells ...string) error {
	if !t.files {
		cells = cells[1:]
	}
	_, err := fmt.Fprintln(t.w, strings.Join(cells, "\t"))
	return err
}

func (t *replayTable) flush() error {
	return t.w.Flush()
}
