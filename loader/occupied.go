// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
)

// An OccupiedError says that an interface has an XDP program which is not that of the
// data path pinned here, or an earlydrop's on TCX ingress. The kernel takes one XDP program only.
type OccupiedError struct {
	Interface string
	Program   string // its name; empty if it can't be read, which takes CAP_SYS_ADMIN
	ID        uint32 // of the program
	// Mode is how it is attached: native, generic, none if it is no XDP program, or empty for
	// one in the NIC.
	Mode XDPMode
	// Own says that it is an earlydrop's, whose pins are in another BPF file system than
	// the one that this process sees, or were removed.
	Own bool
	// Links are the ids of the links to take away: of that program, and of an own
	// program on egress. Empty where there is none, or where they can't be read.
	Links []uint32
	// PID is of a process that holds the own program's link; 0 if none was found.
	PID int
}

// Error returns one lower-case line without what to do about it.
func (e *OccupiedError) Error() string {
	if e.Own {
		return fmt.Sprintf("earlydrop is attached to %s from elsewhere, another mount namespace or with its pins removed (program %s, id %d)", e.Interface, e.Program, e.ID)
	}
	name := e.Program
	if name == "" {
		name = "unknown"
	}
	return fmt.Sprintf("another XDP program is attached to %s: %s, id %d", e.Interface, name, e.ID)
}

// occupied describes the XDP program on the interface, or that of an earlydrop on TCX ingress;
// nil if there is none. What this process has no right to read is left out.
func (i *iface) occupied() *OccupiedError {
	if !hasXDP(i.link) {
		return i.ownOnTCX()
	}
	xdp := i.link.Attrs().Xdp
	e := &OccupiedError{Interface: i.name, ID: xdp.ProgId}
	switch xdp.AttachMode {
	case xdpAttachedDRV:
		e.Mode = XDPNative
	case xdpAttachedSKB:
		e.Mode = XDPGeneric
	}
	e.Program = programName(ebpf.ProgramID(xdp.ProgId))
	e.Own = e.Program == datapathProgEdIngress
	links := linksOf(ebpf.ProgramID(xdp.ProgId), i.index())
	e.Links = append(e.Links, links...)
	if !e.Own {
		return e
	}
	for _, p := range i.onTCX(ebpf.AttachTCXEgress, datapathProgEdEgress) {
		if id, ok := p.LinkID(); ok {
			e.Links = append(e.Links, uint32(id))
		}
	}
	e.PID = holderOf(links)
	return e
}

// onTCX returns the programs of a name that are attached there.
func (i *iface) onTCX(at ebpf.AttachType, name string) (list []link.AttachedProgram) {
	res, err := link.QueryPrograms(link.QueryOptions{Target: i.index(), Attach: at})
	if err != nil {
		return nil
	}
	return slices.DeleteFunc(res.Programs, func(p link.AttachedProgram) bool { return programName(p.ID) != name })
}

// ownOnTCX describes an earlydrop's program on TCX ingress; nil if there is none.
func (i *iface) ownOnTCX() *OccupiedError {
	own := i.onTCX(ebpf.AttachTCXIngress, datapathProgEdTcxIngress)
	if len(own) == 0 {
		return nil
	}
	e := &OccupiedError{Interface: i.name, Program: datapathProgEdTcxIngress, ID: uint32(own[0].ID), Mode: XDPNone, Own: true}
	for _, p := range append(own, i.onTCX(ebpf.AttachTCXEgress, datapathProgEdEgress)...) {
		if id, ok := p.LinkID(); ok {
			e.Links = append(e.Links, uint32(id))
		}
	}
	e.PID = holderOf(e.Links)
	return e
}

// programName returns the name of a loaded program, or nothing without the rights.
func programName(id ebpf.ProgramID) string {
	info, err := programInfo(id)
	if err != nil {
		return ""
	}
	return info.Name
}

// programInfo describes a loaded program.
func programInfo(id ebpf.ProgramID) (*ebpf.ProgramInfo, error) {
	p, err := ebpf.NewProgramFromID(id)
	if err != nil {
		return nil, err
	}
	defer p.Close()
	return p.Info()
}

// linksOf returns the ids of the links by which a program is attached to an interface of
// that index, none without the rights.
func linksOf(id ebpf.ProgramID, index int) (ids []uint32) {
	it := new(link.Iterator)
	defer it.Close()
	for it.Next() {
		if info, err := it.Link.Info(); err == nil && info.Program == id && ifindexOf(info) == uint32(index) {
			ids = append(ids, uint32(it.ID))
		}
	}
	return ids
}

// holderOf returns a process other than this one that has one of the links open, or 0.
func holderOf(links []uint32) int {
	entries, err := os.ReadDir("/proc")
	if err != nil || len(links) == 0 {
		return 0
	}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		found, _ := fdinfoHas(pid, func(line string) bool {
			rest, ok := strings.CutPrefix(line, "link_id:")
			id, err := strconv.ParseUint(strings.TrimSpace(rest), 10, 32)
			return ok && err == nil && slices.Contains(links, uint32(id))
		})
		if found {
			return pid
		}
	}
	return 0
}
