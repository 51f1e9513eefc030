//go:build integration

// Package oci runs the verbs of kata-runtime as container engines do, beside runc on
// the same bundles: what is said, exit codes, the process that an engine waits for.
package oci

import (
	"context"
	"encoding/json"
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

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"github.com/seed-efd44b36/kata/test/harness"
	"github.com/seed-efd44b36/kata/test/testimage"
	"golang.org/x/sys/unix"
)

var (
	env    *harness.Env
	rootfs string // that containers share
)

func TestMain(m *testing.M) { harness.Main(m, "oci", run) }

func run(m *testing.M) (code int, err error) {
	ctx := context.Background()
	// As engines are: what a runtime leaves running becomes ours to wait for.
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return 1, err
	}
	e, remove, err := harness.New("")
	if err != nil {
		return 1, err
	}
	defer func() { err = errors.Join(err, remove()) }()
	env = e
	if err := env.Prepare(ctx); err != nil {
		return 1, err
	}
	rootfs = filepath.Join(filepath.Dir(env.Data), "rootfs")
	image, err := harness.Image(ctx, "busybox")
	if err != nil {
		return 1, err
	}
	if err := testimage.Unpack(ctx, strings.TrimPrefix(image, "oci:"), rootfs); err != nil {
		return 1, err
	}
	env.Watch(shims)
	before, err := env.Snap()
	if err != nil {
		return 1, err
	}
	code = m.Run()
	reap()
	left, err := env.Leaks(before)
	if err == nil && len(left) > 0 {
		err = fmt.Errorf("left on the host after all tests:\n  %s", strings.Join(left, "\n  "))
	}
	return code, err
}

// shims looks at the kata-shims of this installation's programs, which bear no other
// mark.
func shims(s harness.Snapshot) error {
	dirs, err := filepath.Glob("/proc/[0-9]*")
	for _, d := range dirs {
		exe, _ := os.Readlink(filepath.Join(d, "exe"))
		args, _ := os.ReadFile(filepath.Join(d, "cmdline"))
		if exe == filepath.Join(env.Bin, "kata-shim") && strings.Contains(string(args), mark()) {
			s["kata-shim "+filepath.Base(d)+" "+strings.ReplaceAll(string(args), "\x00", " ")] = true
		}
	}
	return err
}

// mark is a part of the ids of all containers.
func mark() string { return "oci" + strconv.Itoa(os.Getpid()) }

// reap takes the exit codes that nobody has asked for.
func reap() {
	for {
		if pid, err := unix.Wait4(-1, nil, unix.WNOHANG, nil); pid <= 0 || err != nil {
			return
		}
	}
}

// deadline is for one verb; only a hang reaches it.
const deadline = 4 * time.Minute

// runtime is one of the two.
type runtime struct {
	name string
	root string
}

func runtimes(t *testing.T) []runtime {
	t.Helper()
	return []runtime{{"runc", t.TempDir()}, kata(t)}
}

func kata(t *testing.T) runtime {
	t.Helper()
	return runtime{"kata-runtime", t.TempDir()}
}

func (r runtime) command(t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	args = append([]string{"--root", r.root}, args...)
	if r.name == "runc" {
		return exec.CommandContext(context.WithoutCancel(t.Context()), "runc", args...)
	}
	return env.Command(context.WithoutCancel(t.Context()), r.name, args...)
}

// result is how a verb has ended.
type result struct {
	code        int
	out, errOut string
}

// do runs a verb to its end.
func (r runtime) do(t *testing.T, args ...string) result {
	t.Helper()
	cmd := r.command(t, args...)
	// Files and not pipes, which a detached process would hold open.
	var files [2]*os.File
	for i := range files {
		f, err := os.CreateTemp(r.root, ".output-")
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = os.Remove(f.Name()); _ = f.Close() }()
		files[i] = f
	}
	cmd.Stdout, cmd.Stderr = files[0], files[1]
	stop := time.AfterFunc(deadline, func() { _ = cmd.Process.Kill() })
	defer stop.Stop()
	if err := cmd.Run(); err != nil {
		if _, ok := errors.AsType[*exec.ExitError](err); !ok {
			t.Fatal(err)
		}
	}
	out, _ := os.ReadFile(files[0].Name())
	errOut, _ := os.ReadFile(files[1].Name())
	return result{cmd.ProcessState.ExitCode(), string(out), string(errOut)}
}

