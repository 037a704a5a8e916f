// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"bufio"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// holdEnv names the folder that this program, run once more, is to lock.
const holdEnv = "EARLYDROP_TEST_HOLD"

// TestHolder is no test but the process that another test starts: it locks a folder as a
// daemon does, and ends with SIGTERM or its standard input.
func TestHolder(t *testing.T) {
	dir := os.Getenv(holdEnv)
	if dir == "" {
		return
	}
	folder, err := openFolder(dir)
	if err == nil {
		err = tryLock(folder, unix.LOCK_EX)
	}
	if err != nil {
		t.Fatal(err)
	}
	_, _ = os.Stdout.WriteString("locked\n")
	_, _ = os.Stdin.Read(make([]byte, 1))
	_ = folder.Close()
}

// process is a child that lives until it is ended or the test is over.
type process struct {
	*exec.Cmd
	done chan struct{}
}

func startProcess(t *testing.T, cmd *exec.Cmd, ready string) *process {
	t.Helper()
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	p := &process{cmd, make(chan struct{})}
	for lines := bufio.NewScanner(stdout); ready != "" && lines.Scan(); {
		if lines.Text() == ready {
			break
		}
	}
	go func() {
		_ = cmd.Wait()
		close(p.done)
	}()
	t.Cleanup(func() {
		_ = stdin.Close()
		_ = cmd.Process.Kill()
		<-p.done
	})
	return p
}

// holder starts a process that has the folder locked.
func holder(t *testing.T, dir string) *process {
	t.Helper()
	cmd := exec.Command(os.Args[0], "-test.run=^TestHolder$")
	cmd.Env = append(os.Environ(), holdEnv+"="+dir)
	return startProcess(t, cmd, "locked")
}

// bystander starts a process that has nothing to do with it.
func bystander(t *testing.T) *process {
	t.Helper()
	cmd := exec.Command(os.Args[0], "-test.run=^TestHolder$")
	cmd.Env = append(os.Environ(), holdEnv+"="+t.TempDir())
	return startProcess(t, cmd, "locked")
}

func (p *process) alive() bool { return unix.Kill(p.Process.Pid, 0) == nil }

// A data path that is being adopted has in its maps the id of the process before, or
// none: detach stops the one that has the lock, and nobody else.
func TestDetachStopsTheHolderOnly(t *testing.T) {
	for _, recorded := range []string{"none", "another process", "a dead process", "init"} {
		t.Run(recorded, func(t *testing.T) {
			inNamespace(t)
			d := attach(t, Options{})
			innocent := bystander(t)
			pid := map[string]int{"none": 0, "another process": innocent.Process.Pid, "a dead process": 1 << 22, "init": 1}[recorded]
			var a datapathAttached
			err := d.att.Lookup(uint32(0), &a)
			if err == nil {
				a.Pid = uint32(pid)
				err = d.att.Update(uint32(0), &a, ebpf.UpdateAny)
			}
			if err := errors.Join(err, d.Release()); err != nil {
				t.Fatal(err)
			}
			h := holder(t, d.Info.PinDir)
			tables, err := Open("v0")
			if err != nil {
				t.Fatal(err)
			}
			if got, err := tables.Attachment(); err != nil || !got.Alive || got.PID != h.Process.Pid {
				t.Errorf("process %d holds it, told is %+v, %v", h.Process.Pid, got, err)
			}
			_ = tables.Close()
			if err := Detach("v0", true); err != nil {
				t.Error(err)
			}
			<-h.done
			if !innocent.alive() {
				t.Error("another process was stopped")
			}
			nothingLeft(t)
		})
	}
}

// Between the look at who has the lock and the signal the number may have got to
// somebody else.
func TestTerminateVerifiesTheHolder(t *testing.T) {
	dir := t.TempDir()
	folder, err := openFolder(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer folder.Close()
	innocent, h := bystander(t), holder(t, dir)
	if got := lockedBy(folder); got != h.Process.Pid {
		t.Errorf("locked by %d, told is %d", h.Process.Pid, got)
	}
	for _, pid := range []int{innocent.Process.Pid, 1, os.Getpid(), os.Getppid(), 1 << 22} {
		if sent, err := signalHolder(pid, folder, unix.SIGTERM); sent || err != nil {
			t.Errorf("process %d: sent %v, %v", pid, sent, err)
		}
	}
	if !innocent.alive() || !h.alive() {
		t.Error("somebody was stopped")
	}
	if sent, err := signalHolder(h.Process.Pid, folder, unix.SIGTERM); !sent || err != nil {
		t.Errorf("the holder: sent %v, %v", sent, err)
	}
	<-h.done
	if got := lockedBy(folder); got != 0 {
		t.Errorf("nobody has the lock, told is %d", got)
	}
	if err := stopHolder(folder, "v0"); err != nil {
		t.Errorf("nobody to stop: %v", err)
	}
}

// A process does not stop itself.
func TestOwnDataPathIsNotStopped(t *testing.T) {
	inNamespace(t)
	d := attach(t, Options{})
	var refused *RefusedError
	if err := Detach("v0", true); !errors.As(err, &refused) {
		t.Errorf("error %v", err)
	}
	if err := d.Detach(); err != nil {
		t.Fatal(err)
	}
	nothingLeft(t)
}

func TestLocksAreRead(t *testing.T) {
	for _, tt := range []struct {
		line string
		pid  int
		of   string
	}{
		{"1: FLOCK  ADVISORY  WRITE 4711 00:27:33115 0 EOF\n", 4711, "00:27:33115"},
		{"1: FLOCK  ADVISORY  READ 4711 00:27:33115 0 EOF\n", 0, ""},
		{"1: -> FLOCK  ADVISORY  WRITE 4711 00:27:33115 0 EOF\n", 0, ""},
		{"1: POSIX  ADVISORY  WRITE 4711 00:27:33115 0 EOF\n", 0, ""},
		{"1: OFDLCK ADVISORY  WRITE -1 00:27:33115 0 EOF\n", 0, ""},
		{"1: FLOCK  ADVISORY  WRITE ? 00:27:33115 0 EOF\n", 0, ""},
		{"", 0, ""},
	} {
		if pid, of := parseLock(tt.line); pid != tt.pid || of != tt.of {
			t.Errorf("%q: %d, %q", tt.line, pid, of)
		}
	}
}

// A folder that was removed while its lock was waited for is not locked but made again.
func TestLockOfARemovedFolderIsNone(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "v0")
	folder, err := makeFolder(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer folder.Close()
	if _, err := makeFolder(dir); !errors.Is(err, unix.EWOULDBLOCK) {
		t.Errorf("locked twice: %v", err)
	}
	stale, err := openFolder(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer stale.Close()
	if err := os.Remove(dir); err != nil {
		t.Fatal(err)
	}
	_ = folder.Close()
	if err := tryLock(stale, unix.LOCK_EX); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the lock of a removed folder: %v", err)
	}
	again, err := makeFolder(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	if !isAt(again, dir) || strings.Contains(again.Name(), "proc") {
		t.Errorf("locked is %s", again.Name())
	}
}
