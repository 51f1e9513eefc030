package jail

import (
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/seed-efd44b36/kata/internal/agent/jail/inside"
	"github.com/seed-efd44b36/kata/internal/agent/jail/rootfs"
	"golang.org/x/sys/unix"
)

// problems collects what is wrong with a spec, so that all of it is told at once.
type problems []error

func (p *problems) add(field, format string, args ...any) {
	*p = append(*p, fmt.Errorf(field+": "+format, args...))
}

// unsupported adds an ErrUnsupported.
func (p *problems) unsupported(field, why string) {
	*p = append(*p, fmt.Errorf("%s: %s: %w", field, why, ErrUnsupported))
}

func (p *problems) err() error { return errors.Join(*p...) }

// newPlan translates the spec of a container. Namespaces of the types in join are
// entered; whatever else the spec lists is made.
func newPlan(s *specs.Spec, join map[specs.LinuxNamespaceType]*Container) (*inside.Plan, int, error) {
	var bad problems
	if s.Process == nil {
		bad.add("process", "missing")
	}
	if s.Root == nil || !path.IsAbs(s.Root.Path) {
		bad.add("root.path", "must be an absolute path")
	}
	if s.Hooks != nil {
		h := s.Hooks
		//nolint:staticcheck // Prestart is deprecated and has to be refused all the same
		if len(h.Prestart)+len(h.CreateRuntime)+len(h.CreateContainer)+len(h.Poststart)+len(h.Poststop) > 0 {
			bad.unsupported("hooks", "programs of the host cannot be run in the guest")
		}
	}
	linux := s.Linux
	if linux == nil {
		linux = &specs.Linux{}
	}
	if err := bad.err(); err != nil {
		return nil, 0, err
	}
	refuse(&bad, s, linux)
	p := &inside.Plan{
		Hostname:   s.Hostname,
		Domainname: s.Domainname,
		Process:    newProcess(&bad, s.Process, linux),
		Root:       newRoot(&bad, s, linux),
	}
	made := namespaces(&bad, linux.Namespaces, join)
	// A pid namespace can be had by being born in it only.
	p.Unshare = made &^ unix.CLONE_NEWPID
	uts := made&unix.CLONE_NEWUTS != 0 || join[specs.UTSNamespace] != nil
	if !uts && (s.Hostname != "" || s.Domainname != "") {
		bad.add("hostname", "needs a uts namespace in linux.namespaces")
	}
	ipc := made&unix.CLONE_NEWIPC != 0 || join[specs.IPCNamespace] != nil
	p.Sysctls = newSysctls(&bad, linux.Sysctl, ipc, uts)
	p.TimeOffsets = timeOffsets(&bad, linux.TimeOffsets, made)
	return p, made & unix.CLONE_NEWPID, bad.err()
}

// refuse finds what cannot be enforced.
func refuse(bad *problems, s *specs.Spec, linux *specs.Linux) {
	if len(linux.UIDMappings)+len(linux.GIDMappings) > 0 {
		bad.unsupported("linux.uidMappings", "user namespaces")
	}
	if len(linux.NetDevices) > 0 {
		bad.unsupported("linux.netDevices", "devices of the host cannot be moved into a guest")
	}
	if linux.IntelRdt != nil {
		bad.unsupported("linux.intelRdt", "the guest has no resource director")
	}
	if linux.MemoryPolicy != nil {
		bad.unsupported("linux.memoryPolicy", "the guest has one memory node")
	}
	if linux.MountLabel != "" {
		bad.unsupported("linux.mountLabel", "SELinux")
	}
	if s.Process.SelinuxLabel != "" {
		bad.unsupported("process.selinuxLabel", "SELinux")
	}
}

// cloneFlags of the namespaces that can be made.
var cloneFlags = map[specs.LinuxNamespaceType]int{
	specs.PIDNamespace:    unix.CLONE_NEWPID,
	specs.MountNamespace:  unix.CLONE_NEWNS,
	specs.IPCNamespace:    unix.CLONE_NEWIPC,
	specs.UTSNamespace:    unix.CLONE_NEWUTS,
	specs.CgroupNamespace: unix.CLONE_NEWCGROUP,
	specs.TimeNamespace:   unix.CLONE_NEWTIME,
}

