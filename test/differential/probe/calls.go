package main

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// call is one question to a file system; it is asked in an empty directory.
type call struct {
	name string
	try  func() (string, error)
}

func calls() []call {
	return []call{
		{"user attribute", attributes("user.kata")},
		{"trusted attribute", attributes("trusted.kata")},
		{"capability attribute", attributes("security.capability")},
		{"flock of another description", flocks},
		{"lock of another description", openLocks},
		{"sync of file and directory", syncs},
		{"shared mapping", sharedMapping},
		{"private mapping", privateMapping},
		{"unnamed file gets a name", unnamed},
		{"rename without replacing", func() (string, error) { return renames(unix.RENAME_NOREPLACE) }},
		{"exchange of names", func() (string, error) { return renames(unix.RENAME_EXCHANGE) }},
		{"whiteout", func() (string, error) { return renames(unix.RENAME_WHITEOUT) }},
		{"allocate", func() (string, error) { return allocates(0) }},
		{"allocate beyond the end", func() (string, error) { return allocates(unix.FALLOC_FL_KEEP_SIZE) }},
		{"punch a hole", func() (string, error) { return allocates(unix.FALLOC_FL_KEEP_SIZE | unix.FALLOC_FL_PUNCH_HOLE) }},
		{"direct input and output", direct},
		{"unix socket", socket},
		{"directory read while emptied", emptying},
		{"working directory removed", removedDirectory},
		{"times to the nanosecond", times},
		{"copy within the kernel", copies},
		{"file watched", watches},
		{"access", access},
		{"deep relative path", deep},
		{"inode numbers", inodes},
		{"link count of a directory", directoryLinks},
		{"open of a symlink", openLink},
		{"open by a file's descriptor", reopen},
		{"file made exclusively", exclusive},
		{"read at the end of a growing file", growing},
		{"types in a directory", types},
	}
}

// create makes a file with content and returns it opened for both.
func create(name, content string) (*os.File, error) {
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return nil, err
	}
	if _, err := f.WriteString(content); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

func attributes(name string) func() (string, error) {
	return func() (string, error) {
		f, err := create("a", "")
		if err != nil {
			return "", err
		}
		defer f.Close()
		value := []byte("value")
		if name == "security.capability" { // revision 2, effective, CAP_NET_RAW
			value = slices.Concat([]byte{1, 0, 0, 2}, []byte{0, 0x20, 0, 0}, make([]byte, 12))
		}
		if err := unix.Setxattr("a", name, value, 0); err != nil {
			return "set", err
		}
		buf := make([]byte, 100)
		n, err := unix.Getxattr("a", name, buf)
		if err != nil {
			return "get", err
		}
		same := bytes.Equal(buf[:n], value)
		n, err = unix.Listxattr("a", buf)
		if err != nil {
			return "list", err
		}
		listed := bytes.Contains(buf[:n], []byte(name))
		return fmt.Sprint(same, listed), unix.Removexattr("a", name)
	}
}

func flocks() (string, error) {
	f, err := create("a", "")
	if err != nil {
		return "", err
	}
	defer f.Close()
	g, err := os.Open("a")
	if err != nil {
		return "", err
	}
	defer g.Close()
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
		return "first", err
	}
	return "second", unix.Flock(int(g.Fd()), unix.LOCK_EX|unix.LOCK_NB)
}

func openLocks() (string, error) {
	f, err := create("a", "content")
	if err != nil {
		return "", err
	}
	defer f.Close()
	g, err := os.OpenFile("a", os.O_RDWR, 0)
	if err != nil {
		return "", err
	}
	defer g.Close()
	lock := unix.Flock_t{Type: unix.F_WRLCK, Start: 0, Len: 4}
	if err := unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &lock); err != nil {
		return "first", err
	}
	lock = unix.Flock_t{Type: unix.F_RDLCK, Start: 4, Len: 4}
	if err := unix.FcntlFlock(g.Fd(), unix.F_OFD_SETLK, &lock); err != nil {
		return "beside", err
	}
	lock = unix.Flock_t{Type: unix.F_RDLCK, Start: 3, Len: 4}
	return "overlapping", unix.FcntlFlock(g.Fd(), unix.F_OFD_SETLK, &lock)
}

func syncs() (string, error) {
	f, err := create("a", "content")
	if err != nil {
		return "", err
	}
	defer f.Close()
	if err := f.Sync(); err != nil {
		return "file", err
	}
	d, err := os.Open(".")
	if err != nil {
		return "", err
	}
	defer d.Close()
	return "both", d.Sync()
}

func sharedMapping() (string, error) {
	f, err := create("a", "0123456789")
	if err != nil {
		return "", err
	}
	defer f.Close()
	m, err := unix.Mmap(int(f.Fd()), 0, 10, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return "map", err
	}
	copy(m[2:], "MAPPED")
	if err := unix.Msync(m, unix.MS_SYNC); err != nil {
		return "sync", err
	}
	read, err := os.ReadFile("a")
	if err != nil {
		return "read", err
	}
	if _, err := f.WriteAt([]byte("W"), 0); err != nil {
		return "write", err
	}
	return fmt.Sprintf("%s %s", read, m[:3]), unix.Munmap(m)
}

