// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"crypto/sha256"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/goccy/go-yaml/ast"

	"github.com/earlydrop/earlydrop/loader/flow"
	"github.com/earlydrop/earlydrop/policy/yamlfile"
)

// Bounds of a policy file.
const (
	// MaxFileBytes bounds the file. A thousand rules with a dozen exceptions
	// each fit in.
	MaxFileBytes = 256 << 10
	// MinTTL is the shortest block: the kernel's clock is read in seconds by
	// whoever looks at the map, and a shorter block stops nothing.
	MinTTL = time.Second
	// MaxTTL is the longest block, a year: a mistyped unit should not block a
	// server for ever.
	MaxTTL = 365 * 24 * time.Hour
	// MaxEvidenceFlows is the most flows that a rule can wait for. So many of the latest ones
	// of a pair are remembered.
	MaxEvidenceFlows = 32
	// MaxWithin is the longest time within which they may come.
	MaxWithin = 7 * 24 * time.Hour
	// maxEvidenceRules is how many rules may have evidence.
	maxEvidenceRules = 32
)

// Model is what a policy has to know of the model that decides beside it.
type Model struct {
	// Labels are the classes that the model distinguishes, flow.Background
	// included.
	Labels []string
	// Thresholds gives for each of them but flow.Background the probability, 0
	// to 1, that a rule over this class alone asks for when it has no
	// min_confidence.
	Thresholds map[string]float64
	// AnyThreshold is the same for a rule over several classes: the
	// probability that the flow is one of them.
	AnyThreshold float64
	// Unknown says that the model may give the outcome flow.Unknown.
	Unknown bool
}

// threshold is the min_confidence of a rule over these classes that has none.
func (m *Model) threshold(classes []string) float64 {
	if len(classes) == 1 {
		return m.Thresholds[classes[0]]
	}
	return m.AnyThreshold
}

// classes returns what a rule can name, without flow.Unknown.
func (m *Model) classes() []string {
	return slices.DeleteFunc(slices.Clone(m.Labels), func(s string) bool { return s == flow.Background })
}

// Load reads the policy file at path, and the files of its sets, and parses it as Parse does. The error is an
// *Error where the text is wrong, and else wraps the one of the file system.
func Load(path string, model *Model) (*Policy, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("read policy: %w", err)
	}
	defer file.Close()
	data, err := io.ReadAll(io.LimitReader(file, MaxFileBytes+1))
	if err != nil {
		return nil, fmt.Errorf("read policy: %w", err)
	}
	return Parse(path, data, model)
}

// Parse parses the text of a policy file. Name is the file's in errors, and the files of
// sets are looked for in its folder.
// The rules may name the classes of model, and take from it the min_confidence
// that they lack; with nil they may name any class, but need a min_confidence. model
// is not kept. Every error is an *Error, with the place, which may be in the file of a set,
// and what to do. Parse may be
// called concurrently.
func Parse(name string, data []byte, model *Model) (*Policy, error) {
	d := &decoder{File: &yamlfile.File{Name: yamlfile.OneLine(name), Kind: &kind}, model: model, sets: map[string]*Set{}}
	body, err := d.Read(data)
	if err != nil {
		return nil, err
	}
	p, err := d.policy(body)
	if err == nil {
		p.Digest = fmt.Sprintf("sha256:%x", sha256.Sum256(data))
	}
	return p, err
}

// policy reads the whole file.
func (d *decoder) policy(n ast.Node) (*Policy, error) {
	keys, err := d.mapping(n, "the policy", "mode", "one_hook", "limits", "protect", "sets", "allow", "rules")
	if err != nil {
		return nil, err
	}
	p := &Policy{Limits: DefaultLimits}
	if e, ok := keys["sets"]; ok { // the others may name them
		if err := d.readSets(e); err != nil {
			return nil, err
		}
		p.Sets = slices.SortedFunc(maps.Values(d.sets), func(a, b *Set) int { return strings.Compare(a.Name, b.Name) })
	}
	if e, ok := keys["limits"]; ok {
		if p.Limits, err = d.limits(e); err != nil {
			return nil, err
		}
	}
	if e, ok := keys["protect"]; ok {
		if p.Protect, err = d.endpoints(e, "protect", false); err != nil {
			return nil, err
		}
	}
	if e, ok := keys["one_hook"]; ok {
		if p.OneHook, err = d.boolean(e, "one_hook"); err != nil {
			return nil, err
		}
	}
	if e, ok := keys["mode"]; ok {
		mode, err := d.text(e.Place(), e.Value, "mode", "monitor")
		if err != nil {
			return nil, err
		}
		if p.Mode, err = ParseMode(mode); err != nil {
			return nil, d.On(e.Place(), "%v", err)
		}
	}
	if e, ok := keys["allow"]; ok {
		if p.Allow, err = d.matches(e, "allow"); err != nil {
			return nil, err
		}
	}
	if e, ok := keys["rules"]; ok {
		if p.Rules, err = d.rules(e); err != nil {
			return nil, err
		}
	}
	p.prepare()
	return p, nil
}
