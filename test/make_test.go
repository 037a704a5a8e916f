// SPDX-License-Identifier: Apache-2.0

package test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// runMake runs make in the folder of the Makefile, with programs in the place of go,
// apt-get and npm that do nothing but note that they were called.
func runMake(t *testing.T, args ...string) (code int, said string, called []string) {
	t.Helper()
	dir := t.TempDir()
	note := filepath.Join(dir, "called")
	for _, name := range []string{"go", "apt-get", "npm"} {
		script := fmt.Sprintf("#!/bin/sh\necho %s >> %s\nexit 1\n", name, note)
		if err := os.WriteFile(filepath.Join(dir, name), []byte(script), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.Command("make", append([]string{"--no-print-directory"}, args...)...)
	cmd.Dir = ".."
	for _, variable := range os.Environ() { // these tests may be run by make
		if name, _, _ := strings.Cut(variable, "="); !strings.HasPrefix(name, "MAKE") && name != "MFLAGS" && name != "IFACE" && name != "MODE" {
			cmd.Env = append(cmd.Env, variable)
		}
	}
	cmd.Env = append(cmd.Env, "PATH="+dir+":"+os.Getenv("PATH"))
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	text, err := os.ReadFile(note)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	return cmd.ProcessState.ExitCode(), stderr.String(), strings.Fields(string(text))
}

// What make run is told is looked at before anything is installed or built.
func TestMakeRunChecksFirst(t *testing.T) {
	const there = "(there are: "
	for _, tt := range []struct {
		args, want string
	}{
		{"", "name the interface: sudo make run IFACE=eth0 " + there},
		{"IFACE=", "name the interface: sudo make run IFACE=eth0 " + there},
		{"IFACE=nope0", "no such interface: nope0 " + there},
		{"IFACE=../lo", "no such interface: ../lo " + there},
		{"IFACE=l.", "no such interface: l. " + there},
		{"IFACE=-i", "no such interface: -i " + there},
		{"IFACE=lo MODE=block", "MODE=block: use monitor or enforce"},
		{"IFACE=lo MODE=", "MODE=: use monitor or enforce"},
	} {
		code, said, called := runMake(t, append([]string{"run"}, strings.Fields(tt.args)...)...)
		if code != 2 || !strings.HasPrefix(said, tt.want) || strings.Contains(tt.want, there) && !strings.Contains(said, "lo") || len(called) > 0 {
			t.Errorf("make run %s: exit code %d, called %v, said %q; want %q", tt.args, code, called, said, tt.want)
		}
	}
	// An interface that is there: it goes on to what it takes.
	if code, said, called := runMake(t, "run", "IFACE=lo"); code == 0 || len(called) == 0 {
		t.Errorf("make run IFACE=lo: exit code %d, called %v, said %q", code, called, said)
	}
}

// The name of an interface is a name, not a piece of shell.
func TestMakeRunTakesNamesAsTheyAre(t *testing.T) {
	planted := filepath.Join(t.TempDir(), "planted")
	for _, name := range []string{"l*", "lo x", "it's", `x"y`, "'; touch " + planted + "; '", "$$(touch " + planted + ")", "`touch " + planted + "`"} {
		if code, said, called := runMake(t, "run", "IFACE="+name); code != 2 || !strings.Contains(said, "interface") || len(called) > 0 {
			t.Errorf("IFACE=%s: exit code %d, called %v, said %q", name, code, called, said)
		}
	}
	if _, err := os.Stat(planted); err == nil {
		t.Error("the shell ran what was in the name")
	}
}
