// Package timeline records how long the steps of a start take.
package timeline

import (
	"cmp"
	"slices"
	"sync"
	"time"
)

// Phase is one step of a start, for the time line that --trace prints.
type Phase struct {
	Name  string
	Start time.Time
	Dur   time.Duration
}

// Recorder collects phases. It is safe for concurrent use; its zero value is
// ready.
type Recorder struct {
	mu     sync.Mutex
	phases []Phase // guarded by mu
}

// Begin starts a phase; the returned function ends it.
func (t *Recorder) Begin(name string) (end func()) {
	start := time.Now()
	return func() { t.add(name, start, time.Since(start)) }
}

func (t *Recorder) add(name string, start time.Time, dur time.Duration) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.phases = append(t.phases, Phase{Name: name, Start: start, Dur: dur})
}

// Phases are those that have ended, in the order of their ends.
func (t *Recorder) Phases() []Phase {
	t.mu.Lock()
	defer t.mu.Unlock()
	return append([]Phase(nil), t.phases...)
}

// Sort sorts by the time at which a phase began, the longer first.
func Sort(ps []Phase) {
	slices.SortStableFunc(ps, func(a, b Phase) int {
		if c := a.Start.Compare(b.Start); c != 0 {
			return c
		}
		return cmp.Compare(b.Dur, a.Dur)
	})
}
