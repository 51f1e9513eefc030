package sandbox

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

// trace collects phases; it is safe for concurrent use.
type trace struct {
	mu     sync.Mutex
	phases []Phase // guarded by mu
}

// phase starts a phase; the returned function ends it.
func (t *trace) phase(name string) (end func()) {
	start := time.Now()
	return func() { t.add(name, start, time.Since(start)) }
}

func (t *trace) add(name string, start time.Time, dur time.Duration) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.phases = append(t.phases, Phase{Name: name, Start: start, Dur: dur})
}

func (t *trace) list() []Phase {
	t.mu.Lock()
	defer t.mu.Unlock()
	return append([]Phase(nil), t.phases...)
}

// SortPhases sorts by the time at which a phase began, the longer first.
func SortPhases(ps []Phase) {
	slices.SortStableFunc(ps, func(a, b Phase) int {
		if c := a.Start.Compare(b.Start); c != 0 {
			return c
		}
		return cmp.Compare(b.Dur, a.Dur)
	})
}
