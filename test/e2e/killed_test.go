//go:build integration

package e2e

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/seed-efd44b36/kata/test/harness"
	"golang.org/x/sys/unix"
)

// TestOwnerKilledInEachPhase kills kata-proxy, and once the caller with it, at
// each step of the start that its ledger or its state tells. A caller that
// lives is told and leaves nothing; else gc leaves nothing.
func TestOwnerKilledInEachPhase(t *testing.T) {
	t.Parallel()
	e := installation(t, "")
	steps := map[string]func(dir string) bool{
		"booted":  func(dir string) bool { return contains(dir, "state.json", "owner_pid") },
		"running": func(dir string) bool { return contains(dir, "state.json", `"running"`) },
	}
	for n := range wholeLedger + 1 {
		steps[fmt.Sprintf("%d records", n)] = func(dir string) bool {
			b, err := os.ReadFile(filepath.Join(dir, "ledger"))
			return err == nil && bytes.Count(b, []byte("\n")) >= n
		}
	}
	for _, step := range slices.Sorted(maps.Keys(steps)) {
		t.Run(step, func(t *testing.T) {
			killOwner(t, e, false, steps[step])
			killOwner(t, e, true, steps[step])
		})
	}
}

// contains tells whether a file of a sandbox has the text.
func contains(dir, file, text string) bool {
	b, err := os.ReadFile(filepath.Join(dir, file))
	return err == nil && bytes.Contains(b, []byte(text))
}

// wholeLedger is how many records the ledger of a started sandbox has that is
// on the default network and belongs to `kata run --rm`: its directory, network
// namespace, network, cgroup, shared directory and process.
const wholeLedger = 6

// killOwner starts a container and kills its kata-proxy, and first its caller
// if wanted, as soon as the sandbox's directory shows what is waited for.
func killOwner(t *testing.T, e *harness.Env, callerToo bool, reached func(dir string) bool) {
	t.Helper()
	cmd := e.Command(t.Context(), "kata", "run", "--rm", busybox, "sleep", "1000")
	var errOut harness.Buffer
	cmd.Stderr = &errOut
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = cmd.Wait() }()
	var owner int
	deadline := time.Now().Add(time.Minute)
	for { // as often as can be: some steps are short
		dirs, err := filepath.Glob(filepath.Join(e.State, "*"))
		if err != nil {
			t.Fatal(err)
		}
		if len(dirs) == 1 && reached(dirs[0]) {
			if owner = ownerOf(t, filepath.Base(dirs[0])); owner > 0 {
				break
			}
		}
		if time.Now().After(deadline) {
			_ = cmd.Process.Kill()
			t.Fatalf("the step is not reached; stderr %q", errOut.String())
		}
	}
	if callerToo {
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
	}
	if err := unix.Kill(owner, unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
		t.Fatal(err)
	}
	killed := time.Now()
	_ = cmd.Wait()
	if callerToo {
		harness.Poll(t, "gc leaves nothing", func() bool {
			e.MustKata(t, "gc")
			dirs, err := filepath.Glob(filepath.Join(e.State, "*"))
			return err == nil && len(dirs) == 0
		})
	} else {
		if code := cmd.ProcessState.ExitCode(); code != 125 && code != 255 {
			t.Errorf("the caller ended with %d, want 125 or 255", code)
		}
		text := strings.TrimSpace(errOut.String())
		if text == "" || strings.Count(text, "\n") > 1 {
			t.Errorf("the caller was told %q, want a line", text)
		}
		t.Logf("told after %s: %s", time.Since(killed).Round(time.Millisecond), text)
	}
	if left, err := e.Left(); err != nil || len(left) > 0 {
		t.Errorf("caller killed too: %t; left: %v\n  %s", callerToo, err, strings.Join(left, "\n  "))
	}
}

// ownerOf finds the kata-proxy of a sandbox; 0: there is none.
func ownerOf(t *testing.T, id string) int {
	t.Helper()
	entries, err := os.ReadDir("/proc")
	if err != nil {
		t.Fatal(err)
	}
	for _, en := range entries {
		args, err := os.ReadFile(filepath.Join("/proc", en.Name(), "cmdline"))
		if err != nil {
			continue // not a process, or not any more
		}
		if exe, rest, _ := bytes.Cut(args, []byte{0}); bytes.HasSuffix(exe, []byte("/kata-proxy")) && bytes.Contains(rest, []byte(id)) {
			pid, err := strconv.Atoi(en.Name())
			if err != nil {
				t.Fatal(err)
			}
			return pid
		}
	}
	return 0
}
