// SPDX-License-Identifier: Apache-2.0

package lab_test

import (
	"bytes"
	"context"
	"errors"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/earlydrop/earlydrop/test/lab"
)

// need skips where the lab can't run and says what is missing: root or a
// program. With EARLYDROP_NEED_LAB set, which whoever runs all tests does,
// that is a failure.
func need(t *testing.T) {
	t.Helper()
	missing := lab.Missing()
	if missing == "" {
		return
	}
	if os.Getenv("EARLYDROP_NEED_LAB") != "" {
		t.Fatalf("EARLYDROP_NEED_LAB is set, but: %s", missing)
	}
	t.Skip(missing)
}

func start(t *testing.T, cfg lab.Config) (*lab.Lab, context.Context) {
	t.Helper()
	need(t)
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	t.Cleanup(cancel)
	l, err := lab.New(ctx, cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return l, ctx
}

const mb = 1 << 20

func check(t *testing.T, what string, r lab.Result, want int64) {
	t.Helper()
	if r.Err != nil {
		t.Errorf("%s: %v", what, r.Err)
	} else if r.Bytes != want {
		t.Errorf("%s: %d bytes, want %d", what, r.Bytes, want)
	}
}

func TestEveryPathCarriesItsTraffic(t *testing.T) {
	l, ctx := start(t, lab.Config{})
	web, err := l.StartNginx(ctx, lab.NginxConfig{LargeMB: 2})
	if err != nil {
		t.Fatal(err)
	}
	dns, err := l.StartDNS(ctx, lab.DNSConfig{})
	if err != nil {
		t.Fatal(err)
	}
	sshd, err := l.StartSSH(ctx, 0)
	if err != nil {
		t.Fatal(err)
	}
	for _, v := range []int{4, 6} {
		check(t, "http", l.Download(ctx, nil, l.URL("http", v, web.HTTPPort, "/1m"), nil), mb)
		check(t, "https", l.Download(ctx, nil, l.URL("https", v, web.HTTPSPort, "/large"), nil), web.LargeBytes)
		check(t, "curl", l.Curl(ctx, nil, l.URL("https", v, web.HTTPSPort, "/large")), web.LargeBytes)
		check(t, "ssh command", l.SSHCommand(ctx, sshd, v, "printf hello"), 5)
		check(t, "ssh transfer", l.SSHTransfer(ctx, sshd, v, mb), mb)
		check(t, "dns over udp", l.Lookup(ctx, dns, v, "udp", "www.lab.example"), 20)
		check(t, "dns over tcp", l.Lookup(ctx, dns, v, "tcp", "www.lab.example"), 20)
	}
	for _, cipher := range lab.Ciphers {
		tun, err := l.StartShadowsocks(ctx, lab.ShadowsocksConfig{Cipher: cipher, Resolve: l.ServerAddr(4)})
		if err != nil {
			t.Fatalf("%s: %v", cipher, err)
		}
		url := l.URL("https", 4, web.HTTPSPort, "/large")
		check(t, "shadowsocks "+cipher, l.Download(ctx, tun, url, nil), web.LargeBytes)
		check(t, "shadowsocks by name "+cipher, l.Curl(ctx, tun, strings.Replace(url, l.ServerAddr(4).String(), "www.lab.example", 1)), web.LargeBytes)
	}
	var cfgs []lab.VMessConfig
	for _, s := range lab.Securities {
		cfgs = append(cfgs, lab.VMessConfig{Security: s, Resolve: l.ServerAddr(4)})
	}
	cfgs = append(cfgs, lab.VMessConfig{HTTPHeader: true}, lab.VMessConfig{AlterID: 4}, lab.VMessConfig{Version: 6}, lab.VMessConfig{Mux: true})
	tunnels, err := l.StartVMessAll(ctx, cfgs)
	if err != nil {
		t.Fatal(err)
	}
	for i, tun := range tunnels {
		check(t, "vmess", l.Download(ctx, tun, l.URL("https", 4, web.HTTPSPort, "/large"), nil), web.LargeBytes)
		if t.Failed() {
			t.Fatalf("configuration %+v", cfgs[i])
		}
	}
	check(t, "vmess by name", l.Curl(ctx, tunnels[0], "http://lab.example:"+strings.TrimPrefix(l.URL("http", 4, web.HTTPPort, "/1m"), "http://"+l.ServerAddr(4).String()+":")), mb)

	var seen []int64
	check(t, "progress", l.Download(ctx, tunnels[0], l.URL("http", 4, web.HTTPPort, "/1m"), func(n int64) { seen = append(seen, n) }), mb)
	if len(seen) == 0 || seen[len(seen)-1] != mb {
		t.Errorf("progress ended at %v, want %d", seen, mb)
	}
}

func TestForwardCarriesAProgramThatKnowsNoSOCKS(t *testing.T) {
	l, ctx := start(t, lab.Config{})
	sshd, err := l.StartSSH(ctx, 0)
	if err != nil {
		t.Fatal(err)
	}
	tun, err := l.StartShadowsocks(ctx, lab.ShadowsocksConfig{})
	if err != nil {
		t.Fatal(err)
	}
	addr, err := l.Forward(tun, strings.TrimPrefix(l.URL("x", 4, sshd.Port, ""), "x://"))
	if err != nil {
		t.Fatal(err)
	}
	out, err := l.Exec(ctx, l.Client, append(sshd.SSHArgs(addr), "printf through")...)
	if err != nil || string(out) != "through" {
		t.Fatalf("ssh through the tunnel printed %q: %v", out, err)
	}
}

// The frames between client and gateway have the tag in their bytes, in both
// directions, and both IP versions get through.
func TestVLANTagsAreOnTheWire(t *testing.T) {
	l, ctx := start(t, lab.Config{VLAN: 77})
	web, err := l.StartNginx(ctx, lab.NginxConfig{LargeMB: 1})
	if err != nil {
		t.Fatal(err)
	}
	for _, v := range []int{4, 6} {
		check(t, "http in a VLAN", l.Download(ctx, nil, l.URL("http", v, web.HTTPPort, "/1m"), nil), mb)
	}
	if got := tagged(t, l, web.HTTPPort); got != [2]bool{true, true} {
		t.Errorf("tag seen from and to the client: %v, want both", got)
	}
}

func TestRelayDelaysAndRecovers(t *testing.T) {
	l, ctx := start(t, lab.Config{ServerLink: lab.LinkConfig{Relay: lab.RelayConfig{
		Delay: 20 * time.Millisecond, Jitter: 2 * time.Millisecond, Loss: 0.01, Reorder: 0.02, Rate: 100e6, Seed: 1}}})
	web, err := l.StartNginx(ctx, lab.NginxConfig{LargeMB: 1})
	if err != nil {
		t.Fatal(err)
	}
	r := l.Download(ctx, nil, l.URL("http", 4, web.HTTPPort, "/1m"), nil)
	check(t, "http over a slow leg", r, mb)
	if least := 80 * time.Millisecond; r.Duration < least { // SYN and request, two round trips
		t.Errorf("took %v, want at least %v", r.Duration, least)
	}
}

func TestSettingsOfTheHostsTakeEffect(t *testing.T) {
	l, ctx := start(t, lab.Config{
		ClientLink: lab.LinkConfig{MTU: 9000, NoOffload: true}, ServerLink: lab.LinkConfig{MTU: 9000},
		Client: lab.HostConfig{TTL: 200, Sysctl: map[string]string{"net.ipv4.tcp_timestamps": "0"}},
	})
	for what, c := range map[string][]string{
		"200":  {"cat", "/proc/sys/net/ipv4/ip_default_ttl"},
		"0":    {"cat", "/proc/sys/net/ipv4/tcp_timestamps"},
		"9000": {"cat", "/proc/sys/net/ipv6/conf/cl0/mtu"},
	} {
		out, err := l.Exec(ctx, l.Client, c...)
		if err != nil || strings.TrimSpace(string(out)) != what {
			t.Errorf("%v printed %q (%v), want %s", c, out, err, what)
		}
	}
}

func TestCloseLeavesNothing(t *testing.T) {
	l, ctx := start(t, lab.Config{VLAN: 5, ServerLink: lab.LinkConfig{Relay: lab.RelayConfig{Delay: time.Millisecond}}})
	if _, err := l.StartSSH(ctx, 0); err != nil {
		t.Fatal(err)
	}
	// A program that leaves its process group and ignores requests to end.
	p, err := l.Start(l.Server, "stubborn", "sh", "-c", "trap '' TERM; setsid sleep 1000 & wait")
	if err != nil {
		t.Fatal(err)
	}
	paths := []string{l.Client.Path(), l.Gateway.Path(), l.Server.Path(), l.Dir()}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	select {
	case <-p.Done():
	default:
		t.Errorf("process %d still runs", p.PID())
	}
	for _, p := range paths {
		if _, err := os.Stat(p); !os.IsNotExist(err) {
			t.Errorf("%s is left (%v)", p, err)
		}
	}
	out, err := exec.Command("ps", "-eo", "args").Output()
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(out), l.Dir()) || strings.Contains(string(out), "sleep 1000") {
		t.Errorf("processes are left:\n%s", out)
	}
	if err := l.Close(); err != nil {
		t.Errorf("second close: %v", err)
	}
	if _, err := l.Start(l.Server, "late", "true"); err == nil {
		t.Error("a program starts in a closed lab")
	}
}

