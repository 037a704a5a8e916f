// SPDX-License-Identifier: Apache-2.0

package history

import (
	"context"
	"database/sql"
	"errors"
	"log/slog"
	"os"
	"strconv"
	"time"

	"golang.org/x/time/rate"

	"github.com/earlydrop/earlydrop/cmd/earlydrop/event"
)

// writer writes a history. It is one goroutine's.
type writer struct {
	h    *History
	pack *packer
	open open // the block that events are added to

	db     *sql.DB // nil: none
	locked *os.File
	tx     *sql.Tx // what is written since the last sync; nil: nothing
	number int64   // of the open block
	// unsynced is how many events are not written for good, those of the open block left out that
	// were written with it before.
	unsynced int
	hider    *hider // nil: no capture was kept so far
	captured int64  // bytes of captures in the file
	// warnCapture is of captures that can't be kept, once a minute.
	warnCapture rate.Sometimes
	again       time.Time // when a file is tried again that can't be written
	tidied      time.Time
}

func newWriter(h *History) (*writer, error) {
	p, err := newPacker()
	return &writer{h: h, pack: p, number: 1, warnCapture: rate.Sometimes{Interval: time.Minute}}, err
}

// first looks at the file that is there, if there is one.
func (w *writer) first() {
	if _, err := os.Stat(w.h.o.Path); err == nil {
		w.ready()
	}
}

// run writes what comes, until the queue is closed.
func (w *writer) run() {
	defer close(w.h.ended)
	tick := time.NewTicker(w.h.o.syncEvery)
	defer tick.Stop()
	for {
		select {
		case i, more := <-w.h.queue:
			if !more {
				w.sync()
				w.close()
				return
			}
			w.take(i)
		case <-tick.C:
			w.sync()
			w.tidy()
		}
	}
}

// take adds an event to the open block, which is written when it is full.
func (w *writer) take(i item) {
	e, err := newEntry(i.event)
	if err != nil {
		slog.Warn("an event has no JSON, so the history lacks it", "event", i.event.Kind(), "error", err)
		w.h.lost.Add(1)
		return
	}
	if i.sample != nil {
		w.keepCapture(i.event.(*event.Verdict), i.sample)
	}
	w.add(e)
}

func (w *writer) add(e entry) {
	w.open.add(e)
	w.unsynced++
	if !w.open.full() {
		return
	}
	w.open.sort()
	if w.write(blockEvents) {
		w.open.drop(blockEvents)
		w.number++
	}
}

// sync writes what is not written yet so that it stays.
func (w *writer) sync() {
	if w.unsynced == 0 {
		return
	}
	w.open.sort()
	if len(w.open.entries) > 0 && !w.write(len(w.open.entries)) || w.tx == nil {
		return
	}
	if err := w.tx.Commit(); err != nil {
		w.tx = nil
		w.fail(err)
		return
	}
	w.tx = nil
	w.h.mu.Lock()
	if n := len(w.open.entries); n > 0 {
		w.h.synced = max(w.h.synced, w.open.entries[n-1].id)
	}
	w.h.status.Events += uint64(w.unsynced)
	w.h.mu.Unlock()
	w.unsynced = 0
	w.use()
}

// write writes the first n events of the open block as the block of its number.
func (w *writer) write(n int) bool {
	if !w.ready() {
		w.lose()
		return false
	}
	if err := w.insert(n); err != nil {
		w.fail(err)
		return false
	}
	return true
}

// begin begins a transaction, unless there is one.
func (w *writer) begin() error {
	if w.tx != nil {
		return nil
	}
	tx, err := w.db.Begin()
	if err == nil {
		w.tx = tx
	}
	return err
}

func (w *writer) insert(n int) (err error) {
	if err := w.begin(); err != nil {
		return err
	}
	b := w.pack.pack(w.open.entries[:n])
	if _, err := w.tx.Exec("INSERT OR REPLACE INTO blocks VALUES (?, ?, ?, ?, ?, ?, ?)", w.number, int64(b.first), int64(b.last), b.begin, b.end, b.events, []byte(b.keys)); err != nil {
		return err
	}
	_, err = w.tx.Exec("INSERT OR REPLACE INTO texts VALUES (?, ?, ?)", w.number, b.rows, b.text)
	return err
}

