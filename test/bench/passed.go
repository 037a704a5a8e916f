// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"time"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/jedib0t/go-pretty/v6/text"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/earlydrop/earlydrop/test/e2e/rig"
	"github.com/earlydrop/earlydrop/test/lab"
)

// roundTrips are the round trips between client and server at which the bytes are
// counted. The first is that of the veth pairs themselves.
var roundTrips = []time.Duration{0, 5 * time.Millisecond, 50 * time.Millisecond}

// contentBytes is what a connection carries if it is not cut: far more than passes of
// one that is.
const contentBytes = 256 << 20

// passed is what got through of connections that were cut: of one tunnel, in one
// direction, at one round trip.
type passed struct {
	Tunnel      string  `json:"tunnel"`
	Direction   string  `json:"direction"` // of the content: download or upload
	RoundTrip   float64 `json:"round_trip_ms"`
	Connections int     `json:"connections"`
	// Bytes are the TCP payload in that direction that reached its receiver, of each
	// connection that was cut, in order of size. The others were not identified.
	Bytes []uint64 `json:"bytes"`
}

// passedReport is the whole measurement.
type passedReport struct {
	CPUs       int      `json:"cpus"`
	LoadBefore string   `json:"load_before"` // of 1, 5 and 15 minutes
	LoadAfter  string   `json:"load_after"`
	Passed     []passed `json:"passed"`
}

// measurePassed counts at each round trip. connections is how many are opened of each
// tunnel in each direction.
func measurePassed(ctx context.Context, program string, connections int, trips []time.Duration) (passedReport, error) {
	rep := passedReport{CPUs: runtime.NumCPU(), LoadBefore: load()}
	for _, trip := range trips {
		rows, err := passedAt(ctx, program, connections, trip)
		if err != nil {
			return rep, fmt.Errorf("round trip %v: %w", trip, err)
		}
		rep.Passed = append(rep.Passed, rows...)
	}
	rep.LoadAfter = load()
	return rep, nil
}

// passedPolicy is about each connection by itself: the first one of a pair and the tenth are cut
// in the same way.
const passedPolicy = `mode: enforce
rules: [{name: tunnels, class: [shadowsocks, v2ray, vless, obfs4], action: drop, ttl: 10m}]
`

// passedAt counts at one round trip, in a lab of its own.
func passedAt(ctx context.Context, program string, connections int, trip time.Duration) (rows []passed, err error) {
	var cfg lab.Config
	if trip > 0 {
		cfg.ServerLink.Relay.Delay = trip / 2
	}
	l, err := lab.New(ctx, cfg)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, l.Close()) }()
	r, err := rig.New(ctx, l, program)
	if err != nil {
		return nil, err
	}
	c, err := startContent(l)
	if err != nil {
		return nil, err
	}
	defer c.listener.Close()
	ss, err := r.StartShadowsocks(ctx, lab.ShadowsocksConfig{})
	if err != nil {
		return nil, err
	}
	vmess, err := r.StartVMess(ctx, lab.VMessConfig{})
	if err != nil {
		return nil, err
	}
	policy := filepath.Join(r.Dir(), "policy.yaml")
	if err := os.WriteFile(policy, []byte(passedPolicy), 0o644); err != nil {
		return nil, err
	}
	d, err := r.Attach(ctx, "--policy", policy)
	if err != nil {
		return nil, err
	}
	defer d.Kill()
	tunnels := []struct {
		name string
		*lab.Tunnel
	}{{"Shadowsocks", ss}, {"VMess", vmess}}
	opened := map[*lab.Tunnel]int{}
	for _, t := range tunnels {
		for _, direction := range []string{"download", "upload"} {
			rows = append(rows, passed{Tunnel: t.name, Direction: direction, RoundTrip: float64(trip) / float64(time.Millisecond)})
		}
	}
	// In turn, so that what else the machine does meets all of them.
	for range connections {
		for i := range rows {
			row, t := &rows[i], tunnels[i/2].Tunnel
			n, cut, err := c.connect(ctx, r, d, t, opened[t], row.Direction == "upload", trip)
			if err != nil {
				return nil, fmt.Errorf("%s, %s: %w", row.Tunnel, row.Direction, err)
			}
			opened[t]++
			row.Connections++
			if cut {
				row.Bytes = append(row.Bytes, n)
			}
		}
	}
	for i := range rows {
		slices.Sort(rows[i].Bytes)
	}
	_, err = d.Stop(ctx)
	return rows, err
}

