// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Proc is a program that runs in one of the lab's namespaces. It dies with
// the lab, and with this process. Its methods may be called concurrently.
type Proc struct {
	Name string

	cmd  *exec.Cmd
	out  *tail
	done chan struct{}
	err  error // of Wait, set before done is closed
}

// tail keeps the end of what a program prints.
type tail struct {
	mu  sync.Mutex
	buf []byte
}

const tailBytes = 8192

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.buf = append(t.buf, p...)
	if over := len(t.buf) - tailBytes; over > 0 {
		t.buf = append(t.buf[:0], t.buf[over:]...)
	}
	return len(p), nil
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return strings.TrimSpace(string(t.buf))
}

// command prepares a program without starting it.
func command(ctx context.Context, argv []string) (*exec.Cmd, error) {
	if len(argv) == 0 {
		return nil, errors.New("no program given")
	}
	path, err := Program(argv[0])
	if err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, path, argv[1:]...)
	// Own process group, so that children can be ended too. The parent-death
	// signal is tied to the starting thread; those of Namespace.Do live on.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = 5 * time.Second // a grandchild may hold the output open
	return cmd, nil
}

// Start starts a program in a namespace; name is for messages. It ends at
// Proc.Stop or at the lab's Close.
func (l *Lab) Start(n *Namespace, name string, argv ...string) (*Proc, error) {
	return l.StartEnv(n, name, nil, argv...)
}

// StartEnv is Start with variables ("NAME=value") added to the environment.
func (l *Lab) StartEnv(n *Namespace, name string, env []string, argv ...string) (*Proc, error) {
	cmd, err := command(context.Background(), argv)
	if err != nil {
		return nil, err
	}
	p := &Proc{Name: name, cmd: cmd, out: &tail{}, done: make(chan struct{})}
	cmd.Stdout, cmd.Stderr = p.out, p.out
	cmd.Dir = l.dir
	if len(env) > 0 {
		cmd.Env = append(os.Environ(), env...)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return nil, fmt.Errorf("start %s: the lab is closed", name)
	}
	if err := n.Do(cmd.Start); err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	l.procs = append(l.procs, p)
	go func() {
		p.err = cmd.Wait()
		close(p.done)
	}()
	l.log.Debug("started", "program", name, "pid", cmd.Process.Pid)
	return p, nil
}

// PID returns the process id.
func (p *Proc) PID() int { return p.cmd.Process.Pid }

// Done is closed when the program has ended.
func (p *Proc) Done() <-chan struct{} { return p.done }

// Output returns the end (8 KiB) of what the program has printed so far.
func (p *Proc) Output() string { return p.out.String() }

// Signal sends a signal to the program alone.
func (p *Proc) Signal(s os.Signal) error { return p.cmd.Process.Signal(s) }

// Stop kills the program and its process group and waits for its end. It can
// be called more than once.
func (p *Proc) Stop() {
	select {
	case <-p.done: // its id may be another's by now
		return
	default:
	}
	// Both ways, as the group may already be empty of its leader.
	_ = syscall.Kill(-p.PID(), syscall.SIGKILL)
	_ = p.cmd.Process.Kill()
	<-p.done
}

// Wait waits for the program to end by itself and returns its exit error, or
// ctx's.
func (p *Proc) Wait(ctx context.Context) error {
	select {
	case <-p.done:
		return p.err
	case <-ctx.Done():
		return fmt.Errorf("wait for %s: %w", p.Name, ctx.Err())
	}
}

// Exec runs a program in a namespace to its end and returns what it printed
// on both outputs. When ctx ends it is killed.
func (l *Lab) Exec(ctx context.Context, n *Namespace, argv ...string) ([]byte, error) {
	return l.ExecInput(ctx, n, nil, argv...)
}

// ExecInput is Exec with standard input.
func (l *Lab) ExecInput(ctx context.Context, n *Namespace, input []byte, argv ...string) ([]byte, error) {
	cmd, err := command(ctx, argv)
	if err != nil {
		return nil, err
	}
	var out strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &out
	cmd.Dir = l.dir
	if input != nil {
		cmd.Stdin = strings.NewReader(string(input))
	}
	if err := n.Do(cmd.Start); err != nil {
		return nil, fmt.Errorf("start %s: %w", argv[0], err)
	}
	if err := cmd.Wait(); err != nil {
		if ctx.Err() != nil {
			err = ctx.Err()
		}
		return []byte(out.String()), fmt.Errorf("%s: %w: %s", argv[0], err, lastLine(out.String()))
	}
	return []byte(out.String()), nil
}

func lastLine(s string) string {
	s = strings.TrimSpace(s)
	return s[strings.LastIndexByte(s, '\n')+1:]
}

// readyLimit bounds the start of a server.
const readyLimit = 30 * time.Second

// WaitReady returns when a TCP connection from inside the namespace to addr
// succeeds: the server accepts. It fails at once when the program p (which
// may be nil) ends.
func (l *Lab) WaitReady(ctx context.Context, n *Namespace, addr netip.AddrPort, p *Proc) error {
	ctx, cancel := context.WithTimeout(ctx, readyLimit)
	defer cancel()
	var ended <-chan struct{}
	name := "server"
	if p != nil {
		ended, name = p.done, p.Name
	}
	tick := time.NewTicker(25 * time.Millisecond)
	defer tick.Stop()
	for {
		c, err := n.Dial(ctx, "tcp", addr.String())
		if err == nil {
			return c.Close()
		}
		select {
		case <-ended:
			return fmt.Errorf("%s ended before it was ready on %v: %s", name, addr, p.Output())
		case <-ctx.Done():
			msg := fmt.Errorf("%s is not ready on %v: %w", name, addr, err)
			if p != nil {
				msg = fmt.Errorf("%w; it printed: %s", msg, p.Output())
			}
			return msg
		case <-tick.C:
		}
	}
}
