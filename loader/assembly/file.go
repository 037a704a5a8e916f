// SPDX-License-Identifier: Apache-2.0

package assembly

import (
	"bufio"
	"compress/gzip"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"github.com/gopacket/gopacket/pcapgo"
)

// Errors that errors.Is finds in what Open and File.Next return.
var (
	// ErrNotCapture means that the file is no pcap and no pcapng file.
	ErrNotCapture = errors.New("not a pcap or pcapng file")
	// ErrLinkType means that packets of the file begin with a header that
	// this package can't read.
	ErrLinkType = errors.New("unsupported link type")
	// ErrTruncated means that the file ends in the middle of a record. All
	// packets before it were delivered.
	ErrTruncated = errors.New("file is cut off in the middle of a record")
	// ErrDamaged means that a record makes no sense. All packets before it
	// were delivered; what follows can't be found.
	ErrDamaged = errors.New("file is damaged")
)

// FileError is the error of a capture file. Err is or wraps one of the errors
// above, or is what the operating system said.
type FileError struct {
	Path string
	// Packets and Offset tell where reading stopped: the number of packets
	// delivered, and the position in bytes (after decompression).
	Packets uint64
	Offset  int64
	Err     error
}

// Error names the file, the cause and, for errors in its middle, the place.
func (e *FileError) Error() string {
	if e.Packets == 0 && e.Offset == 0 {
		return fmt.Sprintf("%s: %v", e.Path, e.Err)
	}
	return fmt.Sprintf("%s: %v (after %d packets, at byte %d)", e.Path, e.Err, e.Packets, e.Offset)
}

// Unwrap returns Err.
func (e *FileError) Unwrap() error { return e.Err }

// File reads one capture file, pcap (microseconds or nanoseconds, either byte
// order) or pcapng, plain or compressed with gzip. It is not safe for
// concurrent use.
type File struct {
	path    string
	file    *os.File
	raw     *countingReader // as on disk
	counted *countingReader // after decompression
	buf     *bufio.Reader
	next    func() ([]byte, gopacket.CaptureInfo, error)
	// link returns the link type of the packet that next just returned.
	link    func(*gopacket.CaptureInfo) LinkType
	last    LinkType
	pcapng  bool
	frame   []byte
	packets uint64
	err     error
}

// countingReader counts the bytes that were read through it.
type countingReader struct {
	r io.Reader
	n int64
}

func (c *countingReader) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n += int64(n)
	return n, err
}

const (
	magicGzip   = "\x1f\x8b"
	magicPcapng = "\x0a\x0d\x0d\x0a"
)

// The four magic numbers of pcap files as their first bytes.
var magicsPcap = map[string]bool{
	"\xd4\xc3\xb2\xa1": true, "\xa1\xb2\xc3\xd4": true, // microseconds
	"\x4d\x3c\xb2\xa1": true, "\xa1\xb2\x3c\x4d": true, // nanoseconds
}

// Open opens a capture file. Its errors are *FileError.
func Open(path string) (*File, error) {
	file, err := os.Open(path)
	if err != nil {
		var pe *os.PathError // its text would name the path twice
		if errors.As(err, &pe) {
			err = pe.Err
		}
		return nil, &FileError{Path: path, Err: err}
	}
	f := &File{path: path, file: file}
	if err := f.open(); err != nil {
		file.Close()
		return nil, &FileError{Path: path, Err: err}
	}
	return f, nil
}

func (f *File) open() error {
	info, err := f.file.Stat()
	if err != nil {
		return err
	}
	if info.IsDir() {
		return errors.New("is a folder, not a capture file")
	}
	f.raw = &countingReader{r: f.file}
	f.counted = f.raw
	f.buf = bufio.NewReaderSize(f.raw, 1<<16)
	if magic, _ := f.buf.Peek(len(magicGzip)); string(magic) == magicGzip {
		zip, err := gzip.NewReader(f.buf)
		if err != nil {
			return fmt.Errorf("%w: %w", ErrNotCapture, err)
		}
		f.counted = &countingReader{r: zip}
		f.buf = bufio.NewReaderSize(f.counted, 1<<16)
	}
	magic, err := f.buf.Peek(4)
	switch {
	case err != nil && err != io.EOF && err != io.ErrUnexpectedEOF:
		return fmt.Errorf("%w: %w", ErrNotCapture, err)
	case len(magic) == 0:
		return fmt.Errorf("%w: it is empty", ErrNotCapture)
	case string(magic) == magicPcapng:
		return f.openPcapng()
	case magicsPcap[string(magic)]:
		return f.openPcap()
	}
	return ErrNotCapture
}

