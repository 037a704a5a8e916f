// SPDX-License-Identifier: Apache-2.0

// Package classifier says what a captured flow carries. It masks what names
// one connection, turns the capture into an image of 32x32 pixels per plane, and
// has a neural network computed on it.
//
//	flow.Sample ─► mask ─► planes ─► Backend ─► flow.Result
//
// A Manifest, read from a model file's metadata, says which masking recipe, planes
// and labels the model was trained with, so a model is only ever fed what it knows.
// An Engine holds one model: a queue, the workers that take batches from it, and a
// Backend, which computes the network. This package has none: the packages below it
// do (see classifier/onnx), and open an Engine with it.
//
// The package uses no cgo.
package classifier
