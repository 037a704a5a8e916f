// SPDX-License-Identifier: Apache-2.0

// Waits counts, in capture files, the TCP connections that would wait for their verdict in mode
// enforce, as their first bytes look random (flow.LooksRandom).
//
//	go run ./test/waits [-v] [-sources FILE] FOLDER...
//
// A row is a folder in a FOLDER, so that sources of captures are told apart; -sources names a
// file with those that count, one a line, so that what thresholds were chosen by can be left out.
// The table is Markdown.
package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/earlydrop/earlydrop/loader/assembly"
	"github.com/earlydrop/earlydrop/loader/flow"
	"github.com/earlydrop/earlydrop/loader/flow/headers"
)

func main() {
	only := flag.String("sources", "", "count what the `FILE` names, one folder a line")
	verbose := flag.Bool("v", false, "print each connection that would wait")
	flag.Parse()
	if err := run(os.Stdout, *only, *verbose, flag.Args()); err != nil {
		fmt.Fprintln(os.Stderr, "waits:", err)
		os.Exit(1)
	}
}

// counts are of the TCP connections of a source that were seen from their beginning.
type counts struct {
	flows  int // captured
	full   int // ... whole
	random int // of which the first payload looks random
	waits  int // ... and which would wait
}

func (c *counts) add(o *counts) {
	c.flows, c.full, c.random, c.waits = c.flows+o.flows, c.full+o.full, c.random+o.random, c.waits+o.waits
}

func run(out io.Writer, only string, verbose bool, folders []string) error {
	if len(folders) == 0 {
		return errors.New("name a folder of captures")
	}
	var sources []string
	if only != "" {
		text, err := os.ReadFile(only)
		if err != nil {
			return err
		}
		sources = strings.Fields(string(text))
	}
	rows := map[string]*counts{}
	for _, folder := range folders {
		err := filepath.WalkDir(folder, func(path string, d fs.DirEntry, err error) error {
			if err != nil || !d.Type().IsRegular() {
				return err
			}
			inside, err := filepath.Rel(folder, path)
			if err != nil {
				return err
			}
			source, _, _ := strings.Cut(filepath.ToSlash(inside), "/")
			if sources != nil && !slices.Contains(sources, source) {
				return nil
			}
			if rows[source] == nil {
				rows[source] = new(counts)
			}
			return rows[source].read(path, func(s *flow.Sample) {
				if verbose {
					first, length := firstPayload(s)
					fmt.Fprintf(out, "%s: %s > %s: %d bytes: % x\n", inside, s.Initiator(), s.Responder(), length, first[:16])
				}
			})
		})
		if err != nil {
			return err
		}
	}
	return print(out, rows)
}

// read counts the connections of a file, as far as it can be read. It tells of those that would
// wait.
func (c *counts) read(path string, tell func(*flow.Sample)) error {
	file, err := assembly.Open(path)
	if err != nil {
		var bad *assembly.FileError
		if errors.As(err, &bad) {
			return nil // no capture
		}
		return err
	}
	defer file.Close()
	a := assembly.New(assembly.Options{}, func(_ *assembly.Flow, s *flow.Sample) {
		if !s.Proven() || s.Revision > 0 || s.Variant {
			return
		}
		c.flows++
		full := s.Reason == flow.ReasonFull && !s.Provisional
		if full {
			c.full++
		}
		if !flow.LooksRandom(firstPayload(s)) {
			return
		}
		c.random++
		if full {
			c.waits++
			tell(s)
		}
	}, nil)
	var bad *assembly.FileError
	if err := file.Run(a, nil); err != nil && !errors.As(err, &bad) {
		return err
	}
	return nil
}

// firstPayload returns what was captured of the initiator's first payload, if that begins where
// the connection does, and its length on the wire.
func firstPayload(s *flow.Sample) (captured []byte, length int) {
	for i, p := range s.Packets {
		if !p.FromInitiator {
			continue
		}
		var h headers.Headers
		frame := s.Frame(i)
		if h.WalkCaptured(frame, int(p.WireLen)); h.Proto != flow.TCP || h.PayloadLen == 0 || h.Flags&headers.SYN != 0 {
			continue
		}
		if h.Seq != s.Numbers.InitiatorISN+1 {
			return nil, 0
		}
		return frame[min(h.Payload, len(frame)):], h.PayloadLen
	}
	return nil, 0
}

func print(out io.Writer, rows map[string]*counts) error {
	var all counts
	var b strings.Builder
	b.WriteString("| source | TCP connections | with all 1024 bytes | first payload looks random | would wait |\n| --- | --- | --- | --- | --- |\n")
	rest, restOf := 0, counts{}
	for _, name := range slices.Sorted(maps.Keys(rows)) {
		c := rows[name]
		all.add(c)
		if c.random == 0 {
			rest++
			restOf.add(c)
			continue
		}
		fmt.Fprintf(&b, "| %s | %d | %d | %d | %d |\n", name, c.flows, c.full, c.random, c.waits)
	}
	fmt.Fprintf(&b, "| %d others | %d | %d | 0 | 0 |\n", rest, restOf.flows, restOf.full)
	share := 0.0
	if all.flows > 0 {
		share = 100 * float64(all.waits) / float64(all.flows)
	}
	fmt.Fprintf(&b, "| **all** | %d | %d | %d | %d (%.3f %%) |\n", all.flows, all.full, all.random, all.waits, share)
	_, err := io.WriteString(out, b.String())
	return err
}
