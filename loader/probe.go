// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"errors"
	"fmt"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/features"
	"golang.org/x/sys/unix"
)

// Preflight checks that this process has the rights and the kernel the features
// that the data path needs. It changes nothing.
func Preflight() error {
	if err := requireCapabilities(); err != nil {
		return err
	}
	return requireFeatures()
}

type capability struct {
	bit  uint
	name string
}

var capabilities = []capability{
	{unix.CAP_NET_ADMIN, "CAP_NET_ADMIN"}, // attach to an interface
	{unix.CAP_BPF, "CAP_BPF"},             // load programs, create maps
	{unix.CAP_PERFMON, "CAP_PERFMON"},     // verifier: pointers in maps, loops
}

// Capabilities returns which of this process's capabilities, as CAP_ numbers, attaching and
// what comes after it take; those that it lacks are left out. Mounting the BPF file system
// takes more ([MountPins]), and so does naming another XDP program that is in the way.
func Capabilities() ([]int, error) {
	effective, err := effectiveCapabilities()
	if err != nil {
		return nil, err
	}
	return capabilitiesOf(effective), nil
}

func capabilitiesOf(effective uint64) (keep []int) {
	for _, c := range capabilities {
		if effective&(1<<c.bit) != 0 {
			keep = append(keep, int(c.bit))
		}
	}
	if len(keep) < len(capabilities) && effective&(1<<unix.CAP_SYS_ADMIN) != 0 {
		keep = append(keep, unix.CAP_SYS_ADMIN) // it stands for those
	}
	return keep
}

// requireCapabilities names the capabilities that are missing. CAP_SYS_ADMIN
// stands for CAP_BPF and CAP_PERFMON, as in the kernel.
func requireCapabilities() error {
	effective, err := effectiveCapabilities()
	if err != nil {
		return err
	}
	if missing := missingCapabilities(effective); len(missing) > 0 {
		return noAccess(unix.EPERM, "missing %s", strings.Join(missing, ", "))
	}
	return nil
}

func missingCapabilities(effective uint64) []string {
	has := func(bit uint) bool { return effective&(1<<bit) != 0 }
	var missing []string
	for _, c := range capabilities {
		if !has(c.bit) && (c.bit == unix.CAP_NET_ADMIN || !has(unix.CAP_SYS_ADMIN)) {
			missing = append(missing, c.name)
		}
	}
	return missing
}

func effectiveCapabilities() (uint64, error) {
	var sets [2]unix.CapUserData // of 32 capabilities each
	if err := unix.Capget(&unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}, &sets[0]); err != nil {
		return 0, fmt.Errorf("read own capabilities: %w", err)
	}
	return uint64(sets[1].Effective)<<32 | uint64(sets[0].Effective), nil
}

// A feature is something that the programs can't do without.
type feature struct {
	what  string
	since string // first kernel that has it
	have  func() error
}

func helper(t ebpf.ProgramType, fn asm.BuiltinFunc) func() error {
	return func() error { return features.HaveProgramHelper(t, fn) }
}

var requiredFeatures = []feature{
	{"the BPF ring buffer", "5.8", func() error { return features.HaveMapType(ebpf.RingBuf) }},
	{"atomic BPF instructions (v3)", "5.12", features.HaveV3ISA},
	{"bpf_for_each_map_elem", "5.13", helper(ebpf.SchedCLS, asm.FnForEachMapElem)},
	{"bpf_loop", "5.17", helper(ebpf.XDP, asm.FnLoop)},
	{"bpf_xdp_load_bytes and multi-buffer XDP", "5.18", helper(ebpf.XDP, asm.FnXdpLoadBytes)},
}

func requireFeatures() error { return checkFeatures(requiredFeatures) }

func checkFeatures(list []feature) error {
	for _, f := range list {
		// Only "not supported" is conclusive; anything else shows at load.
		if err := f.have(); errors.Is(err, ebpf.ErrNotSupported) {
			return refused(err, "this kernel lacks %s (since %s): earlydrop needs Linux 5.18 or newer", f.what, f.since)
		}
	}
	return nil
}

// loadError keeps the end of the verifier's log, where the reason is.
func loadError(err error) error {
	var ve *ebpf.VerifierError
	if errors.As(err, &ve) {
		return fmt.Errorf("the kernel refused a program: %w: %+.20v", err, ve)
	}
	return fmt.Errorf("load the data path: %w", err)
}
