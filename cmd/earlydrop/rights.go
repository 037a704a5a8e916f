// SPDX-License-Identifier: Apache-2.0

package main

import (
	"log/slog"

	"github.com/earlydrop/earlydrop/cmd/earlydrop/confine"
	"github.com/earlydrop/earlydrop/loader"
)

// giveUpRights leaves the process what it takes to attach again, to put pins back, and to
// read and write files that are its own. A GPU's driver may make any system call. What can't
// be given up is warned of: traffic goes on to be looked at.
func giveUpRights(device string) {
	_ = loader.MountPins() // for interfaces that are waited for, of which each attach tells
	keep, err := loader.Capabilities()
	if err == nil {
		err = confine.To(confine.Keep{Capabilities: keep, AllSystemCalls: device != "cpu"})
	}
	if err != nil {
		slog.Warn("not all rights that are not needed could be given up; the work goes on", "error", err)
	}
}
