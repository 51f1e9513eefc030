// Package sandbox is the life cycle of one sandbox: a virtual machine, the
// link to its agent, the shared directory, the network, the host's cgroup, and
// the containers inside. It is the only package that joins these parts; front
// ends (kata-proxy, the containerd shim) import it and add their protocol.
//
// A Sandbox belongs to one process, which holds a lock as long as it lives.
// What the sandbox makes on the host is in a ledger before it exists, so that
// after a crash another process can remove it (cleanup.GC). New -> Boot ->
// Create... -> Close. The guest is not trusted: every call has a deadline, and
// Close never needs an answer.
package sandbox

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/containerd/ttrpc"
	agentv1 "github.com/seed-efd44b36/kata/api/agent/v1"
	"github.com/seed-efd44b36/kata/internal/cleanup"
	"github.com/seed-efd44b36/kata/internal/config"
	"github.com/seed-efd44b36/kata/internal/disk"
	"github.com/seed-efd44b36/kata/internal/guestimage"
	"github.com/seed-efd44b36/kata/internal/mirror"
	"github.com/seed-efd44b36/kata/internal/printable"
	"github.com/seed-efd44b36/kata/internal/resources"
	"github.com/seed-efd44b36/kata/internal/sandbox/enclosure"
	"github.com/seed-efd44b36/kata/internal/sandbox/failure"
	"github.com/seed-efd44b36/kata/internal/sandbox/guest"
	"github.com/seed-efd44b36/kata/internal/sandbox/joint"
	"github.com/seed-efd44b36/kata/internal/sandbox/report"
	"github.com/seed-efd44b36/kata/internal/share"
	"github.com/seed-efd44b36/kata/internal/timeline"
	"github.com/seed-efd44b36/kata/internal/vmm"
	"github.com/seed-efd44b36/kata/internal/warm"
	"golang.org/x/sys/unix"
)

const (
	// callTimeout bounds a call to the agent that is quick by nature.
	callTimeout = 10 * time.Second
	// killTimeout is how long a guest may take to end a process by SIGKILL.
	killTimeout = 5 * time.Second
	// shutdownTimeout is what a guest gets to write its caches back.
	shutdownTimeout = 3 * time.Second
	// lostGrace is how long after the loss of the link we wait for the VMM's
	// own end to learn the better reason.
	lostGrace = time.Second
)

// Options are what a sandbox is made from. All fields are needed but Templates and
// Start.
type Options struct {
	ID     string
	Config config.Config
	Log    *slog.Logger
	// HostMounts is the mount namespace in which paths of the spec mean what
	// they say: that of the caller's caller, before kata-proxy got its own.
	// Owned by the sandbox.
	HostMounts *os.File
	// Image makes the guest's kernel and initrd ready.
	Image func(context.Context) (guestimage.Image, error)
	// Accel tells which accelerator to use when the configuration says auto.
	Accel func(context.Context) vmm.Accel
	// NewMachine is the VMM driver.
	NewMachine func(vmm.Config, *slog.Logger) (vmm.Machine, error)
	// Templates of machines; nil: every machine boots.
	Templates Templates
	// Start is the time line of the start so far; nil: it begins here.
	Start *timeline.Start
}

// Sandbox is one virtual machine with its containers. It is safe for
// concurrent use.
type Sandbox struct {
	id      string
	conf    config.Config
	log     *slog.Logger
	opts    Options
	created time.Time

	home   *cleanup.Home
	share  *share.Dir
	joint  *joint.Joint
	clone  *warm.Clone // nil: the machine is our own child
	cgroup *enclosure.Enclosure
	cpus   string // of the host, that the sandbox is held to; empty: all
	trace  *timeline.Recorder

	// Set by Boot before anyone else can see them.
	machine vmm.Machine
	mirrors *mirror.Set
	disks   *disk.Set // of the machine
	guest   *guest.Guest
	files   *share.Server
	accel   vmm.Accel
	want    func(context.Context) error // a template; nil: there is one, or need not be

	// life ends when the sandbox dies; calls without a deadline hang on it.
	life       context.Context
	endLife    context.CancelFunc
	background sync.WaitGroup // started by what is in making only

	// making are the operations that make something. They end with open,
	// which ends with life, or before it when Close begins.
	open    context.Context
	endOpen context.CancelFunc
	making  sync.WaitGroup // Add under mu, while not closing
	closed  chan struct{}  // closed when Close has done all

	saveMu sync.Mutex // serializes writers of the state file

	mu         sync.Mutex
	booted     bool                  // guarded by mu
	pod        *Pod                  // guarded by mu: set by Boot, nil for none
	closing    bool                  // guarded by mu
	death      error                 // guarded by mu
	died       time.Time             // guarded by mu
	unasked    bool                  // guarded by mu: it died before Close was called
	order      []string              // guarded by mu: containers, oldest first
	containers map[string]*Container // guarded by mu
}

