// SPDX-License-Identifier: Apache-2.0

package term

import (
	"bytes"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/earlydrop/earlydrop/cmd/earlydrop/term/termtest"
)

func TestColorsNeedATerminalThatKnowsThem(t *testing.T) {
	ptmx, tty := termtest.Open(t)
	for _, tt := range []struct {
		term, noColor string
		want          bool
	}{
		{"xterm-256color", "", true},
		{"linux", "", true},
		{"dumb", "", false},
		{"", "", false},
		{"xterm", "1", false},
		{"xterm", "0", false}, // whatever it is
	} {
		t.Setenv("TERM", tt.term)
		t.Setenv("NO_COLOR", tt.noColor)
		if got := HasColors(tty); got != tt.want {
			t.Errorf("TERM=%q NO_COLOR=%q: colours %v, want %v", tt.term, tt.noColor, got, tt.want)
		}
	}
	for _, tt := range []struct{ has, want int }{{57, 57}, {0, 80}} { // 0 is what a serial line says
		if err := unix.IoctlSetWinsize(int(ptmx.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: 24, Col: uint16(tt.has)}); err != nil {
			t.Fatal(err)
		}
		if got := Width(tty); got != tt.want {
			t.Errorf("a terminal of %d columns is taken for one of %d", tt.has, got)
		}
	}
	if Width(new(bytes.Buffer)) != Unbounded {
		t.Error("a buffer has a width")
	}
}

// All columns of a long table stay aligned with the ones above them, or get wider.
func TestLongTablesAreAligned(t *testing.T) {
	var out bytes.Buffer
	c := NewColumns(&out)
	const rows = 3*columnRows + 7
	for i := range rows {
		if err := c.Row(strings.Repeat("é", 1+i*10/rows), "x", "end"); err != nil {
			t.Fatal(err)
		}
	}
	if out.Len() == 0 {
		t.Error("nothing was printed before the end")
	}
	if err := c.Flush(); err != nil {
		t.Fatal(err)
	}
	last, n := 0, 0
	for line := range strings.Lines(out.String()) {
		at := slices.Index([]rune(line), 'x')
		if at < last || n%columnRows != 0 && at != last || !strings.HasSuffix(line, "x  end\n") {
			t.Fatalf("row %d: %q, column at %d after %d", n, line, at, last)
		}
		last = at
		n++
	}
	if n != rows {
		t.Errorf("%d rows, want %d", n, rows)
	}
}
