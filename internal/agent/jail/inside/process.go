package inside

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// timerSlack in ns is the kernel's default.
const timerSlack = 50 * 1000

// run takes the privileges away, waits at the gate and executes the program. It
// returns only an error.
func (p *Process) run(c control, stdio []*os.File, terminal *os.File) error {
	own, err := newStdio(stdio)
	if err != nil {
		return err
	}
	calls, err := p.limitCalls()
	if err != nil {
		return err
	}
	for i := range calls {
		if errno := calls[i].do(); errno != 0 {
			return fmt.Errorf("%s: %w", calls[i].what, errno)
		}
	}
	image, err := p.prepare(c, own, 0)
	if err != nil {
		return err
	}
	if err := own.install(); err != nil {
		return err
	}
	// Whatever else is open, ours or left by mistake, is not for the container
	// (CVE-2024-21626).
	if err := unix.CloseRange(3, ^uint(0)>>1, unix.CLOSE_RANGE_CLOEXEC); err != nil {
		return fmt.Errorf("close descriptors at execve: %w", err)
	}
	if err := c.answer(terminal, 0, nil); err != nil {
		return err
	}
	image.become(0, 0)
	return nil
}

// prepare makes the thread what the program is to run as, but for extra
// capabilities that last until the execve.
//
// Credentials, capabilities and the filter belong to the calling thread only,
// which is enough: the other threads end with the execve, or are not those of the
// process that makes it, and run nothing of the container's.
func (p *Process) prepare(c control, own *stdio, extra uint64) (*image, error) {
	if err := own.give(p.UID); err != nil {
		return nil, err
	}
	// Ours is much larger.
	if err := unix.Prctl(unix.PR_SET_TIMERSLACK, timerSlack, 0, 0, 0); err != nil {
		return nil, fmt.Errorf("set the timer slack: %w", err)
	}
	if p.Personality != nil {
		if _, _, errno := unix.RawSyscall(unix.SYS_PERSONALITY, uintptr(*p.Personality), 0, 0); errno != 0 {
			return nil, fmt.Errorf("set the personality: %w", errno)
		}
	}
	unix.Umask(p.Umask)
	// Root's directories may be closed to the user, the user's to root (NFS): the
	// second try is made as the user.
	changed := changeDir(p.Cwd)
	env := withHome(p.Env, p.UID)

	if err := p.dropPrivileges(extra); err != nil {
		return nil, err
	}
	if changed != nil {
		changed = changeDir(p.Cwd)
	}
	if changed != nil {
		return nil, changed
	}
	program, held, err := lookUp(cmp.Or(p.Program, p.Args[0]), env)
	if err != nil {
		return nil, err
	}
	i, err := newImage(program, p.Args, env, p.Filter, p.FilterFlags)
	if err != nil {
		_ = unix.Close(held)
		return nil, err
	}
	i.control, i.held = c.Fd(), uintptr(held)
	return i, nil
}

// changeDir changes the working directory and makes sure that the new one is in
// the container: a descriptor of a directory outside could have led there.
func changeDir(dir string) error {
	if err := unix.Chdir(dir); err != nil {
		return fmt.Errorf("change directory to %q: %w", dir, err)
	}
	// The kernel says "(unreachable)" or an error of what is not below our root.
	wd, err := unix.Getwd()
	if err != nil || !strings.HasPrefix(wd, "/") {
		return fmt.Errorf("working directory %q is outside of the container's root", dir)
	}
	return nil
}

