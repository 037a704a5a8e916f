// SPDX-License-Identifier: Apache-2.0

package rig

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/earlydrop/earlydrop/test/onnxruntime"
)

const module = "github.com/earlydrop/earlydrop"

// Build compiles the program from the module's present state into dir, with ONNX
// Runtime beside it, and returns the program's path. Everybody may read and run
// what it makes, so that the program can be tried without rights.
func Build(ctx context.Context, dir string) (string, error) {
	binary := filepath.Join(dir, "earlydrop")
	if out, err := exec.CommandContext(ctx, "go", "build", "-o", binary, module+"/cmd/earlydrop").CombinedOutput(); err != nil {
		return "", fmt.Errorf("build earlydrop: %w: %s", err, strings.TrimSpace(string(out)))
	}
	library, err := onnxruntime.Find()
	if err != nil {
		return "", err
	}
	lib := filepath.Join(dir, "lib")
	if err := errors.Join(os.Chmod(dir, 0o755), os.Mkdir(lib, 0o755)); err != nil {
		return "", err
	}
	_, err = onnxruntime.CopyTo(lib, library)
	return binary, err
}
