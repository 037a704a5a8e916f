// SPDX-License-Identifier: Apache-2.0

// Package eventlog writes events: as lines for people, as JSON to an output, as JSON to a
// file that can be rotated, and to systemd's journal.
package eventlog

import (
	"bufio"
	"encoding/json"
	"io"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/coreos/go-systemd/v22/journal"

	"github.com/earlydrop/earlydrop/cmd/earlydrop/event"
)

// Config says where events go, and which.
type Config struct {
	// Text (optional) gets lines for people.
	Text io.Writer
	// JSON (optional) gets a JSON object per event, on a line each.
	JSON io.Writer
	// Notes (optional) gets what Say is given where there is no Text.
	Notes io.Writer
	// File (optional) is the path of a file that JSON is appended to. It is made if it
	// is not there, with mode 0640.
	File string
	// Journal has events sent to systemd's journal as well. Where nobody listens there, Open
	// fails.
	Journal bool
	// Quiet leaves verdicts that pass out of Text, Verbose says more of each verdict there.
	Quiet, Verbose bool
	// Passes (optional) says which verdicts are written of flows that pass undetected;
	// all without it.
	Passes *Passes
}

// queueLen is how many events may wait. The last quarter of the queue is left to
// those that must not be lost: flows that pass undetected come in floods.
const queueLen = 8192

// Bounds of the wait for an output that accepts nothing: a pipe or FIFO whose reader
// has stopped, a file system that hangs.
var (
	stuckAfter = 5 * time.Second
	stuckCheck = 100 * time.Millisecond
)

// Log writes events, from a goroutine of its own: a terminal or a disk that is slow must
// not hold up verdicts. What does not fit into its queue is counted. Its methods may be
// called concurrently, but not after Close.
type Log struct {
	config Config
	file   *file // nil: none

	queue chan item
	done  chan struct{} // closed when all is written
	lost  atomic.Uint64

	ids   event.IDs
	taker func(event.Event) // nil: none

	following sync.Mutex // of changes of followers
	followers atomic.Pointer[[]*Follower]
}

// item is what waits to be written: one of the three.
type item struct {
	event  event.Event
	text   string // for people
	reopen bool   // the file is to be opened again before what comes next
}

// Open opens what c names. A file that can't be opened is the error.
func Open(c Config) (*Log, error) {
	l, err := open(c)
	if err != nil {
		return nil, err
	}
	go l.write()
	return l, nil
}

func open(c Config) (l *Log, err error) {
	if c.Passes == nil {
		c.Passes = AllPasses()
	}
	if c.Journal && !journal.Enabled() {
		return nil, errNoJournal
	}
	l = &Log{config: c, queue: make(chan item, queueLen), done: make(chan struct{})}
	if c.File != "" {
		if l.file, err = openFile(c.File); err != nil {
			return nil, err
		}
	}
	return l, nil
}

// Take has take called, besides, with each event but verdicts, on the way of whoever logs it. It
// is called at most once, before there are events.
func (l *Log) Take(take func(event.Event)) { l.taker = take }

// IDsAfter has the IDs of all events to come be greater than last.
func (l *Log) IDsAfter(last event.ID) { l.ids.After(last) }

// NewID returns the ID of an event of now. Add and Put give one to those that have none.
func (l *Log) NewID(now time.Time) event.ID { return l.ids.New(now) }

// Wants reports whether the verdict about a flow is to be given to Add. One that is not is
// left out.
func (l *Log) Wants(detected bool, at time.Time) bool { return detected || l.config.Passes.Allow(at) }

// Lost returns how many events were lost as the output was too slow.
func (l *Log) Lost() uint64 { return l.lost.Load() }

// Add queues an event, whose owner is the log from now on, and does not wait: where the
// queue is full the event is lost, and it returns false. Verdicts on flows that pass
// undetected are lost first.
func (l *Log) Add(e event.Event) bool {
	l.publish(e)
	v, ok := e.(*event.Verdict)
	if ok && !v.Detected && len(l.queue) >= queueLen*3/4 {
		l.lost.Add(1)
		return false
	}
	select {
	case l.queue <- item{event: e}:
		return true
	default:
		l.lost.Add(1)
		return false
	}
}

// Put queues an event that must not be lost. It waits for room in the queue, but not for
// an output that accepts nothing: then it returns false.
func (l *Log) Put(e event.Event) bool {
	l.publish(e)
	return l.put(item{event: e})
}

// Say queues text for people, whose lines it has the ends of: for Text or, without that,
// for Notes.
func (l *Log) Say(text string) { l.put(item{text: text}) }

func (l *Log) put(i item) bool {
	t := time.NewTimer(stuckAfter)
	defer t.Stop()
	select {
	case l.queue <- i:
		return true
	case <-t.C:
		l.lost.Add(1)
		return false
	}
}

// ReopenOn has the file opened again at each signal, as logrotate wants it. What was
// queued before the signal is written to the old file. Where the file can't be opened
// again, a warning says so, and events go on to the old one. The returned function ends
// this; call it before Close.
func (l *Log) ReopenOn(signals <-chan os.Signal) (stop func()) {
	quit := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			select {
			case <-quit:
				return
			case <-signals:
				if l.file == nil {
					continue // for others, as for who reloads the policy
				}
				select {
				case l.queue <- item{reopen: true}:
				case <-quit:
					return
				}
			}
		}
	})
	return func() {
		close(quit)
		wg.Wait()
	}
}

