// SPDX-License-Identifier: Apache-2.0

package native

import (
	_ "embed"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"

	"google.golang.org/protobuf/encoding/protowire"

	"github.com/earlydrop/earlydrop/classifier/internal/wire"
)

// known is the graph that the computation was written for, as graph.String has it.
//
//go:embed compact.graph
var known string

const (
	// mostLabels is how many labels a model may have.
	mostLabels = 32
	// mostWeight bounds the weights. No product of those that are within is infinite, so
	// that what is left out as zero is zero in every other computation as well.
	mostWeight = 1e4
	// mostParts and mostConstant bound what is written down of a graph: how many nodes and
	// tensors, and how many bytes of a constant. They are far from those of the known one.
	mostParts    = 1000
	mostConstant = 1 << 14
)

// weights are those of a model, one slice for each tensor in the order of the file.
type weights struct {
	labels  int
	tensors [][]float32
}

// recognize returns the weights of the model in data if its graph is known.
func recognize(data []byte) (*weights, error) {
	g, err := readGraph(data)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrOther, err)
	}
	got, want := strings.Split(g.String(), "\n"), strings.Split(known, "\n")
	for i := range max(len(got), len(want)) {
		switch {
		case i >= len(got):
			return nil, fmt.Errorf("%w: its graph lacks %q", ErrOther, short(want[i]))
		case i >= len(want):
			return nil, fmt.Errorf("%w: its graph has %q", ErrOther, short(got[i]))
		case got[i] != want[i]:
			return nil, fmt.Errorf("%w: its graph has %q where %q is known", ErrOther, short(got[i]), short(want[i]))
		}
	}
	w := &weights{labels: int(g.labels)}
	for _, t := range g.initializers {
		values := t.floats()
		for _, v := range values {
			if !(math.Abs(float64(v)) <= mostWeight) { // or is no number
				return nil, fmt.Errorf("%w: a weight is %g", ErrOther, v)
			}
		}
		w.tensors = append(w.tensors, values)
	}
	return w, nil
}

// short is a line of a graph for a message.
func short(line string) string {
	const most = 80
	if len(line) <= most {
		return line
	}
	return line[:most] + "..."
}

// Field numbers and values of onnx.proto. What is in a file and not among the fields that are
// named here, or is there twice, makes its graph another one.
const (
	modelIRVersion       = 1
	modelProducer        = 2
	modelProducerVersion = 3
	modelDomain          = 4
	modelVersion         = 5
	modelDoc             = 6
	modelGraph           = 7
	modelOpset           = 8
	modelMetadata        = 14

	opsetDomain  = 1
	opsetVersion = 2

	graphNode        = 1
	graphName        = 2
	graphInitializer = 5
	graphDoc         = 10
	graphInput       = 11
	graphOutput      = 12

	nodeInput     = 1
	nodeOutput    = 2
	nodeName      = 3
	nodeOperator  = 4
	nodeAttribute = 5
	nodeDoc       = 6
	nodeDomain    = 7

	attributeName   = 1
	attributeFloat  = 2
	attributeInt    = 3
	attributeTensor = 5
	attributeDoc    = 13
	attributeType   = 20

	isFloat  = 1
	isInt    = 2
	isTensor = 4

	tensorDim  = 1
	tensorType = 2
	tensorName = 8
	tensorRaw  = 9
	tensorDoc  = 12

	valueName = 1
	valueType = 2
	valueDoc  = 3

	typeTensor = 1

	tensorTypeElement = 1
	tensorTypeShape   = 2

	shapeDim = 1

	dimValue = 1
	dimParam = 2

	elementFloat = 1
	elementUint8 = 2
	elementInt64 = 7
)

// graph is what a model computes, read from its file.
type graph struct {
	opset           string // operators' domain and version
	inputs, outputs []value
	initializers    []tensor
	nodes           []node
	labels          int64
}

// value is an input or output of the graph.
type value struct {
	name    string
	element uint64
	shape   []int64 // anyDim where it is open
}

const anyDim = -1

// tensor holds constants.
type tensor struct {
	name    string
	element uint64
	dims    []int64
	raw     []byte // little-endian
}

