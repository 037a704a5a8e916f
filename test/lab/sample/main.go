// SPDX-License-Identifier: Apache-2.0

// Sample picks a few flows out of a recording and writes them as small
// captures to check in as test data.
//
//	go run ./test/lab/sample --from DIR --out test/testdata
//
// DIR is what test/lab/record wrote. For each label there is one capture,
// LABEL.pcap, with --flows flows, and as many of the random-like ones where the
// label has both kinds: of as many programs, variants, uses and network
// conditions as there can be. labels.tsv names every flow with its label. The
// same recording and seed always give the same files.
package main

import (
	"cmp"
	"encoding/csv"
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
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
	flows := flag.Int("flows", 5, "flows of each label and kind")
	seed := flag.Uint64("seed", 1, "seed of the choice")
	flag.Parse()
	if err := run(*from, *out, *flows, *seed); err != nil {
		fmt.Fprintln(os.Stderr, "sample:", err)
		os.Exit(1)
	}
}

// flowBytes of a flow's frames are kept: more than the 1024 that are looked
// at, so that it is seen that the rest is not. Of the frame that goes beyond, and
// of later ones, there are at least headerBytes.
const (
	flowBytes   = 1536
	headerBytes = 128
)

// chosen is one flow of a recording. Times of its packets are counted from
// the first.
type chosen struct {
	key     string // "tcp client server" as addresses and ports
	packets []packet
	payload bool // there is some
}

type packet struct {
	at   time.Duration
	wire int
	data []byte
}

func run(from, out string, number int, seed uint64) error {
	if from == "" || out == "" || number < 1 {
		return errors.New("give --from and --out, and --flows of at least 1")
	}
	rows, err := readManifest(filepath.Join(from, "manifest.tsv"))
	if err != nil {
		return err
	}
	r := rand.New(rand.NewPCG(seed, 0))
	r.Shuffle(len(rows), func(i, j int) { rows[i], rows[j] = rows[j], rows[i] })
	sets := map[string][]map[string]string{} // by label and kind
	for _, row := range rows {
		set := row["label"] + "\t" + row["kind"]
		sets[set] = append(sets[set], row)
	}
	if err := os.MkdirAll(out, 0o755); err != nil {
		return err
	}
	table := []string{"file\tproto\tclient\tserver\tlabel\tprogram\tvariant\tcarried\tkind"}
	flows := map[string][]chosen{}
	for _, set := range slices.Sorted(maps.Keys(sets)) {
		label, _, _ := strings.Cut(set, "\t")
		used := map[string]int{}
		rest := sets[set]
		for taken := 0; taken < number && len(rest) > 0; {
			row := leastUsed(&rest, used)
			f, err := firstFlow(filepath.Join(from, row["path"]))
			if err != nil {
				return err
			}
			if !f.payload {
				continue
			}
			taken++
			for _, column := range diverse {
				used[column+row[column]]++
			}
			flows[label] = append(flows[label], f)
			table = append(table, strings.Join([]string{label + ".pcap", strings.ReplaceAll(f.key, " ", "\t"), label, row["program"], row["cipher"], row["carried"], row["kind"]}, "\t"))
		}
	}
	for label, fs := range flows {
		if err := write(filepath.Join(out, label+".pcap"), fs); err != nil {
			return err
		}
	}
	return os.WriteFile(filepath.Join(out, "labels.tsv"), []byte(strings.Join(table, "\n")+"\n"), 0o644)
}

// diverse lists the columns that are to be as different as can be among the flows
// of a label, the most important one first.
var diverse = []string{"program", "cipher", "carried", "group"}

// leastUsed takes the row out of rows whose program was used least, of those the
// one whose variant was, and so on.
func leastUsed(rows *[]map[string]string, used map[string]int) map[string]string {
	best := 0
	for i, row := range *rows {
		for _, column := range diverse {
			if c := cmp.Compare(used[column+row[column]], used[column+(*rows)[best][column]]); c != 0 {
				if c < 0 {
					best = i
				}
				break
			}
		}
	}
	row := (*rows)[best]
	*rows = slices.Delete(*rows, best, best+1)
	return row
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
		c.payload = c.payload || len(t.LayerPayload()) > 0
		data = data[:min(len(data), max(flowBytes-size, headerBytes))]
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
