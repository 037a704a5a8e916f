// SPDX-License-Identifier: Apache-2.0

package assembly

import (
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"github.com/gopacket/gopacket/pcapgo"

	"github.com/earlydrop/earlydrop/loader/flow"
	"github.com/earlydrop/earlydrop/loader/flow/headers"
)

// pcapFile returns a pcap file. Its second packet comes 1500 µs and, where the
// file has nanoseconds, 7 ns after the first.
func pcapFile(order binary.AppendByteOrder, nanos bool, link uint32, packets ...[]byte) []byte {
	magic, unit := uint32(0xa1b2c3d4), time.Microsecond
	if nanos {
		magic, unit = 0xa1b23c4d, 1
	}
	b := order.AppendUint32(nil, magic)
	b = order.AppendUint16(b, 2)
	b = order.AppendUint16(b, 4)
	for _, v := range []uint32{0, 0, 1 << 18, link} {
		b = order.AppendUint32(b, v)
	}
	for i, p := range packets {
		ts := epoch.Add(time.Duration(i) * (1500*time.Microsecond + 7))
		for _, v := range []int{int(ts.Unix()), int(time.Duration(ts.Nanosecond()) / unit), len(p), len(p)} {
			b = order.AppendUint32(b, uint32(v))
		}
		b = append(b, p...)
	}
	return b
}

// ngPacket is a packet of a pcapng file and its interface's link type.
type ngPacket struct {
	link  layers.LinkType
	bytes []byte
}

