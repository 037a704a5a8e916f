// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/procfs"

	"github.com/earlydrop/earlydrop/test/e2e/rig"
	"github.com/earlydrop/earlydrop/test/lab"
)

const (
	webWorkers = 4        // that open HTTPS connections
	uploadMost = 32 << 20 // that an upload carries which nobody cuts
	offlineWeb = 1000     // HTTPS connections of the capture that is read offline
	webTimeout = 10 * time.Second
)

// tunnelTrips are the round trips at which tunnels are opened.
var tunnelTrips = []time.Duration{0, 10 * time.Millisecond}

// besideFigures are what is measured of one peer in one round.
type besideFigures struct {
	StartUp float64 `json:"start_up_ms"`
	One     bulk    `json:"upload_1_flow"`
	Four    bulk    `json:"upload_4_flows"`
	Web     web     `json:"https"`
	Memory  uint64  `json:"rss_bytes"`
}

// web is a run of HTTPS connections, one after another by each of webWorkers.
type web struct {
	Seconds float64   `json:"seconds"`
	Busy    float64   `json:"busy_seconds"` // of all CPUs, both ends included
	Times   []float64 `json:"-"`            // in ms, from the SYN to the end of the TLS handshake, in order of size
	Failed  int       `json:"failed"`
}

func (w web) rate() float64        { return float64(len(w.Times)) / w.Seconds }
func (w web) perThousand() float64 { return w.Busy * 1000 / float64(max(1, len(w.Times))) }

// cut is what became of uploads that are random from their first byte on.
type cut struct {
	Trip   float64   `json:"round_trip_ms"`
	Opened int       `json:"opened"`
	Bytes  []float64 `json:"bytes"` // that reached the server, of each that was cut, in order of size
	Times  []float64 `json:"ms"`    // from the SYN to the last byte that reached the server
}

// besideRow is all of one peer.
type besideRow struct {
	Name    string          `json:"name"`
	Absent  string          `json:"absent,omitempty"` // why it was not measured
	Rounds  []besideFigures `json:"rounds,omitempty"`
	Cut     []cut           `json:"cut,omitempty"`                 // at each of tunnelTrips, of a peer that is told to cut
	Offline float64         `json:"offline_us_per_flow,omitempty"` // CPU time of reading a capture file
}

// besideReport is the whole run.
type besideReport struct {
	report
	Rows []besideRow `json:"rows"`
}

// runPeers is the whole command with -only peers.
func runPeers(ctx context.Context, out io.Writer, o options) (err error) {
	if err := errors.Join(missing(), asError(lab.Missing())); err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "ed-bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	if o.program == "" {
		if o.program, err = rig.Build(ctx, dir); err != nil {
			return err
		}
	}
	for _, path := range []*string{&o.program, &o.openGFWProgram, &o.suricataProgram, &o.suricataRules} {
		if *path != "" {
			if *path, err = filepath.Abs(*path); err != nil {
				return err
			}
		}
	}
	policy := filepath.Join(dir, "policy.yaml")
	if err := os.WriteFile(policy, fmt.Appendf(nil, peerPolicy, iperfPort), 0o644); err != nil {
		return err
	}
	peers := o.peers(ctx, policy)
	rep := &besideReport{report: *newReport(o)}
	rep.Candidates = nil
	for _, p := range peers {
		rep.Rows = append(rep.Rows, besideRow{Name: p.name, Absent: p.absent})
	}
	for _, trip := range tunnelTrips {
		if err := o.measurePeers(ctx, peers, rep.Rows, trip, dir); err != nil {
			return fmt.Errorf("round trip %v: %w", trip, err)
		}
	}
	if err := rep.readOffline(ctx, o, dir); err != nil {
		return err
	}
	rep.LoadAfter = load()
	if o.json {
		return printJSON(out, rep)
	}
	rep.print(out)
	return nil
}

func asError(text string) error {
	if text == "" {
		return nil
	}
	return errors.New(text)
}

// The capture files that are read offline: the programs' start is in both.
const (
	oneFlow  = "one.pcap"
	allFlows = "all.pcap" // offlineWeb more
)

