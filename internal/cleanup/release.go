package cleanup

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// ErrUnsupported is wrapped by the error of Release for a kind that another
// package must release.
var ErrUnsupported = errors.New("kind of resource has no releaser here")

// Release removes the resource, whether it exists or not, and returns when it
// is gone or ctx has ended. A kind that belongs to another package (KindCNI)
// is refused with ErrUnsupported.
func Release(ctx context.Context, r Record) error {
	if err := release(ctx, r); err != nil {
		return fmt.Errorf("release %s: %w", r, err)
	}
	return nil
}

func release(ctx context.Context, r Record) error {
	switch r.Kind {
	case KindProcess:
		return killMarked(ctx, r.Name, r.Extra[ExtraExe])
	case KindMount:
		return Unmount(r.Name)
	case KindNetns:
		if err := Unmount(r.Name); err != nil {
			return err
		}
		return unlink(r.Name)
	case KindCgroup:
		return removeCgroup(ctx, cgroupRoot, r.Name)
	case KindDir:
		return RemoveTree(r.Name)
	case KindFile:
		return unlink(r.Name)
	default:
		return ErrUnsupported
	}
}

// maxStacked bounds the mounts that Unmount takes off one mount point.
const maxStacked = 64

// Unmount takes every mount off path, with all mounts below them, in use or
// not. A path that is no mount point, or is not there, is no error; a symbolic
// link at its end is not followed.
func Unmount(path string) error {
	if !filepath.IsAbs(path) || filepath.Clean(path) == "/" {
		return fmt.Errorf("unmount %q: not an absolute path below /: %w", path, fs.ErrInvalid)
	}
	for range maxStacked {
		err := unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
		switch {
		case err == nil:
		case errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR):
			return nil
		case !errors.Is(err, unix.EINTR):
			return fmt.Errorf("unmount %s: %w", path, err)
		}
	}
	return fmt.Errorf("unmount %s: still a mount point after %d times", path, maxStacked)
}

func unlink(path string) error {
	if !filepath.IsAbs(path) {
		return fmt.Errorf("unlink %q: not an absolute path: %w", path, fs.ErrInvalid)
	}
	err := unix.Unlink(path)
	if err == nil || errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) {
		return nil
	}
	return &os.PathError{Op: "unlink", Path: path, Err: err}
}
