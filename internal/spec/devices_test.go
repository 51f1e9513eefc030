package spec

import (
	"errors"
	"io/fs"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// rule is a rule about block devices; -1 stands for any number.
func rule(allow bool, typ string, major, minor int64, access string) specs.LinuxDeviceCgroup {
	r := specs.LinuxDeviceCgroup{Allow: allow, Type: typ, Access: access}
	if major >= 0 {
		r.Major = &major
	}
	if minor >= 0 {
		r.Minor = &minor
	}
	return r
}

func TestBlockDeviceAccess(t *testing.T) {
	nothing := rule(false, "a", -1, -1, "rwm")
	for name, tc := range map[string]struct {
		rules []specs.LinuxDeviceCgroup
		want  string // empty: refused
	}{
		"no rules":               {nil, ""},
		"nothing":                {[]specs.LinuxDeviceCgroup{nothing}, ""},
		"read and write":         {[]specs.LinuxDeviceCgroup{nothing, rule(true, "b", 8, 16, "rw")}, "rw"},
		"all":                    {[]specs.LinuxDeviceCgroup{nothing, rule(true, "b", 8, 16, "rwm")}, "rwm"},
		"read":                   {[]specs.LinuxDeviceCgroup{nothing, rule(true, "b", 8, 16, "r")}, "r"},
		"write alone":            {[]specs.LinuxDeviceCgroup{nothing, rule(true, "b", 8, 16, "w")}, ""},
		"no letters are all":     {[]specs.LinuxDeviceCgroup{rule(true, "b", 8, 16, "")}, "rwm"},
		"another":                {[]specs.LinuxDeviceCgroup{rule(true, "b", 8, 17, "rwm"), rule(true, "c", 8, 16, "rwm")}, ""},
		"every minor":            {[]specs.LinuxDeviceCgroup{rule(true, "b", 8, -1, "rm")}, "rm"},
		"every device":           {[]specs.LinuxDeviceCgroup{rule(true, "a", -1, -1, "rwm")}, "rwm"},
		"the last one decides":   {[]specs.LinuxDeviceCgroup{rule(true, "b", 8, 16, "rwm"), rule(false, "b", 8, 16, "w")}, "rm"},
		"denied after it":        {[]specs.LinuxDeviceCgroup{rule(true, "b", 8, 16, "rwm"), nothing}, ""},
		"-1 stands for all, too": {[]specs.LinuxDeviceCgroup{{Allow: true, Type: "b", Major: new(int64(-1)), Minor: new(int64(-1)), Access: "r"}}, "r"},
	} {
		t.Run(name, func(t *testing.T) {
			s := base()
			s.Linux.Devices = []specs.LinuxDevice{{Path: "/dev/./data", Type: "b", Major: 8, Minor: 16}}
			s.Linux.Resources = &specs.LinuxResources{Devices: tc.rules}
			plan, err := Translate(s, options())
			if tc.want == "" {
				if !errors.Is(err, ErrUnsupported) || !strings.Contains(err.Error(), "linux.devices") {
					t.Errorf("got %v, want ErrUnsupported", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			want := []Device{{Path: "/dev/data", Major: 8, Minor: 16, Access: tc.want}}
			if d := cmp.Diff(want, plan.Devices); d != "" {
				t.Errorf("devices (-want +got):\n%s", d)
			}
			if want := []specs.LinuxDevice{{Path: "/dev/data", Type: "b"}}; !cmp.Equal(want, plan.Guest.Linux.Devices) {
				t.Errorf("the guest's devices: %v", plan.Guest.Linux.Devices)
			}
			for _, r := range plan.Guest.Linux.Resources.Devices {
				if r.Type == "b" && r.Major != nil && *r.Major >= 0 {
					t.Errorf("the guest gets a rule with a number of the host: %v", r)
				}
			}
		})
	}
}

func TestBlockDevicesAreRefused(t *testing.T) {
	for name, tc := range map[string]struct {
		devices []specs.LinuxDevice
		kind    error
	}{
		"twice":      {[]specs.LinuxDevice{{Path: "/dev/x", Type: "b", Major: 8}, {Path: "/dev//x", Type: "b", Major: 9}}, ErrInvalid},
		"no number":  {[]specs.LinuxDevice{{Path: "/dev/x", Type: "b", Major: -1}}, ErrInvalid},
		"zero":       {[]specs.LinuxDevice{{Path: "/dev/x", Type: "b"}}, ErrInvalid},
		"big number": {[]specs.LinuxDevice{{Path: "/dev/x", Type: "b", Major: 8, Minor: 1 << 20}}, ErrInvalid},
		"characters": {[]specs.LinuxDevice{{Path: "/dev/x", Type: "c", Major: 4}}, ErrUnsupported},
	} {
		t.Run(name, func(t *testing.T) {
			s := base()
			s.Linux.Devices = tc.devices
			s.Linux.Resources = &specs.LinuxResources{Devices: []specs.LinuxDeviceCgroup{{Allow: true, Access: "rwm"}}}
			if _, err := Translate(s, options()); !errors.Is(err, tc.kind) || !strings.Contains(err.Error(), "linux.devices") {
				t.Errorf("got %v, want %v", err, tc.kind)
			}
		})
	}
}

func TestBindOfABlockDevice(t *testing.T) {
	mode := fs.FileMode(0o640)
	o := options()
	o.BlockDevice = func(path string) (specs.LinuxDevice, bool) {
		return specs.LinuxDevice{Type: "b", Major: 7, Minor: 3, FileMode: &mode}, path == "/dev/loop3"
	}
	bind := func(options ...string) *specs.Spec {
		s := base()
		s.Mounts = append(s.Mounts, specs.Mount{Destination: "/data", Type: "bind", Source: "/dev/loop3", Options: options})
		return s
	}
	if _, err := Translate(bind(), o); !errors.Is(err, ErrUnsupported) || !strings.Contains(err.Error(), "(/data)") {
		t.Errorf("without a rule: got %v, want ErrUnsupported", err)
	}
	for name, want := range map[string]string{"rw": "rw", "ro": "r"} {
		s := bind("rbind", name)
		s.Linux.Resources = &specs.LinuxResources{Devices: []specs.LinuxDeviceCgroup{rule(true, "b", 7, 3, "rw")}}
		plan, err := Translate(s, o)
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff([]Device{{Path: "/data", Major: 7, Minor: 3, Access: want}}, plan.Devices); d != "" {
			t.Errorf("%s (-want +got):\n%s", name, d)
		}
		if d := cmp.Diff([]specs.LinuxDevice{{Path: "/data", Type: "b", FileMode: &mode}}, plan.Guest.Linux.Devices); d != "" {
			t.Errorf("%s: the guest's devices (-want +got):\n%s", name, d)
		}
		if slices.ContainsFunc(plan.Guest.Mounts, func(m specs.Mount) bool { return m.Destination == "/data" }) || len(plan.Guest.Mounts) != len(base().Mounts) {
			t.Errorf("%s: the guest's mounts: %v", name, plan.Guest.Mounts)
		}
	}
}

func TestLimitsOfDevices(t *testing.T) {
	throttle := func(minor int64, rate uint64) []specs.LinuxThrottleDevice {
		d := specs.LinuxThrottleDevice{Rate: rate}
		d.Major, d.Minor = 8, minor
		return []specs.LinuxThrottleDevice{d}
	}
	s := base()
	s.Linux.Devices = []specs.LinuxDevice{{Path: "/dev/x", Type: "b", Major: 8, Minor: 16}}
	s.Linux.Resources = &specs.LinuxResources{
		Devices: []specs.LinuxDeviceCgroup{rule(true, "b", 8, 16, "rw")},
		BlockIO: &specs.LinuxBlockIO{
			ThrottleReadBpsDevice: throttle(16, 1), ThrottleWriteBpsDevice: throttle(16, 2),
			ThrottleReadIOPSDevice: throttle(16, 3), ThrottleWriteIOPSDevice: throttle(16, 4),
		},
	}
	plan, err := Translate(s, options())
	if err != nil {
		t.Fatal(err)
	}
	if want := (DeviceLimits{1, 2, 3, 4}); plan.Devices[0].Limits != want {
		t.Errorf("got %+v, want %+v", plan.Devices[0].Limits, want)
	}
	if d := cmp.Diff(&specs.LinuxBlockIO{}, plan.Guest.Linux.Resources.BlockIO); d != "" {
		t.Errorf("the guest's (-want +got):\n%s", d)
	}
	s.Linux.Resources.BlockIO.ThrottleReadIOPSDevice = throttle(0, 1)
	if _, err := Translate(s, options()); !errors.Is(err, ErrUnsupported) || !strings.Contains(err.Error(), `throttleReadIOPSDevice: the host's disk "8:0"`) {
		t.Errorf("of a disk that is not the container's: got %v, want ErrUnsupported", err)
	}

	// An engine sends all of it along with an update.
	s.Linux.Resources.BlockIO.ThrottleReadIOPSDevice = nil
	r, _, err := GuestUpdate(s.Linux.Resources, s)
	if err != nil || r.Devices != nil || r.BlockIO.ThrottleReadBpsDevice != nil {
		t.Errorf("update to the same: got %+v, %v", r, err)
	}
	if s.Linux.Resources.Devices == nil || s.Linux.Resources.BlockIO.ThrottleReadBpsDevice == nil {
		t.Error("the update has changed what it was given")
	}
	changed := *s.Linux.Resources
	changed.BlockIO = &specs.LinuxBlockIO{ThrottleReadBpsDevice: throttle(16, 5)}
	if _, _, err := GuestUpdate(&changed, s); !errors.Is(err, ErrUnsupported) || !strings.Contains(err.Error(), "throttleReadBpsDevice") {
		t.Errorf("update to others: got %v, want ErrUnsupported", err)
	}
}

func TestRootOnDisk(t *testing.T) {
	o := options()
	o.RootOnDisk = true
	plan, err := Translate(base(), o)
	if err != nil || plan.Guest.Root.Path != GuestDisks+"/c1" {
		t.Errorf("got %v, %v", plan, err)
	}
}
