// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// Install builds each of [Modules] that dir lacks, by go install, and leaves
// its program there. A file beside it names the version, so that another one
// is built when the table changes. What the Go tool prints goes to out. It
// takes minutes of CPU time the first time.
func Install(ctx context.Context, dir string, out io.Writer) error {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	for _, name := range slices.Sorted(maps.Keys(Modules)) {
		m := Modules[name]
		want := m.Path + "@" + m.Version
		stamp := filepath.Join(dir, name+".version")
		if have, err := os.ReadFile(stamp); err == nil && string(have) == want {
			continue
		}
		fmt.Fprintf(out, "go install %s\n", want)
		bin, err := os.MkdirTemp(dir, "build-")
		if err != nil {
			return err
		}
		cmd := exec.CommandContext(ctx, "go", "install", "-trimpath", "-ldflags", "-s -w", want)
		cmd.Env = append(os.Environ(), "GOBIN="+bin, "GOFLAGS=", "CGO_ENABLED=0")
		cmd.Stdout, cmd.Stderr = out, out
		err = cmd.Run()
		if err == nil {
			// Go names it after the last element of the package's path.
			last := m.Path[strings.LastIndexByte(m.Path, '/')+1:]
			err = os.Rename(filepath.Join(bin, last), filepath.Join(dir, name))
		}
		if err = errors.Join(err, os.RemoveAll(bin)); err != nil {
			return fmt.Errorf("install %s: %w", want, err)
		}
		if err := os.WriteFile(stamp, []byte(want), 0o644); err != nil {
			return err
		}
	}
	return nil
}
