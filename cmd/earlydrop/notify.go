// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"log/slog"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"

	"github.com/earlydrop/earlydrop/cmd/earlydrop/gateway"
)

// tellSystemd tells a systemd that has started the program that it works and, as long as it
// does and where systemd watches that, again and again until ctx ends; then that it ends. It
// does nothing elsewhere.
func tellSystemd(ctx context.Context, g *gateway.Gateway) {
	if sent, err := daemon.SdNotify(false, daemon.SdNotifyReady); !sent {
		if err != nil {
			slog.Warn("systemd can't be told that it is ready", "error", err)
		}
		return
	}
	within, err := daemon.SdWatchdogEnabled(false)
	if err != nil {
		slog.Warn("systemd's watchdog is not served", "error", err)
	}
	var tick <-chan time.Time
	if within > 0 {
		ticker := time.NewTicker(within / 4)
		defer ticker.Stop()
		tick = ticker.C
	}
	for {
		select {
		case <-ctx.Done():
			_, _ = daemon.SdNotify(false, daemon.SdNotifyStopping)
			return
		case <-tick:
			if stalled := g.Stalled(within / 2); stalled != "" {
				slog.Error("systemd is not told that all is well, and will start the program anew", "stalled", stalled)
				continue
			}
			_, _ = daemon.SdNotify(false, daemon.SdNotifyWatchdog)
		}
	}
}
