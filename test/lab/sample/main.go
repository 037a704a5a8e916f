// SPDX-License-Identifier: Apache-2.0

// Sample picks a few flows out of a recording and writes them as small
// captures to check in as test data.
//
//	go run ./test/lab/sample --from DIR --out test/data
//
// DIR is what test/lab/record wrote. For each label there is one capture,
// LABEL.pcap, with --per flows of every program and variant, each of another
// network condition where there are several, and labels.tsv names every flow
// with its label. The same recording and seed always give the same files.
package main

import (
	"cmp"
	"encoding/csv"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"github.com/gopacket/gopacket/pcapgo"
)

func main() {
	from := flag.String("from", "", "directory of a recording")
	out := flag.String("out", "", "directory for the captures")
	per := flag.Int("per", 1, "flows of each program and variant")
	seed := flag.Uint64("seed", 1, "seed of the choice")
	flag.Parse()
	if err := run(*from, *out, *per, *seed); err != nil {
		fmt.Fprintln(os.Stderr, "sample:", err)
		os.Exit(1)
	}
}

// flowBytes of a flow's frames are kept: more than the 1024 that are looked
// at, so that it is seen that the rest is not.
const flowBytes = 4096

// chosen is one flow of a recording. Times of its packets are counted from
// the first.
type chosen struct {
	key     string // "tcp client server" as addresses and ports
	packets []packet
}

type packet struct {
	at   time.Duration
	wire int
	data []byte
}

func run(from, out string, per int, seed uint64) error {
	if from == "" || out == "" || per < 1 {
		return errors.New("give --from and --out, and --per of at least 1")
	}
	rows, err := readManifest(filepath.Join(from, "manifest.tsv"))
	if err != nil {
		return err
	}
	r := rand.New(rand.NewPCG(seed, 0))
	r.Shuffle(len(rows), func(i, j int) { rows[i], rows[j] = rows[j], rows[i] })
	slices.SortStableFunc(rows, func(a, b map[string]string) int { return cmp.Compare(what(a), what(b)) })
	if err := os.MkdirAll(out, 0o755); err != nil {
		return err
	}
	table := []string{"file\tproto\tclient\tserver\tlabel\tprogram\tvariant\tcarried\tkind"}
	flows := map[string][]chosen{}
	taken, used := map[string]int{}, map[string]bool{}
	for _, row := range rows {
		label := row["label"]
		// One row of a condition for each variant, so that conditions vary.
		if taken[what(row)] == per || used[what(row)+row["group"]] {
			continue
		}
		f, err := firstFlow(filepath.Join(from, row["path"]))
		if err != nil {
			return err
		}
		if len(f.packets) == 0 {
			continue
		}
		taken[what(row)]++
		used[what(row)+row["group"]] = true
		flows[label] = append(flows[label], f)
		table = append(table, strings.Join([]string{label + ".pcap", strings.ReplaceAll(f.key, " ", "\t"), label, row["program"], row["cipher"], row["carried"], row["kind"]}, "\t"))
	}
	for label, fs := range flows {
		if err := write(filepath.Join(out, label+".pcap"), fs); err != nil {
			return err
		}
	}
	return os.WriteFile(filepath.Join(out, "labels.tsv"), []byte(strings.Join(table, "\n")+"\n"), 0o644)
}

// what names a program and its variant; of ordinary programs the activity is
// part of it.
func what(row map[string]string) string {
	s := row["label"] + " " + row["program"] + " " + row["cipher"]
	if row["kind"] == "ordinary" {
		s += " " + row["carried"]
	}
	return s
}

func readManifest(path string) ([]map[string]string, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	r := csv.NewReader(f)
	r.Comma, r.LazyQuotes = '\t', true
	lines, err := r.ReadAll()
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	if len(lines) < 2 {
		return nil, fmt.Errorf("%s: no captures in it", path)
	}
	for _, c := range []string{"path", "label", "group", "program", "cipher", "carried", "kind"} {
		if !slices.Contains(lines[0], c) {
			return nil, fmt.Errorf("%s: no column %q", path, c)
		}
	}
	var rows []map[string]string
	for _, l := range lines[1:] {
		row := map[string]string{}
		for i, c := range lines[0] {
			row[c] = l[i]
		}
		rows = append(rows, row)
	}
	return rows, nil
}

// firstFlow returns the first flow of a capture, cut to flowBytes and its
// closing packets.
func firstFlow(path string) (chosen, error) {
	f, err := os.Open(path)
	if err != nil {
		return chosen{}, err
	}
	defer f.Close()
	r, err := pcapgo.NewReader(f)
	if err != nil {
		return chosen{}, fmt.Errorf("%s: %w", path, err)
	}
	var c chosen
	var reverse string
	var start time.Time
	size := 0
	for {
		data, ci, err := r.ReadPacketData()
		if errors.Is(err, io.EOF) {
			return c, nil
		}
		if err != nil {
			return chosen{}, fmt.Errorf("%s: %w", path, err)
		}
		pkt := gopacket.NewPacket(data, layers.LayerTypeEthernet, gopacket.NoCopy)
		n, t := pkt.NetworkLayer(), pkt.TransportLayer()
		if n == nil || t == nil {
			continue
		}
		src, dst := endpoint(n.NetworkFlow().Src(), t.TransportFlow().Src()), endpoint(n.NetworkFlow().Dst(), t.TransportFlow().Dst())
		proto := strings.ToLower(t.LayerType().String())
		key := proto + " " + src + " " + dst
		if c.key == "" {
			c.key, reverse, start = key, proto+" "+dst+" "+src, ci.Timestamp
		}
		if key != c.key && key != reverse {
			continue
		}
		tcp, _ := t.(*layers.TCP)
		if size >= flowBytes && (tcp == nil || !tcp.FIN && !tcp.RST) {
			continue
		}
		size += ci.Length
		c.packets = append(c.packets, packet{ci.Timestamp.Sub(start), ci.Length, data})
	}
}

func endpoint(addr, port gopacket.Endpoint) string {
	if strings.Contains(addr.String(), ":") {
		return "[" + addr.String() + "]:" + port.String()
	}
	return addr.String() + ":" + port.String()
}

// write merges flows, begun a tenth of a second after one another.
func write(path string, flows []chosen) error {
	begin := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	var all []packet
	for i, f := range flows {
		for _, p := range f.packets {
			p.at += time.Duration(i) * 100 * time.Millisecond
			all = append(all, p)
		}
	}
	slices.SortStableFunc(all, func(a, b packet) int { return cmp.Compare(a.at, b.at) })
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close()
	w := pcapgo.NewWriter(f)
	if err := w.WriteFileHeader(1<<16, layers.LinkTypeEthernet); err != nil {
		return err
	}
	for _, p := range all {
		ci := gopacket.CaptureInfo{Timestamp: begin.Add(p.at), CaptureLength: len(p.data), Length: p.wire}
		if err := w.WritePacket(ci, p.data); err != nil {
			return fmt.Errorf("write %s: %w", path, err)
		}
	}
	return f.Close()
}
