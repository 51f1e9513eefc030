package reap

import (
	"context"
	"errors"
	"os"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// sh starts a shell script.
func sh(t *testing.T, r *Reaper, script string) *Child {
	t.Helper()
	c, err := r.Start(func() (int, error) {
		return syscall.ForkExec("/bin/sh", []string{"sh", "-c", script}, &syscall.ProcAttr{Env: []string{"PATH=/bin:/usr/bin"}})
	})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func running(t *testing.T) *Reaper {
	t.Helper()
	r := New()
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := r.Run(ctx); !errors.Is(err, context.Canceled) {
			t.Errorf("Run: got %v, want %v", err, context.Canceled)
		}
	})
	t.Cleanup(func() { cancel(); wg.Wait() })
	return r
}

func TestExitCodes(t *testing.T) {
	r := running(t)
	tests := map[string]int{"exit 0": 0, "exit 7": 7, "kill -9 $$": 137, "kill -15 $$": 143}
	for script, want := range tests {
		if got := sh(t, r, script).ExitCode(); got != want {
			t.Errorf("%s: got exit code %d, want %d", script, got, want)
		}
	}
}

func TestManyChildrenAreAllSeen(t *testing.T) {
	r := running(t)
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for range 25 {
				if got := sh(t, r, "exit 3").ExitCode(); got != 3 {
					t.Errorf("got exit code %d, want 3", got)
				}
			}
		})
	}
	wg.Wait()
}

func TestChildThatEndedBeforeRunIsSeen(t *testing.T) {
	r := New()
	c := sh(t, r, "exit 5")
	var info unix.Siginfo
	if err := unix.Waitid(unix.P_PID, c.PID, &info, unix.WEXITED|unix.WNOWAIT, nil); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { _ = r.Run(ctx) })
	if got := c.ExitCode(); got != 5 {
		t.Errorf("got exit code %d, want 5", got)
	}
	if c.Ended().IsZero() {
		t.Error("the time of the end is not set")
	}
	cancel()
	wg.Wait()
}

func TestSignal(t *testing.T) {
	r := running(t)
	c := sh(t, r, "exec sleep 1000")
	fd, err := c.PidFD()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = fd.Close() }()
	if err := c.Signal(unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if got := c.ExitCode(); got != 143 {
		t.Errorf("got exit code %d, want 143", got)
	}
	if err := c.Signal(unix.SIGTERM); !errors.Is(err, os.ErrProcessDone) {
		t.Errorf("Signal after the end: got %v, want %v", err, os.ErrProcessDone)
	}
	if _, err := c.PidFD(); !errors.Is(err, os.ErrProcessDone) {
		t.Errorf("PidFD after the end: got %v, want %v", err, os.ErrProcessDone)
	}
}

func TestStartError(t *testing.T) {
	want := errors.New("no")
	if _, err := New().Start(func() (int, error) { return 0, want }); !errors.Is(err, want) {
		t.Errorf("got %v, want %v", err, want)
	}
}

// TestExpect adopts children that ended before and after their pid was known.
func TestExpect(t *testing.T) {
	r := running(t)
	for _, early := range []bool{false, true} {
		adopt, forget := r.Expect()
		script := "read x; exit 7"
		if early {
			script = "exit 7"
		}
		var p [2]int
		if err := unix.Pipe2(p[:], unix.O_CLOEXEC); err != nil {
			t.Fatal(err)
		}
		// Not through Start: another process's doing, as far as the Reaper knows.
		pid, err := syscall.ForkExec("/bin/sh", []string{"sh", "-c", script}, &syscall.ProcAttr{Files: []uintptr{uintptr(p[0])}})
		if err != nil {
			t.Fatal(err)
		}
		_ = unix.Close(p[0])
		if early {
			for reaped := false; !reaped; {
				r.mu.Lock()
				_, reaped = r.strays[pid]
				r.mu.Unlock()
			}
		}
		c, err := adopt(pid)
		if err != nil {
			t.Fatal(err)
		}
		_ = unix.Close(p[1])
		if got := c.ExitCode(); got != 7 {
			t.Errorf("early %v: got exit code %d, want 7", early, got)
		}
		for _, bad := range []int{-1, 0, 1} {
			if _, err := adopt(bad); !errors.Is(err, os.ErrInvalid) {
				t.Errorf("pid %d was adopted: %v", bad, err)
			}
		}
		forget()
		r.mu.Lock()
		if len(r.strays) > 0 || r.expected != 0 {
			t.Errorf("left: %v, %d", r.strays, r.expected)
		}
		r.mu.Unlock()
	}
}
