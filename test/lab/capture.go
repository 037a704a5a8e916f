// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// Sniffer reads every frame that a device sends or receives, in order. It is
// for one goroutine; Close may be called by another.
type Sniffer struct {
	file *os.File
	buf  []byte
	oob  []byte

	finishing atomic.Bool
}

// Frame is one frame as it is on the wire: VLAN tags that the kernel took off
// are put back. Data may be shorter than Wire and is valid until the next
// call of Read.
type Frame struct {
	Time time.Time
	Data []byte
	Wire int // length on the wire
}

// NewSniffer opens a packet socket on a device of the namespace that keeps
// the first snap bytes of each frame.
func NewSniffer(n *Namespace, dev string, snap int) (*Sniffer, error) {
	s := &Sniffer{buf: make([]byte, snap+4), oob: make([]byte, 256)}
	link, err := n.nl.LinkByName(dev)
	if err != nil {
		return nil, fmt.Errorf("find %s: %w", dev, err)
	}
	err = n.Do(func() error {
		// No protocol until it is bound, so that no frame of another device
		// slips in.
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
		if err != nil {
			return err
		}
		err = errors.Join(
			unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_AUXDATA, 1),
			unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TIMESTAMPNS, 1),
			unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 32<<20),
			unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: htons(unix.ETH_P_ALL), Ifindex: link.Attrs().Index}),
		)
		if err != nil {
			unix.Close(fd)
			return err
		}
		s.file = os.NewFile(uintptr(fd), "sniffer "+dev)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("sniff on %s: %w", dev, err)
	}
	return s, nil
}

func htons(v uint16) uint16 { return v<<8 | v>>8 } // little-endian hosts

// Read waits for the next frame. It returns an error that is os.ErrClosed
// after Close, and after Finish when no frame waits any more.
func (s *Sniffer) Read() (Frame, error) {
	raw, err := s.file.SyscallConn()
	if err != nil {
		return Frame{}, err
	}
	const gap = 4 // room for a tag in front of byte 12
	var n, oobn int
	var rerr error
	receive := func(fd uintptr) (ok bool) {
		n, oobn, _, _, rerr = unix.Recvmsg(int(fd), s.buf[gap:], s.oob, unix.MSG_TRUNC)
		return !errors.Is(rerr, unix.EAGAIN)
	}
	err = raw.Read(receive)
	if err != nil && s.finishing.Load() {
		waits := false
		if err = raw.Control(func(fd uintptr) { waits = receive(fd) }); err == nil && !waits {
			err = os.ErrClosed
		}
	}
	if err != nil { // the poller's own error says only that the file is closing
		return Frame{}, errors.Join(os.ErrClosed, err)
	}
	if rerr != nil {
		return Frame{}, rerr
	}
	f := Frame{Wire: n, Data: s.buf[gap : gap+min(n, len(s.buf)-gap)]}
	msgs, err := unix.ParseSocketControlMessage(s.oob[:oobn])
	if err != nil {
		return Frame{}, fmt.Errorf("control message: %w", err)
	}
	for _, m := range msgs {
		switch {
		case m.Header.Level == unix.SOL_SOCKET && m.Header.Type == unix.SCM_TIMESTAMPNS && len(m.Data) >= 16:
			f.Time = time.Unix(int64(binary.NativeEndian.Uint64(m.Data)), int64(binary.NativeEndian.Uint64(m.Data[8:])))
		case m.Header.Level == unix.SOL_PACKET && m.Header.Type == unix.PACKET_AUXDATA && len(m.Data) >= 20:
			// struct tpacket_auxdata: status, len, snaplen (32 bits each),
			// mac, net, vlan_tci, vlan_tpid (16 bits each).
			if binary.NativeEndian.Uint32(m.Data)&unix.TP_STATUS_VLAN_VALID == 0 || len(f.Data) < 12 {
				continue
			}
			copy(s.buf, s.buf[gap:gap+12])
			binary.BigEndian.PutUint16(s.buf[12:], binary.NativeEndian.Uint16(m.Data[18:]))
			binary.BigEndian.PutUint16(s.buf[14:], binary.NativeEndian.Uint16(m.Data[16:]))
			f.Data = s.buf[:gap+len(f.Data)]
			f.Wire += 4
		}
	}
	if f.Time.IsZero() {
		f.Time = time.Now()
	}
	return f, nil
}

// Finish has Read return the frames that wait to be read, and no more. It may be
// called while Read waits.
func (s *Sniffer) Finish() error {
	s.finishing.Store(true)
	return s.file.SetReadDeadline(time.Unix(1, 0)) // long ago: whoever waits wakes up
}

// Close ends a Read in progress. Frames that wait to be read are lost.
func (s *Sniffer) Close() error { return s.file.Close() }
