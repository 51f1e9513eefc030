// Package share makes the directory of a sandbox that its guest sees: the root
// file systems and volumes of its containers, and nothing else.
//
// The directory is a small tmpfs of our own, mounted in the mount namespace of
// the process that owns the sandbox, so it ends with that process and its VMM.
// Below it each container has
//
//	ID/rootfs     its root file system
//
// and beside them are the volumes of all containers, directories or files:
//
//	.volumes/N    what one or several containers have mounted
//
// The guest is hostile: it may do to the file server whatever the protocol
// allows. So the mounted tmpfs is read-only; directories are made in it through
// a second, writable mount that nobody but us can reach, and no path that we
// follow has a component that the guest can change. Everything in it is mounted
// nodev, nosuid, noexec and nosymfollow: whatever a guest makes there, a device
// node or a link, is dead matter for a process of the host that opens it. And
// what is to be read-only is so by its mount here, not by the guest's will.
//
// Life cycle: Prepare -> AddRootfs, AddVolume, Remove (any number) -> Close.
// Needs Linux 5.14 (mount_setattr with nosymfollow).
package share

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	agentv1 "github.com/seed-efd44b36/kata/api/agent/v1"
	"github.com/seed-efd44b36/kata/internal/cleanup"
	"golang.org/x/sys/unix"
)

// errUnsupported is wrapped by errors about a source that cannot be shared
// with a guest.
const errUnsupported = unsupported("cannot be shared with a virtual machine")

// unsupported is an errors.ErrUnsupported that says it in its own words.
type unsupported string

func (u unsupported) Error() string { return string(u) }

func (unsupported) Unwrap() error { return errors.ErrUnsupported }

const (
	// rootfsName is a name below a container's directory.
	rootfsName = "rootfs"
	// volumesName is no container's id.
	volumesName = ".volumes"
)

// lifeless are the attributes of every mount that the guest can reach.
const lifeless = unix.MOUNT_ATTR_NODEV | unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NOEXEC | unix.MOUNT_ATTR_NOSYMFOLLOW

// resolveOwn resolves paths in the shared directory: below it, over no link,
// and into no mount, behind which is the guest's territory.
const resolveOwn = unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_XDEV

// Dir is a shared directory. Its methods are safe for concurrent use, as long
// as each container has one user at a time.
type Dir struct {
	path string
	host *os.File // mount namespace of sources; nil: our own
	root *os.File // the mounted, read-only tmpfs
	rw   *os.File // a writable mount of it that is in no namespace
	// server is the pidfd of the process that serves the directory, nil if
	// that is in our mount namespace.
	server *os.File
	// virtiofs tells the guest's mount type apart from 9p.
	virtiofs bool

	volumes volumes
}

// Prepare mounts the shared directory at dir, which it makes. host is the mount
// namespace in which the sources of later calls are looked up, nil for our own;
// it stays the caller's and must be open as long as the Dir is used. The
// process should be in a mount namespace of its own: what is mounted here is
// for the VMM alone.
func Prepare(dir string, host *os.File) (_ *Dir, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("prepare shared directory %s: %w", dir, err)
		}
	}()
	if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, err
	}
	mnt, err := newTmpfs()
	if err != nil {
		return nil, err
	}
	defer unix.Close(mnt)
	at, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: dir, Err: err}
	}
	defer unix.Close(at)
	if err := attach(mnt, at); err != nil {
		return nil, err
	}
	d := &Dir{path: dir, host: host, volumes: volumes{of: map[source]*volume{}}}
	defer func() {
		if err != nil {
			err = errors.Join(err, d.Close())
		}
	}()
	// The writable one is cloned before the other is made shared, so that it
	// does not receive its mounts.
	rw, err := openTree(dir, 0)
	if err != nil {
		return nil, err
	}
	d.rw = os.NewFile(uintptr(rw), dir)
	if err := setAttr(rw, 0, 0, unix.MS_PRIVATE); err != nil {
		return nil, err
	}
	// Shared, so that a file server in a mount namespace that it made for
	// itself receives what is mounted here later.
	if err := setAttr(mnt, unix.MOUNT_ATTR_RDONLY, 0, unix.MS_SHARED); err != nil {
		return nil, err
	}
	root, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: dir, Err: err}
	}
	d.root = os.NewFile(uintptr(root), dir)
	return d, nil
}

