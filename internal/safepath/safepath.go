// Package safepath works on paths whose components somebody hostile may choose or
// swap while they are used: everything below a container's root file system.
//
// Every path is resolved by the kernel in one go, with openat2, so that symbolic
// links and ".." stay below the given root and links of procfs are not followed
// (RESOLVE_IN_ROOT, RESOLVE_NO_MAGICLINKS). The answers are descriptors, most of
// them O_PATH, and what follows is done on these: a name that was checked is never
// resolved a second time. Files returned are the caller's to close.
package safepath

import (
	"errors"
	"fmt"
	"os"
	"path"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	// inRoot is how paths below a root are resolved.
	inRoot = unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS

	// maxLinks is the kernel's own limit of links on one path.
	maxLinks = 40
	// maxRaces is how often a resolution is tried that was disturbed by a rename.
	maxRaces = 128
)

// OpenRoot opens the directory path, which must not lead over symbolic links, to
// be used as root.
func OpenRoot(name string) (*os.File, error) {
	fd, err := openat2(unix.AT_FDCWD, name, &unix.OpenHow{
		Flags:   unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_NO_SYMLINKS,
	})
	if err != nil {
		return nil, &os.PathError{Op: "open root", Path: name, Err: err}
	}
	return os.NewFile(uintptr(fd), name), nil
}

// Open opens what name means to somebody whose root directory is root. Flags are
// those of open(2) but for O_CREAT; O_CLOEXEC is implied.
func Open(root *os.File, name string, flags int) (*os.File, error) {
	if flags&unix.O_CREAT != 0 {
		return nil, &os.PathError{Op: "open", Path: name, Err: unix.EINVAL}
	}
	return open(root, name, flags)
}

func open(root *os.File, name string, flags int) (*os.File, error) {
	fd, err := openat2(int(root.Fd()), name, &unix.OpenHow{
		Flags:   uint64(uint32(flags)) | unix.O_CLOEXEC,
		Resolve: inRoot,
	})
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: name, Err: err}
	}
	return os.NewFile(uintptr(fd), name), nil
}

// OpenNoLinks is Open, but a symbolic link anywhere on the way is an error.
func OpenNoLinks(root *os.File, name string, flags int) (*os.File, error) {
	if flags&unix.O_CREAT != 0 {
		return nil, &os.PathError{Op: "open", Path: name, Err: unix.EINVAL}
	}
	fd, err := openat2(int(root.Fd()), name, &unix.OpenHow{
		Flags:   uint64(uint32(flags)) | unix.O_CLOEXEC,
		Resolve: inRoot | unix.RESOLVE_NO_SYMLINKS,
	})
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: name, Err: err}
	}
	return os.NewFile(uintptr(fd), name), nil
}

// openat2 retries what a signal or a concurrent rename disturbed. An empty name
// is the directory itself.
func openat2(dir int, name string, how *unix.OpenHow) (int, error) {
	if name == "" {
		name = "."
	}
	var err error
	for range maxRaces {
		var fd int
		fd, err = unix.Openat2(dir, name, how)
		if err == nil {
			return fd, nil
		}
		if !errors.Is(err, unix.EINTR) && !errors.Is(err, unix.EAGAIN) {
			return -1, err
		}
	}
	return -1, err
}

// MkdirAll opens (O_PATH) the directory name below root and makes it, and what is
// missing above it, with the given permission bits. As for a program in there, a
// symbolic link stands for where it points to, even if that is still to be made.
func MkdirAll(root *os.File, name string, perm uint32) (*os.File, error) {
	// Mostly it is there. By 9p the host is asked for each name that is looked at.
	if dir, err := open(root, name, unix.O_PATH|unix.O_DIRECTORY); err == nil {
		return dir, nil
	}
	dir, base, err := Parent(root, name, perm)
	if err != nil {
		return nil, err
	}
	defer func() { _ = dir.Close() }()
	if base == "." {
		return open(dir, ".", unix.O_PATH|unix.O_DIRECTORY)
	}
	return mkdirAt(dir, base, perm)
}

// mkdirAt makes the directory base in dir, unless it is there, and opens it.
func mkdirAt(dir *os.File, base string, perm uint32) (*os.File, error) {
	if err := unix.Mkdirat(int(dir.Fd()), base, perm); err != nil && !errors.Is(err, unix.EEXIST) {
		return nil, &os.PathError{Op: "mkdir", Path: base, Err: err}
	}
	return openEntry(dir, base, unix.O_PATH|unix.O_DIRECTORY)
}

// openEntry opens the entry base of dir, which must not be a symbolic link.
func openEntry(dir *os.File, base string, flags int) (*os.File, error) {
	fd, err := openat2(int(dir.Fd()), base, &unix.OpenHow{
		Flags:   uint64(uint32(flags)) | unix.O_NOFOLLOW | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS,
	})
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: base, Err: err}
	}
	return os.NewFile(uintptr(fd), base), nil
}

