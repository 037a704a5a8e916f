// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"

	"github.com/urfave/cli/v2"

	"github.com/earlydrop/earlydrop/classifier"
	"github.com/earlydrop/earlydrop/classifier/onnx"
	"github.com/earlydrop/earlydrop/loader/flow"
	"github.com/earlydrop/earlydrop/models"
)

func modelCommand() *cli.Command {
	return &cli.Command{
		Name:  "model",
		Usage: "inspect model files",
		Subcommands: []*cli.Command{
			{
				Name:      "info",
				Usage:     "print what a model distinguishes, what it is fed and how well it does",
				ArgsUsage: "[FILE]",
				Description: `Without FILE it is about the model that the program ships. The file is checked
as attach and replay check it, but not run: ONNX Runtime is not needed.

A policy rule without min_confidence asks for the threshold of its label or, when
it names several, for the any threshold, to be reached by the sum of theirs. The
figures say how much of a label's traffic such rules detect, and how much of other
traffic. They were measured on traffic that the model had not seen in training, and
hold for that traffic only; the ranges are 95 % confidence intervals.

Examples:
   earlydrop model info
   earlydrop model info my.onnx --json | jq .labels`,
				Flags: []cli.Flag{
					&cli.BoolFlag{Name: "json", Usage: "print one JSON object"},
				},
				Action: modelInfo,
			},
		},
	}
}

func modelInfo(c *cli.Context) error {
	if err := requireArgs(c, 0, 1, "at most one FILE"); err != nil {
		return err
	}
	name, onnx, err := readModel(c.Args().First())
	if err != nil {
		return err
	}
	m, err := classifier.ReadManifest(name, onnx)
	if err != nil {
		return asBadInput(err)
	}
	info := modelDescription{Manifest: m, File: name, Bytes: len(onnx)}
	sum := sha256.Sum256(onnx)
	info.SHA256 = hex.EncodeToString(sum[:])
	if c.Bool("json") {
		e := json.NewEncoder(c.App.Writer)
		e.SetIndent("", "  ")
		return e.Encode(info)
	}
	return info.print(c.App.Writer)
}

// readModel returns the bytes of the model file at path, of the default model
// when path is empty, or of the shipped model of that name ("paper"), and its
// name for messages. Every error is bad input.
func readModel(path string) (name string, onnx []byte, err error) {
	if path == "" {
		name, onnx = models.Default()
		return name, onnx, nil
	}
	if name, onnx, ok := models.Named(path); ok {
		return name, onnx, nil
	}
	onnx, err = classifier.ReadModelFile(path)
	return path, onnx, asBadInput(err)
}

// openEngine is onnx.Open; every error is bad input and says what to do.
func openEngine(name string, data []byte, opts onnx.Options) (*classifier.Engine, error) {
	engine, err := onnx.Open(name, data, opts)
	switch {
	case errors.Is(err, onnx.ErrNoCgo):
		return nil, badInput("%w; build it with CGO_ENABLED=1 and a C compiler, as 'make build' does", err)
	case errors.Is(err, onnx.ErrLibrary) && !errors.Is(err, onnx.ErrUnsafeLibrary):
		return nil, badInput("%w; run 'make onnxruntime', or set %s to the library's path", err, onnx.LibraryEnv)
	}
	return engine, asBadInput(err)
}

// modelDescription is what model info prints.
type modelDescription struct {
	File   string `json:"file"`
	Bytes  int    `json:"bytes"`
	SHA256 string `json:"sha256"`
	*classifier.Manifest
}

// modelFigures is what the training code measured; models/train writes it. Its
// groups of flows are the labels, for background also its kinds ("captures",
// "lab, random-like", ...) and "ordinary", all of it that is neither made to look
// random nor a tunnel.
type modelFigures struct {
	Flows  int `json:"flows"`
	Groups int `json:"groups"`
	// MinConfidence is that of a rule over all classes; Sums has, for each value
	// and group, how many flows reach it with the sum of all classes.
	MinConfidence float64                     `json:"min_confidence"`
	Sums          map[string]map[string]share `json:"sums"`
	// Single is, for each label and group, what a rule over that label alone
	// detects at the label's threshold.
	Single map[string]map[string]share `json:"single"`
	// ByCipher is, for each group and variant, what is detected at Detail.
	Detail   float64 `json:"detail"`
	ByCipher map[string]map[string]struct {
		Taken share `json:"taken"`
	} `json:"by_cipher"`
}

// detected returns what a rule over all classes detects, by group.
func (f *modelFigures) detected() map[string]share {
	return f.Sums[strconv.FormatFloat(f.MinConfidence, 'g', 6, 64)]
}

// byTLS returns of the flows of a label that were inside TLS, and of those that were
// not, how many a rule over all classes detects. What is seen of a flow in TLS is
// TLS's own first message, like any other's, whatever it carries: one figure for both
// would be true of neither. ok is false for a label that has not both.
func (f *modelFigures) byTLS(label string) (inside, outside share, ok bool) {
	if f.Detail != f.MinConfidence {
		return share{}, share{}, false
	}
	for variant, figures := range f.ByCipher[label] {
		to := &outside
		if strings.HasSuffix(variant, "tls") {
			to = &inside
		}
		to.Hits += figures.Taken.Hits
		to.Total += figures.Taken.Total
	}
	for _, s := range []*share{&inside, &outside} {
		s.Low, s.High = wilson(s.Hits, s.Total)
	}
	return inside, outside, inside.Total > 0 && outside.Total > 0
}

