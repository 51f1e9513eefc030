package share

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"

	"github.com/seed-efd44b36/kata/internal/cleanup"
	"github.com/seed-efd44b36/kata/internal/spec"
	"golang.org/x/sys/unix"
)

// Volume is what a container's bind mount is in the shared directory.
type Volume struct {
	// Path is where it is there.
	Path string
	// Split: it is read-only, but not all that is mounted below it.
	Split bool
}

// volumes are those of all containers. Containers that mount the same get the
// same, so that they have the same files for the guest's kernel: a socket, a lock
// or a mapped file of one container is that of the other.
type volumes struct {
	mu   sync.Mutex         // held while a volume is made or removed, so that others find it whole or not at all
	of   map[source]*volume // guarded by mu
	next int                // guarded by mu
}

// source tells volumes apart.
type source struct {
	dev, ino uint64
	// mount is the number of the host's mount that a slave has its mounts from: 0
	// for others.
	mount uint64
	// below are the mounts below it, by their numbers.
	below string
	// slave and readOnlyBelow are as in spec.Bind, and readOnly is, if there
	// are mounts below. writable: its mount on the host is.
	slave, readOnlyBelow, readOnly, writable bool
}

// volume is one that is there.
type volume struct {
	path string
	// protected: we have made it read-only.
	protected bool
	users     map[string]bool // by container
}

// AddVolume shows a bind mount of a container. Its source, whose links are
// followed, must be a directory or a regular file: anything else, such as a
// device, a socket or a pipe, has no meaning in another kernel, and the error
// wraps errors.ErrUnsupported. It is read-only on the host as long as no container
// of the sandbox may write to it. On error call Remove.
func (d *Dir) AddVolume(ctx context.Context, container string, b spec.Bind) (Volume, error) {
	if err := ctx.Err(); err != nil {
		return Volume{}, fmt.Errorf("share %s: %w", b.Source, err)
	}
	if err := checkName(container); err != nil {
		return Volume{}, fmt.Errorf("share %s: %w", b.Source, err)
	}
	v, err := d.addVolume(container, b)
	if err != nil {
		return Volume{}, fmt.Errorf("share %s: %w", b.Source, err)
	}
	return v, nil
}

func (d *Dir) addVolume(container string, b spec.Bind) (Volume, error) {
	tree, err := d.openSource(b.Source, b.Recursive)
	if err != nil {
		return Volume{}, err
	}
	defer unix.Close(tree)
	kind, err := fileKind(tree)
	if err != nil {
		return Volume{}, err
	}
	src, err := d.identify(tree, b)
	if err != nil {
		return Volume{}, err
	}
	d.volumes.mu.Lock()
	defer d.volumes.mu.Unlock()
	v := d.volumes.of[src]
	switch {
	case v == nil:
		if v, err = d.makeVolume(tree, kind, src, b); err != nil {
			return Volume{}, err
		}
	case v.protected && !b.ReadOnly:
		if err := d.letWrite(v); err != nil {
			return Volume{}, err
		}
	}
	v.users[container] = true
	return Volume{Path: v.path, Split: src.readOnly}, nil
}

// identify finds out what a source is.
func (d *Dir) identify(tree int, b spec.Bind) (source, error) {
	var st unix.Stat_t
	if err := unix.Fstat(tree, &st); err != nil {
		return source{}, fmt.Errorf("stat: %w", err)
	}
	var mount unix.Statfs_t
	if err := unix.Fstatfs(tree, &mount); err != nil {
		return source{}, fmt.Errorf("statfs: %w", err)
	}
	if mount.Type == unix.HUGETLBFS_MAGIC {
		return source{}, fmt.Errorf("it is in huge pages of the host, which %w (take an emptyDir of medium Memory instead)", errUnsupported)
	}
	src := source{
		dev: st.Dev, ino: st.Ino, slave: b.Slave, readOnlyBelow: b.ReadOnlyBelow,
		writable: mount.Flags&unix.ST_RDONLY == 0,
	}
	if b.Slave {
		var err error
		if src.mount, err = d.mountOf(b.Source); err != nil {
			return source{}, err
		}
	}
	if b.Recursive && st.Mode&unix.S_IFMT == unix.S_IFDIR {
		var err error
		if src.below, err = d.mountsBelow(b.Source); err != nil {
			return source{}, err
		}
	}
	src.readOnly = src.below != "" && b.ReadOnly && !b.ReadOnlyBelow
	return src, nil
}

