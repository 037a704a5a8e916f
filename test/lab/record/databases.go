// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"

	"github.com/earlydrop/earlydrop/test/lab"
)

// templates are data folders that servers want and that take long to make:
// each is made once in a recording, and every condition has a copy. Its methods
// may be called concurrently.
type templates struct {
	dir string

	mu   sync.Mutex
	made map[string]error
}

func newTemplates() (*templates, error) {
	dir, err := lab.SharedDir()
	return &templates{dir: dir, made: map[string]error{}}, err
}

// copy puts a copy of the named folder into dir and returns its name. When it
// is the first one, fill makes the folder, which does not exist yet.
func (t *templates) copy(ctx context.Context, e *env, name, dir string, fill func(folder string) error) (string, error) {
	folder := filepath.Join(t.dir, name)
	t.mu.Lock()
	err, ok := t.made[name]
	if !ok {
		// What one condition was stopped in is no reason for the next to fail.
		if err = fill(folder); ctx.Err() == nil {
			t.made[name] = err
		} else {
			err = errors.Join(err, os.RemoveAll(folder))
		}
	}
	t.mu.Unlock()
	if err != nil {
		return "", err
	}
	to := filepath.Join(dir, name)
	_, err = e.l.Exec(ctx, e.l.Server, "cp", "-a", "--reflink=auto", folder, to)
	return to, err
}

func (t *templates) close() error { return os.RemoveAll(t.dir) }

// asNobody starts a command line that is not root's.
func asNobody(argv ...string) []string {
	id := strconv.Itoa(nobody)
	return append([]string{"setpriv", "--reuid=" + id, "--regid=" + id, "--clear-groups"}, argv...)
}

// give makes files nobody's, and only its own.
func give(paths ...string) error {
	var errs []error
	for _, p := range paths {
		st, err := os.Stat(p)
		if err != nil {
			return err
		}
		errs = append(errs, os.Chown(p, nobody, nobody), os.Chmod(p, st.Mode()&0o700))
	}
	return errors.Join(errs...)
}

// postgres returns where Debian has one of PostgreSQL's programs: not in the
// path, as a machine may have several versions.
func postgres(name string) string {
	if found, _ := filepath.Glob("/usr/lib/postgresql/*/bin/" + name); len(found) > 0 {
		return found[len(found)-1]
	}
	return name
}

// Both databases have a table of this many rows.
const tableRows = 2000

// postgresUsers have the password "secret" each and a way to prove it.
var postgresUsers = map[string]string{"lab": "scram-sha-256", "old": "md5", "guest": "trust"}

func (e *env) startPostgres(ctx context.Context, port uint16) error {
	r := e.draws("postgres")
	_, dir, err := e.certificate(ctx, "postgres", "")
	if err != nil {
		return err
	}
	var access strings.Builder
	for user, method := range postgresUsers {
		fmt.Fprintf(&access, "host all %s all %s\n", user, method)
	}
	hba := filepath.Join(dir, "hba")
	cert, key := filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	if err := errors.Join(os.WriteFile(hba, []byte(access.String()), 0o600), give(dir, hba, cert, key)); err != nil {
		return err
	}
	data, err := e.templates.copy(ctx, e, "postgres", dir, func(folder string) error { return e.fillPostgres(ctx, folder) })
	if err != nil {
		return err
	}
	// A quarter refuses TLS to who asks for it.
	ssl := "off"
	if r.Float64() < 0.75 {
		ssl = "on"
		e.set(func() { e.certs["postgres"] = cert })
	}
	// Its System V memory goes with a namespace of its own, as it is killed.
	argv := append([]string{"unshare", "--ipc"}, asNobody(postgres("postgres"), "-D", data)...)
	for _, o := range []string{"port=" + num(port), "listen_addresses=" + e.server().String(), "unix_socket_directories=", "hba_file=" + hba,
		"ssl=" + ssl, "ssl_cert_file=" + cert, "ssl_key_file=" + key, "dynamic_shared_memory_type=mmap", "shared_buffers=4MB", "max_connections=40",
		"fsync=off", "autovacuum=off", "wal_level=minimal", "max_wal_senders=0", "max_logical_replication_workers=0", "jit=off"} {
		argv = append(argv, "-c", o)
	}
	return e.run(ctx, port, argv...)
}

