// SPDX-License-Identifier: Apache-2.0

//go:build cgo

package onnx

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// stranger is a user who is neither root nor the program's owner.
const stranger = 54321

// asRoot skips what only root can set up: files of other users.
func asRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root, to give files to other users")
	}
}

// With root's rights nothing is loaded that somebody else could have chosen.
func TestLibraryThatOthersCouldChangeIsRefused(t *testing.T) {
	asRoot(t)
	check := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, tt := range []struct {
		name string
		// change spoils the tree: top/mid/lib.so, and top/link to it.
		change func(top, mid, lib, link string)
		// ask is the path below top that is asked for; lib.so itself by default.
		ask string
		// want is part of the error; "" if it may be loaded.
		want string
	}{
		{name: "root's"},
		{name: "through a link", ask: "link"},
		{name: "root's, of another group", change: func(_, mid, lib, _ string) {
			check(os.Chown(mid, 0, stranger))
			check(os.Chown(lib, 0, stranger))
		}},
		{name: "sticky folder", change: func(_, mid, _, _ string) { check(os.Chmod(mid, 0o777|os.ModeSticky)) }},
		{name: "sticky folder of a group", change: func(top, _, _, _ string) { check(os.Chmod(top, 0o775|os.ModeSticky)) }},

		{name: "file writable by all", change: func(_, _, lib, _ string) { check(os.Chmod(lib, 0o777)) },
			want: "lib.so is writable by everybody (mode 0777)"},
		{name: "file writable by its group", change: func(_, _, lib, _ string) { check(os.Chmod(lib, 0o775)) },
			want: "lib.so is writable by its group (mode 0775)"},
		{name: "file writable by all, in a sticky folder", change: func(_, mid, lib, _ string) {
			check(os.Chmod(mid, 0o777|os.ModeSticky))
			check(os.Chmod(lib, 0o666))
		}, want: "lib.so is writable by everybody (mode 0666)"},
		{name: "file with the sticky bit", change: func(_, _, lib, _ string) { check(os.Chmod(lib, 0o777|os.ModeSticky)) },
			want: "lib.so is writable by everybody"},
		{name: "file of a stranger", change: func(_, _, lib, _ string) { check(os.Chown(lib, stranger, 0)) },
			want: "lib.so is owned by uid 54321"},
		{name: "file of a stranger, in a sticky folder", change: func(_, mid, lib, _ string) {
			check(os.Chmod(mid, 0o777|os.ModeSticky))
			check(os.Chown(lib, stranger, 0))
		}, want: "lib.so is owned by uid 54321"},
		{name: "folder writable by all", change: func(_, mid, _, _ string) { check(os.Chmod(mid, 0o777)) },
			want: "mid is writable by everybody"},
		{name: "folder writable by its group", change: func(_, mid, _, _ string) { check(os.Chmod(mid, 0o770)) },
			want: "mid is writable by its group"},
		{name: "folder writable by its group, set-group-id", change: func(_, mid, _, _ string) { check(os.Chmod(mid, 0o775|os.ModeSetgid)) },
			want: "mid is writable by its group"},
		{name: "folder above writable by its group", change: func(top, _, _, _ string) { check(os.Chmod(top, 0o775)) },
			want: "top is writable by its group"},
		{name: "folder of a stranger", change: func(_, mid, _, _ string) { check(os.Chown(mid, stranger, 0)) },
			want: "mid is owned by uid 54321"},
		{name: "sticky folder of a stranger", change: func(_, mid, _, _ string) {
			check(os.Chown(mid, stranger, 0))
			check(os.Chmod(mid, 0o777|os.ModeSticky))
		}, want: "mid is owned by uid 54321"},
		{name: "folder above of a stranger", change: func(top, _, _, _ string) { check(os.Chown(top, stranger, 0)) },
			want: "top is owned by uid 54321"},
		{name: "link of a stranger", ask: "link", change: func(_, _, _, link string) { check(os.Lchown(link, stranger, 0)) },
			want: "symbolic link"},
		{name: "link out of a folder writable by all", ask: "open/link", change: func(top, _, lib, _ string) {
			check(os.Mkdir(filepath.Join(top, "open"), 0o755))
			check(os.Chmod(filepath.Join(top, "open"), 0o777))
			check(os.Symlink(lib, filepath.Join(top, "open", "link")))
		}, want: "open is writable by everybody"},
		{name: "link into a folder writable by all", ask: "link", change: func(_, mid, _, _ string) { check(os.Chmod(mid, 0o777)) },
			want: "mid is writable by everybody"},
		{name: "link to a file of a stranger", ask: "link", change: func(_, _, lib, _ string) { check(os.Chown(lib, stranger, 0)) },
			want: "lib.so is owned by uid 54321"},
		{name: "link on the way", ask: "way/lib.so", change: func(top, _, _, _ string) {
			check(os.Symlink("mid", filepath.Join(top, "way")))
			check(os.Lchown(filepath.Join(top, "way"), stranger, 0))
		}, want: "symbolic link"},
		{name: "link to a link of a stranger", ask: "first", change: func(top, _, _, link string) {
			check(os.Symlink("link", filepath.Join(top, "first")))
			check(os.Lchown(link, stranger, 0))
		}, want: "link is owned by uid 54321"},
		{name: "back out of a folder of a stranger", ask: "other/../mid/lib.so", change: func(top, _, _, _ string) {
			check(os.Mkdir(filepath.Join(top, "other"), 0o755))
			check(os.Chown(filepath.Join(top, "other"), stranger, 0))
		}, want: "other is owned by uid 54321"},
		{name: "links in a circle", ask: "circle", change: func(top, _, _, _ string) {
			check(os.Symlink("circle", filepath.Join(top, "circle")))
		}, want: "too many levels of symbolic links"},
		{name: "folder", ask: "mid", want: "not a regular file"},
		{name: "pipe", ask: "pipe", change: func(top, _, _, _ string) {
			check(syscall.Mkfifo(filepath.Join(top, "pipe"), 0o600))
		}, want: "not a regular file"},
		{name: "missing", ask: "mid/none.so", want: "no such file"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			top := filepath.Join(t.TempDir(), "top")
			mid, link := filepath.Join(top, "mid"), filepath.Join(top, "link")
			lib := filepath.Join(mid, "lib.so")
			check(os.MkdirAll(mid, 0o755))
			check(os.WriteFile(lib, []byte("code"), 0o755))
			check(os.Symlink("mid/../mid/./lib.so", link))
			if tt.change != nil {
				tt.change(top, mid, lib, link)
			}
			ask := lib
			if tt.ask != "" {
				ask = top + "/" + tt.ask
			}
			for _, how := range []string{"absolute", "relative"} {
				if how == "relative" {
					t.Chdir(top)
					ask = strings.TrimPrefix(ask, top+"/")
				}
				got, err := resolveLibrary(ask)
				if tt.want == "" {
					if err != nil || got != lib {
						t.Errorf("%s: got %q, %v, want %s", how, got, err, lib)
					}
					continue
				}
				if err == nil || !strings.Contains(err.Error(), tt.want) {
					t.Errorf("%s: got %q, %v, want an error with %q", how, got, err, tt.want)
				}
				others := strings.Contains(tt.want, "writable") || strings.Contains(tt.want, "owned") || strings.Contains(tt.want, "symbolic link")
				if others != (errors.Is(err, ErrUnsafeLibrary) || strings.Contains(tt.want, "levels")) {
					t.Errorf("%s: %v: is ErrUnsafeLibrary: %v", how, err, !others)
				}
			}
		})
	}
}

