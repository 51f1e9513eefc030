package shim

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"

	"github.com/containerd/ttrpc"
	"github.com/seed-efd44b36/kata/internal/config"
	"github.com/seed-efd44b36/kata/internal/owner"
	"github.com/seed-efd44b36/kata/internal/sandbox"
	"github.com/seed-efd44b36/kata/internal/sandbox/guest"
	"github.com/seed-efd44b36/kata/internal/shim/clients"
	"github.com/seed-efd44b36/kata/internal/shim/controller"
	"github.com/seed-efd44b36/kata/internal/shim/publisher"
	"github.com/seed-efd44b36/kata/internal/timeline"
	"golang.org/x/sys/unix"
)

// answers is how long the last answers may take to leave.
const answers = 2 * time.Second

// unusedTimeout is how long a shim waits to be asked for a container. A containerd
// that lives asks at once; the successor of one that has died may not see it.
const unusedTimeout = 20 * time.Second

// serve is the shim itself. It is started by spawn, in the bundle.
func (c command) serve() error {
	start := timeline.Program("containerd-shim-kata-v2")
	if err := guest.SilenceRPC(); err != nil {
		return err
	}
	listener := os.NewFile(listenerFD, "socket")
	mounts := os.NewFile(mountsFD, "mounts")
	for _, fd := range []uintptr{listenerFD, mountsFD} {
		syscall.CloseOnExec(int(fd))
	}
	l, err := net.FileListener(listener)
	if err != nil {
		return fmt.Errorf("it is started by its own `start`; it is of no use by hand: %w", err)
	}
	_ = listener.Close()
	unix.Umask(0o022) // the caller's may be anything
	rec, err := readRecord(".")
	if err != nil {
		return err
	}
	out := openLog()
	level := slog.LevelInfo
	if c.debug {
		level = slog.LevelDebug
	}
	log := slog.New(slog.NewJSONHandler(out, &slog.HandlerOptions{Level: level}))
	// The bundle goes before we do.
	if err := os.Chdir("/"); err != nil {
		return fmt.Errorf("leave the bundle: %w", err)
	}
	// SIGTERM (an operator, a shutdown of the host) ends the sandbox in order.
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	s := &service{
		namespace: c.namespace, id: c.id, mounts: mounts, log: log, stop: stop,
		events: publisher.New(socketPath(os.Getenv(ttrpcAddressEnv)), c.namespace, log),
		tasks:  map[string]*ctr{},
		open:   func(context.Context) (*sandbox.Sandbox, *slog.Logger, error) { return open(rec, c.debug, out, start) },
	}
	s.pod = controller.New(c.id, machine{s})
	err = s.run(ctx, l)
	if rerr := os.Remove(rec.Socket); rerr != nil {
		err = errors.Join(err, rerr)
	}
	if err != nil {
		log.Error("the shim did not end cleanly; `kata gc` removes what is left", "error", err)
	}
	return err
}

// open makes the sandbox with its real parts.
func open(rec record, debug bool, logAlso io.Writer, start *timeline.Start) (*sandbox.Sandbox, *slog.Logger, error) {
	defer timeline.Step(start.In(context.Background()), "open sandbox")()
	loaded, err := config.Load(rec.Config)
	if err != nil {
		return nil, nil, err
	}
	conf := loaded.Config
	conf.Runtime.Debug = conf.Runtime.Debug || debug
	// The sandbox's own: it closes it.
	mounts, err := unix.FcntlInt(mountsFD, unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("mount namespace of the host: %w", err)
	}
	return owner.Open(owner.Options{
		ID: rec.Sandbox, Config: conf, HostMounts: os.NewFile(uintptr(mounts), "mounts"),
		LogAlso: logAlso, Start: start,
	})
}

