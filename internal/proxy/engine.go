package proxy

import (
	"context"
	"errors"
	"time"

	proxyv1 "github.com/seed-efd44b36/kata/api/proxy/v1"
	"github.com/seed-efd44b36/kata/internal/operator"
	"github.com/seed-efd44b36/kata/internal/sandbox"
	"golang.org/x/sys/unix"
)

// undoTimeout is what a process gets to end whose caller has gone.
const undoTimeout = 20 * time.Second

// Wait implements the Proxy service. A process that its caller stands for does not
// outlive the caller.
func (s *server) Wait(ctx context.Context, r *proxyv1.WaitRequest) (*proxyv1.WaitResponse, error) {
	resp, err := s.Calls.Wait(ctx, r)
	if err == nil || ctx.Err() == nil || !r.GetHold() {
		return resp, err
	}
	s.log.Info("the process's kata-shim has gone", "container", r.GetContainer(), "exec", r.GetExec())
	if uerr := s.undo(context.WithoutCancel(ctx), r.GetContainer(), r.GetExec()); uerr != nil {
		s.log.Warn("process of a kata-shim that has gone", "container", r.GetContainer(), "exec", r.GetExec(), "error", uerr)
	}
	return resp, err
}

// undo kills a process, and removes it if it is an exec: a container is the
// engine's to delete.
func (s *server) undo(ctx context.Context, container, exec string) error {
	ctx, cancel := context.WithTimeout(ctx, undoTimeout)
	defer cancel()
	c, err := s.sb.Container(container)
	if errors.Is(err, sandbox.ErrNotFound) {
		return nil // it has been deleted
	}
	if err != nil {
		return err
	}
	p, err := c.Process(exec)
	if errors.Is(err, sandbox.ErrNotFound) {
		return nil
	}
	if err == nil {
		err = p.Signal(ctx, uint32(unix.SIGKILL), false)
	}
	if err != nil || exec == "" {
		return err
	}
	select {
	case <-p.Done():
	case <-ctx.Done():
		return ctx.Err()
	}
	return c.DeleteExec(ctx, exec)
}

// Delete implements the Proxy service. Of a sandbox that is to end with its last
// container, one that is not there (any more, or yet) may be the last.
func (s *server) Delete(ctx context.Context, r *proxyv1.DeleteRequest) (*proxyv1.DeleteResponse, error) {
	s.mu.Lock()
	ends := r.GetExec() == "" && (s.boot == nil || s.boot.GetEndWithLastContainer())
	s.mu.Unlock()
	if !ends {
		return s.Calls.Delete(ctx, r)
	}
	c, err := s.sb.Container(r.GetContainer())
	if err == nil {
		err = c.Delete(ctx)
	}
	if err != nil && !errors.Is(err, sandbox.ErrNotFound) {
		return nil, operator.Refuse(err)
	}
	resp := &proxyv1.DeleteResponse{Ending: len(s.sb.Info().Containers) == 0}
	if resp.GetEnding() {
		s.stop(errShutdown)
	}
	return resp, nil
}
