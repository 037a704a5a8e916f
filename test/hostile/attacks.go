// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"golang.org/x/crypto/ssh"
	"golang.org/x/sys/unix"

	"github.com/earlydrop/earlydrop/cmd/earlydrop/event"
	"github.com/earlydrop/earlydrop/test/e2e/rig"
	"github.com/earlydrop/earlydrop/test/lab"
)

// attackPolicy drops whatever looks a little like a tunnel: what an attack has judged
// that is not the beginning of a connection is cut by it. No limit spares it.
const attackPolicy = `mode: enforce
limits: none
rules:
  - name: tunnels
    class: [shadowsocks, v2ray, vless, obfs4]
    min_confidence: 0.3
    action: drop
    ttl: %s
`

// arena is a gateway in mode enforce, innocent servers and a tunnel's behind it, and an
// attacker on each side.
type arena struct {
	*gateway
	ssh       *lab.SSH
	attackers map[string]*attacker
	nextPort  uint16
	opened    []net.Conn // connections that last as long as the arena
}

func newArena(ctx context.Context, o options, ttl string, args ...string) (_ *arena, err error) {
	dir, err := os.MkdirTemp("", "ed-arena-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	policy := filepath.Join(dir, "policy.yaml")
	if err := os.WriteFile(policy, fmt.Appendf(nil, attackPolicy, ttl), 0o600); err != nil {
		return nil, err
	}
	a := &arena{attackers: map[string]*attacker{}, nextPort: 20000}
	if a.gateway, err = newGatewayIn(ctx, "enforce", o.binary, o.rtt, append([]string{"--policy", policy}, args...)...); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, a.close(ctx))
		}
	}()
	if a.ssh, err = a.StartSSH(ctx, 0); err != nil {
		return nil, err
	}
	for _, side := range []string{clientSide, serverSide} {
		if a.attackers[side], err = a.attacker(side); err != nil {
			return nil, err
		}
	}
	return a, nil
}

func (a *arena) close(ctx context.Context) error {
	var errs []error
	for _, c := range a.opened {
		_ = c.Close()
	}
	for _, at := range a.attackers {
		errs = append(errs, at.close())
	}
	return errors.Join(append(errs, a.gateway.close(ctx))...)
}

// tuple is a connection's two ends.
type tuple struct{ client, server netip.AddrPort }

// dial connects from a local port, 0 for a fresh one. The client's kernel takes in little
// more than is read.
func (a *arena) dial(ctx context.Context, port uint16, server netip.AddrPort) (net.Conn, tuple, error) {
	if port == 0 {
		port = a.port()
	}
	t := tuple{netip.AddrPortFrom(a.ClientAddr(4), port), server}
	d := net.Dialer{LocalAddr: net.TCPAddrFromAddrPort(t.client), Timeout: time.Minute}
	var c net.Conn
	err := a.Client.Do(func() (err error) {
		c, err = d.DialContext(ctx, "tcp", server.String())
		return err
	})
	if err == nil {
		err = c.(*net.TCPConn).SetReadBuffer(32 << 10)
	}
	return c, t, err
}

// port returns a port of the client that nothing has used.
func (a *arena) port() uint16 {
	a.nextPort++
	return a.nextPort
}

// forgery is an attack: segments that are sent from one side as if they were of a
// connection.
type forgery struct {
	name     string
	side     string
	segments []step
}

// step is a forged segment of the connection's client or, with reply, its server.
type step struct {
	forged
	reply bool
}

func (a *arena) forge(f forgery, t tuple) error {
	for _, s := range f.segments {
		src, dst := t.client, t.server
		if s.reply {
			src, dst = dst, src
		}
		if err := a.attackers[f.side].send(src, dst, s.forged); err != nil {
			return err
		}
	}
	return nil
}

// transfer is an innocent download that has begun and waits.
type transfer struct {
	kind string
	tuple
	rest func() error // the rest of it arrives, whole
}

// transferKinds are the innocent connections of an attack.
var transferKinds = []string{"http", "https", "ssh"}

const transferTime = 2 * time.Minute

