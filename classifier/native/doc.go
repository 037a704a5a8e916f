// SPDX-License-Identifier: Apache-2.0

// Package native computes the network of the model compact, and of models that were trained
// with it, on the CPU in a few microseconds. It is a classifier.Backend.
//
// A model is taken if its graph is the one that this package was written for: every operator,
// attribute, shape, constant and connection is compared with compact.graph, and no name. What
// differs in anything is refused with ErrOther, and is for a backend that computes any model,
// as package onnx does. That the results are those of the training code is checked as with
// each backend (see classifier.NewNetwork).
//
// The computation is C, for each of the instruction sets that make it faster; which one is
// used depends on the processor. Built without cgo, the package compiles and refuses every
// model.
package native
