// SPDX-License-Identifier: Apache-2.0

package loader

import (
	_ "embed"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/features"
)

// How many instructions the verifier of a kernel (major.minor) processed for each
// program, on links with and without an Ethernet header. A kernel refuses more than
// a million.
//
//go:embed testdata/verifier.tsv
var verifierFigures string

// verifierTolerance is how far the figures may move: more than that is a change of
// the programs that somebody has to know of.
const verifierTolerance = 0.10

type verified struct{ kernel, link, program string }

func readVerifierFigures(t *testing.T) map[verified]int {
	t.Helper()
	figures := make(map[verified]int)
	for i, line := range strings.Split(strings.TrimSpace(verifierFigures), "\n") {
		if i == 0 || strings.HasPrefix(line, "#") {
			continue // column names
		}
		fields := strings.Split(line, "\t")
		if len(fields) != 4 {
			t.Fatalf("testdata/verifier.tsv:%d: %q has %d fields, want 4", i+1, line, len(fields))
		}
		n, err := strconv.Atoi(fields[3])
		if err != nil || n <= 0 {
			t.Fatalf("testdata/verifier.tsv:%d: %q is no number of instructions", i+1, fields[3])
		}
		figures[verified{fields[0], fields[1], fields[2]}] = n
	}
	return figures
}

var processedInstructions = regexp.MustCompile(`processed (\d+) insns`)

// The log of a -v run has the lines that belong into testdata/verifier.tsv.
func TestVerifierFigures(t *testing.T) {
	version, err := features.LinuxVersionCode()
	if err != nil {
		t.Fatal(err)
	}
	kernel := fmt.Sprintf("%d.%d", version>>16, version>>8&0xff)
	want := readVerifierFigures(t)
	for _, l := range []struct {
		name  string
		rawIP bool
	}{{"ethernet", false}, {"raw_ip", true}} {
		spec, err := loadDatapath()
		if err != nil {
			t.Fatal(err)
		}
		if err := spec.Variables[datapathVarCfgRawIp].Set(l.rawIP); err != nil {
			t.Fatal(err)
		}
		coll, err := ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{
			Programs: ebpf.ProgramOptions{LogLevel: ebpf.LogLevelStats},
		})
		if err != nil {
			t.Fatal(loadError(err))
		}
		defer coll.Close()
		programs := []string{datapathProgEdIngress, datapathProgEdTcxIngress, datapathProgEdEgress, datapathProgEdSweep, datapathProgEdFreeSlots, datapathProgEdPassed}
		for name := range coll.Programs {
			if !slices.Contains(programs, name) {
				t.Errorf("program %s is not counted", name)
			}
		}
		for _, name := range programs {
			m := processedInstructions.FindStringSubmatch(coll.Programs[name].VerifierLog)
			if m == nil {
				t.Errorf("%s: the verifier told no figures: %q", name, coll.Programs[name].VerifierLog)
				continue
			}
			got, err := strconv.Atoi(m[1])
			if err != nil {
				t.Fatal(err)
			}
			t.Logf("verifier: %s\t%s\t%s\t%d", kernel, l.name, name, got)
			old, ok := want[verified{kernel, l.name, name}]
			if !ok {
				continue // a kernel that nobody measured
			}
			if change := float64(got)/float64(old) - 1; change > verifierTolerance || change < -verifierTolerance {
				t.Errorf("%s on %s: %d instructions instead of %d (%+.0f%%): if that is meant, change testdata/verifier.tsv", name, l.name, got, old, 100*change)
			}
		}
	}
}