// transfer starts a download of the kind from a local port, 0 for a fresh one, and reads
// its beginning.
func (a *arena) transfer(ctx context.Context, kind string, port uint16) (_ transfer, err error) {
	server := netip.AddrPortFrom(a.ServerAddr(4), map[string]uint16{"http": a.web.HTTPPort, "https": a.web.HTTPSPort, "ssh": a.ssh.Port}[kind])
	conn, t, err := a.dial(ctx, port, server)
	if err != nil {
		return transfer{}, fmt.Errorf("%s from port %d: %w", kind, port, err)
	}
	defer func() {
		if err != nil {
			_ = conn.Close()
		}
	}()
	if err := conn.SetDeadline(time.Now().Add(transferTime)); err != nil {
		return transfer{}, err
	}
	var body io.Reader
	size := int64(1 << 20)
	if kind == "ssh" {
		size = 6 << 20 // more than the protocol's own window
		body, err = a.sshOutput(conn, fmt.Sprintf("head -c %d /dev/urandom", size))
	} else {
		body, err = fetch(conn, kind == "https", "/1m")
	}
	if err == nil {
		_, err = io.CopyN(io.Discard, body, 64<<10)
	}
	if err != nil {
		return transfer{}, fmt.Errorf("%s from port %d: %w", kind, t.client.Port(), err)
	}
	return transfer{kind, t, func() error {
		defer conn.Close()
		_ = conn.SetDeadline(time.Now().Add(transferTime))
		n, err := io.Copy(io.Discard, body)
		if err == nil && n+64<<10 != size {
			err = fmt.Errorf("%d of %d bytes came", n+64<<10, size)
		}
		return err
	}}, nil
}

// fetch asks for a file over HTTP/1.0 and returns what follows the header.
func fetch(conn net.Conn, encrypted bool, path string) (io.Reader, error) {
	if encrypted {
		conn = tls.Client(conn, &tls.Config{InsecureSkipVerify: true})
	}
	if _, err := fmt.Fprintf(conn, "GET %s HTTP/1.0\r\nHost: lab\r\n\r\n", path); err != nil {
		return nil, err
	}
	var head []byte
	for !bytes.HasSuffix(head, []byte("\r\n\r\n")) {
		b := make([]byte, 1)
		if _, err := conn.Read(b); err != nil {
			return nil, fmt.Errorf("read the answer's header: %w", err)
		}
		head = append(head, b...)
	}
	return conn, nil
}

func (a *arena) sshOutput(conn net.Conn, command string) (io.Reader, error) {
	pem, err := os.ReadFile(a.ssh.Key)
	if err != nil {
		return nil, err
	}
	key, err := ssh.ParsePrivateKey(pem)
	if err != nil {
		return nil, err
	}
	c, chans, reqs, err := ssh.NewClientConn(conn, "lab", &ssh.ClientConfig{
		User: "root", Auth: []ssh.AuthMethod{ssh.PublicKeys(key)}, HostKeyCallback: ssh.InsecureIgnoreHostKey(),
	})
	if err != nil {
		return nil, err
	}
	session, err := ssh.NewClient(c, chans, reqs).NewSession()
	if err != nil {
		return nil, err
	}
	out, err := session.StdoutPipe()
	if err != nil {
		return nil, err
	}
	return out, session.Start(command)
}

// judged waits for the verdict about a connection, whoever counts as its initiator.
func (a *arena) judged(ctx context.Context, t tuple) (*event.Verdict, error) {
	return rig.Wait(ctx, a.daemon, fmt.Sprintf("the verdict about %s > %s", t.client, t.server), func(e *event.Verdict) bool {
		return e.Src == t.client && e.Dst == t.server || e.Src == t.server && e.Dst == t.client
	})
}

// verdicts counts those about a connection, and those that drop it.
func (a *arena) verdicts(t tuple) (all, drop int) {
	for _, e := range rig.Of[*event.Verdict](a.daemon.Events()) {
		if e.Src == t.client && e.Dst == t.server || e.Src == t.server && e.Dst == t.client {
			all++
			if e.Decision == "drop" {
				drop++
			}
		}
	}
	return all, drop
}

// harm is what an attack on innocent connections came to.
type harm struct {
	attack           string
	connections      int
	failed           int // did not complete
	again            int // were judged a second time, from their middle, or cut
	example          error
	swapped, unknown int // of tunnels: the ends mistaken for each other; no verdict that drops
}

// fail counts a connection that could not be made.
func (h *harm) fail(err error) {
	h.connections++
	h.failed++
	h.first(err)
}

// first keeps the first of several explanations.
func (h *harm) first(err error) {
	if h.example == nil {
		h.example = err
	}
}

func (h harm) check() error {
	if h.connections == 0 {
		return fmt.Errorf("%s: nothing was attacked", h.attack)
	}
	if h.failed+h.again+h.swapped+h.unknown == 0 {
		return nil
	}
	return fmt.Errorf("%s (for example: %w)", h, h.example)
}