// node is an operator with its attributes, of each its text.
type node struct {
	operator        string
	inputs, outputs []string
	attributes      map[string]string
}

// fields calls f for the fields of a message. Those in once are there at most once, those in
// ignored mean nothing. f returns false for what it does not know.
func fields(message []byte, once, ignored []protowire.Number, f func(wire.Field) (bool, error)) error {
	seen := map[protowire.Number]bool{}
	return wire.Each(message, func(v wire.Field) error {
		if slices.Contains(ignored, v.Num) {
			return nil
		}
		if slices.Contains(once, v.Num) && seen[v.Num] {
			return fmt.Errorf("field %d is there twice", v.Num)
		}
		seen[v.Num] = true
		ok, err := f(v)
		if err == nil && !ok {
			err = fmt.Errorf("field %d of type %d is not known", v.Num, v.Type)
		}
		return err
	})
}

// isBytes and isNumber report whether a field is the one of a number and has its type.
func isBytes(v wire.Field, num protowire.Number) bool {
	return v.Num == num && v.Type == protowire.BytesType
}

func isNumber(v wire.Field, num protowire.Number) bool {
	return v.Num == num && v.Type == protowire.VarintType
}

func readGraph(data []byte) (*graph, error) {
	g := new(graph)
	err := fields(data, []protowire.Number{modelGraph, modelOpset},
		[]protowire.Number{modelIRVersion, modelProducer, modelProducerVersion, modelDomain, modelVersion, modelDoc, modelMetadata},
		func(v wire.Field) (bool, error) {
			switch {
			case isBytes(v, modelGraph):
				return true, g.read(v.Bytes)
			case isBytes(v, modelOpset):
				return true, g.readOpset(v.Bytes)
			}
			return false, nil
		})
	return g, err
}

func (g *graph) readOpset(data []byte) error {
	domain, version := "", uint64(0)
	err := fields(data, []protowire.Number{opsetDomain, opsetVersion}, nil, func(v wire.Field) (bool, error) {
		switch {
		case isBytes(v, opsetDomain):
			domain = string(v.Bytes)
		case isNumber(v, opsetVersion):
			version = v.Varint
		default:
			return false, nil
		}
		return true, nil
	})
	g.opset = fmt.Sprintf("%q %d", domain, version)
	return err
}

func (g *graph) read(data []byte) error {
	parts := 0
	return fields(data, nil, []protowire.Number{graphName, graphDoc}, func(v wire.Field) (_ bool, err error) {
		if parts++; parts > mostParts {
			return false, errors.New("it is too large")
		}
		switch {
		case isBytes(v, graphNode):
			var n node
			n, err = readNode(v.Bytes)
			g.nodes = append(g.nodes, n)
		case isBytes(v, graphInitializer):
			var t tensor
			t, err = readTensor(v.Bytes)
			g.initializers = append(g.initializers, t)
		case isBytes(v, graphInput):
			var in value
			in, err = readValue(v.Bytes)
			g.inputs = append(g.inputs, in)
		case isBytes(v, graphOutput):
			var out value
			out, err = readValue(v.Bytes)
			g.outputs = append(g.outputs, out)
		default:
			return false, nil
		}
		return true, err
	})
}

func readNode(data []byte) (node, error) {
	n := node{attributes: map[string]string{}}
	domain := ""
	err := fields(data, []protowire.Number{nodeOperator, nodeDomain}, []protowire.Number{nodeName, nodeDoc},
		func(v wire.Field) (bool, error) {
			switch {
			case isBytes(v, nodeInput):
				n.inputs = append(n.inputs, string(v.Bytes))
			case isBytes(v, nodeOutput):
				n.outputs = append(n.outputs, string(v.Bytes))
			case isBytes(v, nodeOperator):
				n.operator = string(v.Bytes)
			case isBytes(v, nodeDomain):
				domain = string(v.Bytes)
			case isBytes(v, nodeAttribute):
				name, text, err := readAttribute(v.Bytes)
				if _, twice := n.attributes[name]; twice && err == nil {
					err = fmt.Errorf("attribute %q is there twice", name)
				}
				n.attributes[name] = text
				return true, err
			default:
				return false, nil
			}
			return true, nil
		})
	if domain != "" {
		n.operator = fmt.Sprintf("%q %s", domain, n.operator)
	}
	return n, err
}

