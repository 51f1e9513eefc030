// Package timeline tells how long the steps of a start take. It is always on: a
// step costs two looks at the clock and a place in a slice.
//
// What is being started is carried by the context, so that each part can name its
// own steps (Begin, Step) without knowing who reads them; where a context carries
// nothing, nothing is recorded. Steps nest as the contexts do.
//
// A Recorder belongs to a sandbox, which has many starts in its life: its own, of
// further containers, of execs. It keeps the first and the last of them.
package timeline

import (
	"cmp"
	"context"
	"slices"
	"sync"
	"time"
)

// maxSteps bounds the steps of one start.
const maxSteps = 256

// Start is the time line of one start. It is safe for concurrent use, and ready
// as its zero value.
type Start struct {
	mu    sync.Mutex
	steps []step // guarded by mu
}

// step is a part of a start.
type step struct {
	name   string
	parent int // -1 for none
	start  time.Time
	end    time.Time // zero while it lasts
	guest  bool
}

// Phase is a step as others see it.
type Phase struct {
	Name  string
	Start time.Time
	Dur   time.Duration
	// Depth is how many phases this one is a part of.
	Depth int
	// Open tells that it has not ended: Dur is how long it has lasted.
	Open bool
	// Guest tells that the name or the times are the guest's word.
	Guest bool
}

// place is what a context carries: a start, and the step that is being done.
type place struct {
	start *Start
	step  int
}

// placeKey is the key of a place in a context.
type placeKey struct{}

// In returns a context for what is done for the start.
func (s *Start) In(ctx context.Context) context.Context {
	return context.WithValue(ctx, placeKey{}, place{start: s, step: -1})
}

// Begin begins a step of what the context is for; end ends it. What is begun in
// the context that it returns is a part of that step.
func Begin(ctx context.Context, name string) (_ context.Context, end func()) {
	at, ok := ctx.Value(placeKey{}).(place)
	if !ok {
		return ctx, func() {}
	}
	n := at.start.add(step{name: name, parent: at.step, start: time.Now()})
	if n < 0 {
		return ctx, func() {}
	}
	return context.WithValue(ctx, placeKey{}, place{start: at.start, step: n}), func() { at.start.end(n) }
}

// Step is Begin for a step without parts.
func Step(ctx context.Context, name string) (end func()) {
	_, end = Begin(ctx, name)
	return end
}

// add adds a step and returns its number, or -1 if there are too many.
func (s *Start) add(st step) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.steps) == maxSteps {
		return -1
	}
	s.steps = append(s.steps, st)
	return len(s.steps) - 1
}

func (s *Start) end(n int) {
	now := time.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.steps[n].end = now
}

// Phases are the steps so far in the order of time, each before its parts.
func (s *Start) Phases() []Phase {
	now := time.Now()
	s.mu.Lock()
	steps := slices.Clone(s.steps)
	s.mu.Unlock()
	parts := map[int][]int{}
	for n, st := range steps {
		parts[st.parent] = append(parts[st.parent], n)
	}
	phases := make([]Phase, 0, len(steps))
	var add func(parent, depth int)
	add = func(parent, depth int) {
		ns := parts[parent]
		slices.SortStableFunc(ns, func(a, b int) int {
			return cmp.Or(steps[a].start.Compare(steps[b].start), cmp.Compare(a, b))
		})
		for _, n := range ns {
			p := Phase{Name: steps[n].name, Start: steps[n].start, Depth: depth, Open: steps[n].end.IsZero(), Guest: steps[n].guest}
			if p.Dur = steps[n].end.Sub(p.Start); p.Open {
				p.Dur = now.Sub(p.Start)
			}
			phases = append(phases, p)
			add(n, depth+1)
		}
	}
	add(-1, 0)
	return phases
}
