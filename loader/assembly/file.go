// SPDX-License-Identifier: Apache-2.0

package assembly

import (
	"bufio"
	"compress/flate"
	"compress/gzip"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"time"

	"github.com/earlydrop/earlydrop/loader/flow"
)

// Errors that errors.Is finds in what Open, Read and File.Next return.
var (
	// ErrNotCapture means that the file is no pcap and no pcapng file.
	ErrNotCapture = errors.New("not a pcap or pcapng file")
	// ErrEmpty means that the file ends before its first record could begin: it has
	// no byte, or not all of its header, as when it was opened to be written a moment
	// ago. errors.Is finds ErrNotCapture as well.
	ErrEmpty = errors.New("file is empty")
	// ErrLinkType means that packets of the file were skipped, as they begin
	// with a header that this package can't read.
	ErrLinkType = errors.New("unsupported link type")
	// ErrInterface means that packets of a pcapng file were skipped, as
	// nothing usable is known about the interface that they are from.
	ErrInterface = errors.New("unusable interface")
	// ErrTruncated means that the file ends in the middle of a record. All
	// packets before it were delivered.
	ErrTruncated = errors.New("file is cut off in the middle of a record")
	// ErrDamaged means that a record makes no sense. All packets before it
	// were delivered; what follows can't be found.
	ErrDamaged = errors.New("file is damaged")
)

// FileError is the error of a capture file. Err is or wraps one of the errors
// above, or is what the operating system or the reader given to Read said. Where
// packets were skipped, it is or wraps a *SkippedError.
type FileError struct {
	Path string
	// Packets is the number of packets delivered. Offset tells where reading
	// stopped, in bytes (after decompression); it is 0 where the file could not
	// be opened, or was read to its end.
	Packets uint64
	Offset  int64
	Err     error
}

// Error names the file, the cause and, for errors in its middle, the place.
func (e *FileError) Error() string {
	if e.Offset == 0 {
		return fmt.Sprintf("%s: %v", e.Path, e.Err)
	}
	return fmt.Sprintf("%s: %v (after %d packets, at byte %d)", e.Path, e.Err, e.Packets, e.Offset)
}

// Unwrap returns Err.
func (e *FileError) Unwrap() error { return e.Err }

// File reads one capture file, pcap (microseconds or nanoseconds, either byte
// order, also as modified by Kuznetzov) or pcapng, plain or compressed with
// gzip. It reads forwards only, so that the file may be a pipe, and holds little
// in memory whatever the file says. It is not safe for concurrent use.
type File struct {
	// Source is what the samples of its flows are told to be from. Open and Read set
	// it to the file's name.
	Source flow.Source

	path    string
	file    *os.File        // nil if the caller has it
	raw     *countingReader // as on disk
	counted *countingReader // after decompression
	buf     *bufio.Reader
	long    []byte // holds a record that is longer than buf
	records records
	frame   []byte       // memory of normalise
	first   *firstPacket // that FirstTime read ahead
	packets uint64
	skipped SkippedError
	sides   sides
	side    Side  // of the packet that Next returned last
	kept    *kept // the section is a capture as it was handed over; else nil
	err     error
}

// records reads the records of one file format.
type records interface {
	// next reads one packet. Its bytes are valid until the next call. The error
	// of a clean end is io.EOF, that of a cut one io.ErrUnexpectedEOF; others
	// tell what is wrong with the record, or could not be read.
	next(r *record) error
}

// record is a packet as the file has it.
type record struct {
	time time.Time
	link LinkType
	// order is the byte order of the machine that captured, which some link
	// headers have.
	order binary.ByteOrder
	// data holds what was captured, at most keptBytes of it. captured is its
	// length in the file, original what the file says of its length on the wire.
	data               []byte
	captured, original uint32
	from               source
	skip               error // why it can't be read, or nil
	// side is the side of the interface that it came from, and device that
	// interface's number, 0 where only from tells.
	side   Side
	device uint32
}

// firstPacket is a packet that was read before Next asked for it.
type firstPacket struct {
	ts      time.Time
	frame   []byte
	wireLen int
	side    Side
}

// Bounds of what a file may have in memory at a time.
const (
	bufferBytes = 1 << 16
	// keptBytes is how much of a longer record is kept: a radio header of 64 KiB
	// and a whole packet after it. Captures take 1024 bytes of it.
	keptBytes = 1 << 17
	// maxWireLen bounds lengths on the wire, which files are free to invent.
	maxWireLen = math.MaxInt32
)

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

// otherCompressions are what else captures are compressed with.
var otherCompressions = []struct{ magic, name string }{
	{"\x28\xb5\x2f\xfd", "zstd"}, {"\xfd7zXZ", "xz"}, {"BZh", "bzip2"}, {"\x04\x22\x4d\x18", "lz4"},
}

