// SPDX-License-Identifier: Apache-2.0

package web

import (
	"crypto/sha256"
	"crypto/subtle"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"time"
)

// contentPolicy has browsers load and run nothing but this server's own files, and take no
// text for code or markup, even if the page's script would ask for that.
const contentPolicy = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; " +
	"base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"

// guard lets requests through that may be answered, and says with each answer what browsers
// may do with it.
func (s *Server) guard(next http.Handler) http.Handler {
	crossOrigin := http.NewCrossOriginProtection()
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(askWithin + answerWithin))
		h := w.Header()
		h.Set("Content-Security-Policy", contentPolicy)
		h.Set("X-Frame-Options", "DENY")
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("Referrer-Policy", "no-referrer")
		h.Set("Cross-Origin-Opener-Policy", "same-origin")
		h.Set("Cross-Origin-Resource-Policy", "same-origin")
		h.Set("Permissions-Policy", "camera=(), geolocation=(), microphone=()")
		h.Set("Cache-Control", "no-store")
		defer func() {
			if p := recover(); p != nil {
				if p == http.ErrAbortHandler { //nolint:errorlint // net/http compares it so
					panic(p)
				}
				slog.Error("a request failed", "method", r.Method, "path", r.URL.Path, "panic", p)
				fail(w, http.StatusInternalServerError, "the request failed inside the server: its log says more")
			}
		}()
		switch {
		case !s.isOurs(r):
			// A name that somebody has made point to this address, so that a page of his
			// may read what is here (DNS rebinding).
			fail(w, http.StatusMisdirectedRequest, "this server is not called that: use its address, localhost, or a name of its certificate")
		case crossOrigin.Check(r) != nil, !sameOrigin(r):
			fail(w, http.StatusForbidden, "the request comes from a page of another site")
		case strings.HasPrefix(r.URL.Path, "/api/") && !s.allowed(w, r):
		default:
			r.Body = http.MaxBytesReader(w, r.Body, maxBody)
			next.ServeHTTP(w, r)
		}
	})
}

// isOurs reports whether the request is for a name of this server: the address that it came
// to, localhost there, or what the certificate is for. A forwarded port may be another one.
func (s *Server) isOurs(r *http.Request) bool {
	host := r.Host
	if name, _, err := net.SplitHostPort(host); err == nil {
		host = name
	}
	local, ok := r.Context().Value(http.LocalAddrContextKey).(*net.TCPAddr)
	if !ok {
		return false
	}
	at := local.AddrPort().Addr().Unmap()
	literal, err := netip.ParseAddr(strings.Trim(host, "[]"))
	switch {
	case err == nil && literal.Unmap() == at.WithZone(""):
		return true
	case strings.EqualFold(host, "localhost") && at.IsLoopback():
		return true
	}
	c := s.config.Certificate
	return c != nil && c.Leaf != nil && c.Leaf.VerifyHostname(host) == nil
}

// sameOrigin reports whether a browser says that the request is of this page itself, or says
// nothing. Its own address may be opened from wherever.
func sameOrigin(r *http.Request) bool {
	site := r.Header.Get("Sec-Fetch-Site")
	return site == "" || site == "same-origin" || site == "none" ||
		r.Method == http.MethodGet && r.Header.Get("Sec-Fetch-Mode") == "navigate" && r.URL.Path == "/"
}

// allowed reports whether who asks knows the token, where there is one, and answers those who
// do not. Changes need one.
func (s *Server) allowed(w http.ResponseWriter, r *http.Request) bool {
	if s.config.Token == "" {
		if r.Method == http.MethodGet || r.Method == http.MethodHead {
			return true
		}
		fail(w, http.StatusForbidden, "nothing can be changed here: the server was started without a token")
		return false
	}
	given, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	hash := sha256.Sum256([]byte(given))
	switch {
	case ok && subtle.ConstantTimeCompare(hash[:], s.token[:]) == 1:
		return true
	case ok && !s.wrongTokens.Allow():
		w.Header().Set("Retry-After", "1")
		fail(w, http.StatusTooManyRequests, "too many wrong tokens: try again in a second")
		return false
	}
	w.Header().Set("WWW-Authenticate", `Bearer realm="earlydrop"`)
	fail(w, http.StatusUnauthorized, "the token is missing or wrong")
	return false
}
