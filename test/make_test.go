// SPDX-License-Identifier: Apache-2.0

package test

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// `make run` says what is missing before it installs, fetches or builds anything, and
// takes the name as a name, not as a piece of shell.
func TestMakeRunAsksForAnInterface(t *testing.T) {
	planted := filepath.Join(t.TempDir(), "planted")
	for _, name := range []string{"", "nope0", "lo:1", "l*", "lo x", "../x", "-x", "it's", `x"y`, "'; touch " + planted + "; '", "$$(touch " + planted + ")"} {
		cmd := exec.Command("make", "--no-print-directory", "-C", "..", "run", "IFACE="+name)
		out, err := cmd.CombinedOutput()
		var exit *exec.ExitError
		if !errors.As(err, &exit) || exit.ExitCode() != 2 || !strings.HasPrefix(string(out), "name an interface: sudo make run IFACE=eth0 (there are: ") ||
			strings.Contains(string(out), "go build") {
			t.Errorf("IFACE=%s: %v\n%s", name, err, out)
		}
	}
	if _, err := os.Stat(planted); err == nil {
		t.Error("the shell ran what was in the name")
	}
}
