// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"
	"testing"

	"github.com/earlydrop/earlydrop/cmd/earlydrop/event"
	"github.com/earlydrop/earlydrop/test/e2e/rig"
	"github.com/earlydrop/earlydrop/test/lab"
)

// Fields that bpftool has to show by name: of the key, and of the value. Of maps that
// are not listed it has to show some field.
var mapFields = map[string][2][]string{
	"attachment":      {nil, {"layout_version", "pid", "ingress", "xdp_mode", "egress", "model", "policy"}},
	"blocked":         {flowKey, {"since_ns", "expires_ns", "packets", "bytes", "class", "rule", "action", "rate", "renewed", "next_lo"}},
	"collecting":      {flowKey, {"slot", "generation"}},
	"daemon_counters": {nil, {"name", "value"}},
	"counters":        {nil, {"packets_ingress", "dropped_packets", "ring_full"}},
	"fragments":       {{"from_addr", "to_addr", "id", "vlan"}, {"time_ns", "source", "dest"}},
	"mode":            {nil, {"enforce"}},
	"exempt":          {{"prefixlen", "addr"}, {"exempt"}},
	"pairs":           {{"initiator", "server", "port", "vlan", "proto"}, {"expires_ns", "flows", "packets", "bytes", "last_ns", "action", "rate", "class", "rule"}},
	"flows":           {flowKey, {"last_ns", "verdict"}},
	"handshakes":      {nil, {"bytes", "packet_count", "packets", "data"}},
	"syns":            {nil, {"key", "state", "start_ns", "first", "latest"}},
	"slots":           {nil, {"last_ns", "sample"}},
}

var flowKey = []string{"lo_addr", "hi_addr", "lo_port", "hi_port", "vlan", "proto"}

// Kinds of map that have no keys: bpftool prints no fields of them.
var keyless = []string{"free_slots", "free_tcp_slots", "samples"}

func TestBpftoolShowsEveryMapByFieldNames(t *testing.T) {
	t.Parallel()
	s := newScene(t, lab.Config{ServerLink: slow})
	d := s.attach("--policy", s.file("maps.yaml", fmt.Sprintf(`mode: enforce
allow:
  - cidr: 203.0.113.0/24
rules:
  - name: tunnels
    class: [%s]
    proto: tcp
    action: drop
    ttl: 10m
    evidence: {flows: 2, share: 0.1, within: 1h}
`, strings.Join(tunnelClasses, ", "))))
	tun := must(s.StartShadowsocks(s.ctx, lab.ShadowsocksConfig{}))(t)
	var v *event.Verdict
	for n := 0; v == nil || v.Scope != "pair"; n++ {
		if n == 2*tries {
			t.Fatalf("%d connections, and their pair is not treated", n)
		}
		s.download(tun)
		v = must(d.Verdict(s.ctx, tun.Server, n))(t)
	}
	if r := s.Curl(s.ctx, nil, s.URL("http", 4, s.web.HTTPPort, "/1k")); r.Err != nil {
		t.Fatal(r.Err)
	}

	// The kernel was told of the flow that passes.
	err := rig.Until(s.ctx, func() (bool, error) {
		out, err := s.Run(s.ctx, "bpftool", "map", "dump", "pinned", rig.PinDir+"/flows")
		return strings.Contains(out.Stdout, `"verdict": "VERDICT_PASS"`), err
	})
	if err != nil {
		t.Fatalf("no flow has the verdict that it passes: %v", err)
	}

	pins, err := s.Pins()
	if err != nil {
		t.Fatal(err)
	}
	var seen []string
	for _, pin := range pins {
		name := path.Base(pin)
		if !strings.HasPrefix(pin, "/earlydrop/"+rig.Device+"/") || strings.HasPrefix(name, "link_") {
			continue
		}
		seen = append(seen, name)
		if len(name) > 15 {
			t.Errorf("bpftool cuts the name of map %s", name)
		}
		if slices.Contains(keyless, name) {
			continue
		}
		var key, value []string
		err := rig.Until(s.ctx, func() (ok bool, err error) {
			// Flows without a verdict fall idle, so each try makes them anew.
			if err := s.silentFlows(); err != nil {
				return false, err
			}
			key, value, ok, err = s.firstEntry(name)
			if _, known := mapFields[name]; !ok && !known && err == nil {
				err = errors.New("it is empty, and this test knows of nothing that fills it")
			}
			return ok, err
		})
		if err != nil {
			t.Fatalf("bpftool map dump of %s: %v", name, err)
		}
		t.Logf("%s: key %v, value %v", name, key, value)
		if len(value) == 0 {
			t.Errorf("%s shows no field of its value", name)
		}
		for i, got := range [][]string{key, value} {
			for _, want := range mapFields[name][i] {
				if !slices.Contains(got, want) {
					t.Errorf("%s shows no field %s: key %v, value %v", name, want, key, value)
				}
			}
		}
	}
	for _, want := range slices.Concat(slices.Sorted(maps.Keys(mapFields)), keyless) {
		if !slices.Contains(seen, want) {
			t.Errorf("map %s is not pinned: %v", want, seen)
		}
	}

	// What stands in the block is what the verdict said.
	out := must(s.Run(s.ctx, "bpftool", "map", "dump", "pinned", rig.PinDir+"/blocked"))(t)
	for _, w := range []string{`"rule": "tunnels"`, fmt.Sprintf(`"class": %q`, v.Likeliest), `"proto": 6`, fmt.Sprintf(`_port": %d`, v.Src.Port()), fmt.Sprintf(`_port": %d`, v.Dst.Port())} {
		if !strings.Contains(out.Stdout, w) {
			t.Errorf("the dump of blocked lacks %s:\n%s", w, out.Stdout)
		}
	}
	s.stop(d)
}

