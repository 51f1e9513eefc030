package layer

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"
)

// CopyDir copies the content of a directory of the tree, with owners, modes,
// times and extended attributes, into dst, an empty directory on the host that
// gets those of the directory itself. The error is [fs.ErrNotExist] when the
// tree has no such directory.
func (t Tree) CopyDir(name, dst string) error {
	fail := func(err error) error { return &fs.PathError{Op: "copy", Path: name, Err: err} }
	n, err := t.resolve(name)
	if err != nil {
		return fail(err)
	}
	if n.path == "" || n.stat.Mode&unix.S_IFMT != unix.S_IFDIR {
		return fail(unix.ENOTDIR)
	}
	fd, err := unix.Open(filepath.Dir(dst), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fail(err)
	}
	parent := os.NewFile(uintptr(fd), filepath.Dir(dst))
	defer func() { _ = parent.Close() }()
	u := &unpacker{merged: t, limits: Limits{}.WithDefaults(), buf: make([]byte, 256<<10)}
	if err := u.copyTree(n, parent, filepath.Base(dst)); err != nil {
		return fail(err)
	}
	return nil
}

// copyTree copies what is in the directory n of the tree into base, which exists.
func (u *unpacker) copyTree(n node, parent *os.File, base string) error {
	dir, err := openBase(parent, base)
	if err != nil {
		return err
	}
	defer func() { _ = dir.Close() }()
	children, err := u.merged.readDir(n.path)
	if err != nil {
		return err
	}
	for _, name := range children {
		if u.done.Entries++; u.done.Entries > u.limits.Entries {
			return fmt.Errorf("more than %d files", u.limits.Entries)
		}
		p := path.Join(n.path, name)
		child, err := u.merged.lookup(p)
		if errors.Is(err, fs.ErrNotExist) {
			continue // a whiteout
		}
		if err != nil {
			return err
		}
		switch kind := child.stat.Mode & unix.S_IFMT; kind {
		case unix.S_IFDIR:
			if err := unix.Mkdirat(int(dir.Fd()), name, 0o700); err != nil {
				return fmt.Errorf("mkdir %q: %w", shorten(p), err)
			}
			err = u.copyTree(child, dir, name)
		case unix.S_IFREG, unix.S_IFLNK:
			err = u.copyUp(p, dir)
		case unix.S_IFSOCK:
			// Nobody listens there.
		default:
			if err := unix.Mknodat(int(dir.Fd()), name, kind|0o600, int(child.stat.Rdev)); err != nil {
				return fmt.Errorf("mknod %q: %w", shorten(p), err)
			}
			err = u.copyNodeAttributes(child, dir, name)
		}
		if err != nil {
			return err
		}
	}
	return u.copyNodeAttributes(n, parent, base)
}

func (u *unpacker) copyNodeAttributes(n node, parent *os.File, base string) error {
	src, err := openIn(n.dir, n.path, unix.O_PATH|unix.O_NOFOLLOW)
	if err != nil {
		return err
	}
	defer func() { _ = src.Close() }()
	if err := copyAttributes(src, parent, base, &n.stat); err != nil {
		return err
	}
	return setTime(int(parent.Fd()), base, modTime(&n.stat))
}

// readDir returns the names that any layer has in p, a directory of the tree.
// Some of them may be whiteouts.
func (t Tree) readDir(p string) ([]string, error) {
	var all []string
	for _, dir := range t.Dirs {
		f, err := openIn(dir, p, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW)
		if errors.Is(err, unix.ENOENT) && !hidesBelow(dir, p) {
			continue
		}
		if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) {
			break // whatever is there hides what is below
		}
		if err != nil {
			return nil, err
		}
		names, err := f.Readdirnames(-1)
		opaque := isOpaque(f)
		_ = f.Close()
		if err != nil {
			return nil, err
		}
		all = append(all, names...)
		if opaque {
			break
		}
	}
	slices.Sort(all)
	return slices.Compact(all), nil
}
