// SPDX-License-Identifier: Apache-2.0

package explain

import (
	"fmt"
	"math"
	"slices"
	"strings"
)

// A NarrowError says that the maps do not fit into the columns that there are.
type NarrowError struct{ Need, Columns int }

// Error returns one lower-case line.
func (e *NarrowError) Error() string {
	return fmt.Sprintf("the maps need a terminal of %d columns, and this one has %d", e.Need, e.Columns)
}

// panelGap is how many columns are left between two panels.
const panelGap = 3

// ColorMap returns the bytes and their effects for a terminal with 24-bit colours and so
// many columns, as many maps side by side as fit: two rows of pixels in one line of text.
// The error is a [*NarrowError].
func (e *Explanation) ColorMap(columns int) (string, error) {
	panels := append([]*panel{e.panels()[0]}, e.effectPanels()...)
	if columns < side {
		return "", &NarrowError{side, columns}
	}
	var b strings.Builder
	for row := range slices.Chunk(panels, (columns+panelGap)/(side+panelGap)) {
		var titles strings.Builder
		for _, p := range row { // no title is longer than a panel is wide
			fmt.Fprintf(&titles, "%-*s", side+panelGap, p.title)
		}
		b.WriteString(strings.TrimRight(titles.String(), " ") + "\n")
		for y := 0; y < side; y += 2 {
			for i, p := range row {
				if i > 0 {
					b.WriteString(strings.Repeat(" ", panelGap))
				}
				for x := range side {
					top, bottom := p.pixels[y*side+x], p.pixels[(y+1)*side+x]
					fmt.Fprintf(&b, "\x1b[38;2;%d;%d;%dm\x1b[48;2;%d;%d;%dm\u2580", top.R, top.G, top.B, bottom.R, bottom.G, bottom.B)
				}
				b.WriteString("\x1b[0m")
			}
			b.WriteString("\n")
		}
	}
	b.WriteString(e.beginnings())
	fmt.Fprintf(&b, "red: speaks for %s, blue: against it, violet: not seen by the model; the strongest is %.4f\n", e.about, e.scale())
	return b.String(), nil
}

// TextMap returns the effects of the bytes as characters, 32 bytes on a line, with
// the packets that begin there, or below where the lines are too short. The error is a
// [*NarrowError].
func (e *Explanation) TextMap(columns int) (string, error) {
	const number = 4 + 2 // the offset in front of each line, and the space after it
	if columns < number+side {
		return "", &NarrowError{number + side, columns}
	}
	var lines []string
	beside := true
	effects, scale := e.byteEffects(), e.scale()
	next := 0
	for y := 0; y < side && y*side < len(e.sample.Data); y++ {
		line := make([]byte, 0, side)
		for i := y * side; i < (y+1)*side && i < len(e.sample.Data); i++ {
			line = append(line, effectLetter(effects[i]/scale, e.unseen[i]))
		}
		var begin []string
		for ; next < len(e.sample.Packets) && int(e.sample.Packets[next].Offset) < (y+1)*side; next++ {
			begin = append(begin, e.beginning(next))
		}
		text := strings.TrimRight(fmt.Sprintf("%4d  %-32s  %s", y*side, line, strings.Join(begin, ", ")), " ")
		beside = beside && len(text) <= columns
		lines = append(lines, text)
	}
	below := ""
	if !beside {
		below = e.beginnings()
		for i := range lines {
			lines[i] = strings.TrimRight(lines[i][:min(number+side, len(lines[i]))], " ")
		}
	}
	return strings.Join(lines, "\n") + "\n" + below +
		fmt.Sprintf("1 to 9: tenths of the strongest effect, %.4f, for %s; a to i: against it; . less; _ not seen by the model\n", scale, e.about), nil
}

// beginnings is a line that says where all packets begin.
func (e *Explanation) beginnings() string {
	var begin []string
	for i := range e.sample.Packets {
		begin = append(begin, e.beginning(i))
	}
	return "packets begin: " + strings.Join(begin, ", ") + "\n"
}

// beginning says where packet i begins, as in "2 responder at 94".
func (e *Explanation) beginning(i int) string {
	p := &e.sample.Packets[i]
	return fmt.Sprintf("%d %s at %d", i+1, sender(p), p.Offset)
}

// effectLetter stands for an effect of -1 to 1.
func effectLetter(effect float64, unseen bool) byte {
	tenths := min(int(math.Abs(effect)*10), 9)
	switch {
	case tenths > 0 && effect > 0:
		return '0' + byte(tenths)
	case tenths > 0:
		return 'a' + byte(tenths) - 1
	case unseen && effect == 0:
		return '_'
	}
	return '.'
}
