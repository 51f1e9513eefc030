package rootfs

import (
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// maxDepth bounds the directories in one another that copyUp goes into, each of
// which takes two descriptors.
const maxDepth = 128

// copyUp makes one directory like another: its owner, its mode unless it has one
// of its own, and what is in it. Nothing is followed: entries are opened by name in an open directory, links are
// copied as they are.
func copyUp(from, to *os.File, ownMode bool) error {
	src, err := unix.Openat(int(from.Fd()), ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	dst, err := unix.Openat(int(to.Fd()), ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		_ = unix.Close(src)
		return err
	}
	if err := copyOwner(src, dst, ownMode); err != nil {
		_ = unix.Close(src)
		_ = unix.Close(dst)
		return err
	}
	return copyDirectory(os.NewFile(uintptr(src), from.Name()), os.NewFile(uintptr(dst), to.Name()), 0)
}

func copyOwner(src, dst int, ownMode bool) error {
	var st unix.Stat_t
	if err := unix.Fstat(src, &st); err != nil {
		return err
	}
	if err := unix.Fchown(dst, int(st.Uid), int(st.Gid)); err != nil || ownMode {
		return err
	}
	return unix.Fchmod(dst, st.Mode&^unix.S_IFMT)
}

// copyDirectory closes both directories.
func copyDirectory(src, dst *os.File, depth int) error {
	defer func() { _ = src.Close() }()
	defer func() { _ = dst.Close() }()
	if depth > maxDepth {
		return fmt.Errorf("%q: %w", src.Name(), unix.ENAMETOOLONG)
	}
	names, err := src.Readdirnames(-1)
	if err != nil {
		return err
	}
	for _, name := range names {
		if err := copyEntry(src, dst, name, depth); err != nil {
			return fmt.Errorf("%q: %w", name, err)
		}
	}
	return nil
}

func copyEntry(src, dst *os.File, name string, depth int) error {
	from, to := int(src.Fd()), int(dst.Fd())
	var st unix.Stat_t
	if err := unix.Fstatat(from, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	var err error
	mode := st.Mode &^ unix.S_IFMT
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFLNK:
		err = copyLink(from, to, name)
	case unix.S_IFDIR:
		err = copySubdirectory(from, to, name, mode, depth)
	case unix.S_IFREG:
		err = copyFile(from, to, name)
	default:
		err = unix.Mknodat(to, name, st.Mode, int(st.Rdev))
	}
	if err != nil {
		return err
	}
	// Nobody else sees the new file system yet, so the name is still what it was.
	// The owner comes first, as it takes the set-user-id bit away.
	if err := unix.Fchownat(to, name, int(st.Uid), int(st.Gid), unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT == unix.S_IFLNK {
		return nil
	}
	return unix.Fchmodat(to, name, mode, 0)
}

func copyLink(from, to int, name string) error {
	buf := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(from, name, buf)
	if err != nil {
		return err
	}
	return unix.Symlinkat(string(buf[:n]), to, name)
}

func copySubdirectory(from, to int, name string, mode uint32, depth int) error {
	if err := unix.Mkdirat(to, name, mode); err != nil {
		return err
	}
	const flags = unix.O_RDONLY | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC
	src, err := unix.Openat(from, name, flags, 0)
	if err != nil {
		return err
	}
	dst, err := unix.Openat(to, name, flags, 0)
	if err != nil {
		_ = unix.Close(src)
		return err
	}
	return copyDirectory(os.NewFile(uintptr(src), name), os.NewFile(uintptr(dst), name), depth+1)
}

func copyFile(from, to int, name string) error {
	// NONBLOCK, should it have become a FIFO by now.
	fd, err := unix.Openat(from, name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	src := os.NewFile(uintptr(fd), name)
	defer func() { _ = src.Close() }()
	fd, err = unix.Openat(to, name, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return err
	}
	dst := os.NewFile(uintptr(fd), name)
	if _, err := io.Copy(dst, src); err != nil {
		_ = dst.Close()
		return err
	}
	return dst.Close()
}