func (h harm) String() string {
	return fmt.Sprintf("%s: of %d connections %d failed, %d were judged anew or dropped, %d had their ends mistaken, %d were not identified",
		h.attack, h.connections, h.failed, h.again, h.swapped, h.unknown)
}

// hijack lets each attack loose on n running downloads of each kind that were judged, and
// sees whether they complete and are left alone.
func (a *arena) hijack(ctx context.Context, attacks []forgery, n int) ([]harm, error) {
	all := make([]harm, len(attacks))
	running := make([][]transfer, len(attacks))
	for i, f := range attacks {
		all[i].attack = f.name + ", from the " + f.side + ", on running connections"
		for range n {
			for _, kind := range transferKinds {
				t, err := a.transfer(ctx, kind, 0)
				if err != nil {
					return nil, err
				}
				running[i] = append(running[i], t)
			}
		}
	}
	for i, f := range attacks {
		for _, t := range running[i] {
			if _, err := a.judged(ctx, t.tuple); err != nil {
				return nil, err
			}
			if err := a.forge(f, t.tuple); err != nil {
				return nil, err
			}
		}
	}
	return all, a.complete(ctx, all, running)
}

// poison lets each attack loose on n connections that do not exist yet, and sees whether
// they can be made afterwards.
func (a *arena) poison(ctx context.Context, attacks []forgery, n int) ([]harm, error) {
	all := make([]harm, len(attacks))
	running := make([][]transfer, len(attacks))
	server := netip.AddrPortFrom(a.ServerAddr(4), a.web.HTTPSPort)
	ports := make([][]uint16, len(attacks))
	for i, f := range attacks {
		all[i].attack = f.name + ", from the " + f.side + ", on connections to come"
		for range n {
			port := a.port()
			ports[i] = append(ports[i], port)
			if err := a.forge(f, tuple{netip.AddrPortFrom(a.ClientAddr(4), port), server}); err != nil {
				return nil, err
			}
		}
	}
	// Whatever the attack has had captured is judged when it falls idle.
	if err := a.settle(ctx); err != nil {
		return nil, err
	}
	for i := range attacks {
		var wg sync.WaitGroup
		var mu sync.Mutex
		for _, port := range ports[i] {
			wg.Go(func() {
				t, err := a.transfer(ctx, "https", port)
				mu.Lock()
				defer mu.Unlock()
				if err != nil {
					all[i].fail(err)
				} else {
					running[i] = append(running[i], t)
				}
			})
		}
		wg.Wait()
	}
	return all, a.complete(ctx, all, running)
}

// complete reads the rest of the downloads of each attack, which have had one verdict
// each.
func (a *arena) complete(ctx context.Context, all []harm, running [][]transfer) error {
	var wg sync.WaitGroup
	errs := make([][]error, len(all))
	for i := range all {
		errs[i] = make([]error, len(running[i]))
		for j, t := range running[i] {
			wg.Go(func() { errs[i][j] = t.rest() })
		}
	}
	wg.Wait()
	// What was captured once more is handed over when it falls idle.
	if err := a.settle(ctx); err != nil {
		return err
	}
	for i := range all {
		for j, t := range running[i] {
			all[i].connections++
			if errs[i][j] != nil {
				all[i].failed++
				all[i].first(fmt.Errorf("%s: %w", t.kind, errs[i][j]))
			}
			if n, drop := a.verdicts(t.tuple); n > 1 || drop > 0 {
				all[i].again++
				all[i].first(fmt.Errorf("%s: %d verdicts, %d to drop", t.kind, n, drop))
			}
		}
	}
	return nil
}

// hiding is when and by whom a tunnel's connection is to be hidden.
type hiding struct {
	forgery
	middle  bool // after the first bytes of payload, not before
	insider bool // the forged segments have the connection's own sequence number
}

