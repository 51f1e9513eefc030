package fileserver

import (
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// maxRemoved is how many files are kept that have no name any more,
	// keepRemoved for how long: their space is free only then.
	maxRemoved  = 64
	keepRemoved = 30 * time.Second
)

// removed keeps files for a while that have lost their last name. A program may
// have such a file open and set its size (tmpfile, databases): QEMU asks for that by
// the name that the file had. Should another file have taken the name, that one is
// meant, as far as anybody can tell. To look for the name finds nothing, as it
// should.
type removed struct {
	mu   sync.Mutex
	list []*removedFile // oldest first; guarded by mu
}

type removedFile struct {
	path  string
	fd    int // O_PATH
	timer *time.Timer
}

// keep takes over a file that was removed by its last name.
func (r *removed) keep(path string, fd int) {
	f := &removedFile{path: path, fd: fd}
	r.mu.Lock()
	defer r.mu.Unlock()
	f.timer = time.AfterFunc(keepRemoved, func() { r.forget(f) })
	r.list = append(r.list, f)
	if len(r.list) > maxRemoved {
		r.drop(0)
	}
}

// find returns a descriptor of the file that had the path last, of the caller's
// own.
func (r *removed) find(path string) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, f := range slices.Backward(r.list) {
		if f.path == path {
			return unix.FcntlInt(uintptr(f.fd), unix.F_DUPFD_CLOEXEC, 0)
		}
	}
	return -1, unix.ENOENT
}

func (r *removed) forget(f *removedFile) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for i, other := range r.list {
		if other == f {
			r.drop(i)
			return
		}
	}
}

// drop closes a file of the list. r.mu is held.
func (r *removed) drop(i int) {
	r.list[i].timer.Stop()
	_ = unix.Close(r.list[i].fd)
	r.list = append(r.list[:i], r.list[i+1:]...)
}

// clear closes all files.
func (r *removed) clear() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for len(r.list) > 0 {
		r.drop(0)
	}
}