// The check belongs to the rights of the process and to the owner of its executable,
// however the library is found.
func TestLibraryIsCheckedWhereRightsAreMoreThanAUsers(t *testing.T) {
	asRoot(t)
	real, exe := realLibrary(t), testBinary(t)
	// An ordinary user's clone: a folder, the program in bin, the library in bin/lib,
	// all that user's.
	clone := func(owner int) (dir, program string) {
		t.Helper()
		dir = openFolder(t)
		program = place(t, exe, dir, "bin", "earlydrop")
		place(t, real, dir, "bin", "lib", libraryName)
		if err := filepath.WalkDir(dir, func(path string, _ os.DirEntry, err error) error {
			if err != nil {
				return err
			}
			return os.Lchown(path, owner, owner)
		}); err != nil {
			t.Fatal(err)
		}
		return dir, program
	}
	users, program := clone(stranger)
	usersLibrary := filepath.Join(users, "bin", "lib", libraryName)
	rootsOwn := place(t, exe, openFolder(t), "earlydrop")
	shared, sharedProgram := clone(stranger)
	if err := os.Chmod(filepath.Join(shared, "bin", "lib"), 0o775); err != nil {
		t.Fatal(err)
	}
	// Root built the program in the user's folder.
	half, halfProgram := clone(stranger)
	if err := os.Chown(halfProgram, 0, 0); err != nil {
		t.Fatal(err)
	}

	root := (*syscall.SysProcAttr)(nil)
	user := &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: stranger + 1, Gid: stranger + 1, NoSetGroups: true}}
	const capNetAdmin = 12
	service := &syscall.SysProcAttr{Credential: user.Credential, AmbientCaps: []uintptr{capNetAdmin}}
	const opened, refused = "opened with 1.", "not safe to load with root's rights"
	for _, tt := range []struct {
		name string
		child
		want string
	}{
		{"root in a user's clone", child{exe: program, attr: root}, opened},
		{"root in a user's clone, library by variable", child{exe: program, env: []string{LibraryEnv + "=" + usersLibrary}, attr: root}, opened},
		{"root's program, user's library by option", child{exe: rootsOwn, library: usersLibrary, attr: root}, refused},
		{"root's program, user's library by variable", child{exe: rootsOwn, env: []string{LibraryEnv + "=" + usersLibrary}, attr: root}, refused},
		{"root's program, user's library in the loader's folder", child{exe: rootsOwn, env: []string{"LD_LIBRARY_PATH=" + filepath.Dir(usersLibrary)}, attr: root}, refused},
		{"root's program in a user's folder", child{exe: halfProgram, attr: root}, refused},
		{"root in a clone that a group may write to", child{exe: sharedProgram, attr: root}, refused},
		{"a user in such a clone", child{exe: sharedProgram, attr: user}, opened},
		{"a user, another user's library", child{exe: rootsOwn, library: usersLibrary, attr: user}, opened},
		{"a service with a capability, in such a clone", child{exe: sharedProgram, attr: service}, refused},
		{"a service with a capability, in a user's clone", child{exe: program, attr: service}, opened},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tt.dir = half
			got := tt.open(t)
			if !strings.Contains(got, tt.want) {
				t.Errorf("got %q, want %q", got, tt.want)
			}
			if tt.want == refused && !strings.HasPrefix(got, "library: classifier: ONNX Runtime can't be used: ") {
				t.Errorf("got %q, want that it says what can't be used", got)
			}
		})
	}
}