// hide opens n connections of a Shadowsocks client for each attack, with segments forged
// into them, and sees whether each is identified.
func (a *arena) hide(ctx context.Context, attacks []hiding, n int) ([]harm, error) {
	all := make([]harm, len(attacks))
	tuples := make([][]tuple, len(attacks))
	for i, f := range attacks {
		all[i].attack = f.name + ", from the " + f.side
		if f.middle {
			all[i].attack += ", after the first bytes"
		}
		if f.insider {
			all[i].attack += ", right numbers"
		}
		for range n {
			t, err := a.tunnel(ctx, f)
			if err != nil {
				return nil, err
			}
			tuples[i] = append(tuples[i], t)
		}
	}
	wait, cancel := context.WithTimeout(ctx, 15*time.Second)
	defer cancel()
	for i := range attacks {
		for _, t := range tuples[i] {
			all[i].connections++
			e, err := a.judged(wait, t)
			switch {
			case err != nil:
				all[i].unknown++
				all[i].first(fmt.Errorf("no verdict about %s", t.client))
			case e.Src != t.client:
				all[i].swapped++
				all[i].first(fmt.Errorf("%s as initiator, it was %s", e.Src, t.client))
			case e.Decision != "drop":
				all[i].unknown++
				all[i].first(fmt.Errorf("%s, port %d: %s %.2f, rule's %.2f, %d bytes, %s", e.Decision, t.client.Port(), e.Class, e.Confidence, e.Deciding(0), e.Captured, e.HandedOver))
			}
		}
	}
	return all, nil
}

// tunnel opens a connection to the Shadowsocks server and asks it for a page. The
// connection stays open until the lab ends.
func (a *arena) tunnel(ctx context.Context, f hiding) (t tuple, err error) {
	var sniffer *lab.Sniffer
	if f.insider {
		if sniffer, err = lab.NewSniffer(a.Client, lab.ClientDev, 128); err != nil {
			return t, err
		}
		defer sniffer.Close()
	}
	request := fmt.Appendf(nil, "GET /64k HTTP/1.0\r\nHost: lab\r\nX-Filler: %0512d\r\n\r\n", 0)
	first, err := lab.ShadowsocksRequest(tunnelPassword, netip.AddrPortFrom(a.ServerAddr(4), a.web.HTTPPort), request)
	if err != nil {
		return t, err
	}
	conn, t, err := a.dial(ctx, 0, a.gateway.tunnel.Server)
	if err != nil {
		return t, err
	}
	a.opened = append(a.opened, conn)
	attack := f.forgery
	if f.insider {
		number, err := isn(sniffer, t.client, t.server)
		if err != nil {
			return t, err
		}
		attack.segments = append([]step(nil), attack.segments...)
		for i := range attack.segments {
			attack.segments[i].seq = number + 1
		}
	}
	if f.middle {
		if _, err := conn.Write(first[:300]); err != nil {
			return t, err
		}
		// The bytes leave at once: the client's kernel sends what is there.
		if err := drained(conn); err != nil {
			return t, err
		}
		first = first[300:]
	}
	if err := a.forge(attack, t); err != nil {
		return t, err
	}
	_, err = conn.Write(first)
	return t, err
}

// drained waits until the other side has acknowledged all that was written.
func drained(conn net.Conn) error {
	raw, err := conn.(*net.TCPConn).SyscallConn()
	if err != nil {
		return err
	}
	for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(time.Millisecond) {
		left, ioErr := 0, error(nil)
		if err := raw.Control(func(fd uintptr) { left, ioErr = unix.IoctlGetInt(int(fd), unix.SIOCOUTQ) }); err != nil {
			return err
		}
		if ioErr != nil || left == 0 {
			return ioErr
		}
	}
	return errors.New("what was written is not acknowledged within a minute")
}

func randomBytes(n int) []byte {
	b := make([]byte, n)
	_, _ = rand.Read(b) // never fails
	return b
}

// Forged segments that make up the attacks.
var (
	aSYN     = step{forged: forged{flags: syn}}
	aReply   = step{forged: forged{flags: syn}, reply: true}
	aRST     = step{forged: forged{flags: rst}}
	aDecoy   = step{forged: forged{flags: psh | ack, payload: []byte("GET /index.html HTTP/1.1\r\nHost: www.example.com\r\nX: " + string(bytes.Repeat([]byte{'a'}, 900)) + "\r\n\r\n")}}
	ciphered = step{forged: forged{flags: psh | ack, payload: randomBytes(1000)}}
)

// reply turns segments into such of the server.
func reply(segments ...step) []step {
	out := append([]step(nil), segments...)
	for i := range out {
		out[i].reply = true
	}
	return out
}