// must is do for a verb that has to succeed.
func (r runtime) must(t *testing.T, args ...string) string {
	t.Helper()
	res := r.do(t, args...)
	if res.code != 0 {
		t.Fatalf("%s %v: exit code %d: %s", r.name, args, res.code, res.errOut)
	}
	return res.out
}

// status is what the verb state tells, empty for none.
func (r runtime) status(t *testing.T, id string) (status string, pid int) {
	t.Helper()
	res := r.do(t, "state", id)
	if res.code != 0 {
		return "", 0
	}
	var s specs.State
	if err := json.Unmarshal([]byte(res.out), &s); err != nil {
		t.Fatalf("%v: %s", err, res.out)
	}
	return string(s.Status), s.Pid
}

// bundle makes a bundle for a container of the given command.
func bundle(t *testing.T, change func(*specs.Spec), args ...string) string {
	t.Helper()
	s := &specs.Spec{
		Version:  "1.0.2",
		Hostname: "verbs",
		Root:     &specs.Root{Path: rootfs, Readonly: true},
		Process: &specs.Process{
			Cwd: "/", Args: args, Env: []string{"PATH=/bin:/sbin:/usr/bin:/usr/sbin", "TERM=xterm"},
		},
		Mounts: []specs.Mount{
			{Destination: "/proc", Type: "proc", Source: "proc"},
			{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "mode=755", "size=65536k"}},
			{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"}},
		},
		Linux: &specs.Linux{
			CgroupsPath: "/" + filepath.Base(filepath.Dir(env.State)) + "/" + filepath.Base(t.TempDir()) + strconv.FormatInt(time.Now().UnixNano(), 36),
			Namespaces: []specs.LinuxNamespace{
				{Type: specs.PIDNamespace},
				{Type: specs.IPCNamespace},
				{Type: specs.UTSNamespace},
				{Type: specs.MountNamespace},
				{Type: specs.NetworkNamespace},
			},
		},
	}
	if change != nil {
		change(s)
	}
	b, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "config.json"), b, 0o600); err != nil {
		t.Fatal(err)
	}
	return dir
}

// container is one that an engine has created: it has the pid, and the other ends of
// its streams.
type container struct {
	r    runtime
	id   string
	pid  int
	in   *os.File
	out  *harness.Buffer
	read chan struct{} // closed at the end of the output
}

// create creates a container as an engine does: the runtime ends, its streams stay.
func (r runtime) create(t *testing.T, id, dir string, flags ...string) *container {
	t.Helper()
	c := &container{r: r, id: id, out: &harness.Buffer{}, read: make(chan struct{})}
	inR, inW, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	outR, outW, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	c.in = inW
	pidFile := filepath.Join(t.TempDir(), "pid")
	logFile := filepath.Join(t.TempDir(), "log")
	cmd := r.command(t, append([]string{"--log", logFile, "create", "--bundle", dir, "--pid-file", pidFile}, append(flags, id)...)...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = inR, outW, outW
	go func() { // ends with the output
		_, _ = io.Copy(c.out, outR)
		_ = outR.Close()
		close(c.read)
	}()
	err = cmd.Run()
	_ = inR.Close()
	_ = outW.Close()
	t.Cleanup(func() {
		_ = inW.Close()
		if res := r.do(t, "delete", "--force", id); res.code != 0 {
			t.Errorf("%s delete --force: %s", r.name, res.errOut)
		}
		reap()
	})
	if err != nil {
		log, _ := os.ReadFile(logFile)
		t.Fatalf("%s create: %v: %s", r.name, err, log)
	}
	b, err := os.ReadFile(pidFile)
	if err == nil {
		c.pid, err = strconv.Atoi(string(b))
	}
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// end waits for the process as an engine does, and tells its exit code as a shell
// would.
func (c *container) end(t *testing.T) int {
	t.Helper()
	return wait(t, c.pid)
}

func wait(t *testing.T, pid int) (code int) {
	t.Helper()
	harness.PollFor(t, deadline, fmt.Sprintf("the end of process %d", pid), func() bool {
		var st unix.WaitStatus
		got, err := unix.Wait4(pid, &st, unix.WNOHANG, nil)
		if err != nil {
			t.Fatalf("wait for %d: %v", pid, err)
		}
		if got == 0 {
			return false
		}
		if code = st.ExitStatus(); st.Signaled() {
			code = 128 + int(st.Signal())
		}
		return true
	})
	return code
}
