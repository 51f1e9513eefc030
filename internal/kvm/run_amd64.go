package kvm

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// stuckAfter is how long a virtual CPU may take to stop when it is told to.
const stuckAfter = 2 * time.Second

// vcpuThread is how a virtual CPU is stopped from outside of its thread.
type vcpuThread struct {
	mu   sync.Mutex
	tid  int    // 0 when no virtual CPU runs
	page []byte // kvm_run
}

// run tries everything in a thread of its own and makes that end by the
// context's deadline. The error says what does not work.
func run(ctx context.Context, dev *os.File, trials []trial) error {
	var thread vcpuThread
	result := make(chan error, 1)
	go func() { result <- try(ctx, dev, trials, &thread) }()
	select {
	case err := <-result:
		return err
	case <-ctx.Done():
	}
	// The signal makes KVM_RUN return also where it spins in the kernel; Go
	// handles SIGURG at any time. It may come just before the thread enters
	// KVM_RUN, so it is repeated.
	again := time.NewTicker(10 * time.Millisecond)
	defer again.Stop()
	stuck := time.After(stuckAfter)
	for {
		thread.stop()
		select {
		case err := <-result:
			return err
		case <-again.C:
		case <-stuck:
			return errors.New("the virtual CPU cannot be stopped")
		}
	}
}

func (t *vcpuThread) enter(page []byte) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.tid, t.page = unix.Gettid(), page
}

func (t *vcpuThread) leave() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.tid, t.page = 0, nil
}

func (t *vcpuThread) stop() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.tid == 0 {
		return
	}
	t.page[immediateExit] = 1
	_ = unix.Tgkill(unix.Getpid(), t.tid, unix.SIGURG)
}

// try makes a machine and runs the trials in it.
func try(ctx context.Context, dev *os.File, trials []trial, thread *vcpuThread) error {
	// A virtual CPU belongs to its thread, which signals are sent to.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()

	m, err := newMachine(int(dev.Fd()))
	if err != nil {
		return err
	}
	defer m.close()
	thread.enter(m.page)
	defer thread.leave()
	for _, t := range trials {
		if err := m.run(ctx, t.code); err != nil {
			return fmt.Errorf("%s: %w", t.name, err)
		}
	}
	return nil
}
