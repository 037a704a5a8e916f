// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
)

// sambaSizes are of the files that the share has, by their names.
var sambaSizes = []int{400, 3000, 20000, 90000}

func (e *env) startSamba(ctx context.Context, port uint16) error {
	file, dir, err := e.config("samba", "")
	if err != nil {
		return err
	}
	r := e.draws("samba")
	// Its user is root, as smbd wants one that the machine has.
	conf := fmt.Sprintf(`[global]
smb ports = %[2]d
private dir = %[1]s/state
lock directory = %[1]s/state
state directory = %[1]s/state
cache directory = %[1]s/state
pid directory = %[1]s/state
ncalrpc dir = %[1]s/state/rpc
log file = %[1]s/state/log
passdb backend = smbpasswd:%[1]s/state/users
server role = standalone
server min protocol = SMB2_02
server smb encrypt = %[3]s
server signing = %[4]s
load printers = no
disable spoolss = yes
[files]
path = %[1]s/files
read only = no
`, dir, port, pick(r, "default", "default", "desired"), pick(r, "default", "default", "mandatory"))
	if err := errors.Join(os.Mkdir(filepath.Join(dir, "state"), 0o700), os.Mkdir(filepath.Join(dir, "files"), 0o755), os.WriteFile(file, []byte(conf), 0o600)); err != nil {
		return err
	}
	for i, n := range sambaSizes {
		data := randomBytes(r, n)
		if i%2 == 0 {
			data = words(r, n)
		}
		if err := os.WriteFile(filepath.Join(dir, "files", fmt.Sprint("file", n)), data, 0o644); err != nil {
			return err
		}
	}
	if _, err := e.l.ExecInput(ctx, e.l.Server, []byte("secret\nsecret\n"), "smbpasswd", "-c", file, "-a", "-s", "root"); err != nil {
		return err
	}
	e.set(func() { e.samba = file })
	return e.run(ctx, port, "smbd", "-F", "--no-process-group", "-s", file)
}

// smb lists, reads and writes files of a share. What is encrypted begins with
// a plain negotiation too.
func smb(encrypted bool) activityFunc {
	return func(ctx context.Context, a *attempt) error {
		if err := os.WriteFile(a.file, randomBytes(a.r, logUniform(a.r, 100, 40000)), 0o600); err != nil {
			return err
		}
		defer os.Remove(a.file)
		var commands []string
		for i := range 1 + a.r.IntN(4) {
			name := fmt.Sprintf("%s-%d", filepath.Base(a.file), i)
			commands = append(commands, pick(a.r, "ls", "ls file*", "du", "volume",
				fmt.Sprintf("get file%d /dev/null", pick(a.r, sambaSizes...)), fmt.Sprintf("get file%d /dev/null", pick(a.r, sambaSizes...)), fmt.Sprintf("allinfo file%d", pick(a.r, sambaSizes...)),
				fmt.Sprintf("put %s %s; del %s", a.file, name, name), fmt.Sprintf("mkdir %s; rmdir %s", name, name)))
		}
		dialect, protection := pick(a.r, "SMB2_02", "SMB2_10", "SMB3_00", "SMB3_02", "SMB3_11", "SMB3_11"), pick(a.r, "off", "sign")
		if encrypted {
			dialect, protection = pick(a.r, "SMB3_00", "SMB3_02", "SMB3_11", "SMB3_11"), "encrypt"
		}
		return a.program(ctx, "samba", nil, func(addr netip.AddrPort) []string {
			return []string{"smbclient", "//lab/files", "-s", a.e.samba, "-I", addr.Addr().String(), "-p", num(addr.Port()), "-U", "root%secret", "-m", dialect, "--client-protection=" + protection,
				"-c", strings.Join(commands, "; ")}
		})
	}
}
