// Package thread runs a function on an operating system thread of its own,
// which may enter other namespaces and is never used again.
//
// It trusts f to return; a thread cannot be ended from outside.
package thread

import (
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
