// Package serial is the guest's end of the virtio-serial port that the link to the
// host goes through.
//
// Life cycle: Open, once; then Serve (or Await and Conn) for one host after the other. A host
// may leave and another come while the port stays as it is, also across the
// saving and restoring of the machine. So the port is never closed in between:
// the kernel throws away what is unread at that moment, which may be the next
// host's greeting.
package serial

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/seed-efd44b36/kata/internal/agent/await"
	"github.com/seed-efd44b36/kata/internal/agent/direct"
	"github.com/seed-efd44b36/kata/internal/link"
	"golang.org/x/sys/unix"
)

const (
	// appearTimeout is how long a port may take to appear.
	appearTimeout = 30 * time.Second
	// retry is the pause after a greeting that was none.
	retry = 20 * time.Millisecond
)

// Port is an open port. It has one user at a time, besides Close.
//
// No more than one descriptor of it is with the poller at any time. To the driver, to
// be asked whether there is something to read means to fetch it, and then the device's
// interrupt is none: whoever has asked is the only one who hears. With two, the poller
// asks both when it wakes up, and what comes between the two is told to the second.
type Port struct {
	path string

	mu      sync.Mutex
	fd      int          // guarded by mu; -1 when closed. The poller does not know it
	waiting *direct.File // guarded by mu; of Await, nil for none
}

// Open waits for the port with the given name to appear and opens it.
func Open(ctx context.Context, name string) (*Port, error) {
	var path string
	err := await.Until(ctx, appearTimeout, func() (found bool, err error) {
		path, err = find("/sys/class/virtio-ports", "/dev", name)
		return path != "", err
	})
	if errors.Is(err, context.DeadlineExceeded) {
		return nil, fmt.Errorf("the machine has no virtio-serial port %s", name)
	}
	if err != nil {
		return nil, err
	}
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", path, err)
	}
	return newPort(fd, path)
}

// newPort takes fd over, also on error.
func newPort(fd int, path string) (*Port, error) {
	if err := unix.SetNonblock(fd, true); err != nil {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("make %s non-blocking: %w", path, err)
	}
	return &Port{path: path, fd: fd}, nil
}

// find looks for the port in sysfs; "" means that it is not there.
func find(class, dev, name string) (string, error) {
	ports, err := os.ReadDir(class)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("list virtio-serial ports: %w", err)
	}
	for _, p := range ports {
		b, err := os.ReadFile(filepath.Join(class, p.Name(), "name"))
		if err == nil && string(bytes.TrimSpace(b)) == name {
			return filepath.Join(dev, p.Name()), nil
		}
	}
	return "", nil
}

// Close closes the port. It ends Await, and with an error Serve.
func (p *Port) Close() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.fd < 0 {
		return fmt.Errorf("close %s: %w", p.path, os.ErrClosed)
	}
	err := unix.Close(p.fd)
	p.fd = -1
	if p.waiting != nil {
		err = errors.Join(err, p.waiting.Close())
	}
	return err
}

// duplicate returns a further descriptor of the port. p.mu is held.
func (p *Port) duplicate() (int, error) {
	if p.fd < 0 {
		return -1, fmt.Errorf("use %s: %w", p.path, os.ErrClosed)
	}
	fd, err := unix.FcntlInt(uintptr(p.fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("duplicate %s: %w", p.path, err)
	}
	return fd, nil
}

// Serve waits for a host and its greeting, and returns the link to it. Its error
// says that the port cannot be used.
func (p *Port) Serve(ctx context.Context) (link.Listener, error) {
	for {
		c, err := p.Conn()
		if err != nil {
			return nil, err
		}
		l, err := link.Serve(c)
		switch {
		case err == nil:
			return l, nil
		case errors.Is(err, unix.ENODEV):
			return nil, fmt.Errorf("wait for the host: %w", err)
		case !errors.Is(err, io.EOF):
			// A host that speaks another version, or no host at all: it will leave.
			if err := await.Pause(ctx, retry); err != nil {
				return nil, err
			}
		}
		if err := p.Await(); err != nil {
			return nil, err
		}
	}
}

// Conn returns the port for one host, which has to be closed before Conn or Await
// are called again.
func (p *Port) Conn() (*direct.Port, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	fd, err := p.duplicate()
	if err != nil {
		return nil, err
	}
	return direct.NewPort(fd, p.path)
}

// Await waits until there is a host. While there is none the port says that it is
// hung up; the runtime's poller hears when that changes, and nothing has to look
// again and again.
func (p *Port) Await() error {
	f, err := p.wait()
	if err != nil {
		return err
	}
	defer func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.waiting = nil
		_ = f.Close()
	}()
	raw, err := f.SyscallConn()
	if err != nil {
		return fmt.Errorf("use %s: %w", p.path, err)
	}
	err = raw.Write(func(fd uintptr) bool {
		fds := []unix.PollFd{{Fd: int32(fd)}}
		n, err := unix.Poll(fds, 0)
		return err == nil && (n == 0 || fds[0].Revents&unix.POLLHUP == 0)
	})
	if err != nil {
		return fmt.Errorf("wait for the host: %w", err)
	}
	return nil
}

// wait returns what Await waits for.
func (p *Port) wait() (*direct.File, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	fd, err := p.duplicate()
	if err != nil {
		return nil, err
	}
	p.waiting, err = direct.NewFile(fd, p.path)
	return p.waiting, err
}
