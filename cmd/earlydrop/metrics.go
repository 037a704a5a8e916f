// SPDX-License-Identifier: Apache-2.0

package main

import (
	"github.com/urfave/cli/v2"

	"github.com/earlydrop/earlydrop/cmd/earlydrop/metrics"
)

func metricsFlag() cli.Flag {
	return &cli.StringFlag{Name: "metrics", Usage: "serve metrics for Prometheus at `HOST:PORT`, such as 127.0.0.1:9417, under /metrics; whoever reaches it may read them"}
}

// listenMetrics takes the address of --metrics; without the flag it returns nil, which serves
// nothing.
func listenMetrics(c *cli.Context) (*metrics.Server, error) {
	if !c.IsSet("metrics") {
		return nil, nil
	}
	s, err := metrics.Listen(c.String("metrics"))
	if err != nil {
		return nil, badInput("--metrics: %w", err)
	}
	return s, nil
}
