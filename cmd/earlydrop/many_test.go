// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// asProgram is the variable that makes the test binary the program.
const asProgram = "EARLYDROP_TEST_AS_PROGRAM"

func init() {
	if os.Getenv(asProgram) != "" {
		os.Exit(run(os.Args, os.Stdout, os.Stderr))
	}
}

// program is a command that runs the program in a process of its own.
func program(t testing.TB, env []string, args ...string) *exec.Cmd {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), self, args...)
	cmd.Env = append(append(os.Environ(), asProgram+"=1"), env...)
	return cmd
}

// manyFlows writes a capture of n flows of a datagram and its answer each, step apart.
func manyFlows(t testing.TB, n int, step time.Duration) (path string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "many.pcap")
	file, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	w := bufio.NewWriterSize(file, 1<<20)
	le, be := binary.LittleEndian, binary.BigEndian
	head := le.AppendUint32(nil, 0xa1b23c4d) // nanoseconds
	head = le.AppendUint16(le.AppendUint16(head, 2), 4)
	head = append(head, make([]byte, 8)...)
	head = le.AppendUint32(le.AppendUint32(head, 65535), 1)
	w.Write(head)
	const size = 14 + 20 + 8 + 20
	record := make([]byte, 16+size)
	frame := record[16:]
	copy(frame[12:], []byte{8, 0, 0x45, 0, 0, size - 14, 0x12, 0x34, 0x40, 0, 64, 17})
	copy(frame[30:], []byte{192, 0, 2, 7})
	be.PutUint16(frame[36:], 9999)
	be.PutUint16(frame[38:], 28)
	le.PutUint32(record[8:], size)
	le.PutUint32(record[12:], size)
	for i := range n {
		at := testStart.Add(time.Duration(i) * step)
		le.PutUint32(record, uint32(at.Unix()))
		le.PutUint32(record[4:], uint32(at.Nanosecond()))
		be.PutUint32(frame[26:], 10<<24|uint32(i>>8))
		be.PutUint16(frame[34:], uint16(1024+i&0xff))
		frame[24], frame[25] = 0, 0
		sum := uint32(0)
		for k := 14; k < 34; k += 2 {
			sum += uint32(be.Uint16(frame[k:]))
		}
		sum = sum>>16 + sum&0xffff
		be.PutUint16(frame[24:], ^uint16(sum>>16+sum))
		for k := range 20 {
			frame[42+k] = byte(i * (k + 3))
		}
		w.Write(record)
		swap := func(a, b []byte) {
			for k := range a {
				a[k], b[k] = b[k], a[k]
			}
		}
		for range 2 { // the answer, and back to what was
			swap(frame[26:30], frame[30:34])
			swap(frame[34:36], frame[36:38])
			if be.Uint16(frame[34:]) == 9999 {
				w.Write(record)
			}
		}
	}
	if err := w.Flush(); err != nil {
		t.Fatal(err)
	}
	return path
}

// peakMemory returns the most memory that a process had resident so far, in bytes.
// Its resource usage would begin with that of the process which started it.
func peakMemory(t testing.TB, pid int) int {
	t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	_, after, _ := strings.Cut(string(status), "VmHWM:")
	var kib int
	if _, err := fmt.Sscanf(after, "%d kB", &kib); err != nil {
		t.Fatalf("no VmHWM in %q: %v", status, err)
	}
	return kib << 10
}

// Two million flows took 7.9 GiB once, 4 KB each. The bound leaves room for the race
// detector.
func TestReplayOfManyFlowsTakesLittleMemory(t *testing.T) {
	const flows, most = 200_000, 500 << 20
	path, temp := manyFlows(t, flows, time.Microsecond), t.TempDir()
	for _, form := range []string{"lines", "table"} {
		args := []string{"replay", "--model", tinyModel, path}
		if form == "lines" {
			args = append(args, "--json")
		}
		cmd := program(t, []string{"TMPDIR=" + temp, "GOMAXPROCS=2"}, args...)
		var stderr bytes.Buffer
		cmd.Stderr = &stderr
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		// Each flow begins later than the one before, and has the next source.
		n := 0
		lines := bufio.NewScanner(out)
		for lines.Scan() {
			source := fmt.Sprintf("10.%d.%d.%d:%d", n>>24, n>>16&0xff, n>>8&0xff, 1024+n&0xff)
			switch {
			case strings.Contains(lines.Text(), source) && strings.Contains(lines.Text(), "192.0.2.7:9999"):
				n++
			case form == "lines" || n > 0 && n < flows:
				t.Fatalf("flow %d: %s", n, lines.Text())
			}
			// So many lines are on their way that it can't have ended.
			if n == flows*9/10 {
				if peak := peakMemory(t, cmd.Process.Pid); peak > most {
					t.Errorf("%s of %d flows took %d MiB, want at most %d", form, flows, peak>>20, most>>20)
				}
			}
		}
		if err := errors.Join(lines.Err(), cmd.Wait()); err != nil || n != flows {
			t.Errorf("%s: %d flows in order of their start, want %d; %v: %s", form, n, flows, err, stderr.String())
		}
		if left, err := os.ReadDir(temp); err != nil || len(left) > 0 {
			t.Errorf("left in TMPDIR: %v, %v", left, err)
		}
	}
}

