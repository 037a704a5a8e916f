// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"crypto/ed25519"
	crand "crypto/rand"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/earlydrop/earlydrop/test/lab"
)

// startDropbear starts the dropbear server with a key pair for its client. It
// reads the authorized keys in root's home, so it sees another one.
func (e *env) startDropbear(ctx context.Context, port uint16) error {
	dir, err := e.l.Subdir("dropbear")
	if err != nil {
		return err
	}
	for _, k := range []string{"host", "client"} {
		if _, err := e.l.Exec(ctx, e.l.Server, "dropbearkey", "-t", pick(e.draws("dropbear-"+k), "ed25519", "ecdsa"), "-f", filepath.Join(dir, k)); err != nil {
			return err
		}
	}
	out, err := e.l.Exec(ctx, e.l.Server, "dropbearkey", "-y", "-f", filepath.Join(dir, "client"))
	if err != nil {
		return err
	}
	var public string
	for line := range strings.Lines(string(out)) {
		if strings.HasPrefix(line, "ssh-") || strings.HasPrefix(line, "ecdsa-") {
			public = line
		}
	}
	home := filepath.Join(dir, "home")
	if err := os.MkdirAll(filepath.Join(home, ".ssh"), 0o700); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(home, ".ssh", "authorized_keys"), []byte(public), 0o600); err != nil {
		return err
	}
	p, err := e.l.StartResolving(e.l.Server, "dropbear", e.server(), map[string]string{home: "/root"},
		"dropbear", "-F", "-E", "-m", "-r", filepath.Join(dir, "host"), "-P", filepath.Join(dir, "pid"), "-p", netip.AddrPortFrom(e.server(), port).String())
	if err != nil {
		return err
	}
	e.set(func() { e.dropbearKey = filepath.Join(dir, "client") })
	return e.l.WaitReady(ctx, e.l.Server, netip.AddrPortFrom(e.server(), port), p)
}

// dropbear runs a command over dbclient.
func dropbear(ctx context.Context, a *attempt) error {
	addr, err := a.addr(a.e.port["dropbear"])
	if err != nil {
		return err
	}
	argv := []string{"dbclient", "-i", a.e.dropbearKey, "-y", "-y", "-T", "-p", num(addr.Port())}
	if a.r.Float64() < 0.5 {
		argv = append(argv, "-c", pick(a.r, "chacha20-poly1305@openssh.com", "aes128-ctr", "aes256-ctr"))
	}
	var input []byte
	command := pick(a.r, "true", "uname -a", "ls /", "cat /proc/cpuinfo")
	if a.r.Float64() < 0.4 {
		input, command = randomBytes(a.r, logUniform(a.r, 100, 30000)), "cat >/dev/null"
	}
	_, err = a.e.l.ExecInput(ctx, a.e.l.Client, input, append(argv, "root@"+addr.Addr().String(), command)...)
	return err
}

// sshSOCKS has ssh's own SOCKS proxy carry another activity.
func sshSOCKS(ctx context.Context, a *attempt) error {
	if a.e.ssh == nil {
		return fmt.Errorf("no sshd")
	}
	local, err := a.e.l.Client.FreePort()
	if err != nil {
		return err
	}
	inner := *a
	inner.byAddress = true // sshd asks this machine's resolver for names
	inner.via = &lab.Tunnel{SOCKS: netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), local)}
	argv := append(a.e.ssh.SSHArgs(netip.AddrPortFrom(a.server(), a.e.port["ssh"]), a.sshOptions()...), "-N", "-D", inner.via.SOCKS.String())
	short, cancel := context.WithCancel(ctx)
	defer cancel()
	done := make(chan error, 1)
	go func() {
		_, err := a.e.l.Exec(short, a.e.l.Client, argv...)
		done <- err
	}()
	defer func() { <-done }()
	defer cancel()
	if err := a.e.l.WaitReady(ctx, a.e.l.Client, inner.via.SOCKS, nil); err != nil {
		return err
	}
	var carried []activity
	for _, c := range activities {
		if _, ok := a.e.port[c.service]; ok && c.tunnel {
			carried = append(carried, c)
		}
	}
	return drawActivities(a.r, carried, 1)[0].run(ctx, &inner)
}