// New makes the sandbox's directory, lock and ledger. The error wraps ErrExists
// when the id is taken.
func New(o Options) (*Sandbox, error) {
	if err := CheckID(o.ID); err != nil {
		return nil, fmt.Errorf("create sandbox: %w", err)
	}
	home, err := cleanup.NewHome(o.Config.Runtime.StateDir, o.ID)
	if err != nil {
		if errors.Is(err, fs.ErrExist) {
			err = fmt.Errorf("%w: %w", ErrExists, err)
		}
		return nil, fmt.Errorf("create sandbox %s: %w", o.ID, errors.Join(err, o.HostMounts.Close()))
	}
	s := &Sandbox{
		id: o.ID, home: home, conf: o.Config, log: o.Log.With("sandbox", o.ID), opts: o, created: time.Now(),
		trace: timeline.NewRecorder(o.ID, o.Start), containers: map[string]*Container{}, closed: make(chan struct{}),
	}
	s.life, s.endLife = context.WithCancel(context.Background())
	s.open, s.endOpen = context.WithCancel(s.life)
	s.home.Push("host mount namespace", func(context.Context) error { return o.HostMounts.Close() })
	return s, nil
}

// ID is the sandbox's id.
func (s *Sandbox) ID() string { return s.id }

// Dir is the sandbox's directory, private to root.
func (s *Sandbox) Dir() string { return s.home.Dir }

// History has the time lines of the sandbox's start, and of the last starts of
// containers and execs.
func (s *Sandbox) History() timeline.History { return s.trace.History() }

// Info tells what the virtual machine is; valid after Boot.
func (s *Sandbox) Info() report.Sandbox { return s.state() }

// Usage tells what the sandbox uses of the host, the owner and the virtual machine
// together; valid after Boot.
func (s *Sandbox) Usage() resources.Stats { return s.cgroup.Stats() }

// Traced returns a context for what a front end does for the start of the sandbox:
// its steps (timeline.Begin) are in the time line.
func (s *Sandbox) Traced(ctx context.Context) context.Context { return s.trace.Own().In(ctx) }

// Dead is closed when the sandbox has ended, whether asked for or not.
func (s *Sandbox) Dead() <-chan struct{} { return s.life.Done() }

func (s *Sandbox) createTimeout() time.Duration {
	return time.Duration(s.conf.Runtime.CreateTimeout) * time.Second
}

func (s *Sandbox) isDead() bool { return s.life.Err() != nil }

// orDead replaces an error that is only the consequence of the sandbox's death
// by the reason of that death.
func (s *Sandbox) orDead(err error) error {
	if err == nil || errors.Is(err, ErrDead) {
		return err
	}
	if _, ok := errors.AsType[*guest.AnswerError](err); ok {
		return err
	}
	closed := errors.Is(err, ttrpc.ErrClosed) || errors.Is(err, os.ErrClosed)
	if closed || errors.Is(err, unix.ECONNRESET) || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		// The link noticed before we did: give the reason time to arrive.
		select {
		case <-s.life.Done():
		case <-time.After(2 * lostGrace):
			if closed {
				return guest.ErrLost
			}
			return err
		}
	}
	if s.isDead() || s.open.Err() != nil { // open ends a moment after life
		return s.deadError()
	}
	return err
}

// deadError tells that the sandbox has ended, and why if nobody asked for it.
func (s *Sandbox) deadError() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.death == nil || errors.Is(s.death, ErrDead) {
		return ErrDead
	}
	return fmt.Errorf("%w: %w", ErrDead, s.death)
}

// Begin begins an operation that makes something for the sandbox; done ends it.
// It is refused when the sandbox has ended or is about to. The context ends
// when Close is called, which then waits for done before it releases anything,
// and after the timeout, unless that is 0.
func (s *Sandbox) Begin(ctx context.Context, timeout time.Duration) (_ context.Context, done func(), err error) {
	s.mu.Lock()
	refused := s.closing || s.death != nil
	if !refused {
		s.making.Add(1)
	}
	s.mu.Unlock()
	if refused {
		return nil, nil, s.deadError()
	}
	ctx, cancel := context.WithCancel(ctx)
	stop := context.AfterFunc(s.open, cancel)
	release := cancel
	if timeout > 0 {
		ctx, release = context.WithTimeout(ctx, timeout)
	}
	return ctx, func() {
		stop()
		release()
		cancel()
		s.making.Done()
	}, nil
}

// die ends the sandbox because of err, and its machine. Only the first call counts.
func (s *Sandbox) die(err error) {
	s.mu.Lock()
	first := s.death == nil
	closing := s.closing
	if first {
		s.death, s.died, s.unasked = err, time.Now(), !closing
	}
	s.mu.Unlock()
	if !first {
		return
	}
	if !closing {
		s.log.Error("sandbox died", "error", printable.Text(err.Error(), 2000))
	}
	s.endLife()
	for _, c := range s.list() {
		c.finish(report.Exit{Code: report.LostCode, At: time.Now(), Reason: s.deathReason()})
	}
	// A guest that hangs for want of its files, or does as it likes, would hold up
	// those who wait for the end of its output.
	if !closing && s.machine != nil {
		s.machine.Kill(s.life)
	}
}

