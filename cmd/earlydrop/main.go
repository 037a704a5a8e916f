// SPDX-License-Identifier: Apache-2.0

// Command earlydrop identifies what a connection carries from the first 1024
// bytes that its two sides exchange, and drops in the kernel what the
// operator's policy names.
package main

import (
	"context"
	"fmt"
	"io"
	"log"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/earlydrop/earlydrop/cmd/earlydrop/event"
	"github.com/earlydrop/earlydrop/policy/nearest"
)

func main() {
	// Warnings have their time in the same form as the events.
	log.SetFlags(0)
	log.SetOutput(stamped{os.Stderr})
	os.Exit(run(os.Args, os.Stdout, os.Stderr))
}

// stamped puts the time in front of each write, which is one line of a log.
type stamped struct{ to io.Writer }

func (s stamped) Write(p []byte) (int, error) {
	if _, err := fmt.Fprintf(s.to, "%s  %s", event.Clock(time.Now()), p); err != nil {
		return 0, err
	}
	return len(p), nil
}

// commands lists the subcommands in the order of the help text. Each stands
// in the file of its name.
func commands() []*cli.Command {
	return []*cli.Command{
		replayCommand(),
		explainCommand(),
		checkCommand(),
		attachCommand(),
		detachCommand(),
		modeCommand(),
		reloadCommand(),
		statusCommand(),
		topCommand(),
		blockedCommand(),
		pairsCommand(),
		whyCommand(),
		eventsCommand(),
		captureCommand(),
		webCommand(),
		modelCommand(),
		policyCommand(),
		datasetCommand(),
		completionCommand(),
		manCommand(),
		versionCommand(),
	}
}

// run executes the command line args, args[0] being the program's name, and
// returns the exit code. Several runs may go on at the same time.
func run(args []string, stdout, stderr io.Writer) int {
	return runContext(context.Background(), args, stdout, stderr)
}

// runContext is run with a context that the commands see as Context.Context.
func runContext(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	app := newApp(stdout, stderr)
	root := &cli.Command{Name: app.Name, Flags: app.Flags, Subcommands: app.Commands}
	args, err := flagsFirst(root, args)
	if err != nil {
		return report(stderr, err)
	}
	return report(stderr, app.RunContext(ctx, args))
}

func newApp(stdout, stderr io.Writer) *cli.App {
	app := &cli.App{
		Name:  "earlydrop",
		Usage: "identify connections from their first 1024 bytes and drop the unwanted ones in the kernel",
		Description: `Exit codes: 0 all went well, 1 failed while running, 2 bad input (wrong flag or
file, no such interface, missing capability...); then nothing was changed. 3 is of
status alone: not all is well.`,
		Commands:    append(commands(), helpCommand()),
		Flags:       []cli.Flag{helpFlag(), &cli.BoolFlag{Name: "version", Usage: "print the version"}},
		Writer:      stdout,
		ErrWriter:   stderr,
		HideVersion: true,
		// A comma is part of a path, not a separator.
		DisableSliceFlagSeparator: true,
		// The library's own help command and flag are variables of its
		// package, changed by each run; ours belong to one app.
		HideHelp: true,
		// Without a handler the library would end the process itself.
		ExitErrHandler: func(*cli.Context, error) {},
		OnUsageError:   usageError,
		Action: func(c *cli.Context) error {
			if c.Bool("version") {
				return printVersion(c)
			}
			if c.Args().Present() {
				return unknownCommand(c)
			}
			return cli.ShowAppHelp(c)
		},
	}
	for _, c := range app.Commands {
		prepare(c)
	}
	return app
}

// prepare gives c and the commands below it what all commands share.
func prepare(c *cli.Command) {
	c.OnUsageError = usageError
	c.HideHelp = true
	c.Flags = append(c.Flags, helpFlag())
	if len(c.Subcommands) > 0 && c.Action == nil {
		c.Action = func(ctx *cli.Context) error {
			if ctx.Args().Present() {
				return unknownCommand(ctx)
			}
			return badInput("%s needs a command: %s (see %s --help)",
				ctx.Command.Name, strings.Join(commandNames(ctx.Command.Subcommands), ", "), fullName(ctx))
		}
	}
	for _, sub := range c.Subcommands {
		prepare(sub)
	}
}

func helpFlag() cli.Flag {
	return &cli.BoolFlag{Name: "help", Aliases: []string{"h"}, Usage: "show help", DisableDefaultText: true}
}

func helpCommand() *cli.Command {
	return &cli.Command{
		Name:      "help",
		Usage:     "show help for a command",
		ArgsUsage: "[COMMAND...]",
		Action: func(c *cli.Context) error {
			if !c.Args().Present() {
				return cli.ShowAppHelp(c)
			}
			commands, path := c.App.Commands, "earlydrop"
			for i, name := range c.Args().Slice() {
				at := slices.IndexFunc(commands, func(c *cli.Command) bool { return c.HasName(name) })
				if at < 0 {
					return badInput("no command %q%s", path+" "+name, didYouMean(name, commandNames(commands)))
				}
				path += " " + name
				if i < c.NArg()-1 {
					commands = commands[at].Subcommands
					continue
				}
				found := commands[at]
				found.HelpName = path
				template := cli.CommandHelpTemplate
				if len(found.Subcommands) > 0 {
					template = cli.SubcommandHelpTemplate
				}
				cli.HelpPrinter(c.App.Writer, template, found)
			}
			return nil
		},
	}
}