// forgedConnection is a whole connection with numbers that fit, and ciphertext both ways.
func forgedConnection() []step {
	const x, y = 1000, 900000
	return []step{
		{forged: forged{flags: syn, seq: x, goodSum: true}},
		{forged: forged{flags: syn | ack, seq: y, ack: x + 1, goodSum: true}, reply: true},
		{forged: forged{flags: ack, seq: x + 1, ack: y + 1, goodSum: true}},
		{forged: forged{flags: psh | ack, seq: x + 1, ack: y + 1, payload: randomBytes(700), goodSum: true}},
		{forged: forged{flags: psh | ack, seq: y + 1, ack: x + 701, payload: randomBytes(700), goodSum: true}, reply: true},
	}
}

// cuts are the attacks that are to cut innocent connections, running ones and such to come.
func cuts() []forgery {
	var all []forgery
	for _, side := range []string{clientSide, serverSide} {
		all = append(all,
			forgery{"a SYN of the client", side, []step{aSYN}},
			forgery{"a SYN of the server", side, []step{aReply}},
			forgery{"a SYN and ciphertext of the server", side, reply(aSYN, ciphered)},
			forgery{"a SYN and ciphertext of the client", side, []step{aSYN, ciphered}},
			forgery{"a SYN with data", side, []step{{forged: forged{flags: syn, payload: randomBytes(1000)}}}},
			forgery{"RST, SYN and ciphertext, both ways", side, append([]step{aRST, aSYN, ciphered}, reply(aRST, aSYN, ciphered)...)},
			// From the client's side this comes back out of the interface that it came
			// in through: the gateway routes it where its address says.
			forgery{"a whole connection", side, forgedConnection()},
		)
	}
	return all
}

// hidings are the attacks that are to hide a tunnel.
func hidings() []hiding {
	sum := func(s step) step { s.goodSum = true; return s }
	ttl := func(s step) step { s.goodSum, s.ttl = true, 1; return s }
	finAck := step{forged: forged{flags: fin | ack}}
	synRST := step{forged: forged{flags: syn | rst}}
	synData := step{forged: forged{flags: syn, payload: aDecoy.payload}}
	bareACK := step{forged: forged{flags: ack}}
	var acks []step
	for range 18 {
		acks = append(acks, bareACK)
	}
	return []hiding{
		{forgery: forgery{"RST, wrong checksum, of the client", clientSide, []step{aRST}}},
		{forgery: forgery{"RST, wrong checksum, of the client", clientSide, []step{aRST}}, insider: true},
		{forgery: forgery{"RST, wrong number, of the client", clientSide, []step{sum(aRST)}}},
		{forgery: forgery{"RST, time to live 1, of the client", clientSide, []step{ttl(aRST)}}, insider: true},
		{forgery: forgery{"RST, wrong checksum, of the server", serverSide, reply(aRST)}},
		{forgery: forgery{"RST, wrong number, of the server", serverSide, reply(sum(aRST))}},
		{forgery: forgery{"FIN, wrong checksum, of the client", clientSide, []step{finAck}}},
		{forgery: forgery{"SYN with data", clientSide, []step{synData}}},
		{forgery: forgery{"SYN and RST in one", clientSide, []step{synRST}}},
		{forgery: forgery{"decoy data, wrong number", clientSide, []step{sum(aDecoy)}}},
		{forgery: forgery{"decoy data, wrong number, of the server", serverSide, reply(aDecoy)}},
		{forgery: forgery{"a SYN of the server", serverSide, reply(aSYN)}},
		{forgery: forgery{"a SYN of the server", clientSide, reply(aSYN)}},
		{forgery: forgery{"bare ACKs, wrong numbers", clientSide, acks}},
		{forgery: forgery{"a SYN", clientSide, []step{aSYN}}, middle: true},
		{forgery: forgery{"a SYN of the server", serverSide, reply(aSYN)}, middle: true},
		{forgery: forgery{"SYN and RST", clientSide, []step{synRST, aRST}}, middle: true},
		{forgery: forgery{"RST, wrong number, of the server", serverSide, reply(sum(aRST))}, middle: true},
		{forgery: forgery{"bare ACKs, wrong numbers", clientSide, acks}, middle: true},
	}
}

// attacks runs all of them and prints what each came to.
func attacks(ctx context.Context, o options) (err error) {
	a, err := newArena(ctx, o, "10m")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, a.close(ctx)) }()
	const each = 10
	running, err1 := a.hijack(ctx, cuts(), each/2)
	toCome, err2 := a.poison(ctx, cuts(), each)
	hidden, err3 := a.hide(ctx, hidings(), each)
	for _, h := range slices.Concat(running, toCome, hidden) {
		o.logf("%s", h)
		err = errors.Join(err, h.check())
	}
	return errors.Join(err, err1, err2, err3)
}
