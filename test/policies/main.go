// SPDX-License-Identifier: Apache-2.0

// Policies measures what policies do to recorded traffic: how much of tunnels they treat, with
// which flow of a client and a server, and what passed until then; and what they treat that is
// no tunnel.
//
//	go run ./test/policies -lab data/lab [-captures data/captures] [POLICY...]
//
// A POLICY is a file, or built-in, as it is without one. -lab is a folder that make record has written:
// its manifest says what each capture holds, so pick a seed that no model was trained with. The
// files of one tunnel are a capture together, so that its flows are evidence for one another.
// -captures is a folder of third-party captures, each a capture of its own, that holds no tunnels
// worth mentioning. The tables are Markdown.
package main

import (
	"bufio"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/earlydrop/earlydrop/classifier"
	"github.com/earlydrop/earlydrop/classifier/onnx"
	"github.com/earlydrop/earlydrop/cmd/earlydrop/captures"
	"github.com/earlydrop/earlydrop/cmd/earlydrop/event"
	"github.com/earlydrop/earlydrop/cmd/earlydrop/replay"
	"github.com/earlydrop/earlydrop/loader/assembly"
	"github.com/earlydrop/earlydrop/models"
	"github.com/earlydrop/earlydrop/policy"
)

// builtIn is the word for the policy that the program has.
const builtIn = "built-in"

func main() {
	lab := flag.String("lab", "", "`folder` that make record has written")
	others := flag.String("captures", "", "`folder` of third-party captures")
	flag.Parse()
	if err := run(os.Stdout, *lab, *others, flag.Args()); err != nil {
		fmt.Fprintln(os.Stderr, "policies:", err)
		os.Exit(1)
	}
}

func run(out io.Writer, lab, others string, files []string) error {
	if lab == "" && others == "" {
		return errors.New("name a folder with -lab, -captures or both")
	}
	var jobs []job
	if lab != "" {
		of, err := recorded(lab)
		if err != nil {
			return err
		}
		jobs = append(jobs, of...)
	}
	if others != "" {
		of, err := thirdParty(others)
		if err != nil {
			return err
		}
		jobs = append(jobs, of...)
	}
	name, data := models.Default()
	engine, err := onnx.Open(name, data, onnx.Options{MaxBatch: replay.Batch})
	if err != nil {
		return err
	}
	defer engine.Close()
	m := engine.Manifest()
	model := &policy.Model{Labels: m.Labels, Thresholds: m.Thresholds, AnyThreshold: m.AnyThreshold, Unknown: m.Unknown > 0}
	if len(files) == 0 {
		files = []string{builtIn}
	}
	if _, err := io.WriteString(out, "# policies\n\nWritten by `make policies`.\n\n"); err != nil {
		return err
	}
	for _, file := range files {
		var p *policy.Policy
		if file == builtIn {
			p, err = policy.Default(model)
		} else {
			p, err = policy.Load(file, model)
		}
		if err != nil {
			return err
		}
		t := newTables()
		for _, j := range jobs {
			with, err := judge(engine, p, j.files)
			if err != nil {
				return err
			}
			var alone []*judged
			if j.kind == tunnel {
				if alone, err = judge(engine, p.WithoutEvidence(), j.files); err != nil {
					return err
				}
			}
			t.add(&j, with, alone)
		}
		if err := t.print(out, fmt.Sprintf("%s, model %s %s", filepath.Base(file), m.Name, m.Version)); err != nil {
			return err
		}
	}
	return nil
}

// The kinds of captures; the first three are the words of a manifest.
const (
	tunnel     = "tunnel"
	ordinary   = "ordinary"
	randomLike = "random-like"
	others     = "third-party"
)

// job is a capture: the files of a tunnel, one after another, or one other file.
type job struct {
	kind  string
	what  string // its row
	files []string
}