// lose counts the events that are not written, and forgets them.
func (w *writer) lose() {
	w.h.lost.Add(uint64(w.unsynced))
	w.unsynced = 0
	w.open = open{}
}

// ready reports whether the file can be written, and opens it where that is due.
func (w *writer) ready() bool {
	if w.h.suspect.Swap(false) && w.db != nil {
		w.aside()
	}
	if w.db != nil {
		return true
	}
	if time.Now().Before(w.again) {
		return false
	}
	err := w.connect()
	if err != nil && (isDamaged(err) || errors.Is(err, errForeign)) && w.locked != nil {
		w.aside()
		err = w.connect()
	}
	if err != nil {
		w.trouble(err)
		return false
	}
	return true
}

// connect opens the file.
func (w *writer) connect() (err error) {
	path := w.h.o.Path
	if w.locked == nil {
		if w.locked, err = lock(path); err != nil {
			return err
		}
	}
	db, err := openWriter(path)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = db.Close()
		}
	}()
	ctx := context.Background()
	last, err := lastID(ctx, db)
	if err != nil {
		return err
	}
	var events uint64
	if err := db.QueryRow("SELECT coalesce(max(number), 0) + 1, coalesce(sum(events), 0) FROM blocks").Scan(&w.number, &events); err != nil {
		return err
	}
	// A disk that is full is to be found full now, and not when there is more to lose.
	if _, err := db.Exec("CREATE TABLE probe (room BLOB); INSERT INTO probe VALUES (zeroblob(65536)); DROP TABLE probe"); err != nil {
		return err
	}
	read, err := openReader(path)
	if err != nil {
		return err
	}
	r, err := newReader(read)
	if err != nil {
		return errors.Join(err, read.Close())
	}
	r.failed = func(err error) {
		if isDamaged(err) {
			w.h.suspect.Store(true)
		}
	}
	w.db = db
	h := w.h
	h.mu.Lock()
	was := h.status.Error
	h.status.Events, h.synced, h.status.Error = events, max(h.synced, last), ""
	h.reader = r
	h.mu.Unlock()
	if was != "" {
		slog.Info("the history is written again", "file", path, "lost", h.lost.Load())
	}
	w.tidied = time.Time{}
	return nil
}

// trouble notes that the file can't be written, and says so where that is new.
func (w *writer) trouble(err error) {
	w.again = time.Now().Add(w.h.o.retryEvery)
	text := plain(err).Error()
	w.h.mu.Lock()
	was := w.h.status.Error
	w.h.status.Error = text
	w.h.mu.Unlock()
	if was != text {
		slog.Warn("the history can't be written; the work goes on, and it is tried again", "file", w.h.o.Path, "error", text)
	}
}

// fail is what follows an error while the file was written.
func (w *writer) fail(err error) {
	w.lose()
	if isDamaged(err) {
		w.aside()
		return
	}
	w.disconnect()
	w.trouble(err)
}

// aside puts a damaged file out of the way, so that another can be begun.
func (w *writer) aside() {
	w.disconnect()
	now, err := setAside(w.h.o.Path, time.Now())
	if err != nil {
		w.trouble(err)
		return
	}
	w.lose()
	slog.Warn("the history is damaged, or is none: a new one is begun", "file", w.h.o.Path, "old", now)
}

// disconnect closes the file, without what is not synced.
func (w *writer) disconnect() {
	if w.tx != nil {
		_ = w.tx.Rollback()
		w.tx = nil
	}
	w.h.mu.Lock()
	r := w.h.reader
	w.h.reader = nil
	w.h.mu.Unlock()
	if r != nil {
		_ = r.Close()
	}
	if w.db != nil {
		_ = w.db.Close()
		w.db = nil
	}
}

func (w *writer) close() {
	w.disconnect()
	if w.locked != nil {
		_ = w.locked.Close()
	}
}

