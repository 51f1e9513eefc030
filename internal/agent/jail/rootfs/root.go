// Package rootfs makes the file system of a container: it fills a new mount
// namespace and makes the container's root its own. The root is hostile.
package rootfs

import (
	"errors"
	"fmt"
	"os"

	"github.com/seed-efd44b36/kata/internal/agent/jail/pty"
	"github.com/seed-efd44b36/kata/internal/safepath"
	"golang.org/x/sys/unix"
)

// root is the container's file system while it is set up. Everything in it was
// made by others and may be changed by them in the meantime: names are resolved
// below fd by safepath, and mounts are attached to descriptors.
type root struct {
	fd *os.File
	// empty is a directory without anything in it, made when it is first needed.
	empty *os.File
	// late are mounts to be made read-only at the end, when all that belongs into
	// them is there.
	late []*os.File
}

// Root is the container's file system.
type Root struct {
	// Path is a directory in the agent's mount namespace.
	Path     string
	ReadOnly bool
	// Propagation is an MS_* flag, with MS_REC perhaps; 0 is MS_SLAVE|MS_REC.
	Propagation uintptr
	Mounts      []Mount
	Devices     []Device
	// MakeDev is unset if the container brings its own /dev.
	MakeDev       bool
	Masked        []string
	ReadOnlyPaths []string
}

// Mount is a mount in the container.
type Mount struct {
	// Target is a path in the container.
	Target string
	// Type is the file system; empty for a bind mount and for a change to what is
	// mounted there (Remount).
	Type string
	// Name is what a new file system is listed as.
	Name string
	// Source is a path in the agent's mount namespace, for a bind mount.
	Source    string
	Recursive bool
	Remount   bool
	// Data are options of the file system, "key=value" or "flag".
	Data []string
	// Set and Clear are MOUNT_ATTR_* bits for the mount itself, the others for it
	// and all below it.
	Set, Clear       uint64
	SetAll, ClearAll uint64
	// Propagation lists MS_* flags, with MS_REC perhaps.
	Propagation []uintptr
	// CopyUp fills a tmpfs with what it hides.
	CopyUp bool
}

// Device is a device node.
type Device struct {
	Path     string
	Mode     uint32 // with S_IFCHR, S_IFBLK or S_IFIFO
	Dev      uint64
	UID, GID uint32
}

// SetUp fills the mount namespace, which must be new, and makes the root its own. The
// working directory cwd is made if it is missing. It returns a terminal if one is
// asked for.
func (spec *Root) SetUp(cwd string, wantTerminal bool) (*pty.PTY, error) {
	// The sources are taken before the propagation changes: those of shared
	// mounts stay peers of theirs if the spec wants that.
	sources, err := openSources(spec.Mounts)
	if err != nil {
		return nil, err
	}
	propagation := spec.Propagation
	if propagation == 0 {
		propagation = unix.MS_SLAVE | unix.MS_REC
	}
	// Whatever the root's propagation is to be in the end, what is done now is
	// not for the namespace that this one was copied from, and pivot_root asks
	// for it.
	if err := unix.Mount("", "/", "", unix.MS_PRIVATE|unix.MS_REC, ""); err != nil {
		return nil, fmt.Errorf("make the mounts private: %w", err)
	}
	fd, err := attachRoot(spec.Path)
	if err != nil {
		return nil, err
	}
	r := &root{fd: fd}
	for i, m := range spec.Mounts {
		if err := r.mount(m, sources[i], propagation); err != nil {
			return nil, fmt.Errorf("mount %q: %w", m.Target, err)
		}
	}
	if spec.MakeDev {
		if err := r.makeDev(spec.Devices); err != nil {
			return nil, err
		}
	}
	var terminal *pty.PTY
	if wantTerminal {
		if terminal, err = r.openConsole(); err != nil {
			return nil, err
		}
	}
	r.makeDir(cwd)
	for _, name := range spec.ReadOnlyPaths {
		if err := r.readOnly(name); err != nil {
			return nil, fmt.Errorf("make %q read-only: %w", name, err)
		}
	}
	for _, name := range spec.Masked {
		if err := r.mask(name); err != nil {
			return nil, fmt.Errorf("mask %q: %w", name, err)
		}
	}
	return terminal, r.enter(spec.ReadOnly, propagation)
}

// makeDir makes the working directory where the image has none, while that can be
// done. What keeps it from being made is told by the process that goes there.
func (r *root) makeDir(name string) {
	if dir, err := safepath.MkdirAll(r.fd, name, 0o755); err == nil {
		_ = dir.Close()
	}
}

// openSources clones what the bind mounts are of; the entries of others are nil.
func openSources(mounts []Mount) ([]*os.File, error) {
	sources := make([]*os.File, len(mounts))
	for i, m := range mounts {
		if m.Source == "" {
			continue
		}
		tree, err := cloneTree(unix.AT_FDCWD, m.Source, m.Recursive)
		if err != nil {
			return nil, fmt.Errorf("open %q, to be mounted at %q: %w", m.Source, m.Target, err)
		}
		sources[i] = tree
	}
	return sources, nil
}

