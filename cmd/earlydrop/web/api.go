// SPDX-License-Identifier: Apache-2.0

package web

import (
	"bytes"
	"context"
	"crypto/sha256"
	"embed"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"mime"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/earlydrop/earlydrop/cmd/earlydrop/control"
	"github.com/earlydrop/earlydrop/cmd/earlydrop/status"
)

// files are the page. Those of uPlot are of its npm package, see fetch-uplot.sh.
//
//go:embed static
var files embed.FS

// contentTypes are what the files are: the machine's own tables may say otherwise.
var contentTypes = map[string]string{
	"index.html": "text/html; charset=utf-8",
	"app.css":    "text/css; charset=utf-8",
	"uplot.css":  "text/css; charset=utf-8",
	"app.js":     "text/javascript; charset=utf-8",
	"charts.js":  "text/javascript; charset=utf-8",
	"dom.js":     "text/javascript; charset=utf-8",
	"story.js":   "text/javascript; charset=utf-8",
	"uplot.js":   "text/javascript; charset=utf-8",
	"icon.svg":   "image/svg+xml",
}

// routes returns what there is.
func (s *Server) routes() http.Handler {
	mux := http.NewServeMux()
	for name := range contentTypes {
		at := "/" + name
		if name == "index.html" {
			at = "/{$}"
		}
		mux.Handle("GET "+at, file(name))
	}
	for at, do := range map[string]func(*http.Request) (any, error){
		"GET /api/explain":       s.getExplanation,
		"GET /api/live":          s.getLive,
		"GET /api/why":           s.why,
		"GET /api/history":       s.searchHistory,
		"GET /api/blocks":        s.listBlocks,
		"POST /api/blocks/lift":  s.liftBlock,
		"GET /api/pairs":         s.listPairs,
		"POST /api/pairs/forget": s.forgetPair,
	} {
		mux.HandleFunc(at, func(w http.ResponseWriter, r *http.Request) {
			within := askWithin
			if r.URL.Path == "/api/explain" {
				within = explainWithin
				_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(within + answerWithin))
			}
			ctx, cancel := context.WithTimeout(r.Context(), within)
			defer cancel()
			answer, err := do(r.WithContext(ctx))
			if err != nil {
				failWith(w, err)
				return
			}
			reply(w, http.StatusOK, answer)
		})
	}
	mux.HandleFunc("GET /api/events", s.streamEvents)
	return mux
}

// file serves one of the page's files. It is asked for again each time: another version of
// the program may be behind the address tomorrow.
func file(name string) http.Handler {
	data, err := files.ReadFile("static/" + name)
	if err != nil {
		panic(err) // it is embedded
	}
	sum := sha256.Sum256(data)
	etag := `"` + base64.RawURLEncoding.EncodeToString(sum[:12]) + `"`
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Cache-Control", "no-cache")
		w.Header().Set("ETag", etag)
		w.Header().Set("Content-Type", contentTypes[name])
		http.ServeContent(w, r, name, time.Time{}, bytes.NewReader(data))
	})
}

