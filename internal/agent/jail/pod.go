package jail

import (
	"context"
	"fmt"
	"os"
	"sync"

	"github.com/seed-efd44b36/kata/internal/agent/jail/inside"
	"golang.org/x/sys/unix"
)

// podInit is the first process of the pid namespace that containers of a pod share.
type podInit struct {
	mu    sync.Mutex
	w     *worker  // guarded by mu; nil before it is needed
	pidfd *os.File // guarded by mu
}

// podNamespace returns a pidfd of the pod's first process, which it starts when it
// is asked for the first time. Should that have ended, so have all in its
// namespace, and there will be no other: a pod has one.
func (j *Jailer) podNamespace(ctx context.Context) (*os.File, error) {
	p := &j.pod
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.w != nil {
		select {
		case <-p.w.child.Done():
			return nil, fmt.Errorf("the pod's pid namespace has ended, with exit code %d of its first process", p.w.child.ExitCode())
		default:
			return p.pidfd, nil
		}
	}
	w, err := j.spawn(birth{clone: unix.CLONE_NEWPID}, inside.Pod)
	if err != nil {
		return nil, err
	}
	// It has no privileges any more when it says so.
	undo := w.deadline(ctx)
	_, err = w.conn.Read(make([]byte, 1))
	undo()
	if err == nil {
		p.pidfd, err = w.child.PidFD()
	}
	if err != nil {
		err = w.gone(ctx, err)
		w.discard()
		return nil, fmt.Errorf("make the pod's pid namespace: %w", err)
	}
	p.w = w
	return p.pidfd, nil
}

// end ends it, and what is in its namespace.
func (p *podInit) end() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.w != nil {
		p.w.discard()
		_ = p.pidfd.Close()
		p.w = nil
	}
}
