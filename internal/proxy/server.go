// Package proxy is kata-proxy: the process that owns one sandbox on behalf of
// command lines that come and go. The server half (Serve) runs in kata-proxy;
// the client half (Spawn, Dial) in kata and kata-runtime.
//
// The socket is in the sandbox's directory, which only root can enter: who can
// connect may do everything. The caller that spawned a proxy owns its sandbox
// until it says otherwise (Client.Disown): should the caller die, the sandbox
// ends, so that nothing is left of an interrupted command.
package proxy

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"

	"github.com/containerd/ttrpc"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	proxyv1 "github.com/seed-efd44b36/kata/api/proxy/v1"
	"github.com/seed-efd44b36/kata/internal/operator"
	"github.com/seed-efd44b36/kata/internal/sandbox"
	"github.com/seed-efd44b36/kata/internal/sandbox/report"
	"github.com/seed-efd44b36/kata/internal/timeline"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// drainTimeout is how long the output of an ended container may still take to
// arrive before the sandbox ends.
const drainTimeout = 10 * time.Second

// NetworkSetup makes a network namespace with the CNI network that the request
// names and returns its path. What it makes is recorded in the sandbox's
// ledger first and released by the sandbox's Close.
type NetworkSetup func(ctx context.Context, s *sandbox.Sandbox, n *proxyv1.CNI) (NetworkResult, error)

// NetworkResult is what a CNI network gave to a sandbox.
type NetworkResult struct {
	NetNS       string
	Addresses   []string // CIDR
	Nameservers []string
	Search      []string
}

// server serves one sandbox.
type server struct {
	operator.Calls
	sb       *sandbox.Sandbox
	log      *slog.Logger
	network  NetworkSetup
	stop     context.CancelCauseFunc // ends Serve
	logs     sync.WaitGroup          // of containers that end the sandbox
	watchers sync.WaitGroup

	mu       sync.Mutex
	boot     *proxyv1.BootRequest // guarded by mu, nil before Boot
	followed bool                 // guarded by mu: the first container is being followed
}

// Options are what Serve needs.
type Options struct {
	Sandbox *sandbox.Sandbox
	Log     *slog.Logger
	Network NetworkSetup
	// Owner ends (EOF) when the owning caller is gone; a byte read from it
	// means that the caller has disowned the sandbox.
	Owner *os.File
	// Ready is called when clients can connect.
	Ready func()
}

// errShutdown is the cause of an end that was asked for.
var errShutdown = errors.New("shutdown")

// Serve runs until the sandbox has ended, and ends it before it returns.
func Serve(ctx context.Context, o Options) error {
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	calls := operator.Calls{Sandbox: o.Sandbox}
	s := &server{Calls: calls, sb: o.Sandbox, log: o.Log, network: o.Network, stop: stop}
	socket, err := operator.Listen(ctx, calls, o.Log, func(rpc *ttrpc.Server) { proxyv1.RegisterProxyService(rpc, s) })
	if err != nil {
		return errors.Join(err, o.Sandbox.Close(ctx))
	}
	var serving sync.WaitGroup
	serving.Go(func() { s.watchOwner(o.Owner) })
	o.Ready()

	select {
	case <-ctx.Done():
	case <-s.sb.Dead():
		// Clients that wait for a process get their answers, then the end.
		if s.endsByItself() {
			break
		}
		select {
		case <-ctx.Done():
		case <-time.After(time.Minute):
		}
	}
	err = o.Sandbox.Close(context.WithoutCancel(ctx))
	s.watchers.Wait()
	err = errors.Join(err, socket.Close(ctx))
	_ = o.Owner.Close()
	serving.Wait()
	s.logs.Wait()
	return err
}

// endsByItself tells whether no caller is expected to call Shutdown.
func (s *server) endsByItself() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.boot == nil || s.boot.GetEndWithFirstContainer()
}

// watchOwner ends the sandbox when the owning caller has gone.
func (s *server) watchOwner(owner *os.File) {
	var b [1]byte
	if n, _ := owner.Read(b[:]); n == 0 {
		s.stop(errors.New("the caller that owned the sandbox has gone"))
	}
}

// Boot implements the Proxy service.
func (s *server) Boot(ctx context.Context, r *proxyv1.BootRequest) (*proxyv1.BootResponse, error) {
	ctx, done, err := s.sb.Begin(ctx, 0)
	if err != nil {
		return nil, operator.Refuse(err)
	}
	defer done()
	s.mu.Lock()
	again := s.boot != nil
	if !again {
		s.boot = r
	}
	s.mu.Unlock()
	if again {
		return nil, status.Error(codes.FailedPrecondition, "the sandbox has been booted already")
	}
	resp := &proxyv1.BootResponse{}
	netns := r.GetNetns()
	if err := s.ownDirs(r.GetOwnedDirs()); err != nil {
		return nil, operator.Refuse(err)
	}
	if r.GetCni() != nil {
		ctx, end := timeline.Begin(s.sb.Traced(ctx), "CNI network")
		res, err := s.network(ctx, s.sb, r.GetCni())
		end()
		if err != nil {
			return nil, operator.Refuse(err)
		}
		netns, resp.Addresses, resp.Nameservers, resp.Search = res.NetNS, res.Addresses, res.Nameservers, res.Search
	}
	var res specs.LinuxResources
	if len(r.GetResources()) > 0 {
		if err := json.Unmarshal(r.GetResources(), &res); err != nil {
			return nil, status.Errorf(codes.InvalidArgument, "resources of the sandbox: %v", err)
		}
	}
	if err := s.sb.Boot(ctx, sandbox.BootOptions{
		Hostname: r.GetHostname(), NetNS: netns, LateNetwork: r.GetLateNetwork(), Resources: &res, Sysctls: r.GetSysctls(),
		ShmBytes: r.GetShmBytes(), CgroupParent: r.GetCgroupParent(),
	}); err != nil {
		return nil, operator.Refuse(err)
	}
	d := s.sb.Info()
	resp.VmmPid, resp.Accel, resp.KernelRelease = uint32(d.VMMPID), d.Accel, d.Kernel
	return resp, nil
}

