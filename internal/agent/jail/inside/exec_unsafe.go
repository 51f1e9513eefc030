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
// filter is loaded, the Go runtime must not make a system call on this thread.
type image struct {
	program *byte
	argv    []*byte
	envv    []*byte
	filter  *unix.SockFprog
	flags   uintptr
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

// load loads the filter. Nothing but exec may follow.
func (i *image) load() error {
	if i.filter == nil {
		return nil
	}
	_, _, errno := unix.RawSyscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, i.flags, uintptr(unsafe.Pointer(i.filter)))
	if errno != 0 {
		return fmt.Errorf("load the system call filter: %w", errno)
	}
	return nil
}

// exec executes the program. It returns only an error.
func (i *image) exec() error {
	_, _, errno := unix.RawSyscall(unix.SYS_EXECVE,
		uintptr(unsafe.Pointer(i.program)),
		uintptr(unsafe.Pointer(&i.argv[0])),
		uintptr(unsafe.Pointer(&i.envv[0])))
	return errno
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
