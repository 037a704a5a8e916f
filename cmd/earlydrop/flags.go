// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/earlydrop/earlydrop/policy"
)

// number is the value of a flag that takes a whole number within bounds. Its errors
// say what is allowed.
type number struct {
	value, least, most uint64
}

func (n *number) Set(s string) error {
	v, err := strconv.ParseUint(s, 10, 64)
	if err != nil || v < n.least || v > n.most {
		return fmt.Errorf("use a whole number from %d to %d", n.least, n.most)
	}
	n.value = v
	return nil
}

func (n *number) String() string { return strconv.FormatUint(n.value, 10) }

// numberFlag returns a flag for a number from least to most. byDefault says in words
// what happens without it.
func numberFlag(name, usage, byDefault string, least, most uint64) cli.Flag {
	return &cli.GenericFlag{Name: name, Usage: usage, DefaultText: byDefault, Value: &number{least: least, most: most}}
}

// numberOf returns the value of a numberFlag, 0 if it was not given.
func numberOf(c *cli.Context, name string) uint64 {
	n, ok := c.Generic(name).(*number)
	if !ok {
		return 0
	}
	return n.value
}

// size is the value of a flag that takes a number of bytes.
type size struct{ value, most uint64 }

func (n *size) Set(s string) error {
	digits, unit := s, uint64(1)
	for suffix, bytes := range map[string]uint64{"KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30} {
		if before, ok := strings.CutSuffix(s, suffix); ok {
			digits, unit = before, bytes
		}
	}
	v, err := strconv.ParseUint(digits, 10, 64)
	if err != nil || v > n.most/unit {
		return fmt.Errorf("use a number of bytes up to %s, such as 4096, 16KiB or 1MiB", &size{value: n.most})
	}
	n.value = v * unit
	return nil
}

func (n *size) String() string {
	for i, unit := range []string{"GiB", "MiB", "KiB"} {
		if bytes := uint64(1) << (30 - 10*i); n.value >= bytes && n.value%bytes == 0 {
			return strconv.FormatUint(n.value/bytes, 10) + unit
		}
	}
	return strconv.FormatUint(n.value, 10)
}

// sizeFlag returns a flag for a number of bytes up to most.
func sizeFlag(name, usage string, byDefault, most uint64) cli.Flag {
	return &cli.GenericFlag{Name: name, Usage: usage, Value: &size{byDefault, most}}
}

// sizeOf returns the value of a sizeFlag.
func sizeOf(c *cli.Context, name string) uint64 {
	n, ok := c.Generic(name).(*size)
	if !ok {
		return 0
	}
	return n.value
}

// span is the value of a flag that takes a time of at least so much.
type span struct{ value, least time.Duration }

func (d *span) Set(s string) error {
	v, err := time.ParseDuration(s)
	if err != nil || v < d.least {
		return fmt.Errorf("use a time of %s or more, such as 30s, 10m or 1h30m", policy.FormatTTL(d.least))
	}
	d.value = v
	return nil
}

func (d *span) String() string { return policy.FormatTTL(d.value) }

// spanFlag returns a flag for a time of at least so much.
func spanFlag(name, usage string, byDefault, least time.Duration) cli.Flag {
	return &cli.GenericFlag{Name: name, Usage: usage, DefaultText: policy.FormatTTL(byDefault), Value: &span{byDefault, least}}
}

// spanOf returns the value of a spanFlag.
func spanOf(c *cli.Context, name string) time.Duration {
	d, ok := c.Generic(name).(*span)
	if !ok {
		return 0
	}
	return d.value
}

// listFlag is a flag that may be repeated. The help names it once.
type listFlag struct{ *cli.StringSliceFlag }

// String returns its row of the help.
func (f listFlag) String() string {
	names, usage, _ := strings.Cut(f.StringSliceFlag.String(), "\t")
	names, _, _ = strings.Cut(names, " [ ")
	return names + "\t" + usage
}

// ttl is the value of a flag that says how long a block lasts.
type ttl time.Duration

func (t *ttl) Set(s string) error {
	d, err := policy.ParseTTL(s)
	*t = ttl(d)
	return err
}

func (t *ttl) String() string { return policy.FormatTTL(time.Duration(*t)) }

func ttlFlag(byDefault time.Duration) cli.Flag {
	t := ttl(byDefault)
	return &cli.GenericFlag{Name: "ttl", Usage: "block for this `TIME`, such as 30s, 1h30m, 7d or 2w", Value: &t}
}

// ttlOf returns the value of a ttlFlag.
func ttlOf(c *cli.Context) time.Duration {
	t, ok := c.Generic("ttl").(*ttl)
	if !ok {
		return 0
	}
	return time.Duration(*t)
}

// flagNamed returns the flag of cmd that has this name or alias, or nil.
func flagNamed(cmd *cli.Command, name string) cli.Flag {
	for _, f := range cmd.Flags {
		if slices.Contains(f.Names(), name) {
			return f
		}
	}
	return nil
}

func takesValue(f cli.Flag) bool {
	valued, ok := f.(cli.DocGenerationFlag)
	return ok && valued.TakesValue()
}

// mayRepeat reports whether a flag collects all values that it is given.
func mayRepeat(f cli.Flag) bool {
	slice, ok := f.(cli.DocGenerationSliceFlag)
	return ok && slice.IsSliceFlag()
}

// givenFlags notes the flags of a command line. The flag parser would take the last
// value of a flag that is repeated, and say nothing.
type givenFlags map[cli.Flag]string

// note returns bad input if f was given before: with whatever value if it takes one,
// else with another one (--json --json=false).
func (g givenFlags) note(f cli.Flag, value string) error {
	if f == nil || mayRepeat(f) {
		return nil
	}
	first, again := g[f]
	if again && (takesValue(f) || first != value) {
		name := f.Names()[0]
		return badInput("%s is given twice, as %q and as %q: keep one of them", dashed(name), first, value)
	}
	g[f] = value
	return nil
}

// badValue is what the flag parser says of a value that a flag can't have.
var badValue = regexp.MustCompile(`^invalid (?:boolean )?value ("(?:[^"\\]|\\.)*") for (?:flag )?-([^:]*): (.*)$`)

// valueError says of such an error which flag can't have which value, and what it
// may have. It returns nil for any other error.
func valueError(c *cli.Context, err error) error {
	m := badValue.FindStringSubmatch(err.Error())
	if m == nil {
		return nil
	}
	value, name, allowed := m[1], m[2], m[3]
	switch f := flagNamed(c.Command, name).(type) {
	case *cli.BoolFlag:
		allowed = "it takes no value, or true or false"
	case *cli.GenericFlag:
		if _, ok := f.Value.(*ttl); ok { // what ParseTTL says begins with the value
			return badInput("%s %s (see %s --help)", dashed(name), allowed, fullName(c))
		}
	}
	return badInput("%s %s: %s (see %s --help)", dashed(name), value, allowed, fullName(c))
}
