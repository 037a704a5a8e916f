// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"path/filepath"
	"strings"
	"testing"

	"github.com/earlydrop/earlydrop/cmd/earlydrop/term/termtest"
)

// Where there is nothing to show, or nowhere, one line says so.
func TestTopThatCanNotBeShown(t *testing.T) {
	away := "--control=" + filepath.Join(t.TempDir(), "no.sock")
	for _, tt := range []struct {
		args []string
		want string
	}{
		{[]string{"top"}, "top needs a terminal; --looks 1 prints"},
		{[]string{"top", "--json"}, "--json needs --looks"},
		{[]string{"top", "--looks", "0"}, "looks"},
		{[]string{"top", "--interval", "1ms"}, "200ms"},
		{[]string{"top", "eth0"}, "eth0"},
		{[]string{"top", "--looks", "1", away}, "no daemon answers at"},
		{[]string{"top", "--looks", "1", "--control", "none"}, "no daemon answers at none"},
	} {
		var stdout, stderr bytes.Buffer
		if code := run(append([]string{"earlydrop"}, tt.args...), &stdout, &stderr); code != 2 || stdout.Len() != 0 || strings.Count(stderr.String(), "\n") != 1 || !strings.Contains(stderr.String(), tt.want) {
			t.Errorf("%q: %d, %q, %q, want 2 and %q", tt.args, code, stdout.String(), stderr.String(), tt.want)
		}
	}
	_, tty := termtest.Open(t)
	var stderr bytes.Buffer
	if code := run([]string{"earlydrop", "top", away}, tty, &stderr); code != 2 || !strings.Contains(stderr.String(), "no daemon answers at") {
		t.Errorf("on a terminal: %d, %q", code, stderr.String())
	}
}
