package runflags

import (
	"errors"
	"fmt"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/docker/go-units"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// devices gives block devices of the host to the container. The devices that
// every container has may be named, too.
func (f *Flags) devices(in Input, l *specs.Linux) error {
	var errs []error
	given := map[string]specs.LinuxDevice{}
	for _, flag := range f.Devices {
		source, target, access, err := parseDevice(flag)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		if source == target && slices.Contains(standardDevices, source) {
			continue
		}
		d, err := in.BlockDevice(source)
		if err != nil {
			errs = append(errs, fmt.Errorf("--device %q: %w; the virtual machine can be given block devices, and has its own %s", flag, err, strings.Join(standardDevices, ", ")))
			continue
		}
		d.Path, given[source] = target, d
		l.Devices = append(l.Devices, d)
		l.Resources.Devices = append(l.Resources.Devices, specs.LinuxDeviceCgroup{
			Allow: true, Type: "b", Major: &d.Major, Minor: &d.Minor, Access: access,
		})
	}
	return errors.Join(append(errs, f.deviceLimits(given, l.Resources))...)
}

// parseDevice parses SOURCE[:PATH][:ACCESS].
func parseDevice(flag string) (source, target, access string, err error) {
	parts := strings.Split(flag, ":")
	source, target, access = parts[0], parts[0], "rwm"
	isAccess := func(s string) bool { return s != "" && strings.Trim(s, "rwm") == "" }
	switch rest := parts[1:]; {
	case len(rest) == 2:
		target, access = rest[0], rest[1]
	case len(rest) == 1 && isAccess(rest[0]):
		access = rest[0]
	case len(rest) == 1:
		target = rest[0]
	}
	if len(parts) > 3 || !path.IsAbs(source) || !path.IsAbs(target) || !isAccess(access) {
		return "", "", "", fmt.Errorf("--device %q: want SOURCE[:PATH][:ACCESS], with absolute paths and letters of rwm", flag)
	}
	return source, target, access, nil
}

// deviceLimits limits devices that the container is given.
func (f *Flags) deviceLimits(given map[string]specs.LinuxDevice, r *specs.LinuxResources) error {
	io := &specs.LinuxBlockIO{}
	var errs []error
	for _, limit := range []struct {
		name  string
		flags []string
		list  *[]specs.LinuxThrottleDevice
		parse func(string) (int64, error)
	}{
		{"--device-read-bps", f.DeviceReadBps, &io.ThrottleReadBpsDevice, units.RAMInBytes},
		{"--device-write-bps", f.DeviceWriteBps, &io.ThrottleWriteBpsDevice, units.RAMInBytes},
		{"--device-read-iops", f.DeviceReadIOps, &io.ThrottleReadIOPSDevice, parseCount},
		{"--device-write-iops", f.DeviceWriteIOps, &io.ThrottleWriteIOPSDevice, parseCount},
	} {
		for _, flag := range limit.flags {
			source, rate, _ := strings.Cut(flag, ":")
			n, err := limit.parse(rate)
			if err != nil || n <= 0 {
				errs = append(errs, fmt.Errorf("%s %q: want SOURCE:RATE", limit.name, flag))
				continue
			}
			d, ok := given[source]
			if !ok {
				errs = append(errs, fmt.Errorf("%s %q: only what --device gives can be limited", limit.name, flag))
				continue
			}
			t := specs.LinuxThrottleDevice{Rate: uint64(n)}
			t.Major, t.Minor = d.Major, d.Minor
			*limit.list, r.BlockIO = append(*limit.list, t), io
		}
	}
	return errors.Join(errs...)
}

func parseCount(s string) (int64, error) { return strconv.ParseInt(s, 10, 64) }
