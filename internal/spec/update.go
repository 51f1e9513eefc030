package spec

import (
	"fmt"
	"reflect"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// GuestUpdate returns the limits that the guest is to change a running
// container's to, and warnings about what is not enforced. Engines send all that
// the container s was created with along: what only names hardware of the host
// stays as it is, and a change of it is an error that wraps ErrUnsupported. r is
// not changed.
func GuestUpdate(r *specs.LinuxResources, s *specs.Spec) (guest *specs.LinuxResources, warnings []string, err error) {
	g := *r
	// Rules about devices do not change with runc either.
	g.Devices = nil
	if c := r.CPU; c != nil && (c.Cpus != "" || c.Mems != "") {
		cpu := *c
		cpu.Cpus, cpu.Mems = "", ""
		g.CPU = &cpu
		warnings = append(warnings, "cpuset: a running sandbox keeps its CPUs")
	}
	if r.BlockIO == nil {
		return &g, warnings, nil
	}
	var old specs.LinuxBlockIO
	if s.Linux != nil && s.Linux.Resources != nil && s.Linux.Resources.BlockIO != nil {
		old = *s.Linux.Resources.BlockIO
	}
	var ps problems
	io := *r.BlockIO
	g.BlockIO = &io
	for _, l := range []struct {
		field    string
		new, old *[]specs.LinuxThrottleDevice
	}{
		{"throttleReadBpsDevice", &io.ThrottleReadBpsDevice, &old.ThrottleReadBpsDevice},
		{"throttleWriteBpsDevice", &io.ThrottleWriteBpsDevice, &old.ThrottleWriteBpsDevice},
		{"throttleReadIOPSDevice", &io.ThrottleReadIOPSDevice, &old.ThrottleReadIOPSDevice},
		{"throttleWriteIOPSDevice", &io.ThrottleWriteIOPSDevice, &old.ThrottleWriteIOPSDevice},
	} {
		if len(*l.new) > 0 && !reflect.DeepEqual(*l.new, *l.old) {
			ps.refuse("linux.resources.blockIO."+l.field, "the limits of a disk cannot be changed while the machine has it")
		}
		*l.new = nil
	}
	if len(io.WeightDevice) > 0 {
		ps.refuse("linux.resources.blockIO.weightDevice", weightDevice)
	}
	if err := ps.err(); err != nil {
		return nil, nil, fmt.Errorf("its resources:\n%w", err)
	}
	return &g, warnings, nil
}
