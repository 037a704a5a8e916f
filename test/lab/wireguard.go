// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"bufio"
	"context"
	"crypto/ecdh"
	crand "crypto/rand"
	"encoding/hex"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
)

// WireGuard is a userspace WireGuard (wireguard-go) and its TUN device. Its methods may be
// called concurrently.
type WireGuard struct {
	*Proc
	Device string

	ns      *Namespace
	private *ecdh.PrivateKey
}

// StartWireGuard starts WireGuard in a namespace, with a key and a device of its own, and
// gives the device an address inside the tunnel. Peers and port are set by
// [WireGuard.Set].
func (l *Lab) StartWireGuard(ctx context.Context, n *Namespace, addr netip.Prefix) (*WireGuard, error) {
	private, err := ecdh.X25519().GenerateKey(crand.Reader)
	if err != nil {
		return nil, err
	}
	// TUN devices need one name each per namespace, their sockets per machine.
	d := &WireGuard{Device: fmt.Sprintf("edw%x", rand.Uint32()), ns: n, private: private}
	if d.Proc, err = l.Start(n, "wireguard-go", "wireguard-go", "-f", d.Device); err != nil {
		return nil, err
	}
	l.onClose(func() error {
		d.Stop()
		return nil
	})
	if err := d.begin(ctx, addr); err != nil {
		d.Stop()
		return nil, err
	}
	return d, nil
}

// begin waits until the device can be set up, and brings it up.
func (d *WireGuard) begin(ctx context.Context, addr netip.Prefix) error {
	ctx, cancel := context.WithTimeout(ctx, readyLimit)
	defer cancel()
	for {
		if _, err := os.Stat(d.socket()); err == nil {
			break
		}
		select {
		case <-time.After(5 * time.Millisecond):
		case <-d.Done():
			return fmt.Errorf("wireguard-go ended: %s", d.Output())
		case <-ctx.Done():
			return fmt.Errorf("wireguard-go is not ready: %w", ctx.Err())
		}
	}
	if err := d.AddAddr(addr); err != nil {
		return err
	}
	dev, err := d.ns.nl.LinkByName(d.Device)
	if err != nil {
		return err
	}
	return d.ns.nl.LinkSetUp(dev)
}

// socket is the device's configuration socket, whose folder all namespaces share.
func (d *WireGuard) socket() string { return "/var/run/wireguard/" + d.Device + ".sock" }

// PrivateKey returns the device's key in the form that [WireGuard.Set] takes.
func (d *WireGuard) PrivateKey() string { return hex.EncodeToString(d.private.Bytes()) }

// PublicKey returns what peers have to know of the device, in the form that
// [WireGuard.Set] takes.
func (d *WireGuard) PublicKey() string { return hex.EncodeToString(d.private.PublicKey().Bytes()) }

// AddAddr gives the device another IPv4 address inside the tunnel.
func (d *WireGuard) AddAddr(addr netip.Prefix) error {
	dev, err := d.ns.nl.LinkByName(d.Device)
	if err != nil {
		return err
	}
	return d.ns.nl.AddrAdd(dev, &netlink.Addr{IPNet: &net.IPNet{IP: addr.Addr().AsSlice(), Mask: net.CIDRMask(addr.Bits(), 32)}})
}

// Stop ends the program and removes its socket. It can be called more than once.
func (d *WireGuard) Stop() {
	d.Proc.Stop()
	_ = os.Remove(d.socket()) // it was killed and could not
}

// Set writes lines of WireGuard's configuration protocol ("listen_port=51820").
func (d *WireGuard) Set(lines ...string) error {
	c, err := net.Dial("unix", d.socket())
	if err != nil {
		return err
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(time.Minute))
	if _, err := fmt.Fprintf(c, "set=1\n%s\n\n", strings.Join(lines, "\n")); err != nil {
		return err
	}
	answer, err := bufio.NewReader(c).ReadString('\n')
	if err == nil && answer != "errno=0\n" {
		err = fmt.Errorf("wireguard-go answers %q", answer)
	}
	return err
}
