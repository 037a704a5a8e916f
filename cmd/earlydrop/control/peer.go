// SPDX-License-Identifier: Apache-2.0

package control

import (
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"unsafe"

	"golang.org/x/sys/unix"
)

// peer is who has connected, as the kernel knows it from the time of the connect.
type peer struct {
	uid, gid uint32
	pid      int32 // 0: of a PID namespace that can't be seen from here
	groups   []uint32
	tooMany  bool // it has more connections than it may
}

// peerOf asks the kernel.
func peerOf(c *net.UnixConn) (p peer, err error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return peer{}, err
	}
	var ctlErr error
	err = raw.Control(func(fd uintptr) {
		var cred *unix.Ucred
		if cred, ctlErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED); ctlErr != nil {
			ctlErr = os.NewSyscallError("getsockopt SO_PEERCRED", ctlErr)
			return
		}
		p.uid, p.gid, p.pid = cred.Uid, cred.Gid, cred.Pid
		p.groups, ctlErr = peerGroups(int(fd))
	})
	return p, errors.Join(err, ctlErr)
}

// peerGroups returns the peer's supplementary groups, which SO_PEERCRED leaves out.
func peerGroups(fd int) ([]uint32, error) {
	groups := make([]uint32, 32)
	for {
		size := uint32(len(groups)) * 4
		_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), unix.SOL_SOCKET, unix.SO_PEERGROUPS,
			uintptr(unsafe.Pointer(unsafe.SliceData(groups))), uintptr(unsafe.Pointer(&size)), 0)
		switch errno {
		case 0:
			return groups[:size/4], nil
		case unix.ERANGE: // size is what they take
			groups = make([]uint32, max(int(size/4), 2*len(groups)))
		case unix.ENODATA: // it had none to tell
			return nil, nil
		default:
			return nil, os.NewSyscallError("getsockopt SO_PEERGROUPS", errno)
		}
	}
}

// right is what a request needs. Each includes those before it.
type right int

const (
	rightEdit right = iota // to read, and to edit blocks: the group's members
	rightRoot              // to change the policy, the mode, the model
)

// refuse returns an error where the peer has not the right.
func (p *peer) refuse(r right, gid int) *Error {
	member := gid >= 0 && (int64(p.gid) == int64(gid) || slices.Contains(p.groups, uint32(gid)))
	switch {
	case p.uid == 0 || r == rightEdit && member:
		return nil
	case r == rightRoot:
		return &Error{403, fmt.Sprintf("uid %d may not do this: it takes root (uid 0)", p.uid)}
	case gid < 0:
		return &Error{403, fmt.Sprintf("uid %d may not do this: it takes root (uid 0)", p.uid)}
	}
	return &Error{403, fmt.Sprintf("uid %d may not do this: it takes root (uid 0), or a member of the socket's group (gid %d)", p.uid, gid)}
}