// tidy removes what is too old or too much, and tells how the file is.
func (w *writer) tidy() {
	if w.db == nil || time.Since(w.tidied) < tidyEvery {
		return
	}
	w.tidied = time.Now()
	if err := w.prune(); err != nil {
		w.fail(err)
	}
}

// use updates what is told of the file's size. Where it has grown too large, it is tidied.
func (w *writer) use() {
	used, _, err := w.size()
	if err != nil {
		w.fail(err)
		return
	}
	w.h.mu.Lock()
	w.h.status.Bytes = used
	w.h.mu.Unlock()
	if c := w.h.o.Captures; used > w.h.o.Bytes || c != nil && w.captured > c.Bytes {
		w.tidied = time.Time{}
		w.tidy()
	}
}

// size returns how many bytes of the file are in use, and how many are not.
func (w *writer) size() (used, free int64, err error) {
	var pages, unused, size int64
	err = w.db.QueryRow("SELECT (SELECT page_count FROM pragma_page_count), (SELECT freelist_count FROM pragma_freelist_count), (SELECT page_size FROM pragma_page_size)").Scan(&pages, &unused, &size)
	return (pages - unused) * size, unused * size, err
}

// pruneBlocks is how many blocks are removed at a time.
const pruneBlocks = 64

// remove removes the first pruneBlocks blocks of those that a condition names, adds up how many
// events these had, and returns how many blocks they were.
func (w *writer) remove(events *int64, where string, args ...any) (blocks int64, err error) {
	tx, err := w.db.Begin()
	if err != nil {
		return 0, err
	}
	defer func() { _ = tx.Rollback() }() // nothing after a commit
	which := "(SELECT number FROM blocks " + where + " ORDER BY number LIMIT " + strconv.Itoa(pruneBlocks) + ")"
	var n int64
	if err := tx.QueryRow("SELECT coalesce(sum(events), 0) FROM blocks WHERE number IN "+which, args...).Scan(&n); err != nil {
		return 0, err
	}
	for _, table := range []string{"texts", "blocks"} { // the second one is asked which
		result, err := tx.Exec("DELETE FROM "+table+" WHERE number IN "+which, args...)
		if err != nil {
			return 0, err
		}
		blocks, _ = result.RowsAffected()
	}
	*events += n
	return blocks, tx.Commit()
}

// prune removes blocks that are too old, and the oldest ones where there is too much.
func (w *writer) prune() error {
	if err := w.pruneCaptures(); err != nil {
		return err
	}
	old := time.Now().Add(-w.h.o.Age).UnixMicro()
	removed := int64(0)
	for {
		n, err := w.remove(&removed, "WHERE number < ? AND end < ?", w.number, old)
		if err != nil {
			return err
		}
		if n < pruneBlocks {
			break
		}
	}
	for {
		used, free, err := w.size()
		if err != nil {
			return err
		}
		if used <= w.h.o.Bytes/100*97 {
			if free > max(w.h.o.Bytes/20, 1<<20) { // more than the next minutes take
				for _, pragma := range []string{"PRAGMA incremental_vacuum", "PRAGMA wal_checkpoint"} {
					if _, err := w.db.Exec(pragma); err != nil {
						return err
					}
				}
			}
			break
		}
		n, err := w.remove(&removed, "WHERE number < ?", w.number)
		if err != nil {
			return err
		}
		if n == 0 {
			break
		}
	}
	var oldest sql.NullInt64
	if err := w.db.QueryRow("SELECT begin FROM blocks ORDER BY number LIMIT 1").Scan(&oldest); err != nil && !errors.Is(err, sql.ErrNoRows) {
		return err
	}
	used, _, err := w.size()
	w.h.mu.Lock()
	w.h.status.Events -= min(w.h.status.Events, uint64(removed))
	w.h.status.Bytes, w.h.status.Oldest = used, time.Time{}
	if oldest.Valid {
		w.h.status.Oldest = time.UnixMicro(oldest.Int64).UTC()
	}
	w.h.mu.Unlock()
	return err
}
