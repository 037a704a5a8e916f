// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"errors"
	"testing"
	"time"

	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/earlydrop/earlydrop/loader/flow"
	f "github.com/earlydrop/earlydrop/loader/internal/frames"
)

// receivedReset waits for a frame of at least 54 bytes with TCP's flag RST.
func receivedReset(t *testing.T, fd int) []byte {
	t.Helper()
	buf := make([]byte, 2048)
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); {
		n, err := unix.Read(fd, buf)
		switch {
		case errors.Is(err, unix.EAGAIN), errors.Is(err, unix.EINTR):
		case err != nil:
			t.Fatal(err)
		case n >= 54 && buf[23] == f.TCP && buf[47]&f.RST != 0:
			return buf[:n]
		}
	}
	t.Fatal("no RST came")
	return nil
}

// On a real interface: what came in is answered through it, and what was to leave comes back in.
func TestResetsOfAnAttachedInterface(t *testing.T) {
	for _, tt := range []struct {
		name    string
		options Options
		peerXDP bool
		ingress bool // whether what comes in is answered
	}{
		{"tcx", Options{}, false, true},
		{"clsact on both sides", Options{forceClsact: true}, false, true},
		{"native", Options{Ingress: IngressXDP}, false, false},
		{"native, and the peer has a program", Options{Ingress: IngressXDP}, true, true},
		{"generic", Options{XDPMode: XDPGeneric}, false, true},
		{"clsact", Options{XDPMode: XDPGeneric, forceClsact: true}, false, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			inNamespace(t)
			for _, name := range []string{"v0", "v1"} {
				l, err := netlink.LinkByName(name)
				if err == nil {
					err = netlink.LinkSetUp(l)
				}
				if err != nil {
					t.Fatal(err)
				}
			}
			if tt.peerXDP {
				v1, err := netlink.LinkByName("v1")
				if err != nil {
					t.Fatal(err)
				}
				other, err := link.AttachXDP(link.XDPOptions{Program: passAll(t, "somebody_else"), Interface: v1.Attrs().Index})
				if err != nil {
					t.Fatal(err)
				}
				defer other.Close()
			}
			d := attach(t, tt.options)
			if able := d.Info.NoResets == ""; able != tt.ingress {
				t.Errorf("no resets: %q", d.Info.NoResets)
			}
			if err := d.Apply(tcpKey(), flow.Treatment{Action: flow.Reset, TTL: time.Hour}); err != nil {
				t.Fatal(err)
			}
			l := peers{"", client, server, nil, nil}
			v0, v1 := packetSocket(t, "v0", unix.ETH_P_IP), packetSocket(t, "v1", unix.ETH_P_IP)
			up, down := l.segment(true, 1402, 2, f.ACK, 100), l.segment(false, 2, 1402, f.ACK, 100)
			if tt.ingress {
				if _, err := unix.Write(v1, up); err != nil {
					t.Fatal(err)
				}
				l.isReset(t, receivedReset(t, v1), up, true, true, 2)
			}
			if _, err := unix.Write(v0, down); err != nil {
				t.Fatal(err)
			}
			l.isReset(t, receivedReset(t, v0), down, false, true, 1402)
			if err := d.Detach(); err != nil {
				t.Fatal(err)
			}
			nothingLeft(t)
		})
	}
}
