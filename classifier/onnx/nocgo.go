// SPDX-License-Identifier: Apache-2.0

//go:build !cgo

package onnx

import "github.com/earlydrop/earlydrop/classifier"

// initRuntime fails: ONNX Runtime is reached through cgo.
func initRuntime(string, bool) error { return ErrNoCgo }

func newBackend(*classifier.Manifest, []byte, Options, int) (classifier.Backend, error) {
	return nil, ErrNoCgo
}

// RuntimeVersion returns "", as this program was built without cgo.
func RuntimeVersion() string { return "" }
