// SPDX-License-Identifier: Apache-2.0

package evidence

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"github.com/earlydrop/earlydrop/loader/flow"
	"github.com/earlydrop/earlydrop/policy"
)

// fileVersion is that of the form of the file.
const fileVersion = 1

// maxFileBytes bounds what is read.
const maxFileBytes = 512 << 20

// saved is a State as a file has it.
type saved struct {
	Version int         `json:"version"`
	Paused  [2]zeroTime `json:"paused_until"` // of flows that prove nothing, and of others
	Pairs   []savedPair `json:"pairs"`        // of each kind the least recently seen first
}

type savedPair struct {
	Initiator netip.Prefix   `json:"initiator"`
	Server    netip.AddrPort `json:"server"`
	VLAN      uint16         `json:"vlan,omitempty"`
	InnerVLAN uint16         `json:"inner_vlan,omitempty"`
	Flows     []savedFlow    `json:"flows"`
	Treated   *savedTreated  `json:"treated,omitempty"`
}

type savedFlow struct {
	Start int64    `json:"start"`          // Unix nanoseconds
	Host  uint64   `json:"host,omitempty"` // the second half of the initiator's IPv6 address
	Port  uint16   `json:"port"`           // of the initiator
	At    int64    `json:"at"`
	Rules []string `json:"rules,omitempty"` // that detected it
}

type savedTreated struct {
	Rule   string    `json:"rule"`
	Class  string    `json:"class"`
	Since  time.Time `json:"since"`
	Until  time.Time `json:"until"`
	Seen   int       `json:"seen"`
	Judged int       `json:"judged"`
}

// zeroTime is written as null where it is zero.
type zeroTime struct{ time.Time }

// MarshalJSON is for encoding/json.
func (t zeroTime) MarshalJSON() ([]byte, error) {
	if t.IsZero() {
		return []byte("null"), nil
	}
	return t.Time.MarshalJSON()
}

