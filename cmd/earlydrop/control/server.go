// SPDX-License-Identifier: Apache-2.0

package control

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// What one client can have the daemon do at most. Half of the connections and streams
// are for root: the group's members can't keep it out.
const (
	maxConns     = 32 // of root, and of all others together
	maxStreams   = 4  // the same
	maxSearches  = 4  // the same
	maxHeader    = 8 << 10
	maxBody      = 16 << 10
	headerWithin = 5 * time.Second
	bodyWithin   = 10 * time.Second
	answerWithin = 10 * time.Second // for a client that does not read on
	idleWithin   = time.Minute
	closeWithin  = 2 * time.Second
)

// Config says where a server is.
type Config struct {
	// Path of the socket. Its folder is made if it is not there.
	Path string
	// Group (gid) may read, and edit blocks; negative: root alone may.
	Group int
}

// Server answers at a socket, once there is a gateway to serve.
type Server struct {
	config  Config
	gateway Gateway
	socket  *socket
	http    *http.Server
	served  chan struct{} // closed when no connection is accepted any more; nil: not begun

	conns, streams quota
	searches       quota
	tooMany        quota         // connections that are refused
	walking        sync.Mutex    // one at a time walks the tables
	refusals       *rate.Limiter // of audit events of what was refused

	ending context.CancelFunc // ends the streams
}

// Listen makes the socket. Who connects waits until Serve. The error wraps ErrInUse where
// another daemon listens there.
func Listen(c Config) (*Server, error) {
	l, err := listen(c.Path, c.Group)
	if err != nil {
		return nil, err
	}
	ctx, ending := context.WithCancel(context.Background())
	s := &Server{
		config: c, socket: l, ending: ending,
		conns: quota{most: maxConns}, tooMany: quota{most: maxConns}, streams: quota{most: maxStreams}, searches: quota{most: maxSearches},
		refusals: rate.NewLimiter(5, 20),
	}
	s.http = &http.Server{
		Handler:           http.HandlerFunc(s.answer),
		ReadHeaderTimeout: headerWithin, ReadTimeout: bodyWithin, IdleTimeout: idleWithin,
		MaxHeaderBytes: maxHeader,
		BaseContext:    func(net.Listener) context.Context { return ctx },
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			return context.WithValue(ctx, peerKey{}, &c.(*conn).peer)
		},
		ErrorLog: slog.NewLogLogger(slog.Default().Handler(), slog.LevelDebug),
	}
	return s, nil
}

// Serve answers for a gateway from now on, until Close. It returns at once, and is called
// once.
func (s *Server) Serve(g Gateway) {
	s.gateway, s.served = g, make(chan struct{})
	go func() {
		defer close(s.served)
		if err := s.http.Serve(&listener{s.socket, s}); !errors.Is(err, http.ErrServerClosed) {
			slog.Warn("the control socket answers no more; the work goes on", "socket", s.config.Path, "error", err)
		}
	}()
}

// Path returns the socket's.
func (s *Server) Path() string { return s.config.Path }

// Close ends what clients have asked for, and removes the socket.
func (s *Server) Close() {
	s.ending()
	s.socket.remove()
	if s.served == nil {
		_ = s.socket.Close()
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), closeWithin)
	defer cancel()
	if s.http.Shutdown(ctx) != nil {
		_ = s.http.Close()
	}
	<-s.served
	s.streams.wait()
}

// quota counts what root has at a time, and all others together.
type quota struct {
	most int
	mu   sync.Mutex
	root int
	rest int
	all  sync.WaitGroup
}

// take reports whether there is room for one more; give it back then.
func (q *quota) take(uid uint32) (giveBack func(), ok bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	n := &q.rest
	if uid == 0 {
		n = &q.root
	}
	if *n >= q.most {
		return nil, false
	}
	*n++
	q.all.Add(1)
	return sync.OnceFunc(func() {
		q.mu.Lock()
		defer q.mu.Unlock()
		*n--
		q.all.Done()
	}), true
}

// wait waits until all is given back.
func (q *quota) wait() { q.all.Wait() }

