// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/cpuguy83/go-md2man/v2/md2man"
	"github.com/urfave/cli/v2"
)

// manCommand is for those who make packages, so help does not list it.
func manCommand() *cli.Command {
	return &cli.Command{
		Name:        "man",
		Hidden:      true,
		Usage:       "write man pages of all commands into a folder that is there",
		ArgsUsage:   "FOLDER",
		Description: "Example:\n   earlydrop man /usr/local/share/man/man8",
		Action: func(c *cli.Context) error {
			if err := requireArgs(c, 1, 1, "FOLDER"); err != nil {
				return err
			}
			for name, page := range manPages(c.App) {
				if err := os.WriteFile(filepath.Join(c.Args().First(), name), page, 0o644); err != nil {
					return asBadInput(err)
				}
			}
			return nil
		},
	}
}

// manPages returns the pages by the names of their files: one of the program and one of
// each of its commands, subcommands in it.
func manPages(app *cli.App) map[string][]byte {
	var commands, seeAlso strings.Builder
	pages := map[string][]byte{}
	for _, c := range app.Commands {
		if c.Hidden || c.Name == "help" {
			continue
		}
		page := "earlydrop-" + c.Name
		var b strings.Builder
		manHead(&b, page, c.Usage)
		b.WriteString("# SYNOPSIS\n\n")
		manSynopsis(&b, "earlydrop "+c.Name, c)
		manCommandText(&b, c, "#")
		for _, sub := range c.Subcommands {
			fmt.Fprintf(&b, "# %s\n\n%s.\n\n", strings.ToUpper(c.Name+" "+sub.Name), capital(sub.Usage))
			manCommandText(&b, sub, "##")
		}
		b.WriteString("# SEE ALSO\n\n**earlydrop**(8)\n")
		pages[page+".8"] = md2man.Render([]byte(b.String()))
		fmt.Fprintf(&commands, "**earlydrop %s**\n: %s. See **%s**(8).\n\n", c.Name, capital(c.Usage), page)
		fmt.Fprintf(&seeAlso, "**%s**(8), ", page)
	}
	var b strings.Builder
	manHead(&b, app.Name, app.Usage)
	fmt.Fprintf(&b, "# SYNOPSIS\n\n**earlydrop** *COMMAND* [*OPTIONS*]\n\n# DESCRIPTION\n\n%s# COMMANDS\n\n%s", manText(app.Description), &commands)
	fmt.Fprintf(&b, "# SEE ALSO\n\n%s**bpftool**(8)\n", &seeAlso)
	pages[app.Name+".8"] = md2man.Render([]byte(b.String()))
	return pages
}

func manHead(b *strings.Builder, page, usage string) {
	fmt.Fprintf(b, "%% %s 8 \"\" \"earlydrop %s\" \"System administration\"\n\n# NAME\n\n%s - %s\n\n", page, programVersion(), page, usage)
}

// manSynopsis writes the command lines of c and of the commands below it.
func manSynopsis(b *strings.Builder, path string, c *cli.Command) {
	if len(c.Subcommands) == 0 {
		fmt.Fprintf(b, "**%s** [*OPTIONS*] %s\n\n", path, manText(c.ArgsUsage))
	}
	for _, sub := range c.Subcommands {
		manSynopsis(b, path+" "+sub.Name, sub)
	}
}

// manCommandText writes what help says of a command and its flags. Headings begin with level.
func manCommandText(b *strings.Builder, c *cli.Command, level string) {
	if c.Description != "" {
		fmt.Fprintf(b, "%s DESCRIPTION\n\n%s", level, manText(c.Description))
	}
	fmt.Fprintf(b, "%s OPTIONS\n\n", level)
	for _, f := range c.Flags {
		doc, ok := f.(cli.DocGenerationFlag)
		if !ok {
			continue
		}
		// The library marks the name of a value by `quotes` in the usage.
		value, usage := "", doc.GetUsage()
		if before, rest, ok := strings.Cut(usage, "`"); ok {
			if name, after, ok := strings.Cut(rest, "`"); ok {
				value, usage = " *"+name+"*", before+name+after
			}
		}
		if !doc.TakesValue() {
			value = ""
		}
		var names []string
		for _, name := range f.Names() {
			names = append(names, "**"+dashed(name)+"**"+value)
		}
		text := capital(usage)
		if byDefault := doc.GetDefaultText(); byDefault != "" && doc.TakesValue() {
			text += " (default: " + strings.Trim(byDefault, `"`) + ")"
		}
		fmt.Fprintf(b, "%s\n: %s.\n\n", strings.Join(names, ", "), manText(text))
	}
}

// manText returns a text of help as Markdown: what is indented there are examples and
// tables, which keep their lines.
func manText(s string) string {
	var b strings.Builder
	quoted := false
	for line := range strings.Lines(s) {
		line = strings.TrimRight(line, "\n")
		indented := strings.HasPrefix(line, "   ")
		if indented != quoted && (line != "" || !quoted) {
			b.WriteString("```\n")
			quoted = indented
		}
		if !quoted {
			line = manEscaper.Replace(line)
		}
		b.WriteString(line + "\n")
	}
	if quoted {
		b.WriteString("```\n")
	}
	if strings.Contains(s, "\n") {
		b.WriteString("\n")
		return b.String()
	}
	return strings.TrimSuffix(b.String(), "\n")
}

// manEscaper keeps what Markdown would read as its own.
var manEscaper = strings.NewReplacer("*", `\*`, "_", `\_`, "<", `\<`, "|", `\|`, "`", "\\`", "[", `\[`, "]", `\]`)

func capital(s string) string {
	if s == "" {
		return s
	}
	return strings.ToUpper(s[:1]) + s[1:]
}
