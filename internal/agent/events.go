package agent

import (
	"context"
	"sync"

	agentv1 "github.com/seed-efd44b36/kata/api/agent/v1"
)

// maxEvents is how many events wait for a host that does not ask; older ones
// are dropped.
const maxEvents = 128

// events is a queue of what the host will want to know.
type events struct {
	wake chan struct{} // has one element when list may have some

	mu   sync.Mutex
	list []*agentv1.NextEventResponse // guarded by mu
}

func newEvents() *events { return &events{wake: make(chan struct{}, 1)} }

func (e *events) notify() {
	select {
	case e.wake <- struct{}{}:
	default:
	}
}

func (e *events) add(ev *agentv1.NextEventResponse) {
	e.mu.Lock()
	if len(e.list) == maxEvents {
		e.list = e.list[1:]
	}
	e.list = append(e.list, ev)
	e.mu.Unlock()
	e.notify()
}

// next waits for an event and takes it.
func (e *events) next(ctx context.Context) (*agentv1.NextEventResponse, error) {
	for {
		e.mu.Lock()
		if len(e.list) > 0 {
			ev := e.list[0]
			e.list = e.list[1:]
			if len(e.list) > 0 {
				e.notify() // another caller may wait
			}
			e.mu.Unlock()
			return ev, nil
		}
		e.mu.Unlock()
		select {
		case <-e.wake:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// NextEvent implements the service.
func (a *Agent) NextEvent(ctx context.Context, _ *agentv1.NextEventRequest) (*agentv1.NextEventResponse, error) {
	ev, err := a.events.next(ctx)
	if err != nil {
		return nil, fail(err)
	}
	return ev, nil
}
