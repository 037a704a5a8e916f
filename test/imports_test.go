// SPDX-License-Identifier: Apache-2.0

package test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

// module is the path of this module's packages.
const module = "github.com/earlydrop/earlydrop"

// layers says what the packages of this module may import of it, from the ground up.
// The most exact row holds for a package: the one of its own folder, else of the nearest
// folder above it. What is allowed is a folder and all below it; "=" is the folder alone.
// No row allows one that comes after it, so that data goes one way.
var layers = []struct {
	folder string
	may    []string
}{
	{"models", nil},
	{"models/figures", nil},
	{"policy/nearest", nil},
	{"policy/yamlfile", []string{"policy/nearest"}},
	{"loader/flow", nil},
	{"loader/flow/headers", []string{"=loader/flow"}},
	{"loader/flow/signals", []string{"=loader/flow", "loader/flow/headers"}},
	{"loader/flow/parts", []string{"=loader/flow", "loader/flow/headers", "loader/flow/signals"}},
	{"loader/assembly/scratch", nil},
	{"loader/assembly", []string{"loader/flow", "loader/assembly/scratch"}},
	{"loader/internal", nil},
	{"loader", []string{"loader/flow", "loader/internal"}},
	// The libraries share the plain types of loader/flow, and do not know one another.
	{"policy", []string{"=loader/flow", "policy/nearest", "=policy/yamlfile"}},
	{"policy/evidence", []string{"=policy", "=loader/flow"}},
	{"classifier/internal/wire", nil},
	{"classifier", []string{"loader/flow", "classifier/internal/wire"}},
	{"classifier/explain", []string{"=classifier", "loader/flow"}},
	{"classifier/native", []string{"=classifier", "classifier/internal/wire"}},
	{"classifier/onnx", []string{"=classifier", "loader/flow"}},
	{"cmd/earlydrop/event", []string{"=loader/flow", "=policy"}},
	{"cmd/earlydrop/event/eventlog", []string{"=cmd/earlydrop/event"}},
	{"cmd/earlydrop/event/eventtest", []string{"=cmd/earlydrop/event"}},
	{"cmd/earlydrop/history", []string{"=cmd/earlydrop/event", "=cmd/earlydrop/event/eventlog", "=classifier", "=loader/assembly", "loader/flow"}},
	{"cmd/earlydrop/captures", []string{"=loader/assembly"}},
	{"cmd/earlydrop/replay", []string{"=cmd/earlydrop/event", "=cmd/earlydrop/captures", "=classifier", "policy", "loader/flow", "loader/assembly"}},
	{"cmd/earlydrop/dataset", []string{"=cmd/earlydrop/captures", "=classifier", "loader/flow", "loader/assembly"}},
	{"cmd/earlydrop/status", []string{"=cmd/earlydrop/event", "=loader", "loader/flow"}},
	{"cmd/earlydrop/why", []string{"=cmd/earlydrop/event", "=cmd/earlydrop/status", "policy", "=loader/flow"}},
	{"cmd/earlydrop/control", []string{"=cmd/earlydrop/why", "=cmd/earlydrop/event", "=cmd/earlydrop/event/eventlog", "=cmd/earlydrop/history", "=cmd/earlydrop/status", "=loader", "=loader/flow", "=policy", "policy/nearest"}},
	{"cmd/earlydrop/top", []string{"=cmd/earlydrop/why", "=cmd/earlydrop/event", "=cmd/earlydrop/status", "=cmd/earlydrop/control", "=loader", "=loader/flow"}},
	{"cmd/earlydrop/metrics", []string{"=cmd/earlydrop/status", "=loader"}},
	{"cmd/earlydrop/gateway/guard", nil},
	{"cmd/earlydrop/gateway", []string{"=cmd/earlydrop/gateway/guard", "=cmd/earlydrop/why", "=cmd/earlydrop/event", "=cmd/earlydrop/event/eventlog", "=cmd/earlydrop/history", "=cmd/earlydrop/status", "=loader", "loader/flow", "=classifier", "policy"}},
	{"cmd/earlydrop/explanation", []string{"=cmd/earlydrop/event", "=cmd/earlydrop/captures", "=classifier", "=classifier/explain", "=policy", "=loader/flow", "=loader/assembly"}},
	{"cmd/earlydrop/web", []string{"=classifier/explain", "=cmd/earlydrop/control", "=cmd/earlydrop/event", "=cmd/earlydrop/status"}},
	{"cmd/earlydrop/settings", []string{"=policy/yamlfile"}},
	{"cmd/earlydrop/confine", nil},
	{"cmd/earlydrop/term", nil},
	{"cmd/earlydrop", []string{"models", "policy", "loader/flow", "loader/assembly", "=loader", "classifier", "cmd/earlydrop"}},
	{"test", []string{"models", "policy", "loader", "classifier", "cmd/earlydrop", "test"}},
}

