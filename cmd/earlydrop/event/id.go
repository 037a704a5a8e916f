// SPDX-License-Identifier: Apache-2.0

package event

import (
	"fmt"
	"strconv"
	"sync/atomic"
	"time"
)

// ID names an event of a gateway for people and programs; its text has ten letters and digits,
// such as hdwn8ksmeo. A later event has a greater one, as number and as text: it is the time
// in microseconds since 1970, or one more than the last one where that is not greater.
type ID uint64

// idBase is that of the digits of an ID's text.
const idBase = 36

// ParseID reads the text of an ID.
func ParseID(text string) (ID, error) {
	n, err := strconv.ParseUint(text, idBase, 63) // as many bits as JSON, Go and SQL agree on
	if err != nil || n == 0 {
		return 0, fmt.Errorf("%q is no id of an event: these are as hdwn8ksmeo", text)
	}
	return ID(n), nil
}

// String returns the ID as people see it.
func (id ID) String() string { return strconv.FormatUint(uint64(id), idBase) }

// MarshalText is for encoding/json.
func (id ID) MarshalText() ([]byte, error) { return strconv.AppendUint(nil, uint64(id), idBase), nil }

// UnmarshalText is for encoding/json.
func (id *ID) UnmarshalText(text []byte) (err error) {
	*id, err = ParseID(string(text))
	return err
}

// Head is what all events have.
type Head struct {
	// ID is 0, and left out, of events that no gateway has logged: of files, and of kind lost.
	ID ID `json:"id,omitempty"`
}

func (h *Head) head() *Head { return h }

// IDOf returns the event's ID, 0 if it has none.
func IDOf(e Event) ID { return e.head().ID }

// IDs gives events their IDs. Its zero value is ready; it is safe for concurrent use.
type IDs struct{ last atomic.Uint64 }

// Identify gives the event an ID, unless it has one.
func (i *IDs) Identify(e Event) {
	if h := e.head(); h.ID == 0 {
		h.ID = i.New(time.Now())
	}
}

// New returns the ID of an event of now.
func (i *IDs) New(now time.Time) ID {
	for {
		last := i.last.Load()
		next := max(uint64(max(now.UnixMicro(), 0)), last+1)
		if i.last.CompareAndSwap(last, next) {
			return ID(next)
		}
	}
}

// After has all IDs to come be greater than last, whatever the clock says.
func (i *IDs) After(last ID) {
	for {
		was := i.last.Load()
		if was >= uint64(last) || i.last.CompareAndSwap(was, uint64(last)) {
			return
		}
	}
}
