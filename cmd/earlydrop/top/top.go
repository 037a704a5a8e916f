// SPDX-License-Identifier: Apache-2.0

// Package top is the live view of a daemon in a terminal: rates, who is detected and dropped
// most, the latest verdicts with their reasons, blocks, and how full the tables are.
package top

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	tea "charm.land/bubbletea/v2"
	"github.com/charmbracelet/colorprofile"

	"github.com/earlydrop/earlydrop/cmd/earlydrop/control"
	"github.com/earlydrop/earlydrop/cmd/earlydrop/status"
	"github.com/earlydrop/earlydrop/cmd/earlydrop/why"
	"github.com/earlydrop/earlydrop/loader"
)

// Source is what is looked at, a *control.Client. Its methods may be called concurrently.
type Source interface {
	Top(ctx context.Context, limit int) (*status.Top, error)
	Blocks(ctx context.Context, f control.BlockFilter, sortBy string, limit int) (*control.Blocks, error)
	Lift(ctx context.Context, f control.BlockFilter) (control.Lifted, error)
	Pairs(ctx context.Context, f control.PairFilter, sortBy string, limit int) (*control.Pairs, error)
	ForgetPairs(ctx context.Context, f control.PairFilter) (control.Forgotten, error)
	Why(ctx context.Context, q *why.Query) (*why.Answer, error)
}

// Config says what is looked at, and how.
type Config struct {
	Source Source
	// Every is how long to wait from look to look.
	Every time.Duration
	// Interface (optional) is the one that is looked at.
	Interface string
	Colors    bool
	// Counters (optional) are what is counted, with help: the daemon's, and the kernel's.
	Counters loader.Counters
	// JSON has Print print one object for each look.
	JSON bool
}

const (
	// perList is how many rows of each list the daemon is asked for, and perTable how many of
	// what its kernel treats, blocks and pairs.
	perList, perTable = 200, 1000
	// answerWithin is how long the daemon may take.
	answerWithin = 10 * time.Second
)

// look asks the daemon once.
func (c *Config) look(ctx context.Context) (*status.Top, treatments, error) {
	ctx, cancel := context.WithTimeout(ctx, answerWithin)
	defer cancel()
	top, err := c.Source.Top(ctx, perList)
	if err != nil {
		return nil, treatments{}, err
	}
	b, err := c.Source.Blocks(ctx, control.BlockFilter{Interface: c.Interface}, "-bytes", perTable)
	if err != nil {
		return nil, treatments{}, err
	}
	p, err := c.Source.Pairs(ctx, control.PairFilter{Interface: c.Interface}, "-bytes", perTable)
	if err != nil {
		return nil, treatments{}, err
	}
	return top, treatments{b.Blocks, p.Pairs}, nil
}

// Check refuses an Interface that the daemon neither has nor waits for.
func (c *Config) Check(ctx context.Context) error {
	top, err := c.Source.Top(ctx, 1)
	if err != nil {
		return err
	}
	var has []string
	for _, s := range top.Interfaces {
		has = append(has, s.Interface)
	}
	for _, w := range top.Waiting {
		has = append(has, w.Interface)
	}
	if !slices.Contains(has, c.Interface) {
		return fmt.Errorf("the daemon has no interface %s, but %s", c.Interface, cmp.Or(strings.Join(has, ", "), "none"))
	}
	return nil
}

// Run shows the live view on a terminal until the user quits or ctx ends. The terminal is
// afterwards as it was before, after a panic as well.
func Run(ctx context.Context, c Config, in, out *os.File) error {
	v := newView()
	v.colors, v.iface, v.counters = c.Colors, c.Interface, c.Counters
	profile := colorprofile.ASCII
	if c.Colors {
		profile = colorprofile.ANSI
	}
	p := tea.NewProgram(&model{Config: c, view: v, ctx: ctx}, tea.WithContext(ctx), tea.WithInput(in), tea.WithOutput(out), tea.WithColorProfile(profile))
	_, err := p.Run()
	if errors.Is(err, tea.ErrProgramPanic) {
		return errors.New("the view has failed; the daemon goes on")
	}
	if ctx.Err() != nil || errors.Is(err, tea.ErrInterrupted) {
		return nil
	}
	return err
}

// Print prints so many looks as plain text in lines of a width, 0 for until ctx ends.
func Print(ctx context.Context, c Config, looks, width int, out io.Writer) error {
	v := newView()
	v.iface, v.width = c.Interface, width
	for n := 1; ; n++ {
		top, treated, err := c.look(ctx)
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil:
			return err
		}
		v.looks, v.treated = v.looks.add(top), treated
		if c.JSON {
			err = json.NewEncoder(out).Encode(top)
		} else {
			err = v.print(out)
		}
		if err != nil || n == looks {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(c.Every):
		}
	}
}

// printedRows is how many rows of each list are printed.
const printedRows = 10

// print prints one look.
func (v *view) print(out io.Writer) error {
	lines := v.head()
	lines = lines[:len(lines)-1] // nobody chooses among the lists
	for l, name := range names {
		t := v.table(list(l))
		if len(t.rows) == 0 {
			continue
		}
		head, rows := t.lines(v.width, v.sort[l], false)
		lines = append(append(lines, nil, say(plain, name), head), rows[:min(len(rows), printedRows)]...)
		if n := len(rows) - printedRows; n > 0 {
			lines = append(lines, say(plain, scaled(float64(n))+" more"))
		}
	}
	for _, l := range append(lines, nil) {
		if _, err := io.WriteString(out, l.render(v.width, false, false)+"\n"); err != nil {
			return err
		}
	}
	return nil
}
