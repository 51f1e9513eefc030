package link

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// strangerBuffer in bytes is what whoever has shown no key can make the
	// guest's kernel keep, for each connection; it has room for a key and a
	// header. buffer, the kernel's default, is that of everybody else.
	strangerBuffer = 4 << 10
	buffer         = 256 << 10
	// backlog is how many connections wait to be accepted.
	backlog = 128
)

// vsockConn is a connection over AF_VSOCK. The file takes part in the
// runtime's poller, so its deadlines work.
type vsockConn struct {
	*os.File
	local, remote vsockAddr
}

type vsockAddr struct{ cid, port uint32 }

// Network implements net.Addr.
func (a vsockAddr) Network() string { return "vsock" }

func (a vsockAddr) String() string {
	return strconv.FormatUint(uint64(a.cid), 10) + ":" + strconv.FormatUint(uint64(a.port), 10)
}

// LocalAddr implements net.Conn.
func (c *vsockConn) LocalAddr() net.Addr { return c.local }

// RemoteAddr implements net.Conn.
func (c *vsockConn) RemoteAddr() net.Addr { return c.remote }

// CloseWrite implements Stream.
func (c *vsockConn) CloseWrite() error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var shut error
	if err := raw.Control(func(fd uintptr) { shut = unix.Shutdown(int(fd), unix.SHUT_WR) }); err != nil {
		return err
	}
	return os.NewSyscallError("shutdown", shut)
}

// vsockSocket returns a new socket as a file in non-blocking mode.
func vsockSocket() (int, error) {
	fd, err := unix.Socket(unix.AF_VSOCK, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	return fd, os.NewSyscallError("socket", err)
}

// DialVsock gives the guest with context id cid a key, through its virtio-serial
// port at the other end of conn, and returns a link to its ListenVsock on the
// given port. It closes conn, also after an error. ctx is for this only.
func DialVsock(ctx context.Context, conn net.Conn, cid, port uint32) (Opener, error) {
	k, err := newKey()
	if err != nil {
		_ = conn.Close()
		return nil, err
	}
	if err := offerKey(ctx, conn, k); err != nil {
		return nil, err
	}
	to := vsockAddr{cid, port}
	return dialKeyed("vsock "+to.String(), k, func(ctx context.Context) (Stream, error) {
		c, err := connectVsock(ctx, to)
		if err != nil {
			return nil, err // not a nil *vsockConn
		}
		return c, nil
	}), nil
}

func connectVsock(ctx context.Context, to vsockAddr) (*vsockConn, error) {
	fd, err := vsockSocket()
	if err != nil {
		return nil, err
	}
	err = unix.Connect(fd, &unix.SockaddrVM{CID: to.cid, Port: to.port})
	// The file is made after connect: before it, the poller sees a hang-up.
	f := os.NewFile(uintptr(fd), "vsock")
	c := &vsockConn{File: f, local: vsockAddr{unix.VMADDR_CID_ANY, 0}, remote: to}
	if err != nil {
		if !errors.Is(err, unix.EINPROGRESS) {
			_ = f.Close()
			return nil, os.NewSyscallError("connect", err)
		}
		if err := awaitConnect(ctx, f); err != nil {
			_ = f.Close()
			return nil, err
		}
	}
	return c, nil
}

// awaitConnect waits until a connect that is under way has come to its end.
func awaitConnect(ctx context.Context, f *os.File) error {
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { _ = f.SetWriteDeadline(time.Unix(1, 0)) })
	var failure error
	err = raw.Write(func(fd uintptr) bool {
		fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}
		if n, err := unix.Poll(fds, 0); err != nil || n == 0 {
			failure = err
			return err != nil && !errors.Is(err, unix.EINTR)
		}
		code, err := unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_ERROR)
		switch {
		case err != nil:
			failure = os.NewSyscallError("getsockopt", err)
		case code != 0:
			failure = os.NewSyscallError("connect", unix.Errno(code))
		default:
			failure = nil
		}
		return true
	})
	if !stop() {
		return ctx.Err()
	}
	if err != nil {
		return err
	}
	return failure
}

// ListenVsock waits for the host to give a key through conn, and returns the
// listener for the streams that it opens to the vsock port with it; connections
// of others are closed. It closes conn, also after an error.
func ListenVsock(conn io.ReadWriteCloser, port uint32) (Listener, error) {
	return awaitKey(conn, func(k key) (Listener, error) { return listenVsock(port, k) })
}

func listenVsock(port uint32, k key) (Listener, error) {
	fd, err := vsockSocket()
	if err != nil {
		return nil, fmt.Errorf("listen on vsock port %d: %w", port, err)
	}
	err = unix.Bind(fd, &unix.SockaddrVM{CID: unix.VMADDR_CID_ANY, Port: port})
	if err == nil {
		// Connections inherit it.
		err = unix.SetsockoptUint64(fd, unix.AF_VSOCK, unix.SO_VM_SOCKETS_BUFFER_SIZE, strangerBuffer)
	}
	if err == nil {
		err = unix.Listen(fd, backlog)
	}
	if err != nil {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("listen on vsock port %d: %w", port, err)
	}
	f := os.NewFile(uintptr(fd), "vsock")
	raw, err := f.SyscallConn()
	if err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("listen on vsock port %d: %w", port, err)
	}
	accept := func() (Stream, error) {
		for {
			c, err := acceptVsock(raw, port)
			if err != nil {
				return nil, err
			}
			if c.remote.isHost() {
				return c, nil
			}
			_ = c.Close()
		}
	}
	admit := func(c Stream) error {
		if err := k.check(c); err != nil {
			return err
		}
		return c.(*vsockConn).setBuffer(buffer)
	}
	return listen(accept, admit, f.Close), nil
}

// isHost says whether a connection from a comes from the host. VMADDR_CID_LOCAL
// does not: so a process of the guest appears.
func (a vsockAddr) isHost() bool { return a.cid == unix.VMADDR_CID_HOST }

// setBuffer says how many bytes the other side may send ahead.
func (c *vsockConn) setBuffer(size uint64) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var set error
	err = raw.Control(func(fd uintptr) {
		set = unix.SetsockoptUint64(int(fd), unix.AF_VSOCK, unix.SO_VM_SOCKETS_BUFFER_SIZE, size)
	})
	if err != nil {
		return err
	}
	return os.NewSyscallError("setsockopt", set)
}

func acceptVsock(raw rawConn, port uint32) (*vsockConn, error) {
	var (
		nfd    int
		sa     unix.Sockaddr
		failed error
	)
	err := raw.Read(func(fd uintptr) bool {
		nfd, sa, failed = unix.Accept4(int(fd), unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK)
		return !errors.Is(failed, unix.EAGAIN)
	})
	switch {
	case errors.Is(err, os.ErrClosed):
		return nil, net.ErrClosed
	case err != nil:
		return nil, err
	case failed != nil:
		return nil, os.NewSyscallError("accept", failed)
	}
	c := &vsockConn{File: os.NewFile(uintptr(nfd), "vsock"), local: vsockAddr{unix.VMADDR_CID_ANY, port}}
	if vm, ok := sa.(*unix.SockaddrVM); ok {
		c.remote = vsockAddr{vm.CID, vm.Port}
	}
	return c, nil
}

// rawConn is the part of syscall.RawConn that accepting needs.
type rawConn interface {
	Read(f func(fd uintptr) (done bool)) error
}