func privateMapping() (string, error) {
	f, err := create("a", "0123456789")
	if err != nil {
		return "", err
	}
	defer f.Close()
	m, err := unix.Mmap(int(f.Fd()), 0, 10, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE)
	if err != nil {
		return "map", err
	}
	copy(m, "MINE")
	read, err := os.ReadFile("a")
	if err != nil {
		return "read", err
	}
	return fmt.Sprintf("%s %s", m, read), unix.Munmap(m)
}

func unnamed() (string, error) {
	fd, err := unix.Open(".", unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return "open", err
	}
	defer unix.Close(fd)
	return "linked", unix.Linkat(unix.AT_FDCWD, fmt.Sprintf("/proc/self/fd/%d", fd), unix.AT_FDCWD, "a", unix.AT_SYMLINK_FOLLOW)
}

func renames(flags uint) (string, error) {
	for _, name := range []string{"a", "b"} {
		f, err := create(name, name)
		if err != nil {
			return "", err
		}
		f.Close()
	}
	if err := unix.Renameat2(unix.AT_FDCWD, "a", unix.AT_FDCWD, "b", flags); err != nil {
		return "", err
	}
	a, _ := os.ReadFile("a")
	b, err := os.ReadFile("b")
	return fmt.Sprintf("%q %q", a, b), err
}

func allocates(mode uint32) (string, error) {
	f, err := create("a", "0123456789")
	if err != nil {
		return "", err
	}
	defer f.Close()
	if err := unix.Fallocate(int(f.Fd()), mode, 2, 4096); err != nil {
		return "", err
	}
	st, err := f.Stat()
	if err != nil {
		return "", err
	}
	data := make([]byte, 10)
	_, err = f.ReadAt(data, 0)
	return fmt.Sprintf("%d %q", st.Size(), data), err
}

func direct() (string, error) {
	fd, err := unix.Open("a", unix.O_RDWR|unix.O_CREAT|unix.O_DIRECT|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return "open", err
	}
	defer unix.Close(fd)
	// Memory from mmap is aligned as such files want it.
	m, err := unix.Mmap(-1, 0, 8192, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		return "memory", err
	}
	copy(m, "directly")
	if _, err := unix.Pwrite(fd, m[:4096], 0); err != nil {
		return "write", err
	}
	n, err := unix.Pread(fd, m[4096:], 0)
	return fmt.Sprintf("%d %s", n, m[4096:4104]), err
}

func socket() (string, error) {
	l, err := net.Listen("unix", "s")
	if err != nil {
		return "listen", err
	}
	defer l.Close()
	st, err := os.Lstat("s")
	if err != nil {
		return "stat", err
	}
	c, err := net.Dial("unix", "s")
	if err != nil {
		return "dial", err
	}
	defer c.Close()
	s, err := l.Accept()
	if err != nil {
		return "accept", err
	}
	defer s.Close()
	if _, err := c.Write([]byte("through")); err != nil {
		return "write", err
	}
	buf := make([]byte, 7)
	_, err = io.ReadFull(s, buf)
	return fmt.Sprintf("%v %s", st.Mode(), buf), err
}

// emptying removes what it reads, as rm -r does; a server that numbers entries
// by their place would skip some.
func emptying() (string, error) {
	const count = 500
	for i := range count {
		f, err := create(fmt.Sprintf("file-with-a-long-name-%d", i), "")
		if err != nil {
			return "", err
		}
		f.Close()
	}
	d, err := os.Open(".")
	if err != nil {
		return "", err
	}
	defer d.Close()
	removed := 0
	for {
		names, err := d.Readdirnames(10)
		for _, n := range names {
			if err := os.Remove(n); err != nil {
				return "remove", err
			}
			removed++
		}
		if err == io.EOF {
			break
		}
		if err != nil {
			return "read", err
		}
	}
	return fmt.Sprint(removed), nil
}

func removedDirectory() (string, error) {
	if err := os.Mkdir("d", 0o755); err != nil {
		return "", err
	}
	before, err := os.Getwd()
	if err != nil {
		return "", err
	}
	defer os.Chdir(before) //nolint:errcheck // the next call starts with another
	if err := os.Chdir("d"); err != nil {
		return "", err
	}
	if err := os.Remove("../d"); err != nil {
		return "remove", err
	}
	_, err = unix.Getcwd(make([]byte, 1000))
	f, cerr := create("x", "")
	if cerr == nil {
		f.Close()
	}
	return fmt.Sprintf("create:%s, where:", explain(cerr)), err
}

