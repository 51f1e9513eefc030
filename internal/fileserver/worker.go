package fileserver

import (
	"fmt"
	"strings"

	"golang.org/x/sys/unix"
)

// capabilities are those of a file server that acts for any user. What else
// root could do to a file system (trusted attributes, labels of security
// modules) is refused by the kernel.
const capabilities = 1<<unix.CAP_CHOWN | 1<<unix.CAP_DAC_OVERRIDE | 1<<unix.CAP_DAC_READ_SEARCH |
	1<<unix.CAP_FOWNER | 1<<unix.CAP_FSETID | 1<<unix.CAP_MKNOD | 1<<unix.CAP_SETFCAP

// worker is the thread that serves.
type worker struct {
	server *Server
	// can is what the thread could do; all but capabilities only where it says.
	can     [2]unix.CapUserData
	removed removed
}

// newWorker makes the calling thread one that serves.
func newWorker(s *Server) (*worker, error) {
	// The mask of new files' modes is the guest's, so here it is none.
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return nil, fmt.Errorf("leave the process's file system state: %w", err)
	}
	unix.Umask(0)
	w := &worker{server: s}
	if err := unix.Capget(capHeader(), &w.can[0]); err != nil {
		return nil, fmt.Errorf("read own capabilities: %w", err)
	}
	if err := w.become(capabilities); err != nil {
		return nil, fmt.Errorf("drop capabilities: %w", err)
	}
	return w, nil
}

func capHeader() *unix.CapUserHeader {
	return &unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
}

// become makes caps, as far as the thread has them, those that count.
func (w *worker) become(caps uint64) error {
	sets := w.can
	for i := range sets {
		sets[i].Effective = w.can[i].Permitted & uint32(caps>>(32*i))
	}
	return unix.Capset(capHeader(), &sets[0])
}

// as makes a file: the one that f makes is the given user's and group's from its
// first moment.
func (w *worker) as(uid, gid uint32, f func() error) error {
	if uid == 0 && gid == 0 {
		return f()
	}
	if err := w.become(capabilities | 1<<unix.CAP_SETUID | 1<<unix.CAP_SETGID); err != nil {
		return err
	}
	identify(uid, gid)
	defer func() {
		identify(0, 0)
		_ = w.become(capabilities) // which it just could
	}()
	// The kernel has taken capabilities with the identity. It answers -1, which is
	// nobody, with the present one.
	if err := w.become(capabilities); err != nil {
		return err
	}
	gotUID, _ := unix.SetfsuidRetUid(-1)
	gotGID, _ := unix.SetfsgidRetGid(-1)
	if uint32(gotUID) != uid || uint32(gotGID) != gid {
		return unix.EINVAL
	}
	return f()
}

// identify makes uid and gid whom the kernel takes the thread for where it comes
// to files.
func identify(uid, gid uint32) {
	_ = unix.Setfsgid(int(gid))
	_ = unix.Setfsuid(int(uid))
}

const (
	// resolve is how paths are followed: into mounts, but nowhere else.
	resolve = unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS
	// maxPath is what the kernel takes at once, its end not counted.
	maxPath = unix.PathMax - 1
)

// file opens the path itself, whatever it is, for nothing but to be named.
func (w *worker) file(path string) (int, error) {
	at, owned, rest, err := w.shorten(clean(path))
	if err != nil {
		return -1, err
	}
	if owned {
		defer unix.Close(at)
	}
	if rest == "" {
		rest = "."
	}
	return openat(at, rest, unix.O_PATH)
}

// parent opens the directory that a path is in and returns its last name.
func (w *worker) parent(path string) (dir int, name string, err error) {
	path = clean(path)
	if path == "" {
		return -1, "", unix.EBUSY // the directory that is served
	}
	before, name := "", path
	if i := strings.LastIndexByte(path, '/'); i >= 0 {
		before, name = path[:i], path[i+1:]
	}
	if name == ".." {
		return -1, "", unix.EINVAL
	}
	dir, err = w.file(before)
	return dir, name, err
}

// clean removes what does not matter of a path from the directory that is served.
func clean(path string) string {
	names := strings.Split(path, "/")
	kept := names[:0]
	for _, n := range names {
		if n != "" && n != "." {
			kept = append(kept, n)
		}
	}
	return strings.Join(kept, "/")
}

// shorten opens as much of a path as makes the rest short enough for the kernel.
func (w *worker) shorten(path string) (at int, owned bool, rest string, err error) {
	at = int(w.server.root.Fd())
	for len(path) > maxPath {
		i := strings.LastIndexByte(path[:maxPath], '/')
		if i < 0 {
			err = unix.ENAMETOOLONG
		}
		next := -1
		if err == nil {
			next, err = openat(at, path[:i], unix.O_PATH|unix.O_DIRECTORY)
		}
		if owned {
			unix.Close(at)
		}
		if err != nil {
			return -1, false, "", err
		}
		at, owned, path = next, true, path[i+1:]
	}
	return at, owned, path, nil
}

func openat(at int, path string, flags uint64) (int, error) {
	for {
		fd, err := unix.Openat2(at, path, &unix.OpenHow{Flags: flags | unix.O_NOFOLLOW | unix.O_CLOEXEC, Resolve: resolve})
		if err == unix.EINTR || err == unix.EAGAIN { // it raced with a rename
			continue
		}
		return fd, err
	}
}

// magic is a path that leads to an open file itself, whatever it is: system calls
// that take no descriptor like ours take it.
func magic(fd int) string { return fmt.Sprintf("/proc/self/fd/%d", fd) }