// A lab whose process is killed is found and removed by Sweep; the lab of a
// living process is not.
func TestSweepRemovesOnlyTheDead(t *testing.T) {
	if dir := os.Getenv("LAB_TEST_CHILD"); dir != "" {
		l, err := lab.New(context.Background(), lab.Config{})
		if err == nil {
			_, err = l.Start(l.Server, "sleeper", "sh", "-c", "setsid sleep 2000 & wait")
		}
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "name"), []byte(l.Client.Name), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := os.Stdout.WriteString("ready\n"); err != nil {
			t.Fatal(err)
		}
		select {}
	}
	l, _ := start(t, lab.Config{})
	dir := t.TempDir()
	child := exec.Command(os.Args[0], "-test.run=^TestSweepRemovesOnlyTheDead$")
	child.Env = append(os.Environ(), "LAB_TEST_CHILD="+dir)
	out, err := child.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 256)
	var got bytes.Buffer
	for !strings.Contains(got.String(), "ready\n") {
		n, err := out.Read(buf)
		got.Write(buf[:n])
		if err != nil {
			t.Fatalf("child printed %q: %v", got.String(), err)
		}
	}
	name, err := os.ReadFile(filepath.Join(dir, "name"))
	if err != nil {
		t.Fatal(err)
	}
	_ = child.Process.Kill()
	_ = child.Wait()
	removed, err := lab.Sweep()
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(strings.Join(removed, " "), string(name)) {
		t.Errorf("removed %v, want %s among them", removed, name)
	}
	if _, err := os.Stat(filepath.Join("/var/run/netns", string(name))); !os.IsNotExist(err) {
		t.Errorf("%s is left", name)
	}
	if _, err := os.Stat(l.Client.Path()); err != nil {
		t.Errorf("the lab of a living process is gone: %v", err)
	}
	ps, err := exec.Command("ps", "-eo", "args").Output()
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(ps), "sleep 2000") {
		t.Error("a process of the dead lab is left")
	}
}

