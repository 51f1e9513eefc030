//go:build integration

package containerd

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/seed-efd44b36/kata/test/harness"
)

// TestRun is of containers that run to their end.
func TestRun(t *testing.T) {
	cases := []struct {
		name    string
		flags   []string
		command []string
		want    result
	}{
		{name: "success", command: []string{"true"}},
		{name: "exit code and outputs", command: []string{"sh", "-c", "echo out; echo err >&2; exit 42"}, want: result{code: 42, out: "out\n", errOut: "err\n"}},
		{
			name: "environment, directory, read-only root", flags: []string{"--env", "A=b c", "--cwd", "/srv", "--read-only"},
			command: []string{"sh", "-c", "echo $A; pwd; touch /x 2>&1; echo $?"},
			want:    result{out: "b c\n/srv\ntouch: /x: Read-only file system\n1\n"},
		},
	}
	each(t, func(t *testing.T, c ctr) {
		for _, tc := range cases {
			t.Run(tc.name, func(t *testing.T) {
				t.Parallel()
				if got := c.run(t, tc.flags, tc.command...); got != tc.want {
					t.Errorf("got %+v, want %+v", got, tc.want)
				}
			})
		}
		t.Run("no such command", func(t *testing.T) {
			t.Parallel()
			r := c.run(t, nil, "/bin/nothing")
			if r.code == 0 || !strings.Contains(r.errOut, "no such file or directory") {
				t.Errorf("got %+v, want an error that says there is no such file", r)
			}
		})
	})
}

// TestLargeOutput compares what a container was told to print with what came.
func TestLargeOutput(t *testing.T) {
	each(t, func(t *testing.T, c ctr) {
		t.Parallel()
		// Written once and told several times: what makes many small writes is
		// slow where the processor is emulated.
		const line = "a line of text\n"
		chunk, times := strings.Repeat(line, 1<<18), 1
		if os.Getenv("KATA_LONG") != "" {
			chunk, times = strings.Repeat(line, 1<<20), 69 // more than 1 GiB
		}
		script := fmt.Sprintf("yes '%s' | head -c %d > /dev/shm/f; for i in $(seq %d); do cat /dev/shm/f; done", strings.TrimSpace(line), len(chunk), times)
		ctx, cancel := context.WithTimeout(t.Context(), 5*deadline)
		defer cancel()
		cmd := c.Ctr(ctx, c.runArgs(newID(t), []string{"--rm"}, []string{"sh", "-c", script})...)
		var count counter
		sum := sha256.New()
		cmd.Stdout = io.MultiWriter(sum, &count)
		if err := cmd.Run(); err != nil {
			t.Fatal(err)
		}
		want := sha256.New()
		for range times {
			_, _ = io.WriteString(want, chunk)
		}
		if got, want := sum.Sum(nil), want.Sum(nil); !bytes.Equal(got, want) {
			t.Errorf("%d bytes, want %d; checksum %x, want %x", count, times*len(chunk), got, want)
		}
	})
}

// counter counts bytes.
type counter int

// Write implements io.Writer.
func (c *counter) Write(p []byte) (int, error) {
	*c += counter(len(p))
	return len(p), nil
}

// TestInput writes to a container and closes its standard input. It waits for
// the answer before, as ctr loses an end of input that is there at once.
func TestInput(t *testing.T) {
	each(t, func(t *testing.T, c ctr) {
		t.Parallel()
		ctx, cancel := context.WithTimeout(t.Context(), deadline)
		defer cancel()
		id := newID(t)
		cmd := c.Ctr(ctx, c.runArgs(id, []string{"--rm"}, []string{"sh", "-c", "cat; echo end"})...)
		stdin, err := cmd.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		var out harness.Buffer
		cmd.Stdout = &out
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.removeFailed(t, id) })
		if _, err := io.WriteString(stdin, "one\n"); err != nil {
			t.Fatal(err)
		}
		harness.Poll(t, "the first line comes back", func() bool { return out.String() == "one\n" })
		_, _ = io.WriteString(stdin, "two\n")
		harness.Poll(t, "the second line comes back", func() bool { return out.String() == "one\ntwo\n" })
		_ = stdin.Close()
		if err := cmd.Wait(); err != nil || out.String() != "one\ntwo\nend\n" {
			t.Errorf("%v, %q", err, out.String())
		}
	})
}