// Open opens a capture file. Its errors are *FileError.
func Open(path string) (*File, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, &FileError{Path: path, Err: pathless(err)}
	}
	f, err := Read(path, file)
	if err != nil {
		file.Close()
		return nil, err
	}
	f.file = file
	return f, nil
}

// Read reads a capture from r, which may be a pipe: packets are returned as soon
// as they have come. The name is for errors, which are *FileError, and for samples. Close does not
// close r.
func Read(name string, r io.Reader) (*File, error) {
	f := &File{Source: flow.Source{File: name}, path: name}
	if err := f.open(r); err != nil {
		return nil, &FileError{Path: name, Err: pathless(err)}
	}
	return f, nil
}

// emptyError says in which way a file is empty.
type emptyError string

func (e emptyError) Error() string { return string(e) }
func (e emptyError) Unwrap() error { return ErrEmpty }

// pathless returns the cause of an error of the operating system, whose text
// would name the path twice.
func pathless(err error) error {
	var pe *os.PathError
	if errors.As(err, &pe) {
		return pe.Err
	}
	return err
}

func (f *File) open(r io.Reader) error {
	if file, ok := r.(*os.File); ok {
		if info, err := file.Stat(); err == nil && info.IsDir() {
			return errors.New("is a folder, not a capture file")
		}
	}
	f.raw = &countingReader{r: r}
	f.counted = f.raw
	f.buf = bufio.NewReaderSize(f.raw, bufferBytes)
	magic, err := f.buf.Peek(len(magicGzip))
	if err != nil && err != io.EOF {
		return err
	}
	if string(magic) == magicGzip {
		zip, err := gzip.NewReader(f.buf)
		if err == io.EOF || err == io.ErrUnexpectedEOF {
			return fmt.Errorf("%w: %w", ErrNotCapture, emptyError("its gzip header is cut off"))
		}
		if err != nil {
			return fmt.Errorf("%w: it begins as gzip does, but: %w", ErrNotCapture, err)
		}
		f.counted = &countingReader{r: zip}
		f.buf = bufio.NewReaderSize(f.counted, bufferBytes)
	}
	magic, err = f.buf.Peek(4)
	if err != nil && err != io.EOF && err != io.ErrUnexpectedEOF {
		return fmt.Errorf("%w: %w", ErrNotCapture, err)
	}
	if len(magic) == 0 {
		return fmt.Errorf("%w: %w", ErrNotCapture, emptyError("it is empty"))
	}
	if string(magic) == magicPcapng {
		f.records, err = newPcapng(f)
	} else if order, kind := pcapMagic(magic); kind != nil {
		f.records, err = newPcap(f, order, kind)
	} else {
		begin, _ := f.buf.Peek(5)
		for _, c := range otherCompressions {
			if len(begin) >= len(c.magic) && string(begin[:len(c.magic)]) == c.magic {
				return fmt.Errorf("%w: it is compressed with %s, but only gzip can be read", ErrNotCapture, c.name)
			}
		}
		return ErrNotCapture
	}
	switch {
	case err == io.EOF || err == io.ErrUnexpectedEOF:
		return fmt.Errorf("%w: %w", ErrNotCapture, emptyError("its file header is cut off"))
	case err != nil:
		return fmt.Errorf("%w: %w", ErrNotCapture, err)
	}
	return nil
}

// take returns the next n bytes, at most bufferBytes, which are valid until the
// next call. The error is io.EOF where there are none, io.ErrUnexpectedEOF where
// there are fewer.
func (f *File) take(n int) ([]byte, error) {
	b, err := f.buf.Peek(n)
	switch {
	case err == io.EOF && len(b) > 0:
		return nil, io.ErrUnexpectedEOF
	case err != nil:
		return nil, err
	}
	_, err = f.buf.Discard(n)
	return b, err
}

// takeBody returns the next n bytes and the tail bytes after them. Of a body that
// does not fit into the buffer it returns the beginning, at most keptBytes. All are
// valid until the next call.
func (f *File) takeBody(n int64, tail int) (body, trailer []byte, err error) {
	if n+int64(tail) <= bufferBytes {
		b, err := f.take(int(n) + tail)
		if err != nil {
			return nil, nil, noEOF(err)
		}
		return b[:n], b[n:], nil
	}
	if f.long == nil {
		f.long = make([]byte, keptBytes)
	}
	kept := min(n, keptBytes)
	if _, err := io.ReadFull(f.buf, f.long[:kept]); err != nil {
		return nil, nil, noEOF(err)
	}
	if err := f.discard(n - kept); err != nil {
		return nil, nil, err
	}
	if trailer, err = f.take(tail); err != nil {
		return nil, nil, noEOF(err)
	}
	return f.long[:kept], trailer, nil
}

// discard reads n bytes over.
func (f *File) discard(n int64) error {
	for n > 0 {
		m, err := f.buf.Discard(int(min(n, 1<<30)))
		if err != nil {
			return noEOF(err)
		}
		n -= int64(m)
	}
	return nil
}

