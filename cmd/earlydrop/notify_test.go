// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"net"
	"path/filepath"
	"testing"
	"time"

	"github.com/earlydrop/earlydrop/classifier/onnx"
	"github.com/earlydrop/earlydrop/cmd/earlydrop/gateway"
)

// What systemd would be told comes in order, and the watchdog is served.
func TestSystemdIsTold(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "notify")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: socket, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	engine, err := onnx.OpenFile(tinyModel, onnx.Options{Workers: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer engine.Close()
	g, err := gateway.New(gateway.Config{Engine: engine})
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv("NOTIFY_SOCKET", socket)
	t.Setenv("WATCHDOG_USEC", "400000")
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { tellSystemd(ctx, g); close(done) }()
	next := func() string {
		t.Helper()
		_ = conn.SetReadDeadline(time.Now().Add(time.Minute))
		b := make([]byte, 100)
		n, err := conn.Read(b)
		if err != nil {
			t.Fatal(err)
		}
		return string(b[:n])
	}
	for _, want := range []string{"READY=1", "WATCHDOG=1", "WATCHDOG=1"} {
		if got := next(); got != want {
			t.Errorf("told %q, want %q", got, want)
		}
	}
	cancel()
	<-done
	for got := next(); got != "STOPPING=1"; got = next() {
		if got != "WATCHDOG=1" {
			t.Fatalf("told %q", got)
		}
	}
}

func TestWithoutSystemdNobodyIsTold(t *testing.T) {
	t.Setenv("NOTIFY_SOCKET", "")
	tellSystemd(context.Background(), nil) // returns at once
}
