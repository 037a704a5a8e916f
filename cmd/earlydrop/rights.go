// SPDX-License-Identifier: Apache-2.0

package main

import (
	"log/slog"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/earlydrop/earlydrop/cmd/earlydrop/confine"
	"github.com/earlydrop/earlydrop/loader"
)

// giveUpRights leaves the process what it takes to attach again, to put pins back, to read
// captures in threads that come before others, and to read and write files that are its own.
// A GPU's driver may make any system call. What can't be given up is warned of: traffic goes
// on to be looked at.
func giveUpRights(device string) {
	_ = loader.MountPins() // for interfaces that are waited for, of which each attach tells
	keep, err := loader.Capabilities()
	if !allowRealTime() {
		keep = append(keep, unix.CAP_SYS_NICE) // if it is there
	}
	if err == nil {
		err = confine.To(confine.Keep{Capabilities: keep, AllSystemCalls: strings.HasPrefix(device, "cuda:")})
	}
	if err != nil {
		slog.Warn("not all rights that are not needed could be given up; the work goes on", "error", err)
	}
}

// allowRealTime sees to it that the lowest real-time priority needs no capability, and reports
// whether it could. It is the gateway that tells where that priority can't be had.
func allowRealTime() bool {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_RTPRIO, &limit); err != nil {
		return false
	}
	return limit.Cur > 0 || unix.Setrlimit(unix.RLIMIT_RTPRIO, &unix.Rlimit{Cur: 1, Max: max(limit.Max, 1)}) == nil
}
