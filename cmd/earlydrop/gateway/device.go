// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"fmt"
	"time"

	"github.com/earlydrop/earlydrop/classifier"
	"github.com/earlydrop/earlydrop/cmd/earlydrop/event"
	"github.com/earlydrop/earlydrop/cmd/earlydrop/status"
)

// tellFailures has an event told when a device fails that computes for an engine.
func (g *Gateway) tellFailures(engine *classifier.Engine) {
	engine.OnFailure(func(f classifier.Failure) {
		g.config.Events.Put(&event.DeviceFailed{
			Time: time.Now(), Device: f.Device, Instead: f.Instead, Model: modelName(engine.Manifest()), Error: f.Err.Error(),
		})
	})
}

// deviceWorry is what is worrying about the device that computes, if anything is.
func (g *Gateway) deviceWorry() []status.Worry {
	f := g.config.Engine.Failure()
	if f == nil {
		return nil
	}
	return []status.Worry{{
		Kind: status.WorryDevice, What: f.Device,
		Text: fmt.Sprintf("%s failed, so %s classifies until the program is started again: %v", f.Device, f.Instead, f.Err),
	}}
}
