//go:build integration

package e2e

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/seed-efd44b36/kata/test/harness"
	"golang.org/x/sys/unix"
)

// making is what a template may take to be made in the background, at a low
// priority, beside other tests.
const making = 4 * time.Minute

// templates makes an installation with a cache of its own, which has the guest
// image and no template. factory are further lines of that part of the configuration.
func templates(t *testing.T, factory ...string) (e *harness.Env, store string) {
	t.Helper()
	cache, err := os.MkdirTemp("/var/cache", "kata-test-") //nolint:usetesting // of the file system of the cache, for links
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(cache) })
	// Links: the images are large, and never written to.
	if out, err := exec.CommandContext(t.Context(), "sh", "-c", `for d in image kernel memo; do cp -al /var/cache/kata/$d "$1"; done`, "sh", cache).CombinedOutput(); err != nil {
		t.Fatalf("copy the cache: %v: %s", err, out)
	}
	e = installation(t, fmt.Sprintf("cache_dir = %q\n[factory]\nenable_template = true\n%s", cache, strings.Join(factory, "\n")))
	e.MustKata(t, "image", "build")
	return e, filepath.Join(cache, "templates")
}

// restored runs a script in a sandbox and tells whether that was restored.
func restored(t *testing.T, e *harness.Env, script string, flags ...string) (out string, yes bool) {
	t.Helper()
	args := append([]string{"run", "--rm", "--network", "none", "--trace"}, flags...)
	r := e.Kata(t, append(args, busybox, "sh", "-ec", script)...)
	if r.Code != 0 {
		t.Fatalf("exit code %d: %s", r.Code, r.Stderr)
	}
	return strings.TrimSuffix(r.Stdout, "\n"), wasRestored(r)
}

// wasRestored reads the time line: one machine, which was restored.
func wasRestored(r harness.Result) bool {
	return strings.Contains(r.Stderr, " restore ") && strings.Count(r.Stderr, " QEMU up ") == 1
}

// TestTemplate is the life of a template as its owner sees it.
func TestTemplate(t *testing.T) {
	t.Parallel()
	e, store := templates(t)
	if out := e.MustKata(t, "template", "list"); strings.Contains(out, "\n") {
		t.Fatalf("there are templates:\n%s", out)
	}

	// The first sandbox boots, and a template is made meanwhile.
	if _, yes := restored(t, e, "true"); yes {
		t.Error("the first sandbox was restored")
	}
	var list string
	harness.PollFor(t, making, "there is a template", func() bool {
		list = e.MustKata(t, "template", "list")
		return strings.Contains(list, "\n")
	})
	line := strings.Split(list, "\n")[1]
	key := strings.Fields(line)[0]
	if !strings.Contains(line, "512 MiB") {
		t.Errorf("list: %s", line)
	}
	if got := e.MustKata(t, "template", "create"); got != key {
		t.Errorf("create made %s, want %s, which is there", got, key)
	}
	if _, yes := restored(t, e, "true"); !yes {
		t.Error("the second sandbox was not restored")
	}
	if got := e.MustKata(t, "template", "verify"); got != key+" is sound" {
		t.Errorf("verify: %q", got)
	}

	// A limit, with what the guest needs itself, is in the same class.
	if out, yes := restored(t, e, "cat /sys/fs/cgroup/memory.max", "--memory", "300m"); !yes || out != strconv.Itoa(300<<20) {
		t.Errorf("a limit of 300 MiB: %q, restored: %v", out, yes)
	}

	// What is not sound is not used, and told.
	state := filepath.Join(store, key, "state")
	if err := os.WriteFile(state, []byte("changed"), 0o600); err != nil {
		t.Fatal(err)
	}
	if r := e.Kata(t, "template", "verify"); r.Code == 0 || !strings.Contains(r.Stderr, "its state has changed") || !strings.Contains(r.Stderr, "kata template rm "+key) {
		t.Errorf("verify of a template that was changed: %+v", r)
	}
	if out, yes := restored(t, e, "echo still works"); yes || out != "still works" {
		t.Errorf("with a template that was changed: %q, restored: %v", out, yes)
	}
	harness.PollFor(t, making, "it is made again", func() bool { return e.Kata(t, "template", "verify", key).Code == 0 })
	if _, yes := restored(t, e, "true"); !yes {
		t.Error("a template that was made again is not used")
	}

	// One that looks right and cannot be restored is used once.
	memory := filepath.Join(store, key, "memory")
	if err := errors.Join(os.Truncate(memory, 0), os.Truncate(memory, 512<<20)); err != nil {
		t.Fatal(err)
	}
	if out, _ := restored(t, e, "echo booted after all"); !strings.HasPrefix(out, "booted after all") {
		t.Errorf("with a template without memory: %q", out)
	}
	if r := e.Kata(t, "template", "list"); strings.Contains(r.Stdout, key) || !strings.Contains(r.Stderr, key) {
		t.Errorf("a template that could not be restored is still used: %+v", r)
	}
	e.MustKata(t, "template", "rm", key)
	if r := e.Kata(t, "template", "rm", key); r.Code == 0 || !strings.Contains(r.Stderr, "no such template") {
		t.Errorf("rm of a template that is gone: %+v", r)
	}
}