// Reopen has the file opened again, as ReopenOn does at a signal. It returns at once.
func (l *Log) Reopen() {
	if l.file != nil {
		l.put(item{reopen: true})
	}
}

// Uncreate removes the file if Open has made it: nothing came of what was to be logged.
func (l *Log) Uncreate() {
	if l.file != nil && l.file.created {
		_ = os.Remove(l.file.path)
	}
}

// Close writes what is queued and closes the file. What could not be written is said in a
// warning.
func (l *Log) Close() {
	l.endFollowers()
	close(l.queue)
	if !l.drained() {
		slog.Warn("the output accepts no more events: those that still wait are lost", "lost", uint64(len(l.queue))+l.lost.Load())
		return
	}
	if l.file != nil {
		if err := l.file.Close(); err != nil {
			slog.Warn("the event file was not closed properly", "error", err)
		}
	}
	if n := l.lost.Load(); n > 0 {
		slog.Warn("events were not written: the output was too slow", "lost", n)
	}
}

// drained waits until what is queued is written, and reports whether it was. It
// gives up when the output has accepted nothing for stuckAfter.
func (l *Log) drained() bool {
	tick := time.NewTicker(stuckCheck)
	defer tick.Stop()
	waiting, since := len(l.queue), time.Now()
	for {
		select {
		case <-l.done:
			return true
		case now := <-tick.C:
			if n := len(l.queue); n != waiting {
				waiting, since = n, now
			}
			if now.Sub(since) >= stuckAfter {
				return false
			}
		}
	}
}

// outputs are what a Log writes to.
type outputs struct {
	text, notes *bufio.Writer  // nil: none
	journal     *journalOutput // nil: none
	json        []*json.Encoder
	file        *bufio.Writer // one of those that json writes to; nil: none
	fileOutput  *output       // what file writes to

	all []*bufio.Writer
}

func (l *Log) outputs() *outputs {
	o := &outputs{}
	buffer := func(w io.Writer) (*bufio.Writer, *output) {
		to := newOutput(w)
		b := bufio.NewWriterSize(to, 64<<10)
		o.all = append(o.all, b)
		return b, to
	}
	if l.config.Text != nil {
		o.text, _ = buffer(l.config.Text)
		o.notes = o.text
	} else if l.config.Notes != nil {
		o.notes, _ = buffer(l.config.Notes)
	}
	if l.config.JSON != nil {
		b, _ := buffer(l.config.JSON)
		o.json = append(o.json, json.NewEncoder(b))
	}
	if l.config.Journal {
		o.journal = newJournalOutput()
	}
	if l.file != nil {
		o.file, o.fileOutput = buffer(l.file.File)
		o.json = append(o.json, json.NewEncoder(o.file))
	}
	return o
}

func (o *outputs) flush() {
	for _, b := range o.all {
		_ = b.Flush() // an output takes everything
	}
}

// write writes what comes, until the queue is closed.
func (l *Log) write() {
	defer close(l.done)
	o := l.outputs()
	for i := range l.queue {
		switch {
		case i.reopen:
			l.reopen(o)
		case i.event == nil:
			if o.notes != nil {
				_, _ = o.notes.WriteString(i.text)
			}
		default:
			if o.text != nil {
				l.print(o.text, i.event)
			}
			for _, enc := range o.json {
				_ = enc.Encode(i.event)
			}
			if o.journal != nil {
				o.journal.write(i.event)
			}
		}
		if len(l.queue) == 0 { // nothing is waiting: let people see it
			o.flush()
		}
	}
	o.flush()
}

// reopen opens the file again. Where that fails, the present one stays.
func (l *Log) reopen(o *outputs) {
	_ = o.file.Flush() // what comes before belongs to the old file
	if err := l.file.reopen(); err != nil {
		slog.Error("the event file can't be opened again; events go on to the old one", "error", err)
		return
	}
	o.fileOutput.change(l.file.File)
	slog.Info("event file opened again", "file", l.file.path)
}

// print writes an event as a line for people. Of those that have none, who makes them
// says more.
func (l *Log) print(w *bufio.Writer, e event.Event) {
	line := ""
	switch e := e.(type) {
	case *event.Verdict:
		if !l.config.Quiet || e.Treats() || e.Logged() {
			line = e.Text(l.config.Verbose)
		}
	case *event.BlockEnded:
		line = e.Text()
	case *event.PairTreated:
		line = e.Text()
	case *event.PairEnded:
		line = e.Text()
	case *event.Waiting:
		line = e.Text()
	case *event.Disagreed:
		if !l.config.Quiet {
			line = e.Text()
		}
	case *event.Reloaded:
		line = e.Text()
	case *event.ModeChanged:
		line = e.Text()
	case *event.Audit:
		line = e.Text()
	case *event.LimitReached:
		line = e.Text()
	case *event.DeviceFailed:
		line = e.Text()
	case *event.LeftOut:
		if !l.config.Quiet {
			line = e.Text()
		}
	}
	if line != "" {
		_, _ = w.WriteString(line + "\n")
	}
}
