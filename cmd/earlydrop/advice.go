// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/earlydrop/earlydrop/loader"
)

// fromLoader marks as bad input what the loader refused before changing anything, and
// adds what to do about it.
func fromLoader(err error) error {
	var refused *loader.RefusedError
	var occupied *loader.OccupiedError
	var mode *loader.XDPModeError
	switch {
	case errors.As(err, &occupied):
		return badInput("%w: %s", err, detachOther(occupied))
	case errors.Is(err, loader.ErrNoAccess) && loader.Preflight() == nil:
		// All that is missing is access to the BPF file system, which is root's.
		return badInput("%w: run as root, or let root prepare the folder for group %d: chgrp %[2]d /sys/fs/bpf && chmod 710 /sys/fs/bpf && install -d -g %[2]d -m 770 /sys/fs/bpf/earlydrop",
			err, os.Getegid())
	case errors.Is(err, loader.ErrNoAccess):
		return badInput("%w: run as root", err)
	case errors.Is(err, loader.ErrNotAttached):
		return badInput("%w%s", err, seenFromHere())
	case errors.Is(err, loader.ErrNoInterface):
		return badInput("%w (ip link shows what there is)", err)
	case errors.Is(err, loader.ErrNoBPFFS):
		return badInput("%w: run as root, or mount it before: mount -t bpf bpf /sys/fs/bpf", err)
	case errors.As(err, &mode) && mode.Mode == loader.XDPNative:
		return badInput("%w (the driver may lack it: use --ingress tcx, or --xdp generic)", err)
	case errors.As(err, &refused):
		return asBadInput(err)
	}
	return err
}

// detachOther tells how an interface gets rid of its XDP program, or of an earlydrop's on TCX. `ip link set dev X xdp
// off` does not do: it fails where the program has a link, and takes away only a native
// one where the driver has that mode.
func detachOther(o *loader.OccupiedError) string {
	var ways []string
	for _, id := range o.Links {
		ways = append(ways, fmt.Sprintf("bpftool link detach id %d", id))
	}
	byLink := strings.Join(ways, " && ")
	off := map[loader.XDPMode]string{loader.XDPNative: "xdpdrv", loader.XDPGeneric: "xdpgeneric"}[o.Mode]
	if off == "" {
		off = "xdpoffload"
	}
	byName := fmt.Sprintf("ip link set dev %s %s off", o.Interface, off)
	switch {
	case o.Own && o.PID != 0:
		return fmt.Sprintf("stop process %d, or: %s", o.PID, byLink)
	case byLink != "":
		return "detach it first: " + byLink
	case o.Program == "":
		// Nothing of it could be read: it may have a link or not.
		return fmt.Sprintf("detach it first, as root: bpftool link list shows its link and bpftool link detach id N detaches it; without a link: %s", byName)
	}
	return "detach it first: " + byName
}

// warnings tell what an operator would not expect of the interface, one line each.
func warnings(iface string, info loader.Info) []string {
	var w []string
	if info.Loopback {
		w = append(w, fmt.Sprintf("%s shows each packet twice, sent and received, so verdicts about it mean nothing; attach to the interface that the traffic comes in or leaves by (ip route get ADDRESS names it)", iface))
	}
	if info.Bridge {
		ports := strings.Join(info.Ports, ", ")
		if ports == "" {
			ports = "none now"
		}
		w = append(w, fmt.Sprintf("%s is a bridge: only what this machine itself sends, receives or routes is seen, not what the bridge forwards; for that, attach to a port of it (%s)", iface, ports))
	}
	if b := info.Bypasses; b.Bond != "" {
		w = append(w, fmt.Sprintf("%s is a port of bond %s, whose other ports carry packets of the same flows: attach to %[2]s", iface, b.Bond))
	}
	for _, ft := range info.Bypasses.Flowtables {
		w = append(w, fmt.Sprintf("nftables' flowtable %q has the hardware forward by itself (flags offload): those packets are neither seen nor dropped", ft))
	}
	if info.Bypasses.TCOffload {
		w = append(w, fmt.Sprintf("%s may run tc filters in hardware, past the programs: ethtool -K %[1]s hw-tc-offload off", iface))
	}
	if r := info.Bypasses.Redirectors; len(r) > 0 {
		w = append(w, fmt.Sprintf("another XDP program is attached to %s: frames that it redirects to %s are neither seen nor dropped on their way out", strings.Join(r, ", "), iface))
	}
	if name := info.Bypasses.InFront; name != "" {
		w = append(w, fmt.Sprintf("another XDP program is attached to %s (%s): what it drops, sends back or redirects is not seen", iface, name))
	}
	if info.PrivatePins {
		w = append(w, "the BPF file system is of this mount namespace alone: status, blocked and detach see nothing from outside, and blocks end with the namespace's last process; "+enterInstead("attach -i "+iface))
	}
	return w
}

