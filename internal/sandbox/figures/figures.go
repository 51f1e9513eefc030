// Package figures makes what a guest tells of a container's use of resources, of
// its processes and of their ends, fit to be shown: short, possible, and without
// control characters. It is pure.
package figures

import (
	"slices"
	"time"

	agentv1 "github.com/seed-efd44b36/kata/api/agent/v1"
	"github.com/seed-efd44b36/kata/internal/printable"
	"github.com/seed-efd44b36/kata/internal/sandbox/report"
	"golang.org/x/sys/unix"
)

const (
	// Most is how many disks, and how many network interfaces, a guest may tell
	// of. An empty entry takes two bytes of its answer, and hundreds in our memory
	// and in what front ends make of it.
	Most = 256
	// maxCommand is how much of a process's command line is told, as in the guest.
	maxCommand = 4096
)

// Stats cuts figures to their size. It tells whether that was needed.
func Stats(r *agentv1.StatsContainerResponse) (cut bool) {
	cut = max(len(r.GetIo()), len(r.GetNetwork())) > Most
	r.Io, r.Network = head(r.GetIo()), head(r.GetNetwork())
	for _, n := range r.GetNetwork() {
		n.Name = printable.Text(n.GetName(), unix.IFNAMSIZ)
	}
	return cut
}

// head is what is taken of a list. It does not keep the rest.
func head[E any](list []E) []E {
	if len(list) <= Most {
		return list
	}
	return slices.Clone(list[:Most])
}

// Processes cuts texts to their size. known tells whether an exec is one of the
// container's.
func Processes(list []*agentv1.Process, known func(exec string) bool) {
	for _, p := range list {
		p.Command, p.State = printable.Text(p.GetCommand(), maxCommand), printable.Text(p.GetState(), 1)
		if !known(p.GetExec()) {
			p.Exec = "" // we have given no such id
		}
	}
}

// Exit is how a process of a sandbox has ended, which was made then.
func Exit(r *agentv1.WaitProcessResponse, made, now time.Time) report.Exit {
	// A code that no process can have must not become a success.
	e := report.Exit{Code: min(r.GetExitCode(), 255), At: time.Unix(0, r.GetExitedAt()), OOMKilled: r.GetOomKilled()}
	// Of the processes that the limit killed, this was one if it died so.
	if e.OOMKilled && e.Code == 128+uint32(unix.SIGKILL) {
		e.Reason = "killed for exceeding its memory limit (OOM)"
	}
	// The guest's clock is the guest's word: an end in the future, or before
	// the sandbox was made, is a lie or a clock gone wrong.
	if e.At.After(now) || e.At.Before(made) {
		e.At = now
	}
	return e
}
