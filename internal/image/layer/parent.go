package layer

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// openParent opens a directory of the layer, making what is missing of it. The
// result belongs to u and is good until the next call.
func (u *unpacker) openParent(dir string) (*os.File, error) {
	if u.parent != nil && u.parentPath == dir && u.parentAlive() {
		return u.parent, nil
	}
	u.forgetParent()
	physical, err := u.makeDirs(dir)
	if err != nil {
		return nil, err
	}
	f, err := u.openReal(physical)
	if err != nil {
		return nil, err
	}
	u.parent, u.parentPath, u.parentReal = f, dir, physical
	return f, nil
}

// parentAlive reports whether the directory in the cache is still where it was
// found: an entry of the layer may have replaced it or a part of its path.
func (u *unpacker) parentAlive() bool {
	var a, b unix.Stat_t
	f, err := openat2(int(u.root.Fd()), u.parentPath, &unix.OpenHow{
		Flags:   unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS,
	})
	if err != nil {
		return false
	}
	defer func() { _ = f.Close() }()
	return unix.Fstat(int(f.Fd()), &a) == nil && unix.Fstat(int(u.parent.Fd()), &b) == nil &&
		a.Ino == b.Ino && a.Dev == b.Dev
}

func (u *unpacker) forgetParent() {
	if u.parent != nil {
		_ = u.parent.Close()
		u.parent = nil
	}
}

// openReal opens a directory of this layer by a path without links.
func (u *unpacker) openReal(p string) (*os.File, error) {
	return openat2(int(u.root.Fd()), p, &unix.OpenHow{
		Flags:   unix.O_PATH | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS,
	})
}

// makeDirs returns where in this layer a directory of the image is, after
// following the links that this layer and the ones below have on the way, as
// the same file would be found in a container. What is missing here is made: like it
// is below, or as root's with mode 0755.
func (u *unpacker) makeDirs(dir string) (string, error) {
	cur := ""
	todo := strings.Split(dir, "/")
	for links := 0; len(todo) > 0; {
		comp := todo[0]
		todo = todo[1:]
		switch comp {
		case "", ".":
			continue
		case "..":
			cur = parentOf(cur)
			continue
		}
		next := path.Join(cur, comp)
		n, err := u.merged.lookup(next)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			err = u.makeDir(next, nil)
		case err != nil:
		case n.stat.Mode&unix.S_IFMT == unix.S_IFLNK:
			if links++; links > maxLinks {
				return "", unix.ELOOP
			}
			if n.dir != u.dir {
				u.done.Implied = true
			}
			var target string
			if target, err = readlinkIn(n.dir, n.path); err == nil {
				if strings.HasPrefix(target, "/") {
					cur = ""
				}
				todo = append(strings.Split(target, "/"), todo...)
			}
			next = cur
		case n.stat.Mode&unix.S_IFMT == unix.S_IFDIR:
			if n.dir != u.dir {
				err = u.makeDir(next, &n)
			}
		case n.dir == u.dir:
			err = unix.ENOTDIR
		default:
			err = u.makeDir(next, nil) // the file below gives way
		}
		if err != nil {
			return "", err
		}
		cur = next
	}
	return cur, nil
}

// makeDir makes a directory that the layer implies, like one of the layers
// below, or nil. All directories above it exist in this layer.
func (u *unpacker) makeDir(p string, like *node) error {
	u.done.Implied = true
	parent, err := u.openReal(parentOf(p))
	if err != nil {
		return err
	}
	defer func() { _ = parent.Close() }()
	base := path.Base(p)
	opaque, _, err := u.makeRoom(parent, base, true)
	if err != nil {
		return err
	}
	fd := int(parent.Fd())
	if err := unix.Mkdirat(fd, base, 0o700); err != nil {
		return fmt.Errorf("mkdir %q: %w", shorten(p), err)
	}
	if opaque {
		if err := setOpaque(parent, base); err != nil {
			return err
		}
	}
	if like == nil {
		return unix.Fchmodat(fd, base, 0o755, 0)
	}
	src, err := openIn(like.dir, like.path, unix.O_PATH|unix.O_NOFOLLOW)
	if err != nil {
		return err
	}
	defer func() { _ = src.Close() }()
	if err := copyAttributes(src, parent, base, &like.stat); err != nil {
		return err
	}
	return u.setTimeLater(p, modTime(&like.stat))
}

