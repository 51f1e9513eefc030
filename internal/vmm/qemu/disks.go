package qemu

import (
	"context"
	"errors"

	"github.com/seed-efd44b36/kata/internal/vmm"
)

// AddDisk attaches a disk; see vmm.Machine.
func (m *Machine) AddDisk(context.Context, vmm.Disk) error { return errors.New("attach disk: not yet") }

// RemoveDisk detaches a disk; see vmm.Machine.
func (m *Machine) RemoveDisk(context.Context, string) error {
	return errors.New("detach disk: not yet")
}