// lookUp finds the program as execvp does, for the user that the thread is by now,
// and opens it. While held is open the kernel knows the way to the program: with 9p,
// the host would be asked for each part of it once more by the execve.
func lookUp(name string, env []string) (path string, held int, err error) {
	if strings.Contains(name, "/") {
		if held, err = executable(name); err != nil {
			return "", -1, execError(name, err)
		}
		return name, held, nil
	}
	denied := false
	for dir := range strings.SplitSeq(variable(env, "PATH"), ":") {
		if dir == "" || name == "" {
			continue
		}
		file := strings.TrimSuffix(dir, "/") + "/" + name
		held, err := executable(file)
		if err == nil {
			return file, held, nil
		}
		denied = denied || errors.Is(err, unix.EACCES)
	}
	if denied {
		return "", -1, execError(name, unix.EACCES)
	}
	return "", -1, &Error{NotFound, fmt.Sprintf("exec %q: executable file not found in $PATH", name)}
}

// executable opens a file as a place (O_PATH), or tells why it cannot be executed.
func executable(name string) (fd int, err error) {
	if fd, err = unix.Open(name, unix.O_PATH|unix.O_CLOEXEC, 0); err != nil {
		return -1, err
	}
	// The kernel knows both by now; for fstat the host would be asked, by 9p.
	err = unix.Faccessat(fd, "", unix.X_OK, unix.AT_EACCESS|unix.AT_EMPTY_PATH)
	if err == nil && !errors.Is(unix.Faccessat(fd, ".", unix.F_OK, 0), unix.ENOTDIR) {
		err = unix.EACCES // as execve has it, and as engines know it
	}
	if err != nil {
		_ = unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// execError classifies the error of an execve, or of what would be one.
func execError(name string, err error) error {
	kind := Internal
	switch {
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENOTDIR):
		kind = NotFound
	case errors.Is(err, unix.EACCES), errors.Is(err, unix.EPERM), errors.Is(err, unix.ENOEXEC):
		kind = Permission
	}
	return &Error{kind, fmt.Sprintf("exec %q: %v", name, err)}
}

// variable returns the value of an environment variable, the last if there are
// several.
func variable(env []string, name string) string {
	value := ""
	for _, kv := range env {
		if k, v, ok := strings.Cut(kv, "="); ok && k == name {
			value = v
		}
	}
	return value
}

// nullDevice is the number of /dev/null.
const nullDevice = 1<<8 | 3

// free is the first descriptor that no program gets, or control socket.
const free = 10

// stdio are the descriptors that become 0, 1 and 2.
type stdio struct {
	fds [3]int
}

// newStdio moves the descriptors out of the way of 0, 1 and 2.
func newStdio(files []*os.File) (*stdio, error) {
	s := new(stdio)
	for i, f := range files {
		fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, free)
		if err != nil {
			return nil, fmt.Errorf("set up descriptor %d: %w", i, err)
		}
		s.fds[i] = fd
	}
	return s, nil
}

// give makes the user the owner, so that /dev/stdout can be opened again.
func (s *stdio) give(uid uint32) error {
	for i, fd := range s.fds {
		var st unix.Stat_t
		if err := unix.Fstat(fd, &st); err != nil {
			return fmt.Errorf("look at descriptor %d: %w", i, err)
		}
		kind := st.Mode & unix.S_IFMT
		if st.Uid == uid || kind == unix.S_IFCHR && st.Rdev == nullDevice {
			continue // /dev/null is everybody's
		}
		err := unix.Fchown(fd, int(uid), int(st.Gid))
		// Files that were given to us may be on a read-only or foreign file system.
		if err != nil && !errors.Is(err, unix.EPERM) && !errors.Is(err, unix.EROFS) && !errors.Is(err, unix.EINVAL) {
			return fmt.Errorf("change the owner of descriptor %d: %w", i, err)
		}
	}
	return nil
}

// install puts the descriptors in place. What the process says by itself after
// that, were it to panic, goes to the container's output.
func (s *stdio) install() error {
	for i, fd := range s.fds {
		if err := unix.Dup3(fd, i, 0); err != nil {
			return fmt.Errorf("set up descriptor %d: %w", i, err)
		}
	}
	return nil
}

// close closes what install would put in place.
func (s *stdio) close() {
	for _, fd := range s.fds {
		_ = unix.Close(fd)
	}
}
