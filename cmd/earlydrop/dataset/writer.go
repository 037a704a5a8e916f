// SPDX-License-Identifier: Apache-2.0

package dataset

import (
	"bufio"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"

	"github.com/earlydrop/earlydrop/classifier"
	"github.com/earlydrop/earlydrop/loader/flow"
	"github.com/earlydrop/earlydrop/loader/flow/headers"
)

// arrays are the files that the digest covers, in its order; behind them it covers
// SamplesFile.
var arrays = []string{CaptureFile, MaskFile, FieldsFile, PacketsFile, SessionFile}

// ownColumns are the columns of SamplesFile before the manifest's own.
var ownColumns = []string{"index", "label", "group", "file", "src", "dst", "proto", "captured", "reason"}

// writer writes samples to the files of a dataset folder.
type writer struct {
	capture, mask, fields, packets, session *npyFile

	config      Config
	read, total int64 // bytes of the inputs

	table     *bufio.Writer
	tableFile *os.File
	columns   []string
	Result
	seen map[[sha256.Size]byte]struct{} // label and kept bytes
}

// write reads all inputs and writes the files of a dataset into dir.
func write(ctx context.Context, c Config, dir string, inputs []input, columns []string) (_ *Result, err error) {
	w := &writer{columns: columns, seen: map[[sha256.Size]byte]struct{}{}, config: c}
	w.Info = Info{Format: Format, Labels: map[string]int{}, Groups: map[string]map[string]int{},
		Duplicates: map[string]int{}, Incomplete: map[string]int{}, Files: len(inputs), Counters: map[string]uint64{}, Fields: []string{"payload"}}
	for f := headers.Field(1); f < headers.NumFields; f++ {
		w.Fields = append(w.Fields, f.String())
	}
	closers := []func() error{}
	defer func() { // what a failure left open
		for _, f := range closers {
			_ = f()
		}
	}()
	for _, f := range []struct {
		to    **npyFile
		name  string
		dtype string
		row   []int
	}{
		{&w.capture, CaptureFile, "|u1", []int{flow.CaptureBytes}},
		{&w.mask, MaskFile, "|u1", []int{flow.CaptureBytes}},
		{&w.fields, FieldsFile, "|u1", []int{flow.CaptureBytes}},
		{&w.packets, PacketsFile, "<i4", []int{flow.MaxPackets, 6}},
		{&w.session, SessionFile, "<i4", []int{sessionPackets, len(sessionPacket{})}},
	} {
		if *f.to, err = createNpy(filepath.Join(dir, f.name), f.dtype, f.row...); err != nil {
			return nil, err
		}
		closers = append(closers, (*f.to).close)
	}
	if w.tableFile, err = os.Create(filepath.Join(dir, SamplesFile)); err != nil {
		return nil, err
	}
	closers = append(closers, w.tableFile.Close)
	w.table = bufio.NewWriter(w.tableFile)
	if _, err := fmt.Fprintln(w.table, strings.Join(slices.Concat(ownColumns, w.marks(nil), columns), "\t")); err != nil {
		return nil, err
	}

	if err := w.readAll(ctx, inputs); err != nil {
		return nil, err
	}

	if err := w.table.Flush(); err != nil {
		return nil, err
	}
	for _, f := range closers {
		if closeErr := f(); err == nil {
			err = closeErr
		}
	}
	closers = nil
	if err != nil {
		return nil, err
	}
	return &w.Result, w.finish(dir)
}

// oneWayColumn is the column of samples.tsv that Config.OneWay adds.
const oneWayColumn = "one_way"

// marks returns what the options of the assembly add to a line of samples.tsv: of the
// header line where there is no sample.
func (w *writer) marks(m *flow.Meta) []string {
	switch {
	case !w.config.OneWay:
		return nil
	case m == nil:
		return []string{oneWayColumn}
	}
	return []string{strconv.FormatBool(m.OneWay)}
}

// add writes one sample, and adds its session to added, unless its label has the
// same sample already.
func (w *writer) add(in *input, s *flow.Sample, added *sessions) error {
	var capture, mask, fields, kept [flow.CaptureBytes]byte
	copy(capture[:], s.Data)
	classifier.MaskMap(s, &mask)
	for i := range capture {
		if mask[i]&uint8(classifier.RecipeStrict) == 0 {
			kept[i] = capture[i]
		}
	}
	h := sha256.New()
	fmt.Fprintf(h, "%s\x00%d\x00", in.label, len(s.Data))
	h.Write(kept[:])
	id := [sha256.Size]byte(h.Sum(nil))
	if _, twice := w.seen[id]; twice {
		w.Duplicates[in.label]++
		return nil
	}
	w.seen[id] = struct{}{}

	index := w.Samples
	w.Samples++
	w.Labels[in.label]++
	w.Groups[in.label][in.group]++
	added.add(&s.Meta)
	records := packetRecords(s, &fields)
	return cmp.Or(w.capture.write(capture[:]), w.mask.write(mask[:]), w.fields.write(fields[:]), w.packets.write(records), w.line(index, in, s))
}

// packetRecords returns the row of a sample in PacketsFile, and paints its row of
// FieldsFile.
func packetRecords(s *flow.Sample, fields *[flow.CaptureBytes]byte) []byte {
	records := make([]byte, 0, flow.MaxPackets*6*4)
	for i := range flow.MaxPackets {
		record := [6]int32{-1}
		if i < len(s.Packets) {
			p, frame := &s.Packets[i], s.Frame(i)
			wireLen := asInt32(int(p.WireLen))
			var h headers.Headers
			h.Walk(frame, int(wireLen))
			h.Paint(fields[p.Offset:], &headers.Numbers, frame)
			record = [6]int32{int32(p.Offset), wireLen, 0, asInt32(int(p.Time / time.Microsecond)),
				int32(p.Offset) + int32(min(h.Payload, len(frame))), asInt32(h.PayloadLen)}
			if p.FromInitiator {
				record[2] = 1
			}
		}
		for _, v := range record {
			records = binary.LittleEndian.AppendUint32(records, uint32(v))
		}
	}
	return records
}

// line writes the line of a sample in SamplesFile.
func (w *writer) line(index int, in *input, s *flow.Sample) error {
	columns := []string{strconv.Itoa(index), in.label, in.group, in.file, s.Initiator().String(), s.Responder().String(),
		s.Key.Proto.String(), strconv.Itoa(len(s.Data)), s.Reason.String()}
	columns = append(columns, w.marks(&s.Meta)...)
	for _, name := range w.columns {
		columns = append(columns, in.extra[name])
	}
	for i := range columns { // names of files may hold anything
		columns[i] = strings.Map(func(r rune) rune {
			if unicode.IsControl(r) {
				return '?'
			}
			return r
		}, columns[i])
	}
	_, err := fmt.Fprintln(w.table, strings.Join(columns, "\t"))
	return err
}

// finish computes the digest and writes dataset.json.
func (w *writer) finish(dir string) error {
	h := sha256.New()
	for _, name := range append(slices.Clone(arrays), SamplesFile) {
		f, err := os.Open(filepath.Join(dir, name))
		if err != nil {
			return err
		}
		_, err = io.Copy(h, f)
		f.Close()
		if err != nil {
			return err
		}
	}
	w.Digest = "sha256:" + hex.EncodeToString(h.Sum(nil))
	text, err := json.MarshalIndent(&w.Info, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, InfoFile), append(text, '\n'), 0o644)
}
