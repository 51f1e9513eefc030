package rootfs

import (
	"errors"
	"fmt"
	"os"
	"path"

	"github.com/seed-efd44b36/kata/internal/agent/jail/pty"
	"github.com/seed-efd44b36/kata/internal/safepath"
	"golang.org/x/sys/unix"
)

// links are those that every container has in /dev.
var links = [...]struct{ name, target string }{
	{"/dev/fd", "/proc/self/fd"},
	{"/dev/stdin", "/proc/self/fd/0"},
	{"/dev/stdout", "/proc/self/fd/1"},
	{"/dev/stderr", "/proc/self/fd/2"},
	{"/dev/ptmx", "pts/ptmx"},
}

// coreLink is there if the kernel has what it points to.
const coreLink, core = "/dev/core", "/proc/kcore"

// makeDev makes the devices and the links of /dev.
func (r *root) makeDev(devices []Device) error {
	for _, d := range devices {
		if err := r.makeDevice(d); err != nil {
			return fmt.Errorf("make device %q: %w", d.Path, err)
		}
	}
	for _, l := range links {
		if err := r.link(l.name, l.target); err != nil {
			return fmt.Errorf("make %q: %w", l.name, err)
		}
	}
	if _, err := os.Lstat(core); err != nil { // the agent's
		return nil //nolint:nilerr // it is not there
	}
	if err := r.link(coreLink, core); err != nil {
		return fmt.Errorf("make %q: %w", coreLink, err)
	}
	return nil
}

// makeDevice makes a node. One that is there must be the same device.
func (r *root) makeDevice(d Device) error {
	dir, base, err := safepath.Parent(r.fd, d.Path, 0o755)
	if err != nil {
		return err
	}
	defer func() { _ = dir.Close() }()
	fd := int(dir.Fd())
	err = unix.Mknodat(fd, base, d.Mode, int(d.Dev))
	if err != nil && !errors.Is(err, unix.EEXIST) {
		return err
	}
	there := err != nil
	node, err := unix.Openat(fd, base, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(node) }()
	var st unix.Stat_t
	if err := unix.Fstat(node, &st); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT != d.Mode&unix.S_IFMT || st.Rdev != d.Dev && d.Mode&unix.S_IFMT != unix.S_IFIFO {
		return errors.New("something else is there")
	}
	if there {
		return nil
	}
	return unix.Fchownat(node, "", int(d.UID), int(d.GID), unix.AT_EMPTY_PATH)
}

// link makes a symbolic link in place of whatever has its name. Directories and
// mounts stay: they were asked for.
func (r *root) link(name, target string) error {
	dir, err := safepath.MkdirAll(r.fd, path.Dir(name), 0o755)
	if err != nil {
		return err
	}
	defer func() { _ = dir.Close() }()
	fd, base := int(dir.Fd()), path.Base(name)
	err = unix.Symlinkat(target, fd, base)
	if !errors.Is(err, unix.EEXIST) {
		return err
	}
	if base != "ptmx" {
		return nil // the image has it already
	}
	// Only this one can make a difference: a node here would be a terminal
	// of the guest's.
	err = unix.Unlinkat(fd, base, 0)
	if errors.Is(err, unix.EBUSY) || errors.Is(err, unix.EISDIR) {
		return nil
	}
	if err != nil {
		return err
	}
	return unix.Symlinkat(target, fd, base)
}

// openConsole opens a terminal of the container's own devpts and makes it
// /dev/console.
func (r *root) openConsole() (*pty.PTY, error) {
	ptmx, err := safepath.Open(r.fd, "/dev/pts/ptmx", unix.O_RDWR|unix.O_NOCTTY)
	if err != nil {
		return nil, fmt.Errorf("open a terminal, is there a devpts at /dev/pts?: %w", err)
	}
	t, err := pty.New(ptmx)
	if err != nil {
		return nil, err
	}
	place, err := safepath.Touch(r.fd, "/dev/console", 0o600)
	if err != nil {
		return nil, fmt.Errorf("make /dev/console: %w", err)
	}
	defer func() { _ = place.Close() }()
	// By descriptor: a name in a directory that others can write to might by now be
	// another thing (CVE-2025-52565).
	tree, err := cloneTree(int(t.Slave.Fd()), "", false)
	if err != nil {
		return nil, fmt.Errorf("make /dev/console: %w", err)
	}
	defer func() { _ = tree.Close() }()
	if err := attach(tree, place); err != nil {
		return nil, fmt.Errorf("make /dev/console: %w", err)
	}
	return t, nil
}