func (e *env) fillPostgres(ctx context.Context, folder string) error {
	if err := errors.Join(os.Mkdir(folder, 0o700), give(folder)); err != nil {
		return err
	}
	if _, err := e.l.Exec(ctx, e.l.Server, asNobody(postgres("initdb"), "-D", folder, "-U", "postgres", "--no-locale", "-E", "UTF8", "--no-sync", "--wal-segsize=1", "--auth=reject")...); err != nil {
		return err
	}
	var sql strings.Builder
	sql.WriteString("create table item (id int primary key, name text, price numeric, at timestamptz default now(), note text)\n")
	fmt.Fprintf(&sql, "insert into item select n, md5(n::text), n * 1.25, now() - n * interval '1 hour', repeat(substr(md5((n*7)::text), 1, 6) || ' ', n %% 30) from generate_series(1, %d) n\n", tableRows)
	sql.WriteString("create table log (at timestamptz default now(), line text)\n")
	for user, method := range postgresUsers {
		if method == "trust" {
			method = "scram-sha-256"
		}
		fmt.Fprintf(&sql, "set password_encryption = '%s'\ncreate role %s login password 'secret'\ngrant all on item, log to %s\n", method, user, user)
	}
	// What further databases are made from is most of the files.
	sql.WriteString("update pg_database set datistemplate = false\ndrop database template0\ndrop database template1\n")
	_, err := e.l.ExecInput(ctx, e.l.Server, []byte(sql.String()), asNobody(postgres("postgres"), "--single", "-D", folder, "postgres")...)
	return err
}

// postgresAt returns a connection string. With tls the client asks for it, and
// gets it when the server has it.
func (a *attempt) postgresAt(addr netip.AddrPort, tls bool) string {
	mode := "disable"
	if tls {
		mode = "prefer"
		if a.e.certs["postgres"] != "" {
			mode = pick(a.r, "prefer", "require")
		}
	}
	s := fmt.Sprintf("host=%s port=%d user=%s password=secret dbname=postgres connect_timeout=10 sslmode=%s", addr.Addr(), addr.Port(), pick(a.r, "lab", "lab", "old", "guest"), mode)
	if a.r.Float64() < 0.5 {
		s += " application_name=" + a.name()
	}
	if tls && a.r.Float64() < 0.25 {
		s += " ssl_max_protocol_version=TLSv1.2"
	}
	return s
}

// statement draws a line of SQL that both databases understand.
func statement(r *rand.Rand) string {
	id := 1 + r.IntN(tableRows)
	switch r.IntN(5) {
	case 0:
		return fmt.Sprintf("select id, name, note from item order by name limit %d;\n", logUniform(r, 10, 800))
	case 1:
		return fmt.Sprintf("insert into log (line) values ('%s');\n", words(r, logUniform(r, 10, 3000)))
	case 2:
		return fmt.Sprintf("begin; update item set price = price + 1 where id = %d; commit;\n", id)
	}
	return fmt.Sprintf("select * from item where id = %d;\n", id)
}

func psql(tls bool) activityFunc {
	return func(ctx context.Context, a *attempt) error {
		var sql strings.Builder
		for range 1 + a.r.IntN(5) {
			switch a.r.IntN(8) {
			default:
				sql.WriteString(statement(a.r))
			case 5:
				fmt.Fprintf(&sql, "copy (select * from item where id > %d) to stdout%s;\n", 1+a.r.IntN(tableRows), pick(a.r, "", " csv header"))
			case 6:
				sql.WriteString("copy log (line) from stdin;\n")
				for range logUniform(a.r, 1, 60) {
					fmt.Fprintf(&sql, "%s\n", strings.ReplaceAll(string(words(a.r, logUniform(a.r, 10, 400))), "\n", " "))
				}
				sql.WriteString("\\.\n")
			case 7:
				sql.WriteString(pick(a.r, "\\d item\n", "\\dt\n", "select version();\n", "select count(*), avg(price) from item;\n", "select no_such_column from item;\n"))
			}
		}
		return a.program(ctx, "postgres", []byte(sql.String()), func(addr netip.AddrPort) []string {
			return []string{postgres("psql"), "-X", "-q", a.postgresAt(addr, tls)}
		})
	}
}

// pgbench speaks the protocol of drivers: queries that are prepared, with
// parameters apart from them.
func pgbench(ctx context.Context, a *attempt) error {
	script := fmt.Sprintf("\\set id random(1, %d)\n", tableRows)
	for range 1 + a.r.IntN(4) {
		script += pick(a.r, "select name, price from item where id = :id;\n", "select * from item where id between :id and :id + 20;\n", "update item set at = now() where id = :id;\n",
			fmt.Sprintf("insert into log (line) values (:id || '%s');\n", words(a.r, logUniform(a.r, 10, 500))))
	}
	if err := os.WriteFile(a.file, []byte(script), 0o600); err != nil {
		return err
	}
	defer os.Remove(a.file)
	return a.program(ctx, "postgres", nil, func(addr netip.AddrPort) []string {
		return []string{postgres("pgbench"), "-n", "-M", pick(a.r, "simple", "extended", "prepared"), "-t", strconv.Itoa(1 + a.r.IntN(4)), "-f", a.file, a.postgresAt(addr, a.r.Float64() < 0.4)}
	})
}