// content is a server that sends all it can to whoever connects, or receives it.
type content struct {
	listener net.Listener
	addr     netip.AddrPort
	data     []byte
}

// The first byte of a connection tells the server what to do.
const (
	wantDownload = 'd'
	wantUpload   = 'u'
)

func startContent(l *lab.Lab) (*content, error) {
	listener, err := l.Server.Listen("tcp", netip.AddrPortFrom(l.ServerAddr(4), 0).String())
	if err != nil {
		return nil, err
	}
	c := &content{listener: listener, data: make([]byte, 1<<20)}
	c.addr = listener.Addr().(*net.TCPAddr).AddrPort()
	random := rand.NewChaCha8([32]byte{1})
	if _, err := random.Read(c.data); err != nil {
		return nil, errors.Join(err, listener.Close())
	}
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return // closed
			}
			go func() {
				defer conn.Close()
				var want [1]byte
				if _, err := io.ReadFull(conn, want[:]); err == nil {
					c.move(conn, want[0] == wantDownload)
				}
			}()
		}
	}()
	return c, nil
}

// move sends content, or takes it and throws it away, until there is no more or the
// other side is gone.
func (c *content) move(conn net.Conn, send bool) {
	if !send {
		_, _ = io.Copy(io.Discard, conn)
		return
	}
	for sent := 0; sent < contentBytes; sent += len(c.data) {
		if _, err := conn.Write(c.data); err != nil {
			return
		}
	}
}

// connect opens the tunnel's n-th connection and moves content through it until it is
// cut. It returns how much of the tunnel's own bytes the receiver got, and whether the
// connection was cut at all.
func (c *content) connect(ctx context.Context, r *rig.Rig, d *rig.Daemon, t *lab.Tunnel, n int, upload bool, trip time.Duration) (got uint64, cut bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	conn, err := r.Client.DialSOCKS(ctx, t.SOCKS, c.addr.String())
	if err != nil {
		return 0, false, err
	}
	done := make(chan struct{})
	defer func() {
		conn.Close()
		<-done
	}()
	want := byte(wantDownload)
	if upload {
		want = wantUpload
	}
	go func() {
		defer close(done)
		if _, err := conn.Write([]byte{want}); err == nil {
			c.move(conn, upload)
		}
	}()
	v, err := d.Verdict(ctx, t.Server, n)
	if err != nil {
		return 0, false, err
	}
	if v.Enforced == nil || !*v.Enforced {
		return 0, false, nil
	}
	arrived := func() (uint64, error) {
		if upload {
			return bytesReceived(r.Server, v.Dst, v.Src)
		}
		return bytesReceived(r.Client, v.Src, v.Dst)
	}
	// What is on its way still arrives. Wait until nothing has for a while.
	quiet := 200*time.Millisecond + 2*trip
	for since := time.Now(); time.Since(since) < quiet; {
		now, err := arrived()
		if err != nil {
			return 0, false, err
		}
		if now > got {
			got, since = now, time.Now()
		}
		select {
		case <-ctx.Done():
			return 0, false, fmt.Errorf("connection %d goes on after the verdict: %d bytes", n, got)
		case <-time.After(5 * time.Millisecond):
		}
	}
	b, ok, err := r.Block(ctx, v.Src, v.Dst)
	if err == nil && (!ok || b.Packets == 0) {
		err = fmt.Errorf("connection %d was to be cut, but the kernel has dropped nothing: %+v", n, b)
	}
	return got, true, err
}