// openLinkSource opens the file that a hard link names. One that only the
// layers below have is copied into this one first.
func (u *unpacker) openLinkSource(target string) (*os.File, error) {
	if target == "" {
		return nil, errors.New("is the root directory")
	}
	parent, err := u.openParent(parentOf(target))
	if err != nil {
		return nil, err
	}
	base := path.Base(target)
	f, err := openBase(parent, base)
	if errors.Is(err, unix.ENOENT) {
		if err := u.copyUp(path.Join(u.parentReal, base), parent); err != nil {
			return nil, err
		}
		f, err = openBase(parent, base)
	}
	if err != nil {
		return nil, err
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		_ = f.Close()
		return nil, err
	}
	if st.Mode&unix.S_IFMT == unix.S_IFDIR || isWhiteout(&st) {
		_ = f.Close()
		return nil, errors.New("is not a file that can be linked")
	}
	return f, nil
}

func openBase(parent *os.File, base string) (*os.File, error) {
	return openat2(int(parent.Fd()), base, &unix.OpenHow{
		Flags:   unix.O_PATH | unix.O_NOFOLLOW | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS,
	})
}

// copyUp copies a regular file or symbolic link of the layers below.
func (u *unpacker) copyUp(p string, parent *os.File) error {
	n, err := u.merged.lookup(p)
	if err != nil {
		return err
	}
	u.done.Implied = true
	fd, base := int(parent.Fd()), path.Base(p)
	switch n.stat.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		src, err := openIn(n.dir, n.path, unix.O_RDONLY)
		if err != nil {
			return err
		}
		defer func() { _ = src.Close() }()
		h := &tar.Header{Size: n.stat.Size}
		if err := u.writeFile(h, io.LimitReader(src, n.stat.Size), fd, base); err != nil {
			return err
		}
		if err := copyAttributes(src, parent, base, &n.stat); err != nil {
			return err
		}
	case unix.S_IFLNK:
		target, err := readlinkIn(n.dir, n.path)
		if err != nil {
			return err
		}
		if err := unix.Symlinkat(target, fd, base); err != nil {
			return err
		}
		if err := unix.Fchownat(fd, base, int(n.stat.Uid), int(n.stat.Gid), unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return err
		}
	default:
		return errors.New("is a special file of a layer below")
	}
	return setTime(fd, base, modTime(&n.stat))
}

// copyAttributes gives base, a file or directory, the owner, mode and extended
// attributes of src, a file of a layer below.
func copyAttributes(src, parent *os.File, base string, st *unix.Stat_t) error {
	fd := int(parent.Fd())
	if err := unix.Fchownat(fd, base, int(st.Uid), int(st.Gid), unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return fmt.Errorf("chown %q: %w", shorten(base), err)
	}
	names := make([]byte, 64<<10)
	n, err := unix.Listxattr(procPath(src, ""), names)
	if err != nil && !errors.Is(err, unix.ENOTSUP) {
		return fmt.Errorf("list extended attributes: %w", err)
	}
	value := make([]byte, 64<<10)
	for name := range strings.SplitSeq(strings.TrimSuffix(string(names[:max(n, 0)]), "\x00"), "\x00") {
		if name == "" || strings.HasPrefix(name, "trusted.overlay.") {
			continue
		}
		n, err := unix.Getxattr(procPath(src, ""), name, value)
		if err == nil {
			err = unix.Setxattr(procPath(parent, base), name, value[:n], 0)
		}
		if err != nil {
			return fmt.Errorf("copy extended attribute %q: %w", name, err)
		}
	}
	if err := unix.Fchmodat(fd, base, st.Mode&0o7777, 0); err != nil {
		return fmt.Errorf("chmod %q: %w", shorten(base), err)
	}
	return nil
}

func modTime(st *unix.Stat_t) time.Time { return time.Unix(st.Mtim.Unix()) }
