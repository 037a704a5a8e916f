// SPDX-License-Identifier: Apache-2.0

//go:build cgo

package onnx

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"unicode"

	"golang.org/x/sys/unix"
)

// maxLinks bounds the symbolic links of one path, as the kernel does.
const maxLinks = 40

// findLibrary returns the path that was asked for or found, and the words that
// tell where it comes from. The order is: the path asked for, the environment
// variable, lib/ beside the executable or ../lib/earlydrop from there, and the folders
// of the system's loader. For a GPU, a folder whose name ends in -cuda is before each of
// the program's own: there the library has its CUDA provider beside it.
// The working directory is not among them: whoever can write there would choose
// the code that runs with this program's rights.
func findLibrary(library string, gpu bool) (path, how string, err error) {
	if library != "" {
		return library, "asked for by option", nil
	}
	if path := os.Getenv(LibraryEnv); path != "" {
		if strings.Contains(path, "/") {
			return path, "named by " + LibraryEnv, nil
		}
		// A bare name is one for the loader, as it is to dlopen.
		if path, ok := inLoaderFolders(path); ok {
			return path, "named by " + LibraryEnv, nil
		}
		return "", "", fmt.Errorf("%w: %s is %q, but no folder of the system's loader has such a file",
			ErrLibrary, LibraryEnv, path)
	}
	var own []string
	if exe, err := os.Readlink("/proc/self/exe"); err == nil {
		// Built in a clone, and installed below a prefix.
		dir := filepath.Dir(exe)
		for _, dir := range []string{filepath.Join(dir, "lib"), filepath.Join(filepath.Dir(dir), "lib", "earlydrop")} {
			if gpu {
				own = append(own, dir+"-cuda")
			}
			own = append(own, dir)
		}
	}
	for _, dir := range own {
		if path := filepath.Join(dir, libraryName); isFile(path) {
			return path, "beside the program", nil
		}
	}
	if path, ok := inLoaderFolders(libraryName); ok {
		return path, "in a folder of the system's loader", nil
	}
	return "", "", fmt.Errorf("%w: %s is neither in %s nor in a folder of the system's loader",
		ErrLibrary, libraryName, strings.Join(own, " or "))
}

func isFile(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.Mode().IsRegular()
}

// inLoaderFolders looks for a file where the system's loader would. It is done
// here, and not left to the loader, so that the file can be checked before any
// code of it runs.
func inLoaderFolders(name string) (path string, ok bool) {
	for _, dir := range loaderFolders(os.Getenv("LD_LIBRARY_PATH"), "/etc/ld.so.conf") {
		if path := filepath.Join(dir, name); isFile(path) {
			return path, true
		}
	}
	return "", false
}

// loaderFolders returns the folders that the system's loader searches, in its
// order (ld.so(8)): those of the variable, of the configuration, and its own.
// An empty or relative one would be searched below the working directory and is
// left out.
func loaderFolders(variable, config string) []string {
	folders := strings.FieldsFunc(variable, func(r rune) bool { return r == ':' || r == ';' })
	folders = append(folders, configuredFolders(config, 0)...)
	folders = append(folders, "/lib64", "/usr/lib64", "/lib", "/usr/lib")
	absolute := folders[:0]
	for _, dir := range folders {
		if filepath.IsAbs(dir) {
			absolute = append(absolute, dir)
		}
	}
	return absolute
}

// configuredFolders reads a file as ldconfig(8) does: a folder per line, or an
// include of more such files, named by a pattern.
func configuredFolders(file string, depth int) (folders []string) {
	f, err := os.Open(file)
	if err != nil || depth > 10 { // includes that go round in a circle
		return nil
	}
	defer f.Close()
	for s := bufio.NewScanner(f); s.Scan(); {
		line, _, _ := strings.Cut(s.Text(), "#")
		fields := strings.FieldsFunc(line, func(r rune) bool { return unicode.IsSpace(r) || r == ':' || r == ',' })
		if len(fields) > 1 && fields[0] == "include" {
			for _, pattern := range fields[1:] {
				if !filepath.IsAbs(pattern) {
					pattern = filepath.Join(filepath.Dir(file), pattern)
				}
				files, _ := filepath.Glob(pattern)
				for _, file := range files {
					folders = append(folders, configuredFolders(file, depth+1)...)
				}
			}
			continue
		}
		folders = append(folders, fields...)
	}
	return folders
}