// mountOf is the number of the host's mount that a path is in.
func (d *Dir) mountOf(path string) (uint64, error) {
	var st unix.Statx_t
	_, err := d.onHost(func() (int, error) {
		return 0, unix.Statx(unix.AT_FDCWD, path, unix.AT_STATX_DONT_SYNC, unix.STATX_MNT_ID, &st)
	})
	if err != nil {
		return 0, fmt.Errorf("mount of %s: %w", path, err)
	}
	return st.Mnt_id, nil
}

// mountsBelow lists the numbers of the host's mounts below a directory.
func (d *Dir) mountsBelow(path string) (string, error) {
	var list strings.Builder
	_, err := d.onHost(func() (int, error) {
		fd, err := unix.Open(path, unix.O_PATH|unix.O_CLOEXEC, 0)
		if err != nil {
			return -1, err
		}
		defer unix.Close(fd)
		path, err := os.Readlink(fmt.Sprintf("/proc/thread-self/fd/%d", fd))
		if err != nil {
			return -1, err
		}
		b, err := os.ReadFile("/proc/thread-self/mountinfo")
		if err != nil {
			return -1, err
		}
		for line := range strings.Lines(string(b)) {
			if f := strings.Fields(line); len(f) > 4 && isBelow(unescape.Replace(f[4]), path) {
				list.WriteString(f[0] + " ")
			}
		}
		return 0, nil
	})
	if err != nil {
		return "", fmt.Errorf("mounts below it: %w", err)
	}
	return list.String(), nil
}

// unescape undoes what the kernel does to paths in lists of mounts.
var unescape = strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`)

func isBelow(path, dir string) bool {
	return path != dir && strings.HasPrefix(path, strings.TrimSuffix(dir, "/")+"/")
}

// makeVolume shows a source. The caller holds mu.
func (d *Dir) makeVolume(tree int, kind uint32, src source, b spec.Bind) (*volume, error) {
	flags := uint(0)
	if b.ReadOnlyBelow {
		flags = unix.AT_RECURSIVE
	}
	if b.ReadOnly || b.ReadOnlyBelow {
		if err := setAttr(tree, unix.MOUNT_ATTR_RDONLY, flags, 0); err != nil {
			return nil, err
		}
	}
	propagation := uint64(unix.MS_PRIVATE)
	if b.Slave {
		propagation = unix.MS_SLAVE
	}
	v := &volume{
		path:      filepath.Join(volumesName, strconv.Itoa(d.volumes.next)),
		protected: b.ReadOnly && src.writable, users: map[string]bool{},
	}
	d.volumes.next++
	if err := d.add(v.path, tree, kind, propagation); err != nil {
		return nil, errors.Join(err, d.removePoint(v.path))
	}
	d.volumes.of[src] = v
	return v, nil
}

// letWrite takes back that a volume is read-only, for a container that may write
// to it: then the guest may, and it is the guest that keeps other containers from
// it. The caller holds mu.
func (d *Dir) letWrite(v *volume) error {
	fd, err := unix.Openat2(int(d.root.Fd()), v.path, &unix.OpenHow{
		// It leads into the mount, whose name nobody else can change.
		Flags: unix.O_PATH | unix.O_NOFOLLOW | unix.O_CLOEXEC, Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS,
	})
	if err != nil {
		return &os.PathError{Op: "open", Path: v.path, Err: err}
	}
	defer unix.Close(fd)
	if err := clearReadOnly(fd); err != nil {
		return err
	}
	if err := d.inServer(fd, v.path, clearReadOnly); err != nil {
		return err
	}
	v.protected = false
	return nil
}

func clearReadOnly(mnt int) error {
	err := unix.MountSetattr(mnt, "", unix.AT_EMPTY_PATH, &unix.MountAttr{Attr_clr: unix.MOUNT_ATTR_RDONLY})
	if err != nil {
		return fmt.Errorf("mount_setattr: %w", err)
	}
	return nil
}

// removeVolumes takes away the volumes that no other container uses.
func (d *Dir) removeVolumes(container string) error {
	d.volumes.mu.Lock()
	defer d.volumes.mu.Unlock()
	for src, v := range d.volumes.of {
		delete(v.users, container)
		if len(v.users) > 0 {
			continue
		}
		if err := cleanup.Unmount(fmt.Sprintf("/proc/self/fd/%d/%s", d.root.Fd(), v.path)); err != nil {
			return err
		}
		delete(d.volumes.of, src)
		if err := d.removePoint(v.path); err != nil {
			return err
		}
	}
	return nil
}
