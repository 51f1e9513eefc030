package shim

import (
	"encoding/json"
	"fmt"

	"github.com/containerd/containerd/api/types"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"github.com/opencontainers/runtime-spec/specs-go/features"
	"github.com/seed-efd44b36/kata/internal/version"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
)

// featuresType is containerd's name for the features message of the OCI runtime
// spec, which is JSON.
const featuresType = "types.containerd.io/opencontainers/runtime-spec/1/features/Features"

// info tells containerd what the runtime can do.
func (c command) info() error {
	yes, no := true, false
	b, err := json.Marshal(features.Features{
		OCIVersionMin: "1.0.0", OCIVersionMax: specs.Version,
		Hooks: []string{"prestart", "createRuntime", "poststart", "poststop"},
		MountOptions: []string{
			"bind", "rbind", "ro", "rro", "rw", "nosuid", "nodev", "noexec", "noatime", "relatime", "private", "rprivate", "slave", "rslave",
		},
		Linux: &features.Linux{
			Namespaces:      []string{"cgroup", "ipc", "mount", "network", "pid", "uts"},
			Cgroup:          &features.Cgroup{V1: &no, V2: &yes, Systemd: &no, SystemdUser: &no, Rdma: &no},
			Seccomp:         &features.Seccomp{Enabled: &yes},
			Apparmor:        &features.Apparmor{Enabled: &no},
			Selinux:         &features.Selinux{Enabled: &no},
			MountExtensions: &features.MountExtensions{IDMap: &features.IDMap{Enabled: &no}},
		},
	})
	if err != nil {
		return fmt.Errorf("encode features: %w", err)
	}
	out, err := proto.Marshal(&types.RuntimeInfo{
		Name: "io.containerd.kata.v2", Version: &types.RuntimeVersion{Version: version.Version},
		Features: &anypb.Any{TypeUrl: featuresType, Value: b},
	})
	if err != nil {
		return fmt.Errorf("encode answer: %w", err)
	}
	_, err = c.stdout.Write(out)
	return err
}
