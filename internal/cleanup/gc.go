package cleanup

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// The files in a sandbox's directory that GC reads.
const (
	// LockFile is held (flock, exclusive) by the owner as long as it lives.
	LockFile = "lock"
	// LedgerFile is the sandbox's Ledger. Its existence proves that the lock
	// has been taken: an owner makes it after that.
	LedgerFile = "ledger"
)

const (
	// settle is how old a directory without a ledger must be before it counts
	// as left behind: its owner may be between mkdir and flock.
	settle = 5 * time.Second
	// releaseTimeout bounds the release of one record.
	releaseTimeout = 10 * time.Second
)

// Releaser removes a resource whether it exists or not.
type Releaser func(ctx context.Context, r Record) error

// Report tells what GC has found, by sandbox id.
type Report struct {
	// Removed are the dead sandboxes of which nothing is left.
	Removed []string
	// Alive are those whose owner holds the lock.
	Alive []string
	// Kept are dead ones of which something could not be released; GC tries
	// again next time.
	Kept []string
}

// GC releases what dead sandboxes below stateDir have left: all that their
// ledgers name, newest first, then their directories. Living ones are not
// touched. more releases the kinds that Release does not; it may be nil. The
// error joins what went wrong with any sandbox, each of which is in Kept.
func GC(ctx context.Context, stateDir string, log *slog.Logger, more map[Kind]Releaser) (Report, error) {
	var rep Report
	entries, err := os.ReadDir(stateDir)
	if errors.Is(err, fs.ErrNotExist) {
		return rep, nil
	}
	if err != nil {
		return rep, fmt.Errorf("collect dead sandboxes: %w", err)
	}
	var errs []error
	for _, e := range entries {
		if !e.IsDir() {
			continue
		}
		id := e.Name()
		alive, err := Collect(ctx, filepath.Join(stateDir, id), log.With("sandbox", id), more)
		switch {
		case err != nil:
			rep.Kept = append(rep.Kept, id)
			errs = append(errs, fmt.Errorf("collect sandbox %s: %w", id, err))
		case alive:
			rep.Alive = append(rep.Alive, id)
		default:
			rep.Removed = append(rep.Removed, id)
		}
	}
	return rep, errors.Join(errs...)
}

// Collect is GC for one sandbox, whose directory is dir. It tells whether the
// sandbox lives or is not there; else nothing of it is left, or there is an error.
func Collect(ctx context.Context, dir string, log *slog.Logger, more map[Kind]Releaser) (alive bool, err error) {
	lock, err := lockDead(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	if lock == nil {
		return true, nil
	}
	// Held to the end, so that two collectors do not meet.
	defer lock.Close()
	records, err := ReadLedger(filepath.Join(dir, LedgerFile))
	if err != nil {
		// What can be read is released all the same; the damage is told once
		// and does not keep the sandbox for ever.
		log.Warn("ledger is damaged", "error", err)
	}
	var errs []error
	for _, r := range slices.Backward(records) {
		if err := releaseOne(ctx, r, more); err != nil {
			errs = append(errs, err)
			continue
		}
		log.Debug("released", "kind", string(r.Kind), "name", r.Name)
	}
	if len(errs) > 0 {
		return false, errors.Join(errs...)
	}
	if err := RemoveTree(dir); err != nil {
		return false, err
	}
	log.Info("removed what a dead sandbox had left", "records", len(records))
	return false, nil
}

func releaseOne(ctx context.Context, r Record, more map[Kind]Releaser) error {
	ctx, cancel := context.WithTimeout(ctx, releaseTimeout)
	defer cancel()
	if release := more[r.Kind]; release != nil {
		if err := release(ctx, r); err != nil {
			return fmt.Errorf("release %s: %w", r, err)
		}
		return nil
	}
	return Release(ctx, r)
}

// lockDead takes the lock of a sandbox whose owner is dead. It returns nil for
// one whose owner lives, or may be about to take the lock, and fs.ErrNotExist
// when there is no sandbox.
func lockDead(dir string) (*os.File, error) {
	proof := LedgerFile
	f, err := os.OpenFile(filepath.Join(dir, LockFile), os.O_RDWR|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if errors.Is(err, fs.ErrNotExist) {
		proof = "" // no owner ever held it, or it is just being made
		f, err = os.OpenFile(dir, os.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	}
	if err != nil {
		return nil, fmt.Errorf("lock: %w", err)
	}
	err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		f.Close()
		return nil, nil
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("lock: %w", err)
	}
	if proof != "" {
		if _, err := os.Lstat(filepath.Join(dir, proof)); err == nil {
			return f, nil
		}
	}
	st, err := f.Stat()
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("lock: %w", err)
	}
	if time.Since(st.ModTime()) < settle {
		f.Close()
		return nil, nil
	}
	return f, nil
}
