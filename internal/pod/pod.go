// Package pod reads out of an OCI runtime spec what is said about the pod of a
// container: which sandbox it belongs to, and what the sandbox is to be like.
// Engines say the first by annotations. It is pure; the spec comes from the
// engine, its annotations from the engine and in part from users.
package pod

import (
	"errors"
	"fmt"
	"path/filepath"
	"strconv"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// The annotations that are read.
const (
	criType      = "io.kubernetes.cri.container-type" // "sandbox" or "container"
	criSandboxID = "io.kubernetes.cri.sandbox-id"
	criPeriod    = "io.kubernetes.cri.sandbox-cpu-period"
	criQuota     = "io.kubernetes.cri.sandbox-cpu-quota"
	criShares    = "io.kubernetes.cri.sandbox-cpu-shares"
	criMemory    = "io.kubernetes.cri.sandbox-memory"
	group        = "io.containerd.runc.v2.group" // containerd's own, for any shim
)

// Group is the id of the container that the sandbox of container id is made
// for: id itself, or that of another. What the CRI says comes first: unlike
// containerd's own annotation, users of Kubernetes cannot set it.
func Group(id string, annotations map[string]string) string {
	for _, key := range []string{criSandboxID, group} {
		if v := annotations[key]; v != "" {
			return v
		}
	}
	return id
}

// IsSandbox tells whether the container stands for a whole pod.
func IsSandbox(annotations map[string]string) bool { return annotations[criType] == "sandbox" }

// NetNS is the path of the network namespace that the sandbox gets, empty for a
// new one. A container without one would share the host's, which is refused.
func NetNS(s *specs.Spec) (string, error) {
	if s.Linux != nil {
		for _, ns := range s.Linux.Namespaces {
			if ns.Type == specs.NetworkNamespace {
				return ns.Path, nil
			}
		}
	}
	return "", ErrHostNetwork
}

// ErrHostNetwork says that a container or pod would share the host's network.
var ErrHostNetwork = errors.New("it asks for the host's network, which a virtual machine cannot use; take the host network away from the container or pod, or run it with another runtime")

// Resources are the limits that size the sandbox: those of all containers of a
// pod together, as the engine has summed them up, or of the only container.
func Resources(s *specs.Spec) (*specs.LinuxResources, error) {
	if !IsSandbox(s.Annotations) {
		if s.Linux == nil {
			return nil, nil
		}
		return s.Linux.Resources, nil
	}
	cpu, memory := &specs.LinuxCPU{}, &specs.LinuxMemory{}
	for key, to := range map[string]**int64{criQuota: &cpu.Quota, criMemory: &memory.Limit} {
		text := s.Annotations[key]
		if text == "" {
			continue
		}
		n, err := strconv.ParseInt(text, 10, 64)
		if err != nil {
			return nil, fmt.Errorf("annotation %s: %q is not a number", key, text)
		}
		if n > 0 { // 0 and -1 are no limit
			*to = &n
		}
	}
	for key, to := range map[string]**uint64{criPeriod: &cpu.Period, criShares: &cpu.Shares} {
		text := s.Annotations[key]
		if text == "" {
			continue
		}
		n, err := strconv.ParseUint(text, 10, 64)
		if err != nil {
			return nil, fmt.Errorf("annotation %s: %q is not a number", key, text)
		}
		if n > 0 {
			*to = &n
		}
	}
	if l := s.Linux; l != nil && l.Resources != nil && l.Resources.CPU != nil {
		cpu.Cpus = l.Resources.CPU.Cpus
	}
	return &specs.LinuxResources{CPU: cpu, Memory: memory}, nil
}

// CgroupParent is the host's cgroup in which the spec wants the container's, so
// that what the engine sets for the pod holds for its sandbox. Empty: it does
// not say.
func CgroupParent(s *specs.Spec) string {
	if s.Linux == nil || s.Linux.CgroupsPath == "" {
		return ""
	}
	path := s.Linux.CgroupsPath
	// systemd's form is SLICE:PREFIX:NAME.
	if parts := strings.Split(path, ":"); len(parts) == 3 && strings.HasSuffix(parts[0], ".slice") {
		return expandSlice(parts[0])
	}
	if !filepath.IsAbs(path) {
		return ""
	}
	if parent := filepath.Dir(filepath.Clean(path)); parent != "/" {
		return parent
	}
	return ""
}

// expandSlice makes a path of a slice's name: a-b.slice is in a.slice.
func expandSlice(name string) string {
	stem := strings.TrimSuffix(name, ".slice")
	if stem == "-" {
		return ""
	}
	var path strings.Builder
	for i, c := range stem + "-" {
		if c == '-' && i > 0 {
			path.WriteString("/" + stem[:i] + ".slice")
		}
	}
	return path.String()
}