// TestTerminal is of a container with a terminal: size, change of size, keys
// that are signals, exit code.
func TestTerminal(t *testing.T) {
	each(t, func(t *testing.T, c ctr) {
		t.Parallel()
		id := newID(t)
		t.Cleanup(func() { c.removeFailed(t, id) })
		args := c.runArgs(id, []string{"--rm", "--tty"}, []string{"sh", "-c", `trap "echo changed" WINCH; echo ready; while [ "$l" != go ]; do read l; done; until [ "$(stty size)" = "30 100" ]; do sleep 0.1; done; stty size; exec sh`})
		tt := harness.AtTerminal(t, c.Ctr(t.Context(), args...), 80, 24)
		tt.See("ready")
		// ctr reads the size before it listens for changes: one that falls
		// between is lost, with runc too.
		rows := uint16(30)
		harness.Poll(t, "the change of size arrives", func() bool {
			tt.Resize(100, rows)
			rows ^= 1
			return strings.Contains(tt.Screen.String(), "changed")
		})
		tt.Resize(100, 31)
		tt.Resize(100, 30)
		tt.Press("go\n")
		tt.See("30 100")
		tt.See("# ")
		tt.Press("sh -c 'echo sleeping; exec sleep 1000'\n")
		tt.See("\nsleeping\r")
		tt.Press("\x03")
		tt.Press("echo interrupted $?\n")
		tt.See("interrupted 130")
		tt.Press("exit 7\n")
		if code := tt.Exit(); code != 7 {
			t.Errorf("exit code %d, want 7", code)
		}
	})
}

// TestSignals sends signals to a container and looks at how it ends.
func TestSignals(t *testing.T) {
	each(t, func(t *testing.T, c ctr) {
		t.Parallel()
		id := newID(t)
		var out harness.Buffer
		cmd := c.Ctr(t.Context(), c.runArgs(id, []string{"--rm"},
			[]string{"sh", "-c", `trap "echo usr1" USR1; trap "echo term; exit 9" TERM; echo ready; while :; do sleep 1; done`})...)
		cmd.Stdout = &out
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.removeFailed(t, id) })
		harness.Poll(t, "it is ready", func() bool { return out.String() == "ready\n" })
		c.must(t, "tasks", "kill", "--signal", "SIGUSR1", id)
		harness.Poll(t, "the signal arrives", func() bool { return strings.Contains(out.String(), "usr1\n") })
		c.must(t, "tasks", "kill", id)
		_ = cmd.Wait()
		if code := cmd.ProcessState.ExitCode(); code != 9 || out.String() != "ready\nusr1\nterm\n" {
			t.Errorf("exit code %d, output %q", code, out.String())
		}
	})
}

// TestKilled is of a container that gets SIGKILL with all that runs in it.
func TestKilled(t *testing.T) {
	each(t, func(t *testing.T, c ctr) {
		t.Parallel()
		id := c.detached(t, nil, "sh", "-c", "sleep 1000 & sleep 1000 & wait")
		if got := c.status(t, id); got != "RUNNING" {
			t.Errorf("status %q", got)
		}
		if r := c.do(t, "containers", "delete", id); r.code == 0 {
			t.Error("a container that runs could be deleted")
		}
		if r := c.do(t, "tasks", "delete", id); r.code == 0 {
			t.Error("a task that runs could be deleted")
		}
		c.must(t, "tasks", "kill", "--all", "--signal", "SIGKILL", id)
		harness.Poll(t, "it is stopped", func() bool { return c.status(t, id) == "STOPPED" })
		if r := c.exec(t, nil, id, nil, "true"); r.code == 0 || r.errOut == "" {
			t.Errorf("exec in a stopped container: %+v", r)
		}
		if r := c.do(t, "tasks", "delete", id); !strings.Contains(r.errOut, "137") {
			t.Errorf("delete: %+v, want to be told of exit code 137", r)
		}
	})
}

// TestAttach lets the client go away and attaches another one.
func TestAttach(t *testing.T) {
	each(t, func(t *testing.T, c ctr) {
		t.Parallel()
		id := newID(t)
		t.Cleanup(func() { c.remove(t, id) })
		run := c.Ctr(t.Context(), c.runArgs(id, nil, []string{"sh", "-c", `echo ready; while read l; do echo "$l $l"; done; echo end`})...)
		var out harness.Buffer
		run.Stdout = &out
		stdin, err := run.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := run.Start(); err != nil {
			t.Fatal(err)
		}
		harness.Poll(t, "it is ready", func() bool { return out.String() == "ready\n" })
		_ = run.Process.Kill()
		_ = run.Wait()
		_ = stdin.Close()

		attach := c.Ctr(t.Context(), "tasks", "attach", id)
		var again harness.Buffer
		attach.Stdout = &again
		if stdin, err = attach.StdinPipe(); err != nil {
			t.Fatal(err)
		}
		if err := attach.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = attach.Process.Kill(); _ = attach.Wait() })
		_, _ = io.WriteString(stdin, "hello\n")
		harness.Poll(t, "it answers the second client", func() bool { return again.String() == "hello hello\n" })
	})
}

