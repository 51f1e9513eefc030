// Package flock waits for locks on files (flock(2)). A lock ends when its file is
// closed, or with the process.
package flock

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// ErrHeld is that somebody else has the lock.
var ErrHeld = errors.New("lock is held by another process")

// poll is how often one that waits looks again: a call that blocks could not be
// ended by a context.
const poll = 20 * time.Millisecond

// mode is of files that are made to be locked.
const mode = 0o600

// Exclusive waits until it has the lock alone. The file is made if it is not there;
// the caller closes it.
func Exclusive(ctx context.Context, path string) (*os.File, error) {
	return wait(ctx, path, unix.LOCK_EX)
}

// Shared waits until nobody has the lock alone.
func Shared(ctx context.Context, path string) (*os.File, error) {
	return wait(ctx, path, unix.LOCK_SH)
}

// Try is Exclusive without waiting: the error wraps ErrHeld.
func Try(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, mode)
	if err == nil {
		err = try(f, unix.LOCK_EX)
	}
	if err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	return f, nil
}

func wait(ctx context.Context, path string, how int) (_ *os.File, err error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, mode)
	if err != nil {
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			err = fmt.Errorf("%w: %w", ErrHeld, ctx.Err())
		case <-timer.C:
			err = try(f, how)
			if errors.Is(err, ErrHeld) {
				timer.Reset(poll)
				continue
			}
		}
		if err != nil {
			_ = f.Close()
			return nil, fmt.Errorf("lock %s: %w", path, err)
		}
		return f, nil
	}
}

func try(f *os.File, how int) error {
	for {
		err := unix.Flock(int(f.Fd()), how|unix.LOCK_NB)
		switch {
		case errors.Is(err, unix.EINTR):
		case errors.Is(err, unix.EWOULDBLOCK):
			return ErrHeld
		default:
			return err
		}
	}
}
