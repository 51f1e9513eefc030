package cleanup

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// maxDepth bounds the directories that RemoveTree has open at once. What the
// project makes is far flatter.
const maxDepth = 512

// ErrMountPoint is wrapped by the error of RemoveTree when a file system is
// mounted in the tree; what it contains is not touched.
var ErrMountPoint = errors.New("a file system is mounted on it")

// RemoveTree removes the directory or file at path, an absolute path, with all
// that is below. No symbolic link is followed, but those that lead to path
// itself, and no mount point is crossed. What is not there is no error.
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
	if err := removeAt(parent, filepath.Base(clean), maxDepth); err != nil {
		return fmt.Errorf("remove tree %s: %w", path, err)
	}
	return nil
}

// removeAt removes name, a single path element, in the directory parent.
func removeAt(parent int, name string, depth int) error {
	err := unix.Unlinkat(parent, name, 0)
	switch {
	case err == nil || errors.Is(err, unix.ENOENT):
		return nil
	case errors.Is(err, unix.EBUSY):
		return fmt.Errorf("%s: %w", name, ErrMountPoint)
	case !errors.Is(err, unix.EISDIR) && !errors.Is(err, unix.EPERM):
		return fmt.Errorf("%s: %w", name, err)
	}
	if depth == 0 {
		return fmt.Errorf("%s: more than %d levels of directories", name, maxDepth)
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
	if err := removeEntries(fd, name, depth); err != nil {
		return fmt.Errorf("%s/%w", name, err)
	}
	if err := unix.Unlinkat(parent, name, unix.AT_REMOVEDIR); err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}

// removeEntries empties the directory fd, and closes it.
func removeEntries(fd int, name string, depth int) error {
	dir := os.NewFile(uintptr(fd), name)
	defer dir.Close()
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return err
	}
	var errs []error
	for _, n := range names {
		if err := removeAt(fd, n, depth-1); err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}
