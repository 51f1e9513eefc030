// Package cgroup limits and measures containers with the control groups, version
// 2, of the guest.
//
// Life cycle of a group: Hierarchy.Create -> AddPID of its first process ->
// Update, Freeze, Thaw, Stats, WatchOOM at any time -> Kill -> Delete.
//
// What a spec asks for and version 2 cannot do is an error that names the field;
// nothing is dropped.
package cgroup

import (
	"context"
	"errors"
	"os"

	"github.com/opencontainers/runtime-spec/specs-go"
	agentv1 "github.com/seed-efd44b36/kata/api/agent/v1"
)

// Hierarchy is where the groups are made.
type Hierarchy struct {
	// Root is the directory where the file system is mounted, /sys/fs/cgroup.
	Root string
}

// Group is the control group of one container. Its methods are safe for
// concurrent use.
type Group struct {
	dir  string // absolute
	name string // below the root
}

var errTODO = errors.New("not there yet")

// Create makes the group of the given name, a path relative to the root such as
// "kata/ID", switches on every controller that the kernel has on the way to it,
// and applies the limits. It is an error if the group exists. On error nothing of
// it is left.
func (h Hierarchy) Create(name string, r *specs.LinuxResources) (*Group, error) {
	return nil, errTODO
}

// Controllers lists the controllers that groups can use.
func (h Hierarchy) Controllers() ([]string, error) { return nil, errTODO }

// Path is the directory of the group.
func (g *Group) Path() string { return g.dir }

// Update changes the limits to what r says; what r does not mention stays.
func (g *Group) Update(r *specs.LinuxResources) error { return errTODO }

// AddPID moves the process into the group.
func (g *Group) AddPID(pid int) error { return errTODO }

// PIDs lists the processes in the group and in groups below it.
func (g *Group) PIDs() ([]int, error) { return nil, errTODO }

// Freeze stops every process of the group and waits until they stand still.
func (g *Group) Freeze(ctx context.Context) error { return errTODO }

// Thaw undoes Freeze.
func (g *Group) Thaw(ctx context.Context) error { return errTODO }

// Kill sends SIGKILL to every process of the group, frozen or not. It does not
// wait for their end.
func (g *Group) Kill() error { return errTODO }

// Signal sends sig to every process of the group.
func (g *Group) Signal(sig os.Signal) error { return errTODO }

// Stats measures the group. The network is left empty.
func (g *Group) Stats() (*agentv1.StatsContainerResponse, error) { return nil, errTODO }

// OOMKills is how many processes of the group were killed for want of memory.
func (g *Group) OOMKills() (uint64, error) { return 0, errTODO }

// WatchOOM calls notify after every kill for want of memory until ctx ends (its
// error is returned) or the group is deleted (nil is).
func (g *Group) WatchOOM(ctx context.Context, notify func()) error { return errTODO }

// Delete removes the group and all groups below it. It waits, no longer than ctx
// allows, until their processes, which Kill was called for, have ended.
func (g *Group) Delete(ctx context.Context) error { return errTODO }

// AddPIDBeside moves the process into the group that other, a process of g or of a
// group below it, is in.
func (g *Group) AddPIDBeside(pid, other int) error { return errTODO }
