package guest

import (
	"context"
	"time"

	agentv1 "github.com/seed-efd44b36/kata/api/agent/v1"
	"github.com/seed-efd44b36/kata/internal/printable"
	"github.com/seed-efd44b36/kata/internal/timeline"
)

// Bounds of what a guest may tell of its steps.
const (
	maxBoot     = 1 << 40 // ms that its kernel has run, some 30 years
	maxSteps    = 24      // of a call
	maxStepName = 40
)

// tellBoot tells what the guest says of its own boot. That of a guest which was
// restored was before.
func tellBoot(ctx context.Context, d *agentv1.DetailsResponse) {
	if d.GetBootToNowMs() > maxBoot {
		return
	}
	born := time.Now().Add(-milliseconds(d.GetBootToNowMs()))
	agent, ready := born.Add(milliseconds(d.GetBootToAgentMs())), born.Add(milliseconds(d.GetBootToReadyMs()))
	timeline.Told(ctx, "kernel", born, agent)
	timeline.Told(ctx, "agent", agent, ready)
}

func milliseconds(n uint64) time.Duration { return time.Duration(min(n, maxBoot)) * time.Millisecond }

// CreateContainer calls the agent.
func (g *Guest) CreateContainer(ctx context.Context, r *agentv1.CreateContainerRequest) (*agentv1.CreateContainerResponse, error) {
	return traced(ctx, "create in guest", r, g.AgentService.CreateContainer)
}

// CreateExec calls the agent.
func (g *Guest) CreateExec(ctx context.Context, r *agentv1.CreateExecRequest) (*agentv1.CreateExecResponse, error) {
	return traced(ctx, "create in guest", r, g.AgentService.CreateExec)
}

// StartProcess calls the agent.
func (g *Guest) StartProcess(ctx context.Context, r *agentv1.StartProcessRequest) (*agentv1.StartProcessResponse, error) {
	return traced(ctx, "start in guest", r, g.AgentService.StartProcess)
}

// traced is a call to the agent as a step, of which the guest tells the parts.
func traced[Request any, Response interface{ GetSteps() []*agentv1.Step }](
	ctx context.Context, name string, r Request, call func(context.Context, Request) (Response, error),
) (Response, error) {
	step, end := timeline.Begin(ctx, name)
	defer end()
	began := time.Now()
	resp, err := call(ctx, r)
	if err == nil {
		tellSteps(step, began, time.Since(began), resp.GetSteps())
	}
	return resp, err
}

// tellSteps tells of the steps of a call that took so long. When in that time the
// guest began nobody knows: as much of the rest is taken to be before as after.
func tellSteps(ctx context.Context, began time.Time, took time.Duration, steps []*agentv1.Step) {
	if len(steps) == 0 {
		return
	}
	began = began.Add(max(0, took-microseconds(steps[0].GetDurationUs())) / 2)
	within := []context.Context{ctx}
	for _, st := range steps[:min(len(steps), maxSteps)] {
		depth := min(int(st.GetDepth()), len(within)-1)
		start := began.Add(microseconds(st.GetStartUs()))
		part := timeline.Told(within[depth], printable.Text(st.GetName(), maxStepName), start, start.Add(microseconds(st.GetDurationUs())))
		within = append(within[:depth+1], part)
	}
}

// microseconds is a time that a guest tells, an hour at most.
func microseconds(n uint64) time.Duration {
	return time.Duration(min(n, uint64(time.Hour.Microseconds()))) * time.Microsecond
}
