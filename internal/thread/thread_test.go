package thread

import (
	"errors"
	"os"
	"runtime"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// TestRunNeverOnTheFirstThread keeps all threads busy, so that each of them
// has its turn.
func TestRunNeverOnTheFirstThread(t *testing.T) {
	runtime.LockOSThread() // perhaps the first one: then Run must do without it
	defer runtime.UnlockOSThread()
	var wg sync.WaitGroup
	for range 200 {
		wg.Go(func() {
			if err := Run(func() error {
				if unix.Gettid() == os.Getpid() {
					return errors.New("ran on the first thread")
				}
				return unix.Unshare(unix.CLONE_FS)
			}); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
}

func TestRunReturnsTheError(t *testing.T) {
	want := errors.New("no")
	if err := Run(func() error { return want }); !errors.Is(err, want) {
		t.Errorf("got %v, want %v", err, want)
	}
}
