// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"encoding/xml"
	"fmt"
	"io"
	"strings"

	"github.com/jedib0t/go-pretty/v6/text"
)

// columns is how wide a terminal has to be.
const columns = 100

// wrapped breaks lines that are too long between words. A line comes in one Write.
type wrapped struct{ to io.Writer }

func (w *wrapped) Write(p []byte) (int, error) {
	var b strings.Builder
	for line := range strings.Lines(string(p)) {
		whole, newline := strings.CutSuffix(line, "\n")
		if text.StringWidthWithoutEscSequences(whole) > columns {
			indent := whole[:len(whole)-len(strings.TrimLeft(whole, " "))]
			parts := strings.Split(text.WrapSoft(whole, columns-4), "\n")
			for i := range parts {
				if parts[i] = indent + strings.TrimSpace(parts[i]); i > 0 {
					parts[i] = "    " + parts[i]
				}
			}
			whole = strings.Join(parts, "\n")
		}
		b.WriteString(whole)
		if newline {
			b.WriteByte('\n')
		}
	}
	if _, err := io.WriteString(w.to, b.String()); err != nil {
		return 0, err
	}
	return len(p), nil
}

// svg returns a picture of a terminal that shows lines of text.
func svg(shown string) []byte {
	const char, line, margin = 7.25, 16, 14
	lines := strings.Split(strings.TrimRight(shown, "\n"), "\n")
	widest := 0
	for _, l := range lines {
		widest = max(widest, text.StringWidthWithoutEscSequences(l))
	}
	width, height := int(char*float64(widest))+2*margin, line*len(lines)+2*margin
	var b bytes.Buffer
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" width="%[1]d" height="%[2]d" role="img" aria-label="what make demo prints">
<rect width="%[1]d" height="%[2]d" rx="6" fill="#14181d"/>
<g font-family="DejaVu Sans Mono,Menlo,Consolas,monospace" font-size="12" fill="#d5dbe1" xml:space="preserve">
`, width, height)
	for i, l := range lines {
		if l == "" {
			continue
		}
		fill := ""
		switch {
		case strings.HasPrefix(l, "\u250c"), strings.HasPrefix(l, "\u251c"), strings.HasPrefix(l, "\u2514"):
			fill = ` fill="#7d8894"`
		case strings.Contains(l, " untouched "):
			fill = ` fill="#8fd19e"`
		case strings.Contains(l, " cut "):
			fill = ` fill="#f08d7a"`
		}
		fmt.Fprintf(&b, `<text x="%d" y="%d" textLength="%.1f" lengthAdjust="spacingAndGlyphs"%s>`, margin, margin+line*(i+1)-4, char*float64(text.StringWidthWithoutEscSequences(l)), fill)
		_ = xml.EscapeText(&b, []byte(l))
		b.WriteString("</text>\n")
	}
	b.WriteString("</g>\n</svg>\n")
	return b.Bytes()
}