// wilson returns the 95 % confidence interval of a share (Wilson's score interval).
func wilson(hits, total int) (low, high float64) {
	if total == 0 {
		return 0, 1
	}
	const z = 1.959963984540054
	n := float64(total)
	p := float64(hits) / n
	middle := p + z*z/(2*n)
	half := z * math.Sqrt(p*(1-p)/n+z*z/(4*n*n))
	all := 1 + z*z/n
	return max(0, (middle-half)/all), min(1, (middle+half)/all)
}

// ordinary is the group of modelFigures that false positives are budgeted on.
const ordinary = "ordinary"

// share is a counted share with its 95 % confidence interval.
type share struct {
	Hits  int     `json:"hits"`
	Total int     `json:"total"`
	Low   float64 `json:"low"`
	High  float64 `json:"high"`
}

// String prints "97.5 % (39 of 40; 87.1 to 99.6)".
func (s *share) String() string {
	if s == nil || s.Total <= 0 {
		return "-"
	}
	return fmt.Sprintf("%s %% (%d of %d; %s to %s)", percent(float64(s.Hits)/float64(s.Total)),
		s.Hits, s.Total, percent(s.Low), percent(s.High))
}

// percent prints a share to a tenth of a percent. What is not all or nothing
// is never rounded to it.
func percent(p float64) string {
	switch v := 100 * p; {
	case v > 99.9 && v < 100:
		return ">99.9"
	case v > 0 && v < 0.1:
		return "<0.1"
	default:
		return strconv.FormatFloat(v, 'f', 1, 64)
	}
}

func (d modelDescription) print(w io.Writer) error {
	var b bytes.Buffer
	t := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	channels := make([]string, len(d.Channels))
	for i, channel := range d.Channels {
		channels[i] = channel.String()
	}
	unknown := "never"
	if d.Unknown > 0 {
		unknown = "when the likeliest label is below " + strconv.FormatFloat(d.Unknown, 'g', 6, 64)
	}
	for _, row := range [][2]string{
		{"model", d.Name + " " + d.Version},
		{"file", fmt.Sprintf("%s, %d bytes, sha256 %s", d.File, d.Bytes, d.SHA256)},
		{"created by", d.CreatedBy},
		{"trained on", d.TrainingData},
		{"input", fmt.Sprintf("%dx%d, channels %s", classifier.ImageSide, classifier.ImageSide, strings.Join(channels, ", "))},
		{"mask", d.Mask.String()},
		{"temperature", strconv.FormatFloat(d.Temperature, 'g', 6, 64)},
		{"any threshold", strconv.FormatFloat(d.AnyThreshold, 'g', 6, 64)},
		{"unknown", unknown},
	} {
		fmt.Fprintf(t, "%s\t%s\n", row[0], row[1])
	}

	var figures modelFigures
	// Figures of another shape are printed as they are, below.
	known := json.Unmarshal(d.Figures, &figures) == nil && figures.Flows > 0 && len(figures.detected()) > 0
	if known {
		fmt.Fprintf(t, "measured on\t%d flows of %d groups that were held out\n", figures.Flows, figures.Groups)
	}
	t.Flush()

	b.WriteString("\n")
	t = tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	header := "label\tthreshold"
	if known {
		header += fmt.Sprintf("\tdetected by a rule over all labels (%g)\tby a rule over this one (threshold)", figures.MinConfidence)
	}
	fmt.Fprintln(t, header)
	row := func(name, threshold string, detected, alone *share) {
		fmt.Fprintf(t, "%s\t%s", name, threshold)
		if known {
			fmt.Fprintf(t, "\t%s\t%s", detected, alone)
		}
		fmt.Fprintln(t)
	}
	detected := figures.detected()
	for _, label := range d.Labels {
		if label == flow.Background {
			if !known { // its own figures are below the table
				row(label, "-", nil, nil)
			}
			continue
		}
		of, alone := detected[label], figures.Single[label][label]
		row(label, strconv.FormatFloat(d.Threshold(label), 'g', 6, 64), &of, &alone)
		if inside, outside, ok := figures.byTLS(label); ok {
			row("- outside TLS", "", &outside, nil)
			row("- inside TLS", "", &inside, nil)
		}
	}
	t.Flush()
	if known {
		// What is detected of these is a false positive.
		fmt.Fprintf(&b, "\nfalse positives of a rule over all labels (%g)\n", figures.MinConfidence)
		t = tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
		for _, group := range slices.Sorted(maps.Keys(detected)) {
			if !slices.Contains(d.Labels, group) && group != ordinary {
				of := detected[group]
				fmt.Fprintf(t, "%s\t%s\n", group, &of)
			}
		}
		of := detected[ordinary]
		fmt.Fprintf(t, "all that is ordinary\t%s\n", &of)
		t.Flush()
	} else {
		fmt.Fprintf(&b, "\nfigures: %s\n", oneLine(string(d.Figures)))
	}
	_, err := b.WriteTo(w)
	return err
}
