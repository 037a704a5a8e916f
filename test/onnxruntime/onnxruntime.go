// SPDX-License-Identifier: Apache-2.0

// Package onnxruntime gives tests the ONNX Runtime that `make onnxruntime` has put
// into bin/lib. A test's program is built somewhere else, so that the classifier,
// which never looks in the working directory, does not find it by itself.
package onnxruntime

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
)

const (
	// Name is what the library's file is called.
	Name = "libonnxruntime.so.1"

	// env is the variable that the classifier reads. (The classifier's tests
	// import this package, so it can't import the classifier.)
	env = "EARLYDROP_ONNXRUNTIME"
)

// Find returns the library's path: the variable's, or that in bin/lib of the
// module which holds the working directory. Go runs tests in the folder of their
// source.
func Find() (string, error) {
	if path := os.Getenv(env); path != "" {
		return path, nil
	}
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			break
		}
		parent := filepath.Dir(dir)
		if parent == dir {
			return "", errors.New("the working directory is in no Go module")
		}
		dir = parent
	}
	path := filepath.Join(dir, "bin", "lib", Name)
	if _, err := os.Stat(path); err != nil {
		return "", fmt.Errorf("ONNX Runtime is not there (make onnxruntime fetches it): %w", err)
	}
	return path, nil
}

// Main runs a package's tests (run is the Run of a *testing.M) with the variable
// set, and returns their exit code.
//
// To root's tests it gives a copy of their own: the clone may be an ordinary
// user's, and root's programs load nothing that another user could change.
func Main(run func() int) (code int) {
	if os.Getenv(env) != "" {
		return run()
	}
	path, err := Find()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return run() // not every test computes; those that do will fail
	}
	if os.Geteuid() == 0 {
		dir, err := os.MkdirTemp("", "ed-onnxruntime-")
		if err == nil {
			defer func() {
				if err := os.RemoveAll(dir); err != nil && code == 0 {
					fmt.Fprintln(os.Stderr, err)
					code = 1
				}
			}()
			path, err = CopyTo(dir, path)
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
	}
	if err := os.Setenv(env, path); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return run()
}

// CopyTo copies the library at path into a folder and returns the copy's path.
func CopyTo(dir, path string) (string, error) {
	in, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer in.Close()
	to := filepath.Join(dir, Name)
	out, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o755)
	if err != nil {
		return "", err
	}
	_, err = io.Copy(out, in)
	return to, errors.Join(err, out.Close())
}
