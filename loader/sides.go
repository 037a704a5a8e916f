// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// sides keeps the map same_side: the interface and the devices that stand on it. What
// was received through one of them came in through the interface, even if the kernel
// says that it came in through the device; sent out through the interface again, it is
// from the same side.
type sides struct {
	index  func() int32 // the interface's
	m      *ebpf.Map
	ns     netns.NsHandle  // the interface's
	handle *netlink.Handle // of that
	stop   chan struct{}
	done   sync.WaitGroup
}

const (
	// sidesSettle is how long a burst of changes may last before the map follows it.
	sidesSettle = 100 * time.Millisecond
	// sidesRetry is how soon changes are asked for again when some were missed.
	sidesRetry = time.Second
)

// watchSides fills the map and keeps it until close. It belongs to the network namespace
// of the calling thread.
func watchSides(index func() int32, m *ebpf.Map) (_ *sides, err error) {
	s := &sides{index: index, m: m, stop: make(chan struct{})}
	if s.ns, err = netns.Get(); err != nil {
		return nil, fmt.Errorf("open the network namespace: %w", err)
	}
	if s.handle, err = netlink.NewHandleAt(s.ns, unix.NETLINK_ROUTE); err != nil {
		return nil, errors.Join(fmt.Errorf("open a netlink socket: %w", err), s.ns.Close())
	}
	changes, end, err := s.subscribe()
	if err == nil {
		if err = s.update(); err != nil {
			end()
		}
	}
	if err != nil {
		s.handle.Close()
		return nil, errors.Join(fmt.Errorf("watch the devices that stand on interface %d: %w", index(), err), s.ns.Close())
	}
	s.done.Add(1)
	go s.watch(changes, end)
	return s, nil
}

// subscribe asks for changes of links. The channel is closed when some were missed.
func (s *sides) subscribe() (changes chan netlink.LinkUpdate, end func(), err error) {
	changes = make(chan netlink.LinkUpdate, 16)
	done := make(chan struct{})
	err = netlink.LinkSubscribeWithOptions(changes, done, netlink.LinkSubscribeOptions{Namespace: &s.ns})
	if err != nil {
		return nil, nil, err
	}
	return changes, func() {
		close(done)
		for range changes { // who writes there must not wait for ever
		}
	}, nil
}

func (s *sides) watch(changes chan netlink.LinkUpdate, end func()) {
	defer s.done.Done()
	defer func() {
		if end != nil {
			end()
		}
	}()
	var later <-chan time.Time // of an update, or of the next attempt to subscribe
	for {
		select {
		case <-s.stop:
			return
		case _, ok := <-changes:
			switch {
			case !ok:
				end()
				changes, end = nil, nil
				later = time.After(sidesRetry)
			case later == nil: // one change seldom comes alone
				later = time.After(sidesSettle)
			}
			continue
		case <-later:
			later = nil
		}
		if changes == nil {
			var err error
			if changes, end, err = s.subscribe(); err != nil {
				changes, end, later = nil, nil, time.After(sidesRetry)
			}
		}
		if err := s.update(); err != nil {
			slog.Warn("it is not known what stands on the interface", "index", s.index(), "error", err)
		}
	}
}

// update makes the map say what stands on the interface now.
func (s *sides) update() error {
	links, err := s.handle.LinkList()
	if err != nil {
		return fmt.Errorf("list the links: %w", err)
	}
	want := map[uint32]bool{}
	for _, index := range stackedOn(int(s.index()), links) {
		want[uint32(index)] = true
		if err := s.m.Update(uint32(index), uint8(1), ebpf.UpdateAny); err != nil {
			return fmt.Errorf("write map same_side: %w", err)
		}
	}
	var index uint32
	var gone []uint32
	for it := s.m.Iterate(); it.Next(&index, new(uint8)); {
		if !want[index] {
			gone = append(gone, index)
		}
	}
	for _, index := range gone {
		if err := s.m.Delete(index); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return fmt.Errorf("write map same_side: %w", err)
		}
	}
	return nil
}

func (s *sides) close() {
	close(s.stop)
	s.done.Wait()
	s.handle.Close()
	_ = s.ns.Close()
}

// stackedOn returns the interface and the devices that receive its packets in its place:
// what is built on it (VLAN, macvlan, ...), and what it is a part of (bridge, bond), one
// upon the other. A device that takes packets apart (tunnels) is a side of its own, and
// so is a VRF, which has both sides.
func stackedOn(index int, links []netlink.Link) []int {
	stack := []int{index}
	for i := 0; i < len(stack); i++ {
		for _, l := range links {
			a := l.Attrs()
			switch {
			case a.Index == stack[i] && a.MasterIndex != 0:
				if master := find(links, a.MasterIndex); master != nil && takesPorts(master.Type()) && !slices.Contains(stack, a.MasterIndex) {
					stack = append(stack, a.MasterIndex)
				}
			case a.ParentIndex == stack[i] && a.NetNsID < 0 && standsOn(l.Type()) && !slices.Contains(stack, a.Index):
				stack = append(stack, a.Index)
			}
		}
	}
	return stack
}

func find(links []netlink.Link, index int) netlink.Link {
	for _, l := range links {
		if l.Attrs().Index == index {
			return l
		}
	}
	return nil
}

func takesPorts(kind string) bool {
	return kind == "bridge" || kind == "bond" || kind == "team" || kind == "openvswitch" || kind == "hsr"
}

func standsOn(kind string) bool {
	return kind == "vlan" || kind == "macvlan" || kind == "macvtap" || kind == "ipvlan" || kind == "ipvtap" || kind == "macsec"
}

// addresses returns the interface's own ones.
func (s *sides) addresses() ([]netip.Addr, error) {
	link, err := s.handle.LinkByIndex(int(s.index()))
	if err != nil {
		return nil, err
	}
	list, err := s.handle.AddrList(link, netlink.FAMILY_ALL)
	if err != nil {
		return nil, err
	}
	var addrs []netip.Addr
	for _, a := range list {
		if addr, ok := netip.AddrFromSlice(a.IP); ok {
			addrs = append(addrs, addr.Unmap())
		}
	}
	return addrs, nil
}
