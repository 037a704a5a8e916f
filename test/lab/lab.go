// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Names of the devices, each in the namespace of its host.
const (
	ClientDev        = "cl0"
	GatewayClientDev = "gw-c" // where the data path under test is attached
	GatewayServerDev = "gw-s"
	ServerDev        = "sv0"
)

// Config describes a lab. The zero value is a plain network: veth pairs of
// 1500 bytes, private addresses, the kernel's own settings.
type Config struct {
	// ClientNet4, ServerNet4, ClientNet6 and ServerNet6 are the networks of
	// the two legs. The gateway has the first address of each, the host the
	// second. (optional: 10.77.1.0/24, 10.77.2.0/24, fd77:1::/64, fd77:2::/64)
	ClientNet4, ServerNet4 netip.Prefix
	ClientNet6, ServerNet6 netip.Prefix

	// VLAN is the 802.1Q id, 1 to 4094, of frames between client and gateway;
	// 0 leaves them untagged.
	VLAN uint16

	// ClientLink and ServerLink shape the two legs.
	ClientLink, ServerLink LinkConfig

	// Client and Server set up the two hosts' network stacks.
	Client, Server HostConfig

	// Logger is told what is started and what fails to end. (optional)
	Logger *slog.Logger
}

// LinkConfig describes one leg.
type LinkConfig struct {
	// MTU in bytes, 1280 (IPv6's least) to 65535. (optional: 1500)
	MTU int

	// NearMAC and FarMAC are the addresses of the gateway's device and of the
	// host's. (optional: drawn by the kernel)
	NearMAC, FarMAC net.HardwareAddr

	// Queues is how many a veth has for packets, at both ends, 1 to 4096: so many
	// cores can carry packets at the same time. (optional: 1)
	Queues int

	// NoOffload turns segmentation, checksum and receive offloads off, so
	// that frames look as they do on a cable. Only of a veth; a relay has
	// none anyway.
	NoOffload bool

	// Relay is how the leg delays and loses frames; the zero value makes it a
	// plain veth pair.
	Relay RelayConfig
}

// HostConfig sets up the network stack of a host.
type HostConfig struct {
	// TTL is the time to live (IPv4) and hop limit (IPv6) of packets sent, 1
	// to 255. (optional: the kernel's 64)
	TTL int

	// Sysctl holds further settings of the namespace, by dotted name.
	Sysctl map[string]string
}

// Lab is a running network. Its methods may be called concurrently, Close
// apart.
type Lab struct {
	Client, Gateway, Server *Namespace

	cfg Config
	dir string
	log *slog.Logger

	mu      sync.Mutex
	procs   []*Proc
	closers []func() error
	closed  bool
}

var labNumber atomic.Int64

// New builds the network and returns when it carries packets. On failure
// nothing is left. The caller closes the Lab; ctx only bounds New itself.
func New(ctx context.Context, cfg Config) (*Lab, error) {
	cfg = cfg.withDefaults()
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	if os.Geteuid() != 0 {
		return nil, errors.New("the lab needs root: it makes network namespaces")
	}
	start, err := startTime(os.Getpid())
	if err != nil {
		return nil, fmt.Errorf("read own start time: %w", err)
	}
	base := fmt.Sprintf("%s%d-%s-%d", namePrefix, os.Getpid(), start, labNumber.Add(1))
	l := &Lab{cfg: cfg, log: cfg.Logger, dir: filepath.Join(os.TempDir(), base)}
	if l.log == nil {
		l.log = slog.New(slog.DiscardHandler)
	}
	if err := l.build(ctx, base); err != nil {
		return nil, errors.Join(fmt.Errorf("build lab: %w", err), l.Close())
	}
	return l, nil
}

