// SPDX-License-Identifier: Apache-2.0

package top

import (
	"cmp"
	"slices"
	"strings"

	"github.com/mattn/go-runewidth"
)

// column is one of a list. Lists are sorted by a column: numbers from the largest on at first,
// words from the first on.
type column struct {
	title string
	right bool // a number
	time  bool // sorted as a number is, the latest first
	flex  int  // it may be cut to so much; 0: it may not
	rank  int  // of those with the highest rank each is left out where there is no room
}

func (c *column) largestFirst() bool { return c.right || c.time }

// cell is what a row has in a column: a text, and for numbers what they are sorted by.
type cell struct {
	text string
	n    float64
}

func word(text string) cell { return cell{text: text} }

// row is one of a list.
type row struct {
	id    string // the same from look to look
	cells []cell
	tone  tone
	about any // what the row is about
}

// has reports whether a text is in one of the row's cells, in upper or lower case.
func (r *row) has(text string) bool {
	text = strings.ToLower(text)
	return slices.ContainsFunc(r.cells, func(c cell) bool { return strings.Contains(strings.ToLower(c.text), text) })
}

// table is a list with its rows.
type table struct {
	columns []column
	rows    []row
}

// sortBy sorts the rows by a column, and turned from the other end.
func (t *table) sortBy(by int, turned bool) {
	number := t.columns[by].largestFirst()
	slices.SortStableFunc(t.rows, func(a, b row) int {
		x, y := &a.cells[by], &b.cells[by]
		c := cmp.Compare(x.text, y.text)
		if number {
			c = cmp.Compare(y.n, x.n)
		}
		if turned {
			c = -c
		}
		return c
	})
}

// widths returns how wide the columns are in a width, 0 for those that are left out. marked is
// the one whose title has a mark.
func (t *table) widths(width, marked int) []int {
	natural, least := make([]int, len(t.columns)), make([]int, len(t.columns))
	for i, c := range t.columns {
		natural[i] = len(c.title)
		if i == marked {
			natural[i] += len(sortMark(c, false))
		}
		least[i] = natural[i]
		for _, r := range t.rows {
			natural[i] = max(natural[i], runewidth.StringWidth(clean(r.cells[i].text)))
		}
		if c.flex == 0 {
			least[i] = natural[i]
		} else {
			least[i] = max(least[i], min(c.flex, natural[i]))
		}
	}
	sum := func() (n int) {
		for _, w := range least {
			if w > 0 {
				n += w + 1
			}
		}
		return n - 1
	}
	for sum() > width {
		out := -1
		for i, c := range t.columns {
			if least[i] > 0 && c.rank > 0 && (out < 0 || c.rank >= t.columns[out].rank) {
				out = i
			}
		}
		if out < 0 {
			break // the end of the lines is cut
		}
		least[out] = 0
	}
	for room := width - sum(); room > 0; {
		before := room
		for i, c := range t.columns {
			if room > 0 && c.flex > 0 && least[i] > 0 && least[i] < natural[i] {
				least[i]++
				room--
			}
		}
		if room == before {
			break
		}
	}
	return least
}

// sortMark is behind the title of the column that a list is sorted by.
func sortMark(c column, turned bool) string {
	if c.largestFirst() != turned {
		return " v" // downwards from the largest, or the last word
	}
	return " ^"
}

// lines returns the head of the table, and its rows.
func (t *table) lines(width, by int, turned bool) (head line, rows []line) {
	widths := t.widths(width, by)
	title := make([]cell, len(t.columns))
	for i, c := range t.columns {
		title[i].text = c.title
		if i == by {
			title[i].text += sortMark(c, turned)
		}
	}
	text := func(cells []cell) string {
		var parts []string
		for i, c := range cells {
			if widths[i] > 0 {
				parts = append(parts, pad(c.text, widths[i], t.columns[i].right))
			}
		}
		return strings.Join(parts, " ")
	}
	for i := range t.rows {
		rows = append(rows, say(t.rows[i].tone, text(t.rows[i].cells)))
	}
	return say(strong, text(title)), rows
}
