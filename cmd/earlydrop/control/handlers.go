// SPDX-License-Identifier: Apache-2.0

package control

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net/http"
	"net/url"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"github.com/cilium/ebpf"

	"github.com/earlydrop/earlydrop/cmd/earlydrop/event"
	"github.com/earlydrop/earlydrop/cmd/earlydrop/status"
	"github.com/earlydrop/earlydrop/loader"
	"github.com/earlydrop/earlydrop/policy"
)

// actions are what changes of the paths are called in audit events, by method and path.
var actions = map[string]string{
	"POST /v1/blocks":   "blocked_add",
	"DELETE /v1/blocks": "blocked_del",
	"DELETE /v1/pairs":  "pairs_del",
	"POST /v1/mode":     "mode",
	"POST /v1/reload":   "reload",
	"POST /v1/model":    "model",
}

// audit tells who has asked for what, and what became of it.
func (s *Server) audit(r *request, a event.Audit, err error) {
	a.Time, a.UID, a.GID, a.PID = time.Now(), r.peer.uid, r.peer.gid, r.peer.pid
	a.Action = actions[r.Method+" "+r.URL.Path]
	switch {
	case err == nil:
		a.Outcome = event.Done
	case a.Outcome == "":
		a.Outcome = event.Failed
	}
	if err != nil {
		a.Error = err.Error()
	}
	if a.Outcome == event.Refused && !s.refusals.Allow() {
		return // who asks again and again shall not fill the log
	}
	s.gateway.Audit(&a)
}

// auditRefusal tells of a change that was refused as a whole.
func (s *Server) auditRefusal(r *request, err error) {
	if actions[r.Method+" "+r.URL.Path] != "" {
		s.audit(r, event.Audit{Outcome: event.Refused}, err)
	}
}

func (r *request) query(known ...string) (url.Values, error) {
	v, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return nil, badRequest("the query can't be read: %v", err)
	}
	if err := onlyKeys(v, known); err != nil {
		return nil, badRequest("%v", err)
	}
	return v, nil
}

func (s *Server) getAbout(r *request) error {
	if _, err := r.query(); err != nil {
		return err
	}
	about := s.gateway.About()
	r.reply(http.StatusOK, &About{about.PID, about.Version, about.Namespace, s.gateway.Interfaces()})
	return nil
}

func (s *Server) getStatus(r *request) error {
	if _, err := r.query(); err != nil {
		return err
	}
	s.walking.Lock()
	report, err := s.gateway.Report()
	s.walking.Unlock()
	if err != nil {
		return err
	}
	r.reply(http.StatusOK, report)
	return nil
}

// chosen returns the blocks that a filter fits.
func (s *Server) chosen(f *BlockFilter) ([]status.Block, error) {
	s.walking.Lock()
	defer s.walking.Unlock()
	all, err := s.gateway.Blocks()
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(all, func(b status.Block) bool { return !f.Match(&b) }), nil
}

// listed reads the parameters of a list that can be sorted and cut. The others, which choose, it
// returns.
func listed[T any](r *request, sort func([]T, string) error, by string, filterKeys []string) (filter url.Values, shown func([]T) (matched int, list []T), err error) {
	v, err := r.query(append([]string{"sort", "limit"}, filterKeys...)...)
	if err != nil {
		return nil, nil, err
	}
	limit := uint64(math.MaxInt)
	if v.Has("sort") {
		by = v.Get("sort")
	}
	if v.Has("limit") {
		if limit, err = strconv.ParseUint(v.Get("limit"), 10, 31); err != nil || limit == 0 {
			return nil, nil, badRequest("limit %q: use a whole number from 1 on", v.Get("limit"))
		}
	}
	if err := sort(nil, by); err != nil {
		return nil, nil, badRequest("%v", err)
	}
	v.Del("sort")
	v.Del("limit")
	return v, func(all []T) (int, []T) {
		_ = sort(all, by)
		return len(all), all[:min(uint64(len(all)), limit)]
	}, nil
}