// Path is where the shared directory is mounted.
func (d *Dir) Path() string { return d.path }

// Storage is what the agent mounts to see the directory: the share with the
// given tag, at target in the guest.
func (d *Dir) Storage(tag, target string) *agentv1.Storage {
	if d.virtiofs {
		return &agentv1.Storage{Driver: "virtiofs", Source: tag, Target: target, Fstype: "virtiofs"}
	}
	return &agentv1.Storage{
		Driver: "9p", Source: tag, Target: target, Fstype: "9p",
		// mmap: caches nothing but what is mapped, so that the guest sees
		// changes on the host. msize: the most that the transport takes, which
		// warns of more; it gained speed up to there.
		Options: []string{"trans=virtio", "version=9p2000.L", "cache=mmap", "msize=512000"},
	}
}

// AddRootfs shows the root file system of a container: what mounts give, or
// without any the directory path. It is writable until ProtectRootfs, so that
// the agent can make mount points. If the directory is to be readonly, those
// are made in memory: a guest that is an attacker's already cannot use the time
// until then to change the host's directory, unless it is one that overlayfs
// refuses. On error call Remove.
func (d *Dir) AddRootfs(ctx context.Context, container, path string, mounts []Mount, readonly bool) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("share rootfs of %s: %w", container, err)
	}
	var tree int
	var err error
	switch {
	case len(mounts) > 0:
		tree, err = d.openMounts(mounts)
	case readonly:
		tree, err = d.openReadonly(path)
	default:
		tree, err = d.openSource(path, true)
	}
	if err != nil {
		return fmt.Errorf("share rootfs of %s: %w", container, err)
	}
	defer unix.Close(tree)
	if err := checkName(container); err != nil {
		return fmt.Errorf("share rootfs: %w", err)
	}
	if err := d.add(filepath.Join(container, rootfsName), tree, unix.S_IFDIR, unix.MS_PRIVATE); err != nil {
		return fmt.Errorf("share rootfs of %s: %w", container, err)
	}
	return nil
}

// ProtectRootfs makes the root file system of a container read-only, with all
// that is mounted in it on the host. It is for after the agent has made the
// mount points in it, before a process of the container runs.
func (d *Dir) ProtectRootfs(container string) error {
	if err := d.protect(container); err != nil {
		return fmt.Errorf("protect rootfs of %s: %w", container, err)
	}
	return nil
}

func (d *Dir) protect(container string) error {
	c, err := d.openContainer(container)
	if err != nil {
		return err
	}
	defer unix.Close(c)
	// The one name crosses into the mount; c's entries are ours.
	fd, err := unix.Openat(c, rootfsName, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := setAttr(fd, unix.MOUNT_ATTR_RDONLY, unix.AT_RECURSIVE, 0); err != nil {
		return err
	}
	return d.inServer(fd, filepath.Join(container, rootfsName), func(fd int) error {
		return setAttr(fd, unix.MOUNT_ATTR_RDONLY, unix.AT_RECURSIVE, 0)
	})
}

// fileKind tells what is mounted: S_IFDIR or S_IFREG, all else is an error.
func fileKind(fd int) (uint32, error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return 0, fmt.Errorf("stat: %w", err)
	}
	var what string
	switch kind := st.Mode & unix.S_IFMT; kind {
	case unix.S_IFDIR, unix.S_IFREG:
		return kind, nil
	case unix.S_IFSOCK:
		what = "a socket"
	case unix.S_IFIFO:
		what = "a named pipe"
	case unix.S_IFBLK, unix.S_IFCHR:
		what = "a device"
	default:
		what = "neither a file nor a directory"
	}
	return 0, fmt.Errorf("it is %s, which %w", what, errUnsupported)
}

