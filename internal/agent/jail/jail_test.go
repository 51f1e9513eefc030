package jail

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/seed-efd44b36/kata/internal/agent/reap"
)

// reaper is the one of the test's process.
var reaper = reap.New()

// TestMain also is the container's process.
func TestMain(m *testing.M) {
	if os.Args[0] == Name {
		os.Exit(Main())
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { _ = reaper.Run(ctx) })
	code := m.Run()
	cancel()
	wg.Wait()
	os.Exit(code)
}

// needRoot skips a test that sets up containers where that is not possible.
func needRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	if _, err := exec.LookPath("busybox"); err != nil {
		t.Skip("needs busybox")
	}
}

// run runs a program outside of any container. The reaper would steal its end
// from os/exec.
func run(t testing.TB, name string, args ...string) (output string, code int) {
	t.Helper()
	program, err := exec.LookPath(name)
	if err != nil {
		t.Skipf("needs %s", name)
	}
	out, err := os.OpenFile(filepath.Join(t.TempDir(), "out"), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	c, err := reaper.Start(func() (int, error) {
		return syscall.ForkExec(program, append([]string{name}, args...), &syscall.ProcAttr{
			Env: os.Environ(), Files: []uintptr{null.Fd(), out.Fd(), out.Fd()},
		})
	})
	if err != nil {
		t.Fatal(err)
	}
	code = c.ExitCode()
	data, err := os.ReadFile(out.Name())
	if err != nil {
		t.Fatal(err)
	}
	return string(data), code
}

// newRootfs makes a root file system with busybox.
func newRootfs(t testing.TB) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "rootfs")
	for _, d := range []string{"bin", "dev", "etc", "home/user", "lib64", "proc", "root", "sys", "tmp", "var"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	busybox, err := exec.LookPath("busybox")
	if err != nil {
		t.Fatal(err)
	}
	copyTo(t, busybox, filepath.Join(dir, "bin/busybox"))
	if libs, code := run(t, "ldd", busybox); code == 0 {
		for field := range strings.FieldsSeq(libs) {
			if strings.HasPrefix(field, "/") {
				copyTo(t, field, filepath.Join(dir, field))
			}
		}
	}
	applets, _ := run(t, "busybox", "--list")
	for name := range strings.FieldsSeq(applets) {
		if name != "busybox" {
			if err := os.Symlink("busybox", filepath.Join(dir, "bin", name)); err != nil {
				t.Fatal(err)
			}
		}
	}
	passwd := "root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000::/home/user:/bin/sh\n"
	if err := os.WriteFile(filepath.Join(dir, "etc/passwd"), []byte(passwd), 0o644); err != nil {
		t.Fatal(err)
	}
	return dir
}

func copyTo(t testing.TB, from, to string) {
	t.Helper()
	data, err := os.ReadFile(from)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(to, data, 0o755); err != nil {
		t.Fatal(err)
	}
}

// dockerCapabilities are what docker gives to a container.
var dockerCapabilities = []string{
	"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FSETID", "CAP_FOWNER", "CAP_MKNOD", "CAP_NET_RAW", "CAP_SETGID",
	"CAP_SETUID", "CAP_SETFCAP", "CAP_SETPCAP", "CAP_NET_BIND_SERVICE", "CAP_SYS_CHROOT", "CAP_KILL", "CAP_AUDIT_WRITE",
}

