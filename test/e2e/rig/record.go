// SPDX-License-Identifier: Apache-2.0

package rig

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"sync/atomic"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"github.com/gopacket/gopacket/pcapgo"

	"github.com/earlydrop/earlydrop/test/lab"
)

// Recording writes what passes Device into a capture file.
type Recording struct {
	sniffer *lab.Sniffer
	stop    atomic.Bool
	done    chan struct{}
	err     error
}

// Record begins to write every frame that Device receives or sends, as packet
// sockets see them, into a pcap file. Stop ends it.
func (r *Rig) Record(path string) (*Recording, error) {
	const snap = 1 << 18 // longer than any frame that segmentation offload makes
	sniffer, err := lab.NewSniffer(r.Gateway, Device, snap)
	if err != nil {
		return nil, err
	}
	file, err := os.Create(path)
	if err != nil {
		return nil, errors.Join(err, sniffer.Close())
	}
	buffer := bufio.NewWriterSize(file, 1<<20)
	pcap := pcapgo.NewWriterNanos(buffer)
	if err := pcap.WriteFileHeader(snap, layers.LinkTypeEthernet); err != nil {
		return nil, errors.Join(err, sniffer.Close(), file.Close())
	}
	rec := &Recording{sniffer: sniffer, done: make(chan struct{})}
	go func() {
		defer close(rec.done)
		for {
			f, err := sniffer.Read()
			if errors.Is(err, os.ErrClosed) && rec.stop.Load() {
				break
			}
			if err == nil {
				err = pcap.WritePacket(gopacket.CaptureInfo{Timestamp: f.Time, CaptureLength: len(f.Data), Length: f.Wire}, f.Data)
			}
			if err != nil {
				rec.err = fmt.Errorf("record %s: %w", path, err)
				break
			}
		}
		rec.err = errors.Join(rec.err, buffer.Flush(), file.Close(), sniffer.Close())
	}()
	return rec, nil
}

// Stop completes the file: what has passed the device is in it. It can be called more
// than once.
func (rec *Recording) Stop() error {
	if rec.stop.CompareAndSwap(false, true) {
		if err := rec.sniffer.Finish(); err != nil {
			return errors.Join(err, rec.sniffer.Close())
		}
	}
	<-rec.done
	return rec.err
}