func (c Config) withDefaults() Config {
	def := func(p *netip.Prefix, s string) {
		if !p.IsValid() {
			*p = netip.MustParsePrefix(s)
		}
	}
	def(&c.ClientNet4, "10.77.1.0/24")
	def(&c.ServerNet4, "10.77.2.0/24")
	def(&c.ClientNet6, "fd77:1::/64")
	def(&c.ServerNet6, "fd77:2::/64")
	for _, l := range []*LinkConfig{&c.ClientLink, &c.ServerLink} {
		if l.MTU == 0 {
			l.MTU = 1500
		}
	}
	return c
}

func (c Config) validate() error {
	for _, p := range []netip.Prefix{c.ClientNet4, c.ServerNet4} {
		if !p.Addr().Is4() || p.Bits() > 30 {
			return fmt.Errorf("network %v: want an IPv4 prefix of at most 30 bits", p)
		}
	}
	for _, p := range []netip.Prefix{c.ClientNet6, c.ServerNet6} {
		if !p.Addr().Is6() || p.Bits() > 126 {
			return fmt.Errorf("network %v: want an IPv6 prefix of at most 126 bits", p)
		}
	}
	if c.ClientNet4.Overlaps(c.ServerNet4) || c.ClientNet6.Overlaps(c.ServerNet6) {
		return errors.New("the networks of the two legs overlap")
	}
	if c.VLAN > 4094 {
		return fmt.Errorf("vlan %d: want 1 to 4094, or 0 for none", c.VLAN)
	}
	for _, l := range []LinkConfig{c.ClientLink, c.ServerLink} {
		if l.MTU < 1280 || l.MTU > 65535 {
			return fmt.Errorf("mtu %d: want 1280 to 65535", l.MTU)
		}
		if l.Queues < 0 || l.Queues > 4096 {
			return fmt.Errorf("queues %d: want 1 to 4096", l.Queues)
		}
		if err := l.Relay.validate(); err != nil {
			return err
		}
	}
	for _, h := range []HostConfig{c.Client, c.Server} {
		if h.TTL < 0 || h.TTL > 255 {
			return fmt.Errorf("ttl %d: want 1 to 255, or 0 for the kernel's", h.TTL)
		}
	}
	return nil
}

func (l *Lab) build(ctx context.Context, base string) error {
	if err := os.Mkdir(l.dir, 0o755); err != nil {
		return err
	}
	for _, ns := range []struct {
		to   **Namespace
		role string
	}{{&l.Client, "client"}, {&l.Gateway, "gateway"}, {&l.Server, "server"}} {
		n, err := newNamespace(base + "-" + ns.role)
		if err != nil {
			return err
		}
		*ns.to = n
		if err := n.setupStack(); err != nil {
			return err
		}
	}
	for _, s := range []string{"net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding"} {
		if err := l.Gateway.Sysctl(s, "1"); err != nil {
			return err
		}
	}
	if err := l.Client.apply(l.cfg.Client); err != nil {
		return err
	}
	if err := l.Server.apply(l.cfg.Server); err != nil {
		return err
	}
	legs := []leg{
		{l.Gateway, l.Client, GatewayClientDev, ClientDev, l.cfg.ClientLink, l.cfg.ClientNet4, l.cfg.ClientNet6, l.cfg.VLAN},
		{l.Gateway, l.Server, GatewayServerDev, ServerDev, l.cfg.ServerLink, l.cfg.ServerNet4, l.cfg.ServerNet6, 0},
	}
	for _, g := range legs {
		if err := l.connect(g); err != nil {
			return fmt.Errorf("link %s - %s: %w", g.nearDev, g.farDev, err)
		}
	}
	return l.checkPath(ctx)
}

// checkPath makes sure that both protocols pass before anything is started on
// top: a TCP connection to a listener of our own through the gateway.
func (l *Lab) checkPath(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, readyLimit)
	defer cancel()
	for _, addr := range []netip.Addr{l.ServerAddr(4), l.ServerAddr(6)} {
		ln, err := l.Server.Listen("tcp", netip.AddrPortFrom(addr, 0).String())
		if err != nil {
			return fmt.Errorf("listen on the server: %w", err)
		}
		c, err := l.Client.Dial(ctx, "tcp", ln.Addr().String())
		if err == nil {
			c.Close()
		}
		ln.Close()
		if err != nil {
			return fmt.Errorf("client does not reach the server: %w", err)
		}
	}
	return nil
}

