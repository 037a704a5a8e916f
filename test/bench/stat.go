// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"github.com/prometheus/procfs"
)

// cpuTime is what all CPUs together have spent since boot.
type cpuTime struct {
	Busy    time.Duration // anything but idle; stolen time is left out
	SoftIRQ time.Duration // serving interrupts, hard ones included
}

func (t cpuTime) sub(u cpuTime) cpuTime {
	return cpuTime{t.Busy - u.Busy, t.SoftIRQ - u.SoftIRQ}
}

func readCPUTime() (cpuTime, error) {
	fs, err := procfs.NewDefaultFS()
	if err != nil {
		return cpuTime{}, err
	}
	s, err := fs.Stat()
	if err != nil {
		return cpuTime{}, err
	}
	all := s.CPUTotal
	return cpuTime{
		Busy:    seconds(all.User + all.Nice + all.System + all.IRQ + all.SoftIRQ),
		SoftIRQ: seconds(all.IRQ + all.SoftIRQ),
	}, nil
}

func seconds(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }

// readProcessTime returns the CPU time of a process and all its threads.
func readProcessTime(pid int) (time.Duration, error) {
	p, err := procfs.NewProc(pid)
	if err != nil {
		return 0, err
	}
	s, err := p.Stat()
	return seconds(s.CPUTime()), err
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
