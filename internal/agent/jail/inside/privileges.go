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

// setLimits sets what belongs to the process and needs privileges.
func (p *Process) setLimits() error {
	if p.Scheduler != nil {
		if err := unix.SchedSetAttr(0, p.Scheduler, 0); err != nil {
			return fmt.Errorf("set the scheduler: %w", err)
		}
	}
	if p.IOPriority != nil {
		const whoProcess = 1
		if _, _, errno := unix.RawSyscall(unix.SYS_IOPRIO_SET, whoProcess, 0, uintptr(*p.IOPriority)); errno != 0 {
			return fmt.Errorf("set the I/O priority: %w", errno)
		}
	}
	if p.Personality != nil {
		if _, _, errno := unix.RawSyscall(unix.SYS_PERSONALITY, uintptr(*p.Personality), 0, 0); errno != 0 {
			return fmt.Errorf("set the personality: %w", errno)
		}
	}
	files := unix.Rlimit{}
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &files); err != nil {
		return fmt.Errorf("read the limit of open files: %w", err)
	}
	limits := p.Rlimits
	if !p.limits(unix.RLIMIT_NOFILE) {
		limits = append(limits, Rlimit{"RLIMIT_NOFILE", unix.RLIMIT_NOFILE, min(defaultNoFile, files.Max), files.Max})
	}
	for _, l := range limits {
		// Directly, because the runtime keeps its own idea of some of them.
		lim := unix.Rlimit{Cur: l.Cur, Max: l.Max}
		if err := unix.Prlimit(0, l.Resource, &lim, nil); err != nil {
			return fmt.Errorf("set %s to %d:%d: %w", l.Name, l.Cur, l.Max, err)
		}
	}
	return nil
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
// lists. One more stays if the filter is to be loaded without no_new_privs, which
// takes CAP_SYS_ADMIN: the execve that follows computes the capabilities anew, from
// the bounding, inheritable and ambient sets.
func (p *Process) dropPrivileges() error {
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
	extra := uint64(0)
	if len(p.Filter) > 0 && !p.NoNewPrivs {
		extra = 1 << unix.CAP_SYS_ADMIN
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

func setCapabilities(effective, permitted, inheritable uint64) error {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	for i := range data {
		shift := 32 * i
		data[i] = unix.CapUserData{
			Effective:   uint32(effective >> shift),
			Permitted:   uint32(permitted >> shift),
			Inheritable: uint32(inheritable >> shift),
		}
	}
	if err := unix.Capset(&header, &data[0]); err != nil {
		return fmt.Errorf("set capabilities: %w", err)
	}
	return nil
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
