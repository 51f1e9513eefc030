package record

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestRecord(t *testing.T) {
	t.Parallel()
	root := Root(filepath.Join(t.TempDir(), "root"))
	if _, err := root.Read("c"); !errors.Is(err, ErrNotFound) {
		t.Errorf("read of none: %v", err)
	}
	if _, err := root.Lock(t.Context(), "c"); !errors.Is(err, ErrNotFound) {
		t.Errorf("lock of none: %v", err)
	}
	e, err := root.Create("c")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := root.Create("c"); !errors.Is(err, ErrExists) {
		t.Errorf("twice: %v", err)
	}
	if _, err := root.Read("c"); !errors.Is(err, ErrNotFound) {
		t.Errorf("read before it is written: %v", err)
	}
	want := Record{
		Version: version, ID: "c", Bundle: "/b", Rootfs: "/b/rootfs", Created: time.Now().UTC(), Sandbox: "s",
		Annotations: map[string]string{"a": "b"}, Shim: Process{PID: 1, Start: 2}, Ready: true,
	}
	if err := e.Write(want); err != nil {
		t.Fatal(err)
	}
	got, err := root.Read("c")
	if d := cmp.Diff(want, got); d != "" || err != nil {
		t.Errorf("%v, -want +got:\n%s", err, d)
	}
	if list, err := root.List(); err != nil || len(list) != 1 || list[0].ID != "c" {
		t.Errorf("list: %v, %v", list, err)
	}
	if err := e.Remove(); err != nil {
		t.Fatal(err)
	}
	e.Unlock()
	if list, err := root.List(); err != nil || len(list) != 0 {
		t.Errorf("list after its end: %v, %v", list, err)
	}
}

func TestIDs(t *testing.T) {
	t.Parallel()
	for id, ok := range map[string]bool{
		"c": true, "a_b.c-9": true, "": false, ".": false, "..": false, "a/b": false, "../a": false, "-a": false, "a b": false, "a\n": false,
		strings.Repeat("a", maxID): true, strings.Repeat("a", maxID+1): false,
	} {
		if err := CheckID(id); (err == nil) != ok {
			t.Errorf("%q: %v", id, err)
		}
	}
}

func TestOtherVersionIsRefused(t *testing.T) {
	t.Parallel()
	root := Root(t.TempDir())
	if err := os.Mkdir(root.dir("c"), 0o700); err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{`{"version":2,"id":"c"}`, `{"version":1,"id":"d"}`, `{"version":1`, ``} {
		if err := os.WriteFile(filepath.Join(root.dir("c"), stateFile), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := root.Read("c"); err == nil {
			t.Errorf("%q is taken", text)
		}
	}
}

// TestLockIsGivenUp has one who is told to wait no longer.
func TestLockIsGivenUp(t *testing.T) {
	t.Parallel()
	root := Root(t.TempDir())
	e, err := root.Create("c")
	if err != nil {
		t.Fatal(err)
	}
	defer e.Unlock()
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() {
		_, err := root.Lock(ctx, "c")
		ended <- err
	}()
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) || errors.Is(err, ErrNotFound) {
		t.Errorf("%v", err)
	}
}

// TestLock has many who add one, and one who removes the container at the end.
func TestLock(t *testing.T) {
	t.Parallel()
	root := Root(t.TempDir())
	e, err := root.Create("c")
	if err != nil {
		t.Fatal(err)
	}
	var waiting sync.WaitGroup
	const many = 20
	in, most, missing := make(chan struct{}, many), 0, 0
	for range many {
		waiting.Go(func() {
			e, err := root.Lock(t.Context(), "c")
			if err != nil {
				t.Error(err)
				return
			}
			defer e.Unlock()
			in <- struct{}{}
			most = max(most, len(in)) // the race detector watches
			<-in
		})
	}
	e.Unlock()
	waiting.Wait()
	if most != 1 {
		t.Errorf("%d at once", most)
	}
	if e, err = root.Lock(t.Context(), "c"); err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	for range many {
		waiting.Go(func() {
			other, err := root.Lock(t.Context(), "c")
			mu.Lock()
			defer mu.Unlock()
			if errors.Is(err, ErrNotFound) {
				missing++
			} else {
				t.Errorf("%v, %v", other, err)
			}
		})
	}
	if err := e.Remove(); err != nil {
		t.Fatal(err)
	}
	e.Unlock()
	waiting.Wait()
	if missing != many {
		t.Errorf("%d of %d have seen it go", missing, many)
	}
}

func TestProcess(t *testing.T) {
	t.Parallel()
	cmd := exec.CommandContext(t.Context(), "sleep", "1000")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	p, err := Identify(cmd.Process.Pid)
	if err != nil || !p.Alive() {
		t.Fatalf("%v, %v", p, err)
	}
	other := Process{PID: p.PID, Start: p.Start + 1}
	over, cancel := context.WithCancel(t.Context())
	cancel()
	if other.Alive() || other.End(over) != nil || !p.Alive() {
		t.Error("another process with its pid is taken for it")
	}
	if err := p.End(over); err != nil {
		t.Error(err)
	}
	if p.Alive() { // it has not been waited for
		t.Error("it lives")
	}
	if err := p.End(over); err != nil {
		t.Error(err)
	}
	_ = cmd.Wait()
	if (Process{}).Alive() {
		t.Error("none lives")
	}
}