func (s *Server) listBlocks(r *request) error {
	v, shown, err := listed(r, SortBlocks, "since", blockFilterKeys)
	if err != nil {
		return err
	}
	filter, err := ParseBlockFilter(v)
	if err != nil {
		return badRequest("%v", err)
	}
	blocks, err := s.chosen(&filter)
	if err != nil {
		return err
	}
	matched, blocks := shown(blocks)
	r.beginAnswer(http.StatusOK, "application/json")
	writeBlocks(r.w, matched, blocks)
	return nil
}

// writeBlocks writes a Blocks without having all of its text at once: there may be many.
func writeBlocks(w http.ResponseWriter, matched int, blocks []status.Block) {
	deadline := http.NewResponseController(w)
	out := bufio.NewWriter(w)
	fmt.Fprintf(out, `{"matched":%d,"blocks":[`, matched)
	for i := range blocks {
		if i > 0 {
			_ = out.WriteByte(',')
		}
		if i%256 == 0 {
			_ = deadline.SetWriteDeadline(time.Now().Add(answerWithin))
		}
		text, _ := json.Marshal(&blocks[i])
		if _, err := out.Write(text); err != nil {
			return // nobody reads it
		}
	}
	_, _ = out.WriteString("]}\n")
	_ = out.Flush()
}

func (s *Server) addBlock(r *request) (err error) {
	if _, err := r.query(); err != nil {
		return err
	}
	var add AddBlock
	if err := r.body(&add); err != nil {
		return err
	}
	key, err := add.Key()
	if err == nil {
		err = key.Possible()
	}
	if err == nil && add.TTL == 0 {
		err = errors.New("ttl is missing: say how long the block lasts, such as 10m")
	}
	if err == nil {
		err = onlyKeys(url.Values{"interface": {add.Interface}}, []string{"interface"})
		if add.Interface == "" {
			add.Interface, err = s.onlyInterface()
		}
	}
	if err != nil {
		return badRequest("%v", err)
	}
	ttl := time.Duration(add.TTL)
	tell := event.Audit{Interface: add.Interface, Asked: fmt.Sprintf("%s for %s", key, policy.FormatTTL(ttl))}
	suspended, err := s.gateway.Block(add.Interface, key, ttl)
	if err != nil {
		err = told(err)
		tell.Outcome = event.Refused
	} else {
		tell.Blocks = 1
	}
	s.audit(r, tell, err)
	if err != nil {
		return err
	}
	r.reply(http.StatusOK, &Added{add, suspended})
	return nil
}

// onlyInterface returns the interface of a gateway that has one.
func (s *Server) onlyInterface() (string, error) {
	names := s.gateway.Interfaces()
	if len(names) != 1 {
		return "", fmt.Errorf("interface is missing: the gateway has %d", len(names))
	}
	return names[0], nil
}

func (s *Server) reload(r *request) error {
	if _, err := r.query(); err != nil {
		return err
	}
	if r.ContentLength != 0 {
		return badRequest("POST /v1/reload takes no body")
	}
	return s.replyReloaded(r, event.Audit{}, s.gateway.Reload)
}

func (s *Server) useModel(r *request) error {
	if _, err := r.query(); err != nil {
		return err
	}
	var use UseModel
	if err := r.body(&use); err != nil {
		return err
	}
	if err := onlyKeys(url.Values{"file": {use.File}}, []string{"file"}); err != nil {
		return badRequest("%v", err)
	}
	if !filepath.IsAbs(use.File) && filepath.Base(use.File) != use.File {
		return badRequest("file %q: give the absolute path, or the name of a model that the program ships", use.File)
	}
	return s.replyReloaded(r, event.Audit{Asked: use.File}, func() (*Reloaded, error) { return s.gateway.UseModel(use.File) })
}

// replyReloaded does what was asked for, and tells what came of it.
func (s *Server) replyReloaded(r *request, tell event.Audit, do func() (*Reloaded, error)) error {
	done, err := do()
	if done == nil {
		tell.Outcome = event.Refused
		err = &Error{http.StatusUnprocessableEntity, err.Error()}
	}
	s.audit(r, tell, err)
	if err != nil {
		return err
	}
	r.reply(http.StatusOK, done)
	return nil
}

