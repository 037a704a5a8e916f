// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"encoding/binary"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
)

func TestMedian(t *testing.T) {
	for _, tc := range []struct {
		name   string
		values []float64
		want   float64
	}{
		{"none", nil, 0},
		{"one", []float64{7}, 7},
		{"odd, unsorted", []float64{9, 1, 5}, 5},
		{"even", []float64{4, 1, 3, 100}, 3.5},
	} {
		t.Run(tc.name, func(t *testing.T) {
			before := append([]float64(nil), tc.values...)
			if got := median(tc.values); got != tc.want {
				t.Errorf("median of %v is %v, want %v", before, got, tc.want)
			}
			if diff := cmp.Diff(before, tc.values); diff != "" {
				t.Errorf("median changed its input (-before +after):\n%s", diff)
			}
		})
	}
}

// What a process computes is in its time, and in that of all CPUs.
func TestCPUTimeIsCounted(t *testing.T) {
	all, err := readCPUTime()
	if err != nil {
		t.Fatal(err)
	}
	own, err := readProcessTime(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	const least = 50 * time.Millisecond
	for begin := time.Now(); ; {
		now, err := readProcessTime(os.Getpid())
		if err != nil {
			t.Fatal(err)
		}
		if now-own >= least {
			break
		}
		if time.Since(begin) > time.Minute {
			t.Fatalf("the process has computed for %s within a minute", now-own)
		}
	}
	after, err := readCPUTime()
	if err != nil {
		t.Fatal(err)
	}
	if d := after.sub(all); d.Busy < least/2 || d.SoftIRQ < 0 || d.SoftIRQ > d.Busy {
		t.Errorf("all CPUs were busy for %s, %s of them with interrupts", d.Busy, d.SoftIRQ)
	}
}

func TestParseIperf(t *testing.T) {
	text := `{"start": {}, "intervals": [], "end": {
		"sum_sent": {"bytes": 9000, "seconds": 2},
		"sum_received": {"start": 0, "bytes": 8000, "seconds": 2.5, "bits_per_second": 25600}}}`
	n, d, err := parseIperf([]byte(text))
	if err != nil || n != 8000 || d != 2500*time.Millisecond {
		t.Errorf("got %v bytes in %v, %v; want 8000 in 2.5s", n, d, err)
	}
	for bad, want := range map[string]string{
		"":     "what iperf3 printed",
		"boom": "what iperf3 printed",
		`{}`:   "0 bytes",
		`{"error": "unable to connect to server"}`:                 "unable to connect",
		`{"end": {"sum_received": {"bytes": 8000, "seconds": 0}}}`: "in 0 s",
	} {
		if _, _, err := parseIperf([]byte(bad)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: error %v, want one with %q", bad, err, want)
		}
	}
}

func TestFrameIsWhatItIsMeantToBe(t *testing.T) {
	src, dst := netip.MustParseAddr("10.77.1.2"), netip.MustParseAddr("10.77.2.2")
	srcMAC, dstMAC := net.HardwareAddr{2, 0, 0, 0, 0, 1}, net.HardwareAddr{2, 0, 0, 0, 0, 2}
	frame, err := buildFrame(srcMAC, dstMAC, src, dst, droppedPort)
	if err != nil {
		t.Fatal(err)
	}
	p := gopacket.NewPacket(frame, layers.LayerTypeEthernet, gopacket.Default)
	if e := p.ErrorLayer(); e != nil {
		t.Fatal(e.Error())
	}
	eth := p.Layer(layers.LayerTypeEthernet).(*layers.Ethernet)
	ip := p.Layer(layers.LayerTypeIPv4).(*layers.IPv4)
	udp := p.Layer(layers.LayerTypeUDP).(*layers.UDP)
	if !bytes.Equal(eth.SrcMAC, srcMAC) || !bytes.Equal(eth.DstMAC, dstMAC) {
		t.Errorf("from %v to %v", eth.SrcMAC, eth.DstMAC)
	}
	if !ip.SrcIP.Equal(src.AsSlice()) || !ip.DstIP.Equal(dst.AsSlice()) || ip.TTL < 2 {
		t.Errorf("from %v to %v, time to live %d", ip.SrcIP, ip.DstIP, ip.TTL)
	}
	if udp.SrcPort != firstPort || udp.DstPort != droppedPort || len(udp.Payload) != frameLen-42 {
		t.Errorf("from port %d to %d, %d bytes", udp.SrcPort, udp.DstPort, len(udp.Payload))
	}
	// A right checksum makes the header's sum all ones.
	var sum uint32
	for i := 14; i < 34; i += 2 {
		sum += uint32(binary.BigEndian.Uint16(frame[i:]))
	}
	if sum = sum&0xffff + sum>>16; sum != 0xffff {
		t.Errorf("the IP header sums up to %#x", sum)
	}
	if _, err := buildFrame(srcMAC, nil, src, dst, 1); err == nil {
		t.Error("no error for an empty address")
	}
	if _, err := buildFrame(srcMAC, dstMAC, src, netip.MustParseAddr("::1"), 1); err == nil {
		t.Error("no error for an IPv6 address")
	}
}

// Figures for the table of two candidates, of which the second drops.
func TestReportTakesMediansAndRatios(t *testing.T) {
	round := func(passed, arrived uint64, drops bool, gbits float64) measurement {
		return measurement{
			Passed:  packets{Sent: passed, Arrived: passed, Seconds: 2, SoftIRQ: 1},
			Dropped: packets{Sent: 1e6, Arrived: arrived, Seconds: 1, SoftIRQ: 0.5, drops: drops},
			Bulk:    bulk{Bytes: gbits * 1e9 / 8, Seconds: 1, Busy: 1},
		}
	}
	rep := &report{Candidates: []row{
		{Name: nothing, Rounds: []measurement{round(4e6, 5e5, false, 4), round(2e6, 5e5, false, 8), round(9e6, 5e5, false, 8)}},
		{Name: enforce, Drops: true, Rounds: []measurement{round(1e6, 0, true, 2), round(2e6, 0, true, 2), round(3e6, 0, true, 2)}},
	}}
	rep.finish()
	base, other := rep.Candidates[0], rep.Candidates[1]
	if base.Median.PassedRate != 2e6 || base.Median.PassedNS != 250 || base.Median.DroppedRate != 5e5 || base.Median.DroppedNS != 1000 {
		t.Errorf("medians: %+v", base.Median)
	}
	if x := other.Ratio; x.PassedRate != 0.5 || x.DroppedRate != 2 || x.DroppedNS != 0.5 || x.BulkGbits != 0.25 || x.BulkPerGiB != 4 {
		t.Errorf("ratios: %+v", x)
	}
	// 1, 2 and 4.5 million a second.
	if got := rep.spread(func(m measurement) float64 { return m.Passed.rate() }); got != 1.75 {
		t.Errorf("spread %v, want 1.75", got)
	}
	var out strings.Builder
	rep.print(&out)
	for _, want := range []string{nothing, enforce, "2.000", "0.25", "up to 175 %"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("the table lacks %q:\n%s", want, out.String())
		}
	}
}

