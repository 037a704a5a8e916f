// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/netip"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/earlydrop/earlydrop/loader/flow"
	"github.com/earlydrop/earlydrop/policy"
)

// failing writes to buf as long as err is nil; on err it writes half.
type failing struct {
	buf   bytes.Buffer
	err   error
	tries int
}

func (f *failing) Write(p []byte) (int, error) {
	f.tries++
	if f.err != nil {
		n, _ := f.buf.Write(p[:len(p)/2])
		return n, f.err
	}
	return f.buf.Write(p)
}

func TestOutputOutlivesItsFailures(t *testing.T) {
	for _, tt := range []struct {
		err   error
		want  string
		tries int
	}{
		{nil, "one\ntwo\nthree\n", 3},
		// The disk is full for a while: the cut line gets an end, no other is lost.
		{unix.ENOSPC, "one\ntw\nthree\n", 4},
		// The reader is gone for good.
		{unix.EPIPE, "one\ntw", 2},
		{fmt.Errorf("write: %w", unix.EPIPE), "one\ntw", 2},
	} {
		f := &failing{}
		o := &output{to: f}
		for i, line := range []string{"one\n", "two\n", "three\n"} {
			f.err = nil
			if i == 1 {
				f.err = tt.err
			}
			if n, err := io.WriteString(o, line); n != len(line) || err != nil {
				t.Errorf("%v: wrote %d, %v", tt.err, n, err)
			}
		}
		if got := f.buf.String(); got != tt.want || f.tries != tt.tries {
			t.Errorf("%v: %q after %d writes, want %q after %d", tt.err, got, f.tries, tt.want, tt.tries)
		}
	}
}

func TestVerdictEventSaysThatAFlowIsMidStream(t *testing.T) {
	var s flow.Sample
	s.Reset()
	s.Key, s.InitiatorIsLo = flow.NewKey(netip.MustParseAddrPort("10.0.0.1:1000"), netip.MustParseAddrPort("10.9.0.1:443"), flow.TCP, 0, 0)
	p, err := policy.Parse("p.yaml", []byte("rules: [{name: all, class: v2ray, min_confidence: 0.5, action: drop, ttl: 1m}]"), nil)
	if err != nil {
		t.Fatal(err)
	}
	result := flow.Result{Class: "v2ray", Confidence: 0.9}
	for _, midStream := range []bool{false, true} {
		s.MidStream = midStream
		e := newVerdictEvent(&daemon{mode: policy.Enforce}, &s, result, p.Decide(&s.Meta, result), !midStream, testStart)
		line, err := json.Marshal(e)
		if err != nil {
			t.Fatal(err)
		}
		var text bytes.Buffer
		if err := (&sinks{}).print(&text, &e); err != nil {
			t.Fatal(err)
		}
		if midStream != strings.Contains(string(line), `"mid_stream":true`) || midStream != strings.Contains(string(line), `"reason":"mid-stream"`) ||
			midStream == strings.Contains(string(line), `"decision":"drop"`) {
			t.Errorf("mid-stream %v: %s", midStream, line)
		}
		if midStream != strings.Contains(text.String(), ", mid-stream  mid-stream all") || midStream == strings.Contains(text.String(), "drop ") {
			t.Errorf("mid-stream %v: %s", midStream, &text)
		}
	}
}