// TestOutOfMemory is of a container that takes more than it may.
func TestOutOfMemory(t *testing.T) {
	each(t, func(t *testing.T, c ctr) {
		t.Parallel()
		events := c.events(t)
		id := newID(t)
		t.Cleanup(func() { c.removeFailed(t, id) })
		r := c.do(t, c.runArgs(id, []string{"--rm", "--memory-limit", fmt.Sprint(64 << 20)}, []string{"sh", "-c", "tail /dev/zero"})...)
		if r.code != 137 {
			t.Errorf("got %+v, want exit code 137", r)
		}
		harness.Poll(t, "there is an event", func() bool { return slices.Contains(events.of(id), "oom") })
	})
}

// TestPause freezes a container.
func TestPause(t *testing.T) {
	each(t, func(t *testing.T, c ctr) {
		t.Parallel()
		id := c.detached(t, nil, "sh", "-c", "i=0; while :; do i=$((i+1)); echo $i > /count; sleep 0.02; done")
		count := func() string { return c.exec(t, nil, id, nil, "cat", "/count").out }
		harness.Poll(t, "it counts", func() bool { return count() != "" })
		c.must(t, "tasks", "pause", id)
		if got := c.status(t, id); got != "PAUSED" {
			t.Errorf("status %q", got)
		}
		c.must(t, "tasks", "resume", id)
		if got := c.status(t, id); got != "RUNNING" {
			t.Errorf("status %q", got)
		}
		at := count()
		harness.Poll(t, "it counts on", func() bool { return count() != at })
		// A frozen container can be killed.
		c.must(t, "tasks", "pause", id)
		c.must(t, "tasks", "kill", "--signal", "SIGKILL", id)
		c.do(t, "tasks", "resume", id) // which runc needs for that, and others cannot do any more
		harness.Poll(t, "it is stopped", func() bool { return c.status(t, id) == "STOPPED" })
	})
}

