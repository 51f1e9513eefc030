package cgroup

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/runtime-spec/specs-go"
)

func parse(t *testing.T, text string) *specs.LinuxResources {
	t.Helper()
	r := new(specs.LinuxResources)
	if err := json.Unmarshal([]byte(text), r); err != nil {
		t.Fatal(err)
	}
	return r
}

func TestSettings(t *testing.T) {
	tests := []struct{ name, resources, want string }{
		{"nothing", `{}`, ""},
		{"memory", `{"memory":{"limit":1000,"swap":1500,"reservation":500}}`, "memory.swap.max=500 memory.max=1000 memory.low=500"},
		{"no memory limit", `{"memory":{"limit":-1,"swap":-1}}`, "memory.swap.max=max memory.max=max"},
		{"harmless memory fields", `{"memory":{"kernel":-1,"disableOOMKiller":false,"useHierarchy":true}}`, ""},
		{"shares", `{"cpu":{"shares":1024}}`, "cpu.weight=100"},
		{"least shares", `{"cpu":{"shares":2}}`, "cpu.weight=1"},
		{"most shares", `{"cpu":{"shares":262144}}`, "cpu.weight=10000"},
		{"quota", `{"cpu":{"quota":50000,"period":100000,"burst":1000}}`, "cpu.max=50000 100000 cpu.max.burst=1000"},
		{"no quota", `{"cpu":{"quota":-1,"period":100000}}`, "cpu.max=max 100000"},
		{"quota alone", `{"cpu":{"quota":5000}}`, "cpu.max=5000"},
		{"cpuset", `{"cpu":{"cpus":"0-1","mems":"0"}}`, "cpuset.cpus=0-1 cpuset.mems=0"},
		{"idle", `{"cpu":{"idle":1,"shares":2}}`, "cpu.idle=1"},
		{"pids", `{"pids":{"limit":10}}`, "pids.max=10"},
		{"no pids", `{"pids":{"limit":-1}}`, "pids.max=max"},
		{
			"block I/O",
			`{"blockIO":{"weight":10,"throttleReadBpsDevice":[{"major":8,"minor":0,"rate":7}],"throttleWriteIOPSDevice":[{"major":8,"minor":1,"rate":0}]}}`,
			"io.weight=default 1 io.max=8:0 rbps=7 io.max=8:1 wiops=max",
		},
		{"huge pages", `{"hugepageLimits":[{"pageSize":"2MB","limit":4}]}`, "hugetlb.2MB.max=4 hugetlb.2MB.rsvd.max=4"},
		{"rdma", `{"rdma":{"mlx":{"hcaHandles":3,"hcaObjects":4}}}`, "rdma.max=mlx hca_handle=3 hca_object=4"},
		{"unified", `{"unified":{"memory.high":"10","io.max":"8:0 rbps=1\n8:1 rbps=2"}}`, "io.max=8:0 rbps=1 io.max=8:1 rbps=2 memory.high=10"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			list, err := settings(parse(t, tt.resources), false)
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, s := range list {
				got = append(got, s.file+"="+s.value)
			}
			if d := cmp.Diff(tt.want, strings.Join(got, " ")); d != "" {
				t.Errorf("(-want +got)\n%s", d)
			}
		})
	}
}

func TestSettingsRefused(t *testing.T) {
	tests := []struct{ resources, want string }{
		{`{"memory":{"kernel":5}}`, "memory.kernel"},
		{`{"memory":{"kernelTCP":5}}`, "memory.kernelTCP"},
		{`{"memory":{"swappiness":60}}`, "memory.swappiness"},
		{`{"memory":{"disableOOMKiller":true}}`, "memory.disableOOMKiller"},
		{`{"memory":{"useHierarchy":false}}`, "memory.useHierarchy"},
		{`{"memory":{"swap":5}}`, "memory.swap"},
		{`{"memory":{"limit":10,"swap":5}}`, "memory.swap"},
		{`{"cpu":{"realtimeRuntime":5}}`, "cpu.realtimeRuntime"},
		{`{"blockIO":{"leafWeight":5}}`, "blockIO.leafWeight"},
		{`{"blockIO":{"weight":5}}`, "blockIO.weight"},
		{`{"network":{"classID":5}}`, "resources.network"},
		{`{"unified":{"cgroup.procs":"1"}}`, "resources.unified"},
		{`{"unified":{"../memory.max":"1"}}`, "resources.unified"},
		{`{"hugepageLimits":[{"pageSize":"../x","limit":4}]}`, "hugepageLimits"},
	}
	for _, tt := range tests {
		if list, err := settings(parse(t, tt.resources), false); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: got %v, %v; want an error about %s", tt.resources, list, err, tt.want)
		}
	}
}

func TestUpdateOfPeriodNeedsQuota(t *testing.T) {
	if _, err := settings(parse(t, `{"cpu":{"period":1000}}`), true); err == nil {
		t.Error("got no error")
	}
}
