// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"runtime/debug"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/earlydrop/earlydrop/classifier"
	"github.com/earlydrop/earlydrop/classifier/onnx"
	"github.com/earlydrop/earlydrop/cmd/earlydrop/captures"
	"github.com/earlydrop/earlydrop/cmd/earlydrop/event"
	"github.com/earlydrop/earlydrop/cmd/earlydrop/replay"
	"github.com/earlydrop/earlydrop/cmd/earlydrop/term"
	"github.com/earlydrop/earlydrop/loader/assembly"
	"github.com/earlydrop/earlydrop/loader/assembly/scratch"
	"github.com/earlydrop/earlydrop/loader/flow"
	"github.com/earlydrop/earlydrop/loader/flow/headers"
)

// replayGC is by how many percent the heap grows until it is collected.
const replayGC = 40

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
parts that are merged at the end: some 90 bytes per flow of a file with more than
200 000, and each capture, with 150 bytes more, whenever it has to wait as 16 384
others were open at the same time and had packets since. The files have no names:
nothing stays behind, however replay ends.

Evidence and limits of the policy count by the time of the packets, so that the same files
always come to the same. A warning says when a limit was reached. Flows that passed before
their pair was treated, and that live would be cut with it, are shown as they were judged.

Each file is a capture of its own, of which nothing is known at its beginning. With --join the files are one capture that was
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

