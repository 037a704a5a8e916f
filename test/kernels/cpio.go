// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"io"
	"strings"
)

// cpioWriter writes an initial RAM file system: the "new ASCII" cpio format, of
// which the kernel reads regular files, folders and device nodes.
type cpioWriter struct {
	w     io.Writer
	off   int64
	inode int
	err   error
}

// Bits of st_mode, as the format has them.
const (
	modeDir  = 0o040755
	modeChar = 0o020600
	modeFile = 0o100755
)

func newCPIOWriter(w io.Writer) *cpioWriter { return &cpioWriter{w: w} }

func (c *cpioWriter) dir(name string) { c.entry(name, modeDir, nil, 0, 0) }

func (c *cpioWriter) file(name string, data []byte) { c.entry(name, modeFile, data, 0, 0) }

func (c *cpioWriter) char(name string, major, minor int) {
	c.entry(name, modeChar, nil, major, minor)
}

// close ends the archive and returns the first error.
func (c *cpioWriter) close() error {
	c.entry("TRAILER!!!", 0, nil, 0, 0)
	return c.err
}

// entry writes thirteen numbers of eight hexadecimal digits, the name with a NUL
// behind it, and the data; name and data each end on a multiple of four.
func (c *cpioWriter) entry(name string, mode int, data []byte, major, minor int) {
	name = strings.TrimPrefix(name, "/")
	c.inode++
	const links, nobody = 1, 0
	numbers := []int{c.inode, mode, nobody, nobody, links, 0, len(data), 0, 0, major, minor, len(name) + 1, 0}
	c.write([]byte("070701"))
	for _, n := range numbers {
		c.write(fmt.Appendf(nil, "%08x", n))
	}
	c.write(append([]byte(name), 0))
	c.pad()
	c.write(data)
	c.pad()
}

func (c *cpioWriter) pad() { c.write(make([]byte, (4-c.off%4)%4)) }

func (c *cpioWriter) write(b []byte) {
	if c.err != nil {
		return
	}
	n, err := c.w.Write(b)
	c.off += int64(n)
	c.err = err
}
