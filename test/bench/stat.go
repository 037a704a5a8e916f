// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"
)

// userHZ is the unit of /proc/stat: the kernel always shows it as 100 a second.
const userHZ = 100

// cpuTime is what all CPUs together have spent since boot.
type cpuTime struct {
	Busy    time.Duration // anything but idle; stolen time is left out
	SoftIRQ time.Duration // serving interrupts, hard ones included
}

func (t cpuTime) sub(u cpuTime) cpuTime {
	return cpuTime{t.Busy - u.Busy, t.SoftIRQ - u.SoftIRQ}
}

func readCPUTime() (cpuTime, error) {
	b, err := os.ReadFile("/proc/stat")
	if err != nil {
		return cpuTime{}, err
	}
	return parseCPUTime(string(b))
}

// parseCPUTime reads the sum line of /proc/stat: user, nice, system, idle, iowait,
// irq, softirq, and more that is part of these or stolen.
func parseCPUTime(text string) (cpuTime, error) {
	for line := range strings.Lines(text) {
		fields := strings.Fields(line)
		if len(fields) == 0 || fields[0] != "cpu" {
			continue
		}
		if len(fields) < 8 {
			return cpuTime{}, fmt.Errorf("/proc/stat: %d fields in %q, want at least 8", len(fields), strings.TrimSpace(line))
		}
		var ticks [7]uint64
		for i := range ticks {
			var err error
			if ticks[i], err = strconv.ParseUint(fields[i+1], 10, 53); err != nil {
				return cpuTime{}, fmt.Errorf("/proc/stat: %w", err)
			}
		}
		const tick = time.Second / userHZ
		return cpuTime{
			Busy:    time.Duration(ticks[0]+ticks[1]+ticks[2]+ticks[5]+ticks[6]) * tick,
			SoftIRQ: time.Duration(ticks[5]+ticks[6]) * tick,
		}, nil
	}
	return cpuTime{}, errors.New("/proc/stat: no line of all CPUs")
}

// readProcessTime returns the CPU time of a process and all its threads.
func readProcessTime(pid int) (time.Duration, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	return parseProcessTime(string(b))
}

// parseProcessTime reads fields 14 and 15 of /proc/PID/stat. The name, field 2, is
// in parentheses and may hold anything.
func parseProcessTime(text string) (time.Duration, error) {
	fields := strings.Fields(text[strings.LastIndexByte(text, ')')+1:])
	if len(fields) < 13 {
		return 0, fmt.Errorf("process's stat: unexpected form %q", strings.TrimSpace(text))
	}
	var sum uint64
	for _, f := range fields[11:13] {
		n, err := strconv.ParseUint(f, 10, 53)
		if err != nil {
			return 0, fmt.Errorf("process's stat: %w", err)
		}
		sum += n
	}
	return time.Duration(sum) * (time.Second / userHZ), nil
}

// parseIperf reads what `iperf3 --json` prints on a client and returns the bytes
// that the server received and the time they took.
func parseIperf(text []byte) (bytes float64, d time.Duration, err error) {
	var v struct {
		Error string `json:"error"`
		End   struct {
			Received struct {
				Bytes   float64 `json:"bytes"`
				Seconds float64 `json:"seconds"`
			} `json:"sum_received"`
		} `json:"end"`
	}
	if err := json.Unmarshal(text, &v); err != nil {
		return 0, 0, fmt.Errorf("what iperf3 printed: %w", err)
	}
	if v.Error != "" {
		return 0, 0, fmt.Errorf("iperf3: %s", v.Error)
	}
	r := v.End.Received
	if r.Bytes <= 0 || r.Seconds <= 0 {
		return 0, 0, fmt.Errorf("iperf3: %g bytes received in %g s", r.Bytes, r.Seconds)
	}
	return r.Bytes, time.Duration(r.Seconds * float64(time.Second)), nil
}

// median returns the middle value, the mean of the two middle ones of an even
// number, 0 of none. values is left as it is.
func median(values []float64) float64 {
	if len(values) == 0 {
		return 0
	}
	s := slices.Sorted(slices.Values(values))
	return (s[(len(s)-1)/2] + s[len(s)/2]) / 2
}
