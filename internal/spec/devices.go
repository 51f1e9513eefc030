package spec

import (
	"fmt"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// maxDevices is how many block devices of the host a container may have: enough
// for any list that somebody wrote, and less than a host full of disks.
const maxDevices = 32

// devices divides the devices of the spec. Some are made by the guest's kernel,
// as by every other, and have no tie to the host's. Block devices of the host
// become disks of the machine. Others cannot be given to a guest.
func (t *translation) devices(l *specs.Linux) {
	var rules []specs.LinuxDeviceCgroup
	if l.Resources != nil {
		rules = l.Resources.Devices
	}
	var refused, denied, many []string
	for i := range l.Devices {
		d := &l.Devices[i]
		if !filepath.IsAbs(d.Path) {
			t.invalid("linux.devices", "%q is not an absolute path", d.Path)
		}
		switch {
		case d.Type == "p" || virtualDevice(*d):
		case d.Type != "b":
			refused = append(refused, d.Path)
		case len(t.plan.Devices) == maxDevices:
			many = append(many, d.Path)
		case !t.block("linux.devices", d, rules):
			denied = append(denied, d.Path)
		}
	}
	l.Devices = append(l.Devices, t.bound...)
	if l.Resources != nil {
		l.Resources.Devices = withoutNumbers(rules)
	}
	const hint = " (with a privileged container, tell the engine not to add the host's devices)"
	if len(refused) > 0 {
		t.refuse("linux.devices", "devices of the host that are not block devices cannot be given to a virtual machine: %q"+hint, few(refused))
	}
	if len(denied) > 0 {
		t.refuse("linux.devices", "no rule of linux.resources.devices lets the container read these block devices: %q", few(denied))
	}
	if len(many) > 0 {
		t.refuse("linux.devices", "more than "+strconv.Itoa(maxDevices)+" block devices, without a place for: %q"+hint, few(many))
	}
}

// few are the first of a list, and how many there are besides.
func few(list []string) string {
	const shown = 5
	text := strings.Join(list[:min(shown, len(list))], ", ")
	if n := len(list) - shown; n > 0 {
		text += fmt.Sprintf(" and %d more", n)
	}
	return text
}

// virtualDevice tells whether the device is one that every Linux kernel makes
// by itself.
func virtualDevice(d specs.LinuxDevice) bool {
	if d.Type != "c" && d.Type != "u" {
		return false
	}
	switch d.Major {
	case 1: // null, zero, full, random, urandom, kmsg
		return slices.Contains([]int64{3, 5, 7, 8, 9, 11}, d.Minor)
	case 5: // tty, console, ptmx
		return d.Minor <= 2
	case 10: // /dev/net/tun, /dev/fuse
		return d.Minor == 200 || d.Minor == 229
	}
	return false
}

// block moves a block device of the host from the guest's spec into the plan,
// if the rules let the container read it: on the host a node by itself opens
// nothing, so here it does not attach anything.
func (t *translation) block(field string, d *specs.LinuxDevice, rules []specs.LinuxDeviceCgroup) (allowed bool) {
	given := Device{
		Path: path.Clean(d.Path), Major: uint32(d.Major), Minor: uint32(d.Minor), Access: access(rules, d.Major, d.Minor),
	}
	switch {
	case d.Major <= 0 || d.Major >= 1<<12 || d.Minor < 0 || d.Minor >= 1<<20:
		t.invalid(field, "%q: there is no device number %q", d.Path, number(d.Major, d.Minor))
	case slices.ContainsFunc(t.plan.Devices, func(o Device) bool { return o.Path == given.Path }):
		t.invalid(field, "%q comes twice", d.Path)
	case !strings.Contains(given.Access, "r"):
		return false
	}
	t.plan.Devices = append(t.plan.Devices, given)
	d.Path, d.Major, d.Minor = given.Path, 0, 0
	return true
}

// bindDevice makes a device of a bind mount whose source is a block device of
// the host, and tells whether it is one. Only what the rules allow can be
// opened on the host, bound or not; so it is here.
func (t *translation) bindDevice(field string, g *specs.Spec, m *specs.Mount) bool {
	if t.opts.BlockDevice == nil || m.Source == "" || g.Linux == nil {
		return false
	}
	source := t.hostPath(m.Source)
	if guestDevice(source) {
		return false
	}
	d, ok := t.opts.BlockDevice(source)
	if !ok {
		return false
	}
	var rules []specs.LinuxDeviceCgroup
	if g.Linux.Resources != nil {
		rules = slices.Clone(g.Linux.Resources.Devices)
	}
	if slices.Contains(m.Options, "ro") || slices.Contains(m.Options, "rro") {
		rules = append(rules, specs.LinuxDeviceCgroup{Type: "b", Major: &d.Major, Minor: &d.Minor, Access: "w"})
	}
	d.Path = m.Destination
	if !t.block(field, &d, rules) {
		t.refuse(field, "no rule of linux.resources.devices lets the container read block device %q; give it to the container as a device", number(d.Major, d.Minor))
	}
	t.bound = append(t.bound, d)
	return true
}

// access is what rules let a container do with a block device: the last rule
// about it decides.
func access(rules []specs.LinuxDeviceCgroup, major, minor int64) string {
	var allowed strings.Builder
	for _, kind := range []string{"r", "w", "m"} {
		yes := false
		for _, r := range rules {
			about := (r.Type == "" || r.Type == "a" || r.Type == "b") && isAny(r.Major, major) && isAny(r.Minor, minor)
			if about && (r.Access == "" || strings.Contains(r.Access, kind)) {
				yes = r.Allow
			}
		}
		if yes {
			allowed.WriteString(kind)
		}
	}
	return allowed.String()
}

// number is a device's number as people write it.
func number(major, minor int64) string { return fmt.Sprintf("%d:%d", major, minor) }

// isAny tells whether a number of a rule, where nil and -1 stand for all, means n.
func isAny(number *int64, n int64) bool { return number == nil || *number < 0 || *number == n }

// withoutNumbers takes out the rules about single block devices, whose numbers
// are the host's: in the guest they are those of others.
func withoutNumbers(rules []specs.LinuxDeviceCgroup) []specs.LinuxDeviceCgroup {
	return slices.DeleteFunc(slices.Clone(rules), func(r specs.LinuxDeviceCgroup) bool {
		return r.Type == "b" && (r.Major != nil && *r.Major >= 0 || r.Minor != nil && *r.Minor >= 0)
	})
}

// limits takes the limits of block devices out of the guest's spec: those of
// devices that the container gets are for the host to enforce.
func (t *translation) limits(b *specs.LinuxBlockIO) {
	for _, kind := range []struct {
		field string
		list  *[]specs.LinuxThrottleDevice
		limit func(*DeviceLimits) *uint64
	}{
		{"throttleReadBpsDevice", &b.ThrottleReadBpsDevice, func(l *DeviceLimits) *uint64 { return &l.ReadBytes }},
		{"throttleWriteBpsDevice", &b.ThrottleWriteBpsDevice, func(l *DeviceLimits) *uint64 { return &l.WriteBytes }},
		{"throttleReadIOPSDevice", &b.ThrottleReadIOPSDevice, func(l *DeviceLimits) *uint64 { return &l.ReadOperations }},
		{"throttleWriteIOPSDevice", &b.ThrottleWriteIOPSDevice, func(l *DeviceLimits) *uint64 { return &l.WriteOperations }},
	} {
		for _, throttle := range *kind.list {
			given := false
			for i := range t.plan.Devices {
				d := &t.plan.Devices[i]
				if int64(d.Major) == throttle.Major && int64(d.Minor) == throttle.Minor {
					*kind.limit(&d.Limits), given = throttle.Rate, true
				}
			}
			if !given {
				t.refuse("linux.resources.blockIO."+kind.field, "the host's disk %q is not the container's; only devices that it is given can be limited", number(throttle.Major, throttle.Minor))
			}
		}
		*kind.list = nil
	}
}

// weightDevice is why weights of single disks are refused.
const weightDevice = "disks are not weighed against each other in a guest; limit them instead"
