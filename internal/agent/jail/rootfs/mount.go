package rootfs

import (
	"errors"
	"fmt"
	"os"
	"path"
	"slices"
	"strings"

	"github.com/seed-efd44b36/kata/internal/safepath"
	"golang.org/x/sys/unix"
)

// mount makes one mount. The tree is a clone of the source if it is a bind mount.
func (r *root) mount(m Mount, tree *os.File, propagation uintptr) error {
	if m.Remount {
		return r.remount(m)
	}
	late := false
	if tree == nil {
		set := m.Set
		// What is put into it, by us and by the mounts below it, comes first.
		if late = set&unix.MOUNT_ATTR_RDONLY != 0 && m.Type == "tmpfs"; late {
			set &^= unix.MOUNT_ATTR_RDONLY
		}
		var err error
		if tree, err = newMount(m.Type, m.Name, m.Data, set); err != nil {
			return err
		}
	} else if err := r.adjust(tree, m); err != nil {
		_ = tree.Close()
		return err
	}
	if late {
		r.late = append(r.late, tree)
	} else {
		defer func() { _ = tree.Close() }()
	}

	directory, err := isDirectory(tree)
	if err != nil {
		return err
	}
	place, err := r.openFor(m.Target, directory)
	if err != nil {
		return err
	}
	defer func() { _ = place.Close() }()
	if err := r.checkPlace(place, m); err != nil {
		return err
	}
	if m.CopyUp {
		ownMode := slices.ContainsFunc(m.Data, func(o string) bool { return strings.HasPrefix(o, "mode=") })
		if err := copyUp(place, tree, ownMode); err != nil {
			return fmt.Errorf("copy what is hidden: %w", err)
		}
	}
	if err := attach(tree, place); err != nil {
		return err
	}
	if m.Source != "" && len(m.Propagation) == 0 {
		return propagate(tree, propagation)
	}
	for _, flags := range m.Propagation {
		if err := propagate(tree, flags); err != nil {
			return err
		}
	}
	return nil
}

// adjust sets the attributes of a bind mount.
func (r *root) adjust(tree *os.File, m Mount) error {
	all := unix.MountAttr{Attr_set: m.SetAll, Attr_clr: m.ClearAll}
	if all.Attr_set|all.Attr_clr != 0 {
		if err := setAttributes(tree, true, all); err != nil {
			return err
		}
	}
	one := unix.MountAttr{Attr_set: m.Set, Attr_clr: m.Clear}
	if one.Attr_set|one.Attr_clr == 0 {
		return nil
	}
	return setAttributes(tree, false, one)
}

// remount changes what is mounted at the target, which must be a mount's root.
func (r *root) remount(m Mount) error {
	place, err := safepath.Open(r.fd, m.Target, unix.O_PATH)
	if err != nil {
		return err
	}
	defer func() { _ = place.Close() }()
	return r.adjust(place, m)
}

// checkPlace refuses to mount over procfs but at known places below it, so that
// nothing can stand in for the files that processes are controlled by
// (CVE-2019-16884, CVE-2019-19921).
func (r *root) checkPlace(place *os.File, m Mount) error {
	if m.Type == "proc" || m.Type == "sysfs" {
		// Behind a link it could be moved, and then what is masked would be seen.
		direct, err := safepath.OpenNoLinks(r.fd, m.Target, unix.O_PATH)
		if err != nil {
			return fmt.Errorf("%s must be at an ordinary directory: %w", m.Type, err)
		}
		_ = direct.Close()
	}
	var fs unix.Statfs_t
	if err := unix.Fstatfs(int(place.Fd()), &fs); err != nil {
		return err
	}
	if fs.Type != unix.PROC_SUPER_MAGIC {
		return nil
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(place.Fd()), &st); err != nil {
		return err
	}
	const procRoot = 1
	if st.Ino == procRoot {
		return nil
	}
	switch strings.TrimPrefix(path.Clean(m.Target), "/proc/") {
	case "cpuinfo", "diskstats", "meminfo", "stat", "swaps", "uptime", "loadavg", "slabinfo", "net/dev",
		"sys/kernel/ns_last_pid", "sys/crypto/fips_enabled":
		return nil
	}
	return errors.New("cannot be inside of /proc")
}

