// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"os"
	"testing"

	"github.com/earlydrop/earlydrop/test/onnxruntime"
)

// Without the library that 'make onnxruntime' fetches nothing here can run.
func TestMain(m *testing.M) { os.Exit(onnxruntime.Main(m.Run)) }
