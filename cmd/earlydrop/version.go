// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"runtime"
	"runtime/debug"

	"github.com/urfave/cli/v2"
)

// version is set by the release build: -ldflags "-X main.version=v1.2.3".
var version string

func versionCommand() *cli.Command {
	return &cli.Command{
		Name:        "version",
		Usage:       "print the program's version, the Go release and the platform",
		Description: "Example:\n   earlydrop version",
		Action:      printVersion,
	}
}

func printVersion(c *cli.Context) error {
	if err := requireArgs(c, 0, 0, ""); err != nil {
		return err
	}
	_, err := fmt.Fprintf(c.App.Writer, "earlydrop %s %s %s/%s\n",
		programVersion(), runtime.Version(), runtime.GOOS, runtime.GOARCH)
	return err
}

// programVersion returns the version that the build was given, else the
// module version or commit that the Go tool stamped, else "unknown".
func programVersion() string {
	info, _ := debug.ReadBuildInfo()
	return versionFrom(version, info)
}

func versionFrom(given string, info *debug.BuildInfo) string {
	if given != "" {
		return given
	}
	if info == nil {
		return "unknown"
	}
	if v := info.Main.Version; v != "" && v != "(devel)" {
		return v
	}
	var revision, dirty string
	for _, s := range info.Settings {
		switch {
		case s.Key == "vcs.revision":
			revision = s.Value[:min(12, len(s.Value))]
		case s.Key == "vcs.modified" && s.Value == "true":
			dirty = "-dirty"
		}
	}
	if revision == "" {
		return "unknown"
	}
	return "commit-" + revision + dirty
}