// setupStack brings the loopback up and makes IPv6 addresses usable at once.
func (n *Namespace) setupStack() error {
	for _, kv := range [][2]string{
		{"net.ipv6.conf.all.disable_ipv6", "0"},
		{"net.ipv6.conf.default.disable_ipv6", "0"},
		{"net.ipv6.conf.default.accept_dad", "0"},
		{"net.ipv6.conf.default.accept_ra", "0"},
		{"net.ipv6.conf.default.router_solicitations", "0"},
	} {
		if err := n.Sysctl(kv[0], kv[1]); err != nil {
			return err
		}
	}
	lo, err := n.nl.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("find lo in %s: %w", n.Name, err)
	}
	if err := n.nl.LinkSetUp(lo); err != nil {
		return fmt.Errorf("set lo up in %s: %w", n.Name, err)
	}
	return nil
}

// apply runs before the devices are made, so that they inherit the defaults.
func (n *Namespace) apply(h HostConfig) error {
	if h.TTL > 0 {
		ttl := strconv.Itoa(h.TTL)
		for _, s := range []string{"net.ipv4.ip_default_ttl", "net.ipv6.conf.all.hop_limit", "net.ipv6.conf.default.hop_limit"} {
			if err := n.Sysctl(s, ttl); err != nil {
				return err
			}
		}
	}
	for k, v := range h.Sysctl {
		if err := n.Sysctl(k, v); err != nil {
			return err
		}
	}
	return nil
}

// leg is one connection between the gateway (near) and a host (far).
type leg struct {
	near, far       *Namespace
	nearDev, farDev string
	cfg             LinkConfig
	net4, net6      netip.Prefix
	vlan            uint16
}

func (l *Lab) connect(g leg) error {
	if g.cfg.Relay.enabled() {
		r, err := startRelay(g)
		if err != nil {
			return err
		}
		l.onClose(r.close)
	} else {
		attrs := netlink.NewLinkAttrs()
		attrs.Name, attrs.MTU, attrs.HardwareAddr = g.nearDev, g.cfg.MTU, g.cfg.NearMAC
		attrs.NumTxQueues, attrs.NumRxQueues = g.cfg.Queues, g.cfg.Queues
		err := g.near.nl.LinkAdd(&netlink.Veth{
			LinkAttrs: attrs, PeerName: g.farDev, PeerMTU: uint32(g.cfg.MTU),
			PeerHardwareAddr: g.cfg.FarMAC, PeerNamespace: netlink.NsFd(int(g.far.handle)),
			PeerNumTxQueues: uint32(g.cfg.Queues), PeerNumRxQueues: uint32(g.cfg.Queues),
		})
		if err != nil {
			return fmt.Errorf("add veth pair: %w", err)
		}
	}
	ends := []struct {
		ns   *Namespace
		dev  string
		host bool
	}{{g.near, g.nearDev, false}, {g.far, g.farDev, true}}
	for _, e := range ends {
		if err := e.ns.Do(func() error { return setOffloads(e.dev, g.cfg, g.vlan != 0) }); err != nil {
			return err
		}
		dev, err := e.ns.nl.LinkByName(e.dev)
		if err != nil {
			return fmt.Errorf("find %s: %w", e.dev, err)
		}
		for _, p := range []netip.Prefix{g.net4, g.net6} {
			a := gatewayAddr(p)
			if e.host {
				a = hostAddr(p)
			}
			addr := &netlink.Addr{IPNet: &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(p.Bits(), a.BitLen())}}
			if a.Is6() {
				addr.Flags = unix.IFA_F_NODAD
			}
			if err := e.ns.nl.AddrAdd(dev, addr); err != nil {
				return fmt.Errorf("add address %v to %s: %w", a, e.dev, err)
			}
		}
		if g.vlan != 0 {
			stop, err := tagFrames(e.ns, dev.Attrs().Index, g.vlan)
			if err != nil {
				return fmt.Errorf("vlan %d on %s: %w", g.vlan, e.dev, err)
			}
			l.onClose(stop)
		}
		if err := e.ns.nl.LinkSetUp(dev); err != nil {
			return fmt.Errorf("set %s up: %w", e.dev, err)
		}
	}
	// Routes last: both ends have to be up.
	far, err := g.far.nl.LinkByName(g.farDev)
	if err != nil {
		return err
	}
	for _, p := range []netip.Prefix{g.net4, g.net6} {
		gw := gatewayAddr(p)
		all := &net.IPNet{IP: make(net.IP, gw.BitLen()/8), Mask: net.CIDRMask(0, gw.BitLen())}
		if err := g.far.nl.RouteAdd(&netlink.Route{LinkIndex: far.Attrs().Index, Dst: all, Gw: gw.AsSlice()}); err != nil {
			return fmt.Errorf("add default route via %v: %w", gw, err)
		}
	}
	return nil
}

