// Package direct reads, writes and splices files without telling Go's scheduler.
// The scheduler takes the processor away from a system call that lasts longer
// than 20 µs, which in an emulated guest is every one that copies some pages, and
// for as long as that happens its monitor wakes up every 20 µs. Calls that cannot
// block need no such care, and are several times faster without.
package direct

import (
	"fmt"
	"io"
	"os"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// File is a file in non-blocking mode.
type File struct {
	*os.File
	raw syscall.RawConn
}

// NewFile takes fd over, also on error, and makes it non-blocking.
func NewFile(fd int, name string) (*File, error) {
	if err := unix.SetNonblock(fd, true); err != nil {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("make %s non-blocking: %w", name, err)
	}
	f := os.NewFile(uintptr(fd), name)
	raw, err := f.SyscallConn()
	if err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("use %s: %w", name, err)
	}
	return &File{f, raw}, nil
}

// Read implements io.Reader.
func (f *File) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	n, errno := uintptr(0), unix.Errno(0)
	err := f.raw.Read(func(fd uintptr) bool {
		n, errno = call(unix.SYS_READ, fd, p)
		return errno != unix.EAGAIN
	})
	switch {
	case err != nil:
		return 0, err
	case errno != 0:
		return 0, &os.PathError{Op: "read", Path: f.Name(), Err: errno}
	case n == 0:
		return 0, io.EOF
	}
	return int(n), nil
}

// Write implements io.Writer.
func (f *File) Write(p []byte) (written int, err error) {
	for written < len(p) {
		n, errno := uintptr(0), unix.Errno(0)
		err := f.raw.Write(func(fd uintptr) bool {
			n, errno = call(unix.SYS_WRITE, fd, p[written:])
			return errno != unix.EAGAIN
		})
		if err == nil && errno != 0 {
			err = &os.PathError{Op: "write", Path: f.Name(), Err: errno}
		}
		if err != nil {
			return written, err
		}
		written += int(n)
	}
	return written, nil
}

// call makes a system call on p, which is not empty, until it is not
// interrupted. The kernel touches no more than len(p) bytes of it and keeps no
// pointer.
func call(nr, fd uintptr, p []byte) (uintptr, unix.Errno) {
	for {
		n, _, errno := unix.RawSyscall(nr, fd, uintptr(unsafe.Pointer(unsafe.SliceData(p))), uintptr(len(p)))
		if errno != unix.EINTR {
			return n, errno
		}
	}
}