// Read takes what Write has written into a State that knows nothing. After an error it still
// knows nothing.
func (s *State) Read(from io.Reader) error {
	limited := &io.LimitedReader{R: from, N: maxFileBytes}
	d := json.NewDecoder(bufio.NewReaderSize(limited, 64<<10))
	var file saved
	err := d.Decode(&file)
	switch {
	case err != nil && limited.N <= 0:
		return fmt.Errorf("it is larger than %d MiB", maxFileBytes>>20)
	case errors.Is(err, io.EOF):
		return errors.New("it is empty")
	case errors.Is(err, io.ErrUnexpectedEOF):
		return errors.New("it is cut off")
	case err != nil:
		return err
	case file.Version != fileVersion:
		return fmt.Errorf("it is of version %d, and this program knows %d", file.Version, fileVersion)
	}
	fresh := New(s.options)
	for i := range file.Pairs {
		if err := fresh.restore(&file.Pairs[i]); err != nil {
			return fmt.Errorf("pair %d: %w", i+1, err)
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.pairs, s.kinds, s.slots = fresh.pairs, fresh.kinds, fresh.slots
	s.changes.Add(1)
	for i := range s.limits {
		s.limits[i].until = file.Paused[i].Time
	}
	return nil
}

// restore adds a pair of a file.
func (s *State) restore(p *savedPair) error {
	known := &pair{Pair: flow.Pair{Initiator: p.Initiator, Server: p.Server, VLAN: p.VLAN, InnerVLAN: p.InnerVLAN}}
	if err := known.Check(); err != nil {
		return err
	}
	if len(p.Flows) > policy.MaxEvidenceFlows {
		return fmt.Errorf("it has %d flows, more than %d", len(p.Flows), policy.MaxEvidenceFlows)
	}
	if s.pairs[known.Pair] != nil {
		return errors.New("it is there twice")
	}
	for _, f := range p.Flows {
		j := judged{flow: flowID{f.Start, f.Host, f.Port}, at: f.At}
		for _, name := range f.Rules {
			slot := s.knownSlot(name)
			if slot < 0 {
				return errors.New("too many rules")
			}
			j.rules |= 1 << slot
		}
		if j.rules != 0 {
			known.kind = suspect
		}
		known.flows = append(known.flows, j)
	}
	if t := p.Treated; t != nil {
		if t.Rule == "" {
			return errors.New("it is treated by no rule")
		}
		known.kind = treated
		known.treatment = treatment{t.Rule, t.Class, t.Since, t.Until, t.Seen, t.Judged}
	}
	e := s.kinds[known.kind].PushFront(known)
	s.pairs[known.Pair] = e
	s.put(e, known.kind)
	return nil
}

// knownSlot returns the slot of a name, a free one if it has none, or -1.
func (s *State) knownSlot(name string) int {
	for i, has := range s.slots {
		if has == name || has == "" {
			s.slots[i] = name
			return i
		}
	}
	return -1
}

// Write writes what is known of pairs, and the pauses. Who was judged and treated within the
// hour is not kept: the limits begin to count anew.
func (s *State) Write(to io.Writer) error {
	file := s.snapshot()
	w := bufio.NewWriterSize(to, 64<<10)
	if err := json.NewEncoder(w).Encode(&file); err != nil {
		return err
	}
	return w.Flush()
}

// snapshot returns the State for a file, and notes that it is saved.
func (s *State) snapshot() saved {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.saved = true
	file := saved{Version: fileVersion, Pairs: make([]savedPair, 0, len(s.pairs))}
	for i := range s.limits {
		file.Paused[i].Time = s.limits[i].until
	}
	for k := range s.kinds {
		for e := s.kinds[k].Back(); e != nil; e = e.Prev() {
			known := e.Value.(*pair)
			p := savedPair{Initiator: known.Initiator, Server: known.Server, VLAN: known.VLAN, InnerVLAN: known.InnerVLAN, Flows: make([]savedFlow, len(known.flows))}
			for i, f := range known.flows {
				p.Flows[i] = savedFlow{Start: f.flow.start, Host: f.flow.host, Port: f.flow.port, At: f.at}
				for slot := 0; f.rules>>slot != 0; slot++ {
					if f.rules>>slot&1 != 0 {
						p.Flows[i].Rules = append(p.Flows[i].Rules, s.slots[slot])
					}
				}
			}
			if t := known.treatment; t.rule != "" {
				p.Treated = &savedTreated{t.rule, t.class, t.since, t.until, t.seen, t.judged}
			}
			file.Pairs = append(file.Pairs, p)
		}
	}
	return file
}

// Load reads the file at path. One that is not there is no error: then nothing is known.
// After an error nothing is known either.
func (s *State) Load(path string) error {
	file, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer file.Close()
	if info, err := file.Stat(); err == nil && info.IsDir() {
		return fmt.Errorf("%s is a folder", path)
	}
	if err := s.Read(file); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return nil
}

// Save writes the file at path, in whole or not at all, and makes its folder if need be. It
// does nothing if nothing has changed.
func (s *State) Save(path string) (err error) {
	s.mu.Lock()
	unchanged := s.saved
	s.mu.Unlock()
	if unchanged {
		return nil
	}
	defer func() {
		if err != nil {
			s.mu.Lock()
			s.saved = false
			s.mu.Unlock()
		}
	}()
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	file, err := os.CreateTemp(dir, filepath.Base(path)+".*") // readable by its owner alone
	if err != nil {
		return err
	}
	err = s.Write(file)
	if err == nil {
		err = file.Sync()
	}
	if closeErr := file.Close(); err == nil {
		err = closeErr
	}
	if err == nil {
		err = os.Rename(file.Name(), path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(file.Name()))
	}
	return nil
}

// Keep saves to path again and again, at most once in every, until ctx ends, and once more
// then. Failed is told of errors.
func (s *State) Keep(ctx context.Context, path string, every time.Duration, failed func(error)) {
	tick := time.NewTicker(every)
	defer tick.Stop()
	for done := false; !done; {
		select {
		case <-ctx.Done():
			done = true
		case <-tick.C:
		}
		if err := s.Save(path); err != nil {
			failed(err)
		}
	}
}
