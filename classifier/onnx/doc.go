// SPDX-License-Identifier: Apache-2.0

// Package onnx computes models with ONNX Runtime, on the CPU or on an NVIDIA GPU. It
// is a classifier.Backend and opens a classifier.Engine with it.
//
// ONNX Runtime is a shared library that is loaded when the first model is opened, once
// per process; Options.Library says where it is looked for.
//
// The package needs cgo. Built without (the build tag cgo is not set), it still compiles: then Open checks what it is given and returns
// ErrNoCgo.
package onnx