// openModel opens the model that --model names, for captures from files.
func openModel(c *cli.Context) (*classifier.Engine, error) {
	name, data, err := readModel(c.String("model"))
	if err != nil {
		return nil, err
	}
	return openEngine(name, data, onnx.Options{MaxBatch: replay.Batch})
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
	defer in.Close()
	groups := slices.Collect(slices.Chunk(in.Files, 1))
	if c.Bool("join") {
		in.SortByTime()
		groups = [][]*captures.File{in.Files}
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

	bar := term.NewProgress(c.App.ErrWriter, "replaying", in.Size())
	defer bar.Done()
	out := newFlowPrinter(c)
	config := replay.Config{
		Engine: engine, Policy: p, Options: assembly.Options{MidStream: midStream, UDPIdle: spanOf(c, "udp-idle"), OneWay: c.Bool("one-way")},
		Verdict: func(v *event.Verdict) error {
			bar.Clear()
			return out.print(v)
		},
		Warn: func(w replay.Warning) {
			bar.Clear()
			fmt.Fprintf(c.App.ErrWriter, "warning: %s\n", warningText(w))
		},
		Progress: bar.At,
	}
	summary := c.App.Writer
	if c.Bool("json") {
		config.Live, summary = out.flush, c.App.ErrWriter
	}
	r := replay.New(config)
	defer r.Close()
	cut, err := readCaptures(c.Context, r, groups, out)
	if err != nil {
		return err
	}
	bar.Done()
	if err := out.end(); err != nil {
		return err
	}
	if err := printSummary(summary, r.Summary(), len(in.Files)); err != nil {
		return err
	}
	return errors.Join(skipped(in.Empty), cut)
}

// readCaptures replays captures, which may be cut into files. cut says which could not be
// read whole.
func readCaptures(ctx context.Context, r *replay.Replay, groups [][]*captures.File, out *flowPrinter) (cut, err error) {
	for _, group := range groups {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		err := r.Read(group)
		var fileErr *assembly.FileError
		switch {
		case errors.As(err, &fileErr):
			cut = errors.Join(cut, err)
		case err != nil:
			return nil, adviseTempDir(err)
		}
		if err := out.flush(); err != nil {
			return nil, err
		}
		if slices.ContainsFunc(group, func(f *captures.File) bool { return f.Interrupted }) {
			break
		}
	}
	return cut, nil
}

// openCaptures opens the capture files of a command line; what is no capture is bad input.
func openCaptures(c *cli.Context, names []string, again bool) (*captures.Set, error) {
	in, err := captures.Open(c.Context, names, again)
	var input *captures.InputError
	if errors.As(err, &input) {
		return nil, asBadInput(err)
	}
	return in, err
}

// skipped joins the errors of files that were left out while others were read.
func skipped(files []error) (err error) {
	for _, e := range files {
		err = errors.Join(err, fmt.Errorf("%w, skipped", e))
	}
	return err
}

// adviseTempDir adds to the error of a temporary file what to do about it.
func adviseTempDir(err error) error {
	var temp *scratch.Error
	if errors.As(err, &temp) {
		return fmt.Errorf("%w: set TMPDIR to a folder with more room (replay --help says how much)", err)
	}
	return err
}

// warningText says what is odd about a capture, and what can be done.
func warningText(w replay.Warning) string {
	switch w.Cause {
	case replay.Incomplete:
		return fmt.Sprintf("%s: %d of %s incomplete: of packets with payload the file holds fewer than %d bytes of it; no rule drops such a flow (was the snap length small? tcpdump -s 0 keeps whole packets)",
			w.Title, w.N, count(w.All, "flow"), flow.IncompleteBytes)
	case replay.OneWay:
		return fmt.Sprintf("%s: of %.0f %% of the TCP connections (%d of %d) only one direction is there, so they are not judged; where routing was asymmetric, --one-way captures them",
			w.Title, 100*float64(w.N)/float64(w.All), w.N, w.All)
	}
	if w.Cause == replay.LimitReached {
		return fmt.Sprintf("%s: at %s the limit %s of the policy was reached: of %s in an hour, flows of %d were treated; what rules do without evidence paused until %s",
			w.Title, w.Alert.Time.UTC().Format(event.StartFormat), w.Alert.Limit, count(w.All, "initiator"), w.N, w.Alert.Until.UTC().Format(event.StartFormat))
	}
	have, are := "have", "are"
	if w.N == 1 {
		have, are = "has", "is"
	}
	return fmt.Sprintf("%s: %d of %s %s a wrong header checksum and %s part of no flow, as no host accepts that (were addresses changed after the capture? tcprewrite --fixcsum puts the checksums right; one of 0, which is left to the network card, is believed)",
		w.Title, w.N, count(w.All, "IPv4 packet"), have, are)
}

// printSummary says in words what was in the files.
func printSummary(w io.Writer, s replay.Summary, files int) error {
	var b strings.Builder
	fmt.Fprintf(&b, "%s in %s classified", count(s.Flows, "flow"), count(uint64(files), "file"))
	for i, class := range slices.Sorted(maps.Keys(s.Classes)) {
		b.WriteString([]string{": ", ", "}[min(i, 1)])
		fmt.Fprintf(&b, "%d %s", s.Classes[class], class)
	}
	if s.Incomplete > 0 {
		fmt.Fprintf(&b, "; %d incomplete", s.Incomplete)
	}
	fmt.Fprintf(&b, "; the policy drops %d\n", s.Drops)
	fmt.Fprintf(&b, "%s:", count(s.Counters.Packets(), "packet"))
	for c := range assembly.NumCounters {
		if n := s.Counters[c]; n > 0 && c != assembly.Counter(headers.OK) && c != assembly.IPv4 {
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

// flowPrinter prints flows, as a table or as JSON.
type flowPrinter struct {
	out     *bufio.Writer
	json    *json.Encoder // nil: a table
	columns *term.Columns
	files   bool // with a column for the file
	rows    int
}

func newFlowPrinter(c *cli.Context) *flowPrinter {
	p := &flowPrinter{out: bufio.NewWriter(c.App.Writer), files: c.NArg() > 1}
	if c.Bool("json") {
		p.json = json.NewEncoder(p.out)
	}
	p.columns = term.NewColumns(p.out)
	return p
}

func (p *flowPrinter) print(v *event.Verdict) error {
	if p.json != nil {
		return p.json.Encode(v)
	}
	if p.rows == 0 {
		if err := p.row("FILE", "START", "PROTO", "SRC", "DST", "PACKETS", "BYTES", "CAPTURED", "CLASS", "CONFIDENCE", "DECISION", "RULE", "NOTE"); err != nil {
			return err
		}
	}
	p.rows++
	class, confidence := v.Columns(v.Class, v.Confidence)
	return p.row(v.File, v.Start.Format(event.StartFormat), v.Proto, v.Src.String(), v.Dst.String(), fmt.Sprint(v.FlowPackets), fmt.Sprint(v.FlowBytes),
		fmt.Sprint(v.Captured), class, confidence, v.Decision, cmp.Or(v.Rule, "-"), v.Note())
}

func (p *flowPrinter) row(cells ...string) error {
	if !p.files {
		cells = cells[1:]
	}
	return p.columns.Row(cells...)
}

// flush prints what was given so far; the rows of a table may wait for others.
func (p *flowPrinter) flush() error { return p.out.Flush() }

// end prints the rest.
func (p *flowPrinter) end() error { return errors.Join(p.columns.Flush(), p.out.Flush()) }
