// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"fmt"
	"io"
	"testing"

	"golang.org/x/sys/unix"
)

// failing writes to buf as long as err is nil; on err it writes half.
type failing struct {
	buf   bytes.Buffer
	err   error
	tries int
}

func (f *failing) Write(p []byte) (int, error) {
	f.tries++
	if f.err != nil {
		n, _ := f.buf.Write(p[:len(p)/2])
		return n, f.err
	}
	return f.buf.Write(p)
}

func TestOutputOutlivesItsFailures(t *testing.T) {
	for _, tt := range []struct {
		err   error
		want  string
		tries int
	}{
		{nil, "one\ntwo\nthree\n", 3},
		// The disk is full for a while: the cut line gets an end, no other is lost.
		{unix.ENOSPC, "one\ntw\nthree\n", 4},
		// The reader is gone for good.
		{unix.EPIPE, "one\ntw", 2},
		{fmt.Errorf("write: %w", unix.EPIPE), "one\ntw", 2},
	} {
		f := &failing{}
		o := &output{to: f}
		for i, line := range []string{"one\n", "two\n", "three\n"} {
			f.err = nil
			if i == 1 {
				f.err = tt.err
			}
			if n, err := io.WriteString(o, line); n != len(line) || err != nil {
				t.Errorf("%v: wrote %d, %v", tt.err, n, err)
			}
		}
		if got := f.buf.String(); got != tt.want || f.tries != tt.tries {
			t.Errorf("%v: %q after %d writes, want %q after %d", tt.err, got, f.tries, tt.want, tt.tries)
		}
	}
}
