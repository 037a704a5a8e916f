// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bufio"
	"context"
	"fmt"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/earlydrop/earlydrop/test/browser"
	"github.com/earlydrop/earlydrop/test/e2e/rig"
	"github.com/earlydrop/earlydrop/test/lab"
)

// startWeb starts `earlydrop web` for the scene's daemon, and returns the address that it
// says and its process id. Its socket is the daemon's; its network is the machine's own.
func (s *scene) startWeb(args ...string) (url string, pid int) {
	s.t.Helper()
	cmd := exec.CommandContext(s.ctx, s.Binary(), append([]string{"web", "--listen", "127.0.0.1:0", "--control", s.Control()}, args...)...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	cmd.Stderr = os.Stderr
	stdout := must(cmd.StdoutPipe())(s.t)
	if err := cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() {
		_ = cmd.Process.Signal(os.Interrupt)
		if err := cmd.Wait(); err != nil {
			s.t.Errorf("web: %v", err)
		}
	})
	line := must(bufio.NewReader(stdout).ReadString('\n'))(s.t)
	url, _, found := strings.Cut(line, " ")
	if !found || !strings.HasPrefix(url, "http://127.0.0.1:") {
		s.t.Fatalf("it says %q", line)
	}
	return url, cmd.Process.Pid
}

// In a real browser: a tunnel is cut, the page shows it and why, and lets it pass again.
func TestPageShowsWhatIsCut(t *testing.T) {
	t.Parallel()
	s := newScene(t, lab.Config{})
	s.attach("--mode", "enforce", "--history", filepath.Join(t.TempDir(), "history.db"), "--history-captures", "--policy", s.file("web.yaml", "rules: [{name: remote, class: ssh, min_confidence: 0.1, action: drop, ttl: 1h}]\n"))
	token := filepath.Join(t.TempDir(), "token")
	secret := strings.Repeat("f00d", 8)
	if err := os.WriteFile(token, []byte(secret+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	url, pid := s.startWeb("--token-file", token)

	// The process can do nothing but this.
	text := string(must(os.ReadFile(fmt.Sprintf("/proc/%d/status", pid)))(t))
	for _, want := range []string{"CapPrm:\t0000000000000000", "CapEff:\t0000000000000000", "NoNewPrivs:\t1", "Seccomp:\t2"} {
		if !strings.Contains(text, want) {
			t.Errorf("the process has no %q:\n%s", want, text)
		}
	}
	if answer := must(http.Get(url + "api/live"))(t); answer.StatusCode != http.StatusUnauthorized {
		t.Errorf("without the token: %s", answer.Status)
	}

	b := must(browser.Start(s.ctx))(t)
	defer b.Close()
	p := must(b.Open(url, 1280, 1000))(t)
	defer p.Close()
	do := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	do(p.Until(`document.activeElement.name === "token"`))
	do(p.Press(secret + "\r"))
	do(p.Until(`document.getElementById("interfaces").innerText.includes("enforce")`))

	sshd := must(s.StartSSH(s.ctx, 0))(t)
	server := netip.AddrPortFrom(s.ServerAddr(4), sshd.Port)
	ctx, cancel := context.WithCancel(s.ctx)
	cut := make(chan struct{})
	go func() {
		defer close(cut)
		s.SSHTransfer(ctx, sshd, 4, 1<<20) // which waits for what is dropped
	}()
	defer func() { cancel(); <-cut }()
	do(p.Until(fmt.Sprintf(`document.getElementById("events").innerText.includes(%q)`, server)))
	do(p.Until(fmt.Sprintf(`document.getElementById("top").innerText.includes(%q)`, server)))
	do(p.Click(`#events a[href^="#flow/"]`))
	do(p.Until(`document.getElementById("flow").innerText.includes("remote")`))
	do(p.Until(`document.getElementById("flow").innerText.includes("line 1 of ")`))
	do(p.Click(`nav a[href="#pairs"]`))
	do(p.Until(`document.getElementById("pairs-count").innerText.startsWith("0 of 0")`))
	// What is kept may be found a second later.
	do(rig.Until(s.ctx, func() (bool, error) {
		out, err := s.Earlydrop(s.ctx, "events", "--since", "1h", "--json")
		return strings.Contains(out, server.String()), err
	}))
	do(p.Click(`nav a[href="#history"]`))
	do(p.Until(fmt.Sprintf(`document.getElementById("history-list").innerText.includes(%q)`, server)))
	do(p.Click(`#history-list a`))
	do(p.Until(`document.getElementById("flow-explained").innerText.includes("falls without it")`))
	do(p.Until(`document.querySelectorAll("#flow-explained canvas").length >= 3 && !document.querySelector("#flow-explained .worry")`))
	do(p.Click(`nav a[href="#blocks"]`))
	do(p.Until(fmt.Sprintf(`document.getElementById("blocks-list").innerText.includes(%q)`, server)))
	do(p.Click(`#blocks-list button`))
	do(p.Click(`#confirm button[value="yes"]`))
	do(p.Until(`document.getElementById("blocks-count").innerText.startsWith("0 of 0")`))
	if blocks := must(s.Blocks(s.ctx))(t); len(blocks) != 0 {
		t.Errorf("%+v is blocked still", blocks)
	}
	for _, wrong := range p.Wrong() {
		// Before the token was known, and before the capture was written.
		if !strings.Contains(wrong, "401") && !strings.Contains(wrong, "404 (Not Found) "+url+"api/explain?") {
			t.Errorf("in the page: %s", wrong)
		}
	}
}
