package agent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/containerd/ttrpc"
	agentv1 "github.com/seed-efd44b36/kata/api/agent/v1"
	"github.com/seed-efd44b36/kata/internal/agent/await"
	"github.com/seed-efd44b36/kata/internal/agent/direct"
	"github.com/seed-efd44b36/kata/internal/link"
	"golang.org/x/sys/unix"
)

const (
	// portName is the virtio-serial port of the link.
	portName = "agent.0"
	// portTimeout is how long the port may take to appear.
	portTimeout = 30 * time.Second
	// portIdle is how often the agent looks whether the host has come back.
	portIdle = 20 * time.Millisecond
)

// serveSerial serves one host after the other on the virtio-serial port: the
// far end of the port can change while the guest sleeps.
func (a *Agent) serveSerial(ctx context.Context) error {
	rpc, done := a.startServer(ctx)
	defer done()
	path, err := awaitPort(ctx)
	if err != nil {
		return err
	}
	for {
		port, err := openPort(ctx, path, a.markReady)
		if err != nil {
			return err
		}
		l, err := link.Serve(port)
		if err != nil {
			a.log.Warn("no link", "err", err)
			if err := await.Pause(ctx, portIdle); err != nil {
				return err
			}
			continue
		}
		a.accept(ctx, l, rpc)
		_ = l.Close()
	}
}

// serveVsock serves connections from who has the key that comes through the
// virtio-serial port: every user of the host can connect.
func (a *Agent) serveVsock() error {
	rpc, done := a.startServer(a.life)
	defer done()
	l, err := a.listenVsock()
	if err != nil {
		return err
	}
	defer l.Close()
	a.accept(a.life, l, rpc)
	return errors.New("the listener of the link has ended")
}

// listenVsock waits for the key and listens.
func (a *Agent) listenVsock() (link.Listener, error) {
	path, err := awaitPort(a.life)
	if err != nil {
		return nil, err
	}
	port, err := openPort(a.life, path, a.markReady)
	if err != nil {
		return nil, err
	}
	return link.ListenVsock(port, vsockPort)
}

func (a *Agent) markReady() {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.ready == 0 {
		a.ready = uptime()
	}
}

// accept hands every stream to whom it is for, until the link ends. What it
// starts has ended when it returns, but for what belongs to a process.
func (a *Agent) accept(ctx context.Context, l link.Listener, rpc *link.Queue) {
	var work sync.WaitGroup
	defer work.Wait()
	for {
		s, h, err := l.Accept()
		if err != nil {
			a.log.Info("link ended", "err", err)
			return
		}
		switch h.Kind {
		case link.KindRPC:
			rpc.Put(s)
		case link.KindStdio:
			if err := a.attach(s, h); err != nil {
				a.log.Warn("stream refused", "container", h.Container, "exec", h.Exec, "fd", h.FD, "err", err)
				_ = s.Close()
			}
		case link.KindLog:
			work.Go(func() { a.logs.serve(s) })
		case link.KindPort:
			work.Go(func() { a.servePort(ctx, s, h.Port) })
		case link.KindDebug:
			work.Go(func() { a.serveDebug(ctx, s) })
		default:
			_ = s.Close()
		}
	}
}

// startServer starts the server of calls. done ends it.
func (a *Agent) startServer(ctx context.Context) (rpc *link.Queue, done func()) {
	rpc = link.NewQueue()
	srv, err := ttrpc.NewServer()
	if err != nil {
		panic(err) // only options can fail, and there are none
	}
	agentv1.RegisterAgentService(srv, a)
	var work sync.WaitGroup
	work.Go(func() { _ = srv.Serve(ctx, rpc) })
	return rpc, func() {
		_ = srv.Close()
		_ = rpc.Close()
		work.Wait()
	}
}

// awaitPort waits for the port and returns the path of its device.
func awaitPort(ctx context.Context) (path string, err error) {
	err = await.Until(ctx, portTimeout, func() (bool, error) {
		path, err = findPort("/sys/class/virtio-ports", "/dev")
		return path != "", err
	})
	if errors.Is(err, context.DeadlineExceeded) {
		return "", fmt.Errorf("the machine has no virtio-serial port %s", portName)
	}
	return path, err
}

// findPort looks for the port in sysfs; "" means that it is not there.
func findPort(class, dev string) (string, error) {
	ports, err := os.ReadDir(class)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("list virtio-serial ports: %w", err)
	}
	for _, p := range ports {
		name, err := os.ReadFile(filepath.Join(class, p.Name(), "name"))
		if err == nil && string(bytes.TrimSpace(name)) == portName {
			return filepath.Join(dev, p.Name()), nil
		}
	}
	return "", nil
}

// openPort opens the port and returns when the host has something to say.
// opened is called in between.
func openPort(ctx context.Context, path string, opened func()) (*direct.Port, error) {
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", path, err)
	}
	opened()
	for {
		p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		_, err := unix.Poll(p, -1)
		switch {
		case err != nil && !errors.Is(err, unix.EINTR):
			_ = unix.Close(fd)
			return nil, fmt.Errorf("wait for the host: %w", err)
		case err == nil && p[0].Revents&unix.POLLIN != 0:
			return direct.NewPort(fd, path)
		}
		// A port without a host hangs up at once, again and again.
		if err := await.Pause(ctx, portIdle); err != nil {
			_ = unix.Close(fd)
			return nil, err
		}
	}
}
