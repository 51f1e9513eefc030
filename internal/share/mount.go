package share

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/seed-efd44b36/kata/internal/thread"
	"golang.org/x/sys/unix"
)

// Mount is a mount to make for a root file system, as containerd describes
// one. Types that the project can make safely: "bind" and "overlay".
type Mount struct {
	Type, Source string
	Options      []string
}

// newTmpfs makes the file system of a shared directory, mounted nowhere. It
// holds mount points only, a few hundred at most.
func newTmpfs() (int, error) {
	fsfd, err := unix.Fsopen("tmpfs", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return -1, fmt.Errorf("make tmpfs: %w", err)
	}
	defer unix.Close(fsfd)
	for _, o := range [][2]string{{"source", "kata"}, {"size", "4m"}, {"nr_inodes", "65536"}, {"mode", "0755"}} {
		if err := unix.FsconfigSetString(fsfd, o[0], o[1]); err != nil {
			return -1, fmt.Errorf("make tmpfs: %s: %w", o[0], err)
		}
	}
	if err := unix.FsconfigCreate(fsfd); err != nil {
		return -1, fmt.Errorf("make tmpfs: %w", err)
	}
	mnt, err := unix.Fsmount(fsfd, unix.FSMOUNT_CLOEXEC, lifeless)
	if err != nil {
		return -1, fmt.Errorf("make tmpfs: %w", err)
	}
	return mnt, nil
}

// openTree clones the mount at path into one that is in no namespace.
func openTree(path string, flags uint) (int, error) {
	fd, err := unix.OpenTree(unix.AT_FDCWD, path, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|flags)
	if err != nil {
		return -1, &os.PathError{Op: "open_tree", Path: path, Err: err}
	}
	return fd, nil
}

// setAttr sets attributes and, unless 0, the propagation of a mount.
func setAttr(mnt int, attrs uint64, flags uint, propagation uint64) error {
	err := unix.MountSetattr(mnt, "", unix.AT_EMPTY_PATH|flags, &unix.MountAttr{Attr_set: attrs, Propagation: propagation})
	if err != nil {
		return fmt.Errorf("mount_setattr: %w", err)
	}
	return nil
}

// attach mounts mnt on the directory or file at.
func attach(mnt, at int) error {
	err := unix.MoveMount(mnt, "", at, "", unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_EMPTY_PATH)
	if err != nil {
		return fmt.Errorf("move_mount: %w", err)
	}
	return nil
}

// onHost runs f on a thread that is in the host's mount namespace: a mount can
// be cloned only from within the namespace that it is in.
func (d *Dir) onHost(f func() (int, error)) (fd int, err error) {
	err = thread.InMounts(d.host, func() error {
		fd, err = f()
		return err
	})
	if err != nil {
		return -1, err
	}
	return fd, nil
}

// openSource clones what is at path on the host.
func (d *Dir) openSource(path string, recursive bool) (int, error) {
	if !strings.HasPrefix(path, "/") {
		return -1, errors.New("not an absolute path")
	}
	flags := uint(0)
	if recursive {
		flags = unix.AT_RECURSIVE
	}
	return d.onHost(func() (int, error) { return openTree(path, flags) })
}

// OnTmpfs tells whether a path of the host is on a tmpfs. One that cannot be
// looked at is not: AddVolume tells why.
func (d *Dir) OnTmpfs(path string) bool {
	var st unix.Statfs_t
	_, err := d.onHost(func() (int, error) { return 0, unix.Statfs(path, &st) })
	return err == nil && st.Type == unix.TMPFS_MAGIC
}

// openReadonly makes an overlay of the directory path, or clones it if that
// cannot be.
func (d *Dir) openReadonly(path string) (int, error) {
	if !strings.HasPrefix(path, "/") {
		return -1, errors.New("not an absolute path")
	}
	fd, err := d.onHost(scratchOverlay(path).mount)
	if errors.Is(err, errRefused) {
		return d.openSource(path, true)
	}
	if err != nil {
		return -1, fmt.Errorf("overlay: %w", err)
	}
	return fd, nil
}

// openMounts makes the mounts of a root file system and returns the result,
// mounted nowhere. The type decides what a source is; nothing is guessed from
// it. File systems on block devices are refused: their contents may be a
// guest's, and no kernel stands firm against a forged one.
func (d *Dir) openMounts(mounts []Mount) (int, error) {
	if len(mounts) != 1 {
		return -1, fmt.Errorf("%d mounts on one another, which %w: only one is supported", len(mounts), errUnsupported)
	}
	m := mounts[0]
	switch m.Type {
	case "bind", "rbind":
		return d.openBind(m)
	case "overlay":
		o, err := parseOverlay(m.Options)
		if err != nil {
			return -1, fmt.Errorf("overlay: %w", err)
		}
		fd, err := d.onHost(o.mount)
		if err != nil {
			return -1, fmt.Errorf("overlay: %w", err)
		}
		return fd, nil
	default:
		return -1, fmt.Errorf("mount type %q %w: use a snapshotter that gives overlay or bind mounts, such as overlayfs or native", m.Type, errUnsupported)
	}
}

func (d *Dir) openBind(m Mount) (int, error) {
	recursive, readonly := m.Type == "rbind", false
	for _, o := range m.Options {
		switch o {
		case "rbind":
			recursive = true
		case "ro":
			readonly = true
		case "bind", "rw", "rprivate", "private":
		default:
			return -1, fmt.Errorf("bind %s: option %q %w", m.Source, o, errUnsupported)
		}
	}
	fd, err := d.openSource(m.Source, recursive)
	if err != nil {
		return -1, fmt.Errorf("bind: %w", err)
	}
	if readonly {
		if err := setAttr(fd, unix.MOUNT_ATTR_RDONLY, unix.AT_RECURSIVE, 0); err != nil {
			unix.Close(fd)
			return -1, fmt.Errorf("bind %s: %w", m.Source, err)
		}
	}
	return fd, nil
}
