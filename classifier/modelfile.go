// SPDX-License-Identifier: Apache-2.0

package classifier

import (
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/earlydrop/earlydrop/classifier/internal/wire"
)

// maxModelBytes bounds the size of a model file, so that a wrong path (a
// device, a disk image) is refused instead of being read into memory.
const maxModelBytes = 1 << 30

// ReadModelFile reads a whole model file. It refuses what is not a regular
// file and what is larger than 1 GiB.
func ReadModelFile(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("model: %w", err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("model: %w", err)
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("model %s: not a regular file", path)
	}
	if info.Size() > maxModelBytes {
		return nil, fmt.Errorf("model %s: %d bytes are more than a model may have (%d)", path, info.Size(), maxModelBytes)
	}
	data, err := io.ReadAll(io.LimitReader(f, maxModelBytes))
	if err != nil {
		return nil, fmt.Errorf("model %s: %w", path, err)
	}
	return data, nil
}

// An ONNX file is one protocol-buffers message. The manifest needs only its
// outermost parts, so they are read here from the wire format: a model can be
// inspected without a backend.

// Field numbers of onnx.proto.
const (
	modelIRVersion = 1
	modelGraph     = 7
	modelMetadata  = 14

	entryKey   = 1
	entryValue = 2

	graphInitializer = 5
	graphInput       = 11
	graphOutput      = 12

	tensorName = 8

	valueName = 1
	valueType = 2

	typeTensor = 1

	tensorTypeElem  = 1
	tensorTypeShape = 2

	shapeDim = 1

	dimValue = 1
)

// Element types of onnx.proto that the contract names.
const (
	elemFloat = 1
	elemUint8 = 2
)

// onnxFile is what parseONNX keeps of a model file.
type onnxFile struct {
	metadata        map[string]string
	inputs, outputs []onnxValue
	initializers    map[string]bool
}

// onnxValue is an input or output of the graph.
type onnxValue struct {
	name  string
	elem  int64 // element type, 0 when it is no tensor
	shape []int64
}

// anyDim stands for a dimension that is named or left open.
const anyDim = -1

// parseONNX reads the outermost messages of an ONNX file. It fails with
// ErrNotModel when data is something else or was cut.
func parseONNX(data []byte) (*onnxFile, error) {
	if len(data) == 0 {
		return nil, fmt.Errorf("the file is empty: %w", ErrNotModel)
	}
	f := &onnxFile{metadata: map[string]string{}, initializers: map[string]bool{}}
	hasVersion, hasGraph := false, false
	err := wire.Each(data, func(v wire.Field) error {
		switch v.Num {
		case modelIRVersion:
			hasVersion = v.Varint > 0
		case modelMetadata:
			var key, value string
			if err := wire.Each(v.Bytes, func(v wire.Field) error {
				switch v.Num {
				case entryKey:
					key = string(v.Bytes)
				case entryValue:
					value = string(v.Bytes)
				}
				return nil
			}); err != nil {
				return err
			}
			f.metadata[key] = value
		case modelGraph:
			hasGraph = true
			return f.parseGraph(v.Bytes)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("cut short or damaged (%w): %w", err, ErrNotModel)
	}
	if !hasVersion || !hasGraph {
		return nil, fmt.Errorf("no network in it: %w", ErrNotModel)
	}
	return f, nil
}

func (f *onnxFile) parseGraph(data []byte) error {
	return wire.Each(data, func(v wire.Field) error {
		switch v.Num {
		case graphInput, graphOutput:
			value, err := parseValue(v.Bytes)
			if err != nil {
				return err
			}
			if v.Num == graphInput {
				f.inputs = append(f.inputs, value)
			} else {
				f.outputs = append(f.outputs, value)
			}
		case graphInitializer:
			return wire.Each(v.Bytes, func(v wire.Field) error {
				if v.Num == tensorName {
					f.initializers[string(v.Bytes)] = true
				}
				return nil
			})
		}
		return nil
	})
}

func parseValue(data []byte) (onnxValue, error) {
	var out onnxValue
	err := wire.Each(data, func(v wire.Field) error {
		switch v.Num {
		case valueName:
			out.name = string(v.Bytes)
		case valueType:
			return wire.Each(v.Bytes, func(v wire.Field) error {
				if v.Num != typeTensor {
					return nil
				}
				return wire.Each(v.Bytes, func(v wire.Field) error {
					switch v.Num {
					case tensorTypeElem:
						out.elem = int64(v.Varint)
					case tensorTypeShape:
						return wire.Each(v.Bytes, func(v wire.Field) error {
							if v.Num != shapeDim {
								return nil
							}
							dim := int64(anyDim)
							err := wire.Each(v.Bytes, func(v wire.Field) error {
								if v.Num == dimValue {
									dim = int64(v.Varint)
								}
								return nil
							})
							out.shape = append(out.shape, dim)
							return err
						})
					}
					return nil
				})
			})
		}
		return nil
	})
	return out, err
}

// checkShapes holds the graph's input and output against the contract.
func (f *onnxFile) checkShapes(channels, labels int) error {
	var inputs []onnxValue
	for _, in := range f.inputs {
		// Older files list their weights among the inputs.
		if !f.initializers[in.name] {
			inputs = append(inputs, in)
		}
	}
	want := onnxValue{InputName, elemUint8, []int64{anyDim, int64(channels), ImageSide, ImageSide}}
	if len(inputs) != 1 || !inputs[0].matches(want) {
		return fmt.Errorf("the network's input is %s, expected %s", describe(inputs), want)
	}
	want = onnxValue{OutputName, elemFloat, []int64{anyDim, int64(labels)}}
	if len(f.outputs) != 1 || !f.outputs[0].matches(want) {
		return fmt.Errorf("the network's output is %s, expected %s", describe(f.outputs), want)
	}
	return nil
}

// matches reports whether v is what want says. The batch dimension, the first
// one, must be open.
func (v onnxValue) matches(want onnxValue) bool {
	if v.name != want.name || v.elem != want.elem || len(v.shape) != len(want.shape) {
		return false
	}
	for i := range v.shape {
		if v.shape[i] != want.shape[i] {
			return false
		}
	}
	return true
}

// String prints a value as in "image uint8 [N,1,32,32]".
func (v onnxValue) String() string {
	elem := fmt.Sprintf("type-%d", v.elem)
	switch v.elem {
	case elemFloat:
		elem = "float32"
	case elemUint8:
		elem = "uint8"
	}
	dims := make([]string, len(v.shape))
	for i, d := range v.shape {
		dims[i] = "N"
		if d != anyDim {
			dims[i] = fmt.Sprint(d)
		}
	}
	return fmt.Sprintf("%s %s [%s]", v.name, elem, strings.Join(dims, ","))
}

func describe(values []onnxValue) string {
	if len(values) == 0 {
		return "missing"
	}
	s := make([]string, len(values))
	for i, v := range values {
		s[i] = v.String()
	}
	return strings.Join(s, " and ")
}
