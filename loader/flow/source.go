// SPDX-License-Identifier: Apache-2.0

package flow

// Source is where a flow was captured: on an interface, or in a capture file. The other
// fields are zero then. It is comparable and may key a Go map.
type Source struct {
	// Interface is the interface's name when the capture was read. It may be renamed;
	// Index, above 0, stays the same as long as it is not moved to another network
	// namespace.
	Interface string
	Index     int
	// File is the name of the capture file that the flow begins in.
	File string
}

// String returns the name of the interface or of the file.
func (s Source) String() string {
	if s.File != "" {
		return s.File
	}
	return s.Interface
}