// All columns of a long table stay aligned with the ones above them, or get wider.
func TestLongTablesAreAligned(t *testing.T) {
	var out bytes.Buffer
	c := newColumns(&out)
	const rows = 3*columnRows + 7
	for i := range rows {
		if err := c.row(strings.Repeat("é", 1+i*10/rows), "x", "end"); err != nil {
			t.Fatal(err)
		}
	}
	if out.Len() == 0 {
		t.Error("nothing was printed before the end")
	}
	if err := c.flush(); err != nil {
		t.Fatal(err)
	}
	last, n := 0, 0
	for line := range strings.Lines(out.String()) {
		at := slices.Index([]rune(line), 'x')
		if at < last || n%columnRows != 0 && at != last || !strings.HasSuffix(line, "x  end\n") {
			t.Fatalf("row %d: %q, column at %d after %d", n, line, at, last)
		}
		last = at
		n++
	}
	if n != rows {
		t.Errorf("%d rows, want %d", n, rows)
	}
}

func TestReplayWithoutRoomForTemporaryFiles(t *testing.T) {
	full := t.TempDir()
	if err := unix.Mount("tmpfs", full, "tmpfs", 0, "size=256k"); err != nil {
		t.Fatalf("mount a small file system (this test has to run as root): %v", err)
	}
	defer func() {
		if err := unix.Unmount(full, 0); err != nil {
			t.Error(err)
		}
	}()
	for _, tt := range []struct {
		name, dir, want string
		step            time.Duration
	}{
		{"full, captures open at once", full, "no space left on device", time.Nanosecond},
		{"full, many flows", full, "no space left on device", time.Millisecond},
		{"not there", "/nonexistent", "no such file or directory", time.Nanosecond},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var stdout, stderr bytes.Buffer
			cmd := program(t, []string{"TMPDIR=" + tt.dir}, "replay", "--model", tinyModel, "--json", manyFlows(t, 250_000, tt.step))
			cmd.Stdout, cmd.Stderr = &stdout, &stderr
			var exit *exec.ExitError
			if err := cmd.Run(); !errors.As(err, &exit) || exit.ExitCode() != exitFailure {
				t.Errorf("ended with %v, want exit code %d", err, exitFailure)
			}
			want := fmt.Sprintf("earlydrop: temporary file in %s: %s: set TMPDIR to a folder with more room (replay --help says how much)\n", tt.dir, tt.want)
			if stderr.String() != want || stdout.Len() > 0 {
				t.Errorf("stderr %q, want %q; %d bytes of output", stderr.String(), want, stdout.Len())
			}
			if left, err := os.ReadDir(tt.dir); tt.dir == full && (err != nil || len(left) > 0) {
				t.Errorf("left behind: %v, %v", left, err)
			}
		})
	}
}

// Nobody removes a temporary file after a kill -9: it must have no name.
func TestKilledReplayLeavesNoTemporaryFile(t *testing.T) {
	temp := t.TempDir()
	cmd := program(t, []string{"TMPDIR=" + temp}, "replay", "--model", tinyModel, "--json", manyFlows(t, 250_000, time.Nanosecond))
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Wait()
	defer cmd.Process.Kill()
	// It is open, but in no folder.
	fds := fmt.Sprintf("/proc/%d/fd", cmd.Process.Pid)
	open := func() bool {
		entries, _ := os.ReadDir(fds)
		return slices.ContainsFunc(entries, func(e os.DirEntry) bool {
			target, _ := os.Readlink(filepath.Join(fds, e.Name()))
			return strings.HasPrefix(target, temp) && strings.HasSuffix(target, "(deleted)")
		})
	}
	for deadline := time.Now().Add(time.Minute); !open(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("no temporary file was opened")
		}
	}
	if err := cmd.Process.Signal(unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err == nil {
		t.Error("it ended well despite SIGTERM")
	}
	if left, err := os.ReadDir(temp); err != nil || len(left) > 0 {
		t.Errorf("left in TMPDIR: %v, %v", left, err)
	}
}