// listener accepts connections together with who has made them.
type listener struct {
	*socket
	server *Server
}

// Accept implements net.Listener.
func (l *listener) Accept() (net.Conn, error) {
	for {
		c, err := l.AcceptUnix()
		if err != nil {
			return nil, err
		}
		p, err := peerOf(c)
		if err != nil { // it may be gone again
			_ = c.Close()
			continue
		}
		giveBack, ok := l.server.conns.take(p.uid)
		if !ok {
			p.tooMany = true // and is told so
			giveBack, ok = l.server.tooMany.take(p.uid)
		}
		if !ok {
			_ = c.Close()
			continue
		}
		return &conn{UnixConn: c, peer: p, giveBack: giveBack}, nil
	}
}

// conn is a connection of a peer.
type conn struct {
	*net.UnixConn
	peer     peer
	giveBack func()
}

// Close implements net.Conn.
func (c *conn) Close() error {
	c.giveBack()
	return c.UnixConn.Close()
}

// Write implements net.Conn. What package net/http answers by itself, before a handler is
// asked, is plain text: it becomes JSON, as all answers are.
func (c *conn) Write(p []byte) (int, error) {
	code, ok := ownAnswer(p)
	if !ok {
		return c.UnixConn.Write(p)
	}
	message := "the request is no HTTP/1.1 that this server understands"
	switch code {
	case http.StatusRequestHeaderFieldsTooLarge:
		message = fmt.Sprintf("the request's header is too large: at most %d bytes", maxHeader)
	case http.StatusExpectationFailed:
		message = "the request expects what this server can't do"
	case http.StatusNotImplemented:
		message = "the request's transfer encoding is not supported"
	case http.StatusHTTPVersionNotSupported:
		message = "the request's version of HTTP is not supported: use HTTP/1.1"
	}
	if _, err := c.UnixConn.Write(plainAnswer(code, message)); err != nil {
		return 0, err
	}
	return len(p), nil
}

// ownAnswer reports whether p is an answer of net/http's own to a bad request, and its
// code. The server's answers name their type.
func ownAnswer(p []byte) (code int, ok bool) {
	line, rest, _ := strings.Cut(string(p[:min(len(p), 512)]), "\r\n")
	if _, err := fmt.Sscanf(line, "HTTP/1.1 %d", &code); err != nil || code < 400 {
		return 0, false
	}
	return code, !strings.Contains(rest, "Content-Type: application/json")
}

// plainAnswer returns an error as a whole answer, after which the connection ends.
func plainAnswer(code int, message string) []byte {
	body, _ := json.Marshal(&Error{code, message})
	return fmt.Appendf(nil, "HTTP/1.1 %d %s\r\nContent-Type: application/json\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s\n",
		code, http.StatusText(code), len(body)+1, body)
}

type peerKey struct{}

// request is one that is being answered.
type request struct {
	*http.Request
	peer *peer
	w    http.ResponseWriter
}

// endpoint is what is done for a path and a method.
type endpoint struct {
	right right
	do    func(*request) error
}

func (s *Server) endpoints() map[string]map[string]endpoint {
	return map[string]map[string]endpoint{
		"/v1/about":  {"GET": {rightEdit, s.getAbout}},
		"/v1/status": {"GET": {rightEdit, s.getStatus}},
		"/v1/pairs":  {"GET": {rightEdit, s.listPairs}, "DELETE": {rightEdit, s.forgetPairs}},
		"/v1/top":    {"GET": {rightEdit, s.getTop}},
		"/v1/blocks": {"GET": {rightEdit, s.listBlocks}, "POST": {rightEdit, s.addBlock}, "DELETE": {rightEdit, s.liftBlocks}},
		"/v1/reload": {"POST": {rightRoot, s.reload}},
		"/v1/model":  {"POST": {rightRoot, s.useModel}},
		"/v1/mode":   {"POST": {rightRoot, s.setMode}},
		"/v1/why":    {"GET": {rightEdit, s.getWhy}},
		"/v1/events": {"GET": {rightEdit, s.streamEvents}},

		"/v1/history": {"GET": {rightEdit, s.searchHistory}},
		"/v1/capture": {"GET": {rightEdit, s.getCapture}},
	}
}

