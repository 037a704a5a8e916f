// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/base64"
	wire "encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/pion/rtp"
	"github.com/pion/srtp/v3"
	"github.com/quic-go/quic-go"
	"github.com/quic-go/quic-go/http3"

	"github.com/earlydrop/earlydrop/test/lab"
)

// udpFlow is a UDP flow between two real programs, or what acts like them.
type udpFlow struct {
	kind     string
	src, dst netip.AddrPort

	// talk has both sides send something and returns when each has what the other has
	// sent. What is lost is sent again, for talkLimit at most. The first call may connect.
	talk func() error
	// hold stops a program that sends by itself, goOn has it go on. (optional)
	hold, goOn func()

	mu      sync.Mutex // held while it talks
	arrived atomic.Int64
	lost    atomic.Int64 // how often nothing arrived
}

// talkLimit is longer than a block of the tests, and than what programs wait after one
// before they try again.
const talkLimit = 30 * time.Second

// run has the flow talk until the scene's hush.
func (f *udpFlow) run(s *scene) *udpFlow {
	ctx, cancel := context.WithCancel(s.ctx)
	done := make(chan struct{})
	s.talking = append(s.talking, func() <-chan struct{} {
		cancel()
		return done
	})
	go func() {
		defer close(done)
		for ctx.Err() == nil {
			f.mu.Lock()
			err := f.talk()
			switch {
			case err == nil:
				f.arrived.Add(1)
			case ctx.Err() == nil && f.lost.Add(1) == 1:
				s.t.Logf("%s %s: %v", f.kind, f.src, err)
			}
			f.mu.Unlock()
			select {
			case <-time.After(50 * time.Millisecond):
			case <-ctx.Done():
			}
		}
	}()
	return f
}

// hush ends all flows. Tests defer it: their sockets and programs end after that, so that
// none waits for one that is gone.
func (s *scene) hush() {
	var ended []<-chan struct{}
	for _, end := range s.talking {
		ended = append(ended, end())
	}
	for _, done := range ended {
		<-done
	}
	s.talking = nil
}

// silent has the flows say nothing for so long.
func silent(flows []*udpFlow, d time.Duration) {
	for _, f := range flows {
		f.mu.Lock()
		if f.hold != nil {
			f.hold()
		}
	}
	time.Sleep(d)
	for _, f := range flows {
		if f.goOn != nil {
			f.goOn()
		}
		f.mu.Unlock()
	}
}

// udpKinds are the kinds of UDP flows, and how one of each is opened.
func udpKinds() map[string]func(s *scene) *udpFlow {
	kinds := map[string]func(s *scene) *udpFlow{
		"dns": dnsFlow, "nat-t": natTFlow, "rtp": rtpFlow, "srtp": srtpFlow, "dtls": dtlsFlow, "http/3": http3Flow, "wireguard": wireGuardFlow,
	}
	// It takes half a gigabyte on a fresh machine, so that it is not asked for.
	if _, err := lab.Program("ffmpeg"); err == nil {
		kinds["rtp, ffmpeg"] = func(s *scene) *udpFlow { return ffmpegFlow(s, false) }
		kinds["srtp, ffmpeg"] = func(s *scene) *udpFlow { return ffmpegFlow(s, true) }
	}
	return kinds
}

// socket opens a UDP socket of a host that ends with the test.
func (s *scene) socket(ns *lab.Namespace, addr netip.Addr) net.PacketConn {
	s.t.Helper()
	c := must(ns.ListenPacket("udp", netip.AddrPortFrom(addr, 0).String()))(s.t)
	s.t.Cleanup(func() { _ = c.Close() })
	return c
}

func portOf(c net.PacketConn) netip.AddrPort { return c.LocalAddr().(*net.UDPAddr).AddrPort() }