func readAttribute(data []byte) (name, text string, err error) {
	var kind, integer, float uint64
	var t tensor
	err = fields(data, []protowire.Number{attributeName, attributeFloat, attributeInt, attributeTensor, attributeType},
		[]protowire.Number{attributeDoc}, func(v wire.Field) (_ bool, err error) {
			switch {
			case isBytes(v, attributeName):
				name = string(v.Bytes)
			case isNumber(v, attributeType):
				kind = v.Varint
			case isNumber(v, attributeInt):
				integer = v.Varint
			case v.Num == attributeFloat && v.Type == protowire.Fixed32Type:
				float = v.Fixed
			case isBytes(v, attributeTensor):
				t, err = readTensor(v.Bytes)
			default:
				return false, nil
			}
			return true, err
		})
	switch kind {
	case isFloat:
		text = "float " + formatFloat(math.Float32frombits(uint32(float)))
	case isInt:
		text = "int " + strconv.FormatInt(int64(integer), 10)
	case isTensor:
		text = t.String()
	default:
		err = errors.Join(err, fmt.Errorf("an attribute has type %d", kind))
	}
	return name, text, err
}

func readTensor(data []byte) (tensor, error) {
	var t tensor
	err := fields(data, []protowire.Number{tensorType, tensorName, tensorRaw}, []protowire.Number{tensorDoc},
		func(v wire.Field) (bool, error) {
			switch {
			case isNumber(v, tensorDim):
				t.dims = append(t.dims, int64(v.Varint))
			case isNumber(v, tensorType):
				t.element = v.Varint
			case isBytes(v, tensorName):
				t.name = string(v.Bytes)
			case isBytes(v, tensorRaw):
				t.raw = v.Bytes
			default:
				return false, nil
			}
			return true, nil
		})
	if err != nil {
		return t, err
	}
	bytes := int64(map[uint64]int{elementFloat: 4, elementInt64: 8}[t.element])
	if bytes == 0 {
		return t, fmt.Errorf("tensor %q has elements of type %d", t.name, t.element)
	}
	for _, dim := range t.dims {
		if dim < 0 || dim > int64(len(t.raw)) {
			return t, fmt.Errorf("tensor %q has the dimension %d", t.name, dim)
		}
		bytes *= dim // at most the square of a file's size
		if bytes > int64(len(t.raw)) {
			break
		}
	}
	if bytes != int64(len(t.raw)) {
		return t, fmt.Errorf("tensor %q has %d bytes for the dimensions %d", t.name, len(t.raw), t.dims)
	}
	return t, nil
}

// readValue reads an input or output, which has to be a tensor.
func readValue(data []byte) (value, error) {
	var out value
	one := func(data []byte, num protowire.Number, f func(data []byte) error) error {
		return fields(data, []protowire.Number{num}, nil, func(v wire.Field) (bool, error) {
			if !isBytes(v, num) {
				return false, nil
			}
			return true, f(v.Bytes)
		})
	}
	readDim := func(data []byte) error {
		dim := int64(anyDim)
		err := fields(data, []protowire.Number{dimValue, dimParam}, nil, func(v wire.Field) (bool, error) {
			if isNumber(v, dimValue) {
				dim = int64(v.Varint)
				return true, nil
			}
			return isBytes(v, dimParam), nil
		})
		out.shape = append(out.shape, dim)
		return err
	}
	readType := func(data []byte) error {
		return fields(data, []protowire.Number{tensorTypeElement, tensorTypeShape}, nil, func(v wire.Field) (bool, error) {
			switch {
			case isNumber(v, tensorTypeElement):
				out.element = v.Varint
				return true, nil
			case isBytes(v, tensorTypeShape):
				return true, fields(v.Bytes, nil, nil, func(v wire.Field) (bool, error) {
					if !isBytes(v, shapeDim) {
						return false, nil
					}
					return true, readDim(v.Bytes)
				})
			}
			return false, nil
		})
	}
	err := fields(data, []protowire.Number{valueName, valueType}, []protowire.Number{valueDoc}, func(v wire.Field) (bool, error) {
		switch {
		case isBytes(v, valueName):
			out.name = string(v.Bytes)
			return true, nil
		case isBytes(v, valueType):
			return true, one(v.Bytes, typeTensor, readType)
		}
		return false, nil
	})
	return out, err
}

