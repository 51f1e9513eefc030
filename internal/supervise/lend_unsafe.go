package supervise

import (
	"errors"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// call is a system call that waits for an answer: struct seccomp_notif, with
// its struct seccomp_data, 80 bytes.
type call struct {
	id      uint64
	pid     uint32 // of the thread, as we see it
	_       uint32 // flags, none of which are defined
	number  int32
	_       uint32 // architecture; the filter lets but one through
	_       uint64 // instruction pointer
	operand [6]uint64
}

// path returns the address of the path that is to be opened, and the flags.
func (c call) path() (address, flags uint64) {
	if c.number == unix.SYS_OPENAT {
		return c.operand[1], c.operand[2]
	}
	return c.operand[0], c.operand[1]
}

// answer is struct seccomp_notif_resp, 24 bytes.
type answer struct {
	id    uint64
	value int64
	errno int32 // negative
	flags uint32
}

// gift is struct seccomp_notif_addfd, 24 bytes.
type gift struct {
	id         uint64
	_          uint32 // flags
	source     uint32 // a descriptor of ours
	_          uint32 // which descriptor of the child, were that asked for
	descriptor uint32 // its flags
}

// listen installs a filter on the calling thread and returns the descriptor by
// which its calls are answered. It is closed on exec.
func listen(program []unix.SockFilter) (int, error) {
	code := unix.SockFprog{Len: uint16(len(program)), Filter: &program[0]}
	// Without SPEC_ALLOW, kernels before 5.16 would slow down all of the child
	// to keep its threads from guessing each other's memory.
	const flags = unix.SECCOMP_FILTER_FLAG_NEW_LISTENER | unix.SECCOMP_FILTER_FLAG_SPEC_ALLOW
	// The kernel copies code and the Len instructions that it points to, which
	// both live until the call has returned.
	fd, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, flags, uintptr(unsafe.Pointer(&code)))
	runtime.KeepAlive(program)
	if errno != 0 {
		return -1, errno
	}
	return int(fd), nil
}

// receive takes the next call. The error is ENOENT if it has been given up.
func receive(fd int) (call, error) {
	var c call
	// The number of the ioctl contains the structure's size, 80.
	_, err := ioctl(fd, unix.SECCOMP_IOCTL_NOTIF_RECV, unsafe.Pointer(&c))
	return c, err
}

// proceed lets the kernel do what was asked for.
func proceed(fd int, id uint64) error {
	return respond(fd, answer{id: id, flags: unix.SECCOMP_USER_NOTIF_FLAG_CONTINUE})
}

// refuse fails a call for the reason why.
func refuse(fd int, id uint64, why error) error {
	errno := unix.EPERM
	_ = errors.As(why, &errno)
	return respond(fd, answer{id: id, errno: -int32(errno)})
}

func respond(fd int, a answer) error {
	// The number of the ioctl contains the structure's size, 24.
	_, err := ioctl(fd, unix.SECCOMP_IOCTL_NOTIF_SEND, unsafe.Pointer(&a))
	return err
}

// give makes a copy of a descriptor of ours the result of a call.
//
// From Linux 5.14 the kernel does both at once with SECCOMP_ADDFD_FLAG_SEND. But
// if a signal interrupts us in that, the call returns 0, and there is no
// descriptor (seen with Linux 6.18); Go's scheduler sends many. This way, a
// signal to the child between the two leaves it with one descriptor too many,
// and it is given another.
func give(fd int, id uint64, source int, flags uint64) error {
	g := gift{id: id, source: uint32(source), descriptor: uint32(flags)}
	// The number of the ioctl contains the structure's size, 24.
	n, err := ioctl(fd, unix.SECCOMP_IOCTL_NOTIF_ADDFD, unsafe.Pointer(&g))
	if err != nil {
		return err
	}
	return respond(fd, answer{id: id, value: int64(n)})
}

// ioctl hands the kernel a structure, which the caller keeps until it returns.
func ioctl(fd int, request uintptr, arg unsafe.Pointer) (int, error) {
	for {
		n, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), request, uintptr(arg))
		switch {
		case errno == 0:
			return int(n), nil
		case errno != unix.EINTR:
			return -1, errno
		}
	}
}