// answering starts a server whose answers are of each datagram.
func (s *scene) answering(answer func([]byte) []byte) netip.AddrPort {
	s.t.Helper()
	server := s.socket(s.Server, s.ServerAddr(4))
	go func() {
		buf := make([]byte, 2048)
		for {
			n, from, err := server.ReadFrom(buf)
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err != nil {
				continue
			}
			if a := answer(buf[:n]); a != nil {
				_, _ = server.WriteTo(a, from)
			}
		}
	}()
	return portOf(server)
}

// asking returns a flow whose client asks and checks the answer.
func (s *scene) asking(kind string, dst netip.AddrPort, question func() []byte, isAnswer func([]byte) bool) *udpFlow {
	s.t.Helper()
	c := s.socket(s.Client, s.ClientAddr(4))
	buf := make([]byte, 2048)
	return &udpFlow{kind: kind, src: portOf(c), dst: dst, talk: func() error {
		for begin := time.Now(); time.Since(begin) < talkLimit; {
			if _, err := c.WriteTo(question(), net.UDPAddrFromAddrPort(dst)); errors.Is(err, net.ErrClosed) {
				return err
			}
			if err := c.SetReadDeadline(time.Now().Add(500 * time.Millisecond)); err != nil {
				return err
			}
			for {
				n, from, err := c.ReadFrom(buf)
				if errors.Is(err, net.ErrClosed) {
					return err
				}
				if err != nil {
					break
				}
				if from.(*net.UDPAddr).AddrPort() == dst && isAnswer(buf[:n]) {
					return nil
				}
			}
		}
		return errors.New("no answer")
	}}
}

// dnsFlow is a resolver that asks dnsmasq from one port.
func dnsFlow(s *scene) *udpFlow {
	var id uint16
	question := func() []byte {
		id++
		q := wire.BigEndian.AppendUint16(nil, id)
		q = append(q, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0)
		for _, label := range []string{"host" + strconv.Itoa(int(id)), "lab", "example"} {
			q = append(append(q, byte(len(label))), label...)
		}
		return append(q, 0, 0, 1, 0, 1)
	}
	return s.asking("dns", netip.AddrPortFrom(s.ServerAddr(4), 53), question, func(a []byte) bool {
		return len(a) > 12 && wire.BigEndian.Uint16(a) == id && a[2]&0x80 != 0 && a[7] == 1
	})
}

// natTFlow is IPsec in UDP (RFC 3948): ESP packets both ways, and keepalives.
func natTFlow(s *scene) *udpFlow {
	esp := func(spi, seq uint32) []byte {
		p := wire.BigEndian.AppendUint32(wire.BigEndian.AppendUint32(nil, spi), seq)
		return append(p, randomBytes(s.t, 16*(4+rand.IntN(70)))...)
	}
	in, out := rand.Uint32(), rand.Uint32()
	dst := s.answering(func(p []byte) []byte {
		if len(p) < 8 || wire.BigEndian.Uint32(p) != in {
			return nil
		}
		return esp(out, wire.BigEndian.Uint32(p[4:]))
	})
	var seq uint32
	question := func() []byte {
		if seq++; seq%10 == 5 {
			return []byte{0xff}
		}
		return esp(in, seq)
	}
	return s.asking("nat-t", dst, question, func(p []byte) bool {
		return len(p) >= 8 && wire.BigEndian.Uint32(p) == out && wire.BigEndian.Uint32(p[4:]) == seq
	})
}

// rtpFlow is a call: 20 ms of sound, from each side to the other.
func rtpFlow(s *scene) *udpFlow {
	packet := rtpSource(s.t)
	dst := s.answering(func(p []byte) []byte {
		if (&rtp.Packet{}).Unmarshal(p) != nil {
			return nil
		}
		return must(packet(2).Marshal())(s.t)
	})
	return s.asking("rtp", dst, func() []byte { return must(packet(1).Marshal())(s.t) }, func(p []byte) bool {
		var got rtp.Packet
		return got.Unmarshal(p) == nil && got.SSRC == 2
	})
}

