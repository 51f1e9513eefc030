package fileserver

import (
	"errors"

	"golang.org/x/sys/unix"
)

// openFlags are what the peer may say about how a file is opened.
const openFlags = unix.O_ACCMODE | unix.O_TRUNC | unix.O_APPEND | unix.O_SYNC | unix.O_DSYNC |
	unix.O_LARGEFILE | unix.O_NOATIME | unix.O_DIRECTORY

// open is opOpen and opCreate. The caller closes the file.
func (w *worker) open(r request) (int, error) {
	if r.op == opCreate {
		fd, err := w.create(r)
		if !errors.Is(err, unix.EEXIST) || r.flags&unix.O_EXCL != 0 {
			return fd, err
		}
	}
	fd, err := w.file(r.path)
	if err != nil {
		return -1, err
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return -1, err
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		return openMagic(fd, r.flags&openFlags)
	case unix.S_IFDIR:
		return w.list(fd)
	default:
		return -1, unix.ENXIO // the guest's own kernel has pipes, sockets and devices
	}
}

// openMagic opens a file that is open for being named.
func openMagic(fd int, flags uint32) (int, error) {
	for {
		opened, err := unix.Open(magic(fd), int(flags)|unix.O_CLOEXEC|unix.O_NOCTTY, 0)
		if err != unix.EINTR {
			return opened, err
		}
	}
}

