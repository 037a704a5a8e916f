// SPDX-License-Identifier: Apache-2.0

package classifier

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"

	ort "github.com/yalue/onnxruntime_go"
)

const (
	// LibraryEnv names the environment variable that says where ONNX
	// Runtime's shared library is.
	LibraryEnv = "EARLYDROP_ONNXRUNTIME"

	// libraryName is what the library is called in the folders searched.
	libraryName = "libonnxruntime.so.1"

	// minRuntime is the first ONNX Runtime with the C API that the binding
	// was built for.
	minRuntime = "1.24"
)

// ErrLibrary is wrapped by the errors that tell that ONNX Runtime's shared
// library is missing, too old, or no such library.
var ErrLibrary = errors.New("ONNX Runtime can't be used")

// runtimeState is ONNX Runtime's environment. There is one per process, and
// this package is its owner: it is set up by the first Engine and stays until
// the process ends, for the library does not survive being unloaded.
var runtimeState struct {
	sync.Mutex
	path string // the library that was loaded, "" before
}

// initRuntime loads the library and sets the environment up, once. library is
// the path asked for, "" to look for it. A failure may be tried again.
func initRuntime(library string) error {
	runtimeState.Lock()
	defer runtimeState.Unlock()
	if runtimeState.path != "" {
		if library != "" && library != runtimeState.path {
			return fmt.Errorf("%w: library %s was asked for, but this process has loaded %s",
				ErrLibrary, library, runtimeState.path)
		}
		return nil
	}
	path, how, err := findLibrary(library)
	if err != nil {
		return err
	}
	ort.SetSharedLibraryPath(path)
	// Every failure comes back as an error, so ONNX Runtime needs not print it.
	if err := ort.InitializeEnvironment(ort.WithLogLevelFatal()); err != nil {
		return libraryError(path, how, err)
	}
	runtimeState.path = path
	return nil
}

// RuntimeVersion returns the version of the ONNX Runtime in use, "" before the
// first Engine was opened.
func RuntimeVersion() string {
	runtimeState.Lock()
	defer runtimeState.Unlock()
	if runtimeState.path == "" {
		return ""
	}
	return ort.GetVersion()
}

// findLibrary returns the library's path, and the words that tell where it was
// looked for. The order is: the path asked for, the environment variable, lib/
// beside the executable, bin/lib in the working directory or one above it, and
// at last the loader's own search path.
func findLibrary(library string) (path, how string, err error) {
	if library != "" {
		return library, "asked for by option", nil
	}
	if path := os.Getenv(LibraryEnv); path != "" {
		return path, "named by " + LibraryEnv, nil
	}
	if exe, err := os.Executable(); err == nil {
		if exe, err = filepath.EvalSymlinks(exe); err == nil {
			if path := filepath.Join(filepath.Dir(exe), "lib", libraryName); isFile(path) {
				return path, "beside the program", nil
			}
		}
	}
	if dir, err := os.Getwd(); err == nil {
		for {
			if path := filepath.Join(dir, "bin", "lib", libraryName); isFile(path) {
				return path, "in bin/lib", nil
			}
			parent := filepath.Dir(dir)
			if parent == dir {
				break
			}
			dir = parent
		}
	}
	return libraryName, "not found beside the program nor in bin/lib", nil
}

func isFile(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.Mode().IsRegular()
}

// libraryError turns the binding's failure into one line that says what to do.
func libraryError(path, how string, err error) error {
	// The binding reports failures only as text. "API base: 2" is its answer
	// when the library does not know the API version asked for. (It has
	// unloaded the library by then, so the version can't be asked for.)
	if strings.Contains(err.Error(), "ORT API base: 2") {
		return fmt.Errorf("%w: %s (%s) is too old: version %s or later is needed; run 'make onnxruntime' or set %s to a newer library's path",
			ErrLibrary, path, how, minRuntime, LibraryEnv)
	}
	reason := err.Error()
	if i := strings.LastIndex(reason, `": `); i >= 0 {
		reason = reason[i+len(`": `):]
	}
	if reason == "" { // a library that loads, but has none of its functions
		reason = "no ONNX Runtime library"
	}
	return fmt.Errorf("%w: %s (%s): %s; run 'make onnxruntime' or set %s to the library's path",
		ErrLibrary, path, how, reason, LibraryEnv)
}
