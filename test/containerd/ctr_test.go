//go:build integration

package containerd

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/seed-efd44b36/kata/test/harness"
)

// ctr runs commands of ctr with a runtime.
type ctr struct {
	*Daemon
	runtime, shim string
}

// deadline is for one command; only a hang reaches it.
const deadline = 2 * time.Minute

// ids are numbers of containers.
var ids atomic.Int64

// notInIDs are the letters of names of tests that ids must not have.
var notInIDs = regexp.MustCompile(`[^a-z0-9]+`)

func newID(t *testing.T) string {
	t.Helper()
	return fmt.Sprintf("%s-%d", notInIDs.ReplaceAllString(strings.ToLower(t.Name()), "-"), ids.Add(1))
}

// result is how a command ended.
type result struct {
	code        int
	out, errOut string
}

// do runs a command of ctr to its end.
func (c ctr) do(t *testing.T, args ...string) result {
	t.Helper()
	return c.doInput(t, nil, args...)
}

func (c ctr) doInput(t *testing.T, stdin io.Reader, args ...string) result {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), deadline)
	defer cancel()
	cmd := c.Ctr(ctx, args...)
	var out, errOut bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = stdin, &out, &errOut
	err := cmd.Run()
	if ctx.Err() != nil {
		t.Fatalf("ctr %s: %v; stdout %q, stderr %q", strings.Join(args, " "), ctx.Err(), out.String(), errOut.String())
	}
	if _, ok := errors.AsType[*exec.ExitError](err); err != nil && !ok {
		t.Fatalf("ctr %s: %v", strings.Join(args, " "), err)
	}
	return result{code: cmd.ProcessState.ExitCode(), out: out.String(), errOut: errOut.String()}
}

// must is do for a command that has to succeed; it returns its output.
func (c ctr) must(t *testing.T, args ...string) string {
	t.Helper()
	r := c.do(t, args...)
	if r.code != 0 {
		t.Fatalf("ctr %s: exit code %d, stderr:\n%s", strings.Join(args, " "), r.code, r.errOut)
	}
	return strings.TrimSuffix(r.out, "\n")
}

const busybox = "localhost/busybox:latest"

// runArgs are the arguments to run a container of the busybox image.
func (c ctr) runArgs(id string, flags, command []string) []string {
	args := []string{"run", "--runtime", c.shim, "--fifo-dir", c.Fifos, "--cgroup", c.CgroupParent + "/" + id}
	return append(append(append(args, flags...), busybox, id), command...)
}

// run runs a container to its end and removes it.
func (c ctr) run(t *testing.T, flags []string, command ...string) result {
	t.Helper()
	id := newID(t)
	t.Cleanup(func() { c.removeFailed(t, id) })
	return c.do(t, c.runArgs(id, append(slices.Clone(flags), "--rm"), command)...)
}

// removeFailed removes what should not be there any more, after a test that has
// failed.
func (c ctr) removeFailed(t *testing.T, id string) {
	t.Helper()
	if t.Failed() {
		c.remove(t, id)
	}
}

// detached starts a container that is removed, whatever it does, when the test
// ends.
func (c ctr) detached(t *testing.T, flags []string, command ...string) string {
	t.Helper()
	id := newID(t)
	t.Cleanup(func() { c.remove(t, id) })
	c.must(t, c.runArgs(id, append(slices.Clone(flags), "--detach", "--null-io"), command)...)
	return id
}

// remove ends and removes a container.
func (c ctr) remove(t *testing.T, id string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), deadline)
	defer cancel()
	for _, args := range [][]string{{"tasks", "delete", "--force", id}, {"containers", "delete", id}} {
		if out, err := c.Ctr(ctx, args...).CombinedOutput(); err != nil && !strings.Contains(string(out), "not found") {
			t.Errorf("ctr %s: %v: %s", strings.Join(args, " "), err, out)
		}
	}
}

// exec runs a command in a container.
func (c ctr) exec(t *testing.T, stdin io.Reader, id string, flags []string, command ...string) result {
	t.Helper()
	args := append([]string{"tasks", "exec", "--fifo-dir", c.Fifos, "--exec-id", fmt.Sprintf("e%d", ids.Add(1))}, flags...)
	return c.doInput(t, stdin, append(append(args, id), command...)...)
}

// status is what `ctr tasks list` says of a container.
func (c ctr) status(t *testing.T, id string) string {
	t.Helper()
	for line := range strings.Lines(c.must(t, "tasks", "list")) {
		if f := strings.Fields(line); len(f) == 3 && f[0] == id {
			return f[2]
		}
	}
	return "none"
}

// eventLog collects the events of a daemon.
type eventLog struct{ out harness.Buffer }

// events collects events from now to the end of the test.
func (c ctr) events(t *testing.T) *eventLog {
	t.Helper()
	var l eventLog
	cmd := c.Ctr(t.Context(), "events")
	cmd.Stdout = &l.out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	// It has subscribed when it tells of something.
	harness.Poll(t, "an event is seen", func() bool {
		name := fmt.Sprintf("probe%d", ids.Add(1))
		c.must(t, "namespaces", "create", name)
		c.must(t, "namespaces", "remove", name)
		return strings.Contains(l.out.String(), "/namespaces/")
	})
	return &l
}

// of are the names of the events of a task, in their order.
func (l *eventLog) of(id string) []string {
	var names []string
	for _, m := range regexp.MustCompile(`(?m)/tasks/(\S+) .*"container_id":"`+regexp.QuoteMeta(id)+`"`).FindAllStringSubmatch(l.out.String(), -1) {
		names = append(names, m[1])
	}
	return names
}
