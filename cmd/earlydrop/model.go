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
	"log/slog"
	"path/filepath"
	"strconv"
	"strings"
	"text/tabwriter"

	"github.com/urfave/cli/v2"

	"github.com/earlydrop/earlydrop/classifier"
	"github.com/earlydrop/earlydrop/classifier/native"
	"github.com/earlydrop/earlydrop/classifier/onnx"
	"github.com/earlydrop/earlydrop/cmd/earlydrop/gateway"
	"github.com/earlydrop/earlydrop/loader/flow"
	"github.com/earlydrop/earlydrop/models"
	"github.com/earlydrop/earlydrop/models/figures"
)

func modelCommand() *cli.Command {
	return &cli.Command{
		Name:  "model",
		Usage: "inspect model files, and change the model of a running attach",
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
			{
				Name:      "use",
				Usage:     "have the running attach classify with another model from now on",
				ArgsUsage: "FILE",
				Description: `FILE is a model file, or the name of a model that the program ships. It is checked as
attach checks it, and has to give the results that it says of itself; then it takes over
between two batches, and the policy is loaded again for its labels. If something is
wrong with either, nothing changes. The next attach uses what its --model says.

Examples:
   earlydrop model use /var/lib/earlydrop/new.onnx
   earlydrop model use paper`,
				Flags:  []cli.Flag{controlFlag("ask the daemon at the unix socket `PATH`")},
				Action: modelUse,
			},
		},
	}
}