func times() (string, error) {
	f, err := create("a", "")
	if err != nil {
		return "", err
	}
	defer f.Close()
	want := time.Unix(1234567890, 123456789)
	if err := os.Chtimes("a", want.Add(time.Nanosecond), want); err != nil {
		return "set", err
	}
	var st unix.Stat_t
	if err := unix.Stat("a", &st); err != nil {
		return "", err
	}
	return fmt.Sprint(st.Mtim.Sec, st.Mtim.Nsec, st.Atim.Nsec), nil
}

func copies() (string, error) {
	f, err := create("a", "content to copy")
	if err != nil {
		return "", err
	}
	defer f.Close()
	g, err := create("b", "")
	if err != nil {
		return "", err
	}
	defer g.Close()
	from := int64(8)
	n, err := unix.CopyFileRange(int(f.Fd()), &from, int(g.Fd()), nil, 100, 0)
	if err != nil {
		return "", err
	}
	got, err := os.ReadFile("b")
	return fmt.Sprintf("%d %q", n, got), err
}

func watches() (string, error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return "", err
	}
	defer unix.Close(fd)
	if _, err := unix.InotifyAddWatch(fd, ".", unix.IN_CREATE); err != nil {
		return "add", err
	}
	f, err := create("a", "")
	if err != nil {
		return "", err
	}
	f.Close()
	buf := make([]byte, 4096)
	n, err := unix.Read(fd, buf)
	return fmt.Sprint(n > 0), err
}

func access() (string, error) {
	f, err := create("a", "")
	if err != nil {
		return "", err
	}
	defer f.Close()
	if err := unix.Access("a", unix.R_OK|unix.W_OK); err != nil {
		return "write", err
	}
	return "execute", unix.Access("a", unix.X_OK)
}

func deep() (string, error) {
	path := "." + strings.Repeat("/directory", 60)
	if err := os.MkdirAll(path, 0o755); err != nil {
		return "make", err
	}
	st, err := os.Stat(path)
	if err != nil {
		return "stat", err
	}
	return fmt.Sprint(st.IsDir()), nil
}

// inodes: two names of a file have one number, two files have two.
func inodes() (string, error) {
	for _, name := range []string{"a", "b"} {
		f, err := create(name, "")
		if err != nil {
			return "", err
		}
		f.Close()
	}
	if err := os.Link("a", "c"); err != nil {
		return "link", err
	}
	var a, b, c unix.Stat_t
	for name, st := range map[string]*unix.Stat_t{"a": &a, "b": &b, "c": &c} {
		if err := unix.Stat(name, st); err != nil {
			return "stat", err
		}
	}
	return fmt.Sprint(a.Ino == c.Ino, a.Ino == b.Ino, a.Dev == b.Dev), nil
}

func directoryLinks() (string, error) {
	if err := os.MkdirAll("d/e", 0o755); err != nil {
		return "", err
	}
	var st unix.Stat_t
	err := unix.Stat("d", &st)
	return fmt.Sprint(st.Nlink), err
}

func openLink() (string, error) {
	if err := os.Symlink("target", "l"); err != nil {
		return "", err
	}
	_, err := unix.Open("l", unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	st, lerr := os.Lstat("l")
	if lerr != nil {
		return "stat", lerr
	}
	return fmt.Sprintf("size %d,", st.Size()), err
}

// reopen opens a file that has no name any more by its descriptor.
func reopen() (string, error) {
	f, err := create("a", "kept")
	if err != nil {
		return "", err
	}
	defer f.Close()
	if err := os.Remove("a"); err != nil {
		return "remove", err
	}
	got, err := os.ReadFile(fmt.Sprintf("/proc/self/fd/%d", f.Fd()))
	return string(got), err
}

func exclusive() (string, error) {
	f, err := create("a", "")
	if err != nil {
		return "", err
	}
	f.Close()
	_, err = unix.Open("a", unix.O_CREAT|unix.O_EXCL|unix.O_WRONLY|unix.O_CLOEXEC, 0o600)
	return "again", err
}

func growing() (string, error) {
	f, err := create("a", "one")
	if err != nil {
		return "", err
	}
	defer f.Close()
	r, err := os.Open("a")
	if err != nil {
		return "", err
	}
	defer r.Close()
	first, err := io.ReadAll(r)
	if err != nil {
		return "first", err
	}
	if _, err := f.WriteString("two"); err != nil {
		return "write", err
	}
	second, err := io.ReadAll(r)
	return fmt.Sprintf("%s %s", first, second), err
}

func types() (string, error) {
	if err := os.Mkdir("d", 0o755); err != nil {
		return "", err
	}
	if err := unix.Mkfifo("p", 0o600); err != nil {
		return "", err
	}
	if err := os.Symlink("x", "l"); err != nil {
		return "", err
	}
	f, err := create("f", "")
	if err != nil {
		return "", err
	}
	defer f.Close()
	entries, err := os.ReadDir(".")
	var s []string
	for _, e := range entries {
		s = append(s, fmt.Sprintf("%s:%v", e.Name(), e.Type()))
	}
	return fmt.Sprint(s), err
}