// Create implements the Proxy service.
func (s *server) Create(ctx context.Context, r *proxyv1.CreateRequest) (*proxyv1.CreateResponse, error) {
	// Serve must not look for watchers and logs while they are still to come.
	ctx, done, err := s.sb.Begin(ctx, 0)
	if err != nil {
		return nil, operator.Refuse(err)
	}
	defer done()
	o := sandbox.ContainerOptions{
		ID: r.GetId(), Bundle: r.GetBundle(),
		Stdio: sandbox.Stdio{Stdin: r.GetStdin(), Stdout: r.GetStdout(), Stderr: r.GetStderr()},
		UID:   r.GetUid(), NoHooks: r.GetOwnHooks(),
	}
	if r.GetOwnHooks() { // an engine's, which names namespaces by what it was told
		o.PIDs = map[int]string{}
		for pid, id := range r.GetPids() {
			o.PIDs[int(pid)] = id
		}
	}
	for _, m := range r.GetRootfs() {
		o.Rootfs = append(o.Rootfs, sandbox.RootfsMount{Type: m.GetType(), Source: m.GetSource(), Options: m.GetOptions()})
	}
	c, err := s.sb.Create(ctx, o)
	if err != nil {
		return nil, operator.Refuse(err)
	}
	s.mu.Lock()
	follow := !s.followed && s.boot.GetEndWithFirstContainer()
	s.followed = s.followed || follow
	s.mu.Unlock()
	logged := &sync.WaitGroup{}
	if r.GetLogPath() != "" {
		if err := s.writeLog(ctx, c, r.GetLogPath(), logged); err != nil {
			return nil, operator.Refuse(errors.Join(err, c.Delete(context.WithoutCancel(ctx))))
		}
	}
	s.watchers.Go(func() { s.follow(c, r.GetExitPath(), logged, follow) })
	return &proxyv1.CreateResponse{}, nil
}

// follow waits for the end of a container, writes it down, and ends the
// sandbox where that was asked for. logged is done when its output is in the log.
func (s *server) follow(c *sandbox.Container, exitPath string, logged *sync.WaitGroup, last bool) {
	<-c.Init().Done()
	if exitPath != "" {
		if err := WriteExit(exitPath, c.Init().Exit()); err != nil {
			s.log.Error("exit is not written", "container", c.ID(), "error", err)
		}
	}
	if !last {
		return
	}
	drained := make(chan struct{})
	s.logs.Go(func() { logged.Wait(); close(drained) })
	select {
	case <-drained:
	case <-time.After(drainTimeout):
		s.log.Warn("output of the container did not end in time", "container", c.ID())
	}
	s.stop(errShutdown)
}

// WriteExit writes how a container ended to path, in one step.
func WriteExit(path string, e report.Exit) error {
	b, err := json.Marshal(e)
	if err != nil {
		return fmt.Errorf("encode exit: %w", err)
	}
	if err := os.WriteFile(path+".tmp", b, 0o600); err != nil {
		return fmt.Errorf("write exit: %w", err)
	}
	if err := os.Rename(path+".tmp", path); err != nil {
		return fmt.Errorf("write exit: %w", err)
	}
	return nil
}

// Pause implements the Proxy service.
func (s *server) Pause(ctx context.Context, r *proxyv1.PauseRequest) (*proxyv1.PauseResponse, error) {
	c, err := s.sb.Container(r.GetContainer())
	if err != nil {
		return nil, operator.Refuse(err)
	}
	return &proxyv1.PauseResponse{}, operator.Refuse(c.Pause(ctx))
}

// Resume implements the Proxy service.
func (s *server) Resume(ctx context.Context, r *proxyv1.ResumeRequest) (*proxyv1.ResumeResponse, error) {
	c, err := s.sb.Container(r.GetContainer())
	if err != nil {
		return nil, operator.Refuse(err)
	}
	return &proxyv1.ResumeResponse{}, operator.Refuse(c.Resume(ctx))
}

// Update implements the Proxy service.
func (s *server) Update(ctx context.Context, r *proxyv1.UpdateRequest) (*proxyv1.UpdateResponse, error) {
	c, err := s.sb.Container(r.GetContainer())
	if err != nil {
		return nil, operator.Refuse(err)
	}
	var res specs.LinuxResources
	if err := json.Unmarshal(r.GetResources(), &res); err != nil {
		return nil, status.Errorf(codes.InvalidArgument, "resources for container %q: %v", r.GetContainer(), err)
	}
	return &proxyv1.UpdateResponse{}, operator.Refuse(c.Update(ctx, &res))
}

// Shutdown implements the Proxy service.
func (s *server) Shutdown(ctx context.Context, _ *proxyv1.ShutdownRequest) (*proxyv1.ShutdownResponse, error) {
	err := s.sb.Close(ctx)
	s.stop(errShutdown)
	return &proxyv1.ShutdownResponse{}, operator.Refuse(err)
}
