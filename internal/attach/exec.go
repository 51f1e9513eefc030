package attach

import (
	"context"
	"encoding/json"
	"fmt"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	proxyv1 "github.com/seed-efd44b36/kata/api/proxy/v1"
	"github.com/seed-efd44b36/kata/internal/proxy"
)

// Prepare makes the session's exec in its container. Without Stdout the process
// has no streams.
func (s *Session) Prepare(ctx context.Context, p *specs.Process) error {
	body, err := json.Marshal(p)
	if err != nil {
		return fmt.Errorf("encode process: %w", err)
	}
	_, err = s.Client.Exec(ctx, &proxyv1.ExecRequest{
		Container: s.Container, Exec: s.Exec, Process: body,
		Stdin: s.Stdin != nil, Stdout: s.Stdout != nil, Stderr: s.Stderr != nil && !s.TTY,
	})
	return proxy.Explain(err)
}

// Start runs the session's process.
func (s *Session) Start(ctx context.Context) error {
	_, err := s.Client.Start(ctx, &proxyv1.StartRequest{Container: s.Container, Exec: s.Exec})
	return proxy.Explain(err)
}

// RunExec runs a further process in the container to its end, and removes it.
// started is called when it runs: from then on it gets the signals.
func (s *Session) RunExec(ctx context.Context, p *specs.Process, started func()) (*proxyv1.WaitResponse, error) {
	if err := s.Prepare(ctx, p); err != nil {
		return nil, err
	}
	err := s.Open(ctx)
	if err == nil {
		defer s.Close()
		err = s.Start(ctx)
	}
	if err != nil {
		_ = s.remove(ctx) // of what has not become a process
		return nil, err
	}
	started()
	ctx = context.WithoutCancel(ctx)
	resp, err := s.Run(ctx)
	if err != nil {
		return nil, err
	}
	return resp, s.remove(ctx)
}

func (s *Session) remove(ctx context.Context) error {
	_, err := s.Client.Delete(context.WithoutCancel(ctx), &proxyv1.DeleteRequest{Container: s.Container, Exec: s.Exec})
	return proxy.Explain(err)
}
