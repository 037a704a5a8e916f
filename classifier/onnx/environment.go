// SPDX-License-Identifier: Apache-2.0

//go:build cgo

package onnx

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"

	ort "github.com/yalue/onnxruntime_go"
)

// minRuntime is the first ONNX Runtime with the C API that the binding was
// built for.
const minRuntime = "1.24"

// noTelemetry is the environment variable by which ONNX Runtime sends nothing.
const noTelemetry = "ORT_DISABLE_TELEMETRY"

// runtimeState is ONNX Runtime's environment. There is one per process, and
// this package is its owner: it is set up by the first Open and stays until
// the process ends, for the library does not survive being unloaded.
var runtimeState struct {
	sync.Mutex
	path string // the library that was loaded, free of symbolic links; "" before
}

// initRuntime loads the library and sets the environment up, once. library is
// the path asked for, "" to look for it; gpu says that a GPU is to be used. A failure
// may be tried again.
func initRuntime(library string, gpu bool) error {
	runtimeState.Lock()
	defer runtimeState.Unlock()
	if err := loadRuntime(library, gpu); err != nil {
		return fmt.Errorf("classifier: %w", err)
	}
	return nil
}

// loadRuntime is initRuntime for who holds the lock.
func loadRuntime(library string, gpu bool) error {
	if runtimeState.path != "" {
		if library == "" {
			return nil
		}
		if path, err := resolveLibrary(library); err != nil || path != runtimeState.path {
			return fmt.Errorf("%w: library %s was asked for, but this process has loaded %s",
				ErrLibrary, library, runtimeState.path)
		}
		return nil
	}
	path, how, err := findLibrary(library, gpu)
	if err != nil {
		return err
	}
	// What was checked is what is loaded: no symbolic link is followed again.
	resolved, err := resolveLibrary(path)
	if err != nil {
		var file *fs.PathError
		if errors.As(err, &file) {
			err = file.Err // the path is in the sentence already
		}
		return fmt.Errorf("%w: %s (%s): %w", ErrLibrary, path, how, err)
	}
	// Builds from 1.29 on would send their maker what is run on which machine, and keep files
	// for that, as soon as the environment is there: asking them not to comes too late then.
	if err := os.Setenv(noTelemetry, "1"); err != nil {
		return fmt.Errorf("switch off what ONNX Runtime tells its maker: %w", err)
	}
	ort.SetSharedLibraryPath(resolved)
	// Every failure comes back as an error, so ONNX Runtime needs not print it.
	if err := ort.InitializeEnvironment(ort.WithLogLevelFatal()); err != nil {
		return libraryError(path, how, err)
	}
	runtimeState.path = resolved
	return nil
}

// runtimeFolder returns the folder of the library that was loaded.
func runtimeFolder() string {
	runtimeState.Lock()
	defer runtimeState.Unlock()
	return filepath.Dir(runtimeState.path)
}

// checkProviders fails if a library that ONNX Runtime loads for a GPU, out of its
// own folder, is not safe to load. One that is missing is ONNX Runtime's to tell.
func checkProviders() error {
	dir := runtimeFolder()
	for _, name := range providers {
		if _, err := resolveLibrary(filepath.Join(dir, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	return nil
}

// RuntimeVersion returns the version of the ONNX Runtime in use, "" before the
// first model was opened. It may be called concurrently.
func RuntimeVersion() string {
	runtimeState.Lock()
	defer runtimeState.Unlock()
	if runtimeState.path == "" {
		return ""
	}
	return ort.GetVersion()
}

// libraryError turns the binding's failure into one line that says what is wrong.
func libraryError(path, how string, err error) error {
	// The binding reports failures only as text. "API base: 2" is its answer
	// when the library does not know the API version asked for. (It has
	// unloaded the library by then, so the version can't be asked for.)
	if strings.Contains(err.Error(), "ORT API base: 2") {
		return fmt.Errorf("%w: %s (%s) is too old: version %s or later is needed",
			ErrLibrary, path, how, minRuntime)
	}
	reason := err.Error()
	if i := strings.LastIndex(reason, `": `); i >= 0 {
		reason = reason[i+len(`": `):]
	}
	if reason == "" { // a library that loads, but has none of its functions
		reason = "no ONNX Runtime library"
	}
	return fmt.Errorf("%w: %s (%s): %s", ErrLibrary, path, how, reason)
}
