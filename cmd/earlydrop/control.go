// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"os/user"
	"slices"
	"strconv"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/earlydrop/earlydrop/cmd/earlydrop/control"
	"github.com/earlydrop/earlydrop/cmd/earlydrop/event/eventlog"
	"github.com/earlydrop/earlydrop/cmd/earlydrop/gateway"
	"github.com/earlydrop/earlydrop/loader"
)

// noControl is the value of --control for no socket.
const noControl = "none"

// controlVariable is the environment variable that has another default for --control: one for
// all commands of a network namespace, say.
const controlVariable = "EARLYDROP_CONTROL"

func controlFlag(usage string) cli.Flag {
	path := cmp.Or(os.Getenv(controlVariable), control.DefaultPath)
	return &cli.StringFlag{Name: "control", Value: path, DefaultText: "$" + controlVariable + ", or " + control.DefaultPath, Usage: usage}
}

// askFlag is controlFlag of the commands that ask a daemon.
func askFlag() cli.Flag {
	return controlFlag("ask the daemon at the unix socket `PATH`; none: read what is pinned instead")
}

// listenControl makes the socket of attach, if it is to have one. What said tells, once it is
// attached, is for whom it is, or why there is none: the default path is a convenience, and
// where it can't be had the work goes on.
func listenControl(c *cli.Context) (s *control.Server, said func(*eventlog.Log), err error) {
	config := control.Config{Path: c.String("control"), Group: -1}
	if config.Path == noControl {
		return nil, func(*eventlog.Log) {}, nil
	}
	forWhom := fmt.Sprintf("root alone, as there is no group %s", control.GroupName)
	if g, err := user.LookupGroup(control.GroupName); err == nil {
		if config.Group, err = strconv.Atoi(g.Gid); err == nil {
			forWhom = "root and the group " + control.GroupName
		}
	}
	s, err = control.Listen(config)
	switch {
	case err == nil:
		return s, func(l *eventlog.Log) { l.Say(fmt.Sprintf("control socket: %s, for %s\n", config.Path, forWhom)) }, nil
	case c.IsSet("control"):
		return nil, nil, badInput("--control %s: %w", config.Path, err)
	}
	return nil, func(*eventlog.Log) {
		slog.Warn("there is no control socket; the work goes on (--control names another path, or none)", "error", err)
	}, nil
}

// served is what the socket is the door to.
type served struct {
	*gateway.Gateway
	events *eventlog.Log
}

// Reload opens the event file again as well, as SIGHUP does.
func (s served) Reload() (*control.Reloaded, error) {
	s.events.Reopen()
	r, err := s.Gateway.Reload()
	return (*control.Reloaded)(r), err
}

// UseModel is explained at gateway.Gateway.
func (s served) UseModel(name string) (*control.Reloaded, error) {
	r, err := s.Gateway.UseModel(name)
	return (*control.Reloaded)(r), err
}

// askWithin is how long a daemon may take to answer.
const askWithin = 10 * time.Second

// asked is a daemon that answers.
type asked struct {
	*control.Client
	about *control.About
}

// has reports whether the interface is one of the daemon's.
func (d *asked) has(iface string) bool {
	return d != nil && slices.Contains(d.about.Interfaces, iface)
}

// hasAll reports whether the daemon has every interface that something is pinned for, as far
// as that can be seen.
func (d *asked) hasAll() bool {
	all, err := loader.OpenAll()
	defer closeAll(all)
	return (err == nil || errors.Is(err, loader.ErrNoAccess)) && !slices.ContainsFunc(all, func(t *loader.Tables) bool { return !d.has(t.Interface()) })
}

// askDaemon returns the daemon that the command is to ask, nil where there is none: then
// what is pinned says the rest. The daemon at the default path counts only if it is of the
// same network namespace, as other daemons may be in others. The error says why one that
// is there can't be asked.
func askDaemon(c *cli.Context) (*asked, error) {
	path := c.String("control")
	if path == noControl {
		return nil, nil
	}
	client := control.NewClient(path)
	ctx, cancel := context.WithTimeout(c.Context, askWithin)
	defer cancel()
	about, err := client.About(ctx)
	switch {
	case errors.Is(err, control.ErrNoDaemon):
		return nil, nil
	case err != nil:
		return nil, fromDaemon(err)
	}
	if netns, err := os.Readlink("/proc/self/ns/net"); path == control.DefaultPath && (err != nil || netns != about.Namespace) {
		return nil, nil
	}
	return &asked{client, about}, nil
}

// preferDaemon is askDaemon for commands that can do without: a daemon that does not
// answer as it should is told of, and done without.
func preferDaemon(c *cli.Context) *asked {
	d, err := askDaemon(c)
	if err != nil && !errors.Is(err, control.ErrForbidden) {
		slog.Warn("the daemon can't be asked; this is from what is pinned", "error", err)
	}
	return d
}

// requireDaemon is askDaemon for commands that can't do without.
func requireDaemon(c *cli.Context) (*asked, error) {
	d, err := askDaemon(c)
	if err == nil && d == nil {
		err = badInput("no daemon answers at %s: attach serves it, and --control names another path", c.String("control"))
	}
	return d, err
}

// fromDaemon marks as bad input what a daemon has refused.
func fromDaemon(err error) error {
	var told *control.Error
	switch {
	case errors.Is(err, control.ErrForbidden), errors.As(err, &told) && told.Status < http.StatusInternalServerError:
		return asBadInput(err)
	}
	return err
}