// pcapngFile returns a pcapng file with one interface per link type.
func pcapngFile(t testing.TB, packets ...ngPacket) []byte {
	t.Helper()
	var b bytes.Buffer
	w, err := pcapgo.NewNgWriter(&b, packets[0].link)
	if err != nil {
		t.Fatal(err)
	}
	ids := map[layers.LinkType]int{packets[0].link: 0}
	for i, p := range packets {
		if _, ok := ids[p.link]; !ok {
			if ids[p.link], err = w.AddInterface(pcapgo.NgInterface{LinkType: p.link}); err != nil {
				t.Fatal(err)
			}
		}
		if err := w.WritePacket(gopacket.CaptureInfo{
			Timestamp:     epoch.Add(time.Duration(i) * (1500*time.Microsecond + 7)),
			CaptureLength: len(p.bytes), Length: len(p.bytes), InterfaceIndex: ids[p.link],
		}, p.bytes); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Flush(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func gzipped(t testing.TB, b []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	w := gzip.NewWriter(&out)
	if _, err := w.Write(b); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func write(t testing.TB, b []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "capture")
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// packetRead is what Next returns for one packet.
type packetRead struct {
	Time    time.Duration // since epoch
	Frame   []byte
	WireLen int
}

func readAll(path string) (out []packetRead, err error) {
	f, err := Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return packetsOf(f)
}

func readBytes(b []byte) (out []packetRead, err error) {
	f, err := Read("capture", bytes.NewReader(b))
	if err != nil {
		return nil, err
	}
	return packetsOf(f)
}

func packetsOf(f *File) (out []packetRead, err error) {
	for {
		ts, frame, wireLen, err := f.Next()
		if err == io.EOF {
			return out, nil
		}
		if err != nil {
			return out, err
		}
		out = append(out, packetRead{ts.Sub(epoch), append([]byte{}, frame...), wireLen})
	}
}

func TestFileFormats(t *testing.T) {
	a, b := udp4(true, 11), udp4(false, 22)
	micro, nano := 1500*time.Microsecond, 1500*time.Microsecond+7
	tests := []struct {
		name  string
		bytes []byte
		step  time.Duration
	}{
		{"pcap, microseconds, little endian", pcapFile(binary.LittleEndian, false, 1, a, b), micro},
		{"pcap, microseconds, big endian", pcapFile(binary.BigEndian, false, 1, a, b), micro},
		{"pcap, nanoseconds, little endian", pcapFile(binary.LittleEndian, true, 1, a, b), nano},
		{"pcap, nanoseconds, big endian", pcapFile(binary.BigEndian, true, 1, a, b), nano},
		{"pcap with frame check sequence bits", pcapFile(binary.LittleEndian, false, 0x30000001, a, b), micro},
		{"pcapng", pcapngFile(t, ngPacket{1, a}, ngPacket{1, b}), nano},
		{"pcapng, two link types", pcapngFile(t, ngPacket{101, a[14:]}, ngPacket{1, b}), nano},
		{"pcap, gzip", gzipped(t, pcapFile(binary.LittleEndian, false, 1, a, b)), micro},
		{"pcapng, gzip", gzipped(t, pcapngFile(t, ngPacket{1, a}, ngPacket{1, b})), nano},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := readAll(write(t, tt.bytes))
			if err != nil {
				t.Fatal(err)
			}
			for i := range got { // made-up headers have zero addresses
				clear(got[i].Frame[:12])
			}
			want := []packetRead{
				{0, with(a, 0, make([]byte, 12)...), len(a)},
				{tt.step, with(b, 0, make([]byte, 12)...), len(b)},
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("packets (-want +got):\n%s", diff)
			}
		})
	}
}

func TestLinkTypes(t *testing.T) {
	ip4 := udp4(true, 5)[headers.EthernetLen:]
	ip6 := ip(client6, server6, 17, udpDgram(client6, server6, payload(5)))
	framed := func(etherType int, packet []byte) []byte {
		return slices.Concat(make([]byte, 12), be16(etherType), packet)
	}
	sll := func(device, protocol int, packet []byte) []byte {
		return slices.Concat(be16(0), be16(device), be16(6), make([]byte, 8), be16(protocol), packet)
	}
	sll2 := func(device, protocol int, packet []byte) []byte {
		return slices.Concat(be16(protocol), make([]byte, 6), be16(device), make([]byte, 10), packet)
	}
	tag := slices.Concat(be16(100), be16(etherIPv4), ip4)
	tests := []struct {
		name   string
		link   uint32
		packet []byte
		want   []byte
	}{
		{"Ethernet", 1, udp4(true, 5), udp4(true, 5)},
		{"raw 12, IPv4", 12, ip4, framed(etherIPv4, ip4)},
		{"raw 14, IPv6", 14, ip6, framed(etherIPv6, ip6)},
		{"raw 101, IPv4", 101, ip4, framed(etherIPv4, ip4)},
		{"raw 101, IPv6", 101, ip6, framed(etherIPv6, ip6)},
		{"raw 101, neither", 101, []byte{0x10, 1}, framed(0, []byte{0x10, 1})},
		{"raw 101, nothing", 101, nil, framed(0, nil)},
		{"raw 228", 228, ip4, framed(etherIPv4, ip4)},
		{"raw 229", 229, ip6, framed(etherIPv6, ip6)},
		{"cooked, IPv4", 113, sll(1, etherIPv4, ip4), framed(etherIPv4, ip4)},
		{"cooked, IPv6", 113, sll(1, etherIPv6, ip6), framed(etherIPv6, ip6)},
		{"cooked, VLAN", 113, sll(1, etherVLAN, tag), framed(etherVLAN, tag)},
		{"cooked, netlink", 113, sll(824, etherIPv4, ip4), framed(0, ip4)},
		{"cooked, GRE device", 113, sll(778, etherIPv4, ip4), framed(etherIPv4, ip4)},
		{"cooked, LLC", 113, sll(1, 4, slices.Concat(snap(etherIPv4), ip4)), framed(etherIPv4, ip4)},
		{"cooked, LLC cut off", 113, sll(1, 4, snap(etherIPv4)[:7]), []byte{}},
		{"cooked, too short", 113, sll(1, etherIPv4, nil)[:15], []byte{}},
		{"cooked 2, IPv4", 276, sll2(1, etherIPv4, ip4), framed(etherIPv4, ip4)},
		{"cooked 2, VLAN", 276, sll2(1, etherVLAN, tag), framed(etherVLAN, tag)},
		{"cooked 2, too short", 276, sll2(1, etherIPv4, nil)[:19], []byte{}},
		{"null, little endian", 0, append([]byte{2, 0, 0, 0}, ip4...), framed(etherIPv4, ip4)},
		{"null, big endian", 0, append([]byte{0, 0, 0, 2}, ip4...), framed(etherIPv4, ip4)},
		{"null, IPv6 of FreeBSD", 0, append([]byte{28, 0, 0, 0}, ip6...), framed(etherIPv6, ip6)},
		{"null, IPv6 of macOS", 0, append([]byte{30, 0, 0, 0}, ip6...), framed(etherIPv6, ip6)},
		{"null, another family", 0, append([]byte{7, 0, 0, 0}, ip4...), framed(0, ip4)},
		{"loop, IPv6 of OpenBSD", 108, append([]byte{0, 0, 0, 24}, ip6...), framed(etherIPv6, ip6)},
		{"loop, too short", 108, []byte{0, 0, 0}, []byte{}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := readAll(write(t, pcapFile(binary.LittleEndian, false, tt.link, tt.packet)))
			if err != nil {
				t.Fatal(err)
			}
			want := []packetRead{{0, tt.want, len(tt.want)}}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("packets (-want +got):\n%s", diff)
			}
		})
	}
}

