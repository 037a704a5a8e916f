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

	"github.com/earlydrop/earlydrop/test/lab"
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

// WithProgram builds the program into a temporary folder, which is called after name, calls
// fn with the folder and the program's path, and removes the folder. It fails before that
// where programs of the lab are missing.
func WithProgram(ctx context.Context, name string, fn func(dir, binary string) error) (err error) {
	if missing := lab.Missing(); missing != "" {
		return errors.New(missing)
	}
	dir, err := os.MkdirTemp("", "ed-"+name+"-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	binary, err := Build(ctx, dir)
	if err != nil {
		return err
	}
	return fn(dir, binary)
}

// TestMain runs the tests of the package of that name with *binary set, and exits.
func TestMain(name string, m interface{ Run() int }, binary *string) {
	code := 0
	err := WithProgram(context.Background(), name, func(_, program string) error {
		*binary = program
		code = m.Run()
		return nil
	})
	if err != nil {
		fmt.Fprintf(os.Stderr, "%s: %v\n", name, err)
		code = 1
	}
	os.Exit(code)
}
