package cgroup

import (
	"errors"
	"fmt"
	"os"
	"unsafe"

	"github.com/seed-efd44b36/kata/internal/bpf"
	"golang.org/x/sys/unix"
)

// attachAttr are the attributes of BPF_PROG_ATTACH and BPF_PROG_DETACH that we use.
type attachAttr struct {
	targetFD    uint32
	attachFD    uint32
	attachType  uint32
	attachFlags uint32
}

// program is a program that decides about the devices of a group.
type program struct {
	code []insn
	fd   int
	kept bool // for all groups that it suits
}

// load has the kernel check and translate the code.
func load(code []insn) (*program, error) {
	// An instruction has no padding, so all of them are as many bytes in a row.
	raw := unsafe.Slice((*byte)(unsafe.Pointer(unsafe.SliceData(code))), uintptr(len(code))*unsafe.Sizeof(insn{}))
	fd, err := bpf.Load(unix.BPF_PROG_TYPE_CGROUP_DEVICE, unix.BPF_CGROUP_DEVICE, raw)
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
	_, err = bpf.Call(cmd, unsafe.Pointer(&attr), unsafe.Sizeof(attr))
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
