// SPDX-License-Identifier: Apache-2.0

package term

import (
	"bufio"
	"errors"
	"io"
	"strings"
	"unicode/utf8"
)

// columnRows is how many rows are in memory before their columns are aligned.
const columnRows = 2000

// Columns prints a table of any length with aligned columns. A column gets wider
// where it has to, from one block of rows to the next.
type Columns struct {
	w      *bufio.Writer
	widths []int // in characters
	rows   [][]string
}

// NewColumns returns a table that is printed to w.
func NewColumns(w io.Writer) *Columns { return &Columns{w: bufio.NewWriter(w)} }

// Row adds a row.
func (c *Columns) Row(cells ...string) error {
	c.rows = append(c.rows, cells)
	if len(c.rows) < columnRows {
		return nil
	}
	return c.Flush()
}

// Flush prints what was added.
func (c *Columns) Flush() error {
	for _, row := range c.rows {
		for i, cell := range row {
			if i == len(c.widths) {
				c.widths = append(c.widths, 0)
			}
			c.widths[i] = max(c.widths[i], utf8.RuneCountInString(cell))
		}
	}
	var err error
	for _, row := range c.rows {
		for i, cell := range row {
			if i < len(row)-1 {
				cell += strings.Repeat(" ", c.widths[i]-utf8.RuneCountInString(cell)+2)
			}
			_, failed := c.w.WriteString(cell)
			err = errors.Join(err, failed)
		}
		err = errors.Join(err, c.w.WriteByte('\n'))
		if err != nil {
			return err
		}
	}
	c.rows = c.rows[:0]
	return c.w.Flush()
}
