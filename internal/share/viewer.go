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
// over, so that whoever changes one has to know where they are.
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

// inServer calls f with the server's copy of the mount at fd, which is name in the
// shared directory.
func (d *Dir) inServer(fd int, name string, f func(fd int) error) error {
	if d.server == nil {
		return nil
	}
	var want unix.Stat_t
	if err := unix.Fstat(fd, &want); err != nil {
		return err
	}
	// Our root is then that of the server's namespace.
	return thread.InMounts(d.server, func() error {
		// QEMU has the directory at its path, virtiofsd as its root.
		for _, dir := range []string{d.path, "/"} {
			copied, err := openCopy(dir, name, &want)
			if errors.Is(err, fs.ErrNotExist) {
				continue
			}
			if err != nil {
				return err
			}
			defer unix.Close(copied)
			return f(copied)
		}
		return fmt.Errorf("the server's mount namespace has no copy of it: %w", fs.ErrNotExist)
	})
}

// openCopy opens the mount name in dir. The error wraps fs.ErrNotExist if what is
// there is not the file want.
func openCopy(dir, name string, want *unix.Stat_t) (int, error) {
	parent, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, &os.PathError{Op: "open", Path: dir, Err: err}
	}
	defer unix.Close(parent)
	fd, err := unix.Openat2(parent, name, &unix.OpenHow{
		Flags:   unix.O_PATH | unix.O_NOFOLLOW | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS,
	})
	if err != nil {
		return -1, &os.PathError{Op: "open", Path: name, Err: err}
	}
	var got unix.Stat_t
	err = unix.Fstat(fd, &got)
	if err == nil && (got.Dev != want.Dev || got.Ino != want.Ino) {
		err = fs.ErrNotExist
	}
	if err != nil {
		unix.Close(fd)
		return -1, &os.PathError{Op: "find", Path: name, Err: err}
	}
	return fd, nil
}
