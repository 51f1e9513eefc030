package guest

import (
	"context"
	"fmt"
	"time"

	agentv1 "github.com/seed-efd44b36/kata/api/agent/v1"
)

// betweenEvents is the least time between two events of a guest that are told: it
// may claim any number.
const betweenEvents = 200 * time.Millisecond

// OutOfMemory calls f with each container of which the guest says that its kernel
// has killed a process of it for want of memory, until the context ends.
func (g *Guest) OutOfMemory(ctx context.Context, f func(container string)) error {
	for {
		resp, err := g.NextEvent(ctx, &agentv1.NextEventRequest{})
		if err != nil {
			return fmt.Errorf("events of the guest: %w", Error(err, false))
		}
		if resp.GetKind() == agentv1.NextEventResponse_OOM {
			f(resp.GetContainer())
		}
		select {
		case <-time.After(betweenEvents):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