func (s *Server) setMode(r *request) error {
	if _, err := r.query(); err != nil {
		return err
	}
	var set SetMode
	if err := r.body(&set); err != nil {
		return err
	}
	mode, err := policy.ParseMode(set.Mode)
	if err != nil {
		return badRequest("%v", err)
	}
	var ifaces []string
	if set.Interface != "" {
		if err := onlyKeys(url.Values{"interface": {set.Interface}}, []string{"interface"}); err != nil {
			return badRequest("%v", err)
		}
		ifaces = []string{set.Interface}
	}
	changed, err := s.gateway.SetMode(mode, ifaces...)
	err = told(err)
	tell := event.Audit{Interface: set.Interface, Asked: mode.String()}
	if len(changed) == 0 {
		tell.Outcome = event.Refused
	}
	s.audit(r, tell, err)
	if err != nil {
		return err
	}
	r.reply(http.StatusOK, &ModeSet{mode.String(), append([]string{}, changed...)})
	return nil
}

func (s *Server) liftBlocks(r *request) error {
	v, err := r.query(append([]string{"all"}, blockFilterKeys...)...)
	if err != nil {
		return err
	}
	all := v.Get("all")
	v.Del("all")
	filter, err := ParseBlockFilter(v)
	switch {
	case err != nil:
		return badRequest("%v", err)
	case all != "" && all != "true":
		return badRequest("all can't be %q: use true, or leave it out", all)
	case all == "" && filter.everything():
		return badRequest("this would lift every block: say which, or all=true")
	case all != "" && !filter.everything():
		return badRequest("all=true and %s exclude each other", &filter)
	}
	tell := event.Audit{Interface: filter.Interface, Asked: inWords(v)}
	if all != "" {
		tell.Asked = "all"
	}
	lifted, err := s.lift(&filter)
	switch {
	case err == nil && lifted.Blocks == 0 && filter.Flow != nil:
		err = &Error{http.StatusNotFound, fmt.Sprintf("not blocked: %s", filter.Flow)}
		tell.Outcome = event.Refused
	case err != nil && lifted.Blocks == 0:
		tell.Outcome = event.Refused
	}
	tell.Blocks = lifted.Blocks
	s.audit(r, tell, err)
	if err != nil {
		return err
	}
	r.reply(http.StatusOK, &lifted)
	return nil
}

// lift lifts the blocks that a filter fits.
func (s *Server) lift(f *BlockFilter) (sum Lifted, err error) {
	one := func(iface string, key *status.Block) error {
		b, err := s.gateway.Unblock(iface, KeyOf(key))
		switch {
		case errors.Is(err, ebpf.ErrKeyNotExist): // somebody else was faster
			return nil
		case err != nil:
			return told(err)
		}
		sum.Blocks++
		sum.Packets += b.Packets
		sum.Bytes += b.Bytes
		return nil
	}
	if f.Interface != "" && f.Flow != nil && f.Class == "" && f.Rule == "" && !f.CIDR.IsValid() {
		b := status.NewBlock(f.Interface, &loader.Block{Key: *f.Flow})
		err = one(f.Interface, &b)
		return sum, err
	}
	blocks, err := s.chosen(f)
	if err != nil {
		return sum, err
	}
	for i := range blocks {
		if err := one(blocks[i].Interface, &blocks[i]); err != nil {
			return sum, err
		}
	}
	return sum, nil
}

// told returns a gateway's error as the one that the client is told.
func told(err error) error {
	var only *loader.MonitorOnlyError
	switch {
	case errors.As(err, &only):
		return &Error{http.StatusConflict, err.Error()}
	case errors.Is(err, loader.ErrNotAttached):
		return &Error{http.StatusNotFound, err.Error()}
	case errors.Is(err, loader.ErrFull):
		return &Error{http.StatusInsufficientStorage, err.Error()}
	}
	return err
}
