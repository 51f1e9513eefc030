//go:build integration

package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/seed-efd44b36/kata/internal/sandbox/report"
	"github.com/seed-efd44b36/kata/test/harness"
	"golang.org/x/sys/unix"
)

// start starts a detached container, which the test's end removes.
func start(t *testing.T, args ...string) (id string) {
	t.Helper()
	return startIn(t, env, args...)
}

// startIn is start in another installation.
func startIn(t *testing.T, e *harness.Env, args ...string) (id string) {
	t.Helper()
	id = e.MustKata(t, append([]string{"run", "-d"}, args...)...)
	t.Cleanup(func() { remove(t, e, id) })
	return id
}

// remove removes a container, which may be gone.
func remove(t *testing.T, e *harness.Env, id string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if r, err := e.Run(ctx, nil, "kata", "rm", "-f", id); err != nil || r.Code != 0 {
		if !strings.Contains(r.Stderr, "no such container") {
			t.Errorf("kata rm -f: %v, %s", err, r.Stderr)
		}
	}
}

func TestDetached(t *testing.T) {
	t.Parallel()
	id := start(t, "--name", "detached", "--network", "none", busybox, "sh", "-c", "echo out; echo err >&2; trap 'exit 3' TERM; while :; do sleep 0.1; done")
	if out := env.MustKata(t, "ps", "-q", "--no-trunc"); !strings.Contains(out, id) {
		t.Errorf("kata ps does not list %s:\n%s", id, out)
	}
	r := env.Kata(t, "exec", "-e", "X=1", "detached", "sh", "-c", "echo $X $(ps | grep -c 'while :'); exit 5")
	if r.Code != 5 || !strings.HasPrefix(r.Stdout, "1 ") {
		t.Errorf("exec: code %d, %q, %q; want 5", r.Code, r.Stdout, r.Stderr)
	}
	if r := env.Kata(t, "exec", "detached", "nothing"); r.Code != 127 {
		t.Errorf("exec of a missing command: code %d, %q; want 127", r.Code, r.Stderr)
	}
	if r := env.KataInput(t, strings.NewReader("piped"), "exec", "-i", "-u", "kata", "detached", "sh", "-c", "cat; id -un"); r.Stdout != "pipedkata\n" {
		t.Errorf("exec -i -u: %q, %q", r.Stdout, r.Stderr)
	}
	harness.Poll(t, "the log has both lines", func() bool {
		r := env.Kata(t, "logs", "detached")
		return r.Stdout == "out\n" && r.Stderr == "err\n"
	})
	if r := env.Kata(t, "logs", "--tail", "0", "detached"); r.Code != 0 || r.Stdout+r.Stderr != "" {
		t.Errorf("kata logs --tail 0: %+v", r)
	}
	if r := env.Kata(t, "rm", "detached"); r.Code == 0 {
		t.Error("a running container was removed without -f")
	}
	env.MustKata(t, "stop", "detached")
	if out := env.MustKata(t, "ps", "-a"); !strings.Contains(out, "exited (3)") {
		t.Errorf("kata ps -a after stop:\n%s", out)
	}
	if r := env.Kata(t, "exec", "detached", "true"); r.Code != 125 || !strings.Contains(r.Stderr, "not running") {
		t.Errorf("exec in a stopped container: code %d, %q", r.Code, r.Stderr)
	}
	env.MustKata(t, "rm", "detached")
	if out := env.MustKata(t, "ps", "-a", "-q"); strings.Contains(out, id[:12]) {
		t.Errorf("kata ps -a after rm:\n%s", out)
	}
	if r := env.Kata(t, "rm", "-f", "detached"); r.Code != 0 || !strings.Contains(r.Stderr, "no such container") {
		t.Errorf("kata rm -f of what is not there: %+v", r)
	}
}

// TestExecUser: who becomes root in a container of another user has what root
// has there, and the other way round.
func TestExecUser(t *testing.T) {
	t.Parallel()
	id := start(t, "--network", "none", "-u", "kata", "--cap-drop", "MKNOD", busybox, "sleep", "1000")
	for _, tt := range []struct{ user, want string }{
		{"kata", "1000 0000000000000000 /home/kata"},
		{"root", "0 00000000a00425fb /root"},
		{"4242", "4242 0000000000000000 /"},
	} {
		out := env.MustKata(t, "exec", "-u", tt.user, id, "sh", "-c", `echo $(id -u) $(grep CapEff /proc/self/status | cut -f2) $HOME`)
		if out != tt.want {
			t.Errorf("exec -u %s: %q, want %q", tt.user, out, tt.want)
		}
	}
}

