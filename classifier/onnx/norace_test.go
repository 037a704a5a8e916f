// SPDX-License-Identifier: Apache-2.0

//go:build !race && cgo

package onnx

const raceEnabled = false
