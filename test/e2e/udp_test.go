// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/quic-go/quic-go"

	"github.com/earlydrop/earlydrop/cmd/earlydrop/event"
	"github.com/earlydrop/earlydrop/test/e2e/rig"
	"github.com/earlydrop/earlydrop/test/lab"
)

// quicAnswer is how many bytes the QUIC server of the tests sends for each one it gets.
const quicAnswer = 20_000

// selfSigned makes a certificate.
func selfSigned(t *testing.T) tls.Certificate {
	t.Helper()
	key := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))(t)
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), DNSNames: []string{"lab.example"}}
	der := must(x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key))(t)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// quicServer starts a QUIC server behind the gateway. It ends with the test.
func (s *scene) quicServer() netip.AddrPort {
	s.t.Helper()
	socket := must(s.Server.ListenPacket("udp", netip.AddrPortFrom(s.ServerAddr(4), 0).String()))(s.t)
	s.t.Cleanup(func() { _ = socket.Close() })
	listener := must(quic.Listen(socket, &tls.Config{
		Certificates: []tls.Certificate{selfSigned(s.t)}, NextProtos: []string{"test"}}, nil))(s.t)
	s.t.Cleanup(func() { _ = listener.Close() })
	go func() {
		for {
			c, err := listener.Accept(s.ctx)
			if err != nil {
				return
			}
			go func() {
				stream, err := c.AcceptStream(s.ctx)
				for request := make([]byte, 1); err == nil; {
					if _, err = io.ReadFull(stream, request); err == nil {
						_, err = stream.Write(make([]byte, quicAnswer))
					}
				}
			}()
		}
	}()
	return socket.LocalAddr().(*net.UDPAddr).AddrPort()
}

// quicConn is an open QUIC connection with one stream.
type quicConn struct {
	src    netip.AddrPort
	stream *quic.Stream
}

func quicClientTLS() *tls.Config {
	return &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"test"}, ServerName: "lab.example"} //nolint:gosec // its own certificate
}

// quicDial opens a connection to quicServer. It ends with the test.
func (s *scene) quicDial(server netip.AddrPort) quicConn {
	s.t.Helper()
	socket := must(s.Client.ListenPacket("udp", netip.AddrPortFrom(s.ClientAddr(4), 0).String()))(s.t)
	s.t.Cleanup(func() { _ = socket.Close() })
	c := must(quic.Dial(s.ctx, socket, net.UDPAddrFromAddrPort(server), quicClientTLS(), nil))(s.t)
	return quicConn{socket.LocalAddr().(*net.UDPAddr).AddrPort(), must(c.OpenStream())(s.t)}
}

// fetch asks for an answer and reads all of it.
func (c quicConn) fetch() error {
	if err := c.stream.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		return err
	}
	if _, err := c.stream.Write([]byte{1}); err != nil {
		return err
	}
	_, err := io.CopyN(io.Discard, c.stream, quicAnswer)
	return err
}

// everyClass is a policy that drops all that a rule can name, UDP flows included.
func (s *scene) everyClass(more string) string {
	return s.file(fmt.Sprintf("every%d.yaml", len(more)), fmt.Sprintf(`mode: enforce
rules:
  - {name: all, class: [shadowsocks, v2ray, vless, obfs4, openvpn, wireguard, ssh, socks5, trojan], min_confidence: 0.000001, action: drop, ttl: 10m, udp_unproven: true%s}
  - {name: strange, class: unknown, action: drop, ttl: 10m, udp_unproven: true%[1]s}
`, more))
}

// QUIC connections that are open at the attach are captured from their middle. They are
// not treated, though a rule would drop each of them that began now.
func TestOpenQUICConnectionsOutliveTheAttach(t *testing.T) {
	t.Parallel()
	s := newScene(t, lab.Config{})
	server := s.quicServer()
	var open []quicConn
	for range 8 {
		c := s.quicDial(server)
		if err := c.fetch(); err != nil {
			t.Fatal(err)
		}
		open = append(open, c)
	}
	d := s.attach("--policy", s.everyClass(""))
	for round := range 3 {
		for i, c := range open {
			if err := c.fetch(); err != nil {
				t.Fatalf("round %d: connection %d: %v", round, i, err)
			}
		}
	}
	ctx, cancel := context.WithTimeout(s.ctx, 30*time.Second)
	defer cancel()
	for _, c := range open {
		// Who speaks first after the attach counts as the initiator.
		v := must(rig.Wait(ctx, d, "the verdict about an open connection", func(e *event.Verdict) bool {
			return e.Src == c.src || e.Dst == c.src
		}))(t)
		if !v.Resumed || v.Decision != "pass" || v.Rule != "" && v.Reason != "mid-stream" {
			t.Errorf("verdict about an open connection: %+v", v)
		}
	}
	for i, c := range open {
		if err := c.fetch(); err != nil {
			t.Errorf("after the verdicts: connection %d: %v", i, err)
		}
	}
	s.stop(d)
}

