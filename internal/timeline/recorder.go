package timeline

import (
	"cmp"
	"sync"
)

// What is kept of the starts that a sandbox sees after its own. A pod may run a
// probe every few seconds, for years.
const (
	maxContainers = 32
	maxExecs      = 16
)

// Recorder has the time lines of a sandbox: of its own start, and of the last ones
// of containers and execs. It is safe for concurrent use.
type Recorder struct {
	sandbox string
	own     *Start

	mu         sync.Mutex
	containers []*entry // guarded by mu, oldest first
	execs      []*entry // guarded by mu, oldest first
	forgotten  int      // guarded by mu
}

type entry struct {
	container, exec string
	start           *Start
}

// Line is the time line of a start, in words.
type Line struct {
	// Container and Exec are what was started; both empty: the sandbox, with the
	// container that it is for. Exec is empty for a container's first process.
	Container, Exec string
	// Phases are in the order of time, each before its parts.
	Phases []Phase
}

// History is what a Recorder has.
type History struct {
	// Lines are those of the sandbox, of containers, and of execs.
	Lines []Line
	// Forgotten is how many older ones are not kept.
	Forgotten int
}

// NewRecorder returns a recorder for the sandbox of that id. Its own start is the one
// given; nil: it begins now.
func NewRecorder(sandbox string, own *Start) *Recorder {
	return &Recorder{sandbox: sandbox, own: cmp.Or(own, &Start{})}
}

// Own is the sandbox's own start.
func (r *Recorder) Own() *Start { return r.own }

// Start begins the time line of a container, or of an exec in one. That of the
// container that the sandbox is made for, which has its id, is the sandbox's.
func (r *Recorder) Start(container, exec string) *Start {
	if container == r.sandbox && exec == "" {
		return r.own
	}
	e := &entry{container: container, exec: exec, start: &Start{}}
	r.mu.Lock()
	defer r.mu.Unlock()
	kept, most := &r.containers, maxContainers
	if exec != "" {
		kept, most = &r.execs, maxExecs
	}
	if len(*kept) == most {
		*kept = append((*kept)[:0], (*kept)[1:]...)
		r.forgotten++
	}
	*kept = append(*kept, e)
	return e.start
}

// History is what there is now.
func (r *Recorder) History() History {
	r.mu.Lock()
	entries := append(append([]*entry{{start: r.own}}, r.containers...), r.execs...)
	h := History{Forgotten: r.forgotten}
	r.mu.Unlock()
	for _, e := range entries {
		if ps := e.start.Phases(); len(ps) > 0 {
			h.Lines = append(h.Lines, Line{Container: e.container, Exec: e.exec, Phases: ps})
		}
	}
	return h
}
