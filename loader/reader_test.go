// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/ringbuf"
	"golang.org/x/sys/unix"

	"github.com/earlydrop/earlydrop/loader/flow"
)

// breakEpoll puts something else into the place of the epoll instance that watches
// the descriptor fd.
func breakEpoll(t *testing.T, fd int) {
	t.Helper()
	infos, err := filepath.Glob("/proc/self/fdinfo/*")
	if err != nil {
		t.Fatal(err)
	}
	for _, info := range infos {
		text, err := os.ReadFile(info)
		if err != nil {
			continue // closed in the meantime
		}
		for line := range strings.Lines(string(text)) {
			var watched, epoll int
			if n, _ := fmt.Sscanf(line, "tfd: %d ", &watched); n != 1 || watched != fd {
				continue
			}
			if _, err := fmt.Sscan(filepath.Base(info), &epoll); err != nil {
				t.Fatal(err)
			}
			null, err := unix.Open("/dev/null", unix.O_RDONLY|unix.O_CLOEXEC, 0)
			if err == nil {
				err = errors.Join(unix.Dup3(null, epoll, unix.O_CLOEXEC), unix.Close(null))
			}
			if err != nil {
				t.Fatal(err)
			}
			return
		}
	}
	t.Fatalf("nothing watches descriptor %d", fd)
}

// The error of a bad record is not that of a ring buffer which can't be read any
// more, nor is that the end.
func TestReaderTellsBadRecordsFromABrokenRing(t *testing.T) {
	m, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.RingBuf, MaxEntries: uint32(os.Getpagesize())})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	ring, err := ringbuf.NewReader(m)
	if err != nil {
		t.Fatal(err)
	}
	r, s := &Reader{ring: ring}, new(flow.Sample)
	breakEpoll(t, m.FD())
	for range 3 {
		if err := r.Read(s); err == nil || errors.Is(err, ErrClosed) || errors.Is(err, ErrBadRecord) {
			t.Errorf("from a broken ring: %v", err)
		}
	}
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	if err := r.Read(s); !errors.Is(err, ErrClosed) {
		t.Errorf("after Close: %v", err)
	}
}

func TestRecordsThatContradictThemselvesAreBad(t *testing.T) {
	var in datapathSample
	size := int(unsafe.Sizeof(in))
	sample := func(change func(*datapathSample)) []byte {
		in := datapathSample{Length: 60, PacketCount: 1}
		change(&in)
		return unsafe.Slice((*byte)(unsafe.Pointer(&in)), size)
	}
	for _, tt := range []struct {
		name string
		raw  []byte
		good bool
	}{
		{"whole", sample(func(*datapathSample) {}), true},
		{"empty", nil, false},
		{"cut in its header", sample(func(*datapathSample) {})[:20], false},
		{"cut in its data", sample(func(*datapathSample) {})[:unsafe.Offsetof(in.Data)+59], false},
		{"too long", sample(func(s *datapathSample) { s.Length = flow.CaptureBytes + 1 }), false},
		{"too many packets", sample(func(s *datapathSample) { s.PacketCount = flow.MaxPackets + 1 }), false},
		{"a packet behind the end", sample(func(s *datapathSample) { s.Packets[0].Place = 60 }), false},
		{"packets out of order", sample(func(s *datapathSample) { s.PacketCount, s.Packets[0].Place, s.Packets[1].Place = 2, 30, 20 }), false},
	} {
		err := decodeSample(tt.raw, new(flow.Sample))
		if (err == nil) != tt.good || err != nil && !errors.Is(err, ErrBadRecord) {
			t.Errorf("%s: %v", tt.name, err)
		}
	}
}

func TestSamplesNameTheirInterface(t *testing.T) {
	inNamespace(t)
	d := attach(t, Options{})
	want := flow.Source{Interface: "v0", Index: int(d.index.Load())}
	if got := captureUDP(t, d, 50000).Source; got != want || got.Index == 0 {
		t.Errorf("source %+v, want %+v", got, want)
	}
	// The name is the present one, the index stays.
	rename(t, "v0", "w0")
	if _, err := d.Check(); err != nil {
		t.Fatal(err)
	}
	want.Interface = "w0"
	if got := captureUDP(t, d, 50001).Source; got != want {
		t.Errorf("source %+v, want %+v", got, want)
	}
	if err := d.Detach(); err != nil {
		t.Fatal(err)
	}
	rename(t, "w0", "v0")
	nothingLeft(t)
}