// fullName returns the words that lead to the running command.
func fullName(c *cli.Context) string {
	if c.Command.HelpName == "" {
		return c.App.Name
	}
	return c.Command.HelpName
}

// shortName is fullName without the program's name, which report prints.
func shortName(c *cli.Context) string {
	return strings.TrimPrefix(fullName(c), c.App.Name+" ")
}

func commandNames(commands []*cli.Command) []string {
	var names []string
	for _, c := range commands {
		if !c.Hidden {
			names = append(names, c.Names()...)
		}
	}
	return names
}

func unknownCommand(c *cli.Context) error {
	name := c.Args().First()
	return badInput("unknown command %q%s (see %s --help)",
		name, didYouMean(name, commandNames(c.Command.Subcommands)), fullName(c))
}

func didYouMean(word string, candidates []string) string {
	if guess := nearest.Word(word, candidates); guess != "" {
		return ", did you mean " + guess + "?"
	}
	return ""
}

// usageError turns what the flag parser says into one line of bad input.
func usageError(c *cli.Context, err error, _ bool) error {
	msg := err.Error()
	if name, ok := strings.CutPrefix(msg, "flag provided but not defined: -"); ok {
		var known []string
		for _, f := range c.Command.Flags {
			known = append(known, f.Names()...)
		}
		guess := nearest.Word(name, known)
		if guess != "" {
			guess = ", did you mean --" + guess + "?"
		}
		return badInput("unknown flag %s%s (see %s --help)", dashed(name), guess, fullName(c))
	}
	if name, ok := strings.CutPrefix(msg, "flag needs an argument: -"); ok {
		return badInput("flag %s needs a value (see %s --help)", dashed(name), fullName(c))
	}
	if err := valueError(c, err); err != nil {
		return err
	}
	return badInput("%s (see %s --help)", msg, fullName(c))
}

func dashed(name string) string {
	if len(name) == 1 {
		return "-" + name
	}
	return "--" + name
}

// requireFlags returns bad input that names the first flag that was not given.
// It replaces the library's Required, which prints the whole help.
func requireFlags(c *cli.Context, names ...string) error {
	for _, name := range names {
		if !c.IsSet(name) {
			return badInput("%s needs %s (see %s --help)", shortName(c), dashed(name), fullName(c))
		}
	}
	return nil
}

// requireArgs returns bad input unless between least and most arguments were
// given; most < 0 sets no upper bound. What names one argument, as the help
// text does ("FILE").
func requireArgs(c *cli.Context, least, most int, what string) error {
	switch n := c.NArg(); {
	case n < least:
		return badInput("%s needs %s (see %s --help)", shortName(c), what, fullName(c))
	case most == 0 && n > 0:
		return badInput("%s takes no argument, got %q (see %s --help)", shortName(c), c.Args().First(), fullName(c))
	case most >= 0 && n > most:
		return badInput("unexpected argument %q (see %s --help)", c.Args().Get(most), fullName(c))
	}
	return nil
}

// flagsFirst reorders a command line so that the flags of a command stand
// before its arguments: the flag parser stops at the first argument, and
// "replay FILE --json" has to work. What follows "--" stays as it is. Where
// help is asked for, the arguments are left out, for the library would take
// them for names of commands; and where an argument stands in the place of a
// command, the flags are, which nobody can know. A flag that is repeated
// although it has one value is bad input.
func flagsFirst(cmd *cli.Command, args []string) ([]string, error) {
	if len(args) == 0 {
		return []string{cmd.Name}, nil
	}
	done, rest := args[:1:1], args[1:]
	var flags, plain []string
	help, foreign := false, false
	given := givenFlags{}
	for i := 0; i < len(rest); i++ {
		arg := rest[i]
		if arg == "--" {
			plain = append(plain, rest[i+1:]...)
			break
		}
		if len(arg) > 1 && arg[0] == '-' {
			name, value, hasValue := strings.Cut(strings.TrimLeft(arg, "-"), "=")
			help = help || name == "help" || name == "h"
			f := flagNamed(cmd, name)
			if f != nil && mayRepeat(f) {
				// The parser refuses a mixture of short and long names.
				arg = dashed(f.Names()[0]) + strings.TrimPrefix(strings.TrimLeft(arg, "-"), name)
			}
			flags = append(flags, arg)
			foreign = foreign || f == nil && len(plain) == 0
			switch {
			case hasValue:
			case f == nil || !takesValue(f):
				value = "true"
			case i+1 == len(rest):
				// The parser is to miss the value, not to find one of
				// the arguments behind the flag.
				return append(done, flags...), nil
			default:
				i++
				value = rest[i]
				flags = append(flags, value)
			}
			if err := given.note(f, value); err != nil {
				return nil, err
			}
			continue
		}
		if sub := cmd.Command(arg); sub != nil && len(plain) == 0 {
			cmd = sub
			done = append(append(done, flags...), arg)
			flags, foreign = nil, false
			continue
		}
		plain = append(plain, arg)
	}
	if len(cmd.Subcommands) > 0 && len(plain) > 0 && !foreign {
		return append(append(done, "--"), plain...), nil
	}
	done = append(done, flags...)
	if help || len(plain) == 0 {
		return done, nil
	}
	return append(append(done, "--"), plain...), nil
}
