package pods

import (
	"fmt"
	"os"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"github.com/seed-efd44b36/kata/internal/oci/record"
)

// TestLeader has a pod whose first container's kata-shim is this test.
func TestLeader(t *testing.T) {
	t.Parallel()
	root := record.Root(t.TempDir())
	self, err := record.Identify(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	for id, shim := range map[string]record.Process{"pod": self, "dead": {PID: self.PID, Start: self.Start + 1}} {
		e, err := root.Create(id)
		if err == nil {
			err = e.Write(record.Record{Sandbox: id, Shim: shim, Ready: true})
			e.Unlock()
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	at := func(path string) *specs.Linux {
		return &specs.Linux{Namespaces: []specs.LinuxNamespace{{Type: specs.PIDNamespace}, {Type: specs.NetworkNamespace, Path: path}}}
	}
	own := fmt.Sprintf("/proc/%d/ns/net", self.PID)
	for _, tt := range []struct {
		name string
		spec specs.Spec
		want string
		err  string
	}{
		{"alone", specs.Spec{Linux: at("")}, "", ""},
		{"of the CRI", specs.Spec{Annotations: map[string]string{criType: "container", criSandboxID: "pod"}, Linux: at(own)}, "pod", ""},
		{"of another's pod", specs.Spec{Annotations: map[string]string{criType: "container", criSandboxID: "pod"}, Linux: at("/proc/self/ns/mnt")}, "", "not its network namespace"},
		{"of the CRI, on its own network", specs.Spec{Annotations: map[string]string{criType: "container", criSandboxID: "pod"}, Linux: at("")}, "", "does not share"},
		{"of a pod that has ended", specs.Spec{Annotations: map[string]string{criType: "container", criSandboxID: "dead"}, Linux: at(own)}, "", "it has ended"},
		{"of CRI-O's infra, with what a user wrote", specs.Spec{Annotations: map[string]string{crioType: "sandbox", criType: "container", criSandboxID: "pod"}, Linux: at("")}, "", ""},
		{"the CRI's pod itself", specs.Spec{Annotations: map[string]string{criType: "sandbox", criSandboxID: "c"}}, "", ""},
		{"of CRI-O", specs.Spec{Annotations: map[string]string{crioType: "container", crioSandboxID: "pod"}, Linux: at(own)}, "pod", ""},
		{"of a pod that is gone", specs.Spec{Annotations: map[string]string{crioType: "container", crioSandboxID: "no"}, Linux: at(own)}, "", "pod sandbox no"},
		{"of Podman, without infra", specs.Spec{Annotations: map[string]string{crioType: "container", crioSandboxID: "no", manager: libpod}, Linux: at("")}, "", ""},
		{"of Podman, by a namespace", specs.Spec{Annotations: map[string]string{crioType: "container", crioSandboxID: "no", manager: libpod}, Linux: at(own)}, "pod", ""},
		{"by a namespace", specs.Spec{Linux: at(own)}, "pod", ""},
		{"a namespace of another's process", specs.Spec{Linux: at("/proc/1/ns/net")}, "", ""},
		{"a namespace with a name", specs.Spec{Linux: at("/run/netns/x")}, "", ""},
	} {
		leader, err := Leader(root, "c", &tt.spec)
		got := ""
		if leader != nil {
			got = leader.ID
		}
		if got != tt.want || (err == nil) != (tt.err == "") || err != nil && !strings.Contains(err.Error(), tt.err) {
			t.Errorf("%s: %q, %v; want %q, %q", tt.name, got, err, tt.want, tt.err)
		}
	}
}
