// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"context"
	"encoding/csv"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"net/netip"
	"os/signal"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"

	"github.com/earlydrop/earlydrop/cmd/earlydrop/control"
	"github.com/earlydrop/earlydrop/cmd/earlydrop/event"
	"github.com/earlydrop/earlydrop/cmd/earlydrop/event/eventlog"
	"github.com/earlydrop/earlydrop/cmd/earlydrop/history"
	"github.com/earlydrop/earlydrop/policy"
)

// historyFile is where the service keeps its history.
var historyFile = stateDir + "/history.db"

// historyFlags are those of attach about the history.
func historyFlags() []cli.Flag {
	age, captureAge := ttl(history.DefaultAge), ttl(history.DefaultCaptureAge)
	return []cli.Flag{
		&cli.StringFlag{Name: "history", Usage: "keep events in `FILE`, for earlydrop events; the service's is " + historyFile, DefaultText: "keep none", TakesFile: true},
		numberFlag("history-size", "let the history take `N` MiB; the oldest events make room", strconv.Itoa(history.DefaultBytes>>20), history.LeastBytes>>20, 1<<20),
		&cli.GenericFlag{Name: "history-age", Usage: "keep events for `TIME`, such as 12h, 7d or 4w", Value: &age},
		&cli.StringFlag{Name: "history-passes", Value: history.DefaultPasses, Usage: "of the verdicts on undetected flows keep all, none, so many per second (`1/s`) or a share (1/100)"},
		&cli.BoolFlag{Name: "history-captures", Usage: "keep the captures of treated flows as well, for earlydrop capture: the first 1024 bytes of what they said"},
		numberFlag("history-captures-size", "let captures take `N` MiB of the history; the oldest make room", strconv.Itoa(history.DefaultCaptureBytes>>20), 1, 1<<20),
		&cli.GenericFlag{Name: "history-captures-age", Usage: "keep captures for `TIME`", Value: &captureAge},
		&cli.StringFlag{Name: "history-addresses", Value: history.AddressWords()[0], Usage: "have the addresses in captures `kept`, hashed or left-out"},
	}
}

// openHistory opens the history of attach, nil if it is to have none, which gets what is logged.
func openHistory(c *cli.Context, events *eventlog.Log) (*history.History, error) {
	passes, err := eventlog.ParsePasses(c.String("history-passes"))
	if err != nil {
		return nil, badInput("--history-passes %w", err)
	}
	path := c.String("history")
	if path == "" {
		for _, name := range []string{"history-size", "history-age", "history-passes", "history-captures"} {
			if c.IsSet(name) {
				return nil, badInput("--%s is about the history: name its file with --history", name)
			}
		}
		return nil, nil
	}
	o := history.Options{Path: path, Bytes: int64(numberOf(c, "history-size")) << 20, Passes: passes}
	if age, ok := c.Generic("history-age").(*ttl); ok {
		o.Age = time.Duration(*age)
	}
	if o.Captures, err = captureOptions(c); err != nil {
		return nil, err
	}
	if o.Captures != nil && cmp.Or(o.Captures.Bytes, history.DefaultCaptureBytes) > cmp.Or(o.Bytes, history.DefaultBytes)/2 {
		return nil, badInput("--history-captures-size is more than half of --history-size: events would find no room")
	}
	h, err := history.Open(o)
	if err != nil {
		return nil, err
	}
	events.IDsAfter(h.LastID())
	events.Take(h.Keep)
	return h, nil
}

// captureOptions reads the flags about captures, nil where none are to be kept.
func captureOptions(c *cli.Context) (*history.Captures, error) {
	addresses, err := history.ParseAddresses(c.String("history-addresses"))
	if err != nil {
		return nil, badInput("--history-addresses %w", err)
	}
	if !c.Bool("history-captures") {
		for _, name := range []string{"history-captures-size", "history-captures-age", "history-addresses"} {
			if c.IsSet(name) {
				return nil, badInput("--%s is about captures: --history-captures has them kept", name)
			}
		}
		return nil, nil
	}
	o := &history.Captures{Bytes: int64(numberOf(c, "history-captures-size")) << 20, Addresses: addresses}
	if age, ok := c.Generic("history-captures-age").(*ttl); ok {
		o.Age = time.Duration(*age)
	}
	return o, nil
}

// searchFlags are those of events about what was.
func searchFlags() []cli.Flag {
	return []cli.Flag{
		&cli.StringFlag{Name: "since", Usage: "print those from `TIME` on: 2h or 7d ago, 13:00, 2026-11-25 or \"2026-11-25 13:00\""},
		&cli.StringFlag{Name: "until", Usage: "print those before `TIME`, as with --since"},
		&cli.StringFlag{Name: "host", Usage: "only flows with an end that is, or is in, `ADDRESS` or network"},
		&cli.StringFlag{Name: "server", Usage: "only flows to the server `ADDRESS:PORT`"},
		numberFlag("limit", "print the latest `N`", strconv.Itoa(control.DefaultHistory)+"; all with --json and --csv", 1, 1<<31-1),
		&cli.BoolFlag{Name: "csv", Usage: "print one row per event, as CSV"},
		&cli.StringFlag{Name: "history", Usage: "read `FILE`, where no daemon answers", Value: historyFile, TakesFile: true},
	}
}

