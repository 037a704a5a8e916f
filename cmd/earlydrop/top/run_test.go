// SPDX-License-Identifier: Apache-2.0

package top

import (
	"bytes"
	"context"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/earlydrop/earlydrop/cmd/earlydrop/status"
	"github.com/earlydrop/earlydrop/cmd/earlydrop/term/termtest"
)

// screen collects what is sent to a terminal.
type screen struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (s *screen) follow(ptmx *os.File) {
	buffer := make([]byte, 4096)
	for {
		n, err := ptmx.Read(buffer)
		if err != nil {
			return
		}
		s.mu.Lock()
		s.text.Write(buffer[:n])
		s.mu.Unlock()
	}
}

// await waits until the terminal was sent a text.
func (s *screen) await(t *testing.T, text string) {
	t.Helper()
	for end := time.Now().Add(time.Minute); ; time.Sleep(10 * time.Millisecond) {
		s.mu.Lock()
		has, all := strings.Contains(s.text.String(), text), s.text.String()
		s.mu.Unlock()
		if has {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("%q is not in %q", text, all)
		}
	}
}

// panics is a daemon whose second answer is a fault of this program.
type panics struct {
	*fake
	asked int
}

func (p *panics) Top(ctx context.Context, n int) (*status.Top, error) {
	if p.asked++; p.asked > 1 {
		panic("a fault")
	}
	return p.fake.Top(ctx, n)
}

// However it ends, the terminal is as it was before.
func TestTerminalIsRestored(t *testing.T) {
	t.Setenv("TERM", "xterm-256color")
	for name, tt := range map[string]struct {
		source Source
		keys   string
		cancel bool
		fails  bool
	}{
		"a key":     {source: busy(100), keys: "q"},
		"Ctrl-C":    {source: busy(100), keys: "\x03"},
		"a signal":  {source: busy(100), cancel: true},
		"a failure": {source: &panics{fake: busy(100)}, fails: true},
	} {
		t.Run(name, func(t *testing.T) {
			ptmx, tty := termtest.Open(t)
			if err := unix.IoctlSetWinsize(int(ptmx.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: 24, Col: 80}); err != nil {
				t.Fatal(err)
			}
			before, err := unix.IoctlGetTermios(int(tty.Fd()), unix.TCGETS)
			if err != nil {
				t.Fatal(err)
			}
			var s screen
			go s.follow(ptmx)
			ctx, cancel := context.WithCancel(context.Background())
			ended := make(chan error, 1)
			go func() { ended <- Run(ctx, Config{Source: tt.source, Every: 50 * time.Millisecond}, tty, tty) }()
			s.await(t, "192.0.2.7:8388")
			raw, err := unix.IoctlGetTermios(int(tty.Fd()), unix.TCGETS)
			if err != nil || !tt.fails && *raw == *before {
				t.Errorf("the terminal sends lines, and no keys: %v", err)
			}
			if _, err := ptmx.WriteString(tt.keys); err != nil {
				t.Fatal(err)
			}
			if tt.cancel {
				cancel()
			}
			select {
			case err := <-ended:
				if (err != nil) != tt.fails {
					t.Error(err)
				}
			case <-time.After(time.Minute):
				t.Fatal("it goes on")
			}
			cancel()
			s.await(t, "\x1b[?1049l") // the screen from before
			s.await(t, "\x1b[?25h")   // the cursor
			after, err := unix.IoctlGetTermios(int(tty.Fd()), unix.TCGETS)
			if err != nil || *after != *before {
				t.Errorf("the terminal is %+v afterwards, and was %+v, %v", after, before, err)
			}
			s.mu.Lock()
			if strings.Contains(s.text.String(), "\x1b[31m") {
				t.Errorf("colours that nobody asked for")
			}
			s.mu.Unlock()
		})
	}
}