// TestRemovedWhileItEnds: what is asked of a container that ends at that moment
// is done, or it is said that there is no such container.
func TestRemovedWhileItEnds(t *testing.T) {
	t.Parallel()
	e := installation(t, "")
	for _, verb := range [][]string{{"rm", "-f"}, {"stop"}, {"kill"}} {
		id := e.MustKata(t, "run", "-d", "--rm", "--network", "none", busybox, "sleep", "0.1")
		for range 20 {
			r := e.Kata(t, append(verb, id)...)
			if r.Code != 0 && !strings.Contains(r.Stderr, "no such container") && (verb[0] != "kill" || !strings.Contains(r.Stderr, "not running")) {
				t.Errorf("kata %q: exit code %d, %q", verb, r.Code, r.Stderr)
			}
		}
	}
	harness.Poll(t, "all have gone", func() bool { return e.MustKata(t, "ps", "-a", "-q") == "" })
}

func TestKillAndFollow(t *testing.T) {
	t.Parallel()
	start(t, "--name", "follow", "--network", "none", busybox, "sh", "-c", "i=0; while :; do echo $i; i=$((i+1)); sleep 0.1; done")
	done := make(chan string)
	go func() { done <- env.Kata(t, "logs", "-f", "follow").Stdout }()
	harness.Poll(t, "it prints", func() bool { return strings.Contains(env.Kata(t, "logs", "follow").Stdout, "3\n") })
	env.MustKata(t, "kill", "follow")
	if out := <-done; !strings.HasPrefix(out, "0\n1\n2\n3\n") {
		t.Errorf("kata logs -f: %q", out)
	}
	harness.Poll(t, "it has exited with 137", func() bool { return strings.Contains(env.MustKata(t, "ps", "-a"), "exited (137)") })
}

// TestRuntimeList: kata-runtime sees what kata started, with the seed's columns.
func TestRuntimeList(t *testing.T) {
	t.Parallel()
	id := start(t, "--network", "none", busybox, "sleep", "1000")
	r, err := env.Run(t.Context(), nil, "kata-runtime", "list")
	if err != nil || r.Code != 0 {
		t.Fatalf("%v, %s", err, r.Stderr)
	}
	lines := strings.Split(r.Stdout, "\n")
	if got := strings.Fields(lines[0]); strings.Join(got, " ") != "ID PID STATUS BUNDLE CREATED OWNER" {
		t.Errorf("columns %q", got)
	}
	for _, l := range lines[1:] {
		if f := strings.Fields(l); len(f) == 6 && f[0] == id {
			if f[1] != "-1" || f[2] != "running" || f[5] != "#0" {
				t.Errorf("line %q", l)
			}
			return
		}
	}
	t.Errorf("%s is not listed:\n%s", id, r.Stdout)
}

// TestRuntimeExec: kata-runtime reaches a container of kata run, too, by the
// beginning of its id.
func TestRuntimeExec(t *testing.T) {
	t.Parallel()
	id := start(t, "--network", "none", busybox, "sleep", "1000")
	for _, tt := range []struct {
		name  string
		args  []string
		stdin string
		code  int
		out   string
	}{
		{"a command", []string{"exec", id[:20], "sh", "-c", "echo out; exit 4"}, "", 4, "out\n"},
		{"a shell", []string{"exec", id}, "echo $((6*7))\n", 0, "42\n"},
		{"console", []string{"console", id}, "", 0, ""},
		{"logs", []string{"logs", "--tail", "0", id}, "", 0, ""},
		{"none such", []string{"exec", "0123456789", "true"}, "", 255, ""},
	} {
		r, err := env.Run(t.Context(), strings.NewReader(tt.stdin), "kata-runtime", tt.args...)
		if err != nil || r.Code != tt.code || tt.out != "" && r.Stdout != tt.out {
			t.Errorf("%s: %v, %+v; want code %d and %q", tt.name, err, r, tt.code, tt.out)
		}
	}
}

// state reads the state of a sandbox of ours.
func state(t *testing.T, id string) report.Sandbox {
	t.Helper()
	st, err := report.Read(env.State, id)
	if err != nil {
		t.Fatal(err)
	}
	return st
}

// find finds a container by its name.
func find(t *testing.T, name string) string {
	t.Helper()
	var rows []struct{ ID, Name string }
	if err := json.Unmarshal([]byte(env.MustKata(t, "ps", "-a", "--json")), &rows); err != nil {
		t.Fatal(err)
	}
	for _, r := range rows {
		if r.Name == name {
			return r.ID
		}
	}
	t.Fatalf("no container %q", name)
	return ""
}

