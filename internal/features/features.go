// Package features tells engines what the runtime can do: containerd, which asks
// before it starts anything (`containerd-shim-kata-v2 -info`), and others by
// `kata-runtime features`. It is pure.
package features

import (
	"encoding/json"
	"fmt"

	"github.com/containerd/containerd/api/types"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	oci "github.com/opencontainers/runtime-spec/specs-go/features"
	"github.com/seed-efd44b36/kata/internal/version"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
)

// typeURL is containerd's name for the features message of the OCI runtime
// spec, which is JSON.
const typeURL = "types.containerd.io/opencontainers/runtime-spec/1/features/Features"

// OCI is what the runtime can do, in the form of the OCI runtime spec.
func OCI() oci.Features {
	yes, no := true, false
	return oci.Features{
		OCIVersionMin: "1.0.0", OCIVersionMax: specs.Version,
		Hooks: []string{"prestart", "createRuntime", "startContainer", "poststart", "poststop"},
		MountOptions: []string{
			"bind", "rbind", "ro", "rro", "rw", "nosuid", "nodev", "noexec", "noatime", "relatime", "private", "rprivate", "slave", "rslave",
		},
		Linux: &oci.Linux{
			Namespaces:      []string{"cgroup", "ipc", "mount", "network", "pid", "time", "uts"},
			Cgroup:          &oci.Cgroup{V1: &no, V2: &yes, Systemd: &no, SystemdUser: &no, Rdma: &no},
			Seccomp:         &oci.Seccomp{Enabled: &yes},
			Apparmor:        &oci.Apparmor{Enabled: &no},
			Selinux:         &oci.Selinux{Enabled: &no},
			MountExtensions: &oci.MountExtensions{IDMap: &oci.IDMap{Enabled: &no}},
		},
	}
}

// Info is the answer: a RuntimeInfo of containerd's API, encoded.
func Info() ([]byte, error) {
	b, err := json.Marshal(OCI())
	if err != nil {
		return nil, fmt.Errorf("encode features: %w", err)
	}
	out, err := proto.Marshal(&types.RuntimeInfo{
		Name: "io.containerd.kata.v2", Version: &types.RuntimeVersion{Version: version.Version},
		Features: &anypb.Any{TypeUrl: typeURL, Value: b},
	})
	if err != nil {
		return nil, fmt.Errorf("encode answer: %w", err)
	}
	return out, nil
}
