// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/goccy/go-yaml/ast"

	"github.com/earlydrop/earlydrop/loader/flow"
	"github.com/earlydrop/earlydrop/policy/yamlfile"
)

// Bounds of a rate, in bytes per second: 1kbit and 10gbit.
const (
	MinRate = 1_000 / 8
	MaxRate = 10_000_000_000 / 8
)

// rateUnits are bits per second, the greatest first.
var rateUnits = []struct {
	name string
	bits uint64
}{{"gbit", 1_000_000_000}, {"mbit", 1_000_000}, {"kbit", 1_000}}

// ParseRate reads a rate such as 64kbit or 2mbit, per second, and returns it in bytes per
// second. The error says what is wrong with it, to be read behind "rate".
func ParseRate(s string) (uint64, error) {
	for _, u := range rateUnits {
		number, ok := strings.CutSuffix(s, u.name)
		if !ok {
			continue
		}
		n, err := strconv.ParseUint(number, 10, 32)
		if err != nil || strings.TrimLeft(number, "0123456789") != "" || n*u.bits/8 < MinRate || n*u.bits/8 > MaxRate {
			break
		}
		return n * u.bits / 8, nil
	}
	return 0, fmt.Errorf("%s is no rate; write 1kbit to 10gbit, a whole number with kbit, mbit or gbit (1000 bits a second and so on), such as 64kbit", yamlfile.Quote(s))
}

// FormatRate prints a rate, in bytes per second, as ParseRate reads it.
func FormatRate(rate uint64) string {
	for _, u := range rateUnits {
		if bits := rate * 8; bits%u.bits == 0 {
			return strconv.FormatUint(bits/u.bits, 10) + u.name
		}
	}
	return strconv.FormatUint(rate*8, 10) + "bit"
}

// rate reads the rate of a rule whose actions are read.
func (d *decoder) rate(r *Rule, what string, n ast.Node, keys map[string]entry) error {
	e, has := keys["rate"]
	limits := r.Action == flow.Limit || r.Evidence != nil && r.Meanwhile == flow.Limit
	switch {
	case !has && limits:
		return d.In(n, "%s limits flows and has no rate; add one, for example \"rate: 64kbit\"", what)
	case !has:
		return nil
	case !limits:
		return d.On(e.Key, "rate says how much action limit lets pass, and %s has another action; remove rate, or write action: limit", what)
	}
	at := e.Place()
	text := at.Value // of a bare number, as it was written
	if _, bare := e.Value.(*ast.IntegerNode); !bare {
		var err error
		if text, err = d.text(at, e.Value, "rate", "64kbit"); err != nil {
			return err
		}
	}
	var err error
	if r.Rate, err = ParseRate(text); err != nil {
		return d.On(at, "rate %v", err)
	}
	return nil
}