// measurePeers measures all peers in a lab of its own: without delay everything, else what
// becomes of tunnels. The first time it writes capture files into a folder.
func (o options) measurePeers(ctx context.Context, peers []peer, rows []besideRow, trip time.Duration, dir string) (err error) {
	var cfg lab.Config
	if trip > 0 {
		cfg.ServerLink.Relay.Delay = trip / 2
	}
	l, err := lab.New(ctx, cfg)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.Close()) }()
	r, err := rig.New(ctx, l, o.program)
	if err != nil {
		return err
	}
	nginx, err := l.StartNginx(ctx, lab.NginxConfig{})
	if err != nil {
		return err
	}
	b := &beside{options: o, rig: r, web: netip.AddrPortFrom(l.ServerAddr(4), nginx.HTTPSPort)}
	if b.sink, err = startUploads(l); err != nil {
		return err
	}
	defer b.sink.Close()
	iperf, err := l.Start(l.Server, "iperf3", "iperf3", "--server", "--port", fmt.Sprint(iperfPort))
	if err != nil {
		return err
	}
	if err := l.WaitReady(ctx, l.Server, netip.AddrPortFrom(l.ServerAddr(4), iperfPort), iperf); err != nil {
		return err
	}
	if trip == 0 {
		for name, flows := range map[string]int{oneFlow: 1, allFlows: 1 + offlineWeb} {
			if err := b.record(ctx, filepath.Join(dir, name), flows); err != nil {
				return fmt.Errorf("record HTTPS connections: %w", err)
			}
		}
	}
	rounds := o.rounds
	if trip > 0 {
		rounds = 1
	}
	for round := range rounds {
		for i := range peers {
			i := (i + round) % len(peers)
			if rows[i].Absent != "" {
				continue
			}
			err := b.measure(ctx, peers[i], &rows[i], trip, round == rounds-1)
			var none notStarted
			switch {
			case errors.As(err, &none) && ctx.Err() == nil:
				rows[i].Absent = oneLine(none.Error()) // the others go on
			case err != nil:
				return fmt.Errorf("%s, round %d: %w", peers[i].name, round+1, err)
			}
		}
	}
	return nil
}

// notStarted is why a peer did not start.
type notStarted struct{ error }

// oneLine returns a text without ends of lines.
func oneLine(text string) string { return strings.Join(strings.Fields(text), " ") }

// beside is a lab in which peers are measured.
type beside struct {
	options
	rig  *rig.Rig
	web  netip.AddrPort
	sink *uploads
}

// measure measures one peer once, and with last what becomes of tunnels.
func (b *beside) measure(ctx context.Context, p peer, row *besideRow, trip time.Duration, last bool) (err error) {
	var f besideFigures
	begun := time.Now()
	run, err := p.start(ctx, b.rig)
	if err != nil {
		return notStarted{err}
	}
	f.StartUp = time.Since(begun).Seconds() * 1e3
	defer func() {
		// Taken off even when the run was interrupted.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 20*time.Second)
		defer cancel()
		err = errors.Join(err, run.stop(ctx))
	}()
	if trip == 0 {
		if f.One, err = b.upload(ctx, 1); err != nil {
			return err
		}
		if f.Four, err = b.upload(ctx, 4); err != nil {
			return err
		}
		if f.Web, err = b.browse(ctx); err != nil {
			return err
		}
		if run.pid != 0 {
			if f.Memory, err = memory(run.pid); err != nil {
				return err
			}
		}
		row.Rounds = append(row.Rounds, f)
	}
	if !p.cuts || !last {
		return nil
	}
	c := cut{Trip: trip.Seconds() * 1e3}
	for range b.connections {
		bytes, took, wasCut, err := b.sink.open(ctx, b.rig.Lab, trip)
		if err != nil {
			return err
		}
		c.Opened++
		if wasCut {
			c.Bytes, c.Times = append(c.Bytes, float64(bytes)), append(c.Times, took.Seconds()*1e3)
		}
	}
	slices.Sort(c.Bytes)
	slices.Sort(c.Times)
	row.Cut = append(row.Cut, c)
	return nil
}

// memory returns the resident memory of a process.
func memory(pid int) (uint64, error) {
	proc, err := procfs.NewProc(pid)
	if err != nil {
		return 0, err
	}
	s, err := proc.NewStatus()
	return s.VmRSS, err
}

// upload measures TCP connections that send all they can.
func (b *beside) upload(ctx context.Context, flows int) (r bulk, err error) {
	// After a client, iperf3's server does not listen for a moment.
	limit, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	return r, rig.Until(limit, func() (bool, error) {
		r, err = iperfTo(ctx, b.rig.Lab, b.length, "--parallel", fmt.Sprint(flows))
		if err != nil && strings.Contains(err.Error(), "Connection refused") {
			return false, nil
		}
		return true, err
	})
}

// browse opens HTTPS connections for as long as a measurement takes, and fetches 1 KB over each.
func (b *beside) browse(ctx context.Context) (w web, err error) {
	cpu, err := readCPUTime()
	if err != nil {
		return w, err
	}
	var mu sync.Mutex
	var errs []error
	var workers sync.WaitGroup
	begun := time.Now()
	for range webWorkers {
		workers.Go(func() {
			// The thread stays in the client's namespace meanwhile.
			err := b.rig.Client.Do(func() error {
				for time.Since(begun) < b.length && ctx.Err() == nil {
					took, err := fetchOnce(ctx, b.web)
					mu.Lock()
					if err != nil {
						w.Failed++
					} else {
						w.Times = append(w.Times, took.Seconds()*1e3)
					}
					mu.Unlock()
				}
				return ctx.Err()
			})
			mu.Lock()
			errs = append(errs, err)
			mu.Unlock()
		})
	}
	workers.Wait()
	w.Seconds = time.Since(begun).Seconds()
	end, err := readCPUTime()
	w.Busy = end.sub(cpu).Busy.Seconds()
	slices.Sort(w.Times)
	return w, errors.Join(append(errs, err)...)
}

