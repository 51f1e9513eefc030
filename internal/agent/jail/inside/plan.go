// Package inside is the part of the jail that runs in the process that becomes a
// container: it carries a Plan out and executes the container's program.
//
// The plan comes over a socket from the agent, which made it from the OCI spec
// and left nothing in it to interpret: flags are numbers, the system call filter
// is a program. Everything here happens on the main thread of a process that
// has, or will have, namespaces of its own, and ends in one execve; threads that
// the Go runtime made end with it.
package inside

import "golang.org/x/sys/unix"

// Plan is what the process has to do.
type Plan struct {
	// Container is its id, for the name of the session keyring.
	Container string
	// Join has the namespaces (CLONE_NEW*) to enter, one word for each pidfd that
	// comes with the plan; Unshare those to make.
	Join    []int
	Unshare int
	// CgroupDoors says that two files come with the plan, after the pidfds: the
	// cgroup.procs of the container's cgroup and of the root. The process enters
	// the first for as long as it takes to make a cgroup namespace, which then has
	// that as its root. What it does until its execve is not to be limited and
	// measured as the container's.
	CgroupDoors bool
	// TimeOffsets is written to timens_offsets.
	TimeOffsets string
	// Root is what a new mount namespace is filled with; nil in a process that
	// joined one.
	Root       *Root
	Hostname   string
	Domainname string
	// Sysctls are names below /proc/sys, with slashes, and values.
	Sysctls [][2]string
	Process Process
}

// Root is the container's file system.
type Root struct {
	// Path is a directory in the agent's mount namespace.
	Path     string
	ReadOnly bool
	// Propagation is an MS_* flag, with MS_REC perhaps; 0 is MS_SLAVE|MS_REC.
	Propagation uintptr
	Mounts      []Mount
	Devices     []Device
	// MakeDev is unset if the container brings its own /dev.
	MakeDev       bool
	Masked        []string
	ReadOnlyPaths []string
}

// Mount is a mount in the container.
type Mount struct {
	// Target is a path in the container.
	Target string
	// Type is the file system; empty for a bind mount and for a change to what is
	// mounted there (Remount).
	Type string
	// Name is what a new file system is listed as.
	Name string
	// Source is a path in the agent's mount namespace, for a bind mount.
	Source    string
	Recursive bool
	Remount   bool
	// Data are options of the file system, "key=value" or "flag".
	Data []string
	// Set and Clear are MOUNT_ATTR_* bits for the mount itself, the others for it
	// and all below it.
	Set, Clear       uint64
	SetAll, ClearAll uint64
	// Propagation lists MS_* flags, with MS_REC perhaps.
	Propagation []uintptr
	// CopyUp fills a tmpfs with what it hides.
	CopyUp bool
}

// Device is a device node.
type Device struct {
	Path     string
	Mode     uint32 // with S_IFCHR, S_IFBLK or S_IFIFO
	Dev      uint64
	UID, GID uint32
}

// Process is how the container's program is run.
type Process struct {
	Args []string
	Env  []string
	Cwd  string

	Terminal      bool
	Width, Height uint16 // of the terminal, 0 if it is not known

	UID, GID uint32
	Groups   []uint32
	Umask    int

	Bounding, Effective, Permitted, Inheritable, Ambient uint64

	NoNewPrivs  bool
	Rlimits     []Rlimit
	OOMScoreAdj int
	Scheduler   *unix.SchedAttr
	// IOPriority is the argument of ioprio_set.
	IOPriority  *int
	Personality *uint
	// CPUs are what the process may run on, 0 for the first.
	CPUs     []int
	AppArmor string // a profile's name

	Filter      Filter `json:"-"` // apart on the wire
	FilterFlags uint
}

// Rlimit is a resource limit.
type Rlimit struct {
	Name     string // for messages
	Resource int
	Cur, Max uint64
}
