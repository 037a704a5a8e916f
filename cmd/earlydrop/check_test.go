// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"strings"
	"testing"
)

func TestCheckSaysWhatToDo(t *testing.T) {
	good := writeFile(t, "good.yaml", "rules: [{name: all, class: test, action: drop, ttl: 1m}]\n")
	bad := writeFile(t, "bad.yaml", "rules: [{nam: x}]\n")
	for _, tt := range []struct {
		name string
		args []string
		code int
		want []string // lines, by their beginnings
	}{
		{"all is well", nil, exitOK, []string{
			"ok       capabilities  ", "ok       kernel        Linux ", "ok       model         compact ", "ok       policy        built-in, mode monitor",
		}},
		{"lo shows packets twice", nil, exitOK, []string{"warning  traffic       lo shows each packet twice"}},
		{"a policy with an error", []string{"--policy", bad}, exitFailure, []string{"FAILURE  policy        " + bad + ":1:"}},
		{"a policy for other labels", []string{"--policy", good}, exitFailure, []string{"FAILURE  policy        " + good + ":1:"}},
		{"no policy", []string{"--policy", "/nosuch/p.yaml"}, exitFailure, []string{"FAILURE  policy        "}},
		{"no model", []string{"--model", "/nosuch/m.onnx"}, exitFailure, []string{"FAILURE  model         "}},
		{"no model in the file", []string{"--model", good}, exitFailure, []string{"FAILURE  model         "}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			code, stdout, stderr := runForTest(append([]string{"check", "-i", "lo"}, tt.args...)...)
			if code != tt.code || (stderr == "") != (tt.code == exitOK) {
				t.Errorf("exit code %d, want %d: %s%s", code, tt.code, stdout, stderr)
			}
			for _, want := range tt.want {
				if !strings.Contains("\n"+stdout, "\n"+want) {
					t.Errorf("no line begins with %q:\n%s", want, stdout)
				}
			}
		})
	}
}

func TestCheckOfBadCommandLines(t *testing.T) {
	for args, want := range map[string]string{
		"check":               "earlydrop: check needs --interface (see earlydrop check --help)\n",
		"check -i nosuch0":    "earlydrop: no such interface: nosuch0 (ip link shows what there is)\n",
		"check -i ../x":       "",
		"check -i lo another": "earlydrop: check takes no argument, got \"another\" (see earlydrop check --help)\n",
	} {
		code, stdout, stderr := runForTest(strings.Fields(args)...)
		if code != exitBadInput || stdout != "" || want != "" && stderr != want {
			t.Errorf("%s: exit code %d: %q", args, code, stderr)
		}
	}
}

func TestMemoryOfTablesIsCompared(t *testing.T) {
	for need, want := range map[uint64]string{1 << 20: "ok ", 1 << 60: "FAILURE "} {
		var out bytes.Buffer
		f := &findings{out: &out}
		checkMemory(f, need)
		if !strings.HasPrefix(out.String(), want) || f.failed > 0 != (want == "FAILURE ") {
			t.Errorf("%d bytes: %s", need, &out)
		}
	}
}
