// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"time"
)

// Result is how a scenario went. Err is nil only when all of it was done.
type Result struct {
	Bytes    int64 // of content received, without protocol overhead
	Duration time.Duration
	Err      error
}

// Progress is told the bytes received so far, from one goroutine. It must
// return quickly. nil is allowed everywhere.
type Progress func(total int64)

// Download fetches a URL from the client with Go's HTTP client: directly when
// t is nil, else through the tunnel. The certificate is not verified. It
// stops when ctx ends; what had come until then is in Result.Bytes.
func (l *Lab) Download(ctx context.Context, t *Tunnel, url string, progress Progress) Result {
	start := time.Now()
	n, err := l.download(ctx, t, url, progress)
	if err != nil {
		err = fmt.Errorf("download %s: %w", url, err)
	}
	return Result{n, time.Since(start), err}
}

func (l *Lab) download(ctx context.Context, t *Tunnel, url string, progress Progress) (int64, error) {
	tr := &http.Transport{
		DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
			if t != nil {
				return l.Client.DialSOCKS(ctx, t.SOCKS, addr)
			}
			return l.Client.Dial(ctx, network, addr)
		},
		TLSClientConfig:   &tls.Config{InsecureSkipVerify: true}, // the lab's own certificate
		DisableKeepAlives: true,
	}
	defer tr.CloseIdleConnections()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return 0, err
	}
	resp, err := tr.RoundTrip(req)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return 0, fmt.Errorf("status %s", resp.Status)
	}
	return copyProgress(resp.Body, progress)
}

func copyProgress(r io.Reader, progress Progress) (int64, error) {
	var total int64
	buf := make([]byte, 64<<10)
	for {
		n, err := r.Read(buf)
		total += int64(n)
		if progress != nil && n > 0 {
			progress(total)
		}
		if errors.Is(err, io.EOF) {
			return total, nil
		}
		if err != nil {
			return total, err
		}
	}
}

// Curl fetches a URL from the client with curl, directly or through the
// tunnel, with extra options. It stops when ctx ends; bytes are then unknown
// and 0.
func (l *Lab) Curl(ctx context.Context, t *Tunnel, url string, options ...string) Result {
	argv := []string{"curl", "-q", "-sS", "-k", "--fail", "--noproxy", "", "-o", "/dev/null", "-w", "%{size_download}"}
	if t != nil {
		argv = append(argv, "--socks5-hostname", t.SOCKS.String())
	}
	argv = append(append(argv, options...), url)
	start := time.Now()
	out, err := l.Exec(ctx, l.Client, argv...)
	res := Result{Duration: time.Since(start)}
	if err != nil {
		res.Err = fmt.Errorf("curl %s: %w", url, err)
		return res
	}
	if res.Bytes, err = strconv.ParseInt(lastLine(string(out)), 10, 64); err != nil {
		res.Err = fmt.Errorf("curl %s: unexpected output %q", url, out)
	}
	return res
}

// SSHArgs returns the command line of ssh to the lab's sshd at addr, up to
// and including the destination.
func (s *SSH) SSHArgs(addr netip.AddrPort, options ...string) []string {
	argv := []string{"ssh", "-F", "none", "-i", s.Key, "-p", strconv.Itoa(int(addr.Port())),
		"-o", "IdentitiesOnly=yes", "-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null",
		"-o", "LogLevel=ERROR", "-o", "ConnectTimeout=20"}
	argv = append(argv, options...)
	return append(argv, "root@"+addr.Addr().String())
}

// SSHCommand runs a shell command on the server over ssh, by IP version 4 or
// 6; Bytes is the length of its output.
func (l *Lab) SSHCommand(ctx context.Context, s *SSH, version int, command string) Result {
	start := time.Now()
	out, err := l.Exec(ctx, l.Client, append(s.SSHArgs(netip.AddrPortFrom(l.ServerAddr(version), s.Port)), command)...)
	if err != nil {
		err = fmt.Errorf("ssh command %q: %w", command, err)
	}
	return Result{int64(len(out)), time.Since(start), err}
}

// SSHTransfer reads size bytes from the server over ssh.
func (l *Lab) SSHTransfer(ctx context.Context, s *SSH, version int, size int64) Result {
	r := l.SSHCommand(ctx, s, version, fmt.Sprintf("head -c %d /dev/urandom", size))
	if r.Err == nil && r.Bytes != size {
		r.Err = fmt.Errorf("ssh transfer: got %d of %d bytes", r.Bytes, size)
	}
	return r
}

// Resolver returns a resolver on the client that asks the lab's DNS server by
// IP version 4 or 6 over network "udp" or "tcp".
func (l *Lab) Resolver(d *DNS, version int, network string) *net.Resolver {
	addr := netip.AddrPortFrom(l.ServerAddr(version), d.Port).String()
	return &net.Resolver{PreferGo: true, StrictErrors: true,
		Dial: func(ctx context.Context, _, _ string) (net.Conn, error) { return l.Client.Dial(ctx, network, addr) }}
}

// Lookup asks the lab's DNS server for a name's addresses; Bytes is their
// summed length.
func (l *Lab) Lookup(ctx context.Context, d *DNS, version int, network, name string) Result {
	start := time.Now()
	// The dot keeps the search list of this machine out of it.
	ips, err := l.Resolver(d, version, network).LookupNetIP(ctx, "ip", strings.TrimSuffix(name, ".")+".")
	res := Result{Duration: time.Since(start)}
	if err != nil {
		res.Err = fmt.Errorf("look up %s: %w", name, err)
	}
	for _, ip := range ips {
		res.Bytes += int64(ip.BitLen() / 8)
	}
	return res
}
