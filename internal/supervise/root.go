package supervise

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"
)

// Root describes a file system tree of the child's own: an empty read-only
// directory in memory with the paths of Access in it, and no other file of the
// host. What cannot be named cannot be connected to, changed or looked at.
//
//   - What may be read is there read-only, without devices and set-user-ID.
//   - Device files can be used, but not changed.
//   - Directories that may be written are there as they are. If they are shared
//     mounts, what their owner mounts in them later arrives.
//
// With the tree come empty process, System V IPC and host name namespaces: there
// is nobody else to send a signal to. As the first process of its namespace the
// child ignores signals for which it has no handler, SIGKILL excepted. (Should
// its owner be killed in the instant between fork and the death signal's
// setting, it lives on: it cannot notice as it sees no parent.)
type Root struct {
	// Proc adds /proc, in which the child finds itself and only such other
	// processes as it would be allowed to trace.
	Proc bool
}

// hostDir is where the host's tree is while the child's is made.
const hostDir = "/.host"

// Mount attributes of what a child finds in its root.
const (
	inert  = unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV | unix.MOUNT_ATTR_NOEXEC
	file   = unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV
	device = unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NOEXEC
)

// enter moves the calling thread into the tree. Whether that works or not, the
// thread is in a mount namespace of its own afterwards and good for nothing but
// to fork the child. All that is made goes with the last process that is in it.
func (r Root) enter(access Access) error {
	tree, err := survey(access)
	if err != nil {
		return err
	}
	// A namespace of its own for the thread, which has no longer the process's
	// root and working directory then.
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("unshare the mount namespace: %w", err)
	}
	// What we mount reaches nobody; what others mount reaches us.
	if err := unix.Mount("", "/", "", unix.MS_SLAVE|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("leave the propagation of mounts: %w", err)
	}
	root, err := pivot()
	if err != nil {
		return err
	}
	defer unix.Close(root)
	if err := tree.build(); err != nil {
		return err
	}
	if r.Proc {
		if err := mountProc(); err != nil {
			return err
		}
	}
	if err := unix.Unmount(hostDir, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil {
		return &os.PathError{Op: "unmount", Path: hostDir, Err: err}
	}
	if err := os.Remove(hostDir); err != nil {
		return err
	}
	return setAttr(root, inert, 0, 0)
}

// pivot makes an empty tree the root and leaves the old one in hostDir. It
// returns the new root's mount, which is writable.
func pivot() (_ int, err error) {
	fsfd, err := unix.Fsopen("tmpfs", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return -1, fmt.Errorf("make tmpfs: %w", err)
	}
	defer unix.Close(fsfd)
	// It holds a few mount points.
	for _, o := range [][2]string{{"source", "root"}, {"size", "64k"}, {"nr_inodes", "1024"}, {"mode", "0755"}} {
		if err := unix.FsconfigSetString(fsfd, o[0], o[1]); err != nil {
			return -1, fmt.Errorf("make tmpfs: %s: %w", o[0], err)
		}
	}
	if err := unix.FsconfigCreate(fsfd); err != nil {
		return -1, fmt.Errorf("make tmpfs: %w", err)
	}
	root, err := unix.Fsmount(fsfd, unix.FSMOUNT_CLOEXEC, inert&^unix.MOUNT_ATTR_RDONLY)
	if err != nil {
		return -1, fmt.Errorf("make tmpfs: %w", err)
	}
	defer func() {
		if err != nil {
			unix.Close(root)
		}
	}()
	// On top of the old root: that is a directory which is there for sure.
	if err := unix.MoveMount(root, "", unix.AT_FDCWD, "/", unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return -1, fmt.Errorf("mount tmpfs: %w", err)
	}
	if err := unix.Mkdirat(root, hostDir[1:], 0o700); err != nil {
		return -1, &os.PathError{Op: "mkdir", Path: hostDir, Err: err}
	}
	if err := unix.Fchdir(root); err != nil {
		return -1, fmt.Errorf("enter tmpfs: %w", err)
	}
	if err := unix.PivotRoot(".", hostDir[1:]); err != nil {
		return -1, fmt.Errorf("pivot_root: %w", err)
	}
	if err := unix.Chdir("/"); err != nil {
		return -1, &os.PathError{Op: "chdir", Path: "/", Err: err}
	}
	return root, nil
}

// mountProc mounts a procfs without anything that is not a process.
func mountProc() error {
	if err := os.Mkdir("/proc", 0o555); err != nil {
		return err
	}
	const flags = unix.MS_RDONLY | unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC
	if err := unix.Mount("proc", "/proc", "proc", flags, "subset=pid,hidepid=ptraceable"); err != nil {
		return &os.PathError{Op: "mount", Path: "/proc", Err: err}
	}
	return nil
}

// tree is what a child's root has: files and directories of the host at their
// own paths, which go over no link, and the links that lead to them.
type tree struct {
	writable map[string]bool   // by path
	links    map[string]string // targets by path
}

