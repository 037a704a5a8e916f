// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"context"
	"embed"
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

// npmPackage is a program of its own name from the npm registry, which runs
// in Node.js. What it depends on is fixed, by version and hash, in npmFiles;
// after a change of its version they are written anew by
//
//	npm install --package-lock-only --omit-lockfile-registry-resolved
const npmPackage, npmVersion = "blinksocks", "3.3.0"

//go:embed npm/package.json npm/package-lock.json
var npmFiles embed.FS

// Install builds each of [Modules] that dir lacks, by go install, and leaves
// its program there; where there is npm it adds blinksocks. A file beside each
// names the version, so that another one is built when the table changes. What
// the tools print goes to out. It takes minutes of CPU time the first time.
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
	return installNPM(ctx, dir, out)
}

func installNPM(ctx context.Context, dir string, out io.Writer) error {
	stamp := filepath.Join(dir, npmPackage+".version")
	if have, err := os.ReadFile(stamp); err == nil && string(have) == npmVersion {
		return nil
	}
	npm, err := exec.LookPath("npm")
	if err != nil {
		fmt.Fprintf(out, "no npm: %s is left out\n", npmPackage)
		return nil
	}
	prefix := filepath.Join(dir, "npm")
	if err := errors.Join(os.RemoveAll(prefix), os.CopyFS(dir, npmFiles)); err != nil {
		return err
	}
	fmt.Fprintf(out, "npm ci, for %s@%s\n", npmPackage, npmVersion)
	// Without the packages' own scripts: none is needed.
	cmd := exec.CommandContext(ctx, npm, "ci", "--prefix", prefix, "--no-audit", "--no-fund", "--ignore-scripts", "--loglevel", "error")
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("install %s@%s: %w", npmPackage, npmVersion, err)
	}
	script := fmt.Sprintf("#!/bin/sh\nexec node '%s' \"$@\"\n", filepath.Join(prefix, "node_modules", ".bin", npmPackage))
	if err := os.WriteFile(filepath.Join(dir, npmPackage), []byte(script), 0o755); err != nil {
		return err
	}
	return os.WriteFile(stamp, []byte(npmVersion), 0o644)
}
