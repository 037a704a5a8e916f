// SPDX-License-Identifier: Apache-2.0

package flow_test

import (
	"bytes"
	"crypto/tls"
	"math/rand/v2"
	"net"
	"strings"
	"testing"

	"github.com/earlydrop/earlydrop/loader/flow"
)

// clientHello is what Go's TLS begins with.
func clientHello(t *testing.T) []byte {
	t.Helper()
	a, b := net.Pipe()
	defer b.Close()
	go func() {
		_ = tls.Client(a, &tls.Config{ServerName: "example.org"}).Handshake()
		_ = a.Close()
	}()
	hello := make([]byte, 4096)
	n, err := b.Read(hello)
	if err != nil {
		t.Fatal(err)
	}
	return hello[:n]
}

func TestLooksRandomTellsOrdinaryBeginnings(t *testing.T) {
	random := make([]byte, 1400)
	source := rand.NewChaCha8([32]byte{7})
	if _, err := source.Read(random); err != nil {
		t.Fatal(err)
	}
	with := func(start string) []byte { return append([]byte(start), random[len(start):]...) }
	for _, tt := range []struct {
		name    string
		payload []byte
		want    bool
	}{
		{"random", random, true},
		{"little of it", random[:32], true},
		{"too little to tell", random[:31], false},
		{"nothing", nil, false},
		{"a ClientHello", clientHello(t), false},
		{"a record of TLS, random behind it", with("\x16\x03\x01"), false},
		{"SSH", with("SSH-2.0-x\r\n"), false},
		{"a GET, random behind it", with("GET "), false},
		{"HTTP/2", with("PRI * HTTP/2.0\r\n"), false},
		{"text, random behind it", with("\x20BitTorrent protocol"), false},
		{"text", []byte(strings.Repeat("EHLO mail.example.org\r\n", 20)), false},
		{"base64", []byte(strings.Repeat("QUJDREVGR0hJSktMTU5PUFFSU1RVVldYWVo", 9)), false},
		{"zeros", make([]byte, 300), false},
		{"ones", bytes.Repeat([]byte{0xff}, 300), false},
		{"its length, random behind it", with("\x05\x78"), false},
		{"the length of what follows, random behind it", with("\x05\x76"), false},
		{"another length, random behind it", with("\x05\x77"), true},
		{"two zeros at the start, random behind them", with("\x91\x00\xa3\x7f\xe1\x88\x12\x00"), false},
		{"one zero at the start, random behind it", with("\x91\x00\xa3\x7f\xe1\x88\x12\xfe\x00\x00"), true},
		{"eight bytes of ones, random behind them", with(strings.Repeat("\xff", 8)), false},
		{"half of its bits, all printable", bytes.Repeat([]byte{0x55}, 300), false},
		{"half of its bits, none printable", bytes.Repeat([]byte{0xaa}, 300), false},
	} {
		if got := flow.LooksRandom(tt.payload, len(tt.payload)); got != tt.want {
			t.Errorf("%s: %v", tt.name, got)
		}
	}
	// Of random payloads of any length nearly all look so.
	looks := 0
	const payloads = 20_000
	for i := range payloads {
		payload := make([]byte, 32+i%400)
		if _, err := source.Read(payload); err != nil {
			t.Fatal(err)
		}
		if flow.LooksRandom(payload, len(payload)) {
			looks++
		}
	}
	if looks < payloads*998/1000 {
		t.Errorf("%d of %d random payloads look random", looks, payloads)
	}
	t.Logf("%d of %d random payloads look random", looks, payloads)
}
