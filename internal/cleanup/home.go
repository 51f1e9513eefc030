package cleanup

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Home is the directory of a living sandbox, with its lock and its ledger, and what
// is to be undone at its end. It belongs to one process; the end of its Stack is its
// own.
type Home struct {
	Stack
	// Dir is the directory, private to root.
	Dir string

	ledger *Ledger
}

// NewHome makes the directory of a sandbox below stateDir, which is made if need be.
// The error wraps fs.ErrExist when it is there.
func NewHome(stateDir, id string) (_ *Home, err error) {
	if err := os.MkdirAll(stateDir, 0o711); err != nil {
		return nil, err
	}
	h := &Home{Dir: filepath.Join(stateDir, id)}
	if err := os.Mkdir(h.Dir, 0o700); errors.Is(err, fs.ErrExist) {
		return nil, fmt.Errorf("%s is there: %w; if it is left from a crash, `kata gc` removes it", h.Dir, fs.ErrExist)
	} else if err != nil {
		return nil, err
	}
	h.Push("sandbox directory", func(context.Context) error { return removeIn(stateDir, id) })
	defer func() {
		if err != nil {
			err = errors.Join(err, h.Run(context.Background()))
		}
	}()
	lock, err := os.OpenFile(filepath.Join(h.Dir, LockFile), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, err
	}
	h.Push("lock", func(context.Context) error { return lock.Close() })
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return nil, fmt.Errorf("lock %s: %w", lock.Name(), err)
	}
	if h.ledger, err = Open(filepath.Join(h.Dir, LedgerFile)); err != nil {
		return nil, err
	}
	h.Push("ledger", func(context.Context) error { return h.ledger.Close() })
	return h, nil
}

// removeIn removes base/name without following links out of base.
func removeIn(base, name string) error {
	root, err := os.OpenRoot(base)
	if err != nil {
		return err
	}
	defer root.Close()
	return root.RemoveAll(name)
}

// Record writes a resource into the ledger, before it exists. Who makes it undoes it.
func (h *Home) Record(r Record) error {
	if err := h.ledger.Add(r); err != nil {
		return fmt.Errorf("ledger: %w", err)
	}
	return nil
}

// Own records a resource before it exists; it is released with the Home, by release,
// or by Release when that is nil.
func (h *Home) Own(r Record, release Releaser) error {
	if err := h.Record(r); err != nil {
		return err
	}
	if release == nil {
		release = Release
	}
	h.Push(r.String(), func(ctx context.Context) error {
		if err := release(ctx, r); err != nil {
			return err
		}
		return h.ledger.Done(r)
	})
	return nil
}
