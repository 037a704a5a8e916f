// SPDX-License-Identifier: Apache-2.0

//go:build cgo

package onnx

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// Everything that is missing for a GPU is named, and what it is.
func TestWhatAGPUNeedsIsNamedWhereItIsLacking(t *testing.T) {
	dir := t.TempDir()
	driver := filepath.Join(dir, "nvidiactl")
	has := func(names ...string) func(string) bool {
		return func(name string) bool { return slices.Contains(names, name) }
	}
	check := func(name string, there func(string) bool, want ...string) {
		t.Helper()
		if got := lacking(dir, driver, there); !slices.Equal(got, want) {
			t.Errorf("%s:\ngot  %q\nwant %q", name, got, want)
		}
	}
	check("no provider", has(), "libonnxruntime_providers_shared.so (ONNX Runtime's CUDA provider) in "+dir)
	compileLibrary(t, filepath.Join(dir, providers[0]), "")
	check("half of it", has(), "libonnxruntime_providers_cuda.so (ONNX Runtime's CUDA provider) in "+dir)

	// A provider that needs of CUDA what the real one does.
	needed := []string{"libcublasLt.so.13", "libcublas.so.13", "libcurand.so.10", "libcudart.so.13", "libcuda.so.1"}
	stubs := t.TempDir()
	flags := []string{"-Wl,--no-as-needed", "-x", "none"}
	for _, name := range needed {
		compileLibrary(t, filepath.Join(stubs, name), "", "-Wl,-soname,"+name)
		flags = append(flags, filepath.Join(stubs, name))
	}
	compileLibrary(t, filepath.Join(dir, providers[1]), "", flags...)
	all := []string{
		"libcublasLt.so.13 (cuBLAS)", "libcublas.so.13 (cuBLAS)", "libcurand.so.10 (cuRAND)", "libcudart.so.13 (CUDA's runtime)",
		"libcuda.so.1 (NVIDIA's driver)", "libcudnn.so.9 (cuDNN, for models with convolutions)", driver + " (NVIDIA's driver is not loaded)",
	}
	check("nothing of CUDA", has(), all...)
	check("without driver", has(append(needed[:4:4], cudnn)...), all[4], all[6])
	if err := os.WriteFile(driver, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	check("without cuDNN", has(needed...), all[5])
	check("all", has(append(needed, cudnn)...))

	if err := os.WriteFile(filepath.Join(dir, providers[1]), []byte("no library"), 0o644); err != nil {
		t.Fatal(err)
	}
	check("no library", has())
}

func TestEngineOnAGPUSaysWhatIsLacking(t *testing.T) {
	_, err := Open("tiny.onnx", readModel(t, "tiny.onnx"), Options{Device: "cuda:0"})
	if err == nil {
		t.Skip("this machine has a GPU that ONNX Runtime can use")
	}
	for _, want := range []string{"model tiny.onnx on cuda:0: this machine lacks what a GPU needs: ", "(ONNX Runtime's CUDA provider)", "the CUDA provider can't be used: "} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q", err, want)
		}
	}
}