// attachRoot makes a mount of the root directory, as pivot_root needs one, and
// opens it.
func attachRoot(name string) (*os.File, error) {
	place, err := safepath.OpenRoot(name)
	if err != nil {
		return nil, err
	}
	defer func() { _ = place.Close() }()
	tree, err := cloneTree(int(place.Fd()), "", true)
	if err != nil {
		return nil, fmt.Errorf("clone the root %q: %w", name, err)
	}
	if err := attach(tree, place); err != nil {
		return nil, fmt.Errorf("mount the root %q: %w", name, err)
	}
	return tree, nil
}

// enter makes the root the namespace's, and the old one disappear.
func (r *root) enter(readOnly bool, propagation uintptr) error {
	for _, m := range r.late {
		if err := setAttributes(m, false, unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}); err != nil {
			return fmt.Errorf("make a mount read-only: %w", err)
		}
	}
	if readOnly {
		if err := setAttributes(r.fd, false, unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}); err != nil {
			return fmt.Errorf("make the root read-only: %w", err)
		}
	}
	if err := unix.Fchdir(int(r.fd.Fd())); err != nil {
		return fmt.Errorf("change directory to the root: %w", err)
	}
	// The new root is where we are and the old one is put on top of it, so that no
	// directory is needed for it; then it is taken off.
	if err := unix.PivotRoot(".", "."); err != nil {
		return fmt.Errorf("change the root: %w", err)
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return fmt.Errorf("unmount the old root: %w", err)
	}
	if err := unix.Chdir("/"); err != nil {
		return fmt.Errorf("change directory to the new root: %w", err)
	}
	if propagation == unix.MS_SLAVE|unix.MS_REC || propagation == unix.MS_PRIVATE|unix.MS_REC {
		// Private is what the root is already; mounts below may want to differ.
		return nil
	}
	if err := unix.Mount("", "/", "", propagation, ""); err != nil {
		return fmt.Errorf("set the root's propagation: %w", err)
	}
	return nil
}

// openFor opens the place for a mount in the container, making it if it is
// missing: a directory or a file like what is to be mounted.
func (r *root) openFor(target string, directory bool) (*os.File, error) {
	if directory {
		return safepath.MkdirAll(r.fd, target, 0o755)
	}
	return safepath.Touch(r.fd, target, 0o644)
}

// readOnly makes what is there read-only, with all below it. What is not there
// is passed over.
func (r *root) readOnly(name string) error {
	place, err := safepath.Open(r.fd, name, unix.O_PATH)
	if missing(err) {
		return nil
	}
	if err != nil {
		return err
	}
	defer func() { _ = place.Close() }()
	tree, err := cloneTree(int(place.Fd()), "", true)
	if err != nil {
		return err
	}
	defer func() { _ = tree.Close() }()
	if err := setAttributes(tree, true, unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}); err != nil {
		return err
	}
	return attach(tree, place)
}

// mask hides a file behind /dev/null and a directory behind an empty one. What is
// not there is passed over.
func (r *root) mask(name string) error {
	place, err := safepath.Open(r.fd, name, unix.O_PATH)
	if missing(err) {
		return nil
	}
	if err != nil {
		return err
	}
	defer func() { _ = place.Close() }()
	var st unix.Stat_t
	if err := unix.Fstat(int(place.Fd()), &st); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT == unix.S_IFDIR {
		return r.maskDirectory(place)
	}
	// The agent's own: the container's may be anything (CVE-2025-31133).
	null, err := cloneTree(unix.AT_FDCWD, os.DevNull, false)
	if err != nil {
		return err
	}
	defer func() { _ = null.Close() }()
	if err := checkNull(null); err != nil {
		return err
	}
	return attach(null, place)
}

// maskDirectory mounts an empty, read-only tmpfs; all places get the same one.
func (r *root) maskDirectory(place *os.File) error {
	if r.empty != nil {
		tree, err := cloneTree(int(r.empty.Fd()), "", false)
		if err != nil {
			return err
		}
		defer func() { _ = tree.Close() }()
		return attach(tree, place)
	}
	tree, err := newMount("tmpfs", "tmpfs", []string{"nr_blocks=1", "nr_inodes=1", "mode=0755"},
		unix.MOUNT_ATTR_RDONLY|unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV|unix.MOUNT_ATTR_NOEXEC)
	if err != nil {
		return err
	}
	if err := attach(tree, place); err != nil {
		_ = tree.Close()
		return err
	}
	r.empty = tree
	return nil
}

// missing reports that a path leads nowhere.
func missing(err error) bool {
	return errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR)
}

// nullDevice is the number of /dev/null.
const nullDevice = 1<<8 | 3

func checkNull(f *os.File) error {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFCHR || st.Rdev != nullDevice {
		return errors.New("/dev/null is not the null device")
	}
	return nil
}
