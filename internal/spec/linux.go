package spec

import (
	"path"
	"slices"
	"strconv"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

func (t *translation) linux(g *specs.Spec) {
	l := g.Linux
	if l == nil {
		t.invalid("linux", "it is missing")
		return
	}
	t.namespaces(l)
	t.devices(l)
	t.resources(l.Resources)
	l.CgroupsPath = path.Join("/kata", t.opts.ID)
	for field, present := range map[string]bool{
		"linux.uidMappings":  len(l.UIDMappings) > 0,
		"linux.gidMappings":  len(l.GIDMappings) > 0,
		"linux.netDevices":   len(l.NetDevices) > 0,
		"linux.intelRdt":     l.IntelRdt != nil,
		"linux.memoryPolicy": l.MemoryPolicy != nil,
	} {
		if present {
			t.refuse(field, unsupportedLinux(field))
		}
	}
	if l.Seccomp != nil && (l.Seccomp.ListenerPath != "" || l.Seccomp.ListenerMetadata != "") {
		t.refuse("linux.seccomp.listenerPath", "a seccomp agent on the host cannot follow processes of a virtual machine")
	}
	switch l.RootfsPropagation {
	case "", "private", "rprivate", "slave", "rslave", "unbindable", "runbindable", "shared", "rshared":
	default:
		t.invalid("linux.rootfsPropagation", "%q is not a propagation", l.RootfsPropagation)
	}
	for field, list := range map[string][]string{"linux.maskedPaths": l.MaskedPaths, "linux.readonlyPaths": l.ReadonlyPaths} {
		for _, p := range list {
			if !path.IsAbs(p) {
				t.invalid(field, "%q is not an absolute path", p)
			}
		}
	}
	if l.MountLabel != "" {
		t.plan.Warnings = append(t.plan.Warnings, "linux.mountLabel is not applied: the guest has no SELinux policy")
		l.MountLabel = ""
	}
}

func unsupportedLinux(field string) string {
	switch field {
	case "linux.uidMappings", "linux.gidMappings":
		return "user namespaces are not supported; the virtual machine already keeps root of the container from being root of the host"
	case "linux.netDevices":
		return "devices of the host's network cannot be moved into a virtual machine"
	case "linux.memoryPolicy":
		return "the host's memory nodes mean nothing in a virtual machine"
	default:
		return "Intel RDT is not available in a virtual machine"
	}
}

// namespaces: those of the spec are made in the guest. A path is on the host,
// where it can only be that of the sandbox: its network, or for the rest what
// the engine believes to be the first container's.
func (t *translation) namespaces(l *specs.Linux) {
	seen := map[specs.LinuxNamespaceType]bool{}
	var guest []specs.LinuxNamespace
	for _, ns := range l.Namespaces {
		if seen[ns.Type] {
			t.invalid("linux.namespaces", "type %q comes twice", string(ns.Type))
			continue
		}
		seen[ns.Type] = true
		if ns.Path != "" && !path.IsAbs(ns.Path) {
			t.invalid("linux.namespaces", "path %q is not absolute", ns.Path)
		}
		switch ns.Type {
		case specs.NetworkNamespace:
			t.plan.NetNS = ns.Path
		case specs.UserNamespace:
			t.refuse("linux.namespaces", unsupportedLinux("linux.uidMappings"))
		case specs.PIDNamespace, specs.IPCNamespace, specs.UTSNamespace:
			if made, ok := t.join(ns); ok {
				guest = append(guest, made)
			}
		case specs.MountNamespace, specs.CgroupNamespace, specs.TimeNamespace:
			if ns.Path != "" {
				t.refuse("linux.namespaces", "the %q namespace of another container cannot be joined", string(ns.Type))
			}
			guest = append(guest, specs.LinuxNamespace{Type: ns.Type})
		default:
			t.invalid("linux.namespaces", "there is no type %q", string(ns.Type))
		}
	}
	for _, need := range []struct {
		typ   specs.LinuxNamespaceType
		hosts string // what of the host's the container would use without it
	}{
		{specs.NetworkNamespace, "network"},
		{specs.PIDNamespace, "processes"},
		{specs.IPCNamespace, "IPC"},
		{specs.UTSNamespace, "name"},
		{specs.MountNamespace, "mounts"},
	} {
		if !seen[need.typ] {
			t.refuse("linux.namespaces", "without a %q namespace the container would use the host's "+need.hosts+", which a virtual machine cannot; leave that out, or take another runtime", string(need.typ))
		}
	}
	// On a host with version 1, engines ask for none, and the runtime shows the
	// container its own cgroup all the same. Here the namespace does that: a
	// program that looks for its limits finds them.
	if !seen[specs.CgroupNamespace] {
		guest = append(guest, specs.LinuxNamespace{Type: specs.CgroupNamespace})
	}
	l.Namespaces = guest
}

// join resolves a namespace path; ok: the guest's spec lists the namespace. The
// engine takes the path from a pid that we have told it, of a process on the host.
// It says which container is meant, or that the sandbox is: then that is the
// container that made it, unless the sandbox has namespaces itself.
func (t *translation) join(ns specs.LinuxNamespace) (guest specs.LinuxNamespace, ok bool) {
	guest = specs.LinuxNamespace{Type: ns.Type}
	if ns.Path == "" {
		return guest, true
	}
	owner, known := t.owner(ns.Path)
	switch {
	case !known, owner == "" && !t.opts.Pod && len(t.opts.Members) == 0:
		t.refuse("linux.namespaces", "the %q namespace at %q is not one of this sandbox", string(ns.Type), ns.Path)
		return guest, true
	case owner == "" && t.opts.Pod:
		t.plan.Join[string(ns.Type)] = ""
		return guest, false
	case owner == "":
		owner = t.opts.Members[0]
	}
	t.plan.Join[string(ns.Type)] = owner
	return guest, true
}

// owner is the container whose process the path of a namespace names, empty for the
// sandbox.
func (t *translation) owner(path string) (id string, known bool) {
	rest, ok := strings.CutPrefix(path, "/proc/")
	number, _, _ := strings.Cut(rest, "/")
	pid, err := strconv.Atoi(number)
	if t.opts.PIDs == nil || !ok || err != nil {
		return "", true
	}
	id, known = t.opts.PIDs[pid]
	return id, known
}

// resources: limits hold in the guest's cgroup of the container. What is about
// the host's hardware is the host's to do or refused.
func (t *translation) resources(r *specs.LinuxResources) {
	if r == nil {
		return
	}
	if c := r.CPU; c != nil {
		t.plan.CPUs, t.plan.MemoryNodes = c.Cpus, c.Mems
		c.Cpus, c.Mems = "", ""
		if c.RealtimeRuntime != nil && *c.RealtimeRuntime != 0 {
			t.refuse("linux.resources.cpu.realtimeRuntime", "the guest's cgroups have no real-time scheduling")
		}
		if c.RealtimePeriod != nil && *c.RealtimePeriod != 0 {
			t.refuse("linux.resources.cpu.realtimePeriod", "the guest's cgroups have no real-time scheduling")
		}
		c.RealtimeRuntime, c.RealtimePeriod = nil, nil
	}
	if b := r.BlockIO; b != nil {
		if len(b.WeightDevice) > 0 {
			t.refuse("linux.resources.blockIO.weightDevice", weightDevice)
		}
		t.limits(b)
		if b.LeafWeight != nil && *b.LeafWeight != 0 {
			t.refuse("linux.resources.blockIO.leafWeight", "the guest's cgroups have no leaf weight")
		}
		b.LeafWeight = nil
	}
	if n := r.Network; n != nil {
		if n.ClassID != nil && *n.ClassID != 0 || len(n.Priorities) > 0 {
			t.refuse("linux.resources.network", "classes and priorities of packets are not set in a guest")
		}
		r.Network = nil
	}
	if len(r.Rdma) > 0 {
		t.refuse("linux.resources.rdma", "a guest has no RDMA device")
	}
	for key := range r.Unified {
		if strings.ContainsAny(key, "/\x00") || !strings.Contains(key, ".") || slices.Contains([]string{"cgroup.procs", "cgroup.threads", "cgroup.kill"}, key) {
			t.invalid("linux.resources.unified", "%q is not a setting of a cgroup", key)
		}
	}
}