// namespaces returns the flags of those to make.
func namespaces(bad *problems, list []specs.LinuxNamespace, join map[specs.LinuxNamespaceType]*Container) int {
	flags := 0
	for _, ns := range list {
		field := fmt.Sprintf("linux.namespaces (%s)", ns.Type)
		flag, ok := cloneFlags[ns.Type]
		switch {
		case ns.Type == specs.UserNamespace:
			bad.unsupported(field, "user namespaces")
		case ns.Type == specs.NetworkNamespace:
			bad.unsupported(field, "the network is the guest's")
		case !ok:
			bad.add(field, "unknown type")
		case flags&flag != 0:
			bad.add(field, "listed twice")
		case join[ns.Type] != nil:
		case ns.Path != "":
			bad.unsupported(field, "paths have no meaning in the guest")
		default:
			flags |= flag
		}
	}
	for _, t := range []specs.LinuxNamespaceType{specs.MountNamespace, specs.TimeNamespace, specs.UserNamespace, specs.NetworkNamespace} {
		if join[t] != nil {
			bad.unsupported(fmt.Sprintf("linux.namespaces (%s)", t), "it cannot be joined")
		}
	}
	if flags&unix.CLONE_NEWNS == 0 {
		bad.unsupported("linux.namespaces", "a container without a mount namespace")
	}
	return flags
}

// timeOffsets returns what to write to timens_offsets.
func timeOffsets(bad *problems, offsets map[string]specs.LinuxTimeOffset, made int) string {
	if len(offsets) > 0 && made&unix.CLONE_NEWTIME == 0 {
		bad.add("linux.timeOffsets", "needs a time namespace in linux.namespaces")
	}
	var lines strings.Builder
	for clock, o := range offsets {
		if clock != "monotonic" && clock != "boottime" {
			bad.add("linux.timeOffsets", "unknown clock %q", clock)
			continue
		}
		fmt.Fprintf(&lines, "%s %d %d\n", clock, o.Secs, o.Nanosecs)
	}
	return lines.String()
}

// newSysctls translates names, in which either dots or slashes separate. Only
// sysctls of namespaces that the container has are let through: another one,
// such as kernel.core_pattern, would change the guest and be a way out of the
// container. ipc and uts tell whether it has these; the network is the guest's.
func newSysctls(bad *problems, sysctls map[string]string, ipc, uts bool) [][2]string {
	var list [][2]string
	for name, value := range sysctls {
		file := name
		if i := strings.IndexAny(name, "./"); i >= 0 && name[i] == '.' {
			// Where dots separate, a slash is part of a name: that of a VLAN's device.
			file = strings.NewReplacer(".", "/", "/", ".").Replace(name)
		}
		if file == "" || path.IsAbs(file) || path.Clean(file) != file || strings.HasPrefix(file, "..") {
			bad.add("linux.sysctl", "invalid name %q", name)
			continue
		}
		if why := refusedSysctl(file, ipc, uts); why != "" {
			bad.add("linux.sysctl", "%q %s", name, why)
			continue
		}
		list = append(list, [2]string{file, value})
	}
	slices.SortFunc(list, func(a, b [2]string) int { return strings.Compare(a[0], b[0]) })
	return list
}

// refusedSysctl tells why a sysctl, whose name has slashes, cannot be set for a
// container; empty: it can.
func refusedSysctl(file string, ipc, uts bool) string {
	switch {
	case strings.HasPrefix(file, "net/"):
		return ""
	case IPCSysctl(file):
		if !ipc {
			return "needs an ipc namespace in linux.namespaces"
		}
		return ""
	case file == "kernel/domainname":
		if !uts {
			return "needs a uts namespace in linux.namespaces"
		}
		return ""
	case file == "kernel/hostname":
		return "is what the field hostname is for"
	}
	return "is of the whole kernel, not of a namespace"
}

