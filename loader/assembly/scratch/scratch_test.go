// SPDX-License-Identifier: Apache-2.0

package scratch

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestFileGivesBackWhatWasAppended(t *testing.T) {
	dir := t.TempDir()
	f := New(dir)
	rnd := rand.New(rand.NewPCG(1, 2))
	var want []byte
	read := func() {
		t.Helper()
		for range 20 {
			off := rnd.IntN(len(want) + 1)
			got := make([]byte, rnd.IntN(3*bufferSize))
			n, err := f.ReadAt(got, int64(off))
			if rest := want[off:]; n != min(len(got), len(rest)) || !bytes.Equal(got[:n], rest[:n]) || (err == io.EOF) != (n < len(got)) || err != nil && err != io.EOF {
				t.Fatalf("%d bytes at %d of %d: got %d, %v", len(got), off, len(want), n, err)
			}
		}
	}
	for range 60 {
		data := make([]byte, []int{0, 1, 100, bufferSize - 1, bufferSize, bufferSize + 1, 2 * bufferSize}[rnd.IntN(7)])
		for i := range data {
			data[i] = byte(rnd.Uint32())
		}
		if err := f.Append(data); err != nil {
			t.Fatal(err)
		}
		want = append(want, data...)
		if f.Size() != int64(len(want)) {
			t.Fatalf("size %d, want %d", f.Size(), len(want))
		}
		read()
	}
	if f.file == nil {
		t.Error("nothing went to the disk")
	}
	if names, err := os.ReadDir(dir); err != nil || len(names) > 0 {
		t.Errorf("the file has a name: %v, %v", names, err)
	}
	if err := f.Close(); err != nil {
		t.Error(err)
	}
}

func TestFileErrorNamesTheFolder(t *testing.T) {
	full := t.TempDir()
	if err := unix.Mount("tmpfs", full, "tmpfs", 0, "size=64k"); err != nil {
		t.Fatalf("mount a small file system (this test has to run as root): %v", err)
	}
	defer func() {
		if err := unix.Unmount(full, 0); err != nil {
			t.Error(err)
		}
	}()
	for _, tt := range []struct {
		dir  string
		want error
	}{{filepath.Join(t.TempDir(), "none"), os.ErrNotExist}, {full, unix.ENOSPC}} {
		f := New(tt.dir)
		if err := f.Append(make([]byte, bufferSize)); err != nil {
			t.Errorf("%s: %v before anything is written", tt.dir, err)
		}
		err := f.Append([]byte("more"))
		var e *Error
		if !errors.As(err, &e) || e.Dir != tt.dir || !errors.Is(err, tt.want) || strings.Count(err.Error(), tt.dir) != 1 {
			t.Errorf("%s: error %v, want one that is %v", tt.dir, err, tt.want)
		}
		if _, again := f.ReadAt(make([]byte, 1), 0); again != err {
			t.Errorf("%s: reading after the error returns %v", tt.dir, again)
		}
		if again := f.Append(nil); again != err {
			t.Errorf("%s: appending after the error returns %v", tt.dir, again)
		}
		if err := f.Close(); err != nil {
			t.Errorf("%s: close: %v", tt.dir, err)
		}
	}
}

func TestSorterSortsWhatDoesNotFitIntoMemory(t *testing.T) {
	for _, max := range []int{1, 1000, 100_000, 0} {
		rnd := rand.New(rand.NewPCG(5, uint64(max)))
		s := NewSorter(t.TempDir(), max)
		want := map[uint64][]string{}
		var keys []uint64
		for range 5000 {
			key, data := rnd.Uint64N(3000), strings.Repeat("x", rnd.IntN(200))+strconv.Itoa(len(keys))
			if err := s.Add(key, []byte(data)); err != nil {
				t.Fatal(err)
			}
			keys = append(keys, key)
			want[key] = append(want[key], data)
		}
		if (len(s.runs) > 0) != (max > 0) {
			t.Errorf("%d bytes in memory: %d runs", max, len(s.runs))
		}
		slices.Sort(keys)
		for _, k := range keys {
			key, data, err := s.Next()
			if err != nil || key != k || string(data) != want[k][0] {
				t.Fatalf("%d bytes in memory: item %d %q, %v, want %d %q", max, key, data, err, k, want[k][0])
			}
			want[k] = want[k][1:]
		}
		for range 2 {
			if _, _, err := s.Next(); err != io.EOF {
				t.Fatalf("behind the last item: %v", err)
			}
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}
}