// newSpec is a spec such as engines write.
func newSpec(rootfs string, args ...string) *specs.Spec {
	return &specs.Spec{
		Version: "1.0.2",
		Process: &specs.Process{
			Args: args,
			Env:  []string{"PATH=/bin:/usr/bin", "TERM=xterm"},
			Cwd:  "/",
			Capabilities: &specs.LinuxCapabilities{
				Bounding:  dockerCapabilities,
				Effective: dockerCapabilities,
				Permitted: dockerCapabilities,
			},
			Rlimits: []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Hard: 4096, Soft: 1024}},
		},
		Root:     &specs.Root{Path: rootfs},
		Hostname: "jail",
		Mounts: []specs.Mount{
			{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev"}},
			{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "strictatime", "mode=755", "size=65536k"}},
			{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"}},
			{Destination: "/dev/shm", Type: "tmpfs", Source: "shm", Options: []string{"nosuid", "noexec", "nodev", "mode=1777", "size=65536k"}},
			{Destination: "/dev/mqueue", Type: "mqueue", Source: "mqueue", Options: []string{"nosuid", "noexec", "nodev"}},
			{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: []string{"nosuid", "noexec", "nodev", "ro"}},
		},
		Linux: &specs.Linux{
			Namespaces: []specs.LinuxNamespace{
				{Type: specs.PIDNamespace},
				{Type: specs.IPCNamespace},
				{Type: specs.UTSNamespace},
				{Type: specs.MountNamespace},
				{Type: specs.CgroupNamespace},
			},
			MaskedPaths: []string{
				"/proc/acpi", "/proc/asound", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list",
				"/proc/timer_stats", "/proc/sched_debug", "/proc/scsi", "/sys/firmware",
			},
			ReadonlyPaths: []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"},
		},
	}
}

// result is how a program ran.
type result struct {
	out  string
	code int
}

// jailer has no spare processes.
func jailer(t testing.TB) *Jailer {
	t.Helper()
	j := New(Options{Reaper: reaper})
	t.Cleanup(j.Close)
	return j
}

// output is a pipe that collects what comes.
func output(t testing.TB) (w *os.File, text func() string) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	var buf bytes.Buffer
	var wg sync.WaitGroup
	wg.Go(func() { _, _ = io.Copy(&buf, r); _ = r.Close() })
	return w, func() string { wg.Wait(); return buf.String() }
}

func deadline(t testing.TB) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// runJail runs a container to its end.
func runJail(t *testing.T, j *Jailer, s *specs.Spec) result {
	t.Helper()
	ctx := deadline(t)
	w, text := output(t)
	c, err := j.Create(ctx, Config{ID: "test", Spec: s, Stdio: Stdio{Out: w, Err: w}})
	_ = w.Close()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(ctx); err != nil {
		t.Error(err)
	}
	r := result{text(), c.Init().Child().ExitCode()}
	if err := c.Delete(ctx); err != nil {
		t.Error(err)
	}
	return r
}

func sh(rootfs, script string) *specs.Spec { return newSpec(rootfs, "sh", "-c", script) }

func TestRun(t *testing.T) {
	needRoot(t)
	rootfs := newRootfs(t)
	j := jailer(t)
	r := runJail(t, j, sh(rootfs, "echo pid=$$; hostname; id; pwd; cat /proc/self/mounts; ls -la /dev; cat /proc/self/status | grep -e Cap -e Seccomp -e NoNew; env; exit 7"))
	t.Log(r.out)
	if r.code != 7 {
		t.Errorf("got exit code %d, want 7", r.code)
	}
}

func TestNotFound(t *testing.T) {
	needRoot(t)
	rootfs := newRootfs(t)
	_, err := jailer(t).Create(deadline(t), Config{ID: "x", Spec: newSpec(rootfs, "nothing")})
	if !errors.Is(err, ErrNotFound) || err.Error() != `exec "nothing": executable file not found in $PATH` {
		t.Errorf("got %v, want ErrNotFound", err)
	}
}

func TestWorkingDirectoryIsMade(t *testing.T) {
	needRoot(t)
	rootfs := newRootfs(t)
	s := sh(rootfs, "pwd; stat -c '%a %u:%g' .")
	s.Process.Cwd = "/made/by/the/jail"
	s.Root.Readonly = true
	if r := runJail(t, jailer(t), s); r.out != "/made/by/the/jail\n755 0:0\n" || r.code != 0 {
		t.Errorf("got %q, exit code %d", r.out, r.code)
	}
}

func itoa(n int) string { return strconv.Itoa(n) }