// TestVMMKilled: the caller of a foreground container is told at once, and why.
func TestVMMKilled(t *testing.T) {
	t.Parallel()
	cmd := env.Command(t.Context(), "kata", "run", "--rm", "--name", "vmm-killed", "--network", "none", busybox, "sh", "-c", "echo ready; sleep 1000")
	var out, errOut harness.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	harness.Poll(t, "it runs", func() bool { return out.String() == "ready\n" })
	pid := state(t, find(t, "vmm-killed")).VMMPID
	killed := time.Now()
	if err := unix.Kill(pid, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	if took := time.Since(killed); took > 10*time.Second {
		t.Errorf("the caller was told after %s", took)
	} else {
		t.Logf("the caller was told after %s", took)
	}
	if code := cmd.ProcessState.ExitCode(); code == 0 || !strings.Contains(errOut.String(), "virtual machine died") {
		t.Errorf("exit code %d, stderr %q", code, errOut.String())
	}
}

// TestFileServerKilled: the death of virtiofsd ends the sandbox, with the reason.
func TestFileServerKilled(t *testing.T) {
	t.Parallel()
	if !hasVirtiofsd() {
		t.Skip("virtiofsd is missing: apt-get install qemu-system-common")
	}
	e := sharedBy(t, "virtio-fs")
	cmd := e.Command(t.Context(), "kata", "run", "--rm", "--name", "fs-killed", "--network", "none", busybox, "sh", "-c", "echo ready; sleep 1000")
	var out, errOut harness.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	harness.Poll(t, "it runs", func() bool { return out.String() == "ready\n" })
	killed := false
	id := find(t, "fs-killed")
	lines, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range lines {
		line, err := os.ReadFile(file)
		program, args, _ := strings.Cut(string(line), "\x00")
		if err != nil || filepath.Base(program) != "virtiofsd" || !strings.Contains(args, id) {
			continue
		}
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(file)))
		if err != nil {
			t.Fatal(err)
		}
		killed = unix.Kill(pid, unix.SIGKILL) == nil || killed
	}
	if !killed {
		t.Error("no virtiofsd was found")
		_ = cmd.Process.Signal(os.Interrupt)
	}
	began := time.Now()
	_ = cmd.Wait()
	if took := time.Since(began); took > 10*time.Second {
		t.Errorf("the caller was told after %s", took)
	}
	if code := cmd.ProcessState.ExitCode(); code == 0 || !strings.Contains(errOut.String(), "file server of the sandbox ended: killed by signal 9") {
		t.Errorf("exit code %d, stderr %q", code, errOut.String())
	}
}

// TestOwnerKilled: when kata-proxy is killed, everything of it ends but its
// records, and gc removes those.
func TestOwnerKilled(t *testing.T) {
	t.Parallel()
	id := start(t, "--network", "none", busybox, "sleep", "1000")
	st := state(t, id)
	if err := unix.Kill(st.OwnerPID, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	harness.Poll(t, "QEMU has ended", func() bool { return unix.Kill(st.VMMPID, 0) != nil })
	if out := env.MustKata(t, "ps", "-a"); !strings.Contains(out, "dead") {
		t.Errorf("kata ps -a: %s", out)
	}
	harness.Poll(t, "gc has removed it", func() bool {
		env.MustKata(t, "gc")
		_, err := os.Stat(filepath.Join(env.State, id))
		return os.IsNotExist(err) //nolint:forbidigo // in a test
	})
}

// TestCallerKilled: a foreground container ends with its caller.
func TestCallerKilled(t *testing.T) {
	t.Parallel()
	cmd := env.Command(t.Context(), "kata", "run", "--rm", "--name", "caller-killed", "--network", "none", busybox, "sh", "-c", "echo ready; sleep 1000")
	var out harness.Buffer
	cmd.Stdout = &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	harness.Poll(t, "it runs", func() bool { return out.String() == "ready\n" })
	id := find(t, "caller-killed")
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	harness.Poll(t, "all of it has gone", func() bool {
		_, err := os.Stat(filepath.Join(env.State, id))
		_, err2 := os.Stat(filepath.Join(env.Data, "containers", id))
		return os.IsNotExist(err) && os.IsNotExist(err2) //nolint:forbidigo // in a test
	})
}

// TestKilledInEachPhase: whenever the caller is killed, nothing is left.
func TestKilledInEachPhase(t *testing.T) {
	t.Parallel()
	for _, after := range []time.Duration{50, 200, 500, 1500, 4000, 7000} {
		t.Run(fmt.Sprintf("after %d ms", after), func(t *testing.T) {
			name := fmt.Sprintf("phase-%d", after)
			cmd := env.Command(t.Context(), "kata", "run", "--rm", "--name", name, busybox, "sleep", "1000")
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			time.Sleep(after * time.Millisecond)
			if err := cmd.Process.Kill(); err != nil {
				t.Fatal(err)
			}
			_ = cmd.Wait()
			harness.Poll(t, "gc leaves nothing of it", func() bool {
				env.MustKata(t, "gc")
				return !strings.Contains(env.MustKata(t, "ps", "-a"), name)
			})
		})
	}
}

// TestTenAtOnce starts ten containers together.
func TestTenAtOnce(t *testing.T) {
	t.Parallel()
	var wg sync.WaitGroup
	for i := range 10 {
		wg.Go(func() {
			r := env.Kata(t, "run", "--rm", "--network", "none", busybox, "echo", fmt.Sprint(i))
			if r.Code != 0 || r.Stdout != fmt.Sprintf("%d\n", i) {
				t.Errorf("container %d: code %d, %q, %q", i, r.Code, r.Stdout, r.Stderr)
			}
		})
	}
	wg.Wait()
}
