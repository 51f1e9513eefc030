// Package disk gives disks of the host to a virtual machine while it runs: block
// devices for containers, and the file systems that some engines keep on block
// devices or in image files.
//
// The host never mounts such a file system for a container. Its contents may be
// a guest's, and no kernel stands firm against a forged one; here it is the
// guest's kernel that reads it. No loop device is made either: an image file is
// opened, and the machine reads it through that descriptor. So there is nothing
// on the host that could be left over, however the owner ends.
//
// Life cycle: New -> AddRootfs, AddDevice, Remove (any number). The disks end
// with the machine. Sources are the engine's and trusted; what the guest has
// written to them is not looked at.
package disk

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"slices"
	"strconv"
	"time"

	agentv1 "github.com/seed-efd44b36/kata/api/agent/v1"
	"github.com/seed-efd44b36/kata/internal/spec"
	"github.com/seed-efd44b36/kata/internal/vmm"
)

// removeTimeout is how long a machine may take to let go of a disk.
const removeTimeout = 10 * time.Second

// Machine is what a Set needs of a virtual machine.
type Machine interface {
	AddDisk(ctx context.Context, d vmm.Disk) error
	RemoveDisk(ctx context.Context, id string) error
}

// Set is the disks of one machine. Its methods are safe for concurrent use.
type Set struct {
	machine Machine
	host    *os.File
	// turn is taken by who attaches or detaches: one at a time.
	turn chan struct{}
	last int                  // number of the latest disk; guarded by turn
	list map[string]*attached // by id; guarded by turn
}

// attached is a disk of the machine.
type attached struct {
	// device is zero for what no other container may have: a file system, or a
	// disk that could not be detached. Else it is without the path and rules.
	device spec.Device
	users  []string // containers; one that has the device at two paths is there twice
}

// New returns an empty set. host is the mount namespace in which sources are
// looked up, nil for our own; it stays the caller's and must be open as long as
// the Set is used.
func New(machine Machine, host *os.File) *Set {
	return &Set{machine: machine, host: host, turn: make(chan struct{}, 1), list: map[string]*attached{}}
}

// take waits for the caller's turn; done ends it.
func (s *Set) take(ctx context.Context) (done func(), err error) {
	select {
	case s.turn <- struct{}{}:
		return func() { <-s.turn }, nil
	case <-ctx.Done():
		return nil, fmt.Errorf("wait for another disk: %w", ctx.Err())
	}
}

// AddRootfs attaches the disk that a container's root file system is on, and
// returns what the guest is to mount.
func (s *Set) AddRootfs(ctx context.Context, container string, m Mount) (*agentv1.Storage, error) {
	fail := func(err error) (*agentv1.Storage, error) {
		return nil, fmt.Errorf("root file system of %s on %s: %w", container, m.Source, err)
	}
	options, err := m.parse()
	if err != nil {
		return fail(err)
	}
	done, err := s.take(ctx)
	if err != nil {
		return fail(err)
	}
	defer done()
	f, err := openSource(s.host, m.Source, options)
	if err != nil {
		return fail(err)
	}
	defer f.Close() // the machine has its own
	id, err := s.attach(ctx, vmm.Disk{File: f, ReadOnly: options.readonly}, &attached{users: []string{container}})
	if err != nil {
		return fail(err)
	}
	return &agentv1.Storage{
		Driver: "block", Source: id, Target: path.Join(spec.GuestDisks, container), Fstype: m.Type, Options: options.guest,
	}, nil
}

// AddDevice attaches a block device for a container. Containers that use one
// device alike get the same disk: they see each other's writes at once, as they
// would on the host.
func (s *Set) AddDevice(ctx context.Context, container string, d spec.Device) (*agentv1.BlockDevice, error) {
	fail := func(err error) (*agentv1.BlockDevice, error) {
		return nil, fmt.Errorf("block device %s (%d:%d of the host): %w", d.Path, d.Major, d.Minor, err)
	}
	done, err := s.take(ctx)
	if err != nil {
		return fail(err)
	}
	defer done()
	wanted := spec.Device{Major: d.Major, Minor: d.Minor, Limits: d.Limits}
	if !d.ReadOnly() {
		wanted.Access = "w"
	}
	given := &agentv1.BlockDevice{Path: d.Path, Access: d.Access}
	for id, a := range s.list {
		if a.device != (spec.Device{}) && a.device == wanted {
			a.users = append(a.users, container)
			given.Serial = id
			return given, nil
		}
	}
	flags := os.O_RDWR
	if d.ReadOnly() {
		flags = os.O_RDONLY
	}
	f, err := openNumber(d.Major, d.Minor, flags)
	if err != nil {
		return fail(err)
	}
	defer f.Close() // the machine has its own
	given.Serial, err = s.attach(ctx, vmm.Disk{File: f, ReadOnly: d.ReadOnly(), Limits: vmm.DiskLimits(d.Limits)},
		&attached{device: wanted, users: []string{container}})
	if err != nil {
		return fail(err)
	}
	return given, nil
}

// attach adds a disk under a new id, which no other disk of the machine has
// had: the guest may not have forgotten one that is gone.
func (s *Set) attach(ctx context.Context, d vmm.Disk, a *attached) (id string, err error) {
	s.last++
	d.ID = "kata-" + strconv.Itoa(s.last)
	if err := s.machine.AddDisk(ctx, d); err != nil {
		return "", err
	}
	s.list[d.ID] = a
	return d.ID, nil
}

// Remove detaches what a container has, as far as no other uses it. A machine
// that has ended has none. It takes its time even if the context has ended.
func (s *Set) Remove(ctx context.Context, container string) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), removeTimeout)
	defer cancel()
	done, err := s.take(ctx)
	if err != nil {
		return fmt.Errorf("detach disks of %s: %w", container, err)
	}
	defer done()
	var errs []error
	for id, a := range s.list {
		others := slices.DeleteFunc(slices.Clone(a.users), func(u string) bool { return u == container })
		if len(others) > 0 {
			a.users = others
			continue
		}
		// One that could not be detached stays the container's, for the next try.
		if err := s.machine.RemoveDisk(ctx, id); err != nil && !errors.Is(err, vmm.ErrGone) {
			a.device = spec.Device{}
			errs = append(errs, err)
			continue
		}
		delete(s.list, id)
	}
	return errors.Join(errs...)
}
