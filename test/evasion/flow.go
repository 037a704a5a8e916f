// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"net/netip"
	"sync"

	"github.com/earlydrop/earlydrop/test/lab"
)

// flow is a connection through the lab, and what its strategy has to know of it.
type flow struct {
	*strategy
	client, server netip.AddrPort

	mu       sync.Mutex
	x        uint32 // the client's initial sequence number
	opened   bool   // x is known
	shaped   bool   // the client's first payload has passed
	answered bool   // the client has answered the server's SYN
	held     []byte // a frame that waits
	forged   int    // how often outsiders have forged packets of it
	sent     int    // payload bytes of the client that have passed
	more     chan struct{}
}

// wait returns when n bytes of the client's payload are on their way.
func (f *flow) wait(ctx context.Context, n int) error {
	for {
		f.mu.Lock()
		sent, more := f.sent, f.more
		f.mu.Unlock()
		if sent >= n {
			return nil
		}
		select {
		case <-more:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// first tells whether a packet of the client is the first with the beginning of its
// payload.
func (f *flow) first(p *packet) bool { return len(p.payload) > 0 && !f.shaped && f.atStart(p) }

// atStart tells whether a packet is in the place of the client's first byte.
func (f *flow) atStart(p *packet) bool { return f.opened && p.seq() == f.x+1 }

// flows are all connections that strategies are applied to, by the client's port.
type flows struct {
	mu  sync.Mutex
	all map[uint16]*flow
}

func (fs *flows) add(f *flow) {
	f.more = make(chan struct{})
	fs.mu.Lock()
	defer fs.mu.Unlock()
	fs.all[f.client.Port()] = f
}

func (fs *flows) find(client uint16, server uint16) *flow {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	if f := fs.all[client]; f != nil && f.server.Port() == server {
		return f
	}
	return nil
}

// hook puts frames in the place of a packet.
type hook func(f *flow, p *packet) [][]byte

// clientRelay is the relay at the client's end: what the client sends becomes what is on
// the wire, and what comes from the wire becomes what the client gets.
type clientRelay struct{ *flows }

// serverRelay is the same at the server's end.
type serverRelay struct{ *flows }

var _, _ lab.Shaper = clientRelay{}, serverRelay{}

func (r clientRelay) Shape(fromGateway bool, frame []byte) [][]byte {
	return r.shape(frame, fromGateway, func(f *flow) hook {
		if fromGateway {
			return f.toClient
		}
		return f.fromClient
	}, !fromGateway)
}

func (r serverRelay) Shape(fromGateway bool, frame []byte) [][]byte {
	return r.shape(frame, !fromGateway, func(f *flow) hook {
		if fromGateway {
			return f.toServer
		}
		return f.fromServer
	}, false)
}

// shape applies a strategy's hook to a frame. note is whether what the frame tells of the
// flow is noted: once, at the client.
func (fs *flows) shape(frame []byte, ofServer bool, of func(*flow) hook, note bool) [][]byte {
	p, ok := parsePacket(frame, protoTCP)
	if !ok {
		p, ok = parsePacket(frame, protoTest)
	}
	if !ok {
		return [][]byte{frame}
	}
	client, server := p.srcPort(), p.dstPort()
	if ofServer {
		client, server = server, client
	}
	f := fs.find(client, server)
	if f == nil {
		return [][]byte{frame}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if note && p.is(syn) {
		f.x, f.opened = p.seq(), true
	}
	// The hook may change the packet.
	answers, n := p.is(ack), int(int32(p.seq()+uint32(len(p.payload))-f.x))-1
	carries := f.opened && len(p.payload) > 0
	frames := [][]byte{frame}
	if h := of(f); h != nil {
		frames = h(f, p)
	}
	if note {
		f.answered = f.answered || answers
		if carries && n > f.sent {
			f.shaped, f.sent = true, n
			close(f.more)
			f.more = make(chan struct{})
		}
	}
	return frames
}
