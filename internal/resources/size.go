// Package resources sizes virtual machines and puts their processes into the
// host's cgroups.
//
// The host's cgroup of a sandbox holds its owner, the VMM and its helpers, so
// that the host accounts for and limits all of a sandbox as one. Limits of the
// single containers hold in the guest's cgroups, which are the agent's.
//
// Cgroups are written by about 200 lines of our own: what an existing library
// adds (systemd over D-Bus, device filters, a container's whole configuration)
// is not needed for a handful of processes and would come with their
// dependencies.
package resources

import (
	"math"
	"runtime"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"github.com/seed-efd44b36/kata/internal/config"
)

// Limits are what a sandbox or a container may use. Zero is no limit.
type Limits struct {
	MemoryBytes int64
	// CPUs is the number of CPUs' worth of time.
	CPUs float64
}

// VM is the size of a virtual machine.
type VM struct {
	CPUs, MemoryMiB int
}

const (
	mib = 1 << 20
	// unlimited is where a memory limit is none: engines write the largest
	// number of pages, or of bytes, for "no limit".
	unlimited = 1 << 50
)

// LimitsOf takes the limits out of a container's OCI spec. r may be nil.
func LimitsOf(r *specs.LinuxResources) Limits {
	var l Limits
	if r == nil {
		return l
	}
	if r.Memory != nil && r.Memory.Limit != nil {
		l.MemoryBytes = *r.Memory.Limit
	}
	if c := r.CPU; c != nil && c.Quota != nil && *c.Quota > 0 {
		period := uint64(100_000) // the kernel's default, in microseconds
		if c.Period != nil && *c.Period > 0 {
			period = *c.Period
		}
		l.CPUs = float64(*c.Quota) / float64(period)
	}
	return l.clean()
}

// clean turns the spellings of "no limit" into zero.
func (l Limits) clean() Limits {
	if l.MemoryBytes < 0 || l.MemoryBytes >= unlimited {
		l.MemoryBytes = 0
	}
	if !(l.CPUs > 0) || math.IsInf(l.CPUs, 1) { // NaN, too
		l.CPUs = 0
	}
	return l
}

// Size gives the virtual machine for a sandbox with the given limits: memory
// for them and for the guest's own needs, and as many CPUs as they can keep
// busy, but no more than the host has. Without a limit it is the default class.
func Size(l Limits, h config.Hypervisor) VM {
	l = l.clean()
	vm := VM{CPUs: h.DefaultVCPUs, MemoryMiB: h.DefaultMemory}
	if l.MemoryBytes > 0 {
		vm.MemoryMiB = int((l.MemoryBytes+mib-1)/mib) + h.OverheadMemory
	}
	if l.CPUs > 0 {
		vm.CPUs = int(min(math.Ceil(l.CPUs), float64(runtime.NumCPU())))
	}
	// Even, because large pages are 2 MiB.
	vm.MemoryMiB = (vm.MemoryMiB + 1) &^ 1
	vm.CPUs = max(vm.CPUs, 1)
	return vm
}