func (f *File) openPcap() error {
	r, err := pcapgo.NewReader(f.buf)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrNotCapture, headerError(err))
	}
	link := LinkType(r.LinkType())
	if !link.Supported() {
		return fmt.Errorf("%w %d", ErrLinkType, link)
	}
	f.next = r.ZeroCopyReadPacketData
	f.link = func(*gopacket.CaptureInfo) LinkType { return link }
	return nil
}

func (f *File) openPcapng() error {
	r, err := pcapgo.NewNgReader(f.buf, pcapgo.NgReaderOptions{WantMixedLinkType: true, SkipUnknownVersion: true})
	if err != nil {
		return fmt.Errorf("%w: %w", ErrNotCapture, headerError(err))
	}
	f.pcapng = true
	f.next = r.ZeroCopyReadPacketData
	f.link = func(ci *gopacket.CaptureInfo) LinkType {
		link, _ := ci.AncillaryData[0].(layers.LinkType)
		return LinkType(link)
	}
	return nil
}

func headerError(err error) error {
	if err == io.EOF || err == io.ErrUnexpectedEOF {
		return errors.New("its file header is cut off")
	}
	return err
}

// Next returns the next packet as a frame that begins with an Ethernet
// header, and its length on the wire. frame is valid until the next call. The
// end of the file is io.EOF; every other error is a *FileError, is final, and
// comes after all the packets that could be read.
func (f *File) Next() (ts time.Time, frame []byte, wireLen int, err error) {
	if f.err != nil {
		return time.Time{}, nil, 0, f.err
	}
	start := f.offset()
	data, ci, err := f.next()
	if err == nil {
		link := f.link(&ci)
		frame, wireLen, err = link.normalise(f.frame, data, ci.Length)
		if err == nil {
			if link != LinkEthernet {
				f.frame = frame // else it is the reader's memory
			}
			f.last = link
			f.packets++
			return ci.Timestamp, frame, wireLen, nil
		}
	} else {
		err = f.classify(err, start)
	}
	if err != io.EOF {
		err = &FileError{Path: f.path, Packets: f.packets, Offset: start, Err: err}
	}
	f.err = err
	return time.Time{}, nil, 0, err
}

// Link returns the link type of the packet that Next returned last.
func (f *File) Link() LinkType { return f.last }

// classify tells a clean end of the file (io.EOF) from a cut or damaged one.
// start is where the record began.
func (f *File) classify(err error, start int64) error {
	var pathErr *os.PathError
	switch {
	case err == io.EOF && (f.pcapng || f.offset() == start):
		// pcap's reader says the same where a file ends between the header
		// and the bytes of a record; pcapng's does not.
		return io.EOF
	case err == io.EOF || errors.Is(err, io.ErrUnexpectedEOF):
		return ErrTruncated
	case errors.As(err, &pathErr):
		return pathErr.Err
	}
	return fmt.Errorf("%w: %w", ErrDamaged, err)
}

// offset is the position of the next byte that the format's reader takes.
func (f *File) offset() int64 { return f.counted.n - int64(f.buf.Buffered()) }

// Size returns the file's size and Pos how much of it was read, in bytes on
// disk. Both are for showing progress.
func (f *File) Size() int64 {
	info, err := f.file.Stat()
	if err != nil {
		return 0
	}
	return info.Size()
}

// Pos is explained at Size.
func (f *File) Pos() int64 { return f.raw.n }

// Close closes the file.
func (f *File) Close() error { return f.file.Close() }

// Run reads the whole file into a and flushes it. What was read before an
// error is delivered all the same. progress (optional) is called now and then
// with the file's position. An error of the Assembler's temporary file takes the
// place of one of the capture file.
func (f *File) Run(a *Assembler, progress func(pos int64)) (err error) {
	defer func() {
		if flushErr := a.Flush(); flushErr != nil {
			err = flushErr
		}
	}()
	for n := 1; ; n++ {
		ts, frame, wireLen, err := f.Next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		a.Packet(ts, frame, wireLen)
		if a.Err() != nil {
			return nil // Flush returns it
		}
		if n%64 == 0 && progress != nil {
			progress(f.Pos())
		}
	}
}

// LinkType says what the packets of a capture begin with, in the numbers of
// pcap files.
type LinkType uint16

