// SPDX-License-Identifier: Apache-2.0

package history

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"time"

	"github.com/klauspost/compress/zstd"

	"github.com/earlydrop/earlydrop/classifier"
	"github.com/earlydrop/earlydrop/cmd/earlydrop/event"
	"github.com/earlydrop/earlydrop/loader/assembly"
	"github.com/earlydrop/earlydrop/loader/flow"
	"github.com/earlydrop/earlydrop/loader/flow/headers"
)

// Defaults of Captures. A capture takes about 1.7 KB, as most of it is encrypted.
const (
	DefaultCaptureBytes = 64 << 20
	DefaultCaptureAge   = 7 * 24 * time.Hour
)

// Captures says which captures are kept: those of flows that the policy treats, in mode monitor
// as well.
type Captures struct {
	// Bytes bounds what they take of the file (optional, DefaultCaptureBytes), and Age how old
	// they get (optional, DefaultCaptureAge). The oldest make room.
	Bytes int64
	Age   time.Duration
	// Addresses says what becomes of the addresses in them.
	Addresses Addresses
}

// Addresses says what becomes of the addresses of a capture that is kept: those of Ethernet and
// IP. What a payload says stays.
type Addresses int

// The choices.
const (
	AddressesKept    Addresses = iota // as they are
	AddressesHashed                   // others, the same for the same ones: only who has the key can tell
	AddressesLeftOut                  // zeros
)

var addressWords = []string{"kept", "hashed", "left-out"}

// AddressWords are the words for them.
func AddressWords() []string { return append([]string(nil), addressWords...) }

// ParseAddresses reads a word.
func ParseAddresses(word string) (Addresses, error) {
	for i, w := range addressWords {
		if w == word {
			return Addresses(i), nil
		}
	}
	return 0, fmt.Errorf("%q: use kept, hashed or left-out", word)
}

// keyBytes is the length of the key that addresses are hashed with.
const keyBytes = 32

// hider changes the addresses of captures. It is for one goroutine.
type hider struct {
	how     Addresses
	key     []byte // of AddressesHashed
	headers headers.Headers
	marks   [flow.CaptureBytes]uint8
}

// newHider returns a hider. The key is in a file beside the history, and made where it is not
// there.
func newHider(how Addresses, path string) (*hider, error) {
	h := &hider{how: how}
	if how != AddressesHashed {
		return h, nil
	}
	path += "-key"
	var err error
	if h.key, err = os.ReadFile(path); errors.Is(err, fs.ErrNotExist) {
		h.key = make([]byte, keyBytes)
		_, _ = rand.Read(h.key) // it never fails
		err = os.WriteFile(path, h.key, 0o600)
	}
	if err == nil && len(h.key) != keyBytes {
		err = fmt.Errorf("%s is no key of %d bytes: remove it, and another is made", path, keyBytes)
	}
	return h, err
}

// address returns what takes the place of an address: of IPv4 one of 240.0.0.0/4, of IPv6 one of
// fc00::/7, which hosts in the Internet do not have.
func (h *hider) address(a netip.Addr) netip.Addr {
	switch {
	case h.how == AddressesKept:
		return a
	case h.how == AddressesLeftOut && a.Is4():
		return netip.IPv4Unspecified()
	case h.how == AddressesLeftOut:
		return netip.IPv6Unspecified()
	}
	mac := hmac.New(sha256.New, h.key)
	_, _ = mac.Write(a.AsSlice())
	sum := mac.Sum(nil)
	if a.Is4() {
		b := [4]byte(sum)
		b[0] |= 0xf0
		return netip.AddrFrom4(b)
	}
	b := [16]byte(sum)
	b[0] = 0xfc
	return netip.AddrFrom16(b)
}

// Marks of the bytes of addresses.
const (
	markZero = iota + 1
	markSource
	markDestination
)

var addressMarks = headers.Table{
	headers.EthernetDestination: markZero,
	headers.EthernetSource:      markZero,
	headers.IPv4Source:          markSource,
	headers.IPv4Destination:     markDestination,
	headers.IPv6Source:          markSource,
	headers.IPv6Destination:     markDestination,
	headers.IPv6RoutingData:     markZero,
}