// answer is the server's http.Handler.
func (s *Server) answer(w http.ResponseWriter, r *http.Request) {
	req := &request{r, r.Context().Value(peerKey{}).(*peer), w}
	defer func() {
		if p := recover(); p != nil {
			if p == http.ErrAbortHandler { //nolint:errorlint // net/http compares it so
				panic(p)
			}
			slog.Error("a request of the control socket failed", "method", r.Method, "path", r.URL.Path, "panic", p)
			req.fail(&Error{http.StatusInternalServerError, "the request failed inside the daemon: its log says more"})
		}
	}()
	if err := s.route(req); err != nil {
		req.fail(err)
	}
}

func (s *Server) route(r *request) error {
	if r.peer.tooMany {
		return &Error{http.StatusServiceUnavailable, fmt.Sprintf("too many connections: at most %d at a time", maxConns)}
	}
	methods, ok := s.endpoints()[r.URL.Path]
	if !ok {
		return &Error{http.StatusNotFound, fmt.Sprintf("no %q here: see package control for what there is", r.URL.Path)}
	}
	e, ok := methods[r.Method]
	if !ok {
		allowed := []string{}
		for _, m := range []string{"GET", "POST", "PUT", "DELETE"} {
			if _, ok := methods[m]; ok {
				allowed = append(allowed, m)
			}
		}
		r.w.Header().Set("Allow", strings.Join(allowed, ", "))
		return &Error{http.StatusMethodNotAllowed, fmt.Sprintf("%s does not take %q: use %s", r.URL.Path, r.Method, strings.Join(allowed, ", "))}
	}
	if err := r.peer.refuse(e.right, s.config.Group); err != nil {
		s.auditRefusal(r, err)
		return err
	}
	if (r.Method == "GET" || r.Method == "DELETE") && r.ContentLength != 0 {
		return badRequest("%s %s takes no body", r.Method, r.URL.Path)
	}
	return e.do(r)
}

// fail answers with an error.
func (r *request) fail(err error) {
	var told *Error
	if !errors.As(err, &told) {
		told = &Error{http.StatusInternalServerError, err.Error()}
	}
	message := strings.Join(strings.FieldsFunc(told.Message, func(r rune) bool { return r == '\n' || r == '\r' }), "; ")
	r.w.Header().Set("Connection", "close") // what is left of the request is not read
	r.reply(told.Status, &Error{told.Status, message})
}

// reply answers with an object.
func (r *request) reply(code int, object any) {
	body, err := json.Marshal(object)
	if err != nil {
		slog.Error("an answer of the control socket has no JSON", "path", r.URL.Path, "error", err)
		code, body = http.StatusInternalServerError, []byte(`{"error":"the answer has no JSON"}`)
	}
	r.beginAnswer(code, "application/json")
	_, _ = r.w.Write(append(body, '\n')) // who does not read it does not want it
}

// beginAnswer says what comes, and bounds the time for it.
func (r *request) beginAnswer(code int, contentType string) {
	_ = http.NewResponseController(r.w).SetWriteDeadline(time.Now().Add(answerWithin))
	r.w.Header().Set("Content-Type", contentType)
	r.w.WriteHeader(code)
}

// body reads the JSON of a request.
func (r *request) body(into any) error {
	d := json.NewDecoder(http.MaxBytesReader(r.w, r.Body, maxBody))
	d.DisallowUnknownFields()
	err := d.Decode(into)
	if err == nil && d.More() {
		err = errors.New("something follows it")
	}
	var tooLarge *http.MaxBytesError
	switch {
	case errors.As(err, &tooLarge):
		return &Error{http.StatusRequestEntityTooLarge, fmt.Sprintf("the body is too large: at most %d bytes", maxBody)}
	case err != nil:
		return badRequest("the body is not the JSON object that is expected: %v", strings.TrimPrefix(err.Error(), "json: "))
	}
	return nil
}
