// SPDX-License-Identifier: Apache-2.0

package captures

import (
	"io"
	"testing"
	"time"
)

// A pipe that is never quiet lets what was put off wait for a second at most.
func TestABusyPipeIsCaughtUp(t *testing.T) {
	p := &pipe{chunks: make(chan chunk), caughtUp: time.Now().Add(-busyTime)}
	calls := 0
	p.catchUp = func() error { calls++; return nil }
	go func() {
		for range 1000 {
			p.chunks <- chunk{data: []byte("x")}
		}
		p.chunks <- chunk{err: io.EOF}
	}()
	n, err := io.Copy(io.Discard, p)
	if n != 1000 || err != nil || calls == 0 {
		t.Errorf("%d bytes, error %v, caught up %d times", n, err, calls)
	}
	// What it says ends the reading.
	p = &pipe{chunks: make(chan chunk), catchUp: func() error { return io.ErrClosedPipe }}
	if _, err := p.Read(make([]byte, 1)); err != io.ErrClosedPipe {
		t.Errorf("error %v, want %v", err, io.ErrClosedPipe)
	}
}
