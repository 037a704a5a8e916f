// SPDX-License-Identifier: Apache-2.0

// Package models holds the models that earlydrop ships, so that the program
// needs no file beside it. Each model has a card of the same name that says
// what it was trained on, how well it does, and what it must not be used for;
// *.figures.json and *.figures.md beside it are generated. The training code is
// in train.
package models

import _ "embed"

// DefaultName is the name of the default model in messages and logs.
const DefaultName = "compact.onnx"

//go:embed compact.onnx
var compact []byte

//go:embed paper.onnx
var paper []byte

// Default returns the default model's name and the bytes of its ONNX file. The
// bytes are shared and must not be changed.
func Default() (name string, onnx []byte) { return DefaultName, compact }

// Named returns the shipped model that name means: "compact", the default, or
// "paper", the network of the method's paper. ok tells whether there is one.
// Name and bytes are as those of Default.
func Named(name string) (file string, onnx []byte, ok bool) {
	switch name {
	case "compact":
		return DefaultName, compact, true
	case "paper":
		return "paper.onnx", paper, true
	}
	return "", nil, false
}