// rtpSource returns what makes the next packet of a stream.
func rtpSource(t *testing.T) func(ssrc uint32) *rtp.Packet {
	var seq atomic.Uint32
	return func(ssrc uint32) *rtp.Packet {
		n := seq.Add(1)
		return &rtp.Packet{Header: rtp.Header{Version: 2, PayloadType: 0, SequenceNumber: uint16(n), Timestamp: 160 * n, SSRC: ssrc}, Payload: randomBytes(t, 160)}
	}
}

// srtpFlow is the same with encryption.
func srtpFlow(s *scene) *udpFlow {
	context := func() *srtp.Context {
		key := slices.Repeat([]byte{7}, 16)
		return must(srtp.CreateContext(key, key[:14], srtp.ProtectionProfileAes128CmHmacSha1_80))(s.t)
	}
	packet, client, server := rtpSource(s.t), context(), context()
	send := func(c *srtp.Context, ssrc uint32) []byte {
		return must(c.EncryptRTP(nil, must(packet(ssrc).Marshal())(s.t), nil))(s.t)
	}
	dst := s.answering(func(p []byte) []byte {
		if _, err := server.DecryptRTP(nil, p, nil); err != nil {
			return nil
		}
		return send(server, 2)
	})
	return s.asking("srtp", dst, func() []byte { return send(client, 1) }, func(p []byte) bool {
		_, err := client.DecryptRTP(nil, p, nil)
		return err == nil
	})
}

// http3Flow is an HTTP/3 connection of quic-go on which a page is fetched again and again.
func http3Flow(s *scene) *udpFlow {
	const bytes = 3000
	pc := s.socket(s.Server, s.ServerAddr(4))
	server := &http3.Server{
		TLSConfig: http3.ConfigureTLSConfig(&tls.Config{Certificates: []tls.Certificate{selfSigned(s.t)}}),
		Handler:   http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(make([]byte, bytes)) }),
	}
	go func() { _ = server.Serve(pc) }()
	s.t.Cleanup(func() { _ = server.Close() })
	socket, dst := s.socket(s.Client, s.ClientAddr(4)), portOf(pc)
	client := &http3.Transport{
		TLSClientConfig: &tls.Config{InsecureSkipVerify: true, ServerName: "lab.example"}, //nolint:gosec // its own certificate
		QUICConfig:      &quic.Config{HandshakeIdleTimeout: talkLimit, DisablePathMTUDiscovery: true},
		Dial: func(ctx context.Context, _ string, t *tls.Config, q *quic.Config) (*quic.Conn, error) {
			return quic.Dial(ctx, socket, net.UDPAddrFromAddrPort(dst), t, q)
		},
	}
	s.t.Cleanup(func() { _ = client.Close() })
	return &udpFlow{kind: "http/3", src: portOf(socket), dst: dst, talk: func() error {
		ctx, cancel := context.WithTimeout(s.ctx, talkLimit)
		defer cancel()
		request := must(http.NewRequestWithContext(ctx, http.MethodGet, "https://"+dst.String()+"/", nil))(s.t)
		response, err := client.RoundTrip(request)
		if err != nil {
			return err
		}
		defer response.Body.Close()
		n, err := io.Copy(io.Discard, response.Body)
		if err == nil && n != bytes {
			err = fmt.Errorf("%d bytes, want %d", n, bytes)
		}
		return err
	}}
}

// wireGuardNets numbers the networks inside the tunnels.
var wireGuardNets atomic.Uint32

