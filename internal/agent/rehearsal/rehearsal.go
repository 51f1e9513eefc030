// Package rehearsal has what a guest tries out before it is saved as a template:
// messages of the host's and a container that does nothing. What is made at the
// first use only, in the agent and in the kernel, is then there in every guest that
// is restored. The caller is the agent's Settle.
package rehearsal

import (
	"encoding/json"
	"fmt"

	"github.com/opencontainers/runtime-spec/specs-go"
	agentv1 "github.com/seed-efd44b36/kata/api/agent/v1"
	"google.golang.org/protobuf/proto"
)

const (
	// Program is argv[0] of the agent's program when it has nothing to do but end.
	Program = "/rehearsal"
	// agentProgram is where the initrd has it.
	agentProgram = "/init"
	// id and root are the container's.
	id   = "rehearsal"
	root = "/run/kata/rehearsal"
)

// Messages has the codec of calls prepare for those of a start.
func Messages() error {
	hop := &agentv1.Hop{Gateway: "x"}
	steps := []*agentv1.Step{{Name: "x"}}
	network := &agentv1.Network{
		Interfaces: []*agentv1.Interface{{Name: "x", Addresses: []*agentv1.Address{{Prefix: "x"}}}},
		Routes:     []*agentv1.Route{{Hops: []*agentv1.Hop{hop}, Metrics: map[uint32]uint32{1: 1}}},
		Rules:      []*agentv1.Rule{{Family: 1}},
		Neighbors:  []*agentv1.Neighbor{{State: 1}},
		Idle:       []string{"x"},
	}
	for _, m := range []proto.Message{
		&agentv1.DetailsRequest{}, &agentv1.DetailsResponse{Version: "x"},
		&agentv1.SetupSandboxRequest{
			Id: "x", Storages: []*agentv1.Storage{{Driver: "x", Options: []string{"x"}}}, Network: network,
			Sysctls: map[string]string{"x": "x"}, Entropy: []byte{1},
		},
		&agentv1.SetupSandboxResponse{Steps: steps},
		&agentv1.UpdateNetworkRequest{Network: network}, &agentv1.UpdateNetworkResponse{},
		&agentv1.WriteVolumeRequest{Files: []*agentv1.VolumeFile{{Path: "x"}}}, &agentv1.WriteVolumeResponse{},
		&agentv1.CreateContainerRequest{
			Id: "x", Spec: []byte{1}, Stdio: &agentv1.Stdio{Stdout: true}, JoinNamespaces: map[string]string{"x": "x"},
			BlockDevices: []*agentv1.BlockDevice{{Path: "x"}},
		},
		&agentv1.CreateContainerResponse{Pid: 1, Steps: steps},
		&agentv1.StartProcessRequest{Container: "x"}, &agentv1.StartProcessResponse{Pid: 1, Steps: steps},
		&agentv1.WaitProcessRequest{Container: "x"}, &agentv1.WaitProcessResponse{ExitCode: 1},
		&agentv1.CreateExecRequest{Container: "x", Stdio: &agentv1.Stdio{Stdout: true}}, &agentv1.CreateExecResponse{Steps: steps},
		&agentv1.NextEventRequest{},
	} {
		b, err := proto.Marshal(m)
		if err == nil {
			err = proto.Unmarshal(b, m)
		}
		if err != nil {
			return fmt.Errorf("rehearse messages: %w", err)
		}
	}
	return nil
}

// Container returns a container that ends at once, set up as engines do it.
func Container() (*agentv1.CreateContainerRequest, error) {
	caps := []string{"CAP_CHOWN", "CAP_KILL"}
	number := uint(1)
	major, minor := int64(5), int64(1)
	options := []string{"nosuid", "noexec", "nodev"}
	spec, err := json.Marshal(&specs.Spec{
		Version:  "1.2.0",
		Root:     &specs.Root{Path: root},
		Hostname: id,
		Process: &specs.Process{
			Args: []string{Program}, Cwd: "/", Env: []string{"PATH=/"}, NoNewPrivileges: true,
			User:         specs.User{AdditionalGids: []uint32{1}},
			Rlimits:      []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Hard: 1024, Soft: 1024}},
			Capabilities: &specs.LinuxCapabilities{Bounding: caps, Effective: caps, Permitted: caps},
		},
		Mounts: []specs.Mount{
			{Destination: "/proc", Type: "proc", Source: "proc", Options: options},
			{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "strictatime", "mode=755", "size=65536k"}},
			{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"}},
			{Destination: "/dev/shm", Type: "tmpfs", Source: "shm", Options: append([]string{"mode=1777", "size=65536k"}, options...)},
			{Destination: "/dev/mqueue", Type: "mqueue", Source: "mqueue", Options: options},
			{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: append([]string{"ro"}, options...)},
			{Destination: "/sys/fs/cgroup", Type: "cgroup", Source: "cgroup", Options: append([]string{"ro"}, options...)},
			{Destination: Program, Type: "bind", Source: agentProgram, Options: []string{"rbind", "rprivate", "ro"}},
		},
		Linux: &specs.Linux{
			Namespaces: []specs.LinuxNamespace{
				{Type: specs.PIDNamespace},
				{Type: specs.IPCNamespace},
				{Type: specs.UTSNamespace},
				{Type: specs.MountNamespace},
				{Type: specs.CgroupNamespace},
			},
			Resources: &specs.LinuxResources{Devices: []specs.LinuxDeviceCgroup{
				{Allow: false, Access: "rwm"}, {Allow: true, Type: "c", Major: &major, Minor: &minor, Access: "rwm"},
			}},
			MaskedPaths:   []string{"/proc/kcore", "/sys/firmware"},
			ReadonlyPaths: []string{"/proc/sys", "/proc/bus"},
			Seccomp: &specs.LinuxSeccomp{
				DefaultAction: specs.ActAllow, Architectures: []specs.Arch{specs.ArchX86_64, specs.ArchX86, specs.ArchX32},
				Syscalls: []specs.LinuxSyscall{
					{Names: []string{"ptrace", "personality"}, Action: specs.ActErrno, ErrnoRet: &number},
					{Names: []string{"socket"}, Action: specs.ActErrno, Args: []specs.LinuxSeccompArg{{Index: 0, Value: 40, Op: specs.OpEqualTo}}},
				},
			},
		},
	})
	if err != nil {
		return nil, fmt.Errorf("rehearse a container: %w", err)
	}
	return &agentv1.CreateContainerRequest{
		Id: id, Spec: spec, Stdio: &agentv1.Stdio{Stdout: true, Stderr: true},
		Storages: []*agentv1.Storage{{Driver: "tmpfs", Source: id, Target: root, Fstype: "tmpfs", Options: []string{"mode=755"}}},
	}, nil
}
