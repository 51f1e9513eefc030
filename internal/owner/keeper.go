package owner

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"sync"
	"time"

	"github.com/seed-efd44b36/kata/internal/config"
	"github.com/seed-efd44b36/kata/internal/flock"
	"github.com/seed-efd44b36/kata/internal/resources"
	"github.com/seed-efd44b36/kata/internal/sandbox"
	"github.com/seed-efd44b36/kata/internal/vmm"
	"github.com/seed-efd44b36/kata/internal/warm"
)

const (
	// poolLock ends the name, which begins as StateDir, of the file that is locked by who
	// makes a warm clone.
	poolLock = "-warm.lock"
	// refillAfter is how long after a claim the next clone is begun: whoever has
	// claimed is starting a container now.
	refillAfter = 500 * time.Millisecond
	// otherKind is how long a clone has waited that gives way to any other kind.
	otherKind = time.Minute
	// lookAfter is how often a keeper looks whether its clone is still wanted.
	lookAfter = 2 * time.Second
	// lowMemory in percent of the host's: with less available clones give way.
	lowMemory = 10
)

// Claim implements sandbox.Templates.
func (t templates) Claim(ctx context.Context, c vmm.Config) (*warm.Clone, error) {
	k, err := key(c)
	if err != nil {
		return nil, err
	}
	return warm.Claim(ctx, t.conf.Runtime.StateDir, k, t.conf.Factory.VMCacheNumber)
}

// keep makes one warm clone of the template, if the pool has room for it, waits until
// it is claimed, and ends with it. The pool is filled one after the other, each time
// by a process of its own.
func keep(ctx context.Context, r Request, o sandbox.Warm) error {
	k, err := begin(ctx, r, o)
	if k == nil || err != nil {
		return err
	}
	err = refill(ctx, r)
	return errors.Join(err, k.serve(ctx, r))
}

// refill has the next clone made, if there is room for it.
func refill(ctx context.Context, r Request) error {
	if len(kind(r)) >= r.Config.Factory.VMCacheNumber || memoryIsLow() {
		return nil
	}
	r.Detached = true
	_, err := AskForTemplate(ctx, r, nil)
	return err
}

// kind are the clones that wait and are of the request's.
func kind(r Request) []warm.Waiting {
	return slices.DeleteFunc(warm.List(r.Config.Runtime.StateDir), func(w warm.Waiting) bool { return w.Key != r.Key })
}

// keeper has one clone.
type keeper struct {
	sb   *sandbox.Sandbox
	log  *slog.Logger
	gift warm.Gift
	door *warm.Keeper
}

// begin makes a clone. It returns nil if no more are wanted, or one is being made.
func begin(ctx context.Context, r Request, o sandbox.Warm) (_ *keeper, err error) {
	lock, err := flock.Try(filepath.Clean(r.Config.Runtime.StateDir) + poolLock)
	if errors.Is(err, flock.ErrHeld) {
		return nil, nil //nolint:nilnil // as it says
	}
	if err != nil {
		return nil, err
	}
	defer lock.Close()
	if ok, err := makeRoom(ctx, r); !ok || err != nil {
		return nil, err
	}
	mounts, err := os.Open("/proc/self/ns/mnt")
	if err != nil {
		return nil, err
	}
	k := &keeper{}
	if k.sb, k.log, err = open(Options{ID: warm.NewID(r.Key), Config: r.Config, HostMounts: mounts}); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, k.sb.Close(context.WithoutCancel(ctx)))
		}
	}()
	// An engine may want the machine's process to be in the namespace of its devices.
	netns, err := NewNetNS(ctx, k.sb)
	if err != nil {
		return nil, err
	}
	if err := k.sb.Boot(ctx, sandbox.BootOptions{NetNS: netns, LateNetwork: true, Warm: &o}); err != nil {
		return nil, err
	}
	if k.gift, err = k.sb.Give(); err != nil {
		return nil, err
	}
	k.door, err = warm.Listen(k.sb.Dir(), k.gift)
	return k, err
}

// makeRoom tells whether there is room in the pool for one more clone of the kind,
// after one of another kind has given way, if need be.
func makeRoom(ctx context.Context, r Request) (bool, error) {
	limit := r.Config.Factory.VMCacheNumber
	if memoryIsLow() || len(kind(r)) >= limit {
		return false, nil
	}
	all := warm.List(r.Config.Runtime.StateDir)
	if len(all) < limit {
		return true, nil
	}
	w, ok := spare(all, r.Key, time.Now())
	if !ok {
		return false, nil
	}
	return true, warm.Dismiss(ctx, r.Config.Runtime.StateDir, w)
}