func modelUse(c *cli.Context) error {
	if err := requireArgs(c, 1, 1, "FILE"); err != nil {
		return err
	}
	file := c.Args().First()
	if _, _, shipped := models.Named(file); !shipped {
		var err error
		if file, err = filepath.Abs(file); err != nil { // the daemon is elsewhere
			return err
		}
	}
	d, err := requireDaemon(c)
	if err != nil {
		return err
	}
	r, err := d.UseModel(c.Context, file)
	if err != nil {
		return fromDaemon(err)
	}
	fmt.Fprintln(c.App.Writer, (*gateway.Reloaded)(r))
	return nil
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
	info := modelDescription{Manifest: m, File: name, Bytes: len(onnx), Native: native.Computes(onnx) == nil}
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

// deviceONNX is the device of who wants ONNX Runtime to compute where native code would do.
const deviceONNX = "cpu:onnx"

// deviceFlag is --device of the commands that classify live.
func deviceFlag() cli.Flag {
	return &cli.StringFlag{Name: "device", Value: "cpu", Usage: "classify on `cpu`, on cuda:N, or on cpu:onnx, which leaves native code out"}
}

// openEngine opens a model for opts, of which Device may be deviceONNX as well; every error is
// bad input and says what to do.
func openEngine(name string, data []byte, opts onnx.Options) (*classifier.Engine, error) {
	n, err := openNetwork(name, data, opts)
	if err != nil {
		return nil, err
	}
	engine, err := n.Engine(opts.Queue)
	return engine, asBadInput(err)
}

// loadNetwork reads a model as readModel does, and loads it for an engine that has one
// already. Every error is bad input.
func loadNetwork(path string, opts onnx.Options) (*classifier.Network, error) {
	name, data, err := readModel(path)
	if err != nil {
		return nil, err
	}
	return openNetwork(name, data, opts)
}

// openNetwork is where it is decided what computes a model: on the CPU native code if it can,
// else ONNX Runtime, which is not even loaded otherwise.
func openNetwork(name string, data []byte, opts onnx.Options) (*classifier.Network, error) {
	inRuntime := func() (*classifier.Network, error) {
		n, err := onnx.Load(name, data, opts)
		return n, fromONNX(err)
	}
	switch {
	case opts.Device == deviceONNX:
		opts.Device = "cpu"
		return inRuntime()
	case strings.HasPrefix(opts.Device, "cuda:"):
		return inRuntime()
	case opts.Device != "" && opts.Device != "cpu":
		return nil, badInput("unknown device %q (known: cpu, %s, cuda:N with N from 0)", opts.Device, deviceONNX)
	}
	n, err := native.Load(name, data, classifier.Limits{Runs: opts.Workers, Batch: opts.MaxBatch})
	if err == nil {
		return n, nil
	}
	other, otherErr := inRuntime()
	switch {
	case errors.Is(err, native.ErrOther):
		return other, otherErr
	case errors.Is(otherErr, onnx.ErrLibrary): // then what is known is what native code says
		return nil, asBadInput(err)
	case otherErr == nil:
		slog.Warn("native code does not compute the model as it should, so ONNX Runtime does; please report it", "error", err)
	}
	return other, otherErr
}

// fromONNX says what to do about an error of ONNX Runtime's, which is bad input.
func fromONNX(err error) error {
	switch {
	case errors.Is(err, onnx.ErrNoCgo):
		return badInput("%w; build it with CGO_ENABLED=1 and a C compiler, as 'make build' does", err)
	case errors.Is(err, onnx.ErrLacking):
		return badInput("%w; 'make onnxruntime-cuda' fetches ONNX Runtime's part of it, and names the rest", err)
	case errors.Is(err, onnx.ErrLibrary) && !errors.Is(err, onnx.ErrUnsafeLibrary):
		return badInput("%w; run 'make onnxruntime', or set %s to the library's path", err, onnx.LibraryEnv)
	}
	return asBadInput(err)
}

// modelDescription is what model info prints.
type modelDescription struct {
	File   string `json:"file"`
	Bytes  int    `json:"bytes"`
	SHA256 string `json:"sha256"`
	Native bool   `json:"native"` // native code computes it on a CPU
	*classifier.Manifest
}

func (d modelDescription) print(w io.Writer) error {
	var b bytes.Buffer
	// Figures of another shape are printed as they are.
	measured, known := figures.Read(d.Figures)
	t := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	d.printContract(t)
	if known {
		fmt.Fprintf(t, "measured on\t%d flows of %d groups that were held out\n", measured.Flows, measured.Groups)
	}
	t.Flush()
	b.WriteString("\n")
	threshold := func(label string) string { return strconv.FormatFloat(d.Threshold(label), 'g', 6, 64) }
	if known {
		measured.Print(&b, d.Labels, threshold)
		_, err := b.WriteTo(w)
		return err
	}
	fmt.Fprintln(t, "label\tthreshold")
	for _, label := range d.Labels {
		if label == flow.Background {
			fmt.Fprintf(t, "%s\t-\n", label)
		} else {
			fmt.Fprintf(t, "%s\t%s\n", label, threshold(label))
		}
	}
	t.Flush()
	fmt.Fprintf(&b, "\nfigures: %s\n", oneLine(string(d.Figures)))
	_, err := b.WriteTo(w)
	return err
}

// printContract prints what the model is, and what it is fed, in columns that tabs
// divide.
func (d modelDescription) printContract(w io.Writer) {
	channels := make([]string, len(d.Channels))
	for i, channel := range d.Channels {
		channels[i] = channel.String()
	}
	unknown := "never"
	if d.Unknown > 0 {
		unknown = "when the likeliest label is below " + strconv.FormatFloat(d.Unknown, 'g', 6, 64)
	}
	computed := "ONNX Runtime"
	if d.Native {
		computed = "native code (or ONNX Runtime: --device cpu:onnx)"
	}
	for _, row := range [][2]string{
		{"model", d.Name + " " + d.Version},
		{"file", fmt.Sprintf("%s, %d bytes, sha256 %s", d.File, d.Bytes, d.SHA256)},
		{"on a CPU", "computed by " + computed},
		{"created by", d.CreatedBy},
		{"trained on", d.TrainingData},
		{"input", fmt.Sprintf("%dx%d, channels %s", classifier.ImageSide, classifier.ImageSide, strings.Join(channels, ", "))},
		{"mask", d.Mask.String()},
		{"temperature", strconv.FormatFloat(d.Temperature, 'g', 6, 64)},
		{"any threshold", strconv.FormatFloat(d.AnyThreshold, 'g', 6, 64)},
		{"unknown", unknown},
	} {
		fmt.Fprintf(w, "%s\t%s\n", row[0], row[1])
	}
}
