// SPDX-License-Identifier: Apache-2.0

package control

import (
	"errors"
	"net/http"
	"net/url"
	"testing"

	"github.com/earlydrop/earlydrop/cmd/earlydrop/status"
)

func TestTopIsAsked(t *testing.T) {
	_, c := serve(t, newFake(t))
	for limit, want := range map[int]string{0: "top 50", 1: "top 1", 1000: "top 1000"} {
		top, err := c.Top(within(t), limit)
		if err != nil || top.Policy != want || len(top.Interfaces) != 2 || top.PID == 7 || top.Interfaces[0].PID != top.PID || top.Pairs[0].Detected != 3 {
			t.Errorf("%d: %+v, %v", limit, top, err)
		}
	}
	for _, query := range []url.Values{{"limit": {"0"}}, {"limit": {"-1"}}, {"limit": {"1001"}}, {"limit": {"many"}}, {"limit": {""}}, {"most": {"1"}}} {
		var told *Error
		if err := c.call(within(t), "GET", "/v1/top", query, nil, new(status.Top)); !errors.As(err, &told) || told.Status != http.StatusBadRequest {
			t.Errorf("%v: %v", query, err)
		}
	}
}
