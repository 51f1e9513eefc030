// Package thread runs a function on an operating system thread of its own,
// which may enter other namespaces and is never used again, and parks threads
// that are to have an id and nothing else.
//
// It trusts f to return; a thread cannot be ended from outside.
package thread

import (
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// Run runs f on a thread that ends with it, and waits for it. Whatever f does
// to its thread (setns, unshare) thus touches nothing else of the process. The
// thread is never the process's first: that one does not end, and it is the
// one that /proc/PID shows to others.
func Run(f func() error) error {
	done := make(chan error)
	go run(f, done) // ends with f, for which we wait
	return <-done
}

// InMounts runs f like Run, on a thread that is in the mount namespace ns: the
// paths that f opens, and the programs that it starts, mean what they say there.
// A process is as good as a namespace (pidfd), and nil is our own, where f needs
// no thread.
func InMounts(ns *os.File, f func() error) error {
	if ns == nil {
		return f()
	}
	return Run(func() error {
		// A thread must not share its root and working directory to go.
		if err := unix.Unshare(unix.CLONE_FS); err != nil {
			return fmt.Errorf("leave the process's file system state: %w", err)
		}
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNS); err != nil {
			return fmt.Errorf("enter mount namespace: %w", err)
		}
		return f()
	})
}

func run(f func() error, done chan<- error) {
	runtime.LockOSThread()
	if unix.Gettid() == os.Getpid() {
		// While this goroutine holds the first thread, another one must get
		// another.
		again := make(chan error)
		go run(f, again) // we wait for it below
		err := <-again
		runtime.UnlockOSThread()
		done <- err
		return
	}
	// Never unlocked: the thread ends with this goroutine.
	done <- f()
}
