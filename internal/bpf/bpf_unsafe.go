// Package bpf calls bpf(2): the part of it that all programs share.
package bpf

import (
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// loadAttr are the attributes of BPF_PROG_LOAD that we use. They are larger in newer
// kernels, which take the missing part for zero.
type loadAttr struct {
	progType    uint32
	insnCount   uint32
	insns       uint64
	license     uint64
	logLevel    uint32
	logSize     uint32
	logBuf      uint64
	kernVersion uint32
	progFlags   uint32
	progName    [16]byte
	progIfindex uint32
	attachType  uint32
}

// insnSize is that of an instruction.
const insnSize = 8

// Load has the kernel check and translate a program of the kind (BPF_PROG_TYPE_*) for
// the place (BPF_CGROUP_*, BPF_SK_LOOKUP); code is its instructions, eight bytes each.
// The descriptor is the caller's. An error is the bare errno.
func Load(kind, place uint32, code []byte) (int, error) {
	if len(code) == 0 || len(code)%insnSize != 0 {
		return -1, unix.EINVAL
	}
	// The pointers in the attributes are integers for Go, so what they point to is
	// kept alive until the call is over. The kernel reads insnCount instructions, and
	// the license up to its zero.
	license := []byte("Apache\x00")
	attr := loadAttr{
		progType: kind, attachType: place,
		insnCount: uint32(len(code) / insnSize),
		insns:     uint64(uintptr(unsafe.Pointer(&code[0]))),
		license:   uint64(uintptr(unsafe.Pointer(&license[0]))),
	}
	fd, err := Call(unix.BPF_PROG_LOAD, unsafe.Pointer(&attr), unsafe.Sizeof(attr))
	runtime.KeepAlive(code)
	runtime.KeepAlive(license)
	return fd, err
}

// Call calls bpf(2). The attributes are size bytes at attr, a struct of the caller's
// that lives until the call returns, as does all that it points to. An error is the
// bare errno.
func Call(cmd int, attr unsafe.Pointer, size uintptr) (int, error) {
	for {
		fd, _, errno := unix.Syscall(unix.SYS_BPF, uintptr(cmd), uintptr(attr), size)
		switch {
		case errno == 0:
			return int(fd), nil
		case errno != unix.EAGAIN && errno != unix.EINTR:
			return -1, errno
		}
	}
}
