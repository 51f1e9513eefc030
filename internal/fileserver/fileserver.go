// Package fileserver shows a directory to a guest by way of QEMU's 9p device.
//
// QEMU speaks 9p with the guest. Its "proxy" driver asks a peer on a socket for
// all that needs a path or a privilege; what it gets are answers and open files.
// Server is that peer, in the process that owns the sandbox. So the VMM needs no
// capability, no user id and no directory of the host, and what a guest makes
// (pipes, sockets, device nodes) is made by us.
//
// The peer is hostile: a guest that has taken over QEMU may send anything.
// No path leaves the directory and none leads over a link; only regular files
// and directories are ever opened, a directory such that nothing above it can be
// reached from it; the thread that serves has the capabilities of a file server
// and no others; memory does not grow with what is asked. A message that is none
// ends the server.
//
// Life cycle: Start -> Peer (the VMM's end) -> Close. The server also ends when
// the peer hangs up; Done and Err tell. Or it leaves the connection to another
// server: Leave -> Continue. What it knows of a peer is only for its comfort.
package fileserver

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/seed-efd44b36/kata/internal/thread"
	"golang.org/x/sys/unix"
)

// Server serves one directory to one peer.
type Server struct {
	root  *os.File // O_PATH
	conn  int      // our end, closed by Close
	peer  *os.File // nil if another server has had it
	leave int      // eventfd: something is in it when no more is to be served
	files numbers

	closing atomic.Bool
	close   sync.Once
	done    chan struct{} // closed when nothing is served any more
	err     error         // valid then
}

// Start serves the directory dir, and what is mounted in it, now or later.
func Start(dir string) (*Server, error) {
	ends, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("start file server of %s: %w", dir, os.NewSyscallError("socketpair", err))
	}
	return start(dir, ends[0], os.NewFile(uintptr(ends[1]), "share"))
}

// Continue is Start for a connection that another server has left. It works on a
// duplicate of the file.
func Continue(dir string, left *os.File) (*Server, error) {
	conn, err := unix.FcntlInt(left.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("start file server of %s: %w", dir, os.NewSyscallError("dup", err))
	}
	return start(dir, conn, nil)
}

// start serves at conn, which it closes in the end.
func start(dir string, conn int, peer *os.File) (*Server, error) {
	s, err := open(dir, conn, peer)
	if err != nil {
		_ = unix.Close(conn)
		_ = peer.Close()
		return nil, fmt.Errorf("start file server of %s: %w", dir, err)
	}
	begun := make(chan error)
	go func() { // ends with Close, which waits for it
		defer close(s.done)
		started := false
		err := thread.Run(func() error {
			t, err := newWorker(s)
			if err != nil {
				return err
			}
			started = true
			begun <- nil
			return t.serve()
		})
		if !errors.Is(err, errLeft) {
			// The peer must not wait for answers.
			_ = unix.Shutdown(s.conn, unix.SHUT_RDWR)
		}
		if !started {
			begun <- err
		} else if !s.closing.Load() {
			s.err = err
		}
	}()
	if err := <-begun; err != nil {
		s.Close()
		_ = s.peer.Close()
		return nil, fmt.Errorf("start file server of %s: %w", dir, err)
	}
	return s, nil
}

func open(dir string, conn int, peer *os.File) (*Server, error) {
	root, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: dir, Err: err}
	}
	leave, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
	if err != nil {
		unix.Close(root)
		return nil, os.NewSyscallError("eventfd", err)
	}
	return &Server{
		root: os.NewFile(uintptr(root), dir), conn: conn, peer: peer, leave: leave,
		files: newNumbers(), done: make(chan struct{}),
	}, nil
}

// Peer is the VMM's end of the connection. Whoever has passed it on closes it.
func (s *Server) Peer() *os.File { return s.peer }

// Done is closed when the server has ended.
func (s *Server) Done() <-chan struct{} { return s.done }

// Err tells why the server has ended: nil after Close, and when the peer hung up.
// It is valid after Done is closed.
func (s *Server) Err() error { return s.err }

// Close ends the server and waits for it. It may be called again.
func (s *Server) Close() {
	s.close.Do(func() {
		s.closing.Store(true)
		_ = unix.Shutdown(s.conn, unix.SHUT_RDWR)
		s.end()
	})
	<-s.done
}