// TestExec is of processes in one container.
func TestExec(t *testing.T) {
	cases := []struct {
		name    string
		flags   []string
		command []string
		want    result
	}{
		{name: "success", command: []string{"true"}},
		{name: "exit code and outputs", command: []string{"sh", "-c", "echo out; echo err >&2; exit 3"}, want: result{code: 3, out: "out\n", errOut: "err\n"}},
		{name: "killed", command: []string{"sh", "-c", "kill -KILL $$"}, want: result{code: 137}},
		{name: "user", flags: []string{"--user", "1000"}, command: []string{"id", "-u"}, want: result{out: "1000\n"}},
		{name: "directory", flags: []string{"--cwd", "/tmp"}, command: []string{"pwd"}, want: result{out: "/tmp\n"}},
	}
	each(t, func(t *testing.T, c ctr) {
		id := c.detached(t, nil, "sh", "-c", "echo x > /running; sleep 1000 & wait")
		for _, tc := range cases {
			t.Run(tc.name, func(t *testing.T) {
				if got := c.exec(t, nil, id, tc.flags, tc.command...); got != tc.want {
					t.Errorf("got %+v, want %+v", got, tc.want)
				}
			})
		}
		t.Run("no such command", func(t *testing.T) {
			if r := c.exec(t, nil, id, nil, "/bin/nothing"); r.code == 0 || r.errOut == "" {
				t.Errorf("got %+v, want an error", r)
			}
		})
		t.Run("input to its end", func(t *testing.T) {
			in, w := io.Pipe()
			go func() { // ends with the exec, which reads all of it
				for i := range 3 {
					_, _ = fmt.Fprintln(w, i)
					time.Sleep(100 * time.Millisecond)
				}
				_ = w.Close()
			}()
			if r := c.exec(t, in, id, nil, "cat"); r != (result{out: "0\n1\n2\n"}) {
				t.Errorf("got %+v", r)
			}
		})
		t.Run("terminal", func(t *testing.T) {
			args := []string{"tasks", "exec", "--fifo-dir", c.Fifos, "--exec-id", newID(t), "--tty", id, "sh"}
			tt := harness.AtTerminal(t, c.Ctr(t.Context(), args...), 90, 20)
			// ctr tells the size after the start.
			tt.Press("until stty size | grep '20.90'; do sleep 0.1; done\n")
			tt.See("20 90")
			tt.Press("exit 4\n")
			if code := tt.Exit(); code != 4 {
				t.Errorf("exit code %d, want 4", code)
			}
		})
		t.Run("processes", func(t *testing.T) {
			harness.Poll(t, "init and sleep are listed", func() bool {
				return len(regexp.MustCompile(`(?m)^[0-9]+\s`).FindAllString(c.must(t, "tasks", "ps", id), -1)) >= 1
			})
		})
		t.Run("metrics", func(t *testing.T) {
			m := c.must(t, "tasks", "metrics", "--format", "json", id)
			for _, want := range []string{"usage", "memory"} {
				if !strings.Contains(strings.ToLower(m), want) {
					t.Errorf("metrics have no %s: %s", want, m)
				}
			}
		})
		t.Run("in parallel", func(t *testing.T) {
			n := 16
			if os.Getenv("KATA_LONG") != "" {
				n = 200
			}
			got := make(chan string, n)
			for i := range n {
				go func() { // each sends once
					// The pause is for ctr, which drops the output of what has ended
					// before it reads: with runc as well, now and then.
					script := fmt.Sprintf("echo %d; sleep 0.5; exit %d", i, i%100)
					cmd := c.Ctr(t.Context(), "tasks", "exec", "--fifo-dir", c.Fifos, "--exec-id", fmt.Sprintf("p%d", i), id, "sh", "-c", script)
					out, err := cmd.Output()
					exit, _ := errors.AsType[*exec.ExitError](err)
					if exit != nil && len(exit.Stderr) > 0 {
						t.Errorf("exec %d: %s", i, exit.Stderr)
					}
					got <- fmt.Sprintf("%s%d", out, cmd.ProcessState.ExitCode())
				}()
			}
			var have, want []string
			for i := range n {
				have, want = append(have, <-got), append(want, fmt.Sprintf("%d\n%d", i, i%100))
			}
			slices.Sort(have)
			slices.Sort(want)
			if d := cmp.Diff(want, have); d != "" {
				t.Error(d)
			}
		})
		t.Run("while it is stopped", func(t *testing.T) {
			cmd := c.Ctr(t.Context(), "tasks", "exec", "--fifo-dir", c.Fifos, "--exec-id", "last", id, "sh", "-c", "echo ready; sleep 1000")
			var out harness.Buffer
			cmd.Stdout, cmd.Stderr = &out, &out
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			harness.Poll(t, "the exec runs", func() bool { return strings.Contains(out.String(), "ready") })
			c.must(t, "tasks", "kill", "--signal", "SIGKILL", id)
			_ = cmd.Wait()
			if code := cmd.ProcessState.ExitCode(); code != 137 {
				t.Errorf("exit code %d, want 137; %s", code, out.String())
			}
			harness.Poll(t, "it is stopped", func() bool { return c.status(t, id) == "STOPPED" })
		})
	})
}

// TestEvents looks at the events of a container's life, in their order.
func TestEvents(t *testing.T) {
	each(t, func(t *testing.T, c ctr) {
		t.Parallel()
		events := c.events(t)
		id := c.detached(t, nil, "sleep", "1000")
		if r := c.exec(t, nil, id, nil, "true"); r.code != 0 {
			t.Errorf("exec: %+v", r)
		}
		c.must(t, "tasks", "pause", id)
		c.must(t, "tasks", "resume", id)
		c.must(t, "tasks", "kill", "--signal", "SIGKILL", id)
		harness.Poll(t, "it is stopped", func() bool { return c.status(t, id) == "STOPPED" })
		deleted := c.do(t, "tasks", "delete", id)
		want := []string{"create", "start", "exec-added", "exec-started", "exit", "paused", "resumed", "exit", "delete"}
		t.Cleanup(func() {
			if t.Failed() {
				t.Logf("delete: %+v; all events:\n%s", deleted, events.out.String())
			}
		})
		if c.runtime == "runc" { // whose shim may end before it has told of that
			want = want[:len(want)-1]
		}
		got := func() []string { return events.of(id)[:min(len(events.of(id)), len(want))] }
		harness.Poll(t, "the last event has come", func() bool { return len(got()) == len(want) })
		if d := cmp.Diff(want, got()); d != "" {
			t.Errorf("events, want (-) and got (+):\n%s", d)
		}
	})
}