func TestSnapLengthOfAFile(t *testing.T) {
	b := pcapFile(binary.LittleEndian, false, 113, append(make([]byte, 16), payload(50)...))
	binary.LittleEndian.PutUint32(b[24+12:], 1000) // length on the wire
	got, err := readAll(write(t, b))
	if err != nil || len(got) != 1 || len(got[0].Frame) != 64 || got[0].WireLen != 998 {
		t.Errorf("%d packets %+v, error %v; want one of 64 bytes, 998 on the wire", len(got), got, err)
	}
}

func TestBadFiles(t *testing.T) {
	a, b := udp4(true, 100), udp4(false, 200)
	pcap := pcapFile(binary.LittleEndian, false, 1, a, b)
	second := 24 + 16 + len(a) // where the record of b begins
	ng := pcapngFile(t, ngPacket{1, a}, ngPacket{1, b})
	ng249 := pcapngFile(t, ngPacket{1, a}, ngPacket{249, b}, ngPacket{1, a})
	zipped := gzipped(t, pcap)
	badLength := slices.Clone(pcap)
	binary.LittleEndian.PutUint32(badLength[second+8:], 1<<30)
	tests := []struct {
		name    string
		bytes   []byte
		want    error
		text    string
		packets int
	}{
		{"empty", nil, ErrNotCapture, "it is empty", 0},
		{"empty, as such", nil, ErrEmpty, "it is empty", 0},
		{"gzip of nothing", gzipped(t, nil), ErrEmpty, "it is empty", 0},
		{"gzip cut before its first byte", zipped[:10], ErrEmpty, "it is empty", 0},
		{"three bytes", pcap[:3], ErrNotCapture, "not a pcap", 0},
		{"text", []byte("GET / HTTP/1.1\r\n\r\n"), ErrNotCapture, "not a pcap or pcapng file", 0},
		{"file header cut", pcap[:20], ErrEmpty, "file header is cut off", 0},
		{"file header cut, no capture", pcap[:20], ErrNotCapture, "file header is cut off", 0},
		{"pcapng header cut", ng[:20], ErrEmpty, "file header is cut off", 0},
		{"gzip of text", gzipped(t, []byte("hello, world")), ErrNotCapture, "not a pcap", 0},
		{"gzip header cut", zipped[:5], ErrEmpty, "not a pcap or pcapng file: its gzip header is cut off", 0},
		{"unknown version", with(pcap, 4, 9), ErrNotCapture, "version 9", 0},
		{"link type of pcap", pcapFile(binary.LittleEndian, false, 249, a, b), ErrLinkType, ": 2 packets skipped: unsupported link type 249 (USBPcap)", 0},
		{"link type of a pcapng interface", pcapngFile(t, ngPacket{1, a}, ngPacket{249, b}, ngPacket{1, a}), ErrLinkType,
			": 1 packet skipped: interface 1: unsupported link type 249 (USBPcap)", 2},
		{"link type of a pcapng interface, cut", ng249[:len(ng249)-1], ErrTruncated,
			": 1 packet skipped: interface 1: unsupported link type 249 (USBPcap); file is cut off in the middle of a record (after 1 packets, at byte ", 1},
		{"link type without packets", pcapFile(binary.LittleEndian, false, 249), nil, "", 0},
		{"compressed with zstd", []byte("\x28\xb5\x2f\xfd\x24\x00"), ErrNotCapture, "compressed with zstd, but only gzip can be read", 0},
		{"compressed with xz", []byte("\xfd7zXZ\x00\x00"), ErrNotCapture, "compressed with xz", 0},
		{"no packets", pcap[:24], nil, "", 0},
		{"ends between packets", pcap[:second], nil, "", 1},
		{"cut in a record's header", pcap[:second+7], ErrTruncated, "after 1 packets, at byte 182)", 1},
		{"cut behind a record's header", pcap[:second+16], ErrTruncated, "cut off", 1},
		{"cut in a packet", pcap[:len(pcap)-1], ErrTruncated, "cut off", 1},
		{"pcapng cut in a block's header", ng[:len(ng)-len(b)-20], ErrTruncated, "cut off", 1},
		{"pcapng cut in a packet", ng[:len(ng)-10], ErrTruncated, "cut off", 1},
		{"gzip cut", zipped[:len(zipped)-9], ErrTruncated, "cut off", 2},
		{"gzip checksum", with(zipped, len(zipped)-8, 1, 2, 3, 4), ErrDamaged, "checksum", 2},
		{"length beyond reason", badLength, ErrDamaged, "damaged", 1},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			path := write(t, tt.bytes)
			got, err := readAll(path)
			if len(got) != tt.packets {
				t.Errorf("%d packets, want %d", len(got), tt.packets)
			}
			if tt.want == nil {
				if err != nil {
					t.Errorf("error %v, want none", err)
				}
				return
			}
			var fileErr *FileError
			if !errors.As(err, &fileErr) || fileErr.Path != path || fileErr.Packets != uint64(tt.packets) {
				t.Fatalf("error %#v, want a *FileError of %s after %d packets", err, path, tt.packets)
			}
			if cut := tt.want == ErrEmpty || len(tt.bytes) == 0 || strings.Contains(tt.name, "file header cut"); errors.Is(err, ErrEmpty) != cut {
				t.Errorf("error %q, is empty: %v, want %v", err, !cut, cut)
			}
			if !errors.Is(err, tt.want) || !strings.Contains(err.Error(), tt.text) || strings.Contains(err.Error(), "\n") {
				t.Errorf("error %q, want %q and %q in it", err, tt.want, tt.text)
			}
		})
	}
}

