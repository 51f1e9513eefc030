package controller

import (
	"errors"
	"fmt"
	"path"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	criv1 "github.com/seed-efd44b36/kata/api/cri/v1"
	"github.com/seed-efd44b36/kata/internal/pod"
	"github.com/seed-efd44b36/kata/internal/sandbox"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
)

// configType is containerd's name for the message that describes a pod.
const configType = "runtime.v1.PodSandboxConfig"

// parse reads the description of the pod. Without one all is as by default.
func parse(options *anypb.Any) (*criv1.PodSandboxConfig, error) {
	conf := &criv1.PodSandboxConfig{}
	if options.GetTypeUrl() == "" && len(options.GetValue()) == 0 {
		return conf, nil
	}
	if name := path.Base(options.GetTypeUrl()); name != configType {
		return nil, fmt.Errorf("options of type %q: only the CRI's %s is understood: %w", name, configType, errors.ErrUnsupported)
	}
	if err := proto.Unmarshal(options.GetValue(), conf); err != nil {
		return nil, fmt.Errorf("%s: %w: %w", configType, sandbox.ErrInvalid, err)
	}
	return conf, nil
}

// bootOptions are those of a sandbox for the pod.
func bootOptions(id string, conf *criv1.PodSandboxConfig, netns string) (*sandbox.BootOptions, error) {
	linux := conf.GetLinux()
	ns := linux.GetSecurityContext().GetNamespaceOptions()
	if netns == "" || ns.GetNetwork() == criv1.NamespaceMode_NODE {
		return nil, fmt.Errorf("%w: %w", pod.ErrHostNetwork, errors.ErrUnsupported)
	}
	for what, mode := range map[string]criv1.NamespaceMode{"processes (hostPID)": ns.GetPid(), "IPC (hostIPC)": ns.GetIpc()} {
		if mode == criv1.NamespaceMode_NODE {
			return nil, fmt.Errorf("it asks for the host's %s, which a virtual machine does not have; take that away from the pod, or run it with another runtime: %w", what, errors.ErrUnsupported)
		}
	}
	if u := ns.GetUsernsOptions(); u != nil && u.GetMode() != criv1.NamespaceMode_NODE {
		return nil, fmt.Errorf("user namespaces (hostUsers: false) are not supported; the virtual machine already keeps root of the container from being root of the host: %w", errors.ErrUnsupported)
	}
	return &sandbox.BootOptions{
		Hostname: conf.GetHostname(), NetNS: netns, Sysctls: sysctls(linux.GetSysctls()),
		Resources: resources(linux.GetResources()), CgroupParent: cgroupParent(id, linux.GetCgroupParent()),
		Pod: &sandbox.Pod{},
	}, nil
}

// sysctls are the pod's, and those that containerd 2 sets by default for a pod
// with a network of its own: whoever is in it may bind any port, and ping.
func sysctls(own map[string]string) map[string]string {
	all := map[string]string{"net.ipv4.ip_unprivileged_port_start": "0", "net.ipv4.ping_group_range": "0 2147483647"}
	for name, value := range own {
		all[strings.ReplaceAll(name, "/", ".")] = value
	}
	return all
}

// resources are the limits of the pod. 0 and less are none.
func resources(r *criv1.LinuxContainerResources) *specs.LinuxResources {
	cpu, memory := &specs.LinuxCPU{Cpus: r.GetCpusetCpus()}, &specs.LinuxMemory{}
	if n := r.GetCpuQuota(); n > 0 {
		cpu.Quota = &n
	}
	if n := r.GetMemoryLimitInBytes(); n > 0 {
		memory.Limit = &n
	}
	if n := uint64(max(r.GetCpuPeriod(), 0)); n > 0 {
		cpu.Period = &n
	}
	if n := uint64(max(r.GetCpuShares(), 0)); n > 0 {
		cpu.Shares = &n
	}
	return &specs.LinuxResources{CPU: cpu, Memory: memory}
}

// cgroupParent is where the pod's cgroup is, given as a path, or as that of a
// slice of systemd.
func cgroupParent(id, parent string) string {
	if parent == "" {
		return ""
	}
	cgroup := path.Join(parent, id)
	if slice := path.Base(parent); strings.HasSuffix(slice, ".slice") {
		cgroup = slice + ":kata:" + id
	}
	return pod.CgroupParent(&specs.Spec{Linux: &specs.Linux{CgroupsPath: cgroup}})
}
