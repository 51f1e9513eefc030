package cleanup

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"
)

// A tree may be a guest's work, as deep and as wide as its file system allows.
// These bound what RemoveTree holds of it: directories that are open at once,
// and names of each.
const (
	maxDepth = 64
	maxNames = 1024
)

// deepPrefix begins the names of directories that were too deep and have been
// moved to the root of their tree.
const deepPrefix = ".deep-"

// ErrMountPoint is wrapped by the error of RemoveTree when a file system is
// mounted in the tree; what it contains is not touched.
var ErrMountPoint = errors.New("a file system is mounted on it")

// RemoveTree removes the directory or file at path, an absolute path, with all
// that is below, however deep and wide. No symbolic link is followed, but those
// that lead to path itself, and no mount point is crossed. What is not there is
// no error. What cannot be removed stays, the rest goes; the error tells of the
// first such thing.
func RemoveTree(path string) error {
	clean := filepath.Clean(path)
	if !filepath.IsAbs(path) || clean == "/" {
		return fmt.Errorf("remove tree %q: not an absolute path below /: %w", path, fs.ErrInvalid)
	}
	parent, err := unix.Open(filepath.Dir(clean), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("remove tree %s: %w", path, err)
	}
	defer unix.Close(parent)
	t := tree{top: -1}
	if err := t.removeAt(parent, filepath.Base(clean), 0); err != nil {
		return fmt.Errorf("remove tree %s: %w", path, err)
	}
	return nil
}

// tree is a tree that is being removed.
type tree struct {
	top   int // its root, open while there is something below it
	moved int // number for the next directory that is moved there
}

// removeAt removes name, a single path element, in the directory parent.
func (t *tree) removeAt(parent int, name string, depth int) error {
	err := unix.Unlinkat(parent, name, 0)
	switch {
	case err == nil || errors.Is(err, unix.ENOENT):
		return nil
	case errors.Is(err, unix.EBUSY):
		return fmt.Errorf("%s: %w", name, ErrMountPoint)
	case !errors.Is(err, unix.EISDIR) && !errors.Is(err, unix.EPERM):
		return fmt.Errorf("%s: %w", name, err)
	}
	if depth == maxDepth {
		return t.moveUp(parent, name)
	}
	fd, err := unix.Openat2(parent, name, &unix.OpenHow{
		Flags:   unix.O_RDONLY | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_XDEV | unix.RESOLVE_NO_SYMLINKS,
	})
	switch {
	case errors.Is(err, unix.ENOENT):
		return nil
	case errors.Is(err, unix.EXDEV):
		return fmt.Errorf("%s: %w", name, ErrMountPoint)
	case err != nil:
		return fmt.Errorf("%s: %w", name, err)
	}
	if depth == 0 {
		t.top = fd
	}
	if err := t.removeEntries(fd, name, depth); err != nil {
		return fmt.Errorf("%s/%w", name, err)
	}
	if err := unix.Unlinkat(parent, name, unix.AT_REMOVEDIR); err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}

// removeEntries empties the directory fd, and closes it.
func (t *tree) removeEntries(fd int, name string, depth int) error {
	dir := os.NewFile(uintptr(fd), name)
	defer dir.Close()
	// Again until nothing is found: names may be passed over while others are
	// removed, and directories are moved to the root of the tree meanwhile. An
	// error ends that, so that no entry is tried more than once in vain.
	for {
		found, err := t.removeOnce(dir, depth)
		if err != nil || !found {
			return err
		}
		if _, err := dir.Seek(0, io.SeekStart); err != nil {
			return err
		}
	}
}

// removeOnce reads the directory once and removes what it finds.
func (t *tree) removeOnce(dir *os.File, depth int) (found bool, first error) {
	for {
		names, err := dir.Readdirnames(maxNames)
		for _, n := range names {
			found = true
			if err := t.removeAt(int(dir.Fd()), n, depth+1); err != nil && first == nil {
				first = err
			}
		}
		if errors.Is(err, io.EOF) {
			return found, first
		}
		if err != nil {
			return found, err
		}
	}
}

// moveUp moves the directory name from the depth limit to the root of the
// tree, which is read again.
func (t *tree) moveUp(parent int, name string) error {
	for {
		err := unix.Renameat(parent, name, t.top, deepPrefix+strconv.Itoa(t.moved))
		switch {
		case err == nil || errors.Is(err, unix.ENOENT):
			t.moved++
			return nil
		case errors.Is(err, unix.EEXIST), errors.Is(err, unix.ENOTEMPTY), errors.Is(err, unix.ENOTDIR):
			t.moved++ // the tree has that name already
		case errors.Is(err, unix.EBUSY):
			return fmt.Errorf("%s: %w", name, ErrMountPoint)
		default:
			return fmt.Errorf("%s: move out of the depth: %w", name, err)
		}
	}
}
