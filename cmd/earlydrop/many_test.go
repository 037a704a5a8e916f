// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/procfs"
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

// manyFlows writes a capture of n flows, step apart, whose packets come at once: of ten,
// seven are a datagram and its answer, and three TCP connections that carry a segment.
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

	const udp, tcp = 17, 6
	record := make([]byte, 16+14+20+20+20)
	// write adds a packet with so many bytes of payload; tcp alone has the other three.
	write := func(i int, proto byte, fromClient bool, payload int, flags byte, seq, ack uint32) {
		transport := 8
		if proto == tcp {
			transport = 20
		}
		size := 14 + 20 + transport + payload
		at := testStart.Add(time.Duration(i) * step)
		le.PutUint32(record, uint32(at.Unix()))
		le.PutUint32(record[4:], uint32(at.Nanosecond()))
		le.PutUint32(record[8:], uint32(size))
		le.PutUint32(record[12:], uint32(size))
		frame := record[16:]
		clear(frame)
		copy(frame[12:], []byte{8, 0, 0x45, 0, 0, byte(size - 14), 0x12, 0x34, 0x40, 0, 64, proto})
		client, clientPort, server, serverPort := frame[26:], frame[34:], frame[30:], frame[36:]
		if !fromClient {
			client, clientPort, server, serverPort = server, serverPort, client, clientPort
		}
		be.PutUint32(client, 10<<24|uint32(i>>8))
		be.PutUint16(clientPort, uint16(1024+i&0xff))
		copy(server, []byte{192, 0, 2, 7})
		be.PutUint16(serverPort, 9999)
		sum := uint32(0)
		for k := 14; k < 34; k += 2 {
			sum += uint32(be.Uint16(frame[k:]))
		}
		sum = sum>>16 + sum&0xffff
		be.PutUint16(frame[24:], ^uint16(sum>>16+sum))
		if proto == tcp {
			be.PutUint32(frame[38:], seq)
			be.PutUint32(frame[42:], ack)
			frame[46], frame[47] = 5<<4, flags
		} else {
			be.PutUint16(frame[38:], uint16(transport+payload))
		}
		for k := range payload {
			frame[34+transport+k] = byte(i * (k + 3))
		}
		w.Write(record[:16+size])
	}
	const syn, synAck, ack = 0x02, 0x12, 0x10
	for i := range n {
		if i%10 < 7 {
			write(i, udp, true, 20, 0, 0, 0)
			write(i, udp, false, 20, 0, 0, 0)
			continue
		}
		write(i, tcp, true, 0, syn, 1, 0)
		write(i, tcp, false, 0, synAck, 7, 2)
		write(i, tcp, true, 20, ack, 2, 8)
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
	p, err := procfs.NewProc(pid)
	if err != nil {
		t.Fatal(err)
	}
	status, err := p.NewStatus()
	if err != nil {
		t.Fatal(err)
	}
	return int(status.VmHWM)
}

// manyFlowsFlag is for a measurement:
//
//	go test ./cmd/earlydrop -timeout 1h -v -run ManyFlowsTakesLittleMemory/lines -many-flows 10000000
var manyFlowsFlag = flag.Int("many-flows", 200_000, "flows of TestReplayOfManyFlowsTakesLittleMemory, of which 1.6 million are open at a time")

// Two million flows took 7.9 GiB once, 4 KB each. The bound leaves room for the race
// detector.
func TestReplayOfManyFlowsTakesLittleMemory(t *testing.T) {
	flows := *manyFlowsFlag
	most := 500 << 20
	if flows > 1_000_000 {
		most = 1 << 30
	}
	path, temp := manyFlows(t, flows, 1250*time.Nanosecond), t.TempDir()
	for _, form := range []string{"lines", "table"} {
		t.Run(form, func(t *testing.T) {
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
			start := time.Now()
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			// Each flow begins later than the one before, and has the next source.
			n, peak := 0, 0
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
					peak = peakMemory(t, cmd.Process.Pid)
				}
			}
			if err := errors.Join(lines.Err(), cmd.Wait()); err != nil || n != flows {
				t.Errorf("%d flows in order of their start, want %d; %v: %s", n, flows, err, stderr.String())
			}
			t.Logf("%d flows: %d MiB, %v\n%s", flows, peak>>20, time.Since(start).Round(100*time.Millisecond), stderr.String())
			if peak > most {
				t.Errorf("%d flows took %d MiB, want at most %d", flows, peak>>20, most>>20)
			}
			if left, err := os.ReadDir(temp); err != nil || len(left) > 0 {
				t.Errorf("left in TMPDIR: %v, %v", left, err)
			}
		})
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
