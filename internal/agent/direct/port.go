package direct

import (
	"errors"
	"fmt"
	"io"
	"os"
	"sync"

	"github.com/seed-efd44b36/kata/internal/link"
	"golang.org/x/sys/unix"
)

// Port is a virtio-serial port. It implements link.PipeConn: the driver sends the
// pages of a pipe as they are, as many as there are in one message, where a write
// is copied and makes a message of 32 KiB at most. All of a message has to be in
// one pipe, so what is taken moves into a first pipe, where its length shows, and
// from there behind the message's head in a second one.
type Port struct {
	*File

	sending sync.Mutex // held by the one Send that is at work, and to close message
	message pipe       // guarded by sending; what is sent

	mu     sync.Mutex
	spare  []*taken // guarded by mu; empty ones
	closed bool     // guarded by mu
}

// taken is a pipe and what Take moved there. It has one user at a time.
type taken struct {
	port   *Port
	pipe   pipe
	length int
}

const (
	// takenSize in bytes is 64 pages, the longest frame of the link, even if
	// they have a byte each.
	takenSize = 256 << 10
	// messageSize has room for a page more, and is a power of two.
	messageSize = 2 * takenSize
	// maxHead is the longest head that goes into one page with the rest.
	maxHead = 4 << 10
	// maxSpare is how many pipes wait for the next Take: one does unless several
	// streams are busy.
	maxSpare = 4
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
	message, err := newPipe(messageSize)
	if err != nil {
		_ = f.Close()
		return nil, err
	}
	return &Port{File: f, message: message}, nil
}

// Take implements link.PipeConn.
func (p *Port) Take(from uintptr, limit int) (link.Taken, error) {
	t, err := p.empty()
	if err != nil {
		return nil, fmt.Errorf("take from pipe: %w", err)
	}
	for {
		// This waits for no data, but for a process that has locked the pipe while
		// it copies: the scheduler has to know.
		n, err := unix.Splice(int(from), nil, t.pipe.w, nil, limit, unix.SPLICE_F_NONBLOCK)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			t.Drop()
			return nil, fmt.Errorf("take from pipe: %w", err)
		case n == 0:
			t.Drop()
			return nil, io.EOF
		}
		t.length = int(n)
		return t, nil
	}
}

// empty returns something to take into.
func (p *Port) empty() (*taken, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return nil, os.ErrClosed
	}
	if last := len(p.spare) - 1; last >= 0 {
		t := p.spare[last]
		p.spare = p.spare[:last]
		return t, nil
	}
	fresh, err := newPipe(takenSize)
	if err != nil {
		return nil, err
	}
	return &taken{port: p, pipe: fresh}, nil
}

// Len implements link.Taken.
func (t *taken) Len() int { return t.length }

// Drop implements link.Taken.
func (t *taken) Drop() {
	p := t.port
	p.mu.Lock()
	defer p.mu.Unlock()
	if t.length > 0 || p.closed || len(p.spare) == maxSpare {
		t.pipe.close()
		return
	}
	p.spare = append(p.spare, t)
}

// Send implements link.Taken.
func (t *taken) Send(head []byte) error {
	defer t.Drop()
	p := t.port
	if len(head) > maxHead {
		if _, err := p.Write(head); err != nil {
			return err
		}
		head = nil
	}
	// Close ends what waits below before it wants the lock.
	p.sending.Lock()
	defer p.sending.Unlock()
	left, err := t.compose(head)
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
// empty, and returns how long that is. The port's sending is held.
func (t *taken) compose(head []byte) (length int, err error) {
	message := t.port.message.w
	if len(head) > 0 {
		n, errno := call(unix.SYS_WRITE, uintptr(message), head)
		if errno != 0 {
			return 0, errno
		}
		length += int(n) // a write to an empty pipe is never cut short
	}
	for t.length > 0 {
		n, errno := splice(t.pipe.r, message, t.length)
		if errno != 0 {
			return 0, errno
		}
		t.length -= n
		length += n
	}
	return length, nil
}

// Close implements io.Closer.
func (p *Port) Close() error {
	err := p.File.Close()
	p.sending.Lock()
	p.message.close()
	p.sending.Unlock()
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = true
	for _, t := range p.spare {
		t.pipe.close()
	}
	p.spare = nil
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

// splice moves up to limit bytes out of a pipe of ours into another or the port,
// without waiting for either and without telling the scheduler: nobody else has
// our pipes.
func splice(from, to, limit int) (int, unix.Errno) {
	for {
		n, _, errno := unix.RawSyscall6(unix.SYS_SPLICE, uintptr(from), 0, uintptr(to), 0, uintptr(limit), unix.SPLICE_F_NONBLOCK)
		if errno != unix.EINTR {
			return int(n), errno
		}
	}
}
