// SPDX-License-Identifier: Apache-2.0

package control

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// ErrInUse means that another daemon listens at the socket.
var ErrInUse = errors.New("another daemon listens there")

// lockPatience is how long others may hold the lock of the socket's folder.
const lockPatience = 5 * time.Second

// socket is a listening unix socket, and the file that it has.
type socket struct {
	*net.UnixListener
	path string
	file unix.Stat_t // to find out whether it is still there
}

// listen makes the socket, for root and the members of a group (gid; negative: root
// alone). What a dead daemon left there is replaced; a living one's socket is not, and
// neither is a file of another type.
func listen(path string, gid int) (*socket, error) {
	if len(path) == 0 || len(path) > 107 || strings.HasPrefix(path, "@") || strings.Contains(path, "\x00") {
		return nil, fmt.Errorf("%q can't be the path of a socket: it has 1 to 107 bytes, and does not begin with @", path)
	}
	folder := filepath.Dir(path)
	// Others connect to what is in it.
	if err := os.Mkdir(folder, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, fmt.Errorf("make the folder of the socket: %w", err)
	}
	unlock, err := lockFolder(folder)
	if err != nil {
		return nil, err
	}
	defer unlock()
	if err := removeStale(path); err != nil {
		return nil, err
	}
	s, err := bind(path, gid)
	if err != nil {
		return nil, fmt.Errorf("make the socket %s: %w", path, err)
	}
	return s, nil
}

// lockFolder keeps other daemons from looking at what is in the folder, and replacing it,
// at the same time.
func lockFolder(folder string) (unlock func(), err error) {
	f, err := os.Open(folder)
	if err != nil {
		return nil, fmt.Errorf("open the folder of the socket: %w", err)
	}
	for begin := time.Now(); ; time.Sleep(10 * time.Millisecond) {
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return func() { _ = f.Close() }, nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) || time.Since(begin) > lockPatience {
			_ = f.Close()
			return nil, fmt.Errorf("lock the folder %s: %w", folder, err)
		}
	}
}

// removeStale removes the socket of a daemon that lives no more.
func removeStale(path string) error {
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if info.Mode().Type() != fs.ModeSocket {
		return fmt.Errorf("%s is there, and is no socket: name another path, or remove it", path)
	}
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return os.NewSyscallError("socket", err)
	}
	defer unix.Close(fd)
	switch err := unix.Connect(fd, &unix.SockaddrUnix{Name: path}); {
	case errors.Is(err, unix.ECONNREFUSED): // nobody has it
		return os.Remove(path)
	case errors.Is(err, unix.ENOENT):
		return nil
	case err == nil, errors.Is(err, unix.EAGAIN): // it is busy
		return fmt.Errorf("%s: %w", path, ErrInUse)
	default:
		return fmt.Errorf("%s: connect: %w", path, err)
	}
}

// bind makes the socket's file. Nobody can connect before its mode is right, since
// it listens after that.
func bind(path string, gid int) (_ *socket, err error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	f := os.NewFile(uintptr(fd), path)
	defer f.Close() // the listener has its own
	if err := unix.Bind(fd, &unix.SockaddrUnix{Name: path}); err != nil {
		return nil, os.NewSyscallError("bind", err)
	}
	defer func() {
		if err != nil {
			_ = os.Remove(path)
		}
	}()
	s := &socket{path: path}
	if gid >= 0 {
		if err := os.Lchown(path, -1, gid); err != nil {
			return nil, err
		}
	}
	if err := os.Chmod(path, 0o660); err != nil {
		return nil, err
	}
	if err := unix.Lstat(path, &s.file); err != nil {
		return nil, os.NewSyscallError("lstat", err)
	}
	if err := unix.Listen(fd, 64); err != nil {
		return nil, os.NewSyscallError("listen", err)
	}
	l, err := net.FileListener(f)
	if err != nil {
		return nil, err
	}
	s.UnixListener = l.(*net.UnixListener)
	return s, nil
}

// remove removes the socket's file, if it is still the own one.
func (s *socket) remove() {
	unlock, err := lockFolder(filepath.Dir(s.path))
	if err != nil {
		return // it is stale then, and the next daemon replaces it
	}
	defer unlock()
	var now unix.Stat_t
	if unix.Lstat(s.path, &now) == nil && now.Dev == s.file.Dev && now.Ino == s.file.Ino {
		_ = os.Remove(s.path)
	}
}