// bytesReceived asks a host's kernel how much payload the TCP connection has received,
// in order. It is 0 for one that the host does not have yet, or any more.
func bytesReceived(n *lab.Namespace, local, remote netip.AddrPort) (got uint64, err error) {
	err = n.Do(func() error {
		sockets, err := netlink.SocketDiagTCPInfo(unix.AF_INET)
		if err != nil {
			return fmt.Errorf("list TCP connections: %w", err)
		}
		for _, s := range sockets {
			if id := s.InetDiagMsg.ID; id.SourcePort == local.Port() && id.DestinationPort == remote.Port() && s.TCPInfo != nil {
				got = s.TCPInfo.Bytes_received
				return nil
			}
		}
		return nil
	})
	return got, err
}

// share returns the least value that so large a share of the sorted values does not
// exceed.
func (p passed) share(of float64) uint64 {
	if len(p.Bytes) == 0 {
		return 0
	}
	return p.Bytes[max(0, min(len(p.Bytes)-1, int(of*float64(len(p.Bytes)-1)+0.5)))]
}

func (rep passedReport) print(out io.Writer) {
	fmt.Fprintf(out, "bytes that passed before a connection was cut: client -- gateway -- server on veth, %d CPUs\nload %s before, %s after\n\n",
		rep.CPUs, rep.LoadBefore, rep.LoadAfter)
	tw := table.NewWriter()
	tw.SetOutputMirror(out)
	tw.SetStyle(table.StyleLight)
	tw.Style().Format.Header = text.FormatDefault
	tw.AppendHeader(table.Row{"tunnel", "direction", "round trip", "cut", "least", "median", "9 of 10", "most"})
	var right []table.ColumnConfig
	for n := 3; n <= 8; n++ {
		right = append(right, table.ColumnConfig{Number: n, Align: text.AlignRight, AlignHeader: text.AlignRight})
	}
	tw.SetColumnConfigs(right)
	for _, p := range rep.Passed {
		row := table.Row{p.Tunnel, p.Direction, fmt.Sprintf("%g ms", p.RoundTrip), fmt.Sprintf("%d of %d", len(p.Bytes), p.Connections)}
		for _, of := range []float64{0, 0.5, 0.9, 1} {
			cell := "-"
			if len(p.Bytes) > 0 {
				cell = bytesInWords(p.share(of))
			}
			row = append(row, cell)
		}
		tw.AppendRow(row)
	}
	tw.Render()
	fmt.Fprintf(out, `A rule at the model's threshold, for each connection by itself. A connection carries content from its first message on, as fast as it goes,
%d MiB if nobody stops it. Counted is the TCP payload that the content's receiver got, what the tunnel adds included.
Connections that were not cut were not identified.
`, contentBytes>>20)
}

// bytesInWords prints with two digits at least: 950 B, 14 KB, 1.1 MB (of 1000).
func bytesInWords(n uint64) string {
	switch v := float64(n); {
	case v < 1e3:
		return fmt.Sprintf("%d B", n)
	case v < 9.95e3:
		return fmt.Sprintf("%.1f KB", v/1e3)
	case v < 999.5e3:
		return fmt.Sprintf("%.0f KB", v/1e3)
	default:
		return fmt.Sprintf("%.1f MB", v/1e6)
	}
}

// runPassed is the whole command with -only passed.
func runPassed(ctx context.Context, out io.Writer, o options) (err error) {
	if missing := lab.Missing(); missing != "" {
		return errors.New(missing)
	}
	dir, err := os.MkdirTemp("", "ed-bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	if o.program, err = program(ctx, o.program, dir); err != nil {
		return err
	}
	rep, err := measurePassed(ctx, o.program, o.connections, roundTrips)
	if err != nil {
		return err
	}
	if o.json {
		return printJSON(out, rep)
	}
	rep.print(out)
	return nil
}
