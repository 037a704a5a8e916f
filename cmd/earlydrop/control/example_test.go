// SPDX-License-Identifier: Apache-2.0

package control_test

import (
	"context"
	"fmt"
	"net/netip"
	"time"

	"github.com/earlydrop/earlydrop/cmd/earlydrop/control"
	"github.com/earlydrop/earlydrop/cmd/earlydrop/event"
	"github.com/earlydrop/earlydrop/loader/flow"
)

// A flow that a program suspects is dropped for ten minutes, and what is dropped from then on
// is printed.
func Example() {
	ctx := context.Background()
	c := control.NewClient(control.DefaultPath)
	defer c.Close()
	key, _ := flow.NewKey(netip.MustParseAddrPort("10.0.0.2:40000"), netip.MustParseAddrPort("192.0.2.7:8388"), flow.TCP, 0, 0)
	if _, err := c.Block(ctx, "eth0", key, 10*time.Minute); err != nil {
		fmt.Println(err)
		return
	}
	drops, err := c.Events(ctx, &control.EventFilter{Decision: []string{"drop"}})
	if err != nil {
		fmt.Println(err)
		return
	}
	for e, err := range drops {
		if err != nil {
			fmt.Println(err)
			return
		}
		if v, ok := e.(*event.Verdict); ok {
			fmt.Println(v.Src, v.Dst, v.Called())
		}
	}
}
