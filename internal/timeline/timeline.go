// Package timeline tells how long the steps of a start take. It is always on: a
// step costs two looks at the clock and a place in a slice.
//
// What is being started is carried by the context, so that each part can name its
// own steps (Begin, Step) without knowing who reads them; where a context carries
// nothing, nothing is recorded. Steps nest as the contexts do.
//
// A start goes through several programs. Each begins with Program, and gives what
// it has recorded to the next by Environ.
package timeline

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"
)

// maxSteps bounds the steps of one start.
const maxSteps = 256

// Start is the time line of one start. It is safe for concurrent use, and ready
// as its zero value.
type Start struct {
	mu    sync.Mutex
	steps []step // guarded by mu; a step comes after the one that it is a part of
	top   int    // guarded by mu: 1 + the step that all others are parts of, 0 for none
}

// step is a part of a start.
type step struct {
	name   string
	parent int // -1 for none
	start  time.Time
	end    time.Time // zero while it lasts
	whole  bool      // it lasts as long as its parts: end means nothing
	guest  bool
}

// Phase is a step as others see it.
type Phase struct {
	Name  string
	Start time.Time
	// Dur is 0 for what happens at one moment.
	Dur time.Duration
	// Depth is how many phases this one is a part of.
	Depth int
	// Open tells that it has not ended: Dur is how long it has lasted.
	Open bool
	// Guest tells that the times are the guest's word.
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
	s.mu.Lock()
	defer s.mu.Unlock()
	return context.WithValue(ctx, placeKey{}, place{start: s, step: s.top - 1})
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

// Mark records that something happens now.
func Mark(ctx context.Context, name string) {
	if at, ok := ctx.Value(placeKey{}).(place); ok {
		now := time.Now()
		at.start.add(step{name: name, parent: at.step, start: now, end: now})
	}
}

// Told records a step that the guest tells of, as a part of that of the context:
// what would lie before that, after it or in the future is cut off. The context
// that it returns is for what the guest tells of its parts.
func Told(ctx context.Context, name string, start, end time.Time) context.Context {
	at, ok := ctx.Value(placeKey{}).(place)
	if !ok || at.step < 0 {
		return ctx
	}
	from, to := at.start.within(at.step)
	if start.Before(from) {
		start = from
	}
	if end.After(to) {
		end = to
	}
	if !end.After(start) {
		return ctx
	}
	n := at.start.add(step{name: name, parent: at.step, start: start, end: end, guest: true})
	if n < 0 {
		return ctx
	}
	return context.WithValue(ctx, placeKey{}, place{start: at.start, step: n})
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

// within is when a step began, and when it ended, or now.
func (s *Start) within(n int) (from, to time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	from, to = s.steps[n].start, s.steps[n].end
	if to.IsZero() {
		to = time.Now()
	}
	return from, to
}

// Phases are the steps so far in the order of time, each before its parts.
func (s *Start) Phases() []Phase {
	now := time.Now()
	steps := s.copied()
	parts := map[int][]int{}
	open := make([]bool, len(steps))
	for n, st := range slices.Backward(steps) { // parts come after what they are of
		parts[st.parent] = append(parts[st.parent], n)
		if !st.whole {
			open[n] = st.end.IsZero()
		}
		if open[n] {
			steps[n].end = now
		}
		if p := st.parent; p >= 0 && steps[p].whole {
			open[p] = open[p] || open[n]
			if steps[n].end.After(steps[p].end) {
				steps[p].end = steps[n].end
			}
		}
	}
	var base time.Time
	if len(steps) > 0 {
		base = steps[0].start
	}
	phases := make([]Phase, 0, len(steps))
	var show func(of, depth int)
	show = func(of, depth int) {
		slices.SortFunc(parts[of], func(a, b int) int {
			return cmp.Or(steps[a].start.Compare(steps[b].start), cmp.Compare(a, b))
		})
		for _, n := range parts[of] {
			st := steps[n]
			phases = append(phases, Phase{
				// The clock may have been set meanwhile: what counts is the time between.
				Name: st.name, Start: base.Add(st.start.Sub(base)).Round(0), Dur: max(0, st.end.Sub(st.start)), Depth: depth, Open: open[n], Guest: st.guest,
			})
			show(n, depth+1)
		}
	}
	show(-1, 0)
	return phases
}

// LogValue implements slog.LogValuer: the steps, and how many milliseconds they took.
func (s *Start) LogValue() slog.Value {
	var (
		path  []string
		steps []string
	)
	for _, p := range s.Phases() {
		path = append(path[:p.Depth], p.Name)
		steps = append(steps, fmt.Sprintf("%s: %.1f", strings.Join(path, "/"), p.Dur.Seconds()*1e3))
	}
	return slog.AnyValue(steps)
}

func (s *Start) copied() []step {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.steps)
}