// fetchOnce opens an HTTPS connection and fetches 1 KB. It returns how long the connection took
// to open.
func fetchOnce(ctx context.Context, server netip.AddrPort) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, webTimeout)
	defer cancel()
	begun := time.Now()
	plain, err := new(net.Dialer).DialContext(ctx, "tcp", server.String())
	if err != nil {
		return 0, err
	}
	defer plain.Close()
	if err := plain.SetDeadline(begun.Add(webTimeout)); err != nil {
		return 0, err
	}
	c := tls.Client(plain, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"http/1.1"}})
	if err := c.Handshake(); err != nil {
		return 0, err
	}
	took := time.Since(begun)
	if _, err := io.WriteString(c, "GET /1k HTTP/1.1\r\nHost: lab\r\nConnection: close\r\n\r\n"); err != nil {
		return 0, err
	}
	n, err := io.Copy(io.Discard, c)
	if err == nil && n < 1<<10 {
		err = fmt.Errorf("%d bytes instead of 1 KB", n)
	}
	return took, err
}

// record writes a capture file of HTTPS connections.
func (b *beside) record(ctx context.Context, path string, flows int) error {
	rec, err := b.rig.Record(path)
	if err != nil {
		return err
	}
	err = b.rig.Client.Do(func() error {
		for range flows {
			if _, err := fetchOnce(ctx, b.web); err != nil {
				return err
			}
		}
		return nil
	})
	return errors.Join(err, rec.Stop())
}

// uploads is a server that takes what others send, and counts it.
type uploads struct {
	net.Listener
	data  []byte
	taken chan *upload
}

// upload is one connection of it.
type upload struct {
	mu   sync.Mutex
	n    int
	last time.Time // when the last byte came
}

func startUploads(l *lab.Lab) (*uploads, error) {
	listener, err := l.Server.Listen("tcp", netip.AddrPortFrom(l.ServerAddr(4), 0).String())
	if err != nil {
		return nil, err
	}
	u := &uploads{Listener: listener, data: make([]byte, 1<<20), taken: make(chan *upload, 1)}
	random := rand.NewChaCha8([32]byte{2})
	if _, err := random.Read(u.data); err != nil {
		return nil, errors.Join(err, listener.Close())
	}
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return // closed
			}
			one := new(upload)
			u.taken <- one
			go one.take(conn)
		}
	}()
	return u, nil
}

func (u *upload) take(conn net.Conn) {
	defer conn.Close()
	b := make([]byte, 64<<10)
	for {
		n, err := conn.Read(b)
		u.mu.Lock()
		if n > 0 {
			u.n, u.last = u.n+n, time.Now()
		}
		u.mu.Unlock()
		if err != nil {
			return
		}
	}
}

func (u *upload) seen() (int, time.Time) {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.n, u.last
}

// open opens an upload that begins like a client of Shadowsocks and goes on with random bytes,
// as fast as it goes. It returns how much of it came through, until when, and whether it was cut.
func (u *uploads) open(ctx context.Context, l *lab.Lab, trip time.Duration) (n int, took time.Duration, wasCut bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	at := u.Addr().(*net.TCPAddr).AddrPort()
	request, err := lab.ShadowsocksRequest(fmt.Sprint("secret ", rand.Int()), at, u.data[:700])
	if err != nil {
		return 0, 0, false, err
	}
	begun := time.Now()
	conn, err := l.Client.Dial(ctx, "tcp", at.String())
	if err != nil {
		return 0, 0, false, err
	}
	defer conn.Close()
	go func() { // until it is all sent, or closed
		_, err := conn.Write(request)
		for sent := len(request); err == nil && sent < uploadMost; sent += len(u.data) {
			_, err = conn.Write(u.data)
		}
	}()
	var server *upload
	select {
	case server = <-u.taken:
	case <-ctx.Done():
		return 0, 0, false, fmt.Errorf("an upload was not accepted: %w", ctx.Err())
	}
	// TCP sends again what was lost after 200 ms, and later and later.
	quiet := time.Second + 2*trip
	for {
		n, last := server.seen()
		switch {
		case n >= uploadMost:
			return n, last.Sub(begun), false, nil
		case n > 0 && time.Since(last) > quiet, n == 0 && time.Since(begun) > quiet:
			if n == 0 {
				last = begun
			}
			return n, last.Sub(begun), true, nil
		}
		select {
		case <-ctx.Done():
			return n, 0, false, fmt.Errorf("an upload of %d bytes does not end: %w", n, ctx.Err())
		case <-time.After(5 * time.Millisecond):
		}
	}
}
