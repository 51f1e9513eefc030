package jail

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"sync"

	"github.com/seed-efd44b36/kata/internal/agent/jail/inside"
	"github.com/seed-efd44b36/kata/internal/safepath"
	"golang.org/x/sys/unix"
)

// forker is the process that makes further processes of containers.
type forker struct {
	mu sync.Mutex
	w  *worker // guarded by mu; nil if none was started or it has ended
}

// Ready starts the process that makes further processes of containers, if it does
// not run. Exec does so too, but then has to wait for it.
func (j *Jailer) Ready() error {
	j.forker.mu.Lock()
	defer j.forker.mu.Unlock()
	_, err := j.forkerConn()
	return err
}

// forkerConn returns the socket of a running forker. j.forker.mu is held.
func (j *Jailer) forkerConn() (*net.UnixConn, error) {
	if w := j.forker.w; w != nil {
		select {
		case <-w.child.Done():
			w.discard()
		default:
			return w.conn, nil
		}
	}
	w, err := j.spawn(birth{}, inside.Forker)
	if err != nil {
		return nil, err
	}
	j.forker.w = w
	return w.conn, nil
}

// converse begins a conversation with the forker and returns our end.
func (j *Jailer) converse() (*net.UnixConn, error) {
	ours, theirs, err := socketPair()
	if err != nil {
		return nil, err
	}
	defer func() { _ = theirs.Close() }()
	j.forker.mu.Lock()
	defer j.forker.mu.Unlock()
	conn, err := j.forkerConn()
	if err == nil {
		err = inside.Converse(conn, theirs)
	}
	if err != nil {
		_ = ours.Close()
		return nil, err
	}
	return ours, nil
}

// deliver makes a process in namespaces that exist, in those of the plan, by the
// pidfds in join. It stands at the gate.
func (j *Jailer) deliver(ctx context.Context, p *inside.Plan, s Stdio, join []*os.File) (_ *worker, terminal *os.File, err error) {
	conn, err := j.converse()
	if err != nil {
		return nil, nil, fmt.Errorf("start a container's process: %w", err)
	}
	w := &worker{conn: conn}
	if terminal, err = w.tryPrepare(ctx, p, s, join); err == nil {
		err = w.born(ctx, j)
	}
	if err == nil {
		err = adjust(w, &p.Process)
	}
	if err != nil {
		if terminal != nil {
			_ = terminal.Close()
		}
		w.discard()
		return nil, nil, err
	}
	return w, terminal, nil
}

// born asks the forker for the process.
func (w *worker) born(ctx context.Context, j *Jailer) (err error) {
	defer w.deadline(ctx)()
	if w.child, err = j.options.Reaper.Start(func() (int, error) { return inside.Deliver(w.conn) }); err != nil {
		return w.gone(ctx, err)
	}
	return nil
}

// adjust sets what a process without a runtime cannot well set for itself.
func adjust(w *worker, p *inside.Process) error {
	proc, err := safepath.OpenProc()
	if err != nil {
		return err
	}
	defer func() { _ = proc.Close() }()
	// In any case: the agent's own may be one that spares it.
	err = proc.Write(strconv.Itoa(w.child.PID)+"/oom_score_adj", strconv.Itoa(p.OOMScoreAdj))
	if err != nil && !errors.Is(err, unix.ESRCH) && !errors.Is(err, unix.ENOENT) { // else it has ended, for its waiters to see
		return fmt.Errorf("set oom_score_adj to %d: %w", p.OOMScoreAdj, err)
	}
	return nil
}