// recorded reads the manifest of a recording.
func recorded(folder string) (jobs []job, err error) {
	f, err := os.Open(filepath.Join(folder, "manifest.tsv"))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	at := map[string]int{} // of a tunnel
	var columns []string
	for n := 1; lines.Scan(); n++ {
		fields := strings.Split(lines.Text(), "\t")
		if n == 1 {
			columns = fields
			continue
		}
		if len(fields) != len(columns) {
			return nil, fmt.Errorf("%s:%d: %d columns, want %d", f.Name(), n, len(fields), len(columns))
		}
		of := func(column string) string {
			if i := slices.Index(columns, column); i >= 0 {
				return fields[i]
			}
			return ""
		}
		path, kind := of("path"), of("kind")
		if path == "" || kind == "" {
			return nil, fmt.Errorf("%s:%d: no path, or no kind", f.Name(), n)
		}
		what := of("label")
		if kind != tunnel {
			what = of("carried")
			if of("program") == "custom" {
				what = "custom tunnels"
			}
		} else if cipher := of("cipher"); strings.Contains(cipher, "tls") {
			what += " in TLS"
		}
		j := job{kind, what, []string{filepath.Join(folder, path)}}
		// LABEL.PROGRAM.CIPHER.NUMBER.ACTIVITY.pcap: the runs of one tunnel, in their order.
		if parts := strings.Split(filepath.Base(path), "."); kind == tunnel && len(parts) == 6 {
			one := filepath.Dir(path) + "/" + strings.Join(parts[:4], ".")
			if i, ok := at[one]; ok {
				jobs[i].files = append(jobs[i].files, j.files...)
				continue
			}
			at[one] = len(jobs)
		}
		jobs = append(jobs, j)
	}
	if err := lines.Err(); err != nil {
		return nil, err
	}
	if len(jobs) == 0 {
		return nil, fmt.Errorf("%s names no capture", f.Name())
	}
	return jobs, nil
}

// thirdParty finds the captures in a folder.
func thirdParty(folder string) (jobs []job, err error) {
	err = filepath.WalkDir(folder, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		what, err := filepath.Rel(folder, path)
		jobs = append(jobs, job{others, filepath.ToSlash(what), []string{path}})
		return err
	})
	return jobs, err
}

// judged is what became of a TCP flow.
type judged struct {
	key      event.Endpoints
	start    int64
	complete bool // some verdict was about all 1024 bytes
	treated  bool
	onPair   bool   // it was, on evidence
	passed   uint64 // bytes on the wire until it was treated, or of all of it
}

// judge returns what a policy does to the TCP flows of a capture, in the order of their start.
// Files that can't be read whole count as far as they can.
func judge(engine *classifier.Engine, p *policy.Policy, files []string) (flows []*judged, err error) {
	in, err := captures.Open(context.Background(), files, false)
	var input *captures.InputError
	if errors.As(err, &input) {
		return nil, nil // no capture, or an empty one
	}
	if err != nil {
		return nil, err
	}
	defer in.Close()
	r := replay.New(replay.Config{Engine: engine, Policy: p, Verdict: func(v *event.Verdict) error {
		if v.Proto != "tcp" || v.Incomplete {
			return nil
		}
		var f *judged
		if n := len(flows); n > 0 && flows[n-1].key == v.Endpoints && flows[n-1].start == v.Start.UnixNano() {
			f = flows[n-1] // another verdict on it
		} else {
			f = &judged{key: v.Endpoints, start: v.Start.UnixNano()}
			flows = append(flows, f)
		}
		f.complete = f.complete || v.Complete
		switch {
		case f.treated:
		case v.Treats():
			f.treated, f.onPair, f.passed = true, v.Scope != "", v.Bytes
		default:
			f.passed = v.FlowBytes
		}
		return nil
	}})
	defer r.Close()
	err = r.Read(in.Files)
	var cut *assembly.FileError
	if errors.As(err, &cut) {
		err = nil
	}
	return flows, err
}
