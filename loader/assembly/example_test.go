// SPDX-License-Identifier: Apache-2.0

package assembly_test

import (
	"fmt"

	"github.com/earlydrop/earlydrop/loader/assembly"
	"github.com/earlydrop/earlydrop/loader/flow"
)

// A capture file gives the samples that its packets would have given live.
func Example() {
	file, err := assembly.Open("../../test/testdata/ssh.pcap")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer file.Close()
	flows := assembly.New(assembly.Options{}, func(_ *assembly.Flow, s *flow.Sample) {
		fmt.Printf("%s %s > %s: %d bytes of %d packets, %s\n", s.Key.Proto, s.Initiator(), s.Responder(), len(s.Data), len(s.Packets), s.Reason)
	}, nil)
	if err := file.Run(flows, nil); err != nil {
		fmt.Println(err)
	}
	counters := flows.Counters()
	fmt.Println(counters.Packets(), "packets,", counters[assembly.Opened], "connections")
	// Output:
	// tcp 172.104.167.2:58830 > 192.168.44.2:17658: 1024 bytes of 8 packets, full
	// tcp 103.41.216.2:44972 > 192.168.125.2:25884: 1024 bytes of 8 packets, full
	// tcp [2a09:ecde:bd1a:6901::2]:38836 > [2001:db8:7847:b102::2]:465: 1024 bytes of 4 packets, full
	// tcp 172.127.20.2:47776 > 10.194.113.2:8326: 1024 bytes of 8 packets, full
	// tcp 10.111.46.2:60390 > 192.168.23.2:19226: 1024 bytes of 8 packets, full
	// 53 packets, 5 connections
}
