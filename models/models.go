// SPDX-License-Identifier: Apache-2.0

// Package models holds the model that earlydrop ships, so that the program
// needs no file beside it. Each model has a card of the same name that says
// what it was trained on, how well it does, and what it must not be used for.
// The training code is in train.
package models

import _ "embed"

// DefaultName is the name of the shipped model in messages and logs.
const DefaultName = "paper.onnx"

//go:embed paper.onnx
var paper []byte

// Default returns the shipped model's name and the bytes of its ONNX file.
// The bytes are shared and must not be changed.
func Default() (name string, onnx []byte) { return DefaultName, paper }