// noEOF returns the error of a file that must not end here.
func noEOF(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}

// Next returns the next packet as a frame that begins with an Ethernet
// header, and its length on the wire. frame is valid until the next call. The
// end of the file is io.EOF; every other error is a *FileError, is final, and
// comes after all the packets that could be read.
//
// Packets that can't be read, as their link type or interface can't, are skipped.
// A file with such packets ends with a *FileError that wraps a *SkippedError.
func (f *File) Next() (ts time.Time, frame []byte, wireLen int, err error) {
	if f.first != nil {
		first := f.first
		f.first, f.side = nil, first.side
		return first.ts, first.frame, first.wireLen, nil
	}
	if f.err != nil {
		return time.Time{}, nil, 0, f.err
	}
	var r record
	for {
		start := f.offset()
		r = record{}
		if err = f.records.next(&r); err != nil {
			f.err = f.ended(err, start)
			return time.Time{}, nil, 0, f.err
		}
		if r.skip == nil {
			if frame, wireLen, r.skip = r.normalise(&f.frame); r.skip == nil {
				break
			}
		}
		f.skipped.add(&r)
	}
	f.packets++
	f.side = f.sides.of(&r)
	return r.time, frame, wireLen, nil
}

// Side returns from which side of the interface the packet came that Next returned
// last, SideUnknown where the file does not say it.
func (f *File) Side() Side { return f.side }

// FirstTime returns the time of the first packet, which Next returns all the
// same. It has to be called before Next. Its errors are those of Next.
func (f *File) FirstTime() (time.Time, error) {
	if f.first == nil {
		ts, frame, wireLen, err := f.Next()
		if err != nil {
			return time.Time{}, err
		}
		f.first = &firstPacket{ts, append([]byte(nil), frame...), wireLen, f.side}
	}
	return f.first.ts, nil
}

// ended tells a clean end of the file (io.EOF) from others. start is where the
// record began that could not be read.
func (f *File) ended(err error, start int64) error {
	var system *os.PathError
	var corrupt flate.CorruptInputError
	switch {
	case err == io.EOF && f.skipped.Packets == 0:
		return io.EOF
	case err == io.EOF:
		return &FileError{Path: f.path, Packets: f.packets, Err: &f.skipped}
	case err == io.ErrUnexpectedEOF:
		err = ErrTruncated
	case errors.As(err, &system):
		err = system.Err
	case errors.Is(err, gzip.ErrChecksum) || errors.Is(err, gzip.ErrHeader) || errors.As(err, &corrupt):
		err = fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	if f.skipped.Packets > 0 {
		err = fmt.Errorf("%w; %w", &f.skipped, err)
	}
	return &FileError{Path: f.path, Packets: f.packets, Offset: start, Err: err}
}

// offset is the position of the next byte that the format's reader takes.
func (f *File) offset() int64 { return f.counted.n - int64(f.buf.Buffered()) }

// Size returns the file's size and Pos how much of it was read, in bytes on
// disk. Both are for showing progress. The size of a pipe, and of what Read
// reads, is 0.
func (f *File) Size() int64 {
	if f.file == nil {
		return 0
	}
	info, err := f.file.Stat()
	if err != nil || !info.Mode().IsRegular() {
		return 0
	}
	return info.Size()
}

// Pos is explained at Size.
func (f *File) Pos() int64 { return f.raw.n }

// Close closes the file that Open opened.
func (f *File) Close() error {
	if f.file == nil {
		return nil
	}
	return f.file.Close()
}

// Run reads the whole file into a and flushes it. What was read before an
// error is delivered all the same. progress (optional) is called now and then
// with the file's position. An error of the Assembler's temporary file takes the
// place of one of the capture file.
func (f *File) Run(a *Assembler, progress func(pos int64)) error {
	err := f.Feed(a, progress)
	if flushErr := a.Flush(); flushErr != nil {
		return flushErr
	}
	return err
}

// Feed is Run without the flush, for a capture that goes on in another file. It ends
// with Assembler.Err when there is one, which Flush then returns as well.
func (f *File) Feed(a *Assembler, progress func(pos int64)) error {
	a.From(f.Source)
	for n := 1; ; n++ {
		ts, frame, wireLen, err := f.Next()
		if err == io.EOF {
			return f.keptError(f.kept.unfinished())
		}
		if err != nil {
			return err
		}
		if f.kept != nil {
			if err := f.feedKept(a, frame, wireLen); err != nil {
				return err
			}
			continue
		}
		reflected := a.counters[Reflected]
		a.PacketFrom(f.side, ts, frame, wireLen)
		if a.counters[Reflected] > reflected {
			f.sides.reflected()
		}
		if err := a.Err(); err != nil {
			return err
		}
		if n%64 == 0 && progress != nil {
			progress(f.Pos())
		}
	}
}