// A UDP flow is dropped only where a rule says so.
func TestUDPFlowsAreDroppedWhereARuleSaysSo(t *testing.T) {
	t.Parallel()
	s := newScene(t, lab.Config{})
	server := must(s.Server.ListenPacket("udp", netip.AddrPortFrom(s.ServerAddr(4), 0).String()))(t)
	defer server.Close()
	go func() {
		buf := make([]byte, 2048)
		for {
			n, from, err := server.ReadFrom(buf)
			if err != nil {
				return
			}
			_, _ = server.WriteTo(buf[:n], from)
		}
	}()
	plain := s.file("plain.yaml", "mode: enforce\nrules:\n  - {name: all, class: [shadowsocks, v2ray, vless, obfs4, openvpn, wireguard, ssh, socks5, trojan], min_confidence: 0.000001, action: drop, ttl: 10m, mid_stream: true}\n")
	for _, tt := range []struct {
		name    string
		args    []string
		dropped bool
		resumed bool
		reason  string
	}{
		{"no udp_unproven", []string{"--policy", plain, "--udp-warmup", "0"}, false, false, "udp not treated"},
		{"soon after the attach", []string{"--policy", s.everyClass("")}, false, true, "mid-stream"},
		{"after the first minute, as it were", []string{"--policy", s.everyClass(""), "--udp-warmup", "0"}, true, false, "rule"},
		{"soon after the attach, and a rule is for that", []string{"--policy", s.everyClass(", mid_stream: true")}, true, true, "rule"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			d := s.attach(tt.args...)
			ask := func(c net.Conn) bool {
				if err := c.SetDeadline(time.Now().Add(time.Second)); err != nil {
					t.Fatal(err)
				}
				if _, err := c.Write(randomBytes(t, 700)); err != nil {
					t.Fatal(err)
				}
				_, err := c.Read(make([]byte, 2048))
				return err == nil
			}
			// The model does not take each flow of random bytes for a tunnel.
			for range 20 {
				c := must(s.Client.Dial(s.ctx, "udp", server.LocalAddr().String()))(t)
				defer c.Close()
				if !ask(c) {
					t.Fatal("no answer")
				}
				src := c.LocalAddr().(*net.UDPAddr).AddrPort()
				v := must(rig.Wait(s.ctx, d, "the verdict", func(e *event.Verdict) bool { return e.Src == src }))(t)
				if v.Resumed != tt.resumed {
					t.Errorf("resumed %v, want %v: %+v", v.Resumed, tt.resumed, v)
				}
				if v.Rule == "" {
					continue
				}
				if v.Reason != tt.reason || (v.Decision == "drop") != tt.dropped || ask(c) == tt.dropped {
					t.Errorf("dropped %v, want %v: %+v", v.Decision == "drop", tt.dropped, v)
				}
				s.stop(d)
				return
			}
			t.Error("no flow was taken for one that a rule is about")
		})
	}
}

// Where both directions come through one hook, nothing proves a UDP flow, and that is said.
func TestOneHookSaysWhatProvesNoUDPFlow(t *testing.T) {
	t.Parallel()
	s := newScene(t, lab.Config{})
	const want = "UDP flows by nothing"
	d := s.attach("--one-hook", "--mode", "monitor")
	s.says(d, want)
	if out := must(s.Earlydrop(s.ctx, "status", "-i", rig.Device))(t); !strings.Contains(out, want) {
		t.Errorf("status does not say %q:\n%s", want, out)
	}
	s.stop(d)
}

func randomBytes(t *testing.T, n int) []byte {
	b := make([]byte, n)
	must(rand.Read(b))(t)
	return b
}
