package agent

import (
	"context"

	agentv1 "github.com/seed-efd44b36/kata/api/agent/v1"
	"github.com/seed-efd44b36/kata/internal/timeline"
)

// steps returns a context in which the steps of a call are timed, and what the host
// is told of them at its end.
func steps(ctx context.Context) (_ context.Context, tell func() []*agentv1.Step) {
	line := &timeline.Start{}
	ctx, end := timeline.Begin(line.In(ctx), "agent")
	return ctx, func() []*agentv1.Step {
		end()
		phases := line.Phases()
		told := make([]*agentv1.Step, 0, len(phases))
		for _, p := range phases {
			told = append(told, &agentv1.Step{
				Name: p.Name, Depth: uint32(p.Depth),
				StartUs: uint64(p.Start.Sub(phases[0].Start).Microseconds()), DurationUs: uint64(p.Dur.Microseconds()),
			})
		}
		return told
	}
}