// Supported link types.
const (
	LinkNull     LinkType = 0   // BSD loopback, family in the host's byte order
	LinkEthernet LinkType = 1   // Ethernet
	LinkRaw12    LinkType = 12  // raw IP, as most systems write it
	LinkRaw14    LinkType = 14  // raw IP, as OpenBSD writes it
	LinkRaw      LinkType = 101 // raw IP
	LinkLoop     LinkType = 108 // BSD loopback, family in network byte order
	LinkSLL      LinkType = 113 // Linux cooked, version 1
	LinkIPv4     LinkType = 228 // raw IPv4
	LinkIPv6     LinkType = 229 // raw IPv6
	LinkSLL2     LinkType = 276 // Linux cooked, version 2
)

// Header lengths of the link types that have one.
const (
	nullHeader = 4
	sllHeader  = 16
	sll2Header = 20
)

// Supported reports whether packets of this link type can be read.
func (l LinkType) Supported() bool {
	switch l {
	case LinkNull, LinkEthernet, LinkRaw12, LinkRaw14, LinkRaw, LinkLoop, LinkSLL, LinkIPv4, LinkIPv6, LinkSLL2:
		return true
	}
	return false
}

// String returns the link type's name.
func (l LinkType) String() string {
	switch l {
	case LinkEthernet:
		return "ethernet"
	case LinkRaw12, LinkRaw14, LinkRaw, LinkIPv4, LinkIPv6:
		return "raw-ip"
	case LinkNull, LinkLoop:
		return "bsd-loopback"
	case LinkSLL:
		return "linux-cooked"
	case LinkSLL2:
		return "linux-cooked-v2"
	}
	return fmt.Sprintf("link-%d", uint16(l))
}

// normalise returns the packet as a frame with an Ethernet header, in buf's
// memory where it has to build one, and its length on the wire. In place of
// another link's header stands one with zero addresses and the packet's
// EtherType, 0 where there is none. A VLAN tag that follows a cooked header
// thereby stays where Ethernet has it.
func (l LinkType) normalise(buf, data []byte, wireLen int) ([]byte, int, error) {
	wireLen = max(wireLen, len(data))
	var etherType uint16
	var header int
	switch l {
	case LinkEthernet:
		return data, wireLen, nil
	case LinkRaw12, LinkRaw14, LinkRaw:
		etherType = versionType(data)
	case LinkIPv4:
		etherType = etherIPv4
	case LinkIPv6:
		etherType = etherIPv6
	case LinkNull, LinkLoop:
		header = nullHeader
		if len(data) >= header {
			etherType = familyType(binary.BigEndian.Uint32(data))
		}
	case LinkSLL:
		header = sllHeader
		if len(data) >= header {
			etherType = cookedType(binary.BigEndian.Uint16(data[2:]), binary.BigEndian.Uint16(data[14:]))
		}
	case LinkSLL2:
		header = sll2Header
		if len(data) >= header {
			etherType = cookedType(binary.BigEndian.Uint16(data[8:]), binary.BigEndian.Uint16(data))
		}
	default:
		return nil, 0, fmt.Errorf("%w %d", ErrLinkType, l)
	}
	if len(data) < header {
		// Too short to say what it is: as short for the parser.
		return buf[:0], 0, nil
	}
	buf = append(buf[:0], make([]byte, ethHeader)...)
	binary.BigEndian.PutUint16(buf[12:], etherType)
	return append(buf, data[header:]...), wireLen - header + ethHeader, nil
}

// versionType returns the EtherType of a raw IP packet.
func versionType(data []byte) uint16 {
	if len(data) > 0 {
		switch data[0] >> 4 {
		case 4:
			return etherIPv4
		case 6:
			return etherIPv6
		}
	}
	return 0
}

// familyType returns the EtherType of a BSD address family. Link type 0 has it
// in the byte order of the machine that captured, which need not be that of
// the file; families are small numbers, so that tells.
func familyType(family uint32) uint16 {
	if family > 0xffff {
		family = family>>24 | family>>8&0xff00 | family<<8&0xff0000 | family<<24
	}
	switch family {
	case 2: // AF_INET everywhere
		return etherIPv4
	case 10, 24, 28, 30: // AF_INET6 of Linux, NetBSD and OpenBSD, FreeBSD, macOS
		return etherIPv6
	}
	return 0
}

// cookedType returns the EtherType of a cooked packet. For some kinds of
// device the protocol field holds another kind of number.
func cookedType(device, protocol uint16) uint16 {
	switch device {
	case 770, 778, 803, 824: // frame relay, GRE, 802.11 radiotap, netlink
		return 0
	}
	return protocol
}
