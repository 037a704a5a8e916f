// SPDX-License-Identifier: Apache-2.0

//go:build cgo

package onnx_test

import (
	"fmt"
	"sync"

	"github.com/earlydrop/earlydrop/classifier/onnx"
	"github.com/earlydrop/earlydrop/loader/assembly"
	"github.com/earlydrop/earlydrop/loader/flow"
	"github.com/earlydrop/earlydrop/models"
)

// The flows of a capture file go through the queue, with the shipped model.
func Example() {
	name, data := models.Default()
	engine, err := onnx.Open(name, data, onnx.Options{})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer engine.Close()

	var mu sync.Mutex
	var wg sync.WaitGroup
	classes := map[string]int{}
	done := func(_ *flow.Sample, r flow.Result, err error) { // from several goroutines at once
		defer wg.Done()
		mu.Lock()
		defer mu.Unlock()
		if err != nil {
			fmt.Println(err)
			return
		}
		classes[r.Class]++
	}
	file, err := assembly.Open("../../test/testdata/shadowsocks.pcap")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer file.Close()
	flows := assembly.New(assembly.Options{}, func(_ *assembly.Flow, captured *flow.Sample) {
		s := engine.Get()
		s.CopyFrom(captured)
		wg.Add(1)
		if !engine.Submit(s, done) { // the queue is full: the flow passes
			wg.Done()
			engine.Put(s)
		}
	}, nil)
	if err := file.Run(flows, func(int64) {}); err != nil {
		fmt.Println(err)
		return
	}
	wg.Wait()
	fmt.Println("some are shadowsocks:", classes["shadowsocks"] > 0)
	// Output: some are shadowsocks: true
}
