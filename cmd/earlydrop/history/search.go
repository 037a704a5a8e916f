// SPDX-License-Identifier: Apache-2.0

package history

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"slices"
	"time"

	"golang.org/x/time/rate"

	"github.com/earlydrop/earlydrop/cmd/earlydrop/event"
)

// maxSearches is how many searches go on at a time; others wait.
const maxSearches = 2

// Query says which events are searched for: those that all of it fits. Its zero value is for
// all of them.
type Query struct {
	// Since and Until (optional) bound the events' time: from Since on, before Until.
	Since, Until time.Time
	// After and Before (optional) bound their IDs, and are not found themselves. For the next
	// page of an answer, one of them is the ID of its last event.
	After, Before event.ID
	// Need (optional) has keys: of each of its lists an event has at least one. It need not say
	// all that Fits does, which it makes faster.
	Need [][]Key
	// Fits (optional) reports whether an event with such properties is meant.
	Fits func(*event.Properties) bool
	// Limit (optional) is how many are found at most.
	Limit int
	// Oldest has the oldest event found first, instead of the latest.
	Oldest bool
}

// Reader searches a file. It is safe for concurrent use.
type Reader struct {
	db     *sql.DB
	unpack *unpacker
	warn   rate.Sometimes // of damaged blocks
	failed func(error)    // is told of errors of the file
}

// OpenReader opens a file for searches, also while a daemon writes it. It changes nothing. The
// error wraps ErrNotFound where there is none.
func OpenReader(path string) (*Reader, error) {
	db, err := openReader(path)
	if err != nil {
		return nil, fmt.Errorf("read the history %s: %w", path, plain(err))
	}
	r, err := newReader(db)
	if err != nil {
		_ = db.Close()
	}
	return r, err
}

func newReader(db *sql.DB) (*Reader, error) {
	u, err := newUnpacker()
	return &Reader{db: db, unpack: u, warn: rate.Sometimes{Interval: time.Second}, failed: func(error) {}}, err
}

// Close closes the file.
func (r *Reader) Close() error { return r.db.Close() }

// Search returns the events that are meant as JSON, one after another as they are found. An
// error is the last pair. Blocks that are damaged are warned of and left out.
func (r *Reader) Search(ctx context.Context, q *Query) iter.Seq2[json.RawMessage, error] {
	return func(yield func(json.RawMessage, error) bool) {
		left := q.Limit
		for b, err := range r.blocks(ctx, q) {
			if err != nil {
				r.failed(err)
				yield(nil, fmt.Errorf("search the history: %w", plain(err)))
				return
			}
			lines, err := r.found(ctx, b, q, left)
			switch {
			case errors.Is(err, errBlock):
				r.warn.Do(func() { slog.Warn("events of the history are left out", "events", b.events, "error", err) })
				continue
			case err != nil:
				r.failed(err)
				yield(nil, fmt.Errorf("search the history: %w", plain(err)))
				return
			}
			for _, line := range lines {
				if !yield(line, nil) {
					return
				}
			}
			if left -= len(lines); q.Limit > 0 && left <= 0 {
				return
			}
		}
	}
}

// blockRef is a block that may have events that are meant.
type blockRef struct{ number, events int64 }

// blocks returns the blocks that may have events that are meant. They are listed first: a
// transaction that stays open would keep the writer from using its log again.
func (r *Reader) blocks(ctx context.Context, q *Query) iter.Seq2[blockRef, error] {
	return func(yield func(blockRef, error) bool) {
		refs, err := r.listBlocks(ctx, q)
		if err != nil {
			yield(blockRef{}, err)
			return
		}
		for _, ref := range refs {
			if !yield(ref, nil) {
				return
			}
		}
	}
}

func (r *Reader) listBlocks(ctx context.Context, q *Query) (refs []blockRef, err error) {
	where, args := " WHERE 1", []any(nil)
	bound := func(condition string, value int64) {
		where += " AND " + condition
		args = append(args, value)
	}
	if !q.Since.IsZero() {
		bound("end >= ?", q.Since.UnixMicro())
	}
	if !q.Until.IsZero() {
		bound("begin < ?", q.Until.UnixMicro())
	}
	if q.After != 0 {
		bound("last > ?", int64(q.After))
	}
	if q.Before != 0 {
		bound("first < ?", int64(q.Before))
	}
	order := " ORDER BY number DESC"
	if q.Oldest {
		order = " ORDER BY number"
	}
	rows, err := r.db.QueryContext(ctx, "SELECT number, events, keys FROM blocks"+where+order, args...)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	for rows.Next() {
		var ref blockRef
		var keys sql.RawBytes
		if err := rows.Scan(&ref.number, &ref.events, &keys); err != nil {
			return nil, err
		}
		f := filter(keys)
		if !slices.ContainsFunc(q.Need, func(any []Key) bool { return !slices.ContainsFunc(any, f.may) }) {
			refs = append(refs, ref)
		}
	}
	return refs, rows.Err()
}

// found returns the events of a block that are meant, at most so many; 0 is all.
func (r *Reader) found(ctx context.Context, b blockRef, q *Query, most int) (found []json.RawMessage, err error) {
	var places []int
	err = r.column(ctx, "SELECT rows FROM texts WHERE number = ?", b, func(rows []byte) error {
		return r.unpack.rows(rows, func(i int, e *row) bool {
			if q.means(e) {
				places = append(places, i)
			}
			return !q.Oldest || q.Limit == 0 || len(places) < most
		})
	})
	if q.Limit > 0 && len(places) > most {
		places = places[len(places)-most:]
	}
	if err != nil || len(places) == 0 {
		return nil, err
	}
	err = r.column(ctx, "SELECT text FROM texts WHERE number = ?", b, func(text []byte) error {
		found, err = r.unpack.lines(text, places)
		return err
	})
	if !q.Oldest {
		slices.Reverse(found)
	}
	return found, err
}

// column gives use what a query says of a block. A block that was removed has none.
func (r *Reader) column(ctx context.Context, query string, b blockRef, use func([]byte) error) error {
	rows, err := r.db.QueryContext(ctx, query, b.number)
	if err != nil {
		return err
	}
	defer rows.Close()
	if !rows.Next() {
		return rows.Err()
	}
	var value sql.RawBytes
	if err := rows.Scan(&value); err != nil {
		return err
	}
	return use(value)
}

func (q *Query) means(e *row) bool {
	switch {
	case !q.Since.IsZero() && e.at < q.Since.UnixMicro(), !q.Until.IsZero() && e.at >= q.Until.UnixMicro():
		return false
	case q.After != 0 && e.id <= q.After, q.Before != 0 && e.id >= q.Before:
		return false
	}
	return q.Fits == nil || q.Fits(&e.Properties)
}

// Event returns the event of an ID. The error wraps ErrNotFound where there is none.
func (r *Reader) Event(ctx context.Context, id event.ID) (json.RawMessage, error) {
	for line, err := range r.Search(ctx, &Query{After: id - 1, Before: id + 1, Limit: 1}) {
		return line, err
	}
	return nil, fmt.Errorf("event %s: %w in the history", id, ErrNotFound)
}
