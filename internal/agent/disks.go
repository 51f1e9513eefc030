package agent

import (
	"context"
	"fmt"
	"slices"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	agentv1 "github.com/seed-efd44b36/kata/api/agent/v1"
	"github.com/seed-efd44b36/kata/internal/agent/disk"
)

// giveDisks puts the guest's numbers into those devices of the spec that are
// disks, and lets the container use them.
func (a *Agent) giveDisks(ctx context.Context, spec *specs.Spec, list []*agentv1.BlockDevice) error {
	for _, given := range list {
		i := slices.IndexFunc(spec.Linux.Devices, func(d specs.LinuxDevice) bool { return d.Path == given.GetPath() })
		if i < 0 {
			return fmt.Errorf("block device %q is not in the spec: %w", given.GetPath(), errInvalid)
		}
		d, err := disk.Await(ctx, a.modules, given.GetSerial())
		if err != nil {
			return fmt.Errorf("block device %q: %w", given.GetPath(), err)
		}
		major, minor := int64(d.Major), int64(d.Minor)
		spec.Linux.Devices[i].Major, spec.Linux.Devices[i].Minor = major, minor
		if spec.Linux.Resources == nil {
			spec.Linux.Resources = &specs.LinuxResources{}
		}
		spec.Linux.Resources.Devices = append(spec.Linux.Resources.Devices, specs.LinuxDeviceCgroup{
			Allow: true, Type: "b", Major: &major, Minor: &minor, Access: given.GetAccess(),
		})
	}
	return nil
}

// awaitDisks waits until the file systems of a container are gone from their
// disks, which the host is about to take away. One that stays, because another
// container has a hand on it, loses what it has not written.
func (a *Agent) awaitDisks(ctx context.Context, c *container) {
	for _, s := range c.storages {
		if s.GetDriver() != "block" {
			continue
		}
		if err := disk.AwaitUnused(ctx, s.GetSource()); err != nil {
			a.log.Warn("a disk is taken away while it is used", "container", c.id, "err", err)
		}
	}
}