// wireGuardFlow is a tunnel of its own between two WireGuards, with a TCP connection in it.
func wireGuardFlow(s *scene) *udpFlow {
	number := byte(wireGuardNets.Add(1))
	inside := func(host byte) netip.Addr { return netip.AddrFrom4([4]byte{10, 213, number, host}) }
	server := must(s.StartWireGuard(s.ctx, s.Server, netip.PrefixFrom(inside(1), 24)))(s.t)
	client := must(s.StartWireGuard(s.ctx, s.Client, netip.PrefixFrom(inside(2), 24)))(s.t)
	src, dst := netip.AddrPortFrom(s.ClientAddr(4), 20000+uint16(number)), netip.AddrPortFrom(s.ServerAddr(4), 20000+uint16(number))
	for _, err := range []error{
		server.Set("private_key="+server.PrivateKey(), fmt.Sprintf("listen_port=%d", dst.Port()), "public_key="+client.PublicKey(), "allowed_ip="+inside(2).String()+"/32"),
		client.Set("private_key="+client.PrivateKey(), fmt.Sprintf("listen_port=%d", src.Port()), "public_key="+server.PublicKey(), "endpoint="+dst.String(), "allowed_ip="+inside(1).String()+"/32"),
	} {
		if err != nil {
			s.t.Fatal(err)
		}
	}
	return &udpFlow{kind: "wireguard", src: src, dst: dst, talk: s.tcpEcho(inside(1))}
}

// tcpEcho returns a talk over one TCP connection between client and server, to an address
// of the server.
func (s *scene) tcpEcho(addr netip.Addr) func() error {
	ln := must(s.Server.Listen("tcp", netip.AddrPortFrom(addr, 0).String()))(s.t)
	s.t.Cleanup(func() { _ = ln.Close() })
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				_, _ = io.Copy(c, c)
			}()
		}
	}()
	var c net.Conn
	s.t.Cleanup(func() {
		if c != nil {
			_ = c.Close()
		}
	})
	return func() error {
		ctx, cancel := context.WithTimeout(s.ctx, talkLimit)
		defer cancel()
		if c == nil {
			dialled, err := s.Client.Dial(ctx, "tcp", ln.Addr().String())
			if err != nil {
				return err
			}
			c = dialled
		}
		_ = c.SetDeadline(time.Now().Add(talkLimit))
		if _, err := c.Write(make([]byte, 200)); err != nil {
			return err
		}
		_, err := io.ReadFull(c, make([]byte, 200))
		return err
	}
}

// piped is a program whose standard input and output are lines of the test's.
type piped struct {
	in    io.Writer
	lines chan string
}

// pipe starts a program on a host. It ends with the test.
func (s *scene) pipe(ns *lab.Namespace, argv ...string) piped {
	s.t.Helper()
	cmd := exec.Command(must(lab.Program(argv[0]))(s.t), argv[1:]...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	in, out := must(cmd.StdinPipe())(s.t), must(cmd.StdoutPipe())(s.t)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	if err := ns.Do(cmd.Start); err != nil {
		s.t.Fatal(err)
	}
	p := piped{in, make(chan string, 64)}
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer close(p.lines)
		for lines := bufio.NewScanner(out); lines.Scan(); {
			select {
			case p.lines <- lines.Text():
			default: // nobody waits for so many
			}
		}
	}()
	s.t.Cleanup(func() {
		_ = cmd.Process.Kill()
		<-done
		_ = cmd.Wait()
		if s.t.Failed() && stderr.Len() > 0 {
			s.t.Logf("%v:\n%s", argv, stderr.String())
		}
	})
	return p
}

// says writes a line and waits until the other program has it. A line may be lost.
func (p piped) says(other piped, line string) error {
	for begin := time.Now(); time.Since(begin) < talkLimit; {
		if _, err := fmt.Fprintln(p.in, line); err != nil {
			return err
		}
		again := time.After(500 * time.Millisecond)
		for waiting := true; waiting; {
			select {
			case got, ok := <-other.lines:
				if !ok {
					return errors.New("the program ended")
				}
				if got == line {
					return nil
				}
			case <-again:
				waiting = false
			}
		}
	}
	return errors.New("no answer")
}