// Touch opens (O_PATH) the file name below root and makes an empty regular file
// if nothing is there, and the directories above it. It serves as the place for a
// mount of something that is not a directory. Links stand for where they point to.
func Touch(root *os.File, name string, perm uint32) (*os.File, error) {
	dir, base, err := Parent(root, name, 0o755)
	if err != nil {
		return nil, err
	}
	defer func() { _ = dir.Close() }()
	fd, err := unix.Openat(int(dir.Fd()), base,
		unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_WRONLY|unix.O_CLOEXEC|unix.O_NONBLOCK, perm)
	switch {
	case err == nil:
		_ = unix.Close(fd)
	case !errors.Is(err, unix.EEXIST):
		// A read-only file system says EROFS also of what is there.
		if f, again := openEntry(dir, base, unix.O_PATH); again == nil {
			return f, nil
		}
		return nil, &os.PathError{Op: "create", Path: name, Err: err}
	}
	return openEntry(dir, base, unix.O_PATH)
}

// Parent opens (O_PATH) the directory below root that has the entry name means,
// making directories that are missing, and returns the entry's name in it. When
// the last component of name is a symbolic link, the entry is where it points to.
// The entry need not exist; it is "." for the root itself and for names that end
// in "..".
func Parent(root *os.File, name string, perm uint32) (dir *os.File, base string, err error) {
	if strings.ContainsRune(name, 0) {
		return nil, "", &os.PathError{Op: "resolve", Path: name, Err: unix.EINVAL}
	}
	w := walk{root: root, perm: perm, todo: components(name)}
	dir, base, err = w.run()
	if err != nil {
		return nil, "", fmt.Errorf("resolve %q: %w", name, err)
	}
	return dir, base, nil
}

// walk goes down a path and makes what is missing.
type walk struct {
	root  *os.File
	perm  uint32
	done  string   // resolved so far, as a path from the root; may contain links
	todo  []string // what is left
	links int
}

func (w *walk) run() (*os.File, string, error) {
	dir, err := open(w.root, ".", unix.O_PATH|unix.O_DIRECTORY)
	if err != nil {
		return nil, "", err
	}
	for len(w.todo) > 0 {
		next := w.todo[0]
		last := len(w.todo) == 1
		w.todo = w.todo[1:]
		var made *os.File
		var target string
		if !last && next != ".." {
			made, _ = openEntry(dir, next, unix.O_PATH|unix.O_DIRECTORY) // nil: it is no directory yet
		}
		if made == nil {
			target, err = w.link(dir, next)
		}
		switch {
		case err != nil:
			_ = dir.Close()
			return nil, "", err
		case target != "":
			// Where the link leads is found by the same walk, from the directory
			// that holds it or, if it is absolute, from the root.
			w.todo = append(components(target), w.todo...)
			if path.IsAbs(target) {
				w.done = ""
			}
			next, last = "", len(w.todo) == 0
		case last && next != "..":
			return dir, next, nil
		}
		if made == nil && next != "" && next != ".." {
			if made, err = mkdirAt(dir, next, w.perm); err != nil {
				_ = dir.Close()
				return nil, "", err
			}
		}
		if next != "" {
			w.done += "/" + next
		}
		// From the root anew, for the kernel to keep the walk below it.
		_ = dir.Close()
		dir, err = open(w.root, w.done, unix.O_PATH|unix.O_DIRECTORY)
		_ = made.Close() // only now: what is open the kernel knows; nil is none
		if err != nil {
			return nil, "", err
		}
		if last {
			break
		}
	}
	return dir, ".", nil
}

// link returns what the entry name of dir points to, "" if it is not a link.
func (w *walk) link(dir *os.File, name string) (string, error) {
	if name == ".." {
		return "", nil
	}
	buf := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(int(dir.Fd()), name, buf)
	switch {
	case errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT):
		return "", nil
	case err != nil:
		return "", &os.PathError{Op: "readlink", Path: name, Err: err}
	case n == 0 || n == len(buf):
		return "", &os.PathError{Op: "readlink", Path: name, Err: unix.ENAMETOOLONG}
	}
	// A link of procfs is no path; where it says it leads, it does not.
	var fs unix.Statfs_t
	if err := unix.Fstatfs(int(dir.Fd()), &fs); err == nil && fs.Type == unix.PROC_SUPER_MAGIC {
		return "", &os.PathError{Op: "follow", Path: name, Err: unix.ELOOP}
	}
	if w.links++; w.links > maxLinks {
		return "", &os.PathError{Op: "follow", Path: name, Err: unix.ELOOP}
	}
	return string(buf[:n]), nil
}

// components splits a path without resolving "..".
func components(name string) []string {
	var list []string
	for c := range strings.SplitSeq(name, "/") {
		if c != "" && c != "." {
			list = append(list, c)
		}
	}
	return list
}
