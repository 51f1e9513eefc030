//go:build integration

package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/seed-efd44b36/kata/test/harness"
	"golang.org/x/sys/unix"
)

// warmClones makes an installation in which n warm clones wait for sandboxes.
func warmClones(t *testing.T, n int) (e *harness.Env, key string) {
	t.Helper()
	e, _ = templates(t, fmt.Sprintf("vm_cache_number = %d", n))
	key = e.MustKata(t, "template", "create")
	t.Cleanup(func() { e.EmptyPool(t) })
	return e, key
}

// waiting waits until n clones wait, and returns their directories.
func waiting(t *testing.T, e *harness.Env, n int) (dirs []string) {
	t.Helper()
	harness.PollFor(t, making, fmt.Sprintf("%d warm clones wait", n), func() bool {
		socks, err := filepath.Glob(filepath.Join(e.State, "warm-*", "claim.sock"))
		if err != nil {
			t.Fatal(err)
		}
		dirs = nil
		for _, s := range socks {
			dirs = append(dirs, filepath.Dir(s))
		}
		return len(dirs) >= n
	})
	if len(dirs) > n {
		t.Fatalf("%d clones wait, want %d", len(dirs), n)
	}
	return dirs
}

// cloneOf returns the id of the warm clone that a sandbox is.
func cloneOf(t *testing.T, e *harness.Env, id string) string {
	t.Helper()
	log, err := os.ReadFile(filepath.Join(e.State, id, "owner.log"))
	if err != nil {
		t.Fatal(err)
	}
	m := regexp.MustCompile(`"sandbox is a warm clone".*"clone":"([^"]+)"`).FindSubmatch(log)
	if m == nil {
		t.Fatalf("it is no warm clone:\n%s", log)
	}
	return string(m[1])
}

// TestWarmClones is the life of a pool: it is filled, a sandbox takes a clone, which
// has nothing of what others have; another one takes its place, and the pool ends
// with its template.
func TestWarmClones(t *testing.T) {
	t.Parallel()
	e, key := warmClones(t, 2)
	first := waiting(t, e, 2)
	if list := e.MustKata(t, "template", "list"); !regexp.MustCompile(key + `.* 2(\n|$)`).MatchString(list) {
		t.Errorf("list does not tell of 2 clones:\n%s", list)
	}
	if out := e.MustKata(t, "ps", "-a"); strings.Contains(out, "warm") {
		t.Errorf("clones that wait are listed as containers:\n%s", out)
	}
	const script = `cat /proc/sys/kernel/random/boot_id
cat /proc/sys/kernel/random/uuid
head -c 32 /dev/urandom | sha256sum
hostname
cat /sys/class/net/eth0/address
head -c 64 /proc/self/auxv | sha256sum
echo "$SECRET" > /dev/shm/secret
ping -c 1 -W 10 $(ip route | sed -n 's/^default via \([0-9.]*\).*/\1/p') > /dev/null
cat /v/file
sleep 1000`
	volume := t.TempDir()
	if err := os.WriteFile(filepath.Join(volume, "file"), []byte("of the host\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	var answers [2][]string
	for i := range answers {
		id := startIn(t, e, "-v", volume+":/v", "-e", "SECRET="+key, busybox, "sh", "-ec", script)
		clone := cloneOf(t, e, id)
		if i == 0 && !strings.Contains(strings.Join(first, " "), clone) {
			t.Errorf("clone %s is none of %v", clone, first)
		}
		var out string
		harness.Poll(t, "it has answered", func() bool {
			out = e.MustKata(t, "logs", id)
			return strings.HasSuffix(out, "of the host")
		})
		answers[i] = strings.Split(out, "\n")
		if got := e.MustKata(t, "exec", id, "sh", "-c", "cat /dev/shm/secret; echo exec works"); got != key+"\nexec works" {
			t.Errorf("exec: %q", got)
		}
		if got := e.MustKata(t, "exec", id, "sh", "-c", "ps | grep rehearsa[l] || true"); got != "" {
			t.Errorf("something of the rehearsal is there: %q", got)
		}
		remove(t, e, id)
		if _, err := os.Stat(filepath.Join(e.State, clone)); err == nil {
			t.Errorf("%s is there after the end of its sandbox", clone)
		}
	}
	for i := range answers[0][:6] {
		if answers[0][i] == answers[1][i] {
			t.Errorf("answer %d of both is %q", i, answers[0][i])
		}
	}
	waiting(t, e, 2) // others have taken their places

	// More sandboxes than there are clones: the others are restored or boot.
	for range 3 {
		if got := e.MustKata(t, "run", "--rm", "--network", "none", busybox, "echo", "never a cliff"); got != "never a cliff" {
			t.Errorf("got %q", got)
		}
	}
	waiting(t, e, 2)
	e.MustKata(t, "template", "rm", key)
	if left, _ := filepath.Glob(filepath.Join(e.State, "warm-*")); len(left) > 0 {
		t.Errorf("left after the end of the template: %v", left)
	}
}

// TestWarmCloneKilled kills each of the processes that a sandbox has that is a warm
// clone: the others end, and nothing is left.
func TestWarmCloneKilled(t *testing.T) {
	t.Parallel()
	e, _ := warmClones(t, 1)
	for victim, pid := range map[string]func(id, clone string) int{
		"keeper":     func(_, clone string) int { return parentOf(t, machineOf(clone)) },
		"qemu":       func(_, clone string) int { return machineOf(clone) },
		"kata-proxy": func(id, _ string) int { return ownerOf(t, id) },
	} {
		t.Run(victim, func(t *testing.T) {
			e.MustKata(t, "run", "--rm", "--network", "none", busybox, "true") // the pool may have lost its keeper
			waiting(t, e, 1)
			id := startIn(t, e, "--network", "none", busybox, "sleep", "1000")
			clone := cloneOf(t, e, id)
			p := pid(id, clone)
			if p <= 1 {
				t.Fatalf("pid %d", p)
			}
			if err := unix.Kill(p, unix.SIGKILL); err != nil {
				t.Fatal(err)
			}
			harness.Poll(t, "the machine has ended", func() bool { return machineOf(clone) == 0 })
			harness.Poll(t, "the container has ended", func() bool { return !strings.Contains(e.MustKata(t, "ps"), id[:12]) })
			remove(t, e, id)
			e.MustKata(t, "gc")
			for _, dir := range []string{id, clone} {
				if _, err := os.Stat(filepath.Join(e.State, dir)); err == nil {
					t.Errorf("%s is left", dir)
				}
			}
		})
	}

	// One that waits is collected, too.
	e.MustKata(t, "run", "--rm", "--network", "none", busybox, "true")
	dir := waiting(t, e, 1)[0]
	if err := unix.Kill(parentOf(t, machineOf(filepath.Base(dir))), unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	harness.Poll(t, "its machine has ended", func() bool { return machineOf(filepath.Base(dir)) == 0 })
	if got := e.MustKata(t, "run", "--rm", "--network", "none", busybox, "echo", "works"); got != "works" {
		t.Errorf("with a clone that is dead: %q", got)
	}
	e.MustKata(t, "gc")
	if _, err := os.Stat(dir); err == nil {
		t.Errorf("%s is left", dir)
	}
}
