// SPDX-License-Identifier: Apache-2.0

package main

import (
	"os"
	"testing"

	"github.com/earlydrop/earlydrop/test/onnxruntime"
)

func TestMain(m *testing.M) { os.Exit(onnxruntime.Main(m.Run)) }