// add attaches the tree, a mount of the given kind, at path in the shared
// directory.
func (d *Dir) add(path string, tree int, kind uint32, propagation uint64) error {
	got, err := fileKind(tree)
	if err != nil {
		return err
	}
	if got != kind {
		return errors.New("it is not a directory")
	}
	if err := setAttr(tree, lifeless, unix.AT_RECURSIVE, propagation); err != nil {
		return err
	}
	if err := d.makePoint(path, kind); err != nil {
		return fmt.Errorf("make mount point: %w", err)
	}
	at, err := unix.Openat2(int(d.root.Fd()), path, &unix.OpenHow{
		Flags: unix.O_PATH | unix.O_NOFOLLOW | unix.O_CLOEXEC, Resolve: resolveOwn,
	})
	if errors.Is(err, unix.EXDEV) {
		return fmt.Errorf("%s: %w", path, fs.ErrExist)
	}
	if err != nil {
		return fmt.Errorf("open mount point %s: %w", path, err)
	}
	defer unix.Close(at)
	return attach(tree, at)
}

// makePoint makes the mount point on the writable side.
func (d *Dir) makePoint(path string, kind uint32) error {
	rw := int(d.rw.Fd())
	for i, c := range path {
		if c != '/' {
			continue
		}
		if err := unix.Mkdirat(rw, path[:i], 0o755); err != nil && !errors.Is(err, unix.EEXIST) {
			return err
		}
	}
	if kind == unix.S_IFDIR {
		err := unix.Mkdirat(rw, path, 0o755)
		if errors.Is(err, unix.EEXIST) {
			err = nil
		}
		return err
	}
	fd, err := unix.Openat(rw, path, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o644)
	if err != nil {
		return err
	}
	return unix.Close(fd)
}

// checkName tells whether a container's id can be a directory here.
func checkName(container string) error {
	if container == "" || container == "." || container == ".." || strings.ContainsAny(container, "/\x00") {
		return fmt.Errorf("container id %q: not a file name: %w", container, fs.ErrInvalid)
	}
	return nil
}

func (d *Dir) openContainer(container string) (int, error) {
	if err := checkName(container); err != nil {
		return -1, err
	}
	return unix.Openat2(int(d.root.Fd()), container, &unix.OpenHow{
		Flags: unix.O_PATH | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC, Resolve: resolveOwn,
	})
}

// Remove takes all of a container out of the shared directory, in use or not,
// and nothing else: what was mounted is not looked into. A container that has
// nothing there is no error.
func (d *Dir) Remove(container string) error {
	if err := errors.Join(d.removeRootfs(container), d.removeVolumes(container)); err != nil {
		return fmt.Errorf("unshare %s: %w", container, err)
	}
	return nil
}

func (d *Dir) removeRootfs(container string) error {
	c, err := d.openContainer(container)
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	if err != nil {
		return err
	}
	defer unix.Close(c)
	if err := cleanup.Unmount(fmt.Sprintf("/proc/self/fd/%d/%s", c, rootfsName)); err != nil {
		return err
	}
	return d.removePoint(container)
}

// removePoint removes mount points, on the writable side, where nothing is
// mounted.
func (d *Dir) removePoint(path string) error {
	root, err := os.OpenRoot(fmt.Sprintf("/proc/self/fd/%d", d.rw.Fd()))
	if err != nil {
		return err
	}
	defer root.Close()
	return root.RemoveAll(path)
}

// Close unmounts the shared directory with all that is in it, and removes the
// directory. Nothing is looked into.
func (d *Dir) Close() error {
	for _, f := range []*os.File{d.root, d.rw, d.server} {
		if f != nil {
			_ = f.Close() // holds no data
		}
	}
	if err := cleanup.Unmount(d.path); err != nil {
		return fmt.Errorf("close shared directory: %w", err)
	}
	if err := os.Remove(d.path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("close shared directory: %w", err)
	}
	return nil
}
