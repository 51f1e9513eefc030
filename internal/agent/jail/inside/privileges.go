package inside

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// defaultNoFile is the soft limit of open files if the spec has none. It is the
// kernel's own, which our runtime has raised for itself; programs that use
// select(2) rely on it.
const defaultNoFile = 1024

// limitCalls are the calls that set what belongs to a process and not to a thread:
// its CPUs, scheduler, priorities and resource limits.
func (p *Process) limitCalls() ([]call, error) {
	var calls []call
	if len(p.CPUs) > 0 {
		calls = append(calls, affinityCall(p.CPUs))
	}
	if p.Scheduler != nil {
		calls = append(calls, schedulerCall(p.Scheduler))
	}
	if p.IOPriority != nil {
		calls = append(calls, ioPriorityCall(*p.IOPriority))
	}
	// Our runtime has changed its own, but not the hard one.
	files := unix.Rlimit{}
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &files); err != nil {
		return nil, fmt.Errorf("read the limit of open files: %w", err)
	}
	if !p.limits(unix.RLIMIT_NOFILE) {
		calls = append(calls, rlimitCall(Rlimit{"RLIMIT_NOFILE", unix.RLIMIT_NOFILE, min(defaultNoFile, files.Max), files.Max}))
	}
	for _, l := range p.Rlimits {
		calls = append(calls, rlimitCall(l))
	}
	return calls, nil
}

func (p *Process) limits(resource int) bool {
	for _, l := range p.Rlimits {
		if l.Resource == resource {
			return true
		}
	}
	return false
}

// dropPrivileges makes the thread the user, with the capabilities that the spec
// lists, and extra, which last until the execve: that computes the capabilities
// anew, from the bounding, inheritable and ambient sets.
func (p *Process) dropPrivileges(extra uint64) error {
	last, err := p.dropBounding()
	if err != nil {
		return err
	}
	if p.NoNewPrivs {
		if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
			return fmt.Errorf("set no_new_privs: %w", err)
		}
	}
	if err := unix.Prctl(unix.PR_SET_KEEPCAPS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("keep capabilities: %w", err)
	}
	if err := setUser(p.UID, p.GID, p.Groups); err != nil {
		return err
	}
	if err := unix.Prctl(unix.PR_SET_KEEPCAPS, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("stop keeping capabilities: %w", err)
	}
	known := ^uint64(0)
	if last < 63 {
		known = 1<<(last+1) - 1
	}
	if len(p.Filter) > 0 && !p.NoNewPrivs {
		extra |= 1 << unix.CAP_SYS_ADMIN // or the filter cannot be loaded
	}
	if err := setCapabilities((p.Effective|extra)&known, (p.Permitted|extra)&known, p.Inheritable&known); err != nil {
		return err
	}
	// The kernel refuses others; specs have them, those of `runc spec` among them.
	return setAmbient(p.Ambient&p.Permitted&p.Inheritable&known, last)
}

// dropBounding reduces the bounding set and returns the kernel's last capability.
// It asks the kernel for it and not /proc, which a container may have covered.
func (p *Process) dropBounding() (last uint, err error) {
	for c := range uint(64) {
		has, err := unix.PrctlRetInt(unix.PR_CAPBSET_READ, uintptr(c), 0, 0, 0)
		if errors.Is(err, unix.EINVAL) {
			break
		}
		if err != nil {
			return 0, fmt.Errorf("read the bounding set: %w", err)
		}
		last = c
		if has == 1 && p.Bounding&(1<<c) == 0 {
			if err := unix.Prctl(unix.PR_CAPBSET_DROP, uintptr(c), 0, 0, 0); err != nil {
				return 0, fmt.Errorf("drop capability %d from the bounding set: %w", c, err)
			}
		}
	}
	return last, nil
}

func capabilityData(effective, permitted, inheritable uint64) (data [2]unix.CapUserData) {
	for i := range data {
		shift := 32 * i
		data[i] = unix.CapUserData{
			Effective:   uint32(effective >> shift),
			Permitted:   uint32(permitted >> shift),
			Inheritable: uint32(inheritable >> shift),
		}
	}
	return data
}

func setCapabilities(effective, permitted, inheritable uint64) error {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	data := capabilityData(effective, permitted, inheritable)
	if err := unix.Capset(&header, &data[0]); err != nil {
		return fmt.Errorf("set capabilities: %w", err)
	}
	return nil
}

// permitted are the capabilities that the thread can make use of.
func permitted() uint64 {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil {
		return 0
	}
	return uint64(data[1].Permitted)<<32 | uint64(data[0].Permitted)
}

func setAmbient(set uint64, last uint) error {
	if err := unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0); err != nil {
		return fmt.Errorf("clear ambient capabilities: %w", err)
	}
	for c := uint(0); c <= last; c++ {
		if set&(1<<c) == 0 {
			continue
		}
		if err := unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_RAISE, uintptr(c), 0, 0); err != nil {
			return fmt.Errorf("raise ambient capability %d: %w", c, err)
		}
	}
	return nil
}
