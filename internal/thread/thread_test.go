package thread

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"sync"
	"testing"
	"time"

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

func TestPark(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("entering a namespace needs root")
	}
	other := exec.CommandContext(t.Context(), "sleep", "1000")
	other.SysProcAttr = &unix.SysProcAttr{Cloneflags: unix.CLONE_NEWNET}
	if err := other.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = other.Process.Kill()
		_ = other.Wait()
	}()
	park := func(name string) *Parked {
		p, err := Park(name, other.Process.Pid)
		if err != nil {
			t.Fatal(err)
		}
		want, werr := os.Readlink(fmt.Sprintf("/proc/%d/ns/net", other.Process.Pid))
		got, gerr := os.Readlink(fmt.Sprintf("/proc/%d/ns/net", p.TID))
		if err := errors.Join(werr, gerr); err != nil || got != want {
			t.Errorf("the thread is in %s, want %s; %v", got, want, err)
		}
		return p
	}
	if _, err := Park("none", 1<<30); err == nil {
		t.Error("a thread in the network of no process")
	}
	a, b := park("first"), park("second")
	if a.TID == b.TID || a.TID == os.Getpid() {
		t.Errorf("ids %d and %d", a.TID, b.TID)
	}
	comm := fmt.Sprintf("/proc/%d/comm", a.TID)
	if got, err := os.ReadFile(comm); err != nil || string(got) != "first\n" {
		t.Errorf("/proc has %q, %v", got, err)
	}
	a.Leave()
	b.Leave()
	// The kernel may take a moment for it.
	for deadline := time.Now().Add(10 * time.Second); ; runtime.Gosched() {
		if _, err := os.ReadFile(comm); err != nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("the thread is left")
		}
	}
}