// deathReason says why the sandbox ended.
func (s *Sandbox) deathReason() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.death == nil {
		return "the sandbox has ended"
	}
	return s.death.Error()
}

// Death tells when the sandbox ended, and why if nobody had asked for it. Only
// valid after Dead is closed.
func (s *Sandbox) Death() (at time.Time, why error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.unasked {
		why = s.death
	}
	return s.died, why
}

// enter adds a container to the table, leave takes it out.
func (s *Sandbox) enter(c *Container) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case !s.booted:
		return fmt.Errorf("sandbox %s has not booted: %w", s.id, ErrState)
	case s.containers[c.id] != nil:
		return fmt.Errorf("container %s: %w", c.id, ErrExists)
	}
	s.containers[c.id] = c
	s.order = append(s.order, c.id)
	return nil
}

func (s *Sandbox) leave(c *Container) {
	s.mu.Lock()
	if s.containers[c.id] == c {
		delete(s.containers, c.id)
		s.order = slices.DeleteFunc(s.order, func(id string) bool { return id == c.id })
	}
	s.mu.Unlock()
	s.saveState()
}

// Container finds a container.
func (s *Sandbox) Container(id string) (*Container, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if c := s.containers[id]; c != nil {
		return c, nil
	}
	return nil, fmt.Errorf("container %q in sandbox %s: %w", id, s.id, ErrNotFound)
}

func (s *Sandbox) list() []*Container {
	s.mu.Lock()
	defer s.mu.Unlock()
	cs := make([]*Container, 0, len(s.order))
	for _, id := range s.order {
		cs = append(cs, s.containers[id])
	}
	return cs
}

// members are the ids of the containers, for joining their namespaces.
func (s *Sandbox) members() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.order)
}

// saveState reports the present state to other programs. A full disk must not
// stop a sandbox, so an error is logged only.
func (s *Sandbox) saveState() {
	s.saveMu.Lock()
	defer s.saveMu.Unlock()
	st := s.state()
	s.mu.Lock()
	closed := s.closing
	s.mu.Unlock()
	if closed {
		return
	}
	if err := report.Write(s.home.Dir, st); err != nil {
		s.log.Warn("state is not written", "error", err)
	}
}

func (s *Sandbox) state() report.Sandbox {
	st := report.Sandbox{
		ID: s.id, OwnerPID: os.Getpid(), Accel: string(s.accel),
		Created: s.created, Containers: []report.Container{},
	}
	if s.guest != nil {
		st.Kernel = s.guest.Kernel
	}
	if s.machine != nil {
		if pids := s.machine.PIDs(); len(pids) > 0 {
			st.VMMPID = pids[0]
		}
	}
	for _, c := range s.list() {
		st.Containers = append(st.Containers, c.state())
	}
	return st
}

// Close ends the sandbox: containers, virtual machine, and everything in the
// ledger. It is done when all is gone. The guest is asked to write its caches
// back, but gets little time for it. Close may be called more than once.
func (s *Sandbox) Close(ctx context.Context) error {
	s.mu.Lock()
	again := s.closing
	s.closing = true
	s.mu.Unlock()
	if again {
		<-s.closed
		return nil
	}
	defer close(s.closed)
	// What is being made must be whole, or undone, before it is released.
	s.endOpen()
	s.making.Wait()

	var errs []error
	for _, c := range slices.Backward(s.list()) {
		if err := c.Delete(ctx); err != nil {
			errs = append(errs, err)
		}
	}
	var leaving sync.WaitGroup
	if s.cgroup != nil {
		leaving.Go(s.cgroup.Leave) // meanwhile
	}
	if s.guest != nil && !s.isDead() {
		callCtx, cancel := context.WithTimeout(ctx, shutdownTimeout)
		_, err := s.guest.Shutdown(callCtx, &agentv1.ShutdownRequest{})
		cancel()
		if err != nil && !errors.Is(err, ttrpc.ErrClosed) {
			s.log.Debug("guest did not confirm its shutdown", "error", printable.Text(err.Error(), 500))
		}
	}
	s.die(ErrDead)
	// The caller may have gone; what is to be released must be, all the same.
	errs = append(errs, s.home.Run(context.WithoutCancel(ctx)))
	s.background.Wait()
	leaving.Wait()
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("close sandbox %s: %w", s.id, err)
	}
	return nil
}

// explain tells all that is known of a failure during Boot.
func (s *Sandbox) explain(err error) error {
	return failure.Of(s.id, s.orDead(err), s.machine)
}