// silentFlows leaves one connection without payload, one with a single byte, and a datagram in
// fragments.
func (s *scene) silentFlows() error {
	address := strings.TrimPrefix(s.URL("", 4, s.web.HTTPPort, ""), "://")
	for _, payload := range []string{"", "G"} {
		c, err := s.Client.Dial(s.ctx, "tcp", address)
		if err != nil {
			return err
		}
		s.t.Cleanup(func() { c.Close() })
		if _, err := c.Write([]byte(payload)); err != nil {
			return err
		}
	}
	c, err := s.Client.Dial(s.ctx, "udp", address)
	if err != nil {
		return err
	}
	_, err = c.Write(make([]byte, 4000))
	return errors.Join(err, c.Close())
}

// firstEntry returns the names of the fields of the first entry that bpftool dumps
// of a map: of key and value, where they are structs. ok is false for an empty map,
// and where the entry went between the look at its key and the look at its value:
// bpftool prints an error in its place, and no fields.
func (s *scene) firstEntry(name string) (key, value []string, ok bool, err error) {
	cmd, err := s.Command(s.ctx, "bpftool", "--json", "map", "dump", "pinned", rig.PinDir+"/"+name)
	if err != nil {
		return nil, nil, false, err
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return nil, nil, false, err
	}
	if err := s.Start(cmd); err != nil {
		return nil, nil, false, err
	}
	// A dump of all captures takes long; its first entry is enough.
	defer func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}()
	var entry struct {
		Formatted struct {
			Key    any `json:"key"`
			Value  any `json:"value"`
			Values []struct {
				Value any `json:"value"`
			} `json:"values"` // of a per-CPU map
		} `json:"formatted"`
	}
	dec := json.NewDecoder(stdout)
	if _, err := dec.Token(); err != nil || !dec.More() {
		return nil, nil, false, err
	}
	if err := dec.Decode(&entry); err != nil {
		return nil, nil, false, err
	}
	f := entry.Formatted
	if len(f.Values) > 0 {
		f.Value = f.Values[0].Value
	}
	if f.Value == nil {
		return nil, nil, false, nil
	}
	return fieldNames(f.Key), fieldNames(f.Value), true, nil
}

func fieldNames(v any) []string {
	fields, _ := v.(map[string]any)
	return slices.Sorted(maps.Keys(fields))
}
