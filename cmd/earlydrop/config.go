// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"slices"

	"github.com/urfave/cli/v2"

	"github.com/earlydrop/earlydrop/cmd/earlydrop/event/eventlog"
	"github.com/earlydrop/earlydrop/cmd/earlydrop/history"
	"github.com/earlydrop/earlydrop/cmd/earlydrop/settings"
	"github.com/earlydrop/earlydrop/loader"
	"github.com/earlydrop/earlydrop/policy"
	"github.com/earlydrop/earlydrop/policy/nearest"
)

// readSettings sets those flags of a command that its file of settings (--config) says, but
// for those that were given.
func readSettings(c *cli.Context) error {
	if !c.IsSet("config") {
		return nil
	}
	err := settings.Load(c.String("config"), settingsOf(c))
	var wrong *settings.Error
	if err != nil && !errors.As(err, &wrong) {
		err = fmt.Errorf("--config: %w", err)
	}
	return asBadInput(err)
}

// settingsOf returns the settings that a file may have: the flags of the command.
func settingsOf(c *cli.Context) (keys []settings.Key) {
	for _, f := range c.Command.Flags {
		name := f.Names()[0]
		if name == "config" || name == "help" {
			continue
		}
		kind := settings.Text
		switch {
		case mayRepeat(f):
			kind = settings.List
		case !takesValue(f):
			kind = settings.Switch
		}
		given := c.IsSet(name)
		var values []string
		keys = append(keys, settings.Key{Name: name, Kind: kind, Set: func(value string) error {
			if check := checks[name]; check != nil {
				if err := check(value); err != nil {
					return err
				}
			}
			if slices.Contains(values, value) {
				return errors.New("it is in the list twice")
			}
			values = append(values, value)
			if given {
				return nil
			}
			return c.Set(name, value)
		}})
	}
	return keys
}

// checks say what is wrong with the values of flags that take whatever they are given, so
// that the place in the file can be named.
var checks = map[string]func(string) error{
	"interface": func(s string) error {
		_, err := loader.HasInterface(s)
		return err
	},
	"group": func(s string) error {
		names, err := parseGroup(s)
		for _, name := range names {
			if err == nil {
				_, err = loader.HasInterface(name)
			}
		}
		return err
	},
	"mode": func(s string) error {
		_, err := policy.ParseMode(s)
		return hinted(err, s, "monitor", "enforce")
	},
	"ingress": func(s string) error {
		_, err := loader.ParseIngress(s)
		return hinted(err, s, string(loader.IngressAuto), string(loader.IngressXDP), string(loader.IngressTCX))
	},
	"xdp": func(s string) error {
		_, err := loader.ParseXDPMode(s)
		return hinted(err, s, string(loader.XDPAuto), string(loader.XDPNative), string(loader.XDPGeneric))
	},
	"mid-stream": func(s string) error {
		_, err := parseMidStream(s)
		return hinted(err, s, "ignore", "capture")
	},
	"events-pass":    checkPasses,
	"history-passes": checkPasses,
	"history-addresses": func(s string) error {
		_, err := history.ParseAddresses(s)
		return hinted(err, s, history.AddressWords()...)
	},
}

func checkPasses(s string) error {
	_, err := eventlog.ParsePasses(s)
	return err
}

// hinted adds to an error about a word which one may have been meant.
func hinted(err error, word string, known ...string) error {
	if err == nil {
		return nil
	}
	if guess := nearest.Word(word, known); guess != "" {
		return fmt.Errorf("did you mean %s?", guess)
	}
	return err
}
