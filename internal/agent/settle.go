package agent

import (
	"context"
	"errors"
	"fmt"
	"runtime"

	agentv1 "github.com/seed-efd44b36/kata/api/agent/v1"
	"github.com/seed-efd44b36/kata/internal/agent/disk"
	"github.com/seed-efd44b36/kata/internal/agent/module"
)

// Settle implements the service.
func (a *Agent) Settle(ctx context.Context, _ *agentv1.SettleRequest) (*agentv1.SettleResponse, error) {
	a.mu.Lock()
	taken := a.sandbox
	a.template = a.template || taken == ""
	a.mu.Unlock()
	if taken != "" {
		return nil, fail(fmt.Errorf("this guest is sandbox %q already: %w", taken, errState))
	}
	if err := a.settle(ctx); err != nil {
		return nil, fail(fmt.Errorf("settle: %w", err))
	}
	a.log.Info("the guest is settled")
	return &agentv1.SettleResponse{}, nil
}

// settle brings about that all which a sandbox may need early is there.
func (a *Agent) settle(ctx context.Context) error {
	select {
	case <-a.prepared:
	case <-ctx.Done():
		return ctx.Err()
	}
	if a.prepareErr != nil {
		return a.prepareErr
	}
	err := errors.Join(a.modules.LoadPhase(module.PhaseNet), disk.Load(a.modules), a.jailer.Ready(), a.jailer.Fill(ctx), a.groups.Prepare())
	if err != nil {
		return err
	}
	// What is free of it has been touched, and so is there for every sandbox.
	runtime.GC()
	return nil
}
