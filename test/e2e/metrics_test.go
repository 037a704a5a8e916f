// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/earlydrop/earlydrop/test/e2e/rig"
	"github.com/earlydrop/earlydrop/test/lab"
)

const packageDir = "../../cmd/earlydrop/package"

// dashboardQueries returns what the dashboard asks Prometheus, by panel.
func dashboardQueries(t *testing.T) map[string][]string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(packageDir, "dashboard.json"))
	if err != nil {
		t.Fatal(err)
	}
	var dashboard struct {
		Panels []struct {
			Title   string
			Targets []struct{ Expr string }
		}
	}
	if err := json.Unmarshal(text, &dashboard); err != nil {
		t.Fatal(err)
	}
	queries := map[string][]string{}
	for _, p := range dashboard.Panels {
		for _, q := range p.Targets {
			// As Grafana fills them in.
			queries[p.Title] = append(queries[p.Title], strings.NewReplacer("$interface", ".*", "$__rate_interval", "1m").Replace(q.Expr))
		}
	}
	return queries
}

// A real Prometheus scrapes a gateway, and every query of the dashboard has an answer.
func TestPrometheusReadsTheMetrics(t *testing.T) {
	t.Parallel()
	s := newScene(t, lab.Config{})
	const metrics, at = "127.0.0.1:9417", "127.0.0.1:9090"
	d := s.attach("--policy", s.file("web.yaml", "rules: [{name: remote, class: ssh, min_confidence: 0.1, action: drop, ttl: 1h}]\n"), "--metrics", metrics, "--history", filepath.Join(s.Dir(), "history.db"))
	sshd := must(s.StartSSH(s.ctx, 0))(t)
	s.SSHTransfer(s.ctx, sshd, 4, 1<<20)
	must(d.Verdict(s.ctx, netip.AddrPortFrom(s.ServerAddr(4), sshd.Port), 0))(t)

	dir := t.TempDir()
	config := filepath.Join(dir, "prometheus.yml")
	text := fmt.Sprintf("global: {scrape_interval: 1s, evaluation_interval: 1s}\nrule_files: [%s]\nscrape_configs: [{job_name: earlydrop, static_configs: [{targets: [%q]}]}]\n",
		must(filepath.Abs(filepath.Join(packageDir, "alerts.yaml")))(t), metrics)
	if err := os.WriteFile(config, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	prometheus := must(s.Command(s.ctx, "prometheus", "--config.file="+config, "--storage.tsdb.path="+filepath.Join(dir, "data"), "--web.listen-address="+at, "--log.level=warn"))(t)
	if err := s.Start(prometheus); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = prometheus.Process.Kill()
		_ = prometheus.Wait()
	})
	// get asks Prometheus, and returns nil while it is not ready.
	get := func(path string, answer any) error {
		out, err := s.Run(s.ctx, "curl", "-s", "--fail", "http://"+at+path)
		if err != nil {
			return err
		}
		if out.Code != 0 {
			return nil
		}
		return json.Unmarshal([]byte(out.Stdout), answer)
	}
	type answer struct {
		Status string
		Data   struct{ Result []json.RawMessage }
	}
	for panel, queries := range dashboardQueries(t) {
		for _, q := range queries {
			var a answer
			err := rig.Until(s.ctx, func() (bool, error) {
				a = answer{}
				err := get("/api/v1/query?query="+url.QueryEscape(q), &a)
				return len(a.Data.Result) > 0, err
			})
			if err != nil {
				t.Errorf("%s: %s: %v, %+v", panel, q, err, a)
			}
		}
	}
	var rules struct {
		Data struct {
			Groups []struct {
				Rules []struct{ Name, Health, LastError, State string }
			}
		}
	}
	if err := rig.Until(s.ctx, func() (bool, error) {
		err := get("/api/v1/rules", &rules)
		done := len(rules.Data.Groups) == 1
		for _, g := range rules.Data.Groups {
			for _, r := range g.Rules {
				done = done && r.Health != "unknown"
			}
		}
		return done, err
	}); err != nil {
		t.Fatal(err)
	}
	for _, r := range rules.Data.Groups[0].Rules {
		if r.Health != "ok" || r.State == "firing" {
			t.Errorf("%s: %s, %s %s", r.Name, r.Health, r.State, r.LastError)
		}
	}
}

func TestAlertRulesAreRight(t *testing.T) {
	t.Parallel()
	if out, err := exec.Command("promtool", "check", "rules", filepath.Join(packageDir, "alerts.yaml")).CombinedOutput(); err != nil {
		t.Errorf("%v: %s", err, out)
	}
}

func TestMetricsPortThatIsTaken(t *testing.T) {
	t.Parallel()
	s := newScene(t, lab.Config{})
	s.attach("--metrics", "127.0.0.1:9417")
	out, err := s.Run(s.ctx, s.Binary(), "attach", "-i", "lo", "--metrics", "127.0.0.1:9417")
	if err != nil || out.Code != 2 || strings.Count(out.Stderr, "\n") != 1 || !strings.Contains(out.Stderr, "--metrics: listen tcp 127.0.0.1:9417: bind: address already in use") {
		t.Errorf("%+v, %v", out, err)
	}
}
