// SPDX-License-Identifier: Apache-2.0

package top

import (
	"strings"
	"unicode"

	"github.com/mattn/go-runewidth"
)

// tone is how a piece of text is shown where there are colours. Without them the text says
// all.
type tone int

const (
	plain tone = iota
	strong
	faint
	good
	warning
	bad
	chosen // the selected row
)

// sgr are the tones' Select Graphic Rendition parameters.
var sgr = [...]string{plain: "", strong: "1", faint: "2", good: "32", warning: "33", bad: "31", chosen: "7"}

// span is a piece of a line.
type span struct {
	text string
	tone tone
}

// line is one line of the screen.
type line []span

func say(tone tone, text string) line { return line{{text, tone}} }

// render returns the line as it is sent to a terminal that is so wide, cut or filled up if it
// is to be whole.
func (l line) render(width int, whole, colors bool) string {
	var b strings.Builder
	room := width
	for _, s := range l {
		text := fit(clean(s.text), room)
		if text == "" {
			continue
		}
		room -= runewidth.StringWidth(text)
		if colors && s.tone != plain {
			b.WriteString("\x1b[" + sgr[s.tone] + "m" + text + "\x1b[0m")
		} else {
			b.WriteString(text)
		}
	}
	if whole && room > 0 {
		b.WriteString(strings.Repeat(" ", room))
	}
	return b.String()
}

// clean replaces what a terminal might take for something else than text to show: control
// characters, escape sequences, marks that change the direction of writing, and characters
// that are put over others.
func clean(text string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r == unicode.ReplacementChar, !unicode.IsPrint(r), runewidth.RuneWidth(r) == 0:
			return '?'
		}
		return r
	}, text)
}

// cutMark ends a text that is cut.
const cutMark = "~"

// fit cuts a text to a width. The text is clean.
func fit(text string, width int) string {
	switch {
	case width <= 0:
		return ""
	case runewidth.StringWidth(text) <= width:
		return text
	}
	return runewidth.Truncate(text, width, cutMark)
}

// pad fills a text up to a width, on its left where it is a number, and cuts what is more.
func pad(text string, width int, right bool) string {
	text = fit(clean(text), width)
	fill := strings.Repeat(" ", max(0, width-runewidth.StringWidth(text)))
	if right {
		return fill + text
	}
	return text + fill
}

// gap is between pieces of a line.
const gap = "  "

// flowed puts pieces into lines of a width, with gaps between them.
func flowed(pieces []span, width int) (lines []line) {
	room := 0
	for _, p := range pieces {
		need := runewidth.StringWidth(clean(p.text))
		if len(lines) == 0 || need+len(gap) > room {
			lines = append(lines, line{p})
			room = width - need
			continue
		}
		last := &lines[len(lines)-1]
		*last = append(*last, span{gap, plain}, p)
		room -= need + len(gap)
	}
	return lines
}

// wrapped breaks a text at spaces into lines of a width.
func wrapped(text string, width int) (lines []line) {
	var pieces []span
	rest := 0
	for _, word := range strings.Fields(clean(text)) {
		need := runewidth.StringWidth(word)
		if len(pieces) == 0 || need+1 > rest {
			pieces = append(pieces, span{word, plain})
			rest = width - need
			continue
		}
		pieces[len(pieces)-1].text += " " + word
		rest -= need + 1
	}
	for _, p := range pieces {
		lines = append(lines, line{p})
	}
	return lines
}