func TestEveryCutOfAFileIsReported(t *testing.T) {
	a, b := udp4(true, 3), udp4(false, 2)
	for name, whole := range map[string][]byte{
		"pcap": pcapFile(binary.BigEndian, true, 1, a, b), "pcapng": pcapngFile(t, ngPacket{1, a}, ngPacket{1, b}),
	} {
		clean := 0
		for n := range whole {
			_, err := readAll(write(t, whole[:n]))
			switch {
			case err == nil:
				clean++
			case !errors.Is(err, ErrTruncated) && !errors.Is(err, ErrNotCapture):
				t.Errorf("%s cut at %d of %d: %v", name, n, len(whole), err)
			}
		}
		// Between two records, or blocks, nobody can tell that any are missing.
		if want := map[string]int{"pcap": 2, "pcapng": 3}[name]; clean != want {
			t.Errorf("%s: %d cuts went unnoticed, want %d", name, clean, want)
		}
	}
}

func TestOpenErrorsOfTheSystem(t *testing.T) {
	dir := t.TempDir()
	missing := filepath.Join(dir, "none.pcap")
	if _, err := Open(missing); !errors.Is(err, fs.ErrNotExist) || err.Error() != missing+": no such file or directory" {
		t.Errorf("missing file: %v", err)
	}
	if _, err := Open(dir); err == nil || !strings.Contains(err.Error(), "is a folder") {
		t.Errorf("folder: %v", err)
	}
}

func TestRunDeliversWhatWasReadBeforeAnError(t *testing.T) {
	whole := pcapFile(binary.LittleEndian, false, 1, udp4(true, 100), udp4(false, 0), udp4(false, 200))
	f, err := Open(write(t, whole[:len(whole)-1]))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var samples []string
	a := New(Options{}, func(_ *Flow, s *flow.Sample) { samples = append(samples, describe(s)) }, nil)
	if err := f.Run(a, nil); !errors.Is(err, ErrTruncated) {
		t.Errorf("error %v, want %v", err, ErrTruncated)
	}
	if diff := cmp.Diff([]string{"40000 end 184 1ms: >142@0 <42@1"}, samples); diff != "" {
		t.Errorf("samples (-want +got):\n%s", diff)
	}
	if f.Pos() != f.Size() {
		t.Errorf("position %d of %d", f.Pos(), f.Size())
	}
}

func FuzzFile(f *testing.F) {
	a, b := udp4(true, 30), udp4(false, 20)
	f.Add(pcapFile(binary.LittleEndian, false, 113, a, b))
	f.Add(pcapFile(binary.BigEndian, true, 0, a, b))
	f.Add(pcapngFile(f, ngPacket{1, a}, ngPacket{101, b[14:]}, ngPacket{276, b}))
	f.Add(gzipped(f, pcapFile(binary.LittleEndian, false, 1, a, b)))
	for _, tt := range linkHeaders() {
		f.Add(pcapFile(binary.LittleEndian, false, uint32(tt.link), tt.packet))
	}
	for _, tt := range pcapVariants() {
		f.Add(tt.bytes)
	}
	for _, tt := range pcapngVariants() {
		f.Add(tt.bytes)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		packets, err := readBytes(b)
		var fileErr *FileError
		if err != nil && (!errors.As(err, &fileErr) || int(fileErr.Packets) != len(packets)) {
			t.Fatalf("error %#v after %d packets", err, len(packets))
		}
		if err != nil && strings.ContainsAny(err.Error(), "\n\r\x1b") {
			t.Fatalf("error %q is not one plain line", err)
		}
		for _, p := range packets {
			if p.WireLen < len(p.Frame) || p.WireLen > maxWireLen || len(p.Frame) > keptBytes+madeHeader {
				t.Fatalf("frame of %d bytes, %d on the wire", len(p.Frame), p.WireLen)
			}
			if year := epoch.Add(p.Time).Year(); year < 1 || year > 9999 {
				t.Fatalf("a packet of the year %d", year)
			}
		}
	})
}
