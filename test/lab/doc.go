// SPDX-License-Identifier: Apache-2.0

// Package lab builds a small network of real programs in network namespaces:
//
//	client (cl0) ── (gw-c) gateway (gw-s) ── (sv0) server
//
// The gateway forwards IPv4 and IPv6; a data path under test is attached to
// its client side, the device [GatewayClientDev] in [Lab.Gateway]. On the
// server run nginx, ss-server, v2ray, sshd and dnsmasq, on the client their
// clients. The end-to-end tests, the demo and the recorder of training data
// all use it.
//
// A leg is a veth pair, or, when it is to have delay, loss, reordering or a
// rate limit, a pair of TAP devices with a relay of this process between them
// (so no queueing discipline of the kernel is needed). VLAN tags are pushed
// and popped by two tiny programs at TCX, so the 8021q module is not needed.
//
// Everything needs root. Whatever a Lab starts it ends in Close; what a run
// that was killed left behind is removed by [Sweep].
package lab

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// Packages maps each program that the lab runs to the Debian package that
// holds it.
var Packages = map[string]string{
	"ss-server":  "shadowsocks-libev",
	"ss-local":   "shadowsocks-libev",
	"v2ray":      "v2ray",
	"nginx":      "nginx-light",
	"sshd":       "openssh-server",
	"ssh":        "openssh-client",
	"ssh-keygen": "openssh-client",
	"dnsmasq":    "dnsmasq-base",
	"curl":       "curl",
	"openssl":    "openssl",
}

// extra maps further programs to their packages, which a lab does without
// unless it is asked for them.
var extra = map[string]string{
	"danted":       "dante-server",
	"microsocks":   "microsocks",
	"trojan":       "trojan",
	"wireguard-go": "wireguard-go",
}

// DebianPackages returns the names in [Packages], sorted, each once.
func DebianPackages() []string {
	var names []string
	for _, p := range Packages {
		names = append(names, p)
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// Program returns the path of a program, looking into the directories of
// system programs too, which are not on every PATH. The error of a missing
// one names the Debian package to install when [Packages] knows it.
func Program(name string) (string, error) {
	if filepath.IsAbs(name) {
		if _, err := os.Stat(name); err != nil {
			return "", fmt.Errorf("program %s: %w", name, err)
		}
		return name, nil
	}
	if p, err := exec.LookPath(name); err == nil {
		return p, nil
	}
	for _, dir := range []string{"/usr/sbin", "/sbin", "/usr/local/sbin"} {
		p := filepath.Join(dir, name)
		if st, err := os.Stat(p); err == nil && st.Mode().IsRegular() && st.Mode()&0o111 != 0 {
			return p, nil
		}
	}
	for _, packages := range []map[string]string{Packages, extra} {
		if pkg, ok := packages[name]; ok {
			return "", fmt.Errorf("program %q not found: install the Debian package %s", name, pkg)
		}
	}
	if m, ok := Modules[name]; ok {
		return "", fmt.Errorf("program %q not found: build %s@%s (Install does)", name, m.Path, m.Version)
	}
	return "", fmt.Errorf("program %q not found", name)
}

// Missing says what this machine lacks for a lab: "" when nothing, else one
// line that names it.
func Missing() string {
	if os.Geteuid() != 0 {
		return "network namespaces need root"
	}
	var lack []string
	for name, pkg := range Packages {
		if _, err := Program(name); err != nil {
			lack = append(lack, fmt.Sprintf("%s (Debian package %s)", name, pkg))
		}
	}
	if len(lack) > 0 {
		slices.Sort(lack)
		return "missing programs: " + strings.Join(lack, ", ")
	}
	return ""
}