// resolveLibrary returns the path that is to be loaded, free of symbolic links.
// Where the process has more rights than an ordinary user's, it fails if somebody
// else than root and the executable's owner could have chosen the file's content.
// The executable's owner is trusted, as the whole program is that user's work: a
// clone that was built by a user may be run with sudo.
func resolveLibrary(path string) (string, error) {
	check := func(string, fs.FileInfo) error { return nil }
	if privileged() {
		info, err := os.Stat("/proc/self/exe")
		if err != nil {
			return "", fmt.Errorf("the program's own file: %w", err)
		}
		owner := info.Sys().(*syscall.Stat_t).Uid
		check = func(path string, info fs.FileInfo) error { return checkOwned(path, info, owner) }
	}
	resolved, err := resolve(path, check)
	if err != nil {
		return "", err
	}
	if !isFile(resolved) {
		return "", errors.New("not a regular file")
	}
	return resolved, nil
}

// privileged reports whether the process may do what an ordinary user's may
// not: it is root's, or has capabilities (of its file, its service, its parent).
func privileged() bool {
	if os.Geteuid() == 0 {
		return true
	}
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var caps [2]unix.CapUserData // 64 capabilities
	err := unix.Capget(&header, &caps[0])
	return err != nil || caps[0].Permitted|caps[1].Permitted != 0
}

// resolve follows path to the file that it means and returns that file's path.
// check sees every step of the way, from / on: each folder, each symbolic link,
// the file at last.
func resolve(path string, check func(string, fs.FileInfo) error) (string, error) {
	if !filepath.IsAbs(path) {
		dir, err := os.Getwd()
		if err != nil {
			return "", err
		}
		// Not joined, for that would take "link/.." for nothing.
		path = dir + "/" + path
	}
	const separator = string(filepath.Separator)
	rest := strings.Split(path, separator)
	at, links := separator, 0
	step := func(path string) (fs.FileInfo, error) {
		info, err := os.Lstat(path)
		if err == nil {
			err = check(path, info)
		}
		return info, err
	}
	if _, err := step(at); err != nil {
		return "", err
	}
	for len(rest) > 0 {
		name := rest[0]
		rest = rest[1:]
		switch name {
		case "", ".":
			continue
		case "..":
			at = filepath.Dir(at)
			continue
		}
		next := filepath.Join(at, name)
		info, err := step(next)
		if err != nil {
			return "", err
		}
		if info.Mode()&fs.ModeSymlink == 0 {
			at = next
			continue
		}
		if links++; links > maxLinks {
			return "", &fs.PathError{Op: "follow", Path: path, Err: syscall.ELOOP}
		}
		target, err := os.Readlink(next)
		if err != nil {
			return "", err
		}
		if filepath.IsAbs(target) {
			at = separator
		}
		rest = append(strings.Split(target, separator), rest...)
	}
	return at, nil
}

// checkOwned fails if somebody else than root and owner could change what is at
// path. In a sticky folder, as /tmp is, only the owner of an entry can replace it.
func checkOwned(path string, info fs.FileInfo, owner uint32) error {
	what := "the file"
	switch {
	case info.IsDir():
		what = "the folder"
	case info.Mode()&fs.ModeSymlink != 0:
		what = "the symbolic link"
	}
	who := "only root"
	if owner != 0 {
		who = fmt.Sprintf("only root and the owner of the program, uid %d,", owner)
	}
	if uid := info.Sys().(*syscall.Stat_t).Uid; uid != 0 && uid != owner {
		return fmt.Errorf("%w: %s %s is owned by uid %d; %s may own it", ErrUnsafeLibrary, what, path, uid, who)
	}
	perm := info.Mode().Perm()
	if info.Mode()&fs.ModeSymlink != 0 || perm&0o022 == 0 || info.IsDir() && info.Mode()&fs.ModeSticky != 0 {
		return nil
	}
	others := "its group"
	if perm&0o002 != 0 {
		others = "everybody"
	}
	return fmt.Errorf("%w: %s %s is writable by %s (mode %04o); %s may be able to write to it",
		ErrUnsafeLibrary, what, path, others, perm, who)
}