// run serves until the context ends, and ends the sandbox before it returns.
func (s *service) run(ctx context.Context, l net.Listener) error {
	rpc, err := ttrpc.NewServer()
	if err != nil {
		return errors.Join(fmt.Errorf("ttrpc server: %w", err), l.Close())
	}
	for _, name := range []string{"containerd.task.v2.Task", "containerd.task.v3.Task"} {
		rpc.RegisterService(name, s.methods())
	}
	rpc.RegisterService("containerd.runtime.sandbox.v1.Sandbox", s.sandboxMethods())
	var serving sync.WaitGroup
	callers := clients.New(l)
	serving.Go(func() { _ = rpc.Serve(context.WithoutCancel(ctx), callers) })
	unused := time.AfterFunc(unusedTimeout, s.endUnused)
	defer unused.Stop()
	<-ctx.Done()
	s.mu.Lock()
	asked := s.ending
	s.mu.Unlock()
	err = s.close(context.WithoutCancel(ctx))
	s.watchers.Wait()
	lastCtx, cancel := context.WithTimeout(context.WithoutCancel(ctx), answers)
	defer cancel()
	if asked {
		callers.Wait(lastCtx)
	}
	_ = rpc.Shutdown(lastCtx) // lets answers out that are under way
	_ = rpc.Close()
	_ = l.Close()
	serving.Wait()
	s.events.Close()
	return err
}

// endUnused ends a shim that nothing has been asked of.
func (s *service) endUnused() {
	s.mu.Lock()
	// The CRI may have an image to pull before it starts a sandbox that it has made.
	unused := s.endBoot == nil && len(s.tasks) == 0 && !s.pod.InUse()
	s.ending = s.ending || unused
	s.mu.Unlock()
	if unused {
		s.stop()
	}
}

// methods are those of the Task service, by which containerd calls them in
// version 2 and 3 alike.
func (s *service) methods() *ttrpc.ServiceDesc {
	return &ttrpc.ServiceDesc{Methods: map[string]ttrpc.Method{
		"State": method(s.State), "Create": method(s.Create), "Start": method(s.Start), "Delete": method(s.Delete),
		"Pids": method(s.Pids), "Pause": method(s.Pause), "Resume": method(s.Resume), "Checkpoint": method(s.Checkpoint),
		"Kill": method(s.Kill), "Exec": method(s.Exec), "ResizePty": method(s.ResizePty), "CloseIO": method(s.CloseIO),
		"Update": method(s.Update), "Wait": method(s.Wait), "Stats": method(s.Stats), "Connect": method(s.Connect),
		"Shutdown": method(s.Shutdown),
	}}
}

// sandboxMethods are those of the Sandbox service.
func (s *service) sandboxMethods() *ttrpc.ServiceDesc {
	c := s.pod
	return &ttrpc.ServiceDesc{Methods: map[string]ttrpc.Method{
		"CreateSandbox": method(c.Create), "StartSandbox": method(c.Start), "Platform": method(c.Platform),
		"StopSandbox": method(c.Stop), "WaitSandbox": method(c.Wait), "SandboxStatus": method(c.Status),
		"PingSandbox": method(c.Ping), "ShutdownSandbox": method(c.Shutdown), "SandboxMetrics": method(c.Metrics),
	}}
}

// method makes a ttrpc method of a function.
func method[Request, Response any](f func(context.Context, *Request) (*Response, error)) ttrpc.Method {
	return func(ctx context.Context, unmarshal func(any) error) (any, error) {
		r := new(Request)
		if err := unmarshal(r); err != nil {
			return nil, err
		}
		resp, err := f(ctx, r)
		if err != nil {
			return nil, refuse(err)
		}
		return resp, nil
	}
}

// containerdLog is the pipe by which containerd takes a shim's log. Nothing
// waits for it: what it does not take at once is lost to it.
type containerdLog struct{ fd int }

// openLog opens the pipe in the bundle. Without one nothing is written.
func openLog() io.Writer {
	// For reading too: containerd may go and come again.
	fd, err := unix.Open("log", unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
	if err != nil {
		return io.Discard
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFIFO {
		_ = unix.Close(fd)
		return io.Discard
	}
	return containerdLog{fd}
}

// Write implements io.Writer.
func (l containerdLog) Write(b []byte) (int, error) {
	_, _ = unix.Write(l.fd, b)
	return len(b), nil
}
