// SPDX-License-Identifier: Apache-2.0

// Package classifier says what a captured flow carries. It masks what names
// one connection, turns the capture into a 32x32 image, and runs a neural
// network on it through ONNX Runtime.
//
// An Engine is opened on one model file, whose metadata (see Manifest) says
// which masking recipe, channels and labels it was trained with, so a model is
// only ever fed what it knows.
//
// This is the only package of the project that needs cgo.
package classifier
