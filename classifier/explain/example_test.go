// SPDX-License-Identifier: Apache-2.0

//go:build cgo

package explain_test

import (
	"bytes"
	"fmt"

	"github.com/earlydrop/earlydrop/classifier/explain"
	"github.com/earlydrop/earlydrop/classifier/onnx"
	"github.com/earlydrop/earlydrop/loader/assembly"
	"github.com/earlydrop/earlydrop/loader/flow"
	"github.com/earlydrop/earlydrop/models"
)

// What the answer about a flow of a capture file depends on.
func Example() {
	name, data := models.Default()
	engine, err := onnx.Open(name, data, onnx.Options{})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer engine.Close()

	var s flow.Sample // the first flow of the file
	file, err := assembly.Open("../../test/testdata/ssh.pcap")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer file.Close()
	flows := assembly.New(assembly.Options{}, func(f *assembly.Flow, captured *flow.Sample) {
		if len(s.Data) == 0 {
			s.CopyFrom(captured)
		}
	}, nil)
	if err := file.Run(flows, nil); err != nil {
		fmt.Println(err)
		return
	}

	answers := make([]flow.Result, 1)
	if err := engine.Classify([]*flow.Sample{&s}, answers); err != nil {
		fmt.Println(err)
		return
	}
	class := answers[0].Class
	e, err := explain.New(engine, &s, answers[0], []string{class}, class)
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println("class:", class)
	for _, p := range e.Groups() { // p.Effect says by how much
		fmt.Println("it depends on", p.Name)
	}
	var page bytes.Buffer // a file, else
	if err := e.WritePage(&page, []string{"the first flow of ssh.pcap"}); err != nil {
		fmt.Println(err)
	}
	// Output:
	// class: ssh
	// it depends on all payload
	// it depends on all lengths of packets
	// it depends on all directions of packets
}