// newMount makes a file system that is not mounted anywhere yet. The name is what
// mountinfo shows as its source.
func newMount(fstype, name string, data []string, attributes uint64) (*os.File, error) {
	if fstype == "cgroup" {
		fstype = "cgroup2"
	}
	fs, err := unix.Fsopen(fstype, unix.FSOPEN_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("file system %q: %w", fstype, err)
	}
	defer func() { _ = unix.Close(fs) }()
	if name != "" {
		if err := unix.FsconfigSetString(fs, "source", name); err != nil {
			return nil, fmt.Errorf("source %q of %s: %w", name, fstype, explain(fs, err))
		}
	}
	for _, option := range data {
		key, value, hasValue := strings.Cut(option, "=")
		if hasValue {
			err = unix.FsconfigSetString(fs, key, value)
		} else {
			err = unix.FsconfigSetFlag(fs, key)
		}
		if err != nil {
			return nil, fmt.Errorf("option %q of %s: %w", option, fstype, explain(fs, err))
		}
	}
	if err := unix.FsconfigCreate(fs); err != nil {
		return nil, fmt.Errorf("make a %s: %w", fstype, explain(fs, err))
	}
	fd, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, int(attributes))
	if err != nil {
		return nil, fmt.Errorf("make a mount of %s: %w", fstype, explain(fs, err))
	}
	return os.NewFile(uintptr(fd), fstype), nil
}

// explain adds what the kernel has to say about a failure.
func explain(fs int, err error) error {
	buf := make([]byte, 512)
	n, readErr := unix.Read(fs, buf)
	if readErr != nil || n <= 0 {
		return err
	}
	text := strings.TrimSpace(strings.TrimPrefix(string(buf[:n]), "e "))
	return fmt.Errorf("%w (%s)", err, text)
}

// cloneTree copies the mount that dir and name lead to, from there on. The copy is
// not mounted anywhere.
func cloneTree(dir int, name string, recursive bool) (*os.File, error) {
	flags := uint(unix.OPEN_TREE_CLONE | unix.OPEN_TREE_CLOEXEC)
	if name == "" {
		flags |= unix.AT_EMPTY_PATH
	}
	if recursive {
		flags |= unix.AT_RECURSIVE
	}
	fd, err := unix.OpenTree(dir, name, flags)
	if err != nil {
		return nil, fmt.Errorf("clone the mount: %w", err)
	}
	return os.NewFile(uintptr(fd), name), nil
}

// attach mounts a tree on a file or directory, wherever that is by now.
func attach(tree, place *os.File) error {
	err := unix.MoveMount(int(tree.Fd()), "", int(place.Fd()), "",
		unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_EMPTY_PATH)
	if err != nil {
		return fmt.Errorf("attach the mount: %w", err)
	}
	return nil
}

// setAttributes changes the mount of f, and those below it if recursive.
func setAttributes(f *os.File, recursive bool, attr unix.MountAttr) error {
	flags := uint(unix.AT_EMPTY_PATH)
	if recursive {
		flags |= unix.AT_RECURSIVE
	}
	if err := unix.MountSetattr(int(f.Fd()), "", flags, &attr); err != nil {
		return fmt.Errorf("set mount attributes: %w", err)
	}
	return nil
}

func propagate(f *os.File, flags uintptr) error {
	attr := unix.MountAttr{Propagation: uint64(flags &^ unix.MS_REC)}
	return setAttributes(f, flags&unix.MS_REC != 0, attr)
}

func isDirectory(f *os.File) (bool, error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return false, err
	}
	return st.Mode&unix.S_IFMT == unix.S_IFDIR, nil
}
