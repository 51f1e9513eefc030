// Package operator is the service that both owners of sandboxes, kata-proxy and
// containerd-shim-kata-v2, have on a socket in the sandbox's directory: further
// processes in its containers, their streams, the guest's console. It looks after
// no life cycle, which is for each owner's front end.
//
// Only root can enter the directory: who can connect may do everything.
package operator

import (
	"context"
	"encoding/json"
	"errors"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	agentv1 "github.com/seed-efd44b36/kata/api/agent/v1"
	proxyv1 "github.com/seed-efd44b36/kata/api/proxy/v1"
	"github.com/seed-efd44b36/kata/internal/sandbox"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
)

// Calls has the calls that any sandbox can answer. It is part of the service
// kata.proxy.v1.Proxy.
type Calls struct {
	Sandbox *sandbox.Sandbox
	// Engine tells that the containers obey an engine alone: the streams of their
	// first processes are its own.
	Engine bool
}

// Exec prepares a further process.
func (c Calls) Exec(ctx context.Context, r *proxyv1.ExecRequest) (*proxyv1.ExecResponse, error) {
	ct, err := c.Sandbox.Container(r.GetContainer())
	if err != nil {
		return nil, Refuse(err)
	}
	var p specs.Process
	if err := json.Unmarshal(r.GetProcess(), &p); err != nil {
		return nil, status.Errorf(codes.InvalidArgument, "process of exec %q: %v", r.GetExec(), err)
	}
	_, err = ct.Exec(ctx, r.GetExec(), &p, sandbox.Stdio{Stdin: r.GetStdin(), Stdout: r.GetStdout(), Stderr: r.GetStderr()})
	return &proxyv1.ExecResponse{}, Refuse(err)
}

// Start runs a process.
func (c Calls) Start(ctx context.Context, r *proxyv1.StartRequest) (*proxyv1.StartResponse, error) {
	p, err := c.process(r.GetContainer(), r.GetExec())
	if err != nil {
		return nil, Refuse(err)
	}
	pid, err := p.Start(ctx)
	if err != nil {
		return nil, Refuse(err)
	}
	return &proxyv1.StartResponse{Pid: uint32(pid)}, nil
}

// Signal sends a signal to a process.
func (c Calls) Signal(ctx context.Context, r *proxyv1.SignalRequest) (*proxyv1.SignalResponse, error) {
	p, err := c.process(r.GetContainer(), r.GetExec())
	if err != nil {
		return nil, Refuse(err)
	}
	return &proxyv1.SignalResponse{}, Refuse(p.Signal(ctx, r.GetSignal(), r.GetAll()))
}

// Wait waits for the end of a process.
func (c Calls) Wait(ctx context.Context, r *proxyv1.WaitRequest) (*proxyv1.WaitResponse, error) {
	p, err := c.process(r.GetContainer(), r.GetExec())
	if err != nil {
		return nil, Refuse(err)
	}
	select {
	case <-p.Done():
	case <-ctx.Done():
		return nil, status.FromContextError(ctx.Err()).Err()
	}
	e := p.Exit()
	return &proxyv1.WaitResponse{ExitCode: e.Code, ExitedAt: e.At.UnixNano(), OomKilled: e.OOMKilled, Reason: e.Reason}, nil
}

// Resize sets the size of a process's terminal.
func (c Calls) Resize(ctx context.Context, r *proxyv1.ResizeRequest) (*proxyv1.ResizeResponse, error) {
	p, err := c.process(r.GetContainer(), r.GetExec())
	if err != nil {
		return nil, Refuse(err)
	}
	return &proxyv1.ResizeResponse{}, Refuse(p.Resize(ctx, r.GetWidth(), r.GetHeight()))
}

