// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"

	"github.com/earlydrop/earlydrop/test/e2e/rig"
)

// candidate is something that can be attached to the gateway.
type candidate struct {
	Name string
	// Drops says that the packets to droppedPort must not get through.
	Drops bool
	// attach puts it on the gateway; what it returns takes it off again.
	attach func(ctx context.Context, b *bench) (*attached, error)
}

type attached struct {
	stop func(ctx context.Context) error
	// daemon is the earlydrop that runs, or nil.
	daemon *rig.Daemon
}

const (
	nothing = "nothing attached"
	monitor = "earlydrop monitor"
	enforce = "earlydrop enforce"
)

// candidates are all, the one that the others are compared with first. A program
// that only passes shows what native XDP itself costs on a veth, whoever uses it.
var candidates = []candidate{
	{Name: nothing, attach: func(context.Context, *bench) (*attached, error) {
		return &attached{stop: func(context.Context) error { return nil }}, nil
	}},
	{Name: "XDP that only passes", attach: func(_ context.Context, b *bench) (*attached, error) {
		lk, err := attachXDP(b.rig.Gateway, rig.Device, b.pass)
		if err != nil {
			return nil, err
		}
		return &attached{stop: func(context.Context) error { return lk.Close() }}, nil
	}},
	{Name: "xdp-filter", Drops: true, attach: attachXDPFilter},
	{Name: "XDP that looks a flow up", Drops: true, attach: attachFloor},
	{Name: "nftables, ingress", Drops: true, attach: func(ctx context.Context, b *bench) (*attached, error) {
		return attachNFT(ctx, b, "netdev", fmt.Sprintf("ingress device %q", rig.Device))
	}},
	{Name: "nftables, forward", Drops: true, attach: func(ctx context.Context, b *bench) (*attached, error) {
		return attachNFT(ctx, b, "inet", "forward")
	}},
	{Name: monitor, attach: func(ctx context.Context, b *bench) (*attached, error) {
		return attachEarlydrop(ctx, b, "monitor")
	}},
	{Name: enforce, Drops: true, attach: func(ctx context.Context, b *bench) (*attached, error) {
		return attachEarlydrop(ctx, b, "enforce")
	}},
}

// tool is gatewayTool on the gateway of a bench.
func tool(ctx context.Context, b *bench, argv ...string) error {
	return gatewayTool(ctx, b.rig, argv...)
}

func attachXDPFilter(ctx context.Context, b *bench) (*attached, error) {
	// Only what is needed, so that it is as fast as it can be.
	if err := tool(ctx, b, "xdp-filter", "load", "--mode", "native", "--features", "udp", rig.Device); err != nil {
		return nil, err
	}
	stop := func(ctx context.Context) error { return tool(ctx, b, "xdp-filter", "unload", rig.Device) }
	if err := tool(ctx, b, "xdp-filter", "port", "--mode", "dst", "--proto", "udp", fmt.Sprint(droppedPort)); err != nil {
		return nil, errors.Join(err, stop(ctx))
	}
	return &attached{stop: stop}, nil
}

func attachNFT(ctx context.Context, b *bench, family, hook string) (*attached, error) {
	rules := fmt.Sprintf(`add table %[1]s bench
add chain %[1]s bench drops { type filter hook %[2]s priority 0; }
add rule %[1]s bench drops udp dport %[3]d drop`, family, hook, droppedPort)
	if err := tool(ctx, b, "nft", rules); err != nil {
		return nil, err
	}
	return &attached{stop: func(ctx context.Context) error { return tool(ctx, b, "nft", "delete", "table", family, "bench") }}, nil
}

// policyText keeps what is to pass from being dropped by a verdict of the model,
// which has never seen such traffic.
const policyText = `allow:
  - cidr: %[1]s
    port: [%[2]d, %[3]d]
rules:
  - name: tunnels
    class: [shadowsocks, v2ray]
    min_confidence: 0.9
    action: drop
    ttl: 10m
`

// attachEarlydrop runs the real program and returns when all of the small packets'
// flows are decided: passed by a verdict, or blocked.
func attachEarlydrop(ctx context.Context, b *bench, mode string) (_ *attached, err error) {
	d, err := b.rig.Attach(ctx, "--xdp", "native", "--mode", mode, "--policy", b.policyFile)
	if err != nil {
		return nil, err
	}
	a := &attached{daemon: d, stop: func(ctx context.Context) error {
		_, err := d.Stop(ctx)
		return err
	}}
	defer func() {
		if err != nil {
			err = errors.Join(err, a.stop(ctx))
		}
	}()
	if mode == "enforce" {
		var script strings.Builder
		for i := range flowCount {
			fmt.Fprintf(&script, "%s blocked add -i %s udp %v %v >/dev/null\n", quote(b.rig.Binary()), rig.Device,
				netip.AddrPortFrom(b.rig.ClientAddr(4), uint16(firstPort+i)), netip.AddrPortFrom(b.rig.ServerAddr(4), droppedPort))
		}
		if err := tool(ctx, b, "sh", "-ec", script.String()); err != nil {
			return nil, err
		}
	}
	for _, port := range []uint16{passedPort, droppedPort} {
		if err := b.generators[port].send(warmUp); err != nil {
			return nil, err
		}
		if mode == "enforce" && port == droppedPort {
			continue // blocked flows get no verdict
		}
		if err := answer(b, port); err != nil {
			return nil, err
		}
		for i := range flowCount {
			if _, err := d.Verdict(ctx, netip.AddrPortFrom(b.rig.ServerAddr(4), port), i); err != nil {
				return nil, err
			}
		}
	}
	return a, nil
}

// answer has the server send a datagram to each client of a port: a flow of which one side
// alone has spoken is not decided.
func answer(b *bench, port uint16) (err error) {
	server, err := b.rig.Server.ListenPacket("udp4", netip.AddrPortFrom(b.rig.ServerAddr(4), port).String())
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, server.Close()) }()
	for i := range flowCount {
		client := net.UDPAddrFromAddrPort(netip.AddrPortFrom(b.rig.ClientAddr(4), uint16(firstPort+i)))
		if _, err := server.WriteTo([]byte{0}, client); err != nil {
			return fmt.Errorf("answer %s: %w", client, err)
		}
	}
	return nil
}

// warmUp is how many packets are sent to each port before a run: some hundred of
// each flow, of which earlydrop takes its 1024 bytes.
const warmUp = 200 * flowCount

// quote quotes a word for the shell.
func quote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }
