package share

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/seed-efd44b36/kata/internal/thread"
	"golang.org/x/sys/unix"
)

// ServedBy names the process that serves the directory to the guest; Serve does
// that itself. If it has a mount namespace of its own, its mounts are copies of
// ours. They come and go with ours, but a mount's attributes are not carried
// over, so that ProtectRootfs has to know where they are.
func (d *Dir) ServedBy(pid int) error {
	fd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil // it has ended, and serves nothing
	}
	if err != nil {
		return fmt.Errorf("server %d of the shared directory: pidfd_open: %w", pid, err)
	}
	if d.server != nil {
		_ = d.server.Close()
	}
	d.server = os.NewFile(uintptr(fd), "server")
	return nil
}

// protectCopy makes the server's copy of the mount at fd, which is name in the
// shared directory, read-only.
func (d *Dir) protectCopy(fd int, name string) error {
	if d.server == nil {
		return nil
	}
	var want unix.Stat_t
	if err := unix.Fstat(fd, &want); err != nil {
		return err
	}
	return thread.Run(func() error {
		if err := unix.Unshare(unix.CLONE_FS); err != nil {
			return fmt.Errorf("unshare: %w", err)
		}
		// Our root is then that of the server's namespace.
		if err := unix.Setns(int(d.server.Fd()), unix.CLONE_NEWNS); err != nil {
			return fmt.Errorf("enter the server's mount namespace: %w", err)
		}
		// QEMU has the directory at its path, virtiofsd as its root.
		for _, dir := range []string{d.path, "/"} {
			err := protectAt(dir, name, &want)
			if !errors.Is(err, fs.ErrNotExist) {
				return err
			}
		}
		return fmt.Errorf("the server's mount namespace has no copy of it: %w", fs.ErrNotExist)
	})
}

// protectAt makes the mount name in dir read-only. The error wraps
// fs.ErrNotExist if what is there is not the directory want.
func protectAt(dir, name string, want *unix.Stat_t) error {
	parent, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: dir, Err: err}
	}
	defer unix.Close(parent)
	fd, err := unix.Openat2(parent, name, &unix.OpenHow{
		Flags:   unix.O_PATH | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS,
	})
	if err != nil {
		return &os.PathError{Op: "open", Path: name, Err: err}
	}
	defer unix.Close(fd)
	var got unix.Stat_t
	if err := unix.Fstat(fd, &got); err != nil {
		return &os.PathError{Op: "stat", Path: name, Err: err}
	}
	if got.Dev != want.Dev || got.Ino != want.Ino {
		return &os.PathError{Op: "find", Path: name, Err: fs.ErrNotExist}
	}
	return setAttr(fd, unix.MOUNT_ATTR_RDONLY, unix.AT_RECURSIVE, 0)
}
