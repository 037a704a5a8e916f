// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestWebRefusesBadInput(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	dir := t.TempDir()
	good, open := filepath.Join(dir, "good"), filepath.Join(dir, "open")
	token := []byte(strings.Repeat("x", 32))
	if err := errors.Join(os.WriteFile(good, token, 0o600), os.WriteFile(open, token, 0o644), os.Chmod(open, 0o644)); err != nil {
		t.Fatal(err)
	}
	for args, want := range map[string]string{
		"--listen " + taken.Addr().String():                  "--listen: listen tcp " + taken.Addr().String() + ": bind: address already in use",
		"--listen 9480":                                      `--listen: "9480" is no address to listen at: write HOST:PORT, such as 127.0.0.1:9480`,
		"--listen 0.0.0.0:0":                                 "--listen 0.0.0.0:0: others than this machine could reach it: give --token-file, --tls-cert and --tls-key as well, or listen at 127.0.0.1",
		"--listen 0.0.0.0:0 --token-file " + good:            "--listen 0.0.0.0:0: others than this machine could reach it: give --token-file, --tls-cert and --tls-key as well, or listen at 127.0.0.1",
		"--token-file " + open:                               "--token-file: " + open + ": others than its owner can read or change it (mode 0644): chmod 0600 it",
		"--token-file " + dir + "/none":                      "--token-file: open " + dir + "/none: no such file or directory",
		"--tls-cert " + good:                                 "--tls-cert and --tls-key belong together: give both (see earlydrop web --help)",
		"--tls-key " + good:                                  "--tls-cert and --tls-key belong together: give both (see earlydrop web --help)",
		"--tls-cert " + good + " --tls-key " + good:          "--tls-cert, --tls-key: " + good + " and " + good + ": failed to find any PEM data in certificate input",
		"--tls-cert " + good + " --tls-key " + open:          "--tls-cert, --tls-key: " + open + ": others than its owner can read or change it (mode 0644): chmod 0600 it",
		"--control none":                                     "--control none: web shows nothing but what a daemon tells",
		"page":                                               `web takes no argument, got "page" (see earlydrop web --help)`,
		"--token-file " + good + " --listen 127.0.0.1:99999": "--listen: address 99999: invalid port",
	} {
		code, stdout, stderr := runForTest(append([]string{"web"}, strings.Fields(args)...)...)
		if code != exitBadInput || stdout != "" || stderr != "earlydrop: "+want+"\n" {
			t.Errorf("web %s: code %d, %q, %q\nwant %q", args, code, stdout, stderr, want)
		}
	}
}
