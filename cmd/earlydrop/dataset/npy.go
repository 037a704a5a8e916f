// SPDX-License-Identifier: Apache-2.0

package dataset

import (
	"bufio"
	"fmt"
	"os"
	"strings"
)

// npyHeader is the length of the header that npyFile writes: a multiple of 64
// bytes, as the format asks for, with room for any number of rows.
const npyHeader = 128

// npyFile writes a NumPy array row by row; the number of rows is put into the
// header at the end.
type npyFile struct {
	file  *os.File
	buf   *bufio.Writer
	dtype string // as NumPy writes it: "|u1", "<i4"
	row   []int  // shape of one row
	rows  int
}

func createNpy(path, dtype string, row ...int) (*npyFile, error) {
	file, err := os.Create(path)
	if err != nil {
		return nil, err
	}
	n := &npyFile{file: file, buf: bufio.NewWriterSize(file, 1<<18), dtype: dtype, row: row}
	if _, err := n.buf.Write(n.header()); err != nil {
		file.Close()
		return nil, err
	}
	return n, nil
}

// header returns the header for the rows written so far.
func (n *npyFile) header() []byte {
	shape := fmt.Sprint(n.rows)
	for _, d := range n.row {
		shape += fmt.Sprintf(", %d", d)
	}
	const prefix = "\x93NUMPY\x01\x00"
	dict := fmt.Sprintf("{'descr': '%s', 'fortran_order': False, 'shape': (%s), }", n.dtype, shape)
	dict += strings.Repeat(" ", npyHeader-len(prefix)-2-len(dict)-1) + "\n"
	return append([]byte(prefix), append([]byte{byte(len(dict)), 0}, dict...)...)
}

// write appends one row.
func (n *npyFile) write(row []byte) error {
	n.rows++
	_, err := n.buf.Write(row)
	return err
}

// close completes the header and closes the file.
func (n *npyFile) close() error {
	err := n.buf.Flush()
	if err == nil {
		_, err = n.file.WriteAt(n.header(), 0)
	}
	if closeErr := n.file.Close(); err == nil {
		err = closeErr
	}
	return err
}
