// SPDX-License-Identifier: Apache-2.0

package status

import (
	"encoding/json"
	"net/netip"
	"testing"
	"time"

	"github.com/earlydrop/earlydrop/loader"
	"github.com/earlydrop/earlydrop/loader/flow"
)

// The JSON of a block is an interface, and reads back as it was.
func TestBlockAsJSON(t *testing.T) {
	key, _ := flow.NewKey(netip.MustParseAddrPort("192.0.2.7:8388"), netip.MustParseAddrPort("10.0.0.2:40000"), flow.TCP, 7, 0)
	since := time.Date(2026, 11, 25, 1, 2, 3, 0, time.UTC)
	b := NewBlock("eth0", &loader.Block{
		Key: key, Since: since, Expires: since.Add(time.Minute), Packets: 3, Bytes: 300, Class: "shadowsocks", Rule: "tunnels", Renewed: 2,
		Action: flow.Limit, Rate: 8000,
	})
	b.Suspended = true
	text, err := json.Marshal(b)
	if err != nil {
		t.Fatal(err)
	}
	want := `{"interface":"eth0","lo":"10.0.0.2:40000","hi":"192.0.2.7:8388","proto":"tcp","vlan":7,"inner_vlan":0,"action":"limit","rate":8000,"class":"shadowsocks",` +
		`"rule":"tunnels","since":"2026-11-25T01:02:03Z","expires":"2026-11-25T01:03:03Z","packets":3,"bytes":300,"suspended":true}`
	if string(text) != want {
		t.Errorf("got  %s\nwant %s", text, want)
	}
	var again Block
	if err := json.Unmarshal(text, &again); err != nil || again != b {
		t.Errorf("read back as %+v, %v", again, err)
	}
}
