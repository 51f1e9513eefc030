package cgroup

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The attributes of bpf(2) that we use. They are larger in newer kernels, which
// take the missing part for zero. The pointers in them are integers for Go, so what
// they point to is kept alive until the call is over.

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
}

type attachAttr struct {
	targetFD    uint32
	attachFD    uint32
	attachType  uint32
	attachFlags uint32
}

// bpf calls bpf(2). The attributes are size bytes at attr, a struct of the caller's
// that lives until the call returns.
func bpf(cmd int, attr unsafe.Pointer, size uintptr) (int, error) {
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

// program is a program that decides about the devices of a group.
type program struct {
	code []insn
	fd   int
	kept bool // for all groups that it suits
}

// load has the kernel check and translate the code.
func load(code []insn) (*program, error) {
	license := []byte("Apache\x00")
	attr := loadAttr{
		progType:  unix.BPF_PROG_TYPE_CGROUP_DEVICE,
		insnCount: uint32(len(code)),
		insns:     uint64(uintptr(unsafe.Pointer(&code[0]))),
		license:   uint64(uintptr(unsafe.Pointer(&license[0]))),
	}
	fd, err := bpf(unix.BPF_PROG_LOAD, unsafe.Pointer(&attr), unsafe.Sizeof(attr))
	runtime.KeepAlive(code)
	runtime.KeepAlive(license)
	if err != nil {
		return nil, fmt.Errorf("load the device program, does the kernel have CONFIG_CGROUP_BPF?: %w", err)
	}
	return &program{code: code, fd: fd}, nil
}

// attach puts the program to work for the group.
func (p *program) attach(dir string) error {
	if err := p.call(unix.BPF_PROG_ATTACH, dir, unix.BPF_F_ALLOW_MULTI); err != nil {
		return fmt.Errorf("attach the device program: %w", err)
	}
	return nil
}

func (p *program) call(cmd int, dir string, flags uint32) error {
	group, err := os.OpenFile(dir, os.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return err
	}
	defer func() { _ = group.Close() }()
	attr := attachAttr{
		targetFD:    uint32(group.Fd()),
		attachFD:    uint32(p.fd),
		attachType:  unix.BPF_CGROUP_DEVICE,
		attachFlags: flags,
	}
	_, err = bpf(cmd, unsafe.Pointer(&attr), unsafe.Sizeof(attr))
	return err
}

// detach takes the program from the group, unless p is nil.
func (p *program) detach(dir string) error {
	if p == nil {
		return nil
	}
	defer p.close()
	if err := p.call(unix.BPF_PROG_DETACH, dir, 0); err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("detach the old device program: %w", err)
	}
	return nil
}

// close lets go of the program. It stays attached, and ends with the group.
func (p *program) close() {
	if p != nil && p.fd >= 0 && !p.kept {
		_ = unix.Close(p.fd)
		p.fd = -1
	}
}
