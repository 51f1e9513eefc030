package sandbox

import (
	"context"
	"errors"
	"fmt"
	"time"

	agentv1 "github.com/seed-efd44b36/kata/api/agent/v1"
	"github.com/seed-efd44b36/kata/internal/sandbox/guest"
)

// betweenEvents is the least time between two events of a guest that are told: it
// may claim any number.
const betweenEvents = 200 * time.Millisecond

// OutOfMemory calls f with each container in which the guest's kernel has killed a
// process for want of memory, until the sandbox dies or ctx ends. It is the
// guest's word, but for the container, which is one of the sandbox's.
func (s *Sandbox) OutOfMemory(ctx context.Context, f func(container string)) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(s.life, cancel)()
	for {
		resp, err := s.guest.NextEvent(ctx, &agentv1.NextEventRequest{})
		if err != nil {
			if err = s.orDead(guest.Error(err, false)); ctx.Err() != nil || errors.Is(err, ErrDead) {
				return nil
			}
			return fmt.Errorf("events of the guest: %w", err)
		}
		if c, err := s.Container(resp.GetContainer()); err == nil && resp.GetKind() == agentv1.NextEventResponse_OOM {
			f(c.ID())
		}
		select {
		case <-time.After(betweenEvents):
		case <-ctx.Done():
			return nil
		}
	}
}