// spare is the clone that gives way to one of the kind that key stands for: the one
// that has waited longest, of a kind that has two more than this, or for otherKind.
func spare(all []warm.Waiting, key string, now time.Time) (w warm.Waiting, ok bool) {
	n := map[string]int{}
	for _, w := range all {
		n[w.Key]++
	}
	slices.SortFunc(all, func(a, b warm.Waiting) int { return a.Since.Compare(b.Since) })
	for _, w := range all {
		if w.Key != key && (n[w.Key] >= n[key]+2 || now.Sub(w.Since) >= otherKind) {
			return w, true
		}
	}
	return w, false
}

// serve waits for the clone's owner, and for the end of both.
func (k *keeper) serve(ctx context.Context, r Request) error {
	waiting, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	go k.look(waiting, stop) // ends with the context
	held, err := k.door.Give(waiting)
	cause := context.Cause(waiting)
	stop(errors.New("it was claimed"))
	if err != nil {
		if cause != nil {
			k.log.Info("the clone is given up", "reason", cause)
			err = nil
		}
		return errors.Join(err, k.sb.Close(context.WithoutCancel(ctx)))
	}
	// The owner's configuration may have changed since.
	r.Config.Factory.VMCacheNumber = held.Want
	var work sync.WaitGroup
	refilled := k.hold(held, func() { work.Go(func() { k.refill(ctx, r) }) })
	// By its end of the connection the owner knows that nothing is left.
	err = errors.Join(k.sb.Close(context.WithoutCancel(ctx)), held.Close())
	if !refilled {
		k.refill(ctx, r)
	}
	work.Wait()
	return err
}

// hold returns when the clone's owner or its machine has ended, and tells whether
// refill was called, which begins to fill the pool.
func (k *keeper) hold(held *warm.Held, refill func()) (refilled bool) {
	debug.FreeOSMemory()
	gone := make(chan struct{})
	go func() { // ends with the connection
		held.Gone()
		close(gone)
	}()
	next := time.NewTimer(refillAfter)
	defer next.Stop()
	for {
		select {
		case <-next.C:
			refill()
			refilled = true
		case <-gone:
			return refilled
		case <-k.gift.Running.Process.Done():
			p := k.gift.Running.Process
			_ = held.Ended(p.Exit(), p.Stderr()) // who has gone need not know
			return refilled
		}
	}
}

func (k *keeper) refill(ctx context.Context, r Request) {
	if err := refill(ctx, r); err != nil {
		k.log.Warn("the pool is not refilled", "error", err)
	}
}

// look gives the clone up when it is not wanted any more, or its machine has ended.
func (k *keeper) look(ctx context.Context, stop context.CancelCauseFunc) {
	again := time.NewTicker(lookAfter)
	defer again.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-k.sb.Dead():
			stop(errors.New("its machine has ended"))
		case <-again.C:
			if memoryIsLow() {
				stop(errors.New("the host is short of memory"))
			}
		}
	}
}

// Trim dismisses the warm clones that are more than the configuration wants.
func Trim(ctx context.Context, conf config.Config) (dismissed int, err error) {
	all := warm.List(conf.Runtime.StateDir)
	slices.SortFunc(all, func(a, b warm.Waiting) int { return b.Since.Compare(a.Since) })
	return dismiss(ctx, conf, all[min(len(all), conf.Factory.VMCacheNumber):])
}

// RemoveTemplate removes a template, and the clones of it that wait.
func RemoveTemplate(ctx context.Context, conf config.Config, key string) error {
	err := Store(conf).Remove(key)
	_, derr := dismiss(ctx, conf, kind(Request{Config: conf, Key: key}))
	return errors.Join(err, derr)
}

func dismiss(ctx context.Context, conf config.Config, clones []warm.Waiting) (int, error) {
	var errs []error
	for _, w := range clones {
		errs = append(errs, warm.Dismiss(ctx, conf.Runtime.StateDir, w))
	}
	return len(clones), errors.Join(errs...)
}

// IsClone tells whether what has an id among those of sandboxes is a warm clone.
func IsClone(id string) bool { return warm.IsClone(id) }

// Warm is how many clones wait, by the key of their template.
func Warm(conf config.Config) map[string]int {
	n := map[string]int{}
	for _, w := range warm.List(conf.Runtime.StateDir) {
		n[w.Key]++
	}
	return n
}

// memoryIsLow tells whether the host has little memory left. What cannot be read is
// taken for enough.
func memoryIsLow() bool {
	available, err := resources.AvailableMemory()
	return err == nil && available < lowMemory
}

var _ sandbox.Templates = templates{}
