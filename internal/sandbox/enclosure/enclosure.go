// Package enclosure is what a sandbox as a whole is held to on the host, beside the
// guest's own limits, which are in the hands of the guest: its cgroup, and the CPUs
// that it may use.
package enclosure

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"syscall"

	"github.com/seed-efd44b36/kata/internal/resources"
	"github.com/seed-efd44b36/kata/internal/timeline"
)

// overheadMiB is what the owner, the VMM (translated code included) and the file
// server may use beside the guest's memory.
const overheadMiB = 512

// Enclosure is a sandbox's cgroup with what belongs to it.
type Enclosure struct {
	*resources.Cgroup
	cpus    string
	log     *slog.Logger
	entered chan error // gets whether all are in the cgroup
}

// Make makes the cgroup, which the caller has recorded and releases. cpus are those of
// the host that what is started may run on; empty: all.
func Make(ctx context.Context, path, cpus string, log *slog.Logger) (*Enclosure, error) {
	defer timeline.Step(ctx, "host cgroup")()
	g, err := resources.Create(path)
	if err != nil {
		return nil, fmt.Errorf("host cgroup %s: %w", path, err)
	}
	for _, w := range g.Warnings() {
		log.Warn("host cgroup", "what", w)
	}
	return &Enclosure{Cgroup: g, cpus: cpus, log: log, entered: make(chan error, 1)}, nil
}

// Place puts what the calling thread is about to start where it belongs.
func (e *Enclosure) Place(attr *syscall.SysProcAttr) error {
	if err := e.Enter(attr); err != nil {
		return err
	}
	if e.cpus == "" {
		return nil
	}
	return resources.Pin(e.cpus)
}

// Gather moves processes that were not born in the cgroup into it, which takes the
// kernel its time, and the owner last. Entered tells how that ended.
func (e *Enclosure) Gather(pids ...int) {
	var errs []error
	for _, pid := range pids {
		errs = append(errs, e.AddPID(pid))
	}
	e.entered <- errors.Join(errs...)
}

// Entered waits until Gather has ended, once.
func (e *Enclosure) Entered() error {
	if err := <-e.entered; err != nil {
		return fmt.Errorf("host cgroup: %w", err)
	}
	return nil
}

// Confine holds the sandbox as a whole to the CPU time that the containers may use,
// and to the memory of the machine and what its VMM needs beside it.
func (e *Enclosure) Confine(cpus float64, size resources.VM) error {
	err := e.Limit(resources.Limits{CPUs: cpus, MemoryBytes: int64(size.MemoryMiB+overheadMiB) << 20})
	if errors.Is(err, errors.ErrUnsupported) {
		e.log.Warn("host cgroup", "what", err.Error())
		return nil
	}
	return err
}
