package jail

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"sync"
	"time"

	"github.com/seed-efd44b36/kata/internal/agent/jail/inside"
	"github.com/seed-efd44b36/kata/internal/safepath"
	"golang.org/x/sys/unix"
)

// orderTimeout is how long the forker may take to read a plan, if nobody says so.
const orderTimeout = 10 * time.Second

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

// deliver makes a process in namespaces that exist, in those of the plan, by the
// pidfds in join. It stands at the gate.
func (j *Jailer) deliver(ctx context.Context, p *inside.Plan, s Stdio, join []*os.File) (_ *worker, terminal *os.File, err error) {
	adopt, forget := j.options.Reaper.Expect()
	defer forget()
	w := new(worker)
	if w.conn, err = j.order(ctx, p, s, join); err != nil {
		return nil, nil, fmt.Errorf("start a container's process: %w", err)
	}
	defer func() {
		if err != nil {
			w.discard()
			terminal = nil
		}
	}()
	defer w.deadline(ctx)()
	terminal, pid, err := inside.ReceiveAnswer(w.conn)
	if err != nil {
		return nil, nil, w.gone(ctx, err)
	}
	if w.child, err = adopt(pid); err == nil {
		err = adjust(w, &p.Process)
	}
	if err == nil && (terminal != nil) != p.Process.Terminal {
		err = errNoTerminal
	}
	if err != nil && terminal != nil {
		_ = terminal.Close()
	}
	return w, terminal, err
}

// order sends the forker a plan, and returns the socket for what follows.
func (j *Jailer) order(ctx context.Context, p *inside.Plan, s Stdio, join []*os.File) (*net.UnixConn, error) {
	files, null, err := s.files()
	if err != nil {
		return nil, err
	}
	defer func() { _ = null.Close() }()
	ours, theirs, err := socketPair()
	if err != nil {
		return nil, err
	}
	defer func() { _ = theirs.Close() }()
	files = append(append([]*os.File{theirs}, files...), join...)
	j.forker.mu.Lock()
	defer j.forker.mu.Unlock()
	if err := ctx.Err(); err != nil { // before there is half a plan
		_ = ours.Close()
		return nil, err
	}
	conn, err := j.forkerConn()
	if err == nil {
		late, ok := ctx.Deadline()
		if !ok {
			late = time.Now().Add(orderTimeout)
		}
		_ = conn.SetWriteDeadline(late)
		err = inside.SendPlan(conn, p, files)
	}
	if err != nil {
		if w := j.forker.w; w != nil {
			w.discard() // half a plan may have been sent
		}
		_ = ours.Close()
		return nil, err
	}
	return ours, nil
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
