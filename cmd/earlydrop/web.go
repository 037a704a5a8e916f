// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"os/user"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"

	"github.com/earlydrop/earlydrop/classifier"
	"github.com/earlydrop/earlydrop/classifier/explain"
	"github.com/earlydrop/earlydrop/classifier/onnx"
	"github.com/earlydrop/earlydrop/cmd/earlydrop/captures"
	"github.com/earlydrop/earlydrop/cmd/earlydrop/confine"
	"github.com/earlydrop/earlydrop/cmd/earlydrop/control"
	"github.com/earlydrop/earlydrop/cmd/earlydrop/event"
	"github.com/earlydrop/earlydrop/cmd/earlydrop/explanation"
	"github.com/earlydrop/earlydrop/cmd/earlydrop/replay"
	"github.com/earlydrop/earlydrop/cmd/earlydrop/web"
	"github.com/earlydrop/earlydrop/loader/assembly"
	"github.com/earlydrop/earlydrop/loader/flow"
)

func webCommand() *cli.Command {
	return &cli.Command{
		Name:  "web",
		Usage: "show a running attach on a page for browsers",
		Description: `A process of its own that asks the daemon over its control socket, as root or as a
member of the socket's group. Root's process becomes one of the group's, and of nobody,
before it answers. It runs until SIGINT, and waits for a daemon that is not there.

Who reaches the address sees what the daemon tells. Without a token that is who can
connect to this machine's own address, and nothing can be changed. With a token the page
asks for it, and blocks can be lifted. Other addresses than this machine's own need a
token and TLS.

Examples:
   earlydrop web
   openssl rand -hex 32 > token && chmod 0600 token && earlydrop web --token-file token
   earlydrop web --listen 192.0.2.1:9480 --token-file token --tls-cert cert.pem --tls-key key.pem`,
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "listen", Value: "127.0.0.1:9480", Usage: "answer at `HOST:PORT`"},
			&cli.StringFlag{Name: "token-file", Usage: "ask for the token in `FILE`, which nobody else can read, and let who knows it lift blocks", TakesFile: true},
			&cli.StringFlag{Name: "tls-cert", Usage: "speak HTTPS with the certificate in `FILE` (PEM)", TakesFile: true},
			&cli.StringFlag{Name: "tls-key", Usage: "the certificate's key in `FILE` (PEM), which nobody else can read", TakesFile: true},
			&cli.StringFlag{Name: "model", Usage: "explain verdicts with the model `FILE`, or the shipped \"paper\" (default: the shipped compact one)", TakesFile: true},
			controlFlag("ask the daemon at the unix socket `PATH`"),
		},
		Action: runWeb,
	}
}

func runWeb(c *cli.Context) error {
	if err := requireArgs(c, 0, 0, ""); err != nil {
		return err
	}
	config, err := webConfig(c)
	if err != nil {
		return err
	}
	defer config.Daemon.Close()
	s, err := web.Listen(config)
	switch {
	case errors.Is(err, web.ErrExposed):
		return badInput("--listen %w: give --token-file, --tls-cert and --tls-key as well, or listen at 127.0.0.1", err)
	case err != nil:
		return badInput("--listen: %w", err)
	}
	defer s.Close()
	if err := giveUpMoreRights(); err != nil {
		slog.Warn("not all rights that are not needed could be given up; the page is served all the same", "error", err)
	}
	ctx, stop := signal.NotifyContext(c.Context, unix.SIGINT, unix.SIGTERM)
	defer stop()
	s.Serve()
	fmt.Fprintf(c.App.Writer, "%s shows what the daemon at %s tells; Ctrl-C ends it\n", s.URL(), c.String("control"))
	select {
	case <-ctx.Done():
		return nil
	case <-s.Done():
		return errors.New("the page is served no more")
	}
}

// webConfig reads the flags.
func webConfig(c *cli.Context) (config web.Config, err error) {
	config = web.Config{Address: c.String("listen")}
	path := c.String("control")
	if path == noControl {
		return config, badInput("--control %s: web shows nothing but what a daemon tells", noControl)
	}
	if c.IsSet("token-file") {
		if config.Token, err = web.ReadToken(c.String("token-file")); err != nil {
			return config, badInput("--token-file: %w", err)
		}
	}
	switch cert, key := c.String("tls-cert"), c.String("tls-key"); {
	case c.IsSet("tls-cert") != c.IsSet("tls-key"):
		return config, badInput("--tls-cert and --tls-key belong together: give both (see %s --help)", fullName(c))
	case c.IsSet("tls-cert"):
		if config.Certificate, err = web.ReadCertificate(cert, key); err != nil {
			return config, badInput("--tls-cert, --tls-key: %w", err)
		}
	}
	e := &explainer{model: c.String("model")}
	if c.IsSet("model") {
		if _, _, err := readModel(e.model); err != nil {
			return config, err
		}
	}
	config.Explain = e.explain
	config.Daemon = control.NewClient(path)
	return config, nil
}

// explainer explains verdicts. It opens its model with the first one, and keeps it.
type explainer struct {
	model  string // as --model names it
	engine *classifier.Engine
}

// explain says what a verdict depends on: the probability of the classes that decided.
func (e *explainer) explain(_ context.Context, v *event.Verdict, capture []byte) (*web.Explained, error) {
	if e.engine == nil {
		name, data, err := readModel(e.model)
		if err != nil {
			return nil, err
		}
		if e.engine, err = openEngine(name, data, onnx.Options{MaxBatch: replay.Batch}); err != nil {
			return nil, err
		}
	}
	file := captures.InMemory("the capture that is kept", capture)
	// Whatever was judged is explained.
	options := assembly.Options{MidStream: true, OneWay: true}
	numbers, err := explanation.Flows(file, options, nil, nil, 0)
	if err != nil {
		return nil, err
	}
	if len(numbers) != 1 {
		return nil, fmt.Errorf("the capture that is kept has %s", count(uint64(len(numbers)), "flow"))
	}
	var s flow.Sample
	if _, err := explanation.Flows(file, options, nil, &s, numbers[0]); err != nil {
		return nil, err
	}
	results := make([]flow.Result, 1)
	if err := e.engine.Classify([]*flow.Sample{&s}, results); err != nil {
		return nil, err
	}
	r, m := &results[0], e.engine.Manifest()
	labels := v.RuleClasses
	if !slices.ContainsFunc(labels, func(l string) bool { return slices.Contains(r.Labels, l) }) {
		labels = []string{v.Likeliest}
	}
	x, err := explain.New(e.engine, &s, *r, labels, strings.Join(labels, "|"))
	if err != nil {
		return nil, err
	}
	view, err := x.View()
	return &web.Explained{Class: r.Class, Confidence: r.Confidence, Model: m.Name + " " + m.Version, View: view}, err
}

// giveUpMoreRights leaves the process no rights but to ask the daemon. Of root it makes
// nobody, in the group that may ask; where there is no such group, root alone may, and it is
// root without capabilities.
func giveUpMoreRights() error {
	if os.Geteuid() == 0 {
		if g, err := user.LookupGroup(control.GroupName); err == nil {
			gid, err := strconv.Atoi(g.Gid)
			if err != nil {
				return err
			}
			const nobody = 65534
			if err := errors.Join(syscall.Setgroups(nil), syscall.Setresgid(gid, gid, gid), syscall.Setresuid(nobody, nobody, nobody)); err != nil {
				return fmt.Errorf("become a member of the group %s: %w", control.GroupName, err)
			}
		}
	}
	return confine.To(confine.Keep{})
}
