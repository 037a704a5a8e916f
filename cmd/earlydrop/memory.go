// SPDX-License-Identifier: Apache-2.0

package main

import (
	"os"

	"github.com/prometheus/procfs"
	"golang.org/x/sys/unix"
)

// returnCode gives back the memory of code that has run, this program's and its libraries': a
// daemon has run much of it for the last time when it has attached. What runs again comes from
// the page cache. It may be called at any time; what can't be given back stays.
func returnCode() {
	self, err := procfs.NewProc(os.Getpid())
	if err != nil {
		return
	}
	all, err := self.ProcMaps()
	if err != nil {
		return
	}
	for _, m := range all {
		// Nobody has written there, so the file has all of it.
		if m.Perms.Execute && !m.Perms.Write && m.Perms.Private && m.Pathname != "" && m.Pathname[0] == '/' {
			_, _, _ = unix.Syscall(unix.SYS_MADVISE, m.StartAddr, m.EndAddr-m.StartAddr, unix.MADV_DONTNEED)
		}
	}
}
