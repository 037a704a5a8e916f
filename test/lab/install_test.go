// SPDX-License-Identifier: Apache-2.0

package lab_test

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/earlydrop/earlydrop/test/lab"
)

// What is there in the wanted version is not built again; another version is,
// and a failure names it.
func TestInstallBuildsOnlyWhatIsMissing(t *testing.T) {
	dir := t.TempDir()
	stamps := map[string]string{"blinksocks": "3.3.0"}
	for name, m := range lab.Modules {
		stamps[name] = m.Path + "@" + m.Version
	}
	for name, text := range stamps {
		if err := os.WriteFile(filepath.Join(dir, name+".version"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("PATH", t.TempDir()) // neither go nor npm
	var out bytes.Buffer
	if err := lab.Install(context.Background(), dir, &out); err != nil || out.Len() > 0 {
		t.Errorf("with all there: %v, printed %q", err, out.String())
	}
	if err := os.WriteFile(filepath.Join(dir, "xray.version"), []byte("github.com/xtls/xray-core/main@v1.0.0"), 0o600); err != nil {
		t.Fatal(err)
	}
	err := lab.Install(context.Background(), dir, &out)
	if want := lab.Modules["xray"].Path + "@" + lab.Modules["xray"].Version; err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("with an old version and no Go tool: %v, want an error that names %s", err, want)
	}
	if _, err := lab.Program("sing-box"); err == nil || !strings.Contains(err.Error(), lab.Modules["sing-box"].Version) {
		t.Errorf("a missing program's error %v does not say what to build", err)
	}
}

// What the npm registry gives is fixed throughout: every package has a hash,
// and the program is of the version that the stamp names.
func TestNPMPackagesAreFixed(t *testing.T) {
	text, err := os.ReadFile("npm/package-lock.json")
	if err != nil {
		t.Fatal(err)
	}
	var lock struct {
		Packages map[string]struct {
			Version, Integrity string
			Dependencies       map[string]string
		}
	}
	if err := json.Unmarshal(text, &lock); err != nil {
		t.Fatal(err)
	}
	if len(lock.Packages) < 2 {
		t.Fatalf("the lock file has %d packages", len(lock.Packages))
	}
	for name, p := range lock.Packages {
		if name != "" && (p.Version == "" || !strings.HasPrefix(p.Integrity, "sha512-")) {
			t.Errorf("%s has version %q and hash %q", name, p.Version, p.Integrity)
		}
	}
	if got := lock.Packages["node_modules/blinksocks"].Version; got != "3.3.0" || lock.Packages[""].Dependencies["blinksocks"] != got {
		t.Errorf("blinksocks is %q, asked for is %q", got, lock.Packages[""].Dependencies["blinksocks"])
	}
}
