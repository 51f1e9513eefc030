// Package cleanup takes back what a sandbox took from the host, whichever way
// the sandbox ends.
//
// While its owner lives, a Stack undoes a start that failed half way. For the
// case that the owner is killed, every resource is written into the sandbox's
// Ledger before it is made, and GC releases what the ledgers of dead sandboxes
// name. A sandbox is alive while somebody holds the lock of its directory
// (flock).
//
// Releasing trusts the ledger's text as far as root wrote it, and nothing that
// a guest could have written: it follows no symbolic link at the end of a
// path, never leaves a file system while it removes a tree, and kills only a
// process that it has identified while holding its pidfd.
package cleanup

import (
	"context"
	"errors"
	"fmt"
	"sync"
)

// Stack holds the undo steps of an operation that is under way. The zero value
// is an empty stack. It is safe for concurrent use.
type Stack struct {
	mu    sync.Mutex
	steps []step // guarded by mu
}

type step struct {
	name string
	undo func(context.Context) error
}

// Push adds an undo step, called name in errors. Push it right after the thing
// to undo is there.
func (s *Stack) Push(name string, undo func(context.Context) error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.steps = append(s.steps, step{name, undo})
}

// Disarm forgets all steps: the operation has succeeded.
func (s *Stack) Disarm() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.steps = nil
}

// Run takes the steps off the stack and runs them, the last first. Every step
// runs, whatever the others return; the errors come joined. A second Run finds
// nothing to do. Cancelling ctx does not cut the list short: each step gets
// ctx and decides for itself.
func (s *Stack) Run(ctx context.Context) error {
	var errs []error
	for {
		st, ok := s.pop()
		if !ok {
			return errors.Join(errs...)
		}
		if err := st.undo(ctx); err != nil {
			errs = append(errs, fmt.Errorf("undo %s: %w", st.name, err))
		}
	}
}

// pop takes one step at a time, so that a step may push another and two Runs
// share the work instead of doing it twice.
func (s *Stack) pop() (step, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.steps) == 0 {
		return step{}, false
	}
	st := s.steps[len(s.steps)-1]
	s.steps = s.steps[:len(s.steps)-1]
	return st, true
}