func gatewayAddr(p netip.Prefix) netip.Addr { return p.Masked().Addr().Next() }
func hostAddr(p netip.Prefix) netip.Addr    { return gatewayAddr(p).Next() }

// ClientAddr returns the client's address of IP version 4 or 6.
func (l *Lab) ClientAddr(version int) netip.Addr {
	if version == 6 {
		return hostAddr(l.cfg.ClientNet6)
	}
	return hostAddr(l.cfg.ClientNet4)
}

// ServerAddr returns the server's address of IP version 4 or 6.
func (l *Lab) ServerAddr(version int) netip.Addr {
	if version == 6 {
		return hostAddr(l.cfg.ServerNet6)
	}
	return hostAddr(l.cfg.ServerNet4)
}

// SharedDir makes a directory for what several labs of this process need. The
// caller removes it; [Sweep] does where a process could not.
func SharedDir() (string, error) {
	start, err := startTime(os.Getpid())
	if err != nil {
		return "", fmt.Errorf("read own start time: %w", err)
	}
	dir := filepath.Join(os.TempDir(), fmt.Sprintf("%s%d-%s-%d", namePrefix, os.Getpid(), start, labNumber.Add(1)))
	return dir, os.Mkdir(dir, 0o755)
}

// Dir is a directory for configuration files and logs; it is removed at
// Close.
func (l *Lab) Dir() string { return l.dir }

// onClose has fn run at Close, later ones first.
func (l *Lab) onClose(fn func() error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closers = append(l.closers, fn)
}

// Close ends every process in the lab's namespaces, waits for them, and
// deletes namespaces, devices and files. It goes on after a failure and
// returns all of them; a second call does nothing.
func (l *Lab) Close() error {
	l.mu.Lock()
	if l.closed {
		l.mu.Unlock()
		return nil
	}
	l.closed = true
	procs, closers := l.procs, l.closers
	l.mu.Unlock()

	var errs []error
	for i := len(procs) - 1; i >= 0; i-- {
		procs[i].Stop()
	}
	all := []*Namespace{l.Client, l.Gateway, l.Server}
	for _, n := range all {
		if n != nil {
			errs = append(errs, killInside(n.Path()))
		}
	}
	for i := len(closers) - 1; i >= 0; i-- {
		errs = append(errs, closers[i]())
	}
	for _, n := range all {
		if n != nil {
			errs = append(errs, n.close())
		}
	}
	errs = append(errs, os.RemoveAll(l.dir))
	err := errors.Join(errs...)
	if err != nil {
		l.log.Error("lab not closed cleanly", "err", err)
	}
	return err
}