// survey finds out what access means on this host. What does not exist is left
// out.
func survey(access Access) (tree, error) {
	t := tree{writable: make(map[string]bool), links: make(map[string]string)}
	for _, path := range access.Read {
		if err := t.add(path, false); err != nil {
			return tree{}, err
		}
	}
	for _, path := range access.Write {
		if err := t.add(path, true); err != nil {
			return tree{}, err
		}
	}
	maps.DeleteFunc(t.writable, func(path string, write bool) bool { return t.within(path, write) })
	maps.DeleteFunc(t.links, func(path, _ string) bool { return t.within(path, false) })
	return t, nil
}

// maxLinks is how many links a path may lead over, as for the kernel.
const maxLinks = 40

func (t tree) add(path string, write bool) error {
	full := path
	if !filepath.IsAbs(path) {
		return fmt.Errorf("path %q is not absolute", path)
	}
	full = filepath.Clean(full)
	for range maxLinks {
		link, rest, err := firstLink(full)
		if errors.Is(err, os.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		if link == "" {
			t.writable[full] = t.writable[full] || write
			return nil
		}
		target, err := os.Readlink(link)
		if err != nil {
			return err
		}
		t.links[link] = target
		if !filepath.IsAbs(target) {
			target = filepath.Join(filepath.Dir(link), target)
		}
		full = filepath.Join(target, rest)
	}
	return &os.PathError{Op: "resolve", Path: path, Err: unix.ELOOP}
}

// firstLink splits a clean path after the first component that is a symbolic
// link. Link is "" if there is none.
func firstLink(path string) (link, rest string, err error) {
	for i := 1; i <= len(path); i++ {
		if i < len(path) && path[i] != '/' {
			continue
		}
		info, err := os.Lstat(path[:i])
		if err != nil {
			return "", "", err
		}
		if info.Mode().Type() == os.ModeSymlink {
			return path[:i], path[i:], nil
		}
	}
	return "", "", nil
}

// within reports whether path is there anyway, as part of a directory with at
// least the same rights.
func (t tree) within(path string, write bool) bool {
	for path != "/" {
		path = filepath.Dir(path)
		if writable, ok := t.writable[path]; ok && (writable || !write) {
			return true
		}
	}
	return false
}

// build fills the root. The host's tree is in hostDir.
func (t tree) build() error {
	// Sorted, a directory comes before what is mounted in it.
	for _, path := range slices.Sorted(maps.Keys(t.writable)) {
		if err := bind(path, t.writable[path]); err != nil {
			return fmt.Errorf("bind %s: %w", path, err)
		}
	}
	for _, path := range slices.Sorted(maps.Keys(t.links)) {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		if err := os.Symlink(t.links[path], path); err != nil {
			return err
		}
	}
	return nil
}

// bind shows path of the host at the same path of the root.
func bind(path string, write bool) error {
	source, err := unix.OpenTree(unix.AT_FDCWD, hostDir+path,
		unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_RECURSIVE|unix.AT_SYMLINK_NOFOLLOW)
	if err != nil {
		return fmt.Errorf("open_tree: %w", err)
	}
	defer unix.Close(source)
	var st unix.Stat_t
	if err := unix.Fstat(source, &st); err != nil {
		return fmt.Errorf("stat: %w", err)
	}
	if err := makePoint(path, st.Mode&unix.S_IFMT == unix.S_IFDIR); err != nil {
		return fmt.Errorf("make mount point: %w", err)
	}
	switch kind := st.Mode & unix.S_IFMT; {
	case kind == unix.S_IFCHR || kind == unix.S_IFBLK:
		err = setAttr(source, device, 0, unix.MS_PRIVATE)
	case !write:
		err = setAttr(source, file, unix.AT_RECURSIVE, unix.MS_PRIVATE)
	}
	if err != nil {
		return err
	}
	if err := unix.MoveMount(source, "", unix.AT_FDCWD, path, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fmt.Errorf("move_mount: %w", err)
	}
	return nil
}

func makePoint(path string, dir bool) error {
	if dir {
		return os.MkdirAll(path, 0o755)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_RDONLY|os.O_CREATE|os.O_EXCL|unix.O_CLOEXEC, 0o444)
	if errors.Is(err, os.ErrExist) {
		return nil // in a directory that is mounted
	}
	if err != nil {
		return err
	}
	return f.Close()
}

// setAttr sets attributes and, unless 0, the propagation of a mount.
func setAttr(mnt int, attrs uint64, flags uint, propagation uint64) error {
	err := unix.MountSetattr(mnt, "", unix.AT_EMPTY_PATH|flags, &unix.MountAttr{Attr_set: attrs, Propagation: propagation})
	if err != nil {
		return fmt.Errorf("mount_setattr: %w", err)
	}
	return nil
}
