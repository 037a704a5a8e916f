// SPDX-License-Identifier: Apache-2.0

package rig

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

const (
	module      = "github.com/earlydrop/earlydrop"
	libraryName = "libonnxruntime.so.1"
)

// Build compiles the program from the module's present state into dir, with ONNX
// Runtime beside it, and returns the program's path. Everybody may read and run
// what it makes, so that the program can be tried without rights.
func Build(ctx context.Context, dir string) (string, error) {
	binary := filepath.Join(dir, "earlydrop")
	if out, err := exec.CommandContext(ctx, "go", "build", "-o", binary, module+"/cmd/earlydrop").CombinedOutput(); err != nil {
		return "", fmt.Errorf("build earlydrop: %w: %s", err, strings.TrimSpace(string(out)))
	}
	root, err := Root(ctx)
	if err != nil {
		return "", err
	}
	library := filepath.Join(root, "bin", "lib", libraryName)
	if _, err := os.Stat(library); err != nil {
		return "", fmt.Errorf("ONNX Runtime is not there (make onnxruntime fetches it): %w", err)
	}
	return binary, errors.Join(
		os.Chmod(dir, 0o755),
		os.Mkdir(filepath.Join(dir, "lib"), 0o755),
		copyFile(filepath.Join(dir, "lib", libraryName), library),
	)
}

// Root returns the folder of the module's source.
func Root(ctx context.Context) (string, error) {
	out, err := exec.CommandContext(ctx, "go", "list", "-m", "-f", "{{.Dir}}", module).Output()
	if err != nil {
		return "", fmt.Errorf("find the folder of module %s: %w", module, err)
	}
	return strings.TrimSpace(string(out)), nil
}

func copyFile(to, from string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o755)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}
