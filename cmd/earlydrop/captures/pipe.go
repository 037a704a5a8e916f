// SPDX-License-Identifier: Apache-2.0

package captures

import (
	"context"
	"errors"
	"io"
	"time"
)

// A reader may put work off, until the pipe gives nothing for quietTime, or for
// busyTime at most.
const (
	quietTime = 250 * time.Millisecond
	busyTime  = time.Second
)

// errInterrupted is the error of a pipe whose reading was interrupted. What was
// read until then counts as all that there is.
var errInterrupted = errors.New("interrupted")

// pipe reads a pipe in a goroutine of its own, so that waiting for it can end.
type pipe struct {
	done   <-chan struct{} // closed by an interrupt
	chunks chan chunk
	rest   []byte // of the chunk that came last
	err    error
	// catchUp (optional) does what the reader has put off; see quietTime. It is
	// called by Read. An error ends the reading.
	catchUp  func() error
	caughtUp time.Time
}

// chunk is what one read of a pipe gave.
type chunk struct {
	data []byte
	err  error
}

// newPipe starts to read r. The goroutine ends with r, or when ctx is done.
func newPipe(ctx context.Context, r io.Reader) *pipe {
	p := &pipe{done: ctx.Done(), chunks: make(chan chunk)}
	go func() {
		// While one buffer is being read, the other one is filled.
		var buffers [2][1 << 16]byte
		for i := 0; ; i ^= 1 {
			n, err := r.Read(buffers[i][:])
			select {
			case p.chunks <- chunk{buffers[i][:n], err}:
			case <-p.done:
				return
			}
			if err != nil {
				return
			}
		}
	}()
	return p
}

// Read implements io.Reader.
func (p *pipe) Read(b []byte) (int, error) {
	if len(p.rest) == 0 && p.err == nil {
		p.receive()
	}
	if len(p.rest) == 0 {
		return 0, p.err
	}
	n := copy(b, p.rest)
	p.rest = p.rest[n:]
	return n, nil
}

// receive waits for the next chunk that is not empty.
func (p *pipe) receive() {
	if p.catchUp != nil && time.Since(p.caughtUp) >= busyTime {
		p.err = p.doCatchUp()
	}
	quiet := time.NewTimer(quietTime)
	defer quiet.Stop()
	for len(p.rest) == 0 && p.err == nil {
		select {
		case c := <-p.chunks:
			p.rest, p.err = c.data, c.err
		case <-quiet.C:
			if p.catchUp != nil {
				p.err = p.doCatchUp()
			}
		case <-p.done:
			p.err = errInterrupted
		}
	}
}

func (p *pipe) doCatchUp() error {
	err := p.catchUp()
	p.caughtUp = time.Now()
	return err
}
