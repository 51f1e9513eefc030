package inside

import (
	"fmt"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Everything in this file hands the kernel pointers to Go memory for the length of
// one system call. What they point to is reachable from arguments or fields that
// live until the call returns, and is not moved: Go's heap does not move objects,
// and locals whose address is taken this way escape to it or stay on a stack that
// cannot grow within a raw system call.

// image is all that is needed to execute a program, made beforehand: once the
// filter is loaded, the Go runtime must not make a system call on this thread; and
// after a fork there is no Go runtime.
type image struct {
	program *byte
	argv    []*byte
	envv    []*byte
	filter  *unix.SockFprog
	flags   uintptr
	control uintptr // descriptor
	time    uintptr // descriptor of a time namespace to enter, 0 for none
	held    uintptr // descriptor of the program, until the execve
	answer  pidAnswer
}

func newImage(program string, args, env []string, filter []unix.SockFilter, flags uint) (*image, error) {
	i := &image{flags: uintptr(flags)}
	var err error
	if i.program, err = unix.BytePtrFromString(program); err != nil {
		return nil, fmt.Errorf("program name %q: %w", program, err)
	}
	if i.argv, err = syscall.SlicePtrFromStrings(args); err != nil {
		return nil, fmt.Errorf("arguments: %w", err)
	}
	if i.envv, err = syscall.SlicePtrFromStrings(env); err != nil {
		return nil, fmt.Errorf("environment: %w", err)
	}
	if len(filter) > 0 {
		i.filter = &unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	}
	return i, nil
}

// close closes what was opened for the image, in a process that does not become it.
func (i *image) close() { _ = unix.Close(int(i.held)) }

// become waits at the gate and then, unless an earlier step has failed, loads the
// filter and executes the program. If it cannot, it tells the agent why and ends
// the process.
//
// The Go runtime learns of none of these calls. It could otherwise start a thread
// to do without this one: by the time when the gate opens, the process may be in a
// cgroup that has no room for another.
//
//go:norace
//go:nosplit
func (i *image) become(failed step, why syscall.Errno) {
	var b [1]byte
	for {
		n, _, errno := unix.RawSyscall(unix.SYS_READ, i.control, uintptr(unsafe.Pointer(&b[0])), 1)
		if errno == unix.EINTR {
			continue
		}
		if failed == 0 && (errno != 0 || n == 0 || b[0] != gate) {
			failed, why = stepGate, errno // nobody is there to be told
		}
		break
	}
	if failed == 0 {
		failed, why = i.exec()
	}
	i.report(failed, why)
}

// exec loads the filter and executes the program. It returns what failed.
//
//go:norace
//go:nosplit
func (i *image) exec() (step, syscall.Errno) {
	if i.filter != nil {
		if _, _, errno := unix.RawSyscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, i.flags, uintptr(unsafe.Pointer(i.filter))); errno != 0 {
			return stepFilter, errno
		}
	}
	_, _, errno := unix.RawSyscall(unix.SYS_EXECVE,
		uintptr(unsafe.Pointer(i.program)),
		uintptr(unsafe.Pointer(&i.argv[0])),
		uintptr(unsafe.Pointer(&i.envv[0])))
	return stepExec, errno
}

// report tells the agent how far the process came, and ends it. The filter may
// forbid the one or the other; then the end of the process has to say it.
//
//go:norace
//go:nosplit
func (i *image) report(s step, errno syscall.Errno) {
	b := [2]byte{byte(s), byte(errno)}
	_, _, _ = unix.RawSyscall(unix.SYS_WRITE, i.control, uintptr(unsafe.Pointer(&b[0])), uintptr(len(b)))
	for {
		_, _, _ = unix.RawSyscall(unix.SYS_EXIT_GROUP, 1, 0, 0)
	}
}

// rawCgroupNamespace enters a cgroup by its cgroup.procs, makes a namespace of it
// and leaves again through another. As with become, the runtime must not start a
// thread in between.
func rawCgroupNamespace(in, out uintptr) error {
	zero := [1]byte{'0'}
	if _, _, errno := unix.RawSyscall(unix.SYS_WRITE, in, uintptr(unsafe.Pointer(&zero[0])), 1); errno != 0 {
		return errno
	}
	_, _, failed := unix.RawSyscall(unix.SYS_UNSHARE, unix.CLONE_NEWCGROUP, 0, 0)
	_, _, errno := unix.RawSyscall(unix.SYS_WRITE, out, uintptr(unsafe.Pointer(&zero[0])), 1)
	if failed != 0 {
		return failed
	}
	if errno != 0 {
		return errno
	}
	return nil
}

// setUser changes the credentials of the calling thread, which the functions of
// the standard library would do for all threads, one after the other.
func setUser(uid, gid uint32, groups []uint32) error {
	_, _, errno := unix.RawSyscall(unix.SYS_SETGROUPS, uintptr(len(groups)), uintptr(unsafe.Pointer(unsafe.SliceData(groups))), 0)
	if errno != 0 {
		return fmt.Errorf("set supplementary groups: %w", errno)
	}
	if _, _, errno := unix.RawSyscall(unix.SYS_SETRESGID, uintptr(gid), uintptr(gid), uintptr(gid)); errno != 0 {
		return fmt.Errorf("set group %d: %w", gid, errno)
	}
	if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, uintptr(uid), uintptr(uid), uintptr(uid)); errno != 0 {
		return fmt.Errorf("set user %d: %w", uid, errno)
	}
	return nil
}
