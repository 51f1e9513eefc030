package jail

import (
	"fmt"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// TestExecAfterTheForkersEnd kills the process that makes further processes.
func TestExecAfterTheForkersEnd(t *testing.T) {
	c := startSleeper(t, nil)
	for range 3 {
		if got, err := execIn(t, c, process("echo", "fine")); err != nil || got.out != "fine\n" {
			t.Fatalf("got %+v, %v", got, err)
		}
		c.jailer.forker.mu.Lock()
		child := c.jailer.forker.w.child
		c.jailer.forker.mu.Unlock()
		if err := child.Signal(unix.SIGKILL); err != nil {
			t.Fatal(err)
		}
		<-child.Done()
	}
}

// TestExecsAtOnce makes sure that no process holds what belongs to another: each has
// to see the end of its input, and its own answers.
func TestExecsAtOnce(t *testing.T) {
	c := startSleeper(t, nil)
	var wg sync.WaitGroup
	for i := range 30 {
		wg.Go(func() {
			got, err := execIn(t, c, process("sh", "-c", fmt.Sprintf("cat; echo %d; exit %d", i, i)))
			if want := (result{fmt.Sprintln(i), i}); err != nil || got != want {
				t.Errorf("got %+v, %v; want %+v", got, err, want)
			}
		})
	}
	wg.Wait()
}

// TestExecLeavesNothingOpen in the process that makes the others: neither one that
// ends, nor one with a terminal, nor one that fails.
func TestExecLeavesNothingOpen(t *testing.T) {
	c := startSleeper(t, nil)
	exec := func() {
		for _, p := range []*specs.Process{process("true"), process("/bin/true"), process("nothing"), process("/etc/passwd"), process("/etc"), process("a\x00b")} {
			_, _ = execIn(t, c, p)
		}
		p := process("true")
		p.Terminal = true
		proc, err := c.Exec(deadline(t), ExecConfig{Process: p})
		if err != nil {
			t.Fatal(err)
		}
		_ = proc.Console().Close()
		proc.discard()
		<-proc.Done()
	}
	exec()
	c.jailer.forker.mu.Lock()
	dir := fmt.Sprintf("/proc/%d/fd", c.jailer.forker.w.child.PID)
	c.jailer.forker.mu.Unlock()
	open := func() int {
		list, err := os.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		return len(list)
	}
	most := open()
	for range 5 {
		exec()
	}
	// It closes what it had for a process after it has answered.
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for ctx := deadline(t); open() > most; {
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatalf("%d descriptors are open, and %d were after the first", open(), most)
		}
	}
}

// TestExecIsAdjusted looks at what belongs to a process and not to a thread.
func TestExecIsAdjusted(t *testing.T) {
	c := startSleeper(t, nil)
	p := process("sh", "-c", "ulimit -n; ulimit -c; cat /proc/self/oom_score_adj /proc/self/timerslack_ns; grep -e SigBlk -e ^Cap /proc/self/status; exec kill -9 $$")
	p.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Soft: 77, Hard: 99}, {Type: "RLIMIT_CORE", Soft: 5120, Hard: 5120}}
	score := 123
	p.OOMScoreAdj = &score
	p.Capabilities = &specs.LinuxCapabilities{}
	got, err := execIn(t, c, p)
	want := result{code: 137}
	want.out = "77\n10\n123\n50000\nSigBlk:\t0000000000000000\n" +
		"CapInh:\t0000000000000000\nCapPrm:\t0000000000000000\nCapEff:\t0000000000000000\nCapBnd:\t0000000000000000\nCapAmb:\t0000000000000000\n"
	if err != nil || got != want {
		t.Errorf("got %+v, %v; want %+v", got, err, want)
	}
	p.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Soft: 1 << 40, Hard: 1 << 40}}
	if _, err := execIn(t, c, p); err == nil || err.Error() != "set RLIMIT_NOFILE to 1099511627776:1099511627776: operation not permitted" {
		t.Errorf("a limit beyond the kernel's: got %v", err)
	}
	// One that was not started is no more than a socket and a process at the gate.
	waiting, err := c.Exec(deadline(t), ExecConfig{Process: process("true")})
	if err != nil {
		t.Fatal(err)
	}
	if err := waiting.Signal(unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if code := waiting.Child().ExitCode(); code != 143 {
		t.Errorf("SIGTERM before the start: got exit code %d, want 143", code)
	}
	if err := waiting.Start(deadline(t)); err == nil {
		t.Error("what has ended could be started")
	}
}
