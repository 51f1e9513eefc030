package spec

import (
	"path"
	"slices"
	"strings"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// The paths in the guest that a translated spec refers to.
const (
	// GuestShared is where the guest has the shared directory.
	GuestShared = "/run/kata/shared"
	// GuestCopies has copies of small volumes.
	GuestCopies = "/run/kata/volumes"
	// GuestDisks has the file systems that the guest mounts from disks.
	GuestDisks = "/run/kata/disks"
	// GuestShm is the sandbox's /dev/shm, which its containers share.
	GuestShm = "/dev/shm"
)

// Options are what a translation depends on besides the spec.
type Options struct {
	// ID of the container, SandboxID that of its sandbox.
	ID, SandboxID string
	// Bundle is the directory that relative paths of the spec are based on.
	Bundle string
	// Members are the ids of the containers that the sandbox has already, the
	// oldest first.
	Members []string
	// PIDs are the numbers of processes that the engine was told for containers
	// of the sandbox; an empty id stands for the sandbox as such. Nil: it was told
	// one for all.
	PIDs map[int]string
	// Pod: the sandbox itself has the namespaces that its containers share, and
	// no container of it.
	Pod bool
	// OnTmpfs tells whether a path of the host is on a tmpfs: a bind mount of
	// one named "shm" onto /dev/shm is the memory that an engine gives its
	// containers to share, and becomes the guest's. Nil: no path is.
	OnTmpfs func(path string) bool
	// BlockDevice tells what a path of the host is if it is a block device: a
	// bind mount of one becomes a device. Nil: no path is.
	BlockDevice func(path string) (specs.LinuxDevice, bool)
	// RootOnDisk: the guest mounts the root file system itself.
	RootOnDisk bool
}

// Plan is a container's spec, divided.
type Plan struct {
	// Guest is the spec for the agent. It shares nothing with the original.
	Guest *specs.Spec
	// Rootfs is the root file system's path on the host.
	Rootfs string
	// RootReadonly: the container must not write to it.
	RootReadonly bool
	// Binds are to be shown to the guest, which is told by Locate where each
	// is.
	Binds []Bind
	// Devices are block devices of the host that the container gets. The
	// guest's spec has an entry for each, without a number.
	Devices []Device
	// Join maps a namespace type to the container whose namespace is joined,
	// empty for the sandbox's own.
	Join map[string]string
	// NetNS is the path of the network namespace that is given, empty when
	// the spec asks for a new one.
	NetNS string
	// CPUs and MemoryNodes of the host (in the format of cpuset.cpus) that
	// the container's sandbox is to run on; empty: any.
	CPUs, MemoryNodes string
	// Hooks are for the host to run.
	Hooks Hooks
	// Warnings tell what the guest does not enforce, for the log.
	Warnings []string
}

// Bind is a bind mount of the spec that the host shows to the guest in the
// shared directory.
type Bind struct {
	// Mount is its index in the guest's mounts.
	Mount int
	// Source is an absolute path on the host, Destination an absolute path
	// in the container.
	Source, Destination string
	// ReadOnly: the mount itself is. ReadOnlyBelow: all mounts below it are.
	ReadOnly, ReadOnlyBelow bool
	// Recursive binds show what is mounted below the source, too.
	Recursive bool
	// Slave binds also show what is mounted there later.
	Slave bool
}

// Locate tells the guest where it finds the source of a bind, by a path in the
// shared directory. split: below the source are mounts that are not read-only
// as it is.
func (p *Plan) Locate(b Bind, name string, split bool) {
	m := &p.Guest.Mounts[b.Mount]
	m.Source = path.Join(GuestShared, name)
	if split {
		// In the guest what is mounted below comes to be when it is looked at,
		// with the attributes of what it is below. The host knows them apart.
		m.Options = slices.DeleteFunc(m.Options, func(o string) bool { return o == "ro" })
	}
}

// LocateCopy is Locate for a bind whose source the guest has a copy of, by a path
// among the copies.
func (p *Plan) LocateCopy(b Bind, name string) {
	p.Guest.Mounts[b.Mount].Source = path.Join(GuestCopies, name)
}

// Device is a block device of the host that a container gets.
type Device struct {
	// Path is where the container has it.
	Path string
	// Major and Minor are its number on the host.
	Major, Minor uint32
	// Access is what the spec's rules let the container do, as they say it:
	// "rwm" or some letters of it.
	Access string
	Limits DeviceLimits
}

// ReadOnly tells whether the container may not write to the device.
func (d Device) ReadOnly() bool { return !strings.Contains(d.Access, "w") }

// DeviceLimits are how much of a device may be used each second, 0 for no limit.
type DeviceLimits struct {
	ReadBytes, WriteBytes           uint64
	ReadOperations, WriteOperations uint64
}

// Hooks are those of the spec that run in the host's namespaces.
type Hooks struct {
	// InGuest is how long the others may take, "startContainer", all together.
	InGuest time.Duration
	// BeforeCreate: "prestart" and "createRuntime". AfterStart: "poststart".
	// AfterStop: "poststop".
	BeforeCreate, AfterStart, AfterStop []specs.Hook
}
