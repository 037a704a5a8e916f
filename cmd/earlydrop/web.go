// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"os/user"
	"strconv"
	"syscall"

	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"

	"github.com/earlydrop/earlydrop/cmd/earlydrop/confine"
	"github.com/earlydrop/earlydrop/cmd/earlydrop/control"
	"github.com/earlydrop/earlydrop/cmd/earlydrop/web"
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
	config.Daemon = control.NewClient(path)
	return config, nil
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