func TestLatencyPercentiles(t *testing.T) {
	var values []float64
	for i := 1000; i > 0; i-- {
		values = append(values, float64(i))
	}
	for _, tt := range []struct {
		times         []float64
		p50, p99, max float64
	}{
		{nil, 0, 0, 0},
		{[]float64{7}, 7, 7, 7},
		{[]float64{3, 1}, 1, 3, 3},
		{values, 500, 990, 1000},
	} {
		n := len(tt.times)
		l := latency{times: tt.times, late: tt.times}
		l.finish()
		if l.Verdicts != n || l.P50 != tt.p50 || l.P99 != tt.p99 || l.Max != tt.max || l.Late50 != tt.p50 || l.Late99 != tt.p99 {
			t.Errorf("of %d values: %+v, want %v %v %v", n, l, tt.p50, tt.p99, tt.max)
		}
	}
}

func TestDistributionIsDrawn(t *testing.T) {
	all := []latency{{Reader: "first"}, {Reader: "second"}}
	for i := range 10_000 {
		all[0].times, all[1].times = append(all[0].times, float64(i)/100), append(all[1].times, 50)
	}
	rows := strings.Split(distribution(all), "\n")
	column := func(row, mark string) int {
		at := strings.Index(row, mark)
		if at < 0 {
			t.Fatalf("no %q in %q of\n%s", mark, row, strings.Join(rows, "\n"))
		}
		return utf8.RuneCountInString(row[:at])
	}
	axis := rows[17]
	if least := column(axis, "least"); column(axis, "90 %") != least+decade || column(axis, "99 %") != least+2*decade || column(axis, "99.9 %") != least+3*decade {
		t.Errorf("the axis: %q", axis)
	}
	// Nine tenths of what is spread from 0 to 100 us take up to 90 us, all of the other take 50.
	if at := column(rows[1], "*"); !strings.Contains(rows[1], " 94 ") || at < column(axis, "90 %")-2 || at > column(axis, "90 %")+2 {
		t.Errorf("90 us are exceeded at %d of\n%s", at, strings.Join(rows, "\n"))
	}
	if !strings.Contains(rows[8], " 50 ") || strings.Count(rows[8], "o") < 3*decade {
		t.Errorf("the second reader's: %q", rows[8])
	}
}

func TestOptionsAreChecked(t *testing.T) {
	good := options{rounds: 3, length: time.Second, connections: 50, cores: 1}
	if err := good.check(nil); err != nil {
		t.Error(err)
	}
	for _, tc := range []struct {
		opts options
		args []string
		want string
	}{
		{good, []string{"eth0"}, `"eth0"`},
		{options{rounds: 0, length: time.Second}, nil, "rounds 0"},
		{options{rounds: 3, length: time.Millisecond}, nil, "time 1ms"},
		{options{rounds: 3, length: time.Second, cores: 1}, nil, "connections 0"},
		{options{rounds: 3, length: time.Second, connections: 50}, nil, "cores 0"},
	} {
		if err := tc.opts.check(tc.args); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("error %v, want one with %s", err, tc.want)
		}
	}
}
