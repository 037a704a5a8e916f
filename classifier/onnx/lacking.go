// SPDX-License-Identifier: Apache-2.0

//go:build cgo

package onnx

import (
	"debug/elf"
	"fmt"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// providers are the libraries that ONNX Runtime loads for a GPU, out of its own folder: one
// that all kinds of device share, and CUDA's.
var providers = [...]string{"libonnxruntime_providers_shared.so", "libonnxruntime_providers_cuda.so"}

// cudaParts say what the libraries are parts of that the CUDA provider needs, by the first
// letters of their names.
var cudaParts = [...]struct{ library, part string }{
	{"libcudart.", "CUDA's runtime"},
	{"libcublas", "cuBLAS"},
	{"libcurand.", "cuRAND"},
	{"libcufft.", "cuFFT"},
	{"libcudnn", "cuDNN, for models with convolutions"},
	{"libcuda.", "NVIDIA's driver"},
}

const (
	// cudnn is loaded by the provider when a model needs it, and not linked.
	cudnn = "libcudnn.so.9"
	// driverDevice is there where the driver's kernel module is.
	driverDevice = "/dev/nvidiactl"
)

// withLacking adds to an error of a GPU what the machine lacks, if anything is seen to be
// lacking. ONNX Runtime itself names one library, and not what that is.
func withLacking(err error) error {
	all := lacking(runtimeFolder(), driverDevice, func(name string) bool {
		_, there := inLoaderFolders(name)
		return there
	})
	noDNN := len(all) == 1 && strings.HasPrefix(all[0], cudnn) && !strings.Contains(strings.ToLower(err.Error()), "cudnn")
	if all == nil || noDNN { // nothing, or nothing that the model needs
		return err
	}
	return fmt.Errorf("%w: %s: %w", ErrLacking, strings.Join(all, ", "), err)
}

// lacking names what the CUDA provider in a folder would need and does not have. device is
// the driver's, and there says of a shared library whether the loader has it.
func lacking(folder, device string, there func(library string) bool) (all []string) {
	provider := filepath.Join(folder, providers[1])
	for _, name := range providers {
		if !isFile(filepath.Join(folder, name)) {
			return []string{fmt.Sprintf("%s (ONNX Runtime's CUDA provider) in %s", name, folder)}
		}
	}
	file, err := elf.Open(provider)
	if err != nil {
		return nil // the loader says what is wrong with it
	}
	defer file.Close()
	needed, _ := file.ImportedLibraries()
	for _, library := range append(needed, cudnn) {
		for _, known := range cudaParts {
			if strings.HasPrefix(library, known.library) && !there(library) {
				all = append(all, fmt.Sprintf("%s (%s)", library, known.part))
			}
		}
	}
	if unix.Access(device, unix.F_OK) != nil {
		all = append(all, device+" (NVIDIA's driver is not loaded)")
	}
	return all
}
