// SPDX-License-Identifier: Apache-2.0

package assembly

import (
	"fmt"
	"strings"
	"unicode"
)

// SkippedError says what of a capture file was skipped while the rest was read.
type SkippedError struct {
	// Packets is the number of all packets that were skipped.
	Packets uint64
	// Skipped has an entry for each interface and cause, in order of its first
	// packet. It is bounded: packets of further interfaces are in Packets alone.
	Skipped []Skipped
}

// maxSkipped bounds the entries of a SkippedError, shownSkipped those in its text.
const (
	maxSkipped   = 64
	shownSkipped = 4
)

// Skipped is what was skipped of one interface for one cause.
type Skipped struct {
	// Interface names the interface of a pcapng file ("interface 1 (eth0)"). It
	// is empty for a pcap file, which has one only.
	Interface string
	// Err is or wraps ErrLinkType or ErrInterface.
	Err     error
	Packets uint64

	source source
}

// source is where a packet of a file is from. The zero value is a pcap file.
type source struct {
	section int    // of a pcapng file, from 1
	whole   bool   // the section as a whole
	number  uint32 // of the interface in its section, from 0
	name    string
}

// String names the interface for people.
func (s source) String() string {
	switch {
	case s.section == 0:
		return ""
	case s.whole:
		return fmt.Sprintf("section %d", s.section)
	}
	text := fmt.Sprintf("interface %d", s.number)
	if s.name != "" {
		text += fmt.Sprintf(" (%s)", printable(s.name))
	}
	if s.section > 1 {
		text += fmt.Sprintf(" of section %d", s.section)
	}
	return text
}

// printable replaces what a terminal would not print as it is.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) || r == unicode.ReplacementChar {
			return '?'
		}
		return r
	}, s)
}

// linkError says that packets of a link type can't be read.
type linkError struct {
	link   LinkType
	inside LinkType // the header before it, which names the link type, if wrapped
	wraps  bool
}

func (e linkError) Error() string {
	text := fmt.Sprintf("%v %d (%v)", ErrLinkType, uint32(e.link), e.link)
	if e.wraps {
		text += fmt.Sprintf(" inside of %v", e.inside)
	}
	return text
}

func (e linkError) Unwrap() error { return ErrLinkType }

// interfaceError says why the packets of an interface can't be read.
type interfaceError string

func (e interfaceError) Error() string { return string(e) }
func (e interfaceError) Unwrap() error { return ErrInterface }

// add counts a packet that was skipped. Its cause is a linkError or an
// interfaceError, which can be compared.
func (e *SkippedError) add(r *record) {
	e.Packets++
	for i := range e.Skipped {
		if s := &e.Skipped[i]; s.source == r.from && s.Err == r.skip {
			s.Packets++
			return
		}
	}
	if len(e.Skipped) < maxSkipped {
		e.Skipped = append(e.Skipped, Skipped{Interface: r.from.String(), Err: r.skip, Packets: 1, source: r.from})
	}
}

// Error says in one line how many packets were skipped, of which interface and
// why.
func (e *SkippedError) Error() string {
	causes := e.causes(true)
	if len(e.Skipped) == 1 {
		causes = e.causes(false)
	}
	what := "packets"
	if e.Packets == 1 {
		what = "packet"
	}
	return fmt.Sprintf("%d %s skipped: %s", e.Packets, what, causes)
}

// Causes is Error without the numbers of packets, the same for files that lack
// the same.
func (e *SkippedError) Causes() string { return "packets skipped: " + e.causes(false) }

func (e *SkippedError) causes(numbers bool) string {
	var parts []string
	rest := e.Packets
	for _, s := range e.Skipped[:min(len(e.Skipped), shownSkipped)] {
		part := s.Err.Error()
		if s.Interface != "" {
			part = s.Interface + ": " + part
		}
		if numbers {
			part += fmt.Sprintf(", %d", s.Packets)
		}
		rest -= s.Packets
		parts = append(parts, part)
	}
	if rest > 0 {
		parts = append(parts, "others")
		if numbers {
			parts[len(parts)-1] += fmt.Sprintf(", %d", rest)
		}
	}
	return strings.Join(parts, "; ")
}

// Unwrap returns the causes, so that errors.Is finds them.
func (e *SkippedError) Unwrap() []error {
	causes := make([]error, len(e.Skipped))
	for i := range e.Skipped {
		causes[i] = e.Skipped[i].Err
	}
	return causes
}
