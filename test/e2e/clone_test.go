// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bytes"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/earlydrop/earlydrop/test/e2e/rig"
	"github.com/earlydrop/earlydrop/test/lab"
	"github.com/earlydrop/earlydrop/test/onnxruntime"
)

// copyClone copies what git would have cloned into dir, with ONNX Runtime where `make
// onnxruntime` puts it.
func copyClone(t *testing.T, dir string) {
	t.Helper()
	root := must(filepath.Abs("../.."))(t)
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name := must(filepath.Rel(root, path))(t)
		switch {
		case d.IsDir() && name != "." && (strings.HasPrefix(d.Name(), ".") || name == "bin"):
			return filepath.SkipDir
		case d.IsDir():
			return os.MkdirAll(filepath.Join(dir, name), 0o755)
		case !d.Type().IsRegular():
			return nil
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		return os.WriteFile(filepath.Join(dir, name), data, info.Mode().Perm()&^0o022)
	})
	if err != nil {
		t.Fatal(err)
	}
	lib := filepath.Join(dir, "bin", "lib")
	if err := os.MkdirAll(lib, 0o755); err != nil {
		t.Fatal(err)
	}
	must(onnxruntime.CopyTo(lib, must(onnxruntime.Find())(t)))(t)
}

// Root's program loads no library that another user could change, but `sudo make run`
// in a user's clone goes on working: there the program, too, is that user's.
func TestMakeRunWorksInAUsersClone(t *testing.T) {
	t.Parallel()
	s := newScene(t, lab.Config{})
	const user = 54321
	clone := filepath.Join(s.Dir(), "clone")
	copyClone(t, clone)
	if err := filepath.WalkDir(clone, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return os.Lchown(path, user, user)
	}); err != nil {
		t.Fatal(err)
	}

	cmd := must(s.Command(s.ctx, "make", "-C", clone, "run", "IFACE="+rig.Device))(t)
	var mu sync.Mutex
	var out bytes.Buffer
	cmd.Stdout = lockedWriter{&mu, &out}
	cmd.Stderr = cmd.Stdout
	cmd.Env = append(os.Environ(), "GOFLAGS=-buildvcs=false", "EARLYDROP_ONNXRUNTIME=")
	cmd.SysProcAttr.Setpgid = true // one group, as a terminal's
	if err := s.Start(cmd); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	said := func() string {
		mu.Lock()
		defer mu.Unlock()
		return out.String()
	}
	err := rig.Until(s.ctx, func() (bool, error) {
		select {
		case err := <-ended:
			return false, fmt.Errorf("it ended: %w", err)
		default:
		}
		return strings.Contains(said(), "attached"), nil
	})
	if err != nil {
		t.Fatalf("make run: %v\n%s", err, said())
	}
	if status, err := s.Status(s.ctx); err != nil || !status.Running {
		t.Errorf("status: %+v, %v", status, err)
	}
	if err := syscall.Kill(-cmd.Process.Pid, syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	<-ended
	s.clean()
	for _, name := range []string{"bin", "bin/earlydrop", "bin/lib"} {
		info, err := os.Stat(filepath.Join(clone, name))
		if err != nil {
			t.Fatal(err)
		}
		if uid := info.Sys().(*syscall.Stat_t).Uid; uid != user {
			t.Errorf("%s is owned by uid %d, want the clone's owner, %d", name, uid, user)
		}
	}
}

type lockedWriter struct {
	mu *sync.Mutex
	to *bytes.Buffer
}

func (w lockedWriter) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.to.Write(p)
}