// list opens a directory for being read. It is the root of a mount of its own
// that is nowhere: whoever has it gets no further up.
func (w *worker) list(fd int) (int, error) {
	if err := w.become(capabilities | 1<<unix.CAP_SYS_ADMIN); err != nil {
		return -1, err
	}
	tree, err := unix.OpenTree(fd, "", unix.AT_EMPTY_PATH|unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err == nil {
		defer unix.Close(tree)
		// It stays as it is when the directory that it shows is made read-only.
		err = unix.MountSetattr(tree, "", unix.AT_EMPTY_PATH, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY})
	}
	if err := errors.Join(err, w.become(capabilities)); err != nil {
		return -1, err
	}
	return unix.Openat(tree, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
}

// create makes a regular file that is not there.
func (w *worker) create(r request) (fd int, err error) {
	dir, name, err := w.parent(r.path)
	if err != nil {
		return -1, err
	}
	defer unix.Close(dir)
	err = w.as(r.uid, r.gid, func() error {
		fd, err = unix.Openat(dir, name, int(r.flags&openFlags)|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, r.mode&0o7777)
		return err
	})
	return fd, err
}

// do does what neither opens nor creates a regular file, and returns the body of
// the reply.
func (w *worker) do(r request) ([]byte, error) {
	switch r.op {
	case opMknod, opMkdir, opSymlink:
		return number(0), w.make(r)
	case opLink, opRename:
		return number(0), w.move(r)
	case opRemove:
		return number(0), w.remove(r.path)
	case opGetversion:
		return nil, unix.ENOTTY // the guest does without
	default:
		fd, err := w.file(r.path)
		if r.op == opTruncate && errors.Is(err, unix.ENOENT) {
			fd, err = w.removed.find(clean(r.path))
		}
		if err != nil {
			return nil, err
		}
		defer unix.Close(fd)
		return w.on(fd, r)
	}
}

// on does what is done to a file that is there.
func (w *worker) on(fd int, r request) ([]byte, error) {
	switch r.op {
	case opLstat:
		var st unix.Stat_t
		if err := unix.Fstat(fd, &st); err != nil {
			return nil, err
		}
		st.Dev, st.Ino = device, w.server.files.of(st.Dev, st.Ino)
		return attributes(&st), nil
	case opStatfs:
		var st unix.Statfs_t
		if err := unix.Fstatfs(fd, &st); err != nil {
			return nil, err
		}
		return space(&st), nil
	case opReadlink:
		return readlink(fd, r.size)
	case opChmod:
		return number(0), unix.Chmod(magic(fd), r.mode&0o7777)
	case opChown:
		return number(0), unix.Fchownat(fd, "", int(int32(r.uid)), int(int32(r.gid)), unix.AT_EMPTY_PATH)
	case opTruncate:
		return number(0), truncate(fd, r.length)
	case opUtime:
		return number(0), unix.UtimesNanoAt(fd, "", times(r), unix.AT_EMPTY_PATH)
	case opGetxattr:
		return attribute(r.size, func(b []byte) (int, error) { return unix.Getxattr(magic(fd), r.name, b) })
	case opListxattr:
		return attribute(r.size, func(b []byte) (int, error) { return unix.Listxattr(magic(fd), b) })
	case opSetxattr:
		return number(0), unix.Setxattr(magic(fd), r.name, []byte(r.value), int(r.flags))
	case opRemovexattr:
		return number(0), unix.Removexattr(magic(fd), r.name)
	default:
		return nil, unix.EINVAL
	}
}

// make makes what is not a regular file to be opened.
func (w *worker) make(r request) error {
	dir, name, err := w.parent(r.path)
	if err != nil {
		return err
	}
	defer unix.Close(dir)
	return w.as(r.uid, r.gid, func() error {
		switch r.op {
		case opMkdir:
			return unix.Mkdirat(dir, name, r.mode&0o7777)
		case opSymlink:
			return unix.Symlinkat(r.target, dir, name)
		default:
			return unix.Mknodat(dir, name, r.mode, int(r.device))
		}
	})
}

// move is opLink and opRename.
func (w *worker) move(r request) error {
	from, name, err := w.parent(r.path)
	if err != nil {
		return err
	}
	defer unix.Close(from)
	to, target, err := w.parent(r.target)
	if err != nil {
		return err
	}
	defer unix.Close(to)
	if r.op == opLink {
		return unix.Linkat(from, name, to, target, 0)
	}
	return unix.Renameat(from, name, to, target)
}

func (w *worker) remove(path string) error {
	dir, name, err := w.parent(path)
	if err != nil {
		return err
	}
	defer unix.Close(dir)
	fd, err := openat(dir, name, unix.O_PATH)
	if err != nil {
		return err
	}
	err = unix.Unlinkat(dir, name, 0)
	if errors.Is(err, unix.EISDIR) {
		err = unix.Unlinkat(dir, name, unix.AT_REMOVEDIR)
	}
	var st unix.Stat_t
	if err == nil && unix.Fstat(fd, &st) == nil && st.Nlink == 0 && st.Mode&unix.S_IFMT == unix.S_IFREG {
		w.removed.keep(clean(path), fd)
		return nil
	}
	unix.Close(fd)
	return err
}

// readlink leaves room for the byte that the peer puts after it.
func readlink(fd int, size uint32) ([]byte, error) {
	if size < 2 {
		return nil, unix.EINVAL
	}
	b := make([]byte, min(size-1, unix.PathMax-1))
	n, err := unix.Readlinkat(fd, "", b)
	if err != nil {
		return nil, err
	}
	return text(b[:n]), nil
}

func truncate(fd int, length uint64) error {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		return unix.Truncate(magic(fd), int64(length))
	case unix.S_IFDIR:
		return unix.EISDIR
	default:
		return unix.EINVAL
	}
}

// times is what opUtime asks for, as far as that can be known. QEMU sends the
// nanoseconds of the modification twice, instead of those of the access, and they
// also say that a time is now, or stays as it is. What it sends for a time that
// stays is in no memory that it has set. So an access time is taken for one only
// if it is that of the modification; else it stays.
func times(r request) []unix.Timespec {
	omit := unix.Timespec{Nsec: unix.UTIME_OMIT}
	now := unix.Timespec{Nsec: unix.UTIME_NOW}
	switch {
	case r.wrote.Nsec == unix.UTIME_NOW:
		return []unix.Timespec{now, now}
	case r.wrote.Nsec == unix.UTIME_OMIT:
		return []unix.Timespec{now, omit}
	case r.accessed != r.wrote:
		return []unix.Timespec{omit, r.wrote}
	default:
		return []unix.Timespec{r.accessed, r.wrote}
	}
}

// attribute is an extended attribute, or the list of their names; for a peer
// without room for it only the length.
func attribute(size uint32, get func([]byte) (int, error)) ([]byte, error) {
	if size == 0 {
		n, err := get(nil)
		return number(int32(n)), err
	}
	b := make([]byte, min(size, maxText))
	n, err := get(b)
	if err != nil {
		return nil, err
	}
	return text(b[:n]), nil
}
