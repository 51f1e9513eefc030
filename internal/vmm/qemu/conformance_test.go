//go:build integration

package qemu

import (
	"log/slog"
	"os/exec"
	"testing"

	"github.com/seed-efd44b36/kata/internal/guestimage"
	"github.com/seed-efd44b36/kata/internal/vmm"
	"github.com/seed-efd44b36/kata/internal/vmm/vmmtest"
)

func driver(t *testing.T, machineType string, image guestimage.Image) vmmtest.Driver {
	binary, err := exec.LookPath("qemu-system-x86_64")
	if err != nil {
		t.Skip("qemu-system-x86_64 is not installed")
	}
	log := slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug}))
	return vmmtest.Driver{
		New:          func(c vmm.Config) (vmm.Machine, error) { return New(c, log) },
		Capabilities: vmm.Capabilities{Disks: true},
		Config: vmm.Config{
			Binary:       binary,
			MachineType:  machineType,
			Accel:        vmm.AccelTCG,
			Kernel:       image.Kernel.VMLinux,
			Initrd:       image.Initrd,
			KernelParams: guestimage.KernelParams(image.Kernel, true),
		},
	}
}

func TestConformance(t *testing.T) {
	image := vmmtest.Guest(t)
	t.Run("q35", func(t *testing.T) { vmmtest.Run(t, driver(t, "q35", image)) })
	t.Run("microvm", func(t *testing.T) {
		if !image.Kernel.Microvm {
			t.Skip("the guest kernel has no CONFIG_VIRTIO_MMIO_CMDLINE_DEVICES: `make kernel` builds one that has")
		}
		vmmtest.Run(t, driver(t, "microvm", image))
	})
}
