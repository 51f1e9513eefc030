package kvm

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// ioctl makes a request whose argument is a number, and returns its result.
func ioctl(fd int, request, argument uintptr) (int, error) {
	n, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), request, argument)
	if errno != 0 {
		return 0, errno
	}
	return int(n), nil
}

// ioctlBuffer makes a request whose argument is a structure, of which b holds
// the bytes. The kernel reads and writes as much as the request's number says;
// each caller makes b at least that long, and the Syscall keeps it alive.
func ioctlBuffer(fd int, request uintptr, b []byte) error {
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), request, uintptr(unsafe.Pointer(unsafe.SliceData(b))))
	if errno != 0 {
		return errno
	}
	return nil
}

// addressOf returns the address of mapped memory, for the kernel. The memory is
// not Go's, so it does not move.
func addressOf(mapped []byte) uint64 {
	return uint64(uintptr(unsafe.Pointer(unsafe.SliceData(mapped))))
}
