// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"errors"
	"io"
	"strings"
	"unicode/utf8"
)

// columnRows is how many rows are in memory before their columns are aligned.
const columnRows = 2000

// columnTable prints a table of any length with aligned columns. A column gets wider
// where it has to, from one block of rows to the next.
type columnTable struct {
	w      *bufio.Writer
	widths []int // in characters
	rows   [][]string
}

func newColumns(w io.Writer) *columnTable { return &columnTable{w: bufio.NewWriter(w)} }

// row adds a row.
func (c *columnTable) row(cells ...string) error {
	c.rows = append(c.rows, cells)
	if len(c.rows) < columnRows {
		return nil
	}
	return c.flush()
}

// flush prints what was added.
func (c *columnTable) flush() error {
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
