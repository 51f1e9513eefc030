package shim

import (
	"context"
	"errors"
	"fmt"
	"log/slog"

	agentv1 "github.com/seed-efd44b36/kata/api/agent/v1"
	"github.com/seed-efd44b36/kata/internal/operator"
	"github.com/seed-efd44b36/kata/internal/owner"
	"github.com/seed-efd44b36/kata/internal/sandbox"
	"github.com/seed-efd44b36/kata/internal/shim/forward"
	"github.com/seed-efd44b36/kata/internal/timeline"
	"google.golang.org/protobuf/types/known/anypb"
)

// machine is the service as the one that has the sandbox, for a controller.
type machine struct{ s *service }

// Boot implements controller.Shim.
func (m machine) Boot(ctx context.Context, o sandbox.BootOptions) (*sandbox.Sandbox, error) {
	return m.s.boot(ctx, o)
}

// Close implements controller.Shim.
func (m machine) Close(ctx context.Context) error { return m.s.close(ctx) }

// Stop implements controller.Shim.
func (m machine) Stop() { m.s.stop() }

// Metrics implements controller.Shim.
func (m machine) Metrics(st *agentv1.StatsContainerResponse) (*anypb.Any, error) {
	return packMetrics(st)
}

// beginBoot begins the boot of the sandbox, which has only one; done ends it.
// The context ends when the shim is to end, which then waits for done.
func (s *service) beginBoot(ctx context.Context) (_ context.Context, done func(), err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.ending:
		return nil, nil, fmt.Errorf("start sandbox %s: %w", s.id, sandbox.ErrDead)
	case s.sb != nil:
		return nil, nil, fmt.Errorf("start sandbox %s: it has been started: %w", s.id, sandbox.ErrExists)
	}
	ctx, cancel := context.WithCancel(ctx)
	s.endBoot = cancel
	s.boots.Add(1)
	return ctx, func() {
		cancel()
		s.boots.Done()
	}, nil
}

// boot makes the sandbox.
func (s *service) boot(ctx context.Context, o sandbox.BootOptions) (*sandbox.Sandbox, error) {
	ctx, done, err := s.beginBoot(ctx)
	if err != nil {
		return nil, err
	}
	defer done()
	sb, log, err := s.open(ctx)
	if err != nil {
		return nil, err
	}
	if err := serveSandbox(ctx, sb, log, o); err != nil {
		return nil, errors.Join(err, sb.Close(context.WithoutCancel(ctx)))
	}
	s.mu.Lock()
	s.sb, s.log, s.vmm = sb, log, uint32(sb.Info().VMMPID)
	s.mu.Unlock()
	s.watchers.Go(func() { // ends with the sandbox
		err := sb.OutOfMemory(context.Background(), func(id string) {
			if c, err := s.find(id); err == nil {
				c.outOfMemory()
			}
		})
		if err != nil {
			log.Warn("kills for want of memory are told late", "error", err)
		}
	})
	return sb, nil
}

// serveSandbox boots a sandbox, with all that is reached by other ways than
// containerd's services.
func serveSandbox(ctx context.Context, sb *sandbox.Sandbox, log *slog.Logger, o sandbox.BootOptions) error {
	// An engine that makes no namespace finds ours by the pid that we tell, and
	// puts interfaces there before it starts the container.
	o.LateNetwork = o.NetNS == ""
	if o.LateNetwork {
		var err error
		if o.NetNS, err = owner.NewNetNS(sb.Traced(ctx), sb); err != nil {
			return err
		}
	}
	if err := sb.Boot(ctx, o); err != nil {
		return err
	}
	defer timeline.Step(sb.Traced(ctx), "operator's socket and port-forward")()
	calls := operator.Calls{Sandbox: sb, Engine: true}
	socket, err := operator.Listen(context.WithoutCancel(ctx), calls, log, calls.Register)
	if err != nil {
		return err
	}
	sb.OnClose("socket for operators", socket.Close)
	if o.LateNetwork {
		return nil // such engines do not forward ports
	}
	ports, err := forward.Start(o.NetNS, sb.DialPort, log)
	switch {
	case errors.Is(err, errors.ErrUnsupported):
		log.Warn("port-forward does not work", "error", err)
		return nil
	case err != nil:
		return err
	}
	sb.OnClose("port-forward", func(context.Context) error { return ports.Close() })
	return nil
}

// close ends the sandbox, also one that is about to be.
func (s *service) close(ctx context.Context) error {
	s.mu.Lock()
	s.ending = true
	if s.endBoot != nil {
		s.endBoot()
	}
	s.mu.Unlock()
	s.boots.Wait()
	s.mu.Lock()
	sb := s.sb
	s.mu.Unlock()
	if sb == nil {
		return nil
	}
	return sb.Close(ctx)
}