// goPackage is what go list says of a package.
type goPackage struct {
	ImportPath string
	Standard   bool
	CgoFiles   []string
	Imports    []string
	Deps       []string
}

// breaches returns what is wrong with the imports of the packages, a line each. Tests
// may import what they like.
func breaches(packages []goPackage) (wrong []string) {
	// The threads that C has made can be reached from C alone.
	reachesThreads := func(from, path string) bool {
		return from == "cmd/earlydrop/confine" && strings.HasSuffix(path, "/libcap/psx")
	}
	// Of other modules: which use cgo, or import what does.
	cgo := map[string]bool{}
	for _, p := range packages {
		if !p.Standard && len(p.CgoFiles) > 0 {
			cgo[p.ImportPath] = true
		}
	}
	usesCgo := func(p goPackage) bool {
		return cgo[p.ImportPath] || slices.ContainsFunc(p.Deps, func(path string) bool { return cgo[path] })
	}
	byPath := map[string]goPackage{}
	for _, p := range packages {
		byPath[p.ImportPath] = p
	}
	for _, p := range packages {
		from, ours := inModule(p.ImportPath)
		if !ours {
			continue
		}
		backend := strings.HasPrefix(from, "classifier/")
		// A signal handler that has to work while Go can't go on is no Go.
		if cgo[p.ImportPath] && !backend && from != "cmd/earlydrop/gateway/guard" {
			wrong = append(wrong, from+" uses cgo: only packages below classifier may")
		}
		row := layerOf(from)
		if row < 0 {
			wrong = append(wrong, from+" is in no row of layers: say what it may import")
			continue
		}
		for _, path := range p.Imports {
			to, ours := inModule(path)
			switch {
			case ours && !slices.ContainsFunc(layers[row].may, func(may string) bool { return covers(may, to) }):
				wrong = append(wrong, fmt.Sprintf("%s imports %s: it may import %v of this module", from, to, layers[row].may))
			case !ours && !backend && usesCgo(byPath[path]) && !reachesThreads(from, path):
				wrong = append(wrong, fmt.Sprintf("%s imports %s, which uses cgo: only packages below classifier may", from, path))
			}
		}
	}
	return wrong
}

// inModule returns a package's folder in this module.
func inModule(path string) (folder string, ours bool) {
	if path == module {
		return ".", true
	}
	return strings.CutPrefix(path, module+"/")
}

// covers reports whether an entry of may allows the folder.
func covers(may, folder string) bool {
	if exact, ok := strings.CutPrefix(may, "="); ok {
		return folder == exact
	}
	return folder == may || strings.HasPrefix(folder, may+"/")
}

// layerOf returns the index of the row that holds for a folder, -1 if there is none.
func layerOf(folder string) int {
	best := -1
	for i, l := range layers {
		if covers(l.folder, folder) && (best < 0 || len(l.folder) > len(layers[best].folder)) {
			best = i
		}
	}
	return best
}

func TestImportsGoDownOnly(t *testing.T) {
	var packages []goPackage
	cmd := exec.Command("go", "list", "-deps", "-json=ImportPath,Standard,CgoFiles,Imports,Deps", "./...")
	cmd.Dir = ".."
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v: %s", err, &stderr)
	}
	ours := 0
	for d := json.NewDecoder(bytes.NewReader(out)); ; {
		var p goPackage
		err := d.Decode(&p)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if _, in := inModule(p.ImportPath); in {
			ours++
		}
		packages = append(packages, p)
	}
	if ours < 20 {
		t.Errorf("only %d packages were looked at", ours)
	}
	for _, w := range breaches(packages) {
		t.Error(w)
	}
}

// The table itself has no arrow that goes up, and allows only what there is a row for.
func TestLayersAreInOrder(t *testing.T) {
	for i, l := range layers {
		for _, may := range l.may {
			folder := strings.TrimPrefix(may, "=")
			if row := layerOf(folder); row < 0 || row > i {
				t.Errorf("%s may import %s, which does not come before it", l.folder, folder)
			}
		}
	}
}

