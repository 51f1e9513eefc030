package pod

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

func TestGroup(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name        string
		annotations map[string]string
		want        string
	}{
		{"alone", nil, "c"},
		{"of the CRI", map[string]string{criSandboxID: "p", criType: "container"}, "p"},
		{"of the CRI, with a user's word", map[string]string{criSandboxID: "p", group: "other"}, "p"},
		{"of containerd", map[string]string{group: "g"}, "g"},
	} {
		if got := Group("c", tt.annotations); got != tt.want {
			t.Errorf("%s: %q, want %q", tt.name, got, tt.want)
		}
	}
}

func TestResources(t *testing.T) {
	t.Parallel()
	quota, period, limit := int64(150000), uint64(100000), int64(1<<30)
	own := &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: &limit}}
	for _, tt := range []struct {
		name string
		spec specs.Spec
		want *specs.LinuxResources
		err  string
	}{
		{"alone", specs.Spec{Linux: &specs.Linux{Resources: own}}, own, ""},
		{
			"a pod's",
			specs.Spec{Linux: &specs.Linux{}, Annotations: map[string]string{
				criType: "sandbox", criQuota: "150000", criPeriod: "100000", criMemory: "1073741824", criShares: "0",
			}},
			&specs.LinuxResources{CPU: &specs.LinuxCPU{Quota: &quota, Period: &period}, Memory: &specs.LinuxMemory{Limit: &limit}}, "",
		},
		{
			"a pod without limits",
			specs.Spec{Annotations: map[string]string{criType: "sandbox", criQuota: "0", criMemory: "0"}},
			&specs.LinuxResources{CPU: &specs.LinuxCPU{}, Memory: &specs.LinuxMemory{}}, "",
		},
		{"nonsense", specs.Spec{Annotations: map[string]string{criType: "sandbox", criMemory: "much"}}, nil, "is not a number"},
	} {
		got, err := Resources(&tt.spec)
		if d := cmp.Diff(tt.want, got); d != "" {
			t.Errorf("%s: -want +got\n%s", tt.name, d)
		}
		if (err != nil) != (tt.err != "") || err != nil && !strings.Contains(err.Error(), tt.err) {
			t.Errorf("%s: %v, want %q", tt.name, err, tt.err)
		}
	}
}

func TestCgroupParent(t *testing.T) {
	t.Parallel()
	for path, want := range map[string]string{
		"":                           "",
		"/default/c":                 "/default",
		"/kubepods/burstable/pod1/c": "/kubepods/burstable/pod1",
		"/c":                         "",
		"relative/c":                 "",
		"system.slice:docker:c":      "/system.slice",
		"kubepods-burstable-pod1.slice:cri-containerd:c": "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1.slice",
		"-.slice:x:c": "",
	} {
		if got := CgroupParent(&specs.Spec{Linux: &specs.Linux{CgroupsPath: path}}); got != want {
			t.Errorf("%q: %q, want %q", path, got, want)
		}
	}
}

func TestNetNS(t *testing.T) {
	t.Parallel()
	with := specs.Spec{Linux: &specs.Linux{Namespaces: []specs.LinuxNamespace{{Type: specs.PIDNamespace}, {Type: specs.NetworkNamespace, Path: "/n"}}}}
	if got, err := NetNS(&with); got != "/n" || err != nil {
		t.Errorf("%q, %v", got, err)
	}
	if _, err := NetNS(&specs.Spec{}); err == nil || !strings.Contains(err.Error(), "host's network") {
		t.Errorf("without one: %v", err)
	}
}
