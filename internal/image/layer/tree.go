package layer

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"

	"golang.org/x/sys/unix"
)

// maxLinks is the number of symbolic links that are followed before a path is
// taken for a loop, as in the kernel.
const maxLinks = 40

const opaqueXattr = "trusted.overlay.opaque"

// Tree is a read-only view of stacked layer directories, as overlayfs would
// merge them, without mounting them.
type Tree struct {
	// Dirs are the directories, the topmost first.
	Dirs []string
}

// node is what a path of a tree refers to.
type node struct {
	// path within the tree, without symbolic links, relative; "" is the root.
	path string
	// dir is the layer's directory in which the node was found.
	dir  string
	stat unix.Stat_t
}

// ReadFile returns the content of a regular file of at most limit bytes. The
// name is resolved as a process with the tree as its root would do it. The
// error is [fs.ErrNotExist] when there is no such file.
func (t Tree) ReadFile(name string, limit int64) ([]byte, error) {
	n, err := t.resolve(name)
	if err != nil {
		return nil, &fs.PathError{Op: "read", Path: name, Err: err}
	}
	if n.stat.Mode&unix.S_IFMT != unix.S_IFREG {
		return nil, &fs.PathError{Op: "read", Path: name, Err: errors.New("not a regular file")}
	}
	f, err := openIn(n.dir, n.path, unix.O_RDONLY|unix.O_NONBLOCK)
	if err != nil {
		return nil, &fs.PathError{Op: "read", Path: name, Err: err}
	}
	defer func() { _ = f.Close() }()
	// Between the look-up and here the topmost layer may have been changed
	// by the container that writes to it, so the type is checked again.
	if fi, err := f.Stat(); err != nil || !fi.Mode().IsRegular() {
		return nil, &fs.PathError{Op: "read", Path: name, Err: errors.New("not a regular file")}
	}
	data, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return nil, &fs.PathError{Op: "read", Path: name, Err: err}
	}
	if int64(len(data)) > limit {
		return nil, &fs.PathError{Op: "read", Path: name, Err: fmt.Errorf("larger than %d bytes", limit)}
	}
	return data, nil
}

// resolve follows name through the tree, symbolic links included.
func (t Tree) resolve(name string) (node, error) {
	cur := node{}
	cur.stat.Mode = unix.S_IFDIR
	todo := strings.Split(name, "/")
	for links := 0; len(todo) > 0; {
		comp := todo[0]
		todo = todo[1:]
		switch comp {
		case "", ".":
			continue
		case "..":
			cur.path = parentOf(cur.path)
			continue
		}
		if cur.stat.Mode&unix.S_IFMT != unix.S_IFDIR {
			return node{}, unix.ENOTDIR
		}
		next, err := t.lookup(path.Join(cur.path, comp))
		if err != nil {
			return node{}, err
		}
		if next.stat.Mode&unix.S_IFMT != unix.S_IFLNK {
			cur = next
			continue
		}
		if links++; links > maxLinks {
			return node{}, unix.ELOOP
		}
		target, err := readlinkIn(next.dir, next.path)
		if err != nil {
			return node{}, err
		}
		if strings.HasPrefix(target, "/") {
			cur = node{}
			cur.stat.Mode = unix.S_IFDIR
		}
		todo = append(strings.Split(target, "/"), todo...)
	}
	return cur, nil
}

// lookup finds p, whose parents are known to be directories of the tree. A
// final symbolic link is not followed.
func (t Tree) lookup(p string) (node, error) {
	for _, dir := range t.Dirs {
		f, err := openIn(dir, p, unix.O_PATH|unix.O_NOFOLLOW)
		if err == nil {
			n := node{path: p, dir: dir}
			err = unix.Fstat(int(f.Fd()), &n.stat)
			_ = f.Close()
			if err != nil {
				return node{}, err
			}
			if isWhiteout(&n.stat) {
				return node{}, fs.ErrNotExist
			}
			return n, nil
		}
		if !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.ENOTDIR) && !errors.Is(err, unix.ELOOP) {
			return node{}, err
		}
		if hidesBelow(dir, p) {
			return node{}, fs.ErrNotExist
		}
	}
	return node{}, fs.ErrNotExist
}

// hidesBelow reports whether the layer in dir keeps the layers below it from
// showing p, which it does not have itself.
func hidesBelow(dir, p string) bool {
	for at := parentOf(p); at != ""; at = parentOf(at) {
		f, err := openIn(dir, at, unix.O_PATH|unix.O_NOFOLLOW)
		if err != nil {
			continue
		}
		var st unix.Stat_t
		err = unix.Fstat(int(f.Fd()), &st)
		if err == nil && st.Mode&unix.S_IFMT == unix.S_IFDIR && !isOpaque(f) {
			_ = f.Close()
			continue
		}
		_ = f.Close()
		return true
	}
	return false
}

func isOpaque(dir *os.File) bool {
	var v [1]byte
	n, err := unix.Getxattr(procPath(dir, ""), opaqueXattr, v[:])
	return err == nil && n == 1 && v[0] == 'y'
}

func isWhiteout(st *unix.Stat_t) bool {
	return st.Mode&unix.S_IFMT == unix.S_IFCHR && st.Rdev == 0
}

// openIn opens p below dir without following any symbolic link.
func openIn(dir, p string, flags uint64) (*os.File, error) {
	d, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open layer %s: %w", dir, err)
	}
	defer func() { _ = unix.Close(d) }()
	return openat2(d, p, &unix.OpenHow{
		Flags:   flags | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS,
	})
}

func readlinkIn(dir, p string) (string, error) {
	f, err := openIn(dir, p, unix.O_PATH|unix.O_NOFOLLOW)
	if err != nil {
		return "", err
	}
	defer func() { _ = f.Close() }()
	buf := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(int(f.Fd()), "", buf)
	if err != nil {
		return "", err
	}
	return string(buf[:n]), nil
}

func openat2(dirfd int, p string, how *unix.OpenHow) (*os.File, error) {
	if p == "" {
		p = "."
	}
	for {
		fd, err := unix.Openat2(dirfd, p, how)
		if errors.Is(err, unix.EINTR) || errors.Is(err, unix.EAGAIN) {
			continue
		}
		if err != nil {
			return nil, err
		}
		return os.NewFile(uintptr(fd), p), nil
	}
}

// procPath names base in the directory that f has open, or that directory
// itself, for system calls that only take paths.
func procPath(f *os.File, base string) string {
	p := fmt.Sprintf("/proc/self/fd/%d", f.Fd())
	if base != "" {
		p += "/" + base
	}
	return p
}

func parentOf(p string) string {
	if i := strings.LastIndexByte(p, '/'); i >= 0 {
		return p[:i]
	}
	return ""
}