// TestClonesDiffer: of two sandboxes that were made from one template, each has
// its own of everything that must not be the same, and the right time.
func TestClonesDiffer(t *testing.T) {
	t.Parallel()
	e, _ := templates(t)
	e.MustKata(t, "template", "create")
	const script = `cat /proc/sys/kernel/random/boot_id
cat /proc/sys/kernel/random/uuid
head -c 32 /dev/urandom | sha256sum
hostname
cat /sys/class/net/eth0/address
mktemp -u XXXXXXXXXXXX
head -c 64 /proc/self/auxv | sha256sum
date +%s`
	questions := []string{"boot_id", "uuid", "urandom", "hostname", "MAC", "mktemp", "auxv"}
	var answers [2][]string
	for i := range answers {
		r := e.Kata(t, "run", "--rm", "--trace", busybox, "sh", "-ec", script)
		if r.Code != 0 || !wasRestored(r) {
			t.Fatalf("%+v", r)
		}
		answers[i] = strings.Split(strings.TrimSpace(r.Stdout), "\n")
		if now, err := strconv.ParseInt(answers[i][len(questions)], 10, 64); err != nil || time.Since(time.Unix(now, 0)).Abs() > time.Minute {
			t.Errorf("its clock says %s, %v", answers[i][len(questions)], err)
		}
	}
	for i, q := range questions {
		if answers[0][i] == answers[1][i] {
			t.Errorf("%s of both is %q", q, answers[0][i])
		}
	}
}

// TestSecretsStay: what a sandbox has in its memory is found in its own machine,
// and neither in the template nor in a sandbox that is made from it then or later.
func TestSecretsStay(t *testing.T) {
	t.Parallel()
	e, store := templates(t)
	key := e.MustKata(t, "template", "create")
	secret := rand.Text()
	keeper := startIn(t, e, "--network", "none", "--tmpfs", "/t", "-e", "SECRET="+secret, busybox,
		"sh", "-ec", "for i in 1 2 3 4 5 6 7 8; do echo $SECRET >> /t/secret; done; echo ready; sleep 1000")
	harness.Poll(t, "the secret is written", func() bool { return strings.Contains(e.MustKata(t, "logs", keeper), "ready") })
	if !hasInMemory(t, e, keeper, secret) {
		t.Error("the secret is not found where it is, so the search is worth nothing")
	}
	other := startIn(t, e, "--network", "none", busybox, "sleep", "1000")
	if hasInMemory(t, e, other, secret) {
		t.Error("a sandbox has the secret of another that lives")
	}
	remove(t, e, keeper)
	later := startIn(t, e, "--network", "none", busybox, "sleep", "1000")
	if hasInMemory(t, e, later, secret) {
		t.Error("a sandbox has the secret of an earlier one")
	}
	for _, f := range []string{"memory", "state"} {
		file, err := os.Open(filepath.Join(store, key, f))
		if err != nil {
			t.Fatal(err)
		}
		if contained(t, file, secret) {
			t.Errorf("the template's %s has the secret", f)
		}
		_ = file.Close()
	}
	if got := e.MustKata(t, "template", "verify", key); got != key+" is sound" {
		t.Errorf("verify: %q", got)
	}
}

