package disk

import (
	"errors"
	"fmt"
	"os"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"github.com/seed-efd44b36/kata/internal/thread"
	"golang.org/x/sys/unix"
)

// look opens what is at path on the host, as a place: nothing is read, and no
// driver is called.
func look(host *os.File, path string) (place *os.File, st unix.Stat_t, err error) {
	err = thread.InMounts(host, func() error {
		fd, err := unix.Open(path, unix.O_PATH|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		place = os.NewFile(uintptr(fd), path)
		return nil
	})
	if err != nil {
		return nil, st, fmt.Errorf("open: %w", err)
	}
	if err := unix.Fstat(int(place.Fd()), &st); err != nil {
		return nil, st, errors.Join(fmt.Errorf("stat: %w", err), place.Close())
	}
	return place, st, nil
}

// openSource opens the block device or image file of a file system. A block
// device that is to be written is claimed: one that the host has mounted, or
// uses in another way, is refused, and the host cannot mount it as long as the
// machine has it.
func openSource(host *os.File, path string, o options) (*os.File, error) {
	place, st, err := look(host, path)
	if err != nil {
		return nil, err
	}
	defer place.Close()
	flags := os.O_RDWR
	if o.readonly {
		flags = os.O_RDONLY
	}
	switch {
	case st.Mode&unix.S_IFMT == unix.S_IFBLK:
		if !o.readonly {
			flags |= unix.O_EXCL
		}
		f, err := openNumber(unix.Major(st.Rdev), unix.Minor(st.Rdev), flags)
		if errors.Is(err, unix.EBUSY) {
			return nil, fmt.Errorf("the host uses it, for example as a mounted file system: %w", err)
		}
		return f, err
	case st.Mode&unix.S_IFMT == unix.S_IFREG && o.loop:
		// The descriptor leads to the file itself, whatever its name means now.
		return os.OpenFile(fmt.Sprintf("/proc/self/fd/%d", place.Fd()), flags, 0)
	case st.Mode&unix.S_IFMT == unix.S_IFREG:
		return nil, errors.New("it is a file, and the option loop is missing")
	default:
		return nil, fmt.Errorf("it is neither a block device nor a file, and %w", errUnsupported)
	}
}

// openNumber opens the block device of a number: through a node of our own, in
// a file system that is mounted nowhere, so that no name of the host has a say.
func openNumber(major, minor uint32, flags int) (*os.File, error) {
	mnt, err := nodes()
	if err != nil {
		return nil, fmt.Errorf("make a device node: %w", err)
	}
	defer unix.Close(mnt)
	const name = "disk"
	if err := unix.Mknodat(mnt, name, unix.S_IFBLK|0o600, int(unix.Mkdev(major, minor))); err != nil {
		return nil, fmt.Errorf("make a device node: %w", err)
	}
	fd, err := unix.Openat(mnt, name, flags|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.ENXIO) {
		return nil, fmt.Errorf("the host has no such block device: %w", err)
	}
	if err != nil {
		return nil, fmt.Errorf("open block device %d:%d: %w", major, minor, err)
	}
	return os.NewFile(uintptr(fd), fmt.Sprintf("block device %d:%d", major, minor)), nil
}

// nodes makes a file system for device nodes, mounted nowhere.
func nodes() (mnt int, err error) {
	fsfd, err := unix.Fsopen("tmpfs", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return -1, err
	}
	defer unix.Close(fsfd)
	if err := unix.FsconfigCreate(fsfd); err != nil {
		return -1, err
	}
	return unix.Fsmount(fsfd, unix.FSMOUNT_CLOEXEC, unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NOEXEC)
}

// BlockDevice tells what is at path on the host if it is a block device of the
// host's /dev. A node anywhere else may have been made by a guest, in a volume
// that it has written to, and is none.
func (s *Set) BlockDevice(path string) (specs.LinuxDevice, bool) {
	place, st, err := look(s.host, path)
	if err != nil {
		return specs.LinuxDevice{}, false
	}
	defer place.Close()
	if st.Mode&unix.S_IFMT != unix.S_IFBLK {
		return specs.LinuxDevice{}, false
	}
	dev, devStat, err := look(s.host, "/dev")
	if err != nil {
		return specs.LinuxDevice{}, false
	}
	defer dev.Close()
	if st.Dev != devStat.Dev {
		return specs.LinuxDevice{}, false
	}
	mode := os.FileMode(st.Mode & 0o777)
	return specs.LinuxDevice{
		Type: "b", Major: int64(unix.Major(st.Rdev)), Minor: int64(unix.Minor(st.Rdev)),
		FileMode: &mode, UID: &st.Uid, GID: &st.Gid,
	}, true
}