// searched is what the flags of events ask the history for.
type searched struct {
	control.HistoryQuery
	all bool // no limit: from the oldest on
}

// parseSearch reads the flags about what was.
func parseSearch(c *cli.Context, now time.Time) (*searched, error) {
	texts := c.StringSlice("filter")
	for flag, key := range map[string]string{"host": "cidr", "server": "server"} {
		if c.IsSet(flag) {
			if slices.ContainsFunc(texts, func(text string) bool { return strings.HasPrefix(text, key+"=") }) {
				return nil, badInput("--%s and --filter %s are the same: keep one of them", flag, key)
			}
			text := key + "=" + c.String(flag)
			if _, err := eventFilter([]string{text}); err != nil {
				return nil, badInput("--%s: %s", flag, strings.TrimPrefix(err.Error(), key+": "))
			}
			texts = append(texts, text)
		}
	}
	filter, err := eventFilter(texts)
	if err != nil {
		return nil, badInput("--filter %w (see %s --help)", err, fullName(c))
	}
	s := &searched{HistoryQuery: control.HistoryQuery{EventFilter: *filter}}
	for name, at := range map[string]*time.Time{"since": &s.Since, "until": &s.Until} {
		if c.IsSet(name) {
			if *at, err = parseWhen(c.String(name), now); err != nil {
				return nil, badInput("--%s %w", name, err)
			}
		}
	}
	if !s.Since.IsZero() && !s.Until.IsZero() && !s.Since.Before(s.Until) {
		return nil, badInput("--since %s is not before --until %s", event.Clock(s.Since), event.Clock(s.Until))
	}
	if c.Bool("csv") && c.Bool("json") {
		return nil, badInput("--csv and --json exclude each other")
	}
	s.Limit = int(numberOf(c, "limit"))
	s.all = s.Limit == 0 && (c.Bool("csv") || c.Bool("json"))
	if s.Limit == 0 {
		s.Limit = control.DefaultHistory
	}
	return s, nil
}

// whenForms are how a time can be written, local where it has no zone.
var whenForms = []string{time.RFC3339Nano, "2006-01-02T15:04:05", "2006-01-02T15:04", time.DateTime, "2006-01-02 15:04", time.DateOnly}

// parseWhen reads a time: so long ago, one of today, or of a date.
func parseWhen(text string, now time.Time) (time.Time, error) {
	for _, form := range whenForms {
		if t, err := time.ParseInLocation(form, text, now.Location()); err == nil {
			return t, nil
		}
	}
	for _, form := range []string{"15:04", time.TimeOnly} {
		if t, err := time.Parse(form, text); err == nil {
			y, m, d := now.Date()
			return time.Date(y, m, d, t.Hour(), t.Minute(), t.Second(), 0, now.Location()), nil
		}
	}
	if ago, err := policy.ParseTTL(text); err == nil {
		return now.Add(-ago), nil
	}
	return time.Time{}, fmt.Errorf("%q: use a time such as 2h or 7d (ago), 13:00, 2026-11-25 or \"2026-11-25 13:00\"", text)
}

// pastEvents prints events of the history.
func pastEvents(c *cli.Context) error {
	s, err := parseSearch(c, time.Now())
	if err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(c.Context, unix.SIGINT, unix.SIGTERM)
	defer stop()
	from, err := openPast(c)
	if err != nil {
		return err
	}
	defer from.close()
	p := newEventPrinter(c)
	if s.all {
		s.Oldest = true
		for line, err := range pages(ctx, from, &s.HistoryQuery, 0) {
			if err == nil {
				err = p.print(line)
			}
			if err != nil {
				return err
			}
		}
		return p.flush()
	}
	var lines []json.RawMessage
	for line, err := range pages(ctx, from, &s.HistoryQuery, s.Limit) {
		if err != nil {
			return err
		}
		lines = append(lines, line)
	}
	for _, line := range slices.Backward(lines) {
		if err := p.print(line); err != nil {
			return err
		}
	}
	if err := p.flush(); err != nil {
		return err
	}
	switch {
	case len(lines) == 0 && !c.Bool("json") && !c.Bool("csv"):
		fmt.Fprintln(c.App.ErrWriter, "the history has no such event")
	case len(lines) == s.Limit && !c.IsSet("limit"):
		fmt.Fprintf(c.App.ErrWriter, "these are the latest %d: there may be more (--limit, --until)\n", s.Limit)
	}
	return nil
}