func TestBadConfigIsRefused(t *testing.T) {
	for _, c := range []struct {
		cfg  lab.Config
		want string
	}{
		{lab.Config{VLAN: 4095}, "vlan 4095"},
		{lab.Config{ClientLink: lab.LinkConfig{MTU: 500}}, "mtu 500"},
		{lab.Config{ServerLink: lab.LinkConfig{Queues: -1}}, "queues -1"},
		{lab.Config{ServerLink: lab.LinkConfig{Relay: lab.RelayConfig{Loss: 2}}}, "loss 2"},
		{lab.Config{Client: lab.HostConfig{TTL: 256}}, "ttl 256"},
	} {
		l, err := lab.New(context.Background(), c.cfg)
		if err == nil {
			l.Close()
			t.Errorf("%+v is accepted", c.cfg)
		} else if !strings.Contains(err.Error(), c.want) {
			t.Errorf("error %q does not name %q", err, c.want)
		}
	}
}

func TestMissingProgramNamesItsPackage(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	if _, err := lab.Program("ss-server"); err == nil || !strings.Contains(err.Error(), "shadowsocks-libev") {
		t.Errorf("error %v does not name the package", err)
	}
	if _, err := lab.Program("no-such-program"); err == nil {
		t.Error("a program that does not exist is found")
	}
}