// String writes the graph down, with all that its results depend on but the weights and how
// many labels there are. Values have numbers in place of names.
func (g *graph) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "operators %s\n", g.opset)
	names := map[string]string{"": "-"} // "" is an input that is left out
	define := func(name, as string) string {
		if _, twice := names[name]; twice {
			return "another " + names[name]
		}
		names[name] = as
		return as
	}
	for i, in := range g.inputs {
		fmt.Fprintf(&b, "%s = input %s %s\n", define(in.name, "x"+strconv.Itoa(i)), elementName(in.element), g.dims(in.shape, -1))
	}
	// The last layer has as many outputs as there are labels.
	if len(g.outputs) == 1 && len(g.outputs[0].shape) == 2 {
		if n := g.outputs[0].shape[1]; n >= 1 && n <= mostLabels {
			g.labels = n
		}
	}
	for i, t := range g.initializers {
		labels := -1
		if i >= len(g.initializers)-2 { // weights and biases of the last layer
			labels = 0
		}
		fmt.Fprintf(&b, "%s = weights %s %s\n", define(t.name, "w"+strconv.Itoa(i)), elementName(t.element), g.dims(t.dims, labels))
	}
	values := 0
	for _, n := range g.nodes {
		var in, out []string
		for _, name := range n.inputs {
			as, there := names[name]
			if !there {
				as = "undefined"
			}
			in = append(in, as)
		}
		for _, name := range n.outputs {
			out = append(out, define(name, "v"+strconv.Itoa(values)))
			values++
		}
		fmt.Fprintf(&b, "%s = %s(%s)", strings.Join(out, ", "), n.operator, strings.Join(in, ", "))
		for _, name := range slices.Sorted(maps.Keys(n.attributes)) {
			fmt.Fprintf(&b, " %s=%s", name, n.attributes[name])
		}
		b.WriteByte('\n')
	}
	for _, out := range g.outputs {
		as, there := names[out.name]
		if !there {
			as = "undefined"
		}
		fmt.Fprintf(&b, "output %s %s %s\n", as, elementName(out.element), g.dims(out.shape, 1))
	}
	return b.String()
}

// dims writes dimensions, of which the one with the index labels may be as many as there are.
func (g *graph) dims(all []int64, labels int) string {
	text := make([]string, len(all))
	for i, dim := range all {
		switch {
		case dim == anyDim:
			text[i] = "N"
		case i == labels && dim == g.labels:
			text[i] = "labels"
		default:
			text[i] = strconv.FormatInt(dim, 10)
		}
	}
	return "[" + strings.Join(text, ",") + "]"
}

func elementName(element uint64) string {
	switch element {
	case elementFloat:
		return "float32"
	case elementUint8:
		return "uint8"
	case elementInt64:
		return "int64"
	}
	return fmt.Sprintf("type-%d", element)
}

// formatFloat writes a number so that no other one has the same text, but for those that are
// none.
func formatFloat(v float32) string { return strconv.FormatFloat(float64(v), 'g', -1, 32) }

// String writes down the constants of a tensor.
func (t tensor) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s%d", elementName(t.element), t.dims)
	if len(t.raw) > mostConstant {
		return b.String() + " and many numbers"
	}
	if t.element == elementFloat {
		for _, v := range t.floats() {
			b.WriteString(" " + formatFloat(v))
		}
		return b.String()
	}
	for raw := t.raw; len(raw) > 0; raw = raw[8:] {
		b.WriteString(" " + strconv.FormatInt(int64(binary.LittleEndian.Uint64(raw)), 10))
	}
	return b.String()
}

// floats returns the values of a tensor of floats.
func (t tensor) floats() []float32 {
	values := make([]float32, len(t.raw)/4)
	for i := range values {
		values[i] = math.Float32frombits(binary.LittleEndian.Uint32(t.raw[4*i:]))
	}
	return values
}
