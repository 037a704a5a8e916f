// SPDX-License-Identifier: Apache-2.0

package main

import (
	_ "embed"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/template"

	"github.com/urfave/cli/v2"
)

// shells are those that completions are written for.
var shells = []string{"bash", "zsh", "fish"}

func completionCommand() *cli.Command {
	return &cli.Command{
		Name:      "completion",
		Usage:     "print what makes a shell complete earlydrop's commands and flags",
		ArgsUsage: "bash|zsh|fish",
		Description: `The packages install this. By hand:

Examples:
   earlydrop completion bash > /etc/bash_completion.d/earlydrop
   earlydrop completion zsh > "${fpath[1]}/_earlydrop"
   earlydrop completion fish > ~/.config/fish/completions/earlydrop.fish`,
		Action: func(c *cli.Context) error {
			if err := requireArgs(c, 1, 1, "a shell: bash, zsh or fish"); err != nil {
				return err
			}
			shell := c.Args().First()
			if !slices.Contains(shells, shell) {
				return badInput("unknown shell %q%s: use bash, zsh or fish", shell, didYouMean(shell, shells))
			}
			return writeCompletion(c.App.Writer, c.App, shell)
		},
	}
}

// wordsOf is what a command line may go on with behind the words of a command.
type wordsOf struct {
	Path     string // the command's words, "earlydrop policy check"
	Commands []string
	Flags    []string // as they are written, "--interface"
	Valued   []string // those of Flags that take a value
	Ifaces   []string // ... and the value is an interface
	Plain    bool     // it takes arguments: files
}

// completions returns the words of all commands, the program itself first.
func completions(app *cli.App) (all []wordsOf) {
	var walk func(path string, commands []*cli.Command, flags []cli.Flag, plain bool)
	walk = func(path string, commands []*cli.Command, flags []cli.Flag, plain bool) {
		w := wordsOf{Path: path, Commands: commandNames(commands), Plain: plain}
		for _, f := range flags {
			for _, name := range f.Names() {
				name = dashed(name)
				w.Flags = append(w.Flags, name)
				if !takesValue(f) {
					continue
				}
				w.Valued = append(w.Valued, name)
				if slices.Contains(f.Names(), "interface") {
					w.Ifaces = append(w.Ifaces, name)
				}
			}
		}
		all = append(all, w)
		for _, c := range commands {
			if !c.Hidden {
				walk(path+" "+c.Name, c.Subcommands, c.Flags, c.ArgsUsage != "")
			}
		}
	}
	walk(app.Name, app.Commands, app.Flags, false)
	return all
}

//go:embed completion.sh.tmpl
var completionTemplate string

// writeCompletion writes the file that one of shells reads.
func writeCompletion(w io.Writer, app *cli.App, shell string) error {
	if shell == "fish" {
		text, err := app.ToFishCompletion()
		if err != nil {
			return err
		}
		_, err = fmt.Fprintln(w, text)
		return err
	}
	t, err := template.New("").Funcs(template.FuncMap{"join": strings.Join}).Parse(completionTemplate)
	if err != nil {
		return err
	}
	before := `"${COMP_WORDS[@]:1:COMP_CWORD-1}"`
	if shell == "zsh" {
		before = `"${(@)words[2,CURRENT-1]}"`
	}
	return t.ExecuteTemplate(w, shell, map[string]any{"All": completions(app), "Before": before})
}