// The check finds what it is there for.
func TestImportsThatGoUpAreFound(t *testing.T) {
	imports := func(from string, to ...string) goPackage {
		p := goPackage{ImportPath: module + "/" + from}
		for _, path := range to {
			if !strings.Contains(path, ".") {
				path = module + "/" + path
			}
			p.Imports = append(p.Imports, path)
		}
		return p
	}
	others := []goPackage{
		{ImportPath: "net", Standard: true, CgoFiles: []string{"cgo.go"}},
		{ImportPath: "example.com/plain"},
		{ImportPath: "example.com/cgo", CgoFiles: []string{"a.go"}},
		{ImportPath: "example.com/libcap/psx", CgoFiles: []string{"a.go"}},
		{ImportPath: "example.com/above", Imports: []string{"example.com/cgo"}, Deps: []string{"example.com/cgo"}},
	}
	withCgo := imports("loader")
	withCgo.CgoFiles = []string{"a.go"}
	withBackend := imports("classifier/native")
	withBackend.CgoFiles = []string{"a.go"}
	for _, tt := range []struct {
		p    goPackage
		want string // "" if it is allowed
	}{
		{imports("loader", "loader/flow", "loader/internal/floor", "example.com/plain"), ""},
		{imports("loader", "loader/assembly"), "loader imports loader/assembly"},
		{imports("loader", "classifier"), "loader imports classifier"},
		{imports("loader/flow", "loader"), "loader/flow imports loader"},
		{imports("loader/flow", "loader/flow/headers"), "loader/flow imports loader/flow/headers"},
		{imports("loader/new", "loader/flow"), ""},
		{imports("loader/new", "cmd/earlydrop"), "loader/new imports cmd/earlydrop"},
		{imports("policy", "loader/flow", "policy/nearest"), ""},
		{imports("policy", "loader"), "policy imports loader"},
		{imports("policy", "classifier"), "policy imports classifier"},
		{imports("policy/new", "models"), "policy/new imports models"},
		{imports("classifier", "loader/flow/headers"), ""},
		{imports("classifier", "classifier/onnx"), "classifier imports classifier/onnx"},
		{imports("classifier", "test/onnxruntime"), "classifier imports test/onnxruntime"},
		{imports("classifier/onnx", "classifier", "example.com/cgo"), ""},
		{imports("classifier/native", "classifier", "classifier/internal/wire"), ""},
		{imports("classifier/native", "classifier/onnx"), "classifier/native imports classifier/onnx"},
		{imports("classifier/onnx", "cmd/earlydrop"), "classifier/onnx imports cmd/earlydrop"},
		{imports("models", "classifier"), "models imports classifier"},
		{imports("cmd/earlydrop", "classifier/onnx", "loader/assembly/scratch", "models"), ""},
		{imports("cmd/earlydrop", "test/onnxruntime"), "cmd/earlydrop imports test/onnxruntime"},
		{imports("cmd/earlydrop", "loader/internal/frames"), "cmd/earlydrop imports loader/internal/frames"},
		{imports("test/bench", "test/lab", "loader", "cmd/earlydrop/new"), ""},
		{imports("cmd/earlydrop", "cmd/earlydrop/new"), ""},
		{imports("cmd/earlydrop/event", "loader/flow", "policy"), ""},
		{imports("cmd/earlydrop/replay", "cmd/earlydrop/event", "cmd/earlydrop/captures", "classifier", "loader/assembly/scratch"), ""},
		{imports("cmd/earlydrop/replay", "loader"), "cmd/earlydrop/replay imports loader"},
		{imports("cmd/earlydrop/replay", "cmd/earlydrop"), "cmd/earlydrop/replay imports cmd/earlydrop"},
		{imports("cmd/earlydrop/dataset", "cmd/earlydrop/captures", "classifier", "loader/flow/headers"), ""},
		{imports("cmd/earlydrop/dataset", "cmd/earlydrop/replay"), "cmd/earlydrop/dataset imports cmd/earlydrop/replay"},
		{imports("cmd/earlydrop/gateway", "cmd/earlydrop/event/eventlog", "loader", "classifier", "policy"), ""},
		{imports("cmd/earlydrop/gateway", "classifier/onnx"), "cmd/earlydrop/gateway imports classifier/onnx"},
		{imports("cmd/earlydrop/gateway", "cmd/earlydrop/replay"), "cmd/earlydrop/gateway imports cmd/earlydrop/replay"},
		{imports("cmd/earlydrop/captures", "cmd/earlydrop/replay"), "cmd/earlydrop/captures imports cmd/earlydrop/replay"},
		{imports("cmd/earlydrop/event", "loader"), "cmd/earlydrop/event imports loader"},
		{imports("cmd/earlydrop/event", "cmd/earlydrop/event/eventlog"), "cmd/earlydrop/event imports cmd/earlydrop/event/eventlog"},
		{imports("new", "models"), "new is in no row"},
		{imports("cmd/earlydrop/confine", "example.com/libcap/psx"), ""},
		{imports("cmd/earlydrop", "example.com/libcap/psx"), "cmd/earlydrop imports example.com/libcap/psx, which uses cgo"},
		{imports("loader", "example.com/cgo"), "loader imports example.com/cgo, which uses cgo"},
		{imports("classifier", "example.com/above"), "classifier imports example.com/above, which uses cgo"},
		{imports("cmd/earlydrop", "example.com/above"), "cmd/earlydrop imports example.com/above, which uses cgo"},
		{withCgo, "loader uses cgo"},
		{withBackend, ""},
	} {
		got := strings.Join(breaches(append(slices.Clone(others), tt.p)), "\n")
		if tt.want == "" && got != "" || !strings.HasPrefix(got, tt.want) || strings.Contains(got, "\n") {
			t.Errorf("%s imports %v: %q, want %q", tt.p.ImportPath, tt.p.Imports, got, tt.want)
		}
	}
}