// Delete removes a process that has ended, or a container.
func (c Calls) Delete(ctx context.Context, r *proxyv1.DeleteRequest) (*proxyv1.DeleteResponse, error) {
	ct, err := c.Sandbox.Container(r.GetContainer())
	if err != nil {
		return nil, Refuse(err)
	}
	if r.GetExec() != "" {
		return &proxyv1.DeleteResponse{}, Refuse(ct.DeleteExec(ctx, r.GetExec()))
	}
	return &proxyv1.DeleteResponse{}, Refuse(ct.Delete(ctx))
}

// Stats tells what a container uses.
func (c Calls) Stats(ctx context.Context, r *proxyv1.StatsRequest) (*proxyv1.StatsResponse, error) {
	ct, err := c.Sandbox.Container(r.GetContainer())
	if err != nil {
		return nil, Refuse(err)
	}
	st, err := ct.Stats(ctx)
	if err != nil {
		return nil, Refuse(err)
	}
	b, err := proto.Marshal(st)
	return &proxyv1.StatsResponse{Stats: b}, Refuse(err)
}

// Processes lists the processes of a container.
func (c Calls) Processes(ctx context.Context, r *proxyv1.ProcessesRequest) (*proxyv1.ProcessesResponse, error) {
	ct, err := c.Sandbox.Container(r.GetContainer())
	if err != nil {
		return nil, Refuse(err)
	}
	ps, err := ct.Processes(ctx)
	if err != nil {
		return nil, Refuse(err)
	}
	b, err := proto.Marshal(&agentv1.ListProcessesResponse{Processes: ps})
	return &proxyv1.ProcessesResponse{Processes: b}, Refuse(err)
}

// Console tells what came out of the guest's console.
func (c Calls) Console(_ context.Context, r *proxyv1.ConsoleRequest) (*proxyv1.ConsoleResponse, error) {
	tail, err := c.Sandbox.Console()
	if err != nil {
		return nil, Refuse(err)
	}
	over := false
	select {
	case <-c.Sandbox.Dead():
		over = true
	default:
	}
	b, next := tail.From(r.GetFrom())
	return &proxyv1.ConsoleResponse{Output: b, Next: next, Over: over}, nil
}

// Trace tells how long the steps of the starts took.
func (c Calls) Trace(context.Context, *proxyv1.TraceRequest) (*proxyv1.TraceResponse, error) {
	h := c.Sandbox.History()
	resp := &proxyv1.TraceResponse{Forgotten: uint32(h.Forgotten)}
	for _, l := range h.Lines {
		st := &proxyv1.TraceStart{Container: l.Container, Exec: l.Exec}
		for _, p := range l.Phases {
			st.Phases = append(st.Phases, &proxyv1.TracePhase{
				Name: p.Name, StartUnixNs: p.Start.UnixNano(), DurationNs: int64(p.Dur), Depth: uint32(p.Depth), Open: p.Open, Guest: p.Guest,
			})
		}
		resp.Starts = append(resp.Starts, st)
	}
	return resp, nil
}

func (c Calls) process(container, exec string) (*sandbox.Process, error) {
	ct, err := c.Sandbox.Container(container)
	if err != nil {
		return nil, err
	}
	return ct.Process(exec)
}

// Refuse maps an error to a status that the client maps back. NotFound and
// PermissionDenied are kept for commands (exit codes 127 and 126).
func Refuse(err error) error {
	if err == nil {
		return nil
	}
	code := codes.Unknown
	switch {
	case errors.Is(err, sandbox.ErrCommandNotFound):
		code = codes.NotFound
	case errors.Is(err, sandbox.ErrCommandDenied):
		code = codes.PermissionDenied
	case errors.Is(err, sandbox.ErrInvalid):
		code = codes.InvalidArgument
	case errors.Is(err, sandbox.ErrExists):
		code = codes.AlreadyExists
	case errors.Is(err, sandbox.ErrNotFound), errors.Is(err, sandbox.ErrState):
		code = codes.FailedPrecondition
	case errors.Is(err, sandbox.ErrDead):
		code = codes.Unavailable
	}
	return status.Error(code, err.Error())
}
