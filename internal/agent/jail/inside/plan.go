// Package inside is the part of the jail that runs in the process that becomes a
// container: it carries a Plan out and executes the container's program.
//
// The plan comes over a socket from the agent, which made it from the OCI spec
// and left nothing in it to interpret: flags are numbers, the system call filter
// is a program. Everything here happens on the main thread of a process that
// has, or will have, namespaces of its own, and ends in one execve; threads that
// the Go runtime made end with it.
package inside

import (
	"github.com/seed-efd44b36/kata/internal/agent/jail/rootfs"
	"golang.org/x/sys/unix"
)

// Plan is what the process has to do.
type Plan struct {
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
	// Time says that one more file comes with the plan, the last: the time namespace
	// of a container that a further process enters.
	Time bool
	// TimeOffsets is written to timens_offsets.
	TimeOffsets string
	// Root is what a new mount namespace is filled with; nil in a process that
	// joined one.
	Root       *rootfs.Root
	Hostname   string
	Domainname string
	// Sysctls are names below /proc/sys, with slashes, and values.
	Sysctls [][2]string
	Process Process
}

// Process is how the container's program is run.
type Process struct {
	// Program is the file to execute; without it Args[0] names the program.
	Program string `json:",omitempty"`

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