// reply answers with an object.
func reply(w http.ResponseWriter, code int, object any) {
	body, err := json.Marshal(object)
	if err != nil {
		code, body = http.StatusInternalServerError, []byte(`{"error":"the answer has no JSON"}`)
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_, _ = w.Write(append(body, '\n')) // who does not read it does not want it
}

// fail answers with an error of one line.
func fail(w http.ResponseWriter, code int, message string) {
	w.Header().Set("Cache-Control", "no-store")
	reply(w, code, &control.Error{Message: message})
}

// badRequest is the error of what a browser has sent.
func badRequest(format string, args ...any) error {
	return &control.Error{Status: http.StatusBadRequest, Message: fmt.Sprintf(format, args...)}
}

// failWith answers with the daemon's error. That it does not let this process do something is
// no matter of who asks this process.
func failWith(w http.ResponseWriter, err error) {
	var told *control.Error
	var tooLarge *http.MaxBytesError
	code := http.StatusBadGateway
	switch {
	case errors.As(err, &tooLarge):
		code, err = http.StatusRequestEntityTooLarge, fmt.Errorf("the body is too large: at most %d bytes", maxBody)
	case errors.Is(err, control.ErrForbidden):
	case errors.As(err, &told) && told.Status < http.StatusInternalServerError:
		code = told.Status
	case errors.Is(err, control.ErrNoDaemon):
		code = http.StatusServiceUnavailable
	}
	fail(w, code, err.Error())
}

// Live is what the page shows as it happens. Its counters only grow: two of them make a rate.
type Live struct {
	// Changes says whether blocks can be lifted here.
	Changes bool `json:"changes"`
	*status.Top
}

func (s *Server) getLive(r *http.Request) (any, error) {
	top, err := s.live.get(r.Context())
	if err != nil {
		return nil, err
	}
	return Live{s.config.Token != "", top}, nil
}

// snapshots keeps the last answer of the daemon for a moment, so that many pages cost it no
// more than one.
type snapshots struct {
	daemon *control.Client

	mu   sync.Mutex
	last *status.Top
	at   time.Time
}

const (
	keepSnapshot = 500 * time.Millisecond
	topShown     = 30 // of each list
)

func (s *snapshots) get(ctx context.Context) (*status.Top, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.last != nil && time.Since(s.at) < keepSnapshot {
		return s.last, nil
	}
	top, err := s.daemon.Top(ctx, topShown)
	if err != nil {
		return nil, err
	}
	s.last, s.at = top, time.Now()
	return top, nil
}

// maxListed is how many blocks are listed at most.
const maxListed = 500

// listBlocks takes the parameters of control.BlockFilter, sort and limit.
func (s *Server) listBlocks(r *http.Request) (any, error) {
	v, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return nil, badRequest("the query can't be read")
	}
	sortBy, limit := v.Get("sort"), maxListed
	if v.Has("limit") {
		if limit, err = strconv.Atoi(v.Get("limit")); err != nil || limit < 1 || limit > maxListed {
			return nil, badRequest("limit %q: use a whole number from 1 to %d", v.Get("limit"), maxListed)
		}
	}
	v.Del("sort")
	v.Del("limit")
	filter, err := control.ParseBlockFilter(v)
	if err != nil {
		return nil, badRequest("%v", err)
	}
	return s.config.Daemon.Blocks(r.Context(), filter, sortBy, limit)
}

// lift names a block.
type lift struct {
	Interface string `json:"interface"`
	control.Flow
}

// liftBlock lets one flow pass again.
func (s *Server) liftBlock(r *http.Request) (any, error) {
	var l lift
	if err := body(r, &l); err != nil {
		return nil, err
	}
	key, err := l.Key()
	switch {
	case err != nil:
		return nil, badRequest("%v", err)
	case l.Interface == "":
		return nil, badRequest("interface is missing")
	}
	return s.config.Daemon.Lift(r.Context(), control.BlockFilter{Interface: l.Interface, Flow: &key})
}

// body reads the JSON of a request.
func body(r *http.Request, into any) error {
	if kind, _, _ := mime.ParseMediaType(r.Header.Get("Content-Type")); kind != "application/json" {
		return &control.Error{Status: http.StatusUnsupportedMediaType, Message: "the body has to be application/json"}
	}
	d := json.NewDecoder(r.Body)
	d.DisallowUnknownFields()
	err := d.Decode(into)
	if err == nil && d.More() {
		err = errors.New("something follows it")
	}
	var tooLarge *http.MaxBytesError
	switch {
	case errors.As(err, &tooLarge):
		return err
	case err != nil:
		return badRequest("the body is not the JSON object that is expected: %s", strings.TrimPrefix(err.Error(), "json: "))
	}
	return nil
}
