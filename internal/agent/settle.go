package agent

import (
	"context"
	"errors"
	"fmt"
	"runtime"

	agentv1 "github.com/seed-efd44b36/kata/api/agent/v1"
	"github.com/seed-efd44b36/kata/internal/agent/rehearsal"
)

// Settle implements the service.
func (a *Agent) Settle(ctx context.Context, _ *agentv1.SettleRequest) (*agentv1.SettleResponse, error) {
	if err := a.endRehearsal(ctx); err != nil {
		return nil, fail(err)
	}
	a.mu.Lock()
	a.template = true
	a.mu.Unlock()
	if err := a.settle(ctx); err != nil {
		return nil, fail(fmt.Errorf("settle: %w", err))
	}
	a.log.Info("the guest is settled")
	return &agentv1.SettleResponse{}, nil
}

// endRehearsal undoes the sandbox that was one, or fails if it was none.
func (a *Agent) endRehearsal(ctx context.Context) error {
	a.mu.Lock()
	taken, rehearsal, containers := a.sandbox, a.rehearsal, len(a.containers)
	a.mu.Unlock()
	switch {
	case taken == "":
		return nil
	case !rehearsal:
		return fmt.Errorf("this guest is sandbox %q already: %w", taken, errState)
	case containers > 0:
		return fmt.Errorf("the rehearsal has %d containers still: %w", containers, errState)
	}
	if err := a.pod.Undo(ctx); err != nil {
		return fmt.Errorf("end the rehearsal: %w", err)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.sandbox, a.rehearsal = "", false
	return nil
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
	err := errors.Join(a.pod.Prepare(ctx), rehearsal.Messages(), a.rehearse(ctx),
		a.jailer.Rehearse(ctx), a.groups.Prepare())
	if err != nil {
		return err
	}
	// What is free of it has been touched, and so is there for every sandbox.
	runtime.GC()
	return nil
}

// rehearse makes a container, runs it and removes it.
func (a *Agent) rehearse(ctx context.Context) error {
	r, err := rehearsal.Container()
	if err != nil {
		return err
	}
	c, err := a.create(ctx, r)
	if err != nil {
		return err
	}
	c.init.stdio.abandon() // no host will open the streams
	if err = c.jail.Start(ctx); err == nil {
		select {
		case <-c.init.Done():
			if code := c.init.Child().ExitCode(); code != 0 {
				err = fmt.Errorf("the rehearsal ended with exit code %d", code)
			}
		case <-ctx.Done():
			err = ctx.Err()
		}
	}
	return errors.Join(err, a.undo(ctx, c))
}
