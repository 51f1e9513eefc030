package safepath

import (
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// Proc is a procfs that nobody can have put anything over, or swapped for
// something else.
type Proc struct{ root *os.File }

// PrivateProc makes a procfs for the calling thread's pid namespace which is not
// mounted anywhere, so that it is seen by this process only.
func PrivateProc() (*Proc, error) {
	fs, err := unix.Fsopen("proc", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("open a procfs: %w", err)
	}
	defer func() { _ = unix.Close(fs) }()
	if err := unix.FsconfigCreate(fs); err != nil {
		return nil, fmt.Errorf("make a procfs: %w", err)
	}
	fd, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV|unix.MOUNT_ATTR_NOEXEC)
	if err != nil {
		return nil, fmt.Errorf("make a procfs: %w", err)
	}
	return &Proc{root: os.NewFile(uintptr(fd), "procfs")}, nil
}

// OpenProc opens /proc after making sure that it is the root of a procfs. What is
// mounted over parts of it is never entered.
func OpenProc() (*Proc, error) {
	root, err := OpenRoot("/proc")
	if err != nil {
		return nil, err
	}
	var fs unix.Statfs_t
	var st unix.Stat_t
	if err := unix.Fstatfs(int(root.Fd()), &fs); err != nil {
		_ = root.Close()
		return nil, &os.PathError{Op: "statfs", Path: "/proc", Err: err}
	}
	if err := unix.Fstat(int(root.Fd()), &st); err != nil {
		_ = root.Close()
		return nil, &os.PathError{Op: "stat", Path: "/proc", Err: err}
	}
	const rootInode = 1
	if fs.Type != unix.PROC_SUPER_MAGIC || st.Ino != rootInode {
		_ = root.Close()
		return nil, fmt.Errorf("/proc is not the root of a procfs: %w", unix.ENOTSUP)
	}
	return &Proc{root: root}, nil
}

// Close closes it.
func (p *Proc) Close() error { return p.root.Close() }

// Open opens a file of the procfs, such as "sys/kernel/hostname", without
// following any link or entering any mount. Flags are those of open(2).
func (p *Proc) Open(name string, flags int) (*os.File, error) {
	fd, err := openat2(int(p.root.Fd()), name, &unix.OpenHow{
		Flags:   uint64(uint32(flags)) | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_XDEV | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS,
	})
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: "/proc/" + name, Err: err}
	}
	return os.NewFile(uintptr(fd), "/proc/"+name), nil
}

// Write writes a value to a file of the procfs in one call.
func (p *Proc) Write(name, value string) error {
	f, err := p.Open(name, unix.O_WRONLY)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	if _, err := f.WriteString(value); err != nil {
		return err
	}
	return nil
}

// Self returns the name, for Open and Write, of a file of the calling process.
func (p *Proc) Self(name string) string {
	return strconv.Itoa(os.Getpid()) + "/" + name
}

// Thread is Self for the calling thread, which must stay the caller's until the
// name was used.
func (p *Proc) Thread(name string) string {
	return p.Self("task/" + strconv.Itoa(unix.Gettid()) + "/" + name)
}