// dtlsFlow is a DTLS connection of OpenSSL's programs.
func dtlsFlow(s *scene) *udpFlow {
	dir := must(s.Subdir("dtls"))(s.t)
	if err := s.Certificate(s.ctx, dir, ""); err != nil {
		s.t.Fatal(err)
	}
	free := func(ns *lab.Namespace, addr netip.Addr) netip.AddrPort {
		c := must(ns.ListenPacket("udp", netip.AddrPortFrom(addr, 0).String()))(s.t)
		defer c.Close()
		return portOf(c)
	}
	src, dst := free(s.Client, s.ClientAddr(4)), free(s.Server, s.ServerAddr(4))
	server := s.pipe(s.Server, "openssl", "s_server", "-dtls", "-quiet", "-accept", dst.String(), "-cert", dir+"/cert.pem", "-key", dir+"/key.pem")
	if err := s.waitUDP(s.Server, dst); err != nil {
		s.t.Fatal(err)
	}
	client := s.pipe(s.Client, "openssl", "s_client", "-dtls", "-quiet", "-connect", dst.String(), "-bind", src.String())
	n := 0
	return &udpFlow{kind: "dtls", src: src, dst: dst, talk: func() error {
		n++
		if err := client.says(server, fmt.Sprintf("question %d", n)); err != nil {
			return err
		}
		return server.says(client, fmt.Sprintf("answer %d", n))
	}}
}

// waitUDP waits until somebody has the address.
func (s *scene) waitUDP(ns *lab.Namespace, addr netip.AddrPort) error {
	for {
		c, err := ns.ListenPacket("udp", addr.String())
		if errors.Is(err, syscall.EADDRINUSE) {
			return nil
		}
		if err != nil {
			return err
		}
		_ = c.Close()
		select {
		case <-time.After(20 * time.Millisecond):
		case <-s.ctx.Done():
			return fmt.Errorf("wait for a server on %s: %w", addr, s.ctx.Err())
		}
	}
}

// ffmpegFlow is a video that ffmpeg sends, and the reports that its receiver sends back on
// the same ports (RFC 5761).
func ffmpegFlow(s *scene, secure bool) *udpFlow {
	kind, url := "rtp, ffmpeg", "rtp"
	key := slices.Repeat([]byte{9}, 30)
	context := must(srtp.CreateContext(key[:16], key[16:], srtp.ProtectionProfileAes128CmHmacSha1_80))(s.t)
	received, report := make(chan struct{}, 1), 0
	dst := s.answering(func(p []byte) []byte {
		if secure {
			var err error
			if p, err = context.DecryptRTP(nil, p, nil); err != nil {
				return nil
			}
		}
		var packet rtp.Packet
		if packet.Unmarshal(p) != nil || len(packet.Payload) == 0 {
			return nil
		}
		select {
		case received <- struct{}{}:
		default:
		}
		if report++; report%5 != 0 {
			return nil
		}
		rr := append([]byte{0x81, 201, 0, 7}, make([]byte, 28)...)
		wire.BigEndian.PutUint32(rr[8:], packet.SSRC)
		return rr
	})
	reserved := s.socket(s.Client, s.ClientAddr(4))
	src := portOf(reserved)
	_ = reserved.Close()
	argv := []string{"ffmpeg", "-nostdin", "-loglevel", "error", "-re", "-f", "lavfi", "-i", "testsrc=size=320x240:rate=25", "-c:v", "mpeg4", "-f", "rtp"}
	if secure {
		kind, url = "srtp, ffmpeg", "srtp"
		argv = append(argv, "-srtp_out_suite", "AES_CM_128_HMAC_SHA1_80", "-srtp_out_params", base64.StdEncoding.EncodeToString(key))
	}
	argv = append(argv, fmt.Sprintf("%s://%s?localrtpport=%d&localrtcpport=%d&pkt_size=1200", url, dst, src.Port(), src.Port()+1))
	sender := must(s.Lab.Start(s.Client, kind, argv...))(s.t)
	f := &udpFlow{kind: kind, src: src, dst: dst, talk: func() error {
		for range 5 {
			select {
			case <-received:
			case <-sender.Done():
				return fmt.Errorf("ffmpeg ended: %s", sender.Output())
			case <-time.After(talkLimit):
				return errors.New("no packet arrives")
			}
		}
		return nil
	}}
	f.hold = func() { _ = sender.Signal(syscall.SIGSTOP) }
	f.goOn = func() { _ = sender.Signal(syscall.SIGCONT) }
	return f
}
