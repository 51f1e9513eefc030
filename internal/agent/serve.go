package agent

import (
	"context"
	"errors"
	"sync"

	"github.com/containerd/ttrpc"
	agentv1 "github.com/seed-efd44b36/kata/api/agent/v1"
	"github.com/seed-efd44b36/kata/internal/agent/resolver"
	"github.com/seed-efd44b36/kata/internal/agent/serial"
	"github.com/seed-efd44b36/kata/internal/link"
)

// portName is the virtio-serial port of the link.
const portName = "agent.0"

// serveSerial serves one host after the other on the virtio-serial port: the
// far end of the port can change while the guest sleeps.
func (a *Agent) serveSerial(ctx context.Context) error {
	rpc, done := a.startServer(ctx)
	defer done()
	port, err := serial.Open(ctx, portName)
	if err != nil {
		return err
	}
	defer port.Close()
	a.markReady()
	for {
		l, err := port.Serve(ctx)
		if err != nil {
			return err
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
	port, err := serial.Open(a.life, portName)
	if err != nil {
		return nil, err
	}
	defer port.Close()
	a.markReady()
	if err := port.Await(); err != nil {
		return nil, err
	}
	conn, err := port.Conn()
	if err != nil {
		return nil, err
	}
	return link.ListenVsock(conn, vsockPort)
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
		case link.KindNames:
			work.Go(func() { resolver.Serve(ctx, s, a.log) })
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
