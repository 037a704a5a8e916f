// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"testing"
	"time"

	"github.com/earlydrop/earlydrop/test/lab"
)

// Whatever framing is drawn, both sides understand one another, and nothing
// of the content is plain on the wire.
func TestCustomFramingsCarryContent(t *testing.T) {
	secret := []byte("GET / HTTP/1.1 this is not to be seen")
	for seed := range uint64(300) {
		r := rand.New(rand.NewPCG(seed, 0))
		f := drawFraming(r)
		t.Run(fmt.Sprintf("%d-%s", seed, f.name()), func(t *testing.T) {
			ln, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			defer ln.Close()
			a, err := net.Dial("tcp", ln.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			defer a.Close()
			b, err := ln.Accept()
			if err != nil {
				t.Fatal(err)
			}
			defer b.Close()
			deadline := time.Now().Add(time.Minute)
			if err := errors.Join(a.SetDeadline(deadline), b.SetDeadline(deadline)); err != nil {
				t.Fatal(err)
			}
			key := randomBytes(r, 32)
			var wire bytes.Buffer
			client, err := newCustomConn(tapped{a, &wire}, f, key, true, rand.New(rand.NewPCG(seed, 1)))
			if err != nil {
				t.Fatal(err)
			}
			server, err := newCustomConn(b, f, key, false, rand.New(rand.NewPCG(seed, 2)))
			if err != nil {
				t.Fatal(err)
			}
			for round := range 3 {
				say := append(bytes.Clone(secret), randomBytes(r, 1+r.IntN(20000))...)
				go func() { _, _ = client.Write(say) }() // the reader reports what is missing
				got := make([]byte, len(say))
				if _, err := io.ReadFull(server, got); err != nil || !bytes.Equal(got, say) {
					t.Fatalf("round %d, to the server: %v; %+v", round, err, f)
				}
				go func() { _, _ = server.Write(say) }()
				if _, err := io.ReadFull(client, got); err != nil || !bytes.Equal(got, say) {
					t.Fatalf("round %d, to the client: %v; %+v", round, err, f)
				}
			}
			if bytes.Contains(wire.Bytes(), secret[:12]) {
				t.Errorf("the content is plain; %+v", f)
			}
		})
	}
}

type tapped struct {
	net.Conn
	to *bytes.Buffer
}

func (c tapped) Write(p []byte) (int, error) {
	c.to.Write(p)
	return c.Conn.Write(p)
}

func TestNoCustomFramingIsShadowsocks(t *testing.T) {
	for seed := range uint64(20000) {
		f := drawFraming(rand.New(rand.NewPCG(seed, 3)))
		if f.lengthSize == 2 && f.lengthTag == 16 && f.tag == 16 && f.nonce == 0 {
			t.Fatalf("seed %d draws Shadowsocks' own framing: %+v", seed, f)
		}
		if f.exchange && f.serverHello[1] == 0 {
			t.Fatalf("seed %d draws an exchange without an answer: %+v", seed, f)
		}
	}
}

// Each family can be drawn from, and asks for nothing that its program lacks.
func TestFamiliesOfferWhatTheyDraw(t *testing.T) {
	for _, f := range families() {
		if f.draw < 1 || f.draw > len(f.offers) || f.runs < 1 {
			t.Errorf("%s by %s draws %d of %d tunnels, %d runs each", f.label, f.program, f.draw, len(f.offers), f.runs)
		}
		seen := map[string]bool{}
		for _, of := range f.offers {
			if of.cipher == "" || seen[of.cipher] {
				t.Errorf("%s by %s: cipher %q is empty or there twice", f.label, f.program, of.cipher)
			}
			seen[of.cipher] = true
			if of.start == nil && of.proxy.Protocol == lab.Trojan && of.proxy.Transport != "tls" {
				t.Errorf("%s by %s: trojan without TLS", f.label, f.program)
			}
		}
	}
}

func TestActivitiesAreDrawnByWeightAndOnce(t *testing.T) {
	from := []activity{{name: "often", direct: 9}, {name: "rare"}, {name: "own", direct: 50, label: sshLabel}}
	first := map[string]int{}
	r := rand.New(rand.NewPCG(1, 1))
	for range 1200 {
		got := drawActivities(r, from, 5)
		if len(got) != 3 || got[0].name == got[1].name || got[1].name == got[2].name || got[0].name == got[2].name {
			t.Fatalf("drew %v", got)
		}
		first[got[0].name]++
	}
	for name, want := range map[string]int{"often": 900, "rare": 100, "own": 200} {
		if n := first[name]; n < want*7/10 || n > want*13/10 {
			t.Errorf("%s came first %d times, want about %d", name, n, want)
		}
	}
}
