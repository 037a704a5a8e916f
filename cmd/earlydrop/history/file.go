// SPDX-License-Identifier: Apache-2.0

package history

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
	"modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"

	"github.com/earlydrop/earlydrop/cmd/earlydrop/event"
)

const (
	// application marks the file as one of this package; version is that of its form.
	application = 0x65647268
	version     = 1
)

const schema = `
CREATE TABLE blocks (
	number INTEGER PRIMARY KEY, -- the later, the greater
	first  INTEGER NOT NULL,    -- the smallest ID of its events
	last   INTEGER NOT NULL,
	begin  INTEGER NOT NULL,    -- the earliest time of its events, in microseconds since 1970
	end    INTEGER NOT NULL,
	events INTEGER NOT NULL,    -- how many
	keys   BLOB NOT NULL        -- what may be in it
);
CREATE TABLE texts (
	number INTEGER PRIMARY KEY,
	rows   BLOB NOT NULL,       -- what each event is searched by
	text   BLOB NOT NULL        -- the events, a line of JSON each
);
CREATE TABLE captures (
	id    INTEGER PRIMARY KEY,  -- of the event
	kept  INTEGER NOT NULL,     -- when, in seconds since 1970
	bytes INTEGER NOT NULL,
	pcap  BLOB NOT NULL         -- the pcapng file
);`

// Errors of a file.
var (
	// ErrNotFound means that there is no file, or no event or capture of that ID.
	ErrNotFound = errors.New("not found")
	// errNewer means that the file is of a later version of this program.
	errNewer = errors.New("it is of a newer version of earlydrop")
	// errForeign means that it is no history.
	errForeign = errors.New("it is no history of earlydrop")
)

// isDamaged reports whether an error says that what is in the file makes no sense.
func isDamaged(err error) bool {
	var e *sqlite.Error
	if !errors.As(err, &e) {
		return false
	}
	code := e.Code() & 0xff
	return code == sqlite3.SQLITE_CORRUPT || code == sqlite3.SQLITE_NOTADB
}

// plain returns an error without what SQLite adds for programmers.
func plain(err error) error {
	var e *sqlite.Error
	if !errors.As(err, &e) {
		return err
	}
	switch e.Code() & 0xff {
	case sqlite3.SQLITE_FULL:
		return errors.New("the disk is full")
	case sqlite3.SQLITE_READONLY:
		return errors.New("it can't be written: the disk or the file is read-only")
	case sqlite3.SQLITE_CANTOPEN:
		return errors.New("it can't be opened: see whether its folder is there and can be written")
	case sqlite3.SQLITE_CORRUPT:
		return errors.New("it is damaged")
	case sqlite3.SQLITE_NOTADB:
		return errors.New("it is no history of earlydrop, or damaged")
	case sqlite3.SQLITE_BUSY:
		return errors.New("another program has it open, and does not let go")
	}
	return err
}

// connect returns the database in a file. pragmas are run on each connection.
func connect(path string, query url.Values, pragmas ...string) (*sql.DB, error) {
	for _, p := range append([]string{"busy_timeout(5000)", "trusted_schema(0)"}, pragmas...) {
		query.Add("_pragma", p)
	}
	absolute, err := filepath.Abs(path)
	if err != nil {
		return nil, err
	}
	u := url.URL{Scheme: "file", Path: absolute, RawQuery: query.Encode()}
	return sql.Open("sqlite", u.String())
}

// checkForm returns an error unless the file is a history that can be read. fresh says that
// there is nothing in it yet.
func checkForm(db *sql.DB) (fresh bool, err error) {
	var app, form, tables int
	for query, into := range map[string]*int{"PRAGMA application_id": &app, "PRAGMA user_version": &form, "SELECT count(*) FROM sqlite_schema": &tables} {
		if err := db.QueryRow(query).Scan(into); err != nil {
			return false, err
		}
	}
	switch {
	case app == 0 && form == 0 && tables == 0:
		return true, nil
	case app != application:
		return false, errForeign
	case form > version:
		return false, fmt.Errorf("%w: its form is %d, and this program knows %d", errNewer, form, version)
	}
	return false, nil
}

// openWriter opens the file for the one who writes it, and makes it where it is not there.
func openWriter(path string) (_ *sql.DB, err error) {
	db, err := connect(path, url.Values{}, "auto_vacuum(incremental)", "journal_mode(wal)", "synchronous(full)", "journal_size_limit(8388608)")
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			_ = db.Close()
		}
	}()
	db.SetMaxOpenConns(1)
	fresh, err := checkForm(db)
	if err != nil {
		return nil, err
	}
	if fresh {
		if _, err := db.Exec(fmt.Sprintf("BEGIN; %s PRAGMA application_id=%d; PRAGMA user_version=%d; COMMIT", schema, application, version)); err != nil {
			return nil, err
		}
	}
	return db, os.Chmod(path, 0o600)
}

// openReader opens the file for searches. It changes nothing in it.
func openReader(path string) (_ *sql.DB, err error) {
	if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("there is no %s: %w", path, ErrNotFound)
	}
	// The second one is for disks that are read-only, where what was written last, before the
	// daemon was killed, can't be moved to where it belongs.
	for _, query := range []url.Values{{"mode": {"ro"}}, {"mode": {"ro"}, "immutable": {"1"}}} {
		var db *sql.DB
		if db, err = connect(path, query, "query_only(1)"); err != nil {
			return nil, err
		}
		db.SetMaxOpenConns(maxSearches)
		db.SetConnMaxIdleTime(time.Minute)
		var fresh bool
		if fresh, err = checkForm(db); err == nil && fresh {
			err = errForeign
		}
		if err == nil {
			return db, nil
		}
		_ = db.Close()
		if isDamaged(err) || errors.Is(err, errNewer) || errors.Is(err, errForeign) {
			break
		}
	}
	return nil, err
}

// lastID returns the greatest ID that is in the file.
func lastID(ctx context.Context, db *sql.DB) (id event.ID, err error) {
	err = db.QueryRowContext(ctx, "SELECT coalesce((SELECT max(last) FROM (SELECT last FROM blocks ORDER BY number DESC LIMIT 8)), 0)").Scan(&id)
	return id, err
}

// setAside renames a file that is damaged, so that there is room for another, and returns its
// new name.
func setAside(path string, now time.Time) (aside string, err error) {
	aside = fmt.Sprintf("%s.damaged-%s", path, now.UTC().Format("20060102T150405Z"))
	if err := os.Rename(path, aside); err != nil {
		return "", err
	}
	for _, suffix := range []string{"-wal", "-shm"} { // they belong to it
		if err := os.Rename(path+suffix, aside+suffix); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return "", err
		}
	}
	return aside, nil
}

// lock keeps other daemons from writing the file, until the result is closed.
func lock(path string) (*os.File, error) {
	f, err := os.OpenFile(path+"-lock", os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		_ = f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			err = errors.New("another daemon writes it")
		}
		return nil, err
	}
	return f, nil
}