// Of so many handshakes of an interface less than two sides have to be seen before
// anything is said of it, and of so large a share of all. A file is all that there is:
// replay says it of the share alone.
const (
	fewHandshakes = 20
	oneWayShare   = 0.05
)

// oneHookProof says what proves a flow under --one-hook.
const oneHookProof = "both directions come through one hook: TCP connections are proven by their numbers alone, UDP flows by nothing"

// sidesAdvice tells what the counters of an interface say about what it can see of
// connections, one line each.
func sidesAdvice(iface string, counters map[string]uint64, oneHook, oneWay bool) []string {
	share := func(n uint64) float64 { return float64(n) / float64(max(1, n+counters["tcp_opened"])) }
	var advice []string
	mirror := counters["packets_egress"] < counters["packets_ingress"]/100
	switch n := counters["one_way"]; {
	case n < fewHandshakes || share(n) <= oneWayShare:
	case mirror && !oneHook:
		advice = append(advice, fmt.Sprintf("nearly nothing leaves by %s, so that connections (%d) seem to have one direction and are not judged; at a mirror port attach with --one-hook", iface, n))
	case !oneWay:
		advice = append(advice, fmt.Sprintf("of %.0f %% of the TCP connections (%d) only one direction passes %s, so they are not judged; where routing is asymmetric, --one-way captures them", 100*share(n), n, iface))
	}
	if n := counters["reflected"]; !oneHook && n >= fewHandshakes && n > counters["tcp_opened"]+counters["udp_opened"] {
		advice = append(advice, fmt.Sprintf("most that begins leaves %s as it came in (%d packets of handshakes and datagrams), so connections can't be proven by the side that they are from; at a one-armed router attach with --one-hook", iface, n))
	}
	// Where TCP has said the same, once is enough.
	if n := counters["udp_unanswered"]; !oneHook && len(advice) == 0 && n >= fewHandshakes && counters["udp_opened"] <= n/100 {
		advice = append(advice, fmt.Sprintf("of %d UDP flows on %s only one side was heard, and of %d both, so nearly none is judged; if this is a mirror port or a one-armed router, attach with --one-hook", n, iface, counters["udp_opened"]))
	}
	return advice
}

// seenFromHere explains, after a message that nothing is there, that another mount
// namespace may see something.
func seenFromHere() string {
	if !loader.PrivatePins() {
		return ""
	}
	return " as seen from this mount namespace, which has a BPF file system of its own or none; " + enterInstead("status")
}

// enterInstead tells how to run earlydrop in this network namespace, but with the BPF
// file system that everybody sees.
func enterInstead(command string) string {
	if name := netnsName(); name != "" {
		return fmt.Sprintf("instead of ip netns exec use: nsenter --net=/run/netns/%s earlydrop %s", name, command)
	}
	return "run it where /sys/fs/bpf is that of process 1 (ip netns exec has one of its own for each call, nsenter --net=FILE does not)"
}

// netnsName returns what ip netns calls the network namespace of this process; empty if
// it has no name.
func netnsName() string {
	own, err := os.Stat("/proc/self/ns/net")
	if err != nil {
		return ""
	}
	files, _ := filepath.Glob("/run/netns/*")
	for _, file := range files {
		if named, err := os.Stat(file); err == nil && os.SameFile(own, named) {
			return filepath.Base(file)
		}
	}
	return ""
}
