// Package machine resolves what the configuration leaves open about a virtual
// machine, by what the host has and the guest's kernel can do. Devices that belong
// to a sandbox, share and network, are the sandbox's to add.
package machine

import (
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"os"
	"runtime"

	"github.com/seed-efd44b36/kata/internal/config"
	"github.com/seed-efd44b36/kata/internal/guestimage"
	"github.com/seed-efd44b36/kata/internal/resources"
	"github.com/seed-efd44b36/kata/internal/vmm"
)

// ShareTag names the shared directory to the guest.
const ShareTag = "kata"

// leastMemory is the smallest class, in MiB.
const leastMemory = 256

// Config describes a machine of the size, without share, network and vsock.
func Config(h config.Hypervisor, img guestimage.Image, accel vmm.Accel, size resources.VM) vmm.Config {
	cfg := vmm.Config{
		Binary: h.Path, MachineType: h.MachineType, Accel: accel, CPUs: size.CPUs, MemoryMiB: size.MemoryMiB,
		Kernel: img.Kernel.VMLinux, Initrd: img.Initrd,
		KernelParams: guestimage.KernelParams(img.Kernel, accel == vmm.AccelTCG),
		Share:        vmm.Share{Tag: ShareTag},
	}
	if h.KernelParams != "" {
		cfg.KernelParams += " " + h.KernelParams
	}
	return cfg
}

// AddVsock gives the machine the link that the configuration wants.
func AddVsock(cfg *vmm.Config, h config.Hypervisor) error {
	if !Use(h.Vsock, "/dev/vhost-vsock") {
		return nil
	}
	var b [4]byte
	if _, err := rand.Read(b[:]); err != nil {
		return fmt.Errorf("vsock context id: %w", err)
	}
	// 0 to 2 are reserved; the top bit stays clear.
	cfg.VsockCID = binary.NativeEndian.Uint32(b[:])&0x7fffffff | 0x100
	cfg.KernelParams += " kata.link=vsock"
	return nil
}

// Class rounds a size up to one of a few, so that most sandboxes can be made from
// a template: powers of two, as many CPUs as the host has at most. Memory that a
// guest does not touch costs nothing.
func Class(size resources.VM) resources.VM {
	return class(size, runtime.NumCPU())
}

func class(size resources.VM, cpus int) resources.VM {
	c := resources.VM{CPUs: 1, MemoryMiB: leastMemory}
	for c.CPUs < size.CPUs {
		c.CPUs *= 2
	}
	for c.MemoryMiB < size.MemoryMiB {
		c.MemoryMiB *= 2
	}
	c.CPUs = max(min(c.CPUs, cpus), size.CPUs)
	return c
}

// Type resolves the machine type "auto": microvm where the kernel knows it and
// all network devices find room.
func Type(setting string, k guestimage.Kernel, nics int) string {
	switch {
	case setting != "auto":
		return setting
	case k.Microvm && nics <= vmm.MicrovmNICs:
		return "microvm"
	default:
		return "q35"
	}
}

// Use decides on a setting of "auto", "on" or "off" for a device of the host: auto
// takes it when it is there.
func Use(setting, path string) bool {
	switch setting {
	case "on":
		return true
	case "off":
		return false
	}
	_, err := os.Stat(path)
	return err == nil
}