// hasInMemory searches all memory of the machine that a container runs in.
func hasInMemory(t *testing.T, e *harness.Env, id, text string) bool {
	t.Helper()
	pid := machineOf(id)
	if pid == 0 {
		t.Fatalf("no virtual machine of %s in %s", id, e.State)
	}
	maps, err := os.Open(fmt.Sprintf("/proc/%d/maps", pid))
	if err != nil {
		t.Fatal(err)
	}
	defer maps.Close()
	mem, err := os.Open(fmt.Sprintf("/proc/%d/mem", pid))
	if err != nil {
		t.Fatal(err)
	}
	defer mem.Close()
	for lines := bufio.NewScanner(maps); lines.Scan(); {
		var from, to int64
		var mode string
		if _, err := fmt.Sscanf(lines.Text(), "%x-%x %s", &from, &to, &mode); err != nil || mode[0] != 'r' || strings.Contains(lines.Text(), "[v") {
			continue
		}
		if contained(t, io.NewSectionReader(mem, from, to-from), text) {
			return true
		}
	}
	return false
}

// contained searches a stream for a text. What cannot be read ends it.
func contained(t *testing.T, r io.Reader, text string) bool {
	t.Helper()
	block := make([]byte, 4<<20)
	kept := 0
	for {
		n, err := io.ReadFull(r, block[kept:])
		if bytes.Contains(block[:kept+n], []byte(text)) {
			return true
		}
		if err != nil {
			return false
		}
		kept = copy(block, block[len(block)-len(text):])
	}
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// TestMakerKilled kills the maker of a template, or its machine, while that boots: gc
// leaves nothing, and the next one makes it.
func TestMakerKilled(t *testing.T) {
	t.Parallel()
	e, store := templates(t)
	for _, victim := range []string{"kata-proxy", "qemu"} {
		t.Run(victim, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
			defer cancel()
			cmd := e.Command(ctx, "kata", "template", "create")
			var said harness.Buffer
			cmd.Stderr = &said
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			var pid int
			harness.Poll(t, "the machine runs", func() bool {
				dirs, _ := filepath.Glob(filepath.Join(e.State, "template-*"))
				for _, d := range dirs {
					if pid = machineOf(filepath.Base(d)); pid != 0 && victim == "kata-proxy" {
						pid = parentOf(t, pid)
					}
				}
				return pid != 0
			})
			if err := unix.Kill(pid, unix.SIGKILL); err != nil {
				t.Fatal(err)
			}
			if err := cmd.Wait(); err == nil {
				t.Error("create works without " + victim)
			}
			t.Log(said.String())
			e.MustKata(t, "gc")
			for _, pattern := range []string{filepath.Join(e.State, "template-*"), filepath.Join(store, ".tmp-*")} {
				if left, _ := filepath.Glob(pattern); len(left) > 0 {
					t.Errorf("left: %v", left)
				}
			}
		})
	}
	key := e.MustKata(t, "template", "create")
	if got := e.MustKata(t, "template", "verify", key); got != key+" is sound" {
		t.Errorf("verify: %q", got)
	}
}

// machineOf finds the virtual machine of a sandbox, 0: there is none.
func machineOf(id string) int {
	for _, d := range must(filepath.Glob("/proc/[0-9]*/cmdline")) {
		args, _ := os.ReadFile(d) // it may have gone
		if bytes.Contains(args, []byte("qemu")) && bytes.Contains(args, []byte("\x00"+id+"\x00")) {
			pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(d)))
			return pid
		}
	}
	return 0
}

func parentOf(t *testing.T, pid int) int {
	t.Helper()
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		t.Fatal(err)
	}
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	ppid, err := strconv.Atoi(fields[1])
	if err != nil {
		t.Fatal(err)
	}
	return ppid
}

// TestManyClones starts sandboxes from one template at the same time.
func TestManyClones(t *testing.T) {
	t.Parallel()
	e, _ := templates(t)
	e.MustKata(t, "template", "create")
	const n = 10
	type answer struct {
		r   harness.Result
		err error
	}
	answers := make(chan answer, n)
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	for range n {
		go func() {
			r, err := e.Run(ctx, nil, "kata", "run", "--rm", "--trace", busybox, "cat", "/proc/sys/kernel/random/boot_id")
			answers <- answer{r, err}
		}()
	}
	seen := map[string]bool{}
	for range n {
		a := <-answers
		if a.err != nil || a.r.Code != 0 || !wasRestored(a.r) {
			t.Errorf("%v, %+v", a.err, a.r)
		}
		seen[a.r.Stdout] = true
	}
	if len(seen) != n {
		t.Errorf("%d sandboxes have %d boot ids", n, len(seen))
	}
}