// IPCSysctl tells whether a sysctl, whose name has slashes, is of an IPC namespace.
func IPCSysctl(file string) bool {
	return strings.HasPrefix(file, "fs/mqueue/") || slices.Contains(ipcSysctls[:], file)
}

// ipcSysctls are those of an IPC namespace that are not below fs/mqueue.
var ipcSysctls = [...]string{
	"kernel/msgmax", "kernel/msgmnb", "kernel/msgmni", "kernel/sem",
	"kernel/shmall", "kernel/shmmax", "kernel/shmmni", "kernel/shm_rmid_forced",
}

// newRoot translates all that is about files.
func newRoot(bad *problems, s *specs.Spec, linux *specs.Linux) *rootfs.Root {
	r := &rootfs.Root{
		Path:          path.Clean(s.Root.Path),
		ReadOnly:      s.Root.Readonly,
		MakeDev:       true,
		Masked:        linux.MaskedPaths,
		ReadOnlyPaths: linux.ReadonlyPaths,
	}
	if linux.RootfsPropagation != "" {
		var ok bool
		if r.Propagation, ok = propagations[linux.RootfsPropagation]; !ok {
			bad.add("linux.rootfsPropagation", "unknown value %q", linux.RootfsPropagation)
		}
	}
	for i := range s.Mounts {
		m, err := newMount(&s.Mounts[i])
		if err != nil {
			bad.add(fmt.Sprintf("mounts[%d] (%s)", i, s.Mounts[i].Destination), "%w", err)
			continue
		}
		if m.Source != "" && path.Clean(m.Target) == "/dev" {
			r.MakeDev = false // the container's own
		}
		r.Mounts = append(r.Mounts, m)
	}
	r.Devices = newDevices(bad, linux.Devices)
	for _, name := range append(slices.Clone(linux.MaskedPaths), linux.ReadonlyPaths...) {
		if !path.IsAbs(name) {
			bad.add("linux.maskedPaths, linux.readonlyPaths", "%q is not absolute", name)
		}
	}
	return r
}

// defaultDevices are those that the spec says every container has. The numbers are
// the kernel's for good.
var defaultDevices = [...]struct {
	path         string
	major, minor uint32
}{
	{"/dev/null", 1, 3},
	{"/dev/zero", 1, 5},
	{"/dev/full", 1, 7},
	{"/dev/random", 1, 8},
	{"/dev/urandom", 1, 9},
	{"/dev/tty", 5, 0},
}

func newDevices(bad *problems, list []specs.LinuxDevice) []rootfs.Device {
	var devices []rootfs.Device
	listed := make(map[string]bool)
	for i, d := range list {
		field := fmt.Sprintf("linux.devices[%d] (%s)", i, d.Path)
		mode := uint32(0o666)
		if d.FileMode != nil {
			mode = uint32(d.FileMode.Perm())
		}
		switch d.Type {
		case "c", "u":
			mode |= unix.S_IFCHR
		case "b":
			mode |= unix.S_IFBLK
		case "p":
			mode |= unix.S_IFIFO
		default:
			bad.add(field, "unknown type %q", d.Type)
		}
		if !path.IsAbs(d.Path) {
			bad.add(field, "the path must be absolute")
		}
		if d.Major < 0 || d.Major > 1<<12-1 || d.Minor < 0 || d.Minor > 1<<20-1 {
			bad.add(field, "no such device number: %d:%d", d.Major, d.Minor)
		}
		node := rootfs.Device{Path: path.Clean(d.Path), Mode: mode, Dev: unix.Mkdev(uint32(d.Major), uint32(d.Minor))}
		if d.UID != nil {
			node.UID = *d.UID
		}
		if d.GID != nil {
			node.GID = *d.GID
		}
		listed[node.Path] = true
		devices = append(devices, node)
	}
	for _, d := range defaultDevices {
		if !listed[d.path] {
			devices = append(devices, rootfs.Device{Path: d.path, Mode: unix.S_IFCHR | 0o666, Dev: unix.Mkdev(d.major, d.minor)})
		}
	}
	return devices
}
