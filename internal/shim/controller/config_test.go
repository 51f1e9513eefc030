package controller

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	criv1 "github.com/seed-efd44b36/kata/api/cri/v1"
	"github.com/seed-efd44b36/kata/internal/sandbox"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// TestParse reads what the CRI's own code has written.
func TestParse(t *testing.T) {
	t.Parallel()
	in := &cri.PodSandboxConfig{
		Metadata: &cri.PodSandboxMetadata{Name: "n", Uid: "u"}, Hostname: "h", LogDirectory: "/l",
		DnsConfig: &cri.DNSConfig{Servers: []string{"1.1.1.1"}, Searches: []string{"s"}, Options: []string{"o"}},
		Linux: &cri.LinuxPodSandboxConfig{
			CgroupParent: "/p", Sysctls: map[string]string{"net.core.somaxconn": "1"},
			SecurityContext: &cri.LinuxSandboxSecurityContext{NamespaceOptions: &cri.NamespaceOption{
				Pid: cri.NamespaceMode_CONTAINER, Ipc: cri.NamespaceMode_NODE, UsernsOptions: &cri.UserNamespace{Mode: cri.NamespaceMode_NODE},
			}},
			Resources: &cri.LinuxContainerResources{CpuPeriod: 1, CpuQuota: 2, CpuShares: 3, MemoryLimitInBytes: 4, CpusetCpus: "5"},
		},
	}
	b, err := proto.Marshal(in)
	if err != nil {
		t.Fatal(err)
	}
	got, err := parse(&anypb.Any{TypeUrl: configType, Value: b})
	if err != nil {
		t.Fatal(err)
	}
	l := got.GetLinux()
	ns, r := l.GetSecurityContext().GetNamespaceOptions(), l.GetResources()
	for what, ok := range map[string]bool{
		"hostname": got.GetHostname() == "h", "sysctls": l.GetSysctls()["net.core.somaxconn"] == "1", "cgroup": l.GetCgroupParent() == "/p",
		"dns":        resolvConf(got.GetDnsConfig()) == "search s\nnameserver 1.1.1.1\noptions o\n",
		"namespaces": ns.GetPid() == criv1.NamespaceMode_CONTAINER && ns.GetIpc() == criv1.NamespaceMode_NODE && ns.GetUsernsOptions().GetMode() == criv1.NamespaceMode_NODE,
		"resources":  r.GetCpuPeriod() == 1 && r.GetCpuQuota() == 2 && r.GetCpuShares() == 3 && r.GetMemoryLimitInBytes() == 4 && r.GetCpusetCpus() == "5",
	} {
		if !ok {
			t.Errorf("%s: %v", what, got)
		}
	}
	if _, err := parse(nil); err != nil {
		t.Errorf("without options: %v", err)
	}
	if _, err := parse(&anypb.Any{TypeUrl: "x.Other"}); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("of another type: %v", err)
	}
	if _, err := parse(&anypb.Any{TypeUrl: configType, Value: []byte{0xff}}); !errors.Is(err, sandbox.ErrInvalid) {
		t.Errorf("broken: %v", err)
	}
}

func TestBootOptions(t *testing.T) {
	t.Parallel()
	with := func(o *criv1.NamespaceOption) *criv1.PodSandboxConfig {
		return &criv1.PodSandboxConfig{Linux: &criv1.LinuxPodSandboxConfig{SecurityContext: &criv1.LinuxSandboxSecurityContext{NamespaceOptions: o}}}
	}
	for _, tt := range []struct {
		name, netns string
		conf        *criv1.PodSandboxConfig
		want        string // in the error
	}{
		{"plain", "/n", &criv1.PodSandboxConfig{}, ""},
		{"no network namespace", "", &criv1.PodSandboxConfig{}, "host's network"},
		{"host network", "/n", with(&criv1.NamespaceOption{Network: criv1.NamespaceMode_NODE}), "host's network"},
		{"host processes", "/n", with(&criv1.NamespaceOption{Pid: criv1.NamespaceMode_NODE}), "hostPID"},
		{"host IPC", "/n", with(&criv1.NamespaceOption{Ipc: criv1.NamespaceMode_NODE}), "hostIPC"},
		{"user namespace", "/n", with(&criv1.NamespaceOption{UsernsOptions: &criv1.UserNamespace{}}), "hostUsers"},
		{"none of it", "/n", with(&criv1.NamespaceOption{UsernsOptions: &criv1.UserNamespace{Mode: criv1.NamespaceMode_NODE}}), ""},
	} {
		o, err := bootOptions("id", tt.conf, tt.netns)
		switch {
		case tt.want == "" && (err != nil || o.NetNS != tt.netns || o.Pod == nil):
			t.Errorf("%s: %+v, %v", tt.name, o, err)
		case tt.want != "" && (!errors.Is(err, errors.ErrUnsupported) || !strings.Contains(err.Error(), tt.want)):
			t.Errorf("%s: %v, want %q", tt.name, err, tt.want)
		}
	}
	quota, period, limit := int64(150000), uint64(100000), int64(1<<30)
	o, err := bootOptions("id", &criv1.PodSandboxConfig{Hostname: "h", Linux: &criv1.LinuxPodSandboxConfig{
		CgroupParent: "/kubepods/pod1", Sysctls: map[string]string{"net/ipv4/ip_unprivileged_port_start": "7"},
		Resources: &criv1.LinuxContainerResources{CpuQuota: quota, CpuPeriod: int64(period), CpuShares: -1, MemoryLimitInBytes: limit, CpusetCpus: "1"},
	}}, "/n")
	if err != nil {
		t.Fatal(err)
	}
	want := &sandbox.BootOptions{
		Hostname: "h", NetNS: "/n", CgroupParent: "/kubepods/pod1", Pod: &sandbox.Pod{},
		Sysctls:   map[string]string{"net.ipv4.ip_unprivileged_port_start": "7", "net.ipv4.ping_group_range": "0 2147483647"},
		Resources: &specs.LinuxResources{CPU: &specs.LinuxCPU{Quota: &quota, Period: &period, Cpus: "1"}, Memory: &specs.LinuxMemory{Limit: &limit}},
	}
	if d := cmp.Diff(want, o); d != "" {
		t.Errorf("-want +got\n%s", d)
	}
}

func TestCgroupParent(t *testing.T) {
	t.Parallel()
	for parent, want := range map[string]string{
		"": "", "/kubepods/burstable/pod1": "/kubepods/burstable/pod1",
		"/kubepods.slice/kubepods-pod1.slice": "/kubepods.slice/kubepods-pod1.slice",
	} {
		if got := cgroupParent("id", parent); got != want {
			t.Errorf("%q: %q, want %q", parent, got, want)
		}
	}
}

func TestWriteFiles(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	mounts, err := writeFiles(dir, &criv1.PodSandboxConfig{Hostname: "h", DnsConfig: &criv1.DNSConfig{Servers: []string{"a", "b"}}})
	if err != nil {
		t.Fatal(err)
	}
	hosts, err := os.ReadFile(hostsFile)
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	for _, m := range mounts {
		b, err := os.ReadFile(m.Source)
		if err != nil || filepath.Dir(m.Source) != dir {
			t.Errorf("%s: %v", m.Source, err)
		}
		got[m.Destination] = string(b)
	}
	want := map[string]string{"/etc/hostname": "h\n", "/etc/hosts": string(hosts), "/etc/resolv.conf": "nameserver a\nnameserver b\n"}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("-want +got\n%s", d)
	}
}