// past is where events and captures are kept: a daemon that has them or, without one, a file.
type past struct {
	search  func(context.Context, *control.HistoryQuery) (iter.Seq2[json.RawMessage, error], error)
	capture func(context.Context, event.ID) ([]byte, error)
	close   func()
}

// openPast returns what the flags --control and --history name.
func openPast(c *cli.Context) (*past, error) {
	if !c.IsSet("history") {
		d, err := askDaemon(c)
		if err != nil {
			return nil, err
		}
		if d != nil {
			return &past{d.History, d.Capture, d.Close}, nil
		}
	}
	r, err := history.OpenReader(c.String("history"))
	if errors.Is(err, history.ErrNotFound) && !c.IsSet("history") {
		return nil, badInput("no daemon answers at %s, and %w: attach --history keeps events, and --history names another file", c.String("control"), err)
	}
	if err != nil {
		return nil, asBadInput(err)
	}
	search := func(ctx context.Context, q *control.HistoryQuery) (iter.Seq2[json.RawMessage, error], error) {
		return r.Search(ctx, q.Search()), nil
	}
	return &past{search, r.Capture, func() { _ = r.Close() }}, nil
}

// pages asks for one page after another, until there are most events; 0 is all.
func pages(ctx context.Context, from *past, q *control.HistoryQuery, most int) iter.Seq2[json.RawMessage, error] {
	return func(yield func(json.RawMessage, error) bool) {
		page := *q
		for n := 0; ; {
			page.Limit = control.MaxHistory
			if most > 0 {
				page.Limit = min(most-n, control.MaxHistory)
			}
			found, err := from.search(ctx, &page)
			if err != nil {
				yield(nil, fromDaemon(err))
				return
			}
			got := 0
			var last json.RawMessage
			for line, err := range found {
				if ctx.Err() != nil {
					return
				}
				if !yield(line, err) || err != nil {
					return
				}
				got, last = got+1, line
			}
			if n += got; got < page.Limit || n == most {
				return
			}
			var at struct{ ID event.ID }
			if err := json.Unmarshal(last, &at); err != nil {
				yield(nil, err)
				return
			}
			if page.Oldest {
				page.After = at.ID
			} else {
				page.Before = at.ID
			}
		}
	}
}

// eventPrinter prints events as the flags say.
type eventPrinter struct {
	out     io.Writer
	json    bool
	csv     *csv.Writer // nil: none
	verbose bool
}

// csvHeader are the columns of events as CSV. Columns may be added at the end.
var csvHeader = []string{"id", "time", "event", "interface", "proto", "src", "dst", "class", "confidence", "rule", "rule_confidence", "decision", "enforced", "reason", "text"}

func newEventPrinter(c *cli.Context) *eventPrinter {
	p := &eventPrinter{out: c.App.Writer, json: c.Bool("json"), verbose: c.Bool("verbose")}
	if c.Bool("csv") {
		p.csv = csv.NewWriter(c.App.Writer)
		_ = p.csv.Write(csvHeader) // an error is found by flush
	}
	return p
}

// print prints an event of the history.
func (p *eventPrinter) print(line json.RawMessage) error {
	if p.json {
		_, err := fmt.Fprintf(p.out, "%s\n", line)
		return err
	}
	e, err := event.Decode(line)
	switch {
	case errors.Is(err, event.ErrUnknown): // of a newer program
		return nil
	case err != nil:
		return err
	case p.csv != nil:
		return p.csv.Write(csvRow(e))
	}
	_, err = fmt.Fprintf(p.out, "%s  %s\n", event.IDOf(e), eventText(e, p.verbose))
	return err
}

func (p *eventPrinter) flush() error {
	if p.csv == nil {
		return nil
	}
	p.csv.Flush()
	return p.csv.Error()
}

// csvRow returns the columns of an event.
func csvRow(e event.Event) []string {
	of := event.PropertiesOf(e)
	end := func(a netip.AddrPort) string {
		if !a.IsValid() {
			return ""
		}
		return a.String()
	}
	class, confidence, ruleConfidence, enforced, reason, text := "", "", "", "", "", ""
	number := func(f float64) string { return strconv.FormatFloat(f, 'f', -1, 64) }
	switch e := e.(type) {
	case *event.Verdict:
		class, confidence, reason = e.Class, number(e.Confidence), e.Reason
		if e.RuleConfidence != nil {
			ruleConfidence = number(*e.RuleConfidence)
		}
		if e.Enforced != nil {
			enforced = strconv.FormatBool(*e.Enforced)
		}
	case *event.BlockEnded:
		class, reason, text = e.Class, e.Reason, eventText(e, false)
	default:
		text = eventText(e, false)
	}
	return []string{event.IDOf(e).String(), e.When().UTC().Format(time.RFC3339Nano), of.Kind, of.Interface, of.Proto, end(of.Src), end(of.Dst),
		class, confidence, of.Rule, ruleConfidence, of.Decision, enforced, reason, text}
}