// ONNX Runtime loads the CUDA provider by itself, out of its own folder.
func TestProviderThatOthersCouldChangeIsRefused(t *testing.T) {
	asRoot(t)
	dir := openFolder(t)
	library := place(t, realLibrary(t), dir, libraryName)
	provider := filepath.Join(dir, "libonnxruntime_providers_cuda.so")
	for _, tt := range []struct {
		name string
		mode os.FileMode
		want string // of the error; there is no GPU, so that one always comes
	}{
		{"root's", 0o644, "CUDA"},
		{"writable by all", 0o666, "libonnxruntime_providers_cuda.so: not safe to load with root's rights: the file " + provider + " is writable by everybody"},
	} {
		if err := os.WriteFile(provider, []byte("no library"), 0o644); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(provider, tt.mode); err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command(testBinary(t))
		cmd.Env = []string{childEnv + "=" + filepath.Join(modelFolder, "tiny.onnx"), childEnv + "_DEVICE=cuda:0", LibraryEnv + "=" + library, quickExit}
		out, err := cmd.CombinedOutput()
		if err == nil || !strings.Contains(string(out), tt.want) || strings.Contains(string(out), "not safe") != (tt.mode == 0o666) {
			t.Errorf("%s: %v, %q, want an error with %q", tt.name, err, out, tt.want)
		}
	}
}