// hide changes the addresses of a sample: in what is said of it, and in its packets.
func (h *hider) hide(s *flow.Sample) {
	if h.how == AddressesKept {
		return
	}
	from, to := s.Initiator(), s.Responder()
	with := func(end netip.AddrPort) netip.AddrPort { return netip.AddrPortFrom(h.address(end.Addr()), end.Port()) }
	s.Key, s.InitiatorIsLo = flow.NewKey(with(from), with(to), s.Key.Proto, s.Key.VLAN, s.Key.InnerVLAN)
	for i := range s.Packets {
		frame := s.Frame(i)
		marks := h.marks[:len(frame)]
		clear(marks)
		h.headers.Walk(frame, int(s.Packets[i].WireLen))
		h.headers.Paint(marks, &addressMarks, frame)
		for at := 0; at < len(frame); {
			mark, end := marks[at], at+1
			for end < len(frame) && marks[end] == mark {
				end++
			}
			switch mark {
			case markZero:
				clear(frame[at:end])
			case markSource, markDestination:
				// One that the capture cut can't be hashed as a whole.
				addr, whole := netip.AddrFromSlice(frame[at:end])
				clear(frame[at:end])
				if whole {
					copy(frame[at:end], h.address(addr).AsSlice())
				}
			}
			at = end
		}
	}
}

// packCapture returns a capture as a file, compressed, and the file's length.
func (h *hider) packCapture(z *zstd.Encoder, v *event.Verdict, s *flow.Sample) (packed []byte, err error) {
	s.Seed = classifier.Seed(s)
	h.hide(s)
	said := *v
	said.Src, said.Dst = s.Initiator(), s.Responder()
	line, err := json.Marshal(&said)
	if err != nil {
		return nil, err
	}
	var file bytes.Buffer
	if err := assembly.WriteKept(&file, s, said.Text(true), string(line)); err != nil {
		return nil, err
	}
	return z.EncodeAll(file.Bytes(), nil), nil
}

// Capture returns the capture of an event as a pcapng file. The error wraps ErrNotFound where
// none is kept.
func (r *Reader) Capture(ctx context.Context, id event.ID) ([]byte, error) {
	var packed []byte
	err := r.db.QueryRowContext(ctx, "SELECT pcap FROM captures WHERE id = ?", int64(id)).Scan(&packed)
	switch {
	case errors.Is(err, sql.ErrNoRows):
		return nil, fmt.Errorf("the capture of event %s: %w in the history", id, ErrNotFound)
	case err != nil:
		r.failed(err)
		return nil, fmt.Errorf("read the history: %w", plain(err))
	}
	file, err := r.unpack.zstd.DecodeAll(packed, nil)
	if err != nil {
		return nil, fmt.Errorf("the capture of event %s is damaged: %w", id, err)
	}
	return file, nil
}

// Capture is explained at Reader.Capture.
func (h *History) Capture(ctx context.Context, id event.ID) ([]byte, error) {
	r, err := h.current()
	switch {
	case err != nil:
		return nil, err
	case r == nil:
		return nil, fmt.Errorf("the capture of event %s: %w: the history is empty", id, ErrNotFound)
	}
	return r.Capture(ctx, id)
}

// keepCapture writes the capture of a verdict, in the transaction of the events beside it.
func (w *writer) keepCapture(v *event.Verdict, s *flow.Sample) {
	if !w.ready() {
		w.h.capturesLost.Add(1)
		return
	}
	packed, err := w.packCapture(v, s)
	if err != nil { // of the key: without it nothing is kept that it is to hide
		w.h.capturesLost.Add(1)
		w.warnCapture.Do(func() { slog.Warn("the history keeps no captures; the work goes on", "file", w.h.o.Path, "error", err) })
		return
	}
	err = w.begin()
	if err == nil {
		_, err = w.tx.Exec("INSERT OR REPLACE INTO captures VALUES (?, ?, ?, ?)", int64(v.ID), v.Time.Unix(), len(packed), packed)
	}
	if err != nil {
		w.h.capturesLost.Add(1)
		w.fail(err)
		return
	}
	w.captured += int64(len(packed))
}

func (w *writer) packCapture(v *event.Verdict, s *flow.Sample) (packed []byte, err error) {
	if w.hider == nil {
		if w.hider, err = newHider(w.h.o.Captures.Addresses, w.h.o.Path); err != nil {
			w.hider = nil
			return nil, err
		}
	}
	return w.hider.packCapture(w.pack.zstd, v, s)
}

// pruneCaptures removes those that are too old, and the oldest ones where there is too much.
func (w *writer) pruneCaptures() error {
	c := w.h.o.Captures
	if c == nil {
		c = &Captures{Bytes: DefaultCaptureBytes, Age: DefaultCaptureAge} // of a daemon before
	}
	if _, err := w.db.Exec("DELETE FROM captures WHERE kept < ?", time.Now().Add(-c.Age).Unix()); err != nil {
		return err
	}
	for {
		if err := w.db.QueryRow("SELECT coalesce(sum(bytes), 0) FROM captures").Scan(&w.captured); err != nil {
			return err
		}
		if w.captured <= c.Bytes {
			return nil
		}
		if _, err := w.db.Exec("DELETE FROM captures WHERE id IN (SELECT id FROM captures ORDER BY id LIMIT max(1, (SELECT count(*) FROM captures) / 10))"); err != nil {
			return err
		}
	}
}
