// SPDX-License-Identifier: Apache-2.0

package confine

import (
	"fmt"

	seccomp "github.com/elastic/go-seccomp-bpf"
	"github.com/elastic/go-seccomp-bpf/arch"
	"golang.org/x/sys/unix"
)

// refused are system calls that a process which reads packets' captures and writes maps has
// no use for, and that whoever has taken it over would like: to run programs, to look into
// others, to change the system. They fail with EPERM.
var refused = []string{
	// Programs, and other processes.
	"execve", "execveat", "ptrace", "process_vm_readv", "process_vm_writev", "process_madvise", "pidfd_getfd", "kcmp",
	// The file tree, and namespaces.
	"mount", "umount2", "pivot_root", "chroot", "fsopen", "fsconfig", "fsmount", "fspick", "open_tree", "move_mount", "mount_setattr",
	"unshare", "setns", "mknod", "mknodat", "name_to_handle_at", "open_by_handle_at", "fanotify_init", "quotactl", "quotactl_fd",
	// The kernel and the machine.
	"init_module", "finit_module", "delete_module", "create_module", "kexec_load", "kexec_file_load", "reboot", "swapon", "swapoff",
	"acct", "iopl", "ioperm", "syslog", "sethostname", "setdomainname", "settimeofday", "clock_settime", "vhangup", "personality", "lookup_dcookie",
	// Other users and their files.
	"setuid", "setgid", "setreuid", "setregid", "setresuid", "setresgid", "setgroups", "setfsuid", "setfsgid", "chown", "fchown", "lchown", "fchownat",
	// What has often been the way to more rights.
	"add_key", "request_key", "keyctl", "userfaultfd", "io_uring_setup", "perf_event_open", "vmsplice",
}

// sockets are refused that could send or see packets: what is left is unix, netlink, and,
// for ioctls about interfaces, unconnected inet datagrams.
func sockets() (refuse []seccomp.NameWithConditions) {
	not := func(arg uint32, values ...uint64) (all seccomp.ArgumentConditions) {
		for _, v := range values {
			all = append(all, seccomp.Condition{Argument: arg, Operation: seccomp.NotEqual, Value: v})
		}
		return all
	}
	is := func(arg uint32, v uint64) seccomp.Condition {
		return seccomp.Condition{Argument: arg, Operation: seccomp.Equal, Value: v}
	}
	const dgram, flags1, flags2 = unix.SOCK_DGRAM, unix.SOCK_CLOEXEC, unix.SOCK_NONBLOCK
	add := func(all seccomp.ArgumentConditions) {
		refuse = append(refuse, seccomp.NameWithConditions{Name: "socket", Conditions: all})
	}
	add(not(0, unix.AF_UNIX, unix.AF_NETLINK, unix.AF_INET, unix.AF_INET6))
	for _, family := range []uint64{unix.AF_INET, unix.AF_INET6} {
		add(append(not(1, dgram, dgram|flags1, dgram|flags2, dgram|flags1|flags2), is(0, family)))
	}
	return refuse
}

// namespaces are refused that clone could make. What clone3 is asked for can't be seen: it
// is answered as by a kernel that does not have it, and the C library asks clone.
func namespaces() (refuse []seccomp.NameWithConditions) {
	for _, flag := range []uint64{
		unix.CLONE_NEWNS, unix.CLONE_NEWCGROUP, unix.CLONE_NEWUTS, unix.CLONE_NEWIPC, unix.CLONE_NEWUSER, unix.CLONE_NEWPID, unix.CLONE_NEWNET,
	} {
		refuse = append(refuse, seccomp.NameWithConditions{Name: "clone", Conditions: seccomp.ArgumentConditions{
			{Argument: 0, Operation: seccomp.BitsSet, Value: flag},
		}})
	}
	return refuse
}

// filterSystemCalls installs the filter on all threads.
func filterSystemCalls() error {
	info, err := arch.GetInfo("")
	if err != nil {
		return fmt.Errorf("filter system calls: %w", err)
	}
	var names []string
	for _, name := range refused {
		if _, ok := info.SyscallNames[name]; ok { // others are of other architectures
			names = append(names, name)
		}
	}
	err = seccomp.LoadFilter(seccomp.Filter{
		NoNewPrivs: true,
		Flag:       seccomp.FilterFlagTSync,
		Policy: seccomp.Policy{
			DefaultAction: seccomp.ActionAllow,
			Syscalls: []seccomp.SyscallGroup{
				{Action: seccomp.ActionErrno | seccomp.Action(unix.ENOSYS), Names: []string{"clone3"}},
				{Action: seccomp.ActionErrno, Names: names},
				{Action: seccomp.ActionErrno, NamesWithCondtions: append(sockets(), namespaces()...)},
			},
		},
	})
	if err != nil {
		return fmt.Errorf("filter system calls: %w", err)
	}
	return nil
}