// Others on the machine may mount the directory of namespaces over itself, as
// `ip netns add` does. Close still removes the lab's files. The test does so
// in a mount namespace of its own.
func TestCloseUnderARemountedDirectory(t *testing.T) {
	if os.Getenv("LAB_TEST_REMOUNT") == "" {
		need(t)
		child := exec.Command("unshare", "--mount", "--propagation", "private", os.Args[0], "-test.run=^TestCloseUnderARemountedDirectory$", "-test.v")
		child.Env = append(os.Environ(), "LAB_TEST_REMOUNT=1")
		if out, err := child.CombinedOutput(); err != nil || !bytes.Contains(out, []byte("removed it all")) {
			t.Fatalf("%v:\n%s", err, out)
		}
		return
	}
	l, err := lab.New(context.Background(), lab.Config{})
	if err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("mount", "--rbind", "/var/run/netns", "/var/run/netns").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	for _, n := range []*lab.Namespace{l.Client, l.Gateway, l.Server} {
		if _, err := os.Stat(n.Path()); !os.IsNotExist(err) {
			t.Fatalf("%s is left (%v)", n.Path(), err)
		}
	}
	t.Log("removed it all")
}

// twiceFromClient doubles what the client sends, but for UDP, which it loses.
type twiceFromClient struct{ frames, datagrams *atomic.Int64 }

func (s twiceFromClient) Shape(fromGateway bool, frame []byte) [][]byte {
	if fromGateway || len(frame) < 34 {
		return [][]byte{frame}
	}
	if frame[12] == 8 && frame[13] == 0 && frame[23] == unix.IPPROTO_UDP {
		s.datagrams.Add(1)
		return nil
	}
	s.frames.Add(1)
	return [][]byte{frame, bytes.Clone(frame)}
}

func TestShaperPutsFramesInTheirPlace(t *testing.T) {
	s := twiceFromClient{new(atomic.Int64), new(atomic.Int64)}
	l, ctx := start(t, lab.Config{ClientLink: lab.LinkConfig{Relay: lab.RelayConfig{Shaper: s}}})
	web, err := l.StartNginx(ctx, lab.NginxConfig{LargeMB: 1})
	if err != nil {
		t.Fatal(err)
	}
	sniffer, err := lab.NewSniffer(l.Gateway, lab.GatewayClientDev, 128)
	if err != nil {
		t.Fatal(err)
	}
	defer sniffer.Close()
	before := s.frames.Load()
	check(t, "http over a leg with a shaper", l.Download(ctx, nil, l.URL("http", 4, web.HTTPPort, "/4k"), nil), 4<<10)
	sent := s.frames.Load() - before
	// The client has ended before the gateway has all of it.
	late := time.AfterFunc(time.Minute, func() { _ = sniffer.Finish() })
	defer late.Stop()
	var came int64
	from := l.ClientAddr(4).As4()
	for {
		f, err := sniffer.Read()
		if errors.Is(err, os.ErrClosed) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if len(f.Data) > 30 && bytes.Equal(f.Data[26:30], from[:]) {
			if came++; came == 6 {
				if err := sniffer.Finish(); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	// SYN, request and its end at least; the last may be on their way.
	if sent < 3 || came < 6 || came > 2*s.frames.Load() {
		t.Errorf("of %d frames of the client the gateway got %d, want each twice", sent, came)
	}

	server, err := l.Server.ListenPacket("udp", netip.AddrPortFrom(l.ServerAddr(4), 0).String())
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	client, err := l.Client.Dial(ctx, "udp", server.LocalAddr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	if _, err := client.Write([]byte("lost")); err != nil {
		t.Fatal(err)
	}
	for s.datagrams.Load() == 0 && ctx.Err() == nil {
		time.Sleep(time.Millisecond)
	}
	_ = server.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
	if n, _, err := server.ReadFrom(make([]byte, 16)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("%d bytes came, %v: want nothing", n, err)
	}
}
