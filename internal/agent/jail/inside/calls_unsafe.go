package inside

import (
	"fmt"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// call is a system call that is prepared for a process without a Go runtime.
type call struct {
	what    string // for messages
	number  uintptr
	args    [4]uintptr
	pointer unsafe.Pointer // what args[at] is to point to, nil for nothing
	at      int
}

// do makes the call.
//
//go:norace
//go:nosplit
func (c *call) do() syscall.Errno {
	args := c.args
	if c.pointer != nil {
		args[c.at&3] = uintptr(c.pointer)
	}
	_, _, errno := unix.RawSyscall6(c.number, args[0], args[1], args[2], args[3], 0, 0)
	return errno
}

// capabilityCall takes what was needed until here and is not the program's. What is
// left above that is for the filter.
func (p *Process) capabilityCall() call {
	extra := uint64(0)
	if len(p.Filter) > 0 && !p.NoNewPrivs {
		extra |= 1 << unix.CAP_SYS_ADMIN
	}
	// The kernel leaves out those that it does not know.
	set := &struct {
		header unix.CapUserHeader
		data   [2]unix.CapUserData
	}{
		unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3},
		capabilityData(p.Effective|extra, p.Permitted|extra, p.Inheritable),
	}
	return call{
		what: "drop capabilities", number: unix.SYS_CAPSET, pointer: unsafe.Pointer(set),
		args: [4]uintptr{0, uintptr(unsafe.Pointer(&set.data))}, // of what pointer keeps
	}
}

func affinityCall(cpus []int) call {
	set := new(unix.CPUSet)
	for _, c := range cpus {
		set.Set(c)
	}
	return call{
		what:   fmt.Sprintf("set the CPU affinity to %v", cpus),
		number: unix.SYS_SCHED_SETAFFINITY, args: [4]uintptr{0, unsafe.Sizeof(*set)}, pointer: unsafe.Pointer(set), at: 2,
	}
}

func schedulerCall(a *unix.SchedAttr) call {
	return call{what: "set the scheduler", number: unix.SYS_SCHED_SETATTR, pointer: unsafe.Pointer(a), at: 1}
}

func ioPriorityCall(priority int) call {
	const whoProcess = 1
	return call{what: "set the I/O priority", number: unix.SYS_IOPRIO_SET, args: [4]uintptr{whoProcess, 0, uintptr(priority)}}
}

func rlimitCall(l Rlimit) call {
	return call{
		what:   fmt.Sprintf("set %s to %d:%d", l.Name, l.Cur, l.Max),
		number: unix.SYS_PRLIMIT64, args: [4]uintptr{0, uintptr(l.Resource)}, pointer: unsafe.Pointer(&unix.Rlimit{Cur: l.Cur, Max: l.Max}), at: 2,
	}
}
