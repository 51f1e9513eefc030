// Package pods tells whose virtual machine a container joins: by the annotations of
// engines, or because it shares a namespace.
package pods

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"github.com/seed-efd44b36/kata/internal/oci/record"
)

// The annotations by which engines tell that a container belongs to a pod.
const (
	crioType      = "io.kubernetes.cri-o.ContainerType" // "sandbox" or "container"
	crioSandboxID = "io.kubernetes.cri-o.SandboxID"
	criType       = "io.kubernetes.cri.container-type"
	criSandboxID  = "io.kubernetes.cri.sandbox-id"
	// manager is the engine's name: Podman writes CRI-O's annotations, too, and for
	// a pod without an infra container the pod's id, which is no container's.
	manager = "io.container.manager"
	libpod  = "libpod"
)

// Leader is a container whose sandbox another one is to join: that which its
// annotations name, or one of whose namespaces it is to share, as these are in a
// virtual machine. Nil: it is to have a sandbox of its own.
func Leader(root record.Root, id string, sp *specs.Spec) (*record.Record, error) {
	named := ""
	switch an := sp.Annotations; {
	case an[crioType] == "container":
		named = an[crioSandboxID]
	case an[crioType] != "":
		// CRI-O passes on what users write of the others.
	case an[criType] == "container":
		named = an[criSandboxID]
	}
	if named != "" && named != id {
		rec, err := root.Read(named)
		if err == nil {
			if err := sameNetwork(sp, rec); err != nil {
				return nil, fmt.Errorf("the pod sandbox %s of container %s: %w", named, id, err)
			}
			return &rec, nil
		}
		if sp.Annotations[manager] != libpod {
			return nil, fmt.Errorf("the pod sandbox %s of container %s: %w", named, id, err)
		}
	}
	return sharedWith(root, sp)
}

// sameNetwork makes sure that the spec names the network namespace of the sandbox that
// it is to join. Annotations may be those of a user, the path is the engine's word.
func sameNetwork(sp *specs.Spec, leader record.Record) error {
	path := ""
	if sp.Linux != nil {
		for _, ns := range sp.Linux.Namespaces {
			if ns.Type == specs.NetworkNamespace {
				path = ns.Path
			}
		}
	}
	if path == "" {
		return errors.New("the container does not share its network namespace, and so cannot be in its virtual machine")
	}
	want, err := os.Stat(fmt.Sprintf("/proc/%d/ns/net", leader.Shim.PID))
	if err != nil || !leader.Shim.Alive() {
		return errors.New("it has ended")
	}
	got, err := os.Stat(path)
	if err != nil {
		return err
	}
	if !os.SameFile(want, got) {
		return fmt.Errorf("%s is not its network namespace", path)
	}
	return nil
}

// sharedWith is a container of whose kata-shim the spec names a namespace.
func sharedWith(root record.Root, sp *specs.Spec) (*record.Record, error) {
	pids := map[int]bool{}
	if sp.Linux != nil {
		for _, ns := range sp.Linux.Namespaces {
			rest, ok := strings.CutPrefix(ns.Path, "/proc/")
			number, _, _ := strings.Cut(rest, "/")
			if pid, err := strconv.Atoi(number); ok && err == nil {
				pids[pid] = true
			}
		}
	}
	if len(pids) == 0 {
		return nil, nil //nolint:nilnil // nil is the value for none
	}
	list, err := root.List()
	for _, r := range list {
		if pids[r.Shim.PID] && r.Shim.Alive() {
			return &r, nil
		}
	}
	return nil, err
}
