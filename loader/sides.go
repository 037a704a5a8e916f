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
	"golang.org/x/sys/unix"
)

// sides keeps the map same_side: the interface and the devices that are built on it. What
// was received through one of them came in through the interface, even if the kernel
// says that it came in through the device; sent out through the interface again, it is
// from the same side.
type sides struct {
	index  func() int32   // the interface's
	all    func() []int32 // those of its group, this one among them
	m      *ebpf.Map
	mu     *sync.Mutex     // while m is written
	handle *netlink.Handle // of the interface's network namespace
	stop   chan struct{}
	done   sync.WaitGroup
}

const (
	// sidesSettle is how long a burst of changes may last before the map follows it.
	sidesSettle = 100 * time.Millisecond
	// sidesPoll is how often the devices are looked at where the kernel tells of no
	// changes any more.
	sidesPoll = time.Second
)

// watchSides fills the map and keeps it until close. It belongs to the network namespace
// of the calling thread. The map of a group (nil: none) has what is built on any of its
// interfaces.
func watchSides(index func() int32, group *Group, m *ebpf.Map) (_ *sides, err error) {
	s := &sides{index: index, m: m, stop: make(chan struct{})}
	if group != nil {
		s.all, s.mu = group.indexes, &group.sides
	} else {
		s.all, s.mu = func() []int32 { return []int32{index()} }, new(sync.Mutex)
	}
	if s.handle, err = netlink.NewHandle(unix.NETLINK_ROUTE); err != nil {
		return nil, fmt.Errorf("open a netlink socket: %w", err)
	}
	changes, done := make(chan netlink.LinkUpdate, 16), make(chan struct{})
	if err = netlink.LinkSubscribe(changes, done); err == nil {
		if err = s.update(); err != nil {
			unsubscribe(changes, done)
		}
	}
	if err != nil {
		s.handle.Close()
		return nil, fmt.Errorf("watch the devices that are built on interface %d: %w", index(), err)
	}
	s.done.Add(1)
	go s.watch(changes, done)
	return s, nil
}

// unsubscribe ends a subscription.
func unsubscribe(changes <-chan netlink.LinkUpdate, done chan struct{}) {
	close(done)
	for range changes { // who writes there must not wait for ever
	}
}

func (s *sides) watch(changes chan netlink.LinkUpdate, done chan struct{}) {
	defer s.done.Done()
	var later <-chan time.Time // of the next update
	for {
		select {
		case <-s.stop:
			if changes != nil {
				unsubscribe(changes, done)
			}
			return
		case _, ok := <-changes:
			switch {
			case !ok:
				// Overrun: what was told is lost. Another subscription could be made in
				// the namespace of this thread only, which may be another one.
				unsubscribe(changes, done)
				changes, later = nil, time.After(sidesPoll)
			case later == nil: // one change seldom comes alone
				later = time.After(sidesSettle)
			}
			continue
		case <-later:
			later = nil
			if changes == nil {
				later = time.After(sidesPoll)
			}
		}
		if err := s.update(); err != nil {
			slog.Warn("it is not known what is built on the interface", "index", s.index(), "error", err)
		}
	}
}

// update makes the map say what is built on the interface now.
func (s *sides) update() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	links, err := s.handle.LinkList()
	if err != nil {
		return fmt.Errorf("list the links: %w", err)
	}
	var stacked []int
	for _, index := range s.all() {
		stacked = append(stacked, stackedOn(int(index), links)...)
	}
	want := map[uint32]bool{}
	for _, index := range stacked {
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