// startGoSSH starts a server of golang.org/x/crypto/ssh: each session gets as
// many random bytes as its command names, and connections are forwarded.
func (e *env) startGoSSH(_ context.Context, port uint16) error {
	_, key, err := ed25519.GenerateKey(crand.Reader)
	if err != nil {
		return err
	}
	signer, err := ssh.NewSignerFromSigner(key)
	if err != nil {
		return err
	}
	cfg := &ssh.ServerConfig{ServerVersion: "SSH-2.0-Go", PasswordCallback: func(ssh.ConnMetadata, []byte) (*ssh.Permissions, error) { return nil, nil }}
	cfg.AddHostKey(signer)
	ln, err := e.l.Server.Listen("tcp", netip.AddrPortFrom(e.server(), port).String())
	if err != nil {
		return err
	}
	e.serve(ln, func(c net.Conn) {
		defer c.Close()
		_, chans, reqs, err := ssh.NewServerConn(c, cfg)
		if err != nil {
			return
		}
		go ssh.DiscardRequests(reqs)
		for ch := range chans {
			switch ch.ChannelType() {
			case "session":
				go serveSession(ch)
			case "direct-tcpip":
				go e.serveForward(ch)
			default:
				_ = ch.Reject(ssh.UnknownChannelType, "no such thing")
			}
		}
	})
	return nil
}

func serveSession(ch ssh.NewChannel) {
	c, reqs, err := ch.Accept()
	if err != nil {
		return
	}
	defer c.Close()
	for req := range reqs {
		if req.Type != "exec" {
			_ = req.Reply(false, nil)
			continue
		}
		_ = req.Reply(true, nil)
		var n int
		_, _ = fmt.Sscanf(string(req.Payload[4:]), "give %d", &n) // 0 for others
		_, _ = io.Copy(io.Discard, c)
		_, _ = c.Write(bytes.Repeat([]byte("line of output\n"), n/15+1))
		_, _ = c.SendRequest("exit-status", false, []byte{0, 0, 0, 0})
		return
	}
}

func (e *env) serveForward(ch ssh.NewChannel) {
	b := ch.ExtraData()
	if len(b) < 4 || len(b) < 8+int(binary.BigEndian.Uint32(b)) {
		_ = ch.Reject(ssh.ConnectionFailed, "bad request")
		return
	}
	n := binary.BigEndian.Uint32(b)
	up, err := e.l.Server.Dial(e.ctx, "tcp", netip.AddrPortFrom(e.server(), uint16(binary.BigEndian.Uint32(b[4+n:]))).String())
	if err != nil {
		_ = ch.Reject(ssh.ConnectionFailed, err.Error())
		return
	}
	c, reqs, err := ch.Accept()
	if err != nil {
		up.Close()
		return
	}
	go ssh.DiscardRequests(reqs)
	go func() {
		_, _ = io.Copy(up, c)
		up.Close()
	}()
	_, _ = io.Copy(c, up)
	c.Close()
}

// goSSH runs a command or carries a web request over an x/crypto/ssh client.
func goSSH(ctx context.Context, a *attempt) error {
	raw, err := a.open(ctx, "go-ssh")
	if err != nil {
		return err
	}
	defer raw.Close()
	cfg := &ssh.ClientConfig{User: a.name(), Auth: []ssh.AuthMethod{ssh.Password(a.name())}, HostKeyCallback: ssh.InsecureIgnoreHostKey(), Timeout: 20 * time.Second}
	if a.r.Float64() < 0.5 {
		cfg.Ciphers = []string{pick(a.r, "aes128-gcm@openssh.com", "chacha20-poly1305@openssh.com", "aes256-ctr", "aes128-ctr")}
	}
	if a.r.Float64() < 0.5 {
		cfg.KeyExchanges = []string{pick(a.r, "curve25519-sha256", "ecdh-sha2-nistp256", "mlkem768x25519-sha256")}
	}
	conn, chans, reqs, err := ssh.NewClientConn(raw, a.name(), cfg)
	if err != nil {
		return err
	}
	c := ssh.NewClient(conn, chans, reqs)
	defer c.Close()
	if a.r.Float64() < 0.5 {
		up, err := c.Dial("tcp", net.JoinHostPort(a.name(), num(a.e.port["http"])))
		if err != nil {
			return err
		}
		defer up.Close()
		if _, err := up.Write(a.request()); err != nil {
			return err
		}
		_, err = io.Copy(io.Discard, up)
		return err
	}
	s, err := c.NewSession()
	if err != nil {
		return err
	}
	s.Stdin = bytes.NewReader(randomBytes(a.r, logUniform(a.r, 1, 20000)))
	_, err = s.Output(fmt.Sprintf("give %d", logUniform(a.r, 1, 20000)))
	return err
}
