package operator

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"sync"
	"time"

	"github.com/containerd/ttrpc"
	"github.com/seed-efd44b36/kata/internal/link"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// SocketFile is the owner's socket in the sandbox's directory.
const SocketFile = "owner.sock"

// answers is how long the last answers may take to leave.
const answers = 2 * time.Second

// Socket is the owner's socket, at work.
type Socket struct {
	calls   Calls
	log     *slog.Logger
	rpc     *ttrpc.Server
	l       link.Listener
	conns   *link.Queue
	stop    context.CancelFunc
	serving sync.WaitGroup
	streams sync.WaitGroup // stdio of clients
}

// Listen serves what register registers, and the streams of processes, until
// Close. Streams end with the context.
func Listen(ctx context.Context, calls Calls, log *slog.Logger, register func(*ttrpc.Server)) (*Socket, error) {
	l, err := link.ListenUnix(filepath.Join(calls.Sandbox.Dir(), SocketFile), 0o600)
	if err != nil {
		return nil, fmt.Errorf("socket for operators: %w", err)
	}
	rpc, err := ttrpc.NewServer()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("ttrpc server: %w", err), l.Close())
	}
	register(rpc)
	ctx, stop := context.WithCancel(ctx)
	s := &Socket{calls: calls, log: log, rpc: rpc, l: l, conns: link.NewQueue(), stop: stop}
	s.serving.Go(func() { _ = rpc.Serve(ctx, s.conns) })
	s.serving.Go(func() { s.accept(ctx) })
	return s, nil
}

// Close lets answers out that are under way, and ends.
func (s *Socket) Close(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), answers)
	defer cancel()
	_ = s.rpc.Shutdown(ctx)
	_ = s.rpc.Close()
	_ = s.l.Close()
	_ = s.conns.Close()
	s.stop()
	s.serving.Wait()
	s.streams.Wait()
	return nil
}

// accept hands connections to where they belong until the listener is closed.
func (s *Socket) accept(ctx context.Context) {
	for {
		st, h, err := s.l.Accept()
		if err != nil {
			return
		}
		switch h.Kind {
		case link.KindRPC:
			s.conns.Put(st)
		case link.KindStdio:
			s.streams.Go(func() {
				if err := s.bridge(ctx, st, h); err != nil {
					s.log.Warn("stdio stream", "container", h.Container, "exec", h.Exec, "fd", h.FD, "error", err)
				}
			})
		default:
			s.log.Warn("connection of an unknown kind is refused", "kind", h.Kind)
			_ = st.Close()
		}
	}
}

// bridge joins a client's connection with the stream of a process in the
// guest, until both directions that exist for that descriptor have ended.
func (s *Socket) bridge(ctx context.Context, client link.Stream, h link.Header) error {
	defer client.Close()
	if s.calls.Engine && h.Exec == "" {
		return engines(h.Container)
	}
	p, err := s.calls.process(h.Container, h.Exec)
	if err != nil {
		return err
	}
	guest, err := p.OpenStdio(ctx, int(h.FD))
	if err != nil {
		return err
	}
	defer guest.Close()
	// The client reads one byte before it goes on: then the stream is known
	// to the guest, and Start cannot overtake it.
	if _, err := client.Write([]byte{0}); err != nil {
		return fmt.Errorf("confirm stream: %w", err)
	}
	// The end must not wait for a client that does not read.
	stop := context.AfterFunc(ctx, func() { _ = client.Close(); _ = guest.Close() })
	defer stop()
	if h.FD == 0 {
		return link.CopyToEnd(guest, client)
	}
	return link.CopyToEnd(client, guest)
}

// Register registers what an engine's sandbox has of the service: the console, the
// time lines, and processes that Exec has made. Its containers obey the engine alone.
func (c Calls) Register(rpc *ttrpc.Server) {
	rpc.RegisterService("kata.proxy.v1.Proxy", &ttrpc.ServiceDesc{Methods: map[string]ttrpc.Method{
		"Console": method(c.Console), "Trace": method(c.Trace), "Exec": method(c.Exec),
		"Start": ofExec(c.Start), "Signal": ofExec(c.Signal), "Wait": ofExec(c.Wait), "Resize": ofExec(c.Resize), "Delete": ofExec(c.Delete),
	}})
}

// method makes a ttrpc method of a function.
func method[Request, Response any](f func(context.Context, *Request) (*Response, error)) ttrpc.Method {
	return func(ctx context.Context, unmarshal func(any) error) (any, error) {
		r := new(Request)
		if err := unmarshal(r); err != nil {
			return nil, err
		}
		return f(ctx, r)
	}
}

// ofProcess is a request about a process: an exec, or the first of a container.
type ofProcess[Request any] interface {
	*Request
	GetContainer() string
	GetExec() string
}

// ofExec is method for requests that may name an exec only.
func ofExec[Request, Response any, P ofProcess[Request]](f func(context.Context, P) (*Response, error)) ttrpc.Method {
	return method(func(ctx context.Context, r *Request) (*Response, error) {
		if P(r).GetExec() == "" {
			return nil, engines(P(r).GetContainer())
		}
		return f(ctx, r)
	})
}

// engines refuses what is the engine's to do.
func engines(container string) error {
	return status.Errorf(codes.FailedPrecondition, "container %s obeys the engine that has made it alone", container)
}