// leaveTime is what a server gets to finish an answer when it leaves.
const leaveTime = time.Second

// errLeft ends a server that is to leave the connection to another.
var errLeft = errors.New("left to another server")

// Leave ends the server, whose peer must not be about to ask anything, and returns
// its end of the connection for Continue. The caller closes it.
func (s *Server) Leave() (left *os.File, err error) {
	err = errors.New("file server has ended")
	s.close.Do(func() {
		s.closing.Store(true)
		if _, err = unix.Write(s.leave, binary.NativeEndian.AppendUint64(nil, 1)); err != nil {
			_ = unix.Shutdown(s.conn, unix.SHUT_RDWR)
		}
		select {
		case <-s.done:
		case <-time.After(leaveTime):
			_ = unix.Shutdown(s.conn, unix.SHUT_RDWR)
			<-s.done
			err = errors.New("its peer takes no answers")
		}
		var fd int
		if err == nil {
			fd, err = unix.FcntlInt(uintptr(s.conn), unix.F_DUPFD_CLOEXEC, 0)
		}
		if err == nil {
			left = os.NewFile(uintptr(fd), "share")
		}
		s.end()
	})
	if err != nil {
		return nil, fmt.Errorf("leave file server: %w", err)
	}
	return left, nil
}

// end closes all that is open when nothing is served any more.
func (s *Server) end() {
	<-s.done
	unix.Close(s.conn)
	unix.Close(s.leave)
	_ = s.root.Close() // holds no data
}

// serve answers until the peer hangs up.
func (w *worker) serve() error {
	defer w.removed.clear()
	in := bufio.NewReaderSize(socket{w.server.conn, w.server.leave}, headerBytes+maxBody)
	for {
		header, err := in.Peek(headerBytes)
		if errors.Is(err, io.EOF) && len(header) == 0 {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read request: %w", err)
		}
		op, size := operation(binary.NativeEndian.Uint32(header)), binary.NativeEndian.Uint32(header[4:])
		if size > maxBody {
			return fmt.Errorf("request of %d bytes, more than %d", size, maxBody)
		}
		message, err := in.Peek(headerBytes + int(size))
		if err != nil {
			return fmt.Errorf("read request: %w", err)
		}
		req, err := decode(op, message[headerBytes:])
		if err != nil {
			return err
		}
		if _, err := in.Discard(headerBytes + int(size)); err != nil {
			return fmt.Errorf("read request: %w", err)
		}
		if err := w.answer(req); err != nil {
			return fmt.Errorf("answer: %w", err)
		}
	}
}

// answer does what is asked and sends the reply. An error is one of the
// connection.
func (w *worker) answer(r request) error {
	if r.op == opOpen || r.op == opCreate {
		fd, err := w.open(r)
		if err != nil {
			return w.send(status(err))
		}
		defer unix.Close(fd)
		return unix.Sendmsg(w.server.conn, binary.NativeEndian.AppendUint32(nil, fileFollows), unix.UnixRights(fd), nil, unix.MSG_NOSIGNAL)
	}
	body, err := w.do(r)
	if err != nil {
		return w.send(reply(replyError, status(err)))
	}
	return w.send(reply(replySuccess, body))
}

func (w *worker) send(message []byte) error {
	for len(message) > 0 {
		n, err := unix.SendmsgN(w.server.conn, message, nil, nil, unix.MSG_NOSIGNAL)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return err
		}
		message = message[n:]
	}
	return nil
}

// socket reads from a descriptor that blocks, until there is something in leave:
// what is served is one request after the other, on a thread that has nothing else
// to do.
type socket struct{ conn, leave int }

func (s socket) Read(p []byte) (int, error) {
	for {
		ready := []unix.PollFd{{Fd: int32(s.conn), Events: unix.POLLIN}, {Fd: int32(s.leave), Events: unix.POLLIN}}
		_, err := unix.Poll(ready, -1)
		if err == nil && ready[0].Revents == 0 {
			return 0, errLeft
		}
		n := 0
		if err == nil {
			n, err = unix.Read(s.conn, p)
		}
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return 0, err
		case n == 0:
			return 0, io.EOF
		default:
			return n, nil
		}
	}
}
