// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"github.com/gopacket/gopacket/pcapgo"

	"github.com/earlydrop/earlydrop/test/lab"
)

// transfer is a kind of download that is recorded, so many times.
type transfer struct {
	name    string
	flows   int
	text    bool // else random bytes
	https   bool
	options []string // of curl
}

// downloads are those that the manual has figures of (policy.md): 240 over HTTPS, 80 over HTTP.
var downloads = []transfer{
	{name: "https-1.1", flows: 120, https: true, options: []string{"--http1.1"}},
	{name: "https-2", flows: 60, https: true, options: []string{"--http2"}},
	{name: "https-tls1.2", flows: 60, https: true, options: []string{"--http1.1", "--tls-max", "1.2"}},
	{name: "http-random", flows: 40},
	{name: "http-text", flows: 40, text: true},
}

// Sizes of downloads in bytes; they are drawn so that their logarithms are uniform.
const (
	leastDownload = 128 << 10
	mostDownload  = 4 << 20
)

// roundTrips are the networks of the recording. Each download comes through each.
var roundTrips = []time.Duration{0, 20 * time.Millisecond, 80 * time.Millisecond}

// frameBytes of a frame are recorded. A capture takes 1024, and the numbers of TCP need
// none.
const frameBytes = 2048

// record writes a capture file for each download into a new folder. Sizes and contents
// depend on the seed alone.
func record(ctx context.Context, folder string, seed uint64, downloads []transfer) error {
	if missing := lab.Missing(); missing != "" {
		return fmt.Errorf("record: %s", missing)
	}
	if _, err := lab.Sweep(); err != nil {
		return fmt.Errorf("record: %w", err)
	}
	if err := os.Mkdir(folder, 0o755); err != nil {
		return err
	}
	r := rand.New(rand.NewPCG(seed, 1))
	for i, rtt := range roundTrips {
		if err := recordThrough(ctx, folder, rtt, r, func(d *transfer) int {
			return d.flows*(i+1)/len(roundTrips) - d.flows*i/len(roundTrips)
		}, downloads); err != nil {
			return fmt.Errorf("record, round trip %v: %w", rtt, err)
		}
	}
	return nil
}

// recordThrough records as many flows of each download as part says, through a network
// of one round trip.
func recordThrough(ctx context.Context, folder string, rtt time.Duration, r *rand.Rand, part func(*transfer) int, downloads []transfer) (err error) {
	link := lab.LinkConfig{NoOffload: true, Relay: lab.RelayConfig{Delay: rtt / 2}}
	l, err := lab.New(ctx, lab.Config{ServerLink: link, ClientLink: lab.LinkConfig{NoOffload: true}})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.Close()) }()
	random, text := make([]byte, mostDownload), make([]byte, mostDownload)
	for i := range random {
		random[i] = byte(r.Uint32())
		// Letters, with a space for one of six.
		if text[i] = ' '; r.IntN(6) > 0 {
			text[i] = byte('a' + r.IntN(26))
		}
	}
	nginx, err := l.StartNginx(ctx, lab.NginxConfig{HTTPPort: 80, HTTPSPort: 443, LargeMB: 1, Seed: r.Uint64(),
		Files: map[string][]byte{"random": random, "text": text}})
	if err != nil {
		return err
	}
	for _, d := range downloads {
		for i := range part(&d) {
			size := int(math.Exp(math.Log(leastDownload) + r.Float64()*math.Log(mostDownload/leastDownload)))
			name := fmt.Sprintf("%s-%v-%d.pcap", d.name, rtt, i)
			if err := recordOne(ctx, l, nginx, d, 4+2*(i%2), size, filepath.Join(folder, name)); err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
		}
	}
	return nil
}

// recordOne records one download of so many bytes, by IP version 4 or 6.
func recordOne(ctx context.Context, l *lab.Lab, nginx *lab.Nginx, d transfer, version, size int, path string) (err error) {
	file, err := os.Create(path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	out := bufio.NewWriter(file)
	w := pcapgo.NewWriter(out)
	if err := w.WriteFileHeader(frameBytes, layers.LinkTypeEthernet); err != nil {
		return err
	}
	sniffer, err := lab.NewSniffer(l.Gateway, lab.GatewayClientDev, frameBytes)
	if err != nil {
		return err
	}
	defer sniffer.Close()
	written := make(chan error, 1)
	go func() {
		for {
			f, err := sniffer.Read()
			if errors.Is(err, os.ErrClosed) {
				written <- nil
				return
			}
			if err == nil {
				err = w.WritePacket(gopacket.CaptureInfo{Timestamp: f.Time, CaptureLength: len(f.Data), Length: f.Wire}, f.Data)
			}
			if err != nil {
				written <- err
				return
			}
		}
	}()

	scheme, port, content := "http", nginx.HTTPPort, "/random"
	if d.https {
		scheme, port = "https", nginx.HTTPSPort
	}
	if d.text {
		content = "/text"
	}
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	got := l.Curl(ctx, nil, l.URL(scheme, version, port, content), slices.Concat(d.options, []string{"--range", fmt.Sprintf("0-%d", size-1)})...)
	if got.Err == nil && got.Bytes != int64(size) {
		got.Err = fmt.Errorf("got %d bytes, want %d", got.Bytes, size)
	}
	return errors.Join(got.Err, sniffer.Finish(), <-written, out.Flush())
}
