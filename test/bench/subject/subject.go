// Package subject runs containers of several runtimes through several front
// ends, for the benchmark to measure: each pair of the two is a subject. What
// exists is in two tables: runtimes, and fronts. A subject that cannot run on
// this host is left out with the reason.
package subject

import (
	"context"
	"io"
	"path"
	"strings"
)

// The names of front ends, and of the machine without any container.
const (
	Ctr  = "ctr" // containerd, through `ctr`
	CRI  = "cri" // pods of containerd, as Kubernetes runs them
	OCI  = "oci" // the OCI command line
	CLI  = "cli" // `kata run` and the like
	QEMU = "qemu"
)

// Paths in every container.
const (
	Hello  = "/bench/hello" // a static program of 150 bytes that writes a word
	Load   = "/bench/load"  // test/bench/load
	Data   = "/bench"       // files to read, in the image
	Volume = "/volume"      // the same files from a directory of the host, writable
)

// Subject is one runtime behind one front end.
type Subject struct {
	// Runtime is its name, such as "runc"; Front one of the front ends, empty for
	// QEMU.
	Runtime, Front string

	front front
}

// String is how the subject is called: RUNTIME/FRONT.
func (s *Subject) String() string { return path.Join(s.Runtime, s.Front) }

// Reference is the name of the subject that this one is compared with.
func (s *Subject) Reference() string { return Reference(s.String()) }

// Reference is that of a subject by its name: runc behind the same front end. A
// person's `kata run` is compared with runc's own command line.
func Reference(name string) string {
	switch _, front, _ := strings.Cut(name, "/"); front {
	case "":
		return ""
	case CLI:
		return "runc/" + OCI
	default:
		return "runc/" + front
	}
}

// IsKata tells whether the subject is ours.
func (s *Subject) IsKata() bool { return strings.HasPrefix(s.Runtime, "kata-") }

// Once runs a container that writes a word and ends.
func (s *Subject) Once(ctx context.Context) (Start, error) { return s.front.once(ctx) }

// Stay starts a container that stays, until it is removed.
func (s *Subject) Stay(ctx context.Context) (Container, error) { return s.front.stay(ctx) }

// AgentTime starts a container and returns the seconds from the start of the
// virtual machine to the agent's first answer, for kata behind its own command
// line.
func (s *Subject) AgentTime(ctx context.Context) (float64, error) {
	return s.front.(*cli).agentTime(ctx)
}

// Start is how long the start of a container took, in seconds.
type Start struct {
	// First is until its first output, Whole until it was gone.
	First, Whole float64
}

// Container is one that stays.
type Container interface {
	// Exec runs a command in it, which has to succeed, and copies its output.
	Exec(ctx context.Context, out io.Writer, command ...string) error
	// Remove ends and removes it.
	Remove(ctx context.Context) error
}

// Networked is a container that can be reached.
type Networked interface {
	// Address is its IP address.
	Address(ctx context.Context) (string, error)
	// Outside runs [Load] on the host's side of the container's network.
	Outside(ctx context.Context, args ...string) error
}

// WithAgent is a container in a guest whose agent tells of itself.
type WithAgent interface {
	// AgentRSS is the memory of the agent after the boot, in MiB.
	AgentRSS(ctx context.Context) (float64, error)
}

// front is one front end for one runtime.
type front interface {
	once(ctx context.Context) (Start, error)
	stay(ctx context.Context) (Container, error)
}
