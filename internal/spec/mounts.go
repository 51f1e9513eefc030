package spec

import (
	"fmt"
	"path"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// mounts decides for each mount where it is made: binds of the host's files
// come over the shared directory, kernel file systems are the guest's own.
func (t *translation) mounts(g *specs.Spec) {
	kept := g.Mounts[:0]
	for i := range g.Mounts {
		m := &g.Mounts[i]
		field := fmt.Sprintf("mounts[%d] (%s)", i, clip(m.Destination))
		if !path.IsAbs(m.Destination) {
			t.invalid(field, "the destination is not an absolute path")
		}
		if len(m.UIDMappings)+len(m.GIDMappings) > 0 || slices.Contains(m.Options, "idmap") || slices.Contains(m.Options, "ridmap") {
			t.refuse(field, "mapped ids are not passed to the guest; leave uidMappings and gidMappings out")
		}
		if isBind(m) {
			if !t.bindDevice(field, g, m) {
				t.bind(field, len(kept), m)
				kept = append(kept, *m)
			}
			continue
		}
		if t.opts.Pod && path.Clean(m.Destination) == "/dev/shm" && m.Type == "tmpfs" {
			// The engine leaves it to the sandbox to have one for all.
			m.Type, m.Source, m.Options = "bind", GuestShm, []string{"bind", "nosuid", "nodev", "noexec"}
			kept = append(kept, *m)
			continue
		}
		kept = append(kept, *m)
		switch m.Type {
		case "proc", "sysfs", "tmpfs", "mqueue", "devpts", "cgroup", "cgroup2":
		case "":
			t.invalid(field, "it has neither a type nor the option bind")
		default:
			t.refuse(field, "file systems of type %q are not mounted for a container; mount it on the host and bind it", m.Type)
		}
	}
	g.Mounts = kept
}

// isBind: the option decides, as in mount(8), and type "bind" means the same.
func isBind(m *specs.Mount) bool {
	return m.Type == "bind" || m.Type == "rbind" || slices.Contains(m.Options, "bind") || slices.Contains(m.Options, "rbind")
}

func (t *translation) bind(field string, index int, m *specs.Mount) {
	if m.Source == "" {
		t.invalid(field, "the source of the bind mount is missing")
		return
	}
	b := Bind{
		Mount: index, Source: t.hostPath(m.Source), Destination: path.Clean(m.Destination),
		Recursive: m.Type == "rbind",
	}
	for _, o := range m.Options {
		switch o {
		case "ro":
			b.ReadOnly = true
		case "rw":
			b.ReadOnly = false
		case "rro":
			b.ReadOnly, b.ReadOnlyBelow = true, true
		case "rrw":
			b.ReadOnly, b.ReadOnlyBelow = false, false
		case "rbind":
			b.Recursive = true
		case "slave", "rslave":
			b.Slave = true
		case "private", "rprivate":
			b.Slave = false
		case "shared", "rshared":
			t.refuse(field, "what is mounted in a virtual machine cannot appear on the host: option %q (mount it on the host and ask for \"rslave\", which Kubernetes calls HostToContainer, or take another runtime)", o)
		}
	}
	m.Type = "bind"
	switch {
	case guestDevice(b.Source):
		m.Source = b.Source
	case b.Destination == "/dev/shm" && path.Base(b.Source) == "shm" && t.opts.OnTmpfs != nil && t.opts.OnTmpfs(b.Source):
		// The engine's tmpfs for the containers that share it. Memory cannot
		// be shared across kernels by a file server: the guest has its own.
		// A directory of that name on a disk is somebody's data.
		m.Source = GuestShm
	default:
		m.Source = "" // Locate knows it
		t.plan.Binds = append(t.plan.Binds, b)
	}
}

// guestDevice tells whether a path is that of a device that means the same in
// every kernel; engines bind them, /dev/null above all.
func guestDevice(p string) bool {
	name, ok := strings.CutPrefix(p, "/dev/")
	return ok && slices.Contains([]string{"null", "zero", "full", "random", "urandom", "tty"}, name)
}
