// Package pod gives the guest what all containers of a sandbox have in common: the
// host's name, /dev/shm, shared directories, the network, sysctls, new random numbers
// and the time. What was tried out only can be undone.
package pod

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"time"

	agentv1 "github.com/seed-efd44b36/kata/api/agent/v1"
	"github.com/seed-efd44b36/kata/internal/agent/disk"
	"github.com/seed-efd44b36/kata/internal/agent/entropy"
	"github.com/seed-efd44b36/kata/internal/agent/module"
	"github.com/seed-efd44b36/kata/internal/agent/network"
	"github.com/seed-efd44b36/kata/internal/agent/storage"
	"github.com/seed-efd44b36/kata/internal/timeline"
	"golang.org/x/sys/unix"
)

const (
	// shmPath is the /dev/shm that containers of a pod may share.
	shmPath = "/run/kata/shm"
	// defaultShm is its size in bytes when the host asks for none.
	defaultShm = 64 << 20
	// maxHostname is the kernel's limit.
	maxHostname = 64
)

// ErrInvalid is wrapped by errors about a request that makes no sense.
var ErrInvalid = errors.New("invalid argument")

// Pod is what the containers have in common. Setup and Undo are not to be called at
// the same time.
type Pod struct {
	Modules *module.Set
	Network *network.Stack

	// before is what Undo restores; nil without a rehearsal.
	before *former
}

// former is how a guest was, and what of it is new.
type former struct {
	hostname string
	storages []*agentv1.Storage
	sysctls  map[string]string // by file
}

// Prepare does what takes long ahead, for a guest that is going to be saved.
func (p *Pod) Prepare(ctx context.Context) error {
	return errors.Join(p.Modules.LoadPhase(module.PhaseNet), disk.Load(p.Modules), p.Network.Prepare(ctx))
}

// Setup makes the guest a sandbox.
func (p *Pod) Setup(ctx context.Context, r *agentv1.SetupSandboxRequest) error {
	// First of all, before anything draws random numbers or looks at a clock.
	end := timeline.Step(ctx, "entropy and clock")
	if len(r.GetEntropy()) > 0 {
		if err := entropy.Add(r.GetEntropy()); err != nil {
			return err
		}
	}
	if r.GetTimeUnixNs() != 0 {
		if err := SetTime(r.GetTimeUnixNs()); err != nil {
			return err
		}
	}
	end()
	if r.GetRehearsal() {
		before, err := look(r)
		if err != nil {
			return err
		}
		p.before = before
	}
	if h := r.GetHostname(); h != "" {
		if len(h) > maxHostname {
			return fmt.Errorf("host name of %d bytes, at most %d: %w", len(h), maxHostname, ErrInvalid)
		}
		if err := unix.Sethostname([]byte(h)); err != nil {
			return fmt.Errorf("set host name: %w", err)
		}
	}
	end = timeline.Step(ctx, "mounts")
	for _, st := range storages(r) {
		if err := storage.Mount(ctx, p.Modules, st); err != nil {
			return err
		}
	}
	end()
	end = timeline.Step(ctx, "network")
	if err := p.UpdateNetwork(ctx, r.GetNetwork()); err != nil {
		return err
	}
	end()
	return setSysctls(r.GetSysctls())
}

// storages is all that Setup mounts.
func storages(r *agentv1.SetupSandboxRequest) []*agentv1.Storage {
	size := r.GetShmBytes()
	if size == 0 {
		size = defaultShm
	}
	shm := &agentv1.Storage{
		Driver: "tmpfs", Source: "shm", Target: shmPath, Fstype: "tmpfs",
		Options: []string{"nosuid", "nodev", "noexec", "mode=1777", "size=" + strconv.FormatUint(size, 10)},
	}
	return append([]*agentv1.Storage{shm}, r.GetStorages()...)
}

// look notes what a rehearsal is going to change.
func look(r *agentv1.SetupSandboxRequest) (*former, error) {
	var uts unix.Utsname
	if err := unix.Uname(&uts); err != nil {
		return nil, fmt.Errorf("uname: %w", err)
	}
	f := &former{
		hostname: unix.ByteSliceToString(uts.Nodename[:]),
		storages: storages(r),
		sysctls:  make(map[string]string),
	}
	for key := range r.GetSysctls() {
		file, err := sysctlFile(key)
		if err != nil {
			return nil, err
		}
		value, err := os.ReadFile(file)
		if err != nil {
			return nil, fmt.Errorf("read sysctl %s: %w", key, err)
		}
		f.sysctls[file] = string(value)
	}
	return f, nil
}

// Undo takes back what the Setup of a rehearsal has made, also one that failed half
// way: the guest is as it was, but for the time, which went on, and its random
// numbers, which the next Setup changes again. It may be called again after an error.
func (p *Pod) Undo(ctx context.Context) error {
	if p.before == nil {
		return nil
	}
	errs := []error{p.Network.Reset(ctx), storage.Unmount(p.before.storages)}
	if err := unix.Sethostname([]byte(p.before.hostname)); err != nil {
		errs = append(errs, fmt.Errorf("set host name: %w", err))
	}
	for file, value := range p.before.sysctls {
		errs = append(errs, os.WriteFile(file, []byte(value), 0))
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	p.before = nil
	return nil
}

// UpdateNetwork loads the drivers of interfaces, if there is any use for them,
// and applies n.
func (p *Pod) UpdateNetwork(ctx context.Context, n *agentv1.Network) error {
	if len(n.GetInterfaces()) > 0 {
		if err := p.Modules.LoadPhase(module.PhaseNet); err != nil {
			return err
		}
	}
	return p.Network.Apply(ctx, n)
}

// SetTime sets the clock to a time in ns since the Unix epoch.
func SetTime(ns int64) error {
	t := unix.NsecToTimespec(ns)
	if err := unix.ClockSettime(unix.CLOCK_REALTIME, &t); err != nil {
		return fmt.Errorf("set the clock to %v: %w", time.Unix(0, ns).UTC(), err)
	}
	return nil
}
