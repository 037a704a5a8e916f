// SPDX-License-Identifier: Apache-2.0

package assembly

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// dgrams writes datagrams as: direction, payload bytes, "@" milliseconds (as before), and
// ",in" or ",out" for the side.
func dgrams(t *testing.T, text string) (all []at) {
	t.Helper()
	ms := 0
	for word := range strings.FieldsSeq(text) {
		p := at{}
		word, side, _ := strings.Cut(word, ",")
		switch side {
		case "in":
			p.side = SideInbound
		case "out":
			p.side = SideOutbound
		case "":
		default:
			t.Fatal(word)
		}
		var n int
		if at := strings.IndexByte(word, '@'); at >= 0 {
			if _, err := fmt.Sscan(word[at+1:], &ms); err != nil {
				t.Fatal(err)
			}
			word = word[:at]
		}
		if _, err := fmt.Sscan(word[1:], &n); err != nil {
			t.Fatal(err)
		}
		p.ms, p.frame = ms, udp4(word[0] == '>', n)
		all = append(all, p)
	}
	return all
}

// One side is not enough: a capture waits until the other side has answered.
func TestUDPFlowsBeginWhenBothSidesHaveSpoken(t *testing.T) {
	for _, tt := range []struct {
		name, datagrams string
		samples         []string
		counters        string
	}{
		{"a query and its answer", ">10 <20@5", []string{"40000 end 114 5ms: >52@0 <62@5"}, "udp_waiting 1"},
		{"nobody answers", ">10 >20@1 >30@2", nil, "udp_waiting 1, udp_unanswered 1"},
		{"a whole capture, and nobody answers", ">1472 >1472", nil, "udp_waiting 1, udp_unanswered 1"},
		{"a whole capture, and an answer", ">1472 >1472 <1@3", []string{"40000 full 1024 3ms: >1024/1514@0"}, "udp_waiting 1"},
		{"the answer fills it", ">10 <1400@3", []string{"40000 full 1024 3ms: >52@0 <972/1442@3"}, "udp_waiting 1"},
		{"an empty answer", ">10 <0@5", []string{"40000 end 94 5ms: >52@0 <42@5"}, "udp_waiting 1"},
		{"an empty datagram asks nothing", ">0 <10@5 <10@6", nil, "header_only 1, udp_waiting 1, udp_unanswered 1"},
		{"idle time does not end the wait", ">10 >20@9000 <20@20000", []string{"40000 end 176 20000ms: >52@0 >62@9000 <62@20000"}, "udp_waiting 1"},
		{"answered at the last moment", ">10 <20@29999", []string{"40000 end 114 29999ms: >52@0 <62@29999"}, "udp_waiting 1"},
		{"answered too late", ">10 <20@30000", nil, "udp_waiting 2, udp_unanswered 2"},
		{"answered too late, what comes then is not the beginning", ">10 <20@30000 >11@30005", []string{"443 end 115 5ms: resumed >62@0 <53@5"}, "udp_waiting 2, udp_unanswered 1"},
		{"one side goes on for long", ">10 >11@20000 >12@31000 <20@32000", []string{"40000 end 116 1000ms: resumed >54@0 <62@1000"}, "udp_waiting 2, udp_unanswered 1"},
		{"one side comes back after very long", ">10 >12@700000 <20@700001", []string{"40000 end 116 1ms: >54@0 <62@1"}, "udp_waiting 2, udp_unanswered 1"},
		{"silent, and one side speaks again", ">1000 <1000 >1@700000 >1@700001", []string{"40000 full 1024 0ms: >1024/1042@0"}, "udp_waiting 2, udp_unanswered 1"},
		{"silent, one side speaks again, and again", ">1000 <1000 >1@700000 >2@731000 <3@731001", []string{"40000 full 1024 0ms: >1024/1042@0", "40000 end 89 1ms: resumed >44@0 <45@1"}, "udp_waiting 3, udp_unanswered 1"},

		{"from the right sides", ">10,out <20@5,in", []string{"40000 end 114 5ms: >52@0 <62@5"}, "udp_waiting 1"},
		{"the answer comes from the asker's side", ">10,in <20@5,in <21@6,in", nil, "udp_waiting 2, udp_unanswered 2"},
		{"a forged question does not hide the real one", ">9,in >10,out <20@5,in", []string{"40000 end 114 5ms: >52@0 <62@5"}, "udp_waiting 2, udp_unanswered 1"},
		{"a forged answer does not hide the real one", ">10,out <9@1,out <20@5,in", []string{"40000 end 114 5ms: >52@0 <62@5"}, "udp_waiting 2, udp_unanswered 1"},
		{"forged datagrams do not join", ">10,out <20@5,in <99@6,out >99@7,in >11@8,out", []string{"40000 end 167 8ms: >52@0 <62@5 >53@8"}, "wrong_side 2, udp_waiting 1"},
		{"a question that is sent out again", ">10,in >10@1,out <20@2,in <20@3,out", nil, "reflected 2, udp_waiting 2, udp_unanswered 2"},
		{"the same, and then the answer", ">10,in >10@1,out <21@3,out", []string{"40000 end 115 3ms: >52@0 <63@3"}, "reflected 1, udp_waiting 1"},
		{"what comes in does not leave a second later", ">10,in <20@5,in <20@1006,out", []string{"40000 end 114 1006ms: >52@0 <62@1006"}, "udp_waiting 2, udp_unanswered 1"},
		{"sent out again while the flow is captured", ">10,in <20@5,out >11@6,in >11@7,out", []string{"40000 end 167 6ms: >52@0 <62@5 >53@6"}, "reflected 1, udp_waiting 1"},
		{"a side that is not known", ">10,out <20@5", []string{"40000 end 114 5ms: >52@0 <62@5"}, "udp_waiting 1"},
		{"the asker's side is not known", ">10 <20@5,in", []string{"40000 end 114 5ms: >52@0 <62@5"}, "udp_waiting 1"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			samples, counters := run(t, Options{}, dgrams(t, tt.datagrams))
			if diff := cmp.Diff(tt.samples, samples); diff != "" {
				t.Errorf("samples (-want +got):\n%s", diff)
			}
			if counters != tt.counters {
				t.Errorf("counters %q, want %q", counters, tt.counters)
			}
		})
	}
}

// Strangers push out strangers, the oldest first.
func TestUDPFlowsThatWaitAreBounded(t *testing.T) {
	var packets []at
	for i := range maxWaiting + 10 {
		src := netip.AddrPortFrom(netip.AddrFrom4([4]byte{11, byte(i >> 16), byte(i >> 8), byte(i)}), 9)
		packets = append(packets, at{frame: eth(ip(src, server4, 17, udpDgram(src, server4, payload(1))))})
		if i == maxWaiting-1 { // the second flow goes on
			packets = append(packets, packets[1])
		}
	}
	for _, i := range []int{0, 1, 2, maxWaiting + 9} {
		dst := netip.AddrPortFrom(netip.AddrFrom4([4]byte{11, byte(i >> 16), byte(i >> 8), byte(i)}), 9)
		packets = append(packets, at{frame: eth(ip(server4, dst, 17, udpDgram(server4, dst, payload(1))))})
	}
	samples, counters := run(t, Options{}, packets)
	// The answers that came too late are questions themselves.
	if want := fmt.Sprintf("udp_waiting %d, udp_unanswered %d", maxWaiting+12, maxWaiting+10); len(samples) != 2 || counters != want {
		t.Errorf("%d samples, %s, want %s", len(samples), counters, want)
	}
}