func (e *env) startMariaDB(ctx context.Context, port uint16) error {
	_, dir, err := e.certificate(ctx, "mariadb", "")
	if err != nil {
		return err
	}
	init := filepath.Join(dir, "init.sql")
	sql := fmt.Sprintf(`create database lab;
use lab;
create table item (id int primary key, name varchar(40), price decimal(10,2), at timestamp default now(), note text);
insert into item select seq, md5(seq), seq * 1.25, now(), repeat(concat(left(md5(seq * 7), 6), ' '), seq %% 30) from seq_1_to_%d;
create table log (at timestamp default now(), line text);
create user lab@'%%' identified by 'secret';
create user guest@'%%';
grant all on lab.* to lab@'%%';
grant all on lab.* to guest@'%%';
`, tableRows)
	cert, key := filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	if err := errors.Join(os.WriteFile(init, []byte(sql), 0o600), give(dir, init, cert, key)); err != nil {
		return err
	}
	small := []string{"--innodb-log-file-size=4M", "--innodb-buffer-pool-size=8M", "--innodb-flush-log-at-trx-commit=0", "--innodb-use-native-aio=0", "--innodb-flush-method=nosync", "--innodb-doublewrite=OFF"}
	data, err := e.templates.copy(ctx, e, "mariadb", dir, func(folder string) error {
		if err := errors.Join(os.Mkdir(folder, 0o700), give(folder)); err != nil {
			return err
		}
		argv := append(asNobody("mariadb-install-db", "--no-defaults", "--datadir="+folder, "--auth-root-authentication-method=normal", "--skip-test-db"), small...)
		_, err := e.l.Exec(ctx, e.l.Server, argv...)
		return err
	})
	if err != nil {
		return err
	}
	argv := asNobody(append([]string{"mariadbd", "--no-defaults", "--datadir=" + data, "--socket=" + filepath.Join(dir, "sock"), "--pid-file=" + filepath.Join(dir, "pid"), "--port=" + num(port),
		"--bind-address=" + e.server().String(), "--ssl-cert=" + cert, "--ssl-key=" + key, "--init-file=" + init, "--skip-name-resolve", "--performance-schema=off", "--key-buffer-size=1M"}, small...)...)
	return e.run(ctx, port, argv...)
}

func mariadb(tls bool) activityFunc {
	return func(ctx context.Context, a *attempt) error {
		var sql strings.Builder
		for range 1 + a.r.IntN(5) {
			switch a.r.IntN(7) {
			default:
				sql.WriteString(statement(a.r))
			case 5: // values in binary
				fmt.Fprintf(&sql, "insert into log (line) values (x'%s');\n", hex.EncodeToString(words(a.r, logUniform(a.r, 10, 500))))
			case 6:
				sql.WriteString(pick(a.r, "show tables;\n", "describe item;\n", "show variables like 'version%';\n", "select count(*), avg(price) from item;\n", "prepare p from 'select name from item where id < ?'; set @a = 40; execute p using @a;\n"))
			}
		}
		return a.program(ctx, "mariadb", []byte(sql.String()), func(addr netip.AddrPort) []string {
			return append(a.mariadbClient("mariadb", addr, tls), "lab")
		})
	}
}

func mariadbDump(ctx context.Context, a *attempt) error {
	return a.program(ctx, "mariadb", nil, func(addr netip.AddrPort) []string {
		argv := a.mariadbClient("mariadb-dump", addr, a.r.Float64() < 0.5)
		return append(argv, "--single-transaction", fmt.Sprintf("--where=id < %d", logUniform(a.r, 5, 1000)), "lab", "item")
	})
}

func (a *attempt) mariadbClient(program string, addr netip.AddrPort, tls bool) []string {
	argv := []string{program, "--no-defaults", "--protocol=TCP", "-h", addr.Addr().String(), "-P", num(addr.Port())}
	if a.r.Float64() < 0.7 {
		argv = append(argv, "-ulab", "-psecret")
	} else {
		argv = append(argv, "-uguest")
	}
	if a.r.Float64() < 0.2 {
		argv = append(argv, "--compress")
	}
	if !tls {
		argv = append(argv, "--skip-ssl")
	} else {
		argv = append(argv, "--ssl")
		if a.r.Float64() < 0.3 {
			argv = append(argv, "--tls-version=TLSv1.2")
		}
	}
	return argv
}
