package direct

import (
	"errors"
	"fmt"
	"io"
	"sync"

	"golang.org/x/sys/unix"
)

// Port is a virtio-serial port. It implements link.PipeConn: the driver sends the
// pages of a pipe as they are, as many as there are in one message, where a write
// is copied and makes a message of 32 KiB at most. All of a message has to be in
// one pipe, so what is taken moves into a first pipe, where its length shows, and
// from there behind the message's head in a second one.
type Port struct {
	*File

	mu      sync.Mutex
	taken   pipe // guarded by mu; what Take took
	message pipe // guarded by mu; what SendTaken sends
	length  int  // guarded by mu; of what is in taken
}

const (
	// takenSize in bytes is 64 pages, the longest frame of the link, even if
	// they have a byte each.
	takenSize = 256 << 10
	// messageSize has room for a page more, and is a power of two.
	messageSize = 2 * takenSize
	// maxHead is the longest head that goes into one page with the rest.
	maxHead = 4 << 10
)

// errLost says that a message has left the pipe and does not arrive. The driver
// does that when it has neither memory for a list of pages nor room in its queue
// for each of them.
var errLost = errors.New("the port has lost a message")

// NewPort takes fd over, also on error.
func NewPort(fd int, path string) (*Port, error) {
	f, err := NewFile(fd, path)
	if err != nil {
		return nil, err
	}
	p := &Port{File: f, taken: pipe{none, none}, message: pipe{none, none}}
	if p.taken, err = newPipe(takenSize); err == nil {
		p.message, err = newPipe(messageSize)
	}
	if err != nil {
		_ = p.Close()
		return nil, err
	}
	return p, nil
}

// Take implements link.PipeConn.
func (p *Port) Take(from uintptr, limit int) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	n, errno := splice(int(from), p.taken.w, limit)
	switch {
	case errno == unix.EAGAIN:
		return 0, nil
	case errno != 0:
		return 0, fmt.Errorf("take from pipe: %w", errno)
	case n == 0:
		return 0, io.EOF
	}
	p.length += n
	return n, nil
}

// SendTaken implements link.PipeConn.
func (p *Port) SendTaken(head []byte) error {
	if len(head) > maxHead {
		if _, err := p.Write(head); err != nil {
			return err
		}
		head = nil
	}
	// Close ends what waits below before it wants the lock.
	p.mu.Lock()
	defer p.mu.Unlock()
	left, err := p.compose(head)
	if err != nil {
		return fmt.Errorf("compose message: %w", err)
	}
	for left > 0 {
		n, errno := 0, unix.Errno(0)
		err := p.raw.Write(func(fd uintptr) (done bool) {
			n, errno = splice(p.message.r, int(fd), left)
			return errno != unix.EAGAIN
		})
		switch {
		case err != nil:
			return err
		case errno != 0:
			return fmt.Errorf("send message: %w", errno)
		case n == 0:
			return errLost
		}
		left -= n
	}
	return nil
}

// compose puts head and what was taken into the pipe of the message, which is
// empty, and returns how long that is. p.mu is held.
func (p *Port) compose(head []byte) (length int, err error) {
	if len(head) > 0 {
		n, errno := call(unix.SYS_WRITE, uintptr(p.message.w), head)
		if errno != 0 {
			return 0, errno
		}
		length += int(n) // a write to an empty pipe is never cut short
	}
	for p.length > 0 {
		n, errno := splice(p.taken.r, p.message.w, p.length)
		if errno != 0 {
			return 0, errno
		}
		p.length -= n
		length += n
	}
	return length, nil
}

// Close implements io.Closer.
func (p *Port) Close() error {
	err := p.File.Close()
	p.mu.Lock()
	defer p.mu.Unlock()
	p.taken.close()
	p.message.close()
	return err
}

// pipe is both ends of a pipe that one goroutine uses: nobody waits for it.
type pipe struct{ r, w int }

// none is no file descriptor.
const none = -1

func newPipe(size int) (pipe, error) {
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
		return pipe{none, none}, fmt.Errorf("make pipe: %w", err)
	}
	p := pipe{fds[0], fds[1]}
	if _, err := unix.FcntlInt(uintptr(p.r), unix.F_SETPIPE_SZ, size); err != nil {
		p.close()
		return pipe{none, none}, fmt.Errorf("give pipe a size of %d: %w", size, err)
	}
	return p, nil
}

func (p *pipe) close() {
	for _, fd := range []int{p.r, p.w} {
		if fd != none {
			_ = unix.Close(fd)
		}
	}
	*p = pipe{none, none}
}

// splice moves up to limit bytes from one file to another without waiting for
// either. One of them is a pipe.
func splice(from, to, limit int) (int, unix.Errno) {
	for {
		n, _, errno := unix.RawSyscall6(unix.SYS_SPLICE, uintptr(from), 0, uintptr(to), 0, uintptr(limit), unix.SPLICE_F_NONBLOCK)
		if errno != unix.EINTR {
			return int(n), errno
		}
	}
}
