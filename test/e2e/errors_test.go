//go:build integration

package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/seed-efd44b36/kata/test/harness"
	"golang.org/x/sys/unix"
)

// other makes a further installation, with its own configuration, and checks
// at the end of the test that it left nothing.
func other(t *testing.T, extra string) *harness.Env {
	t.Helper()
	e, remove, err := harness.New(extra)
	if err != nil {
		t.Fatal(err)
	}
	before, err := e.Snap()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		left, err := e.Leaks(before)
		if err != nil {
			t.Error(err)
		}
		for _, l := range left {
			// Other tests run beside this one.
			if strings.Contains(l, filepath.Dir(e.State)) || strings.Contains(l, filepath.Dir(e.Data)) {
				t.Errorf("left: %s", l)
			}
		}
		if err := remove(); err != nil {
			t.Error(err)
		}
	})
	return e
}

// explains runs kata and wants it to fail with the code, and to say each of the
// words in not more than lines lines.
func explains(t *testing.T, e *harness.Env, code, lines int, words []string, args ...string) {
	t.Helper()
	r := e.Kata(t, args...)
	if r.Code != code {
		t.Errorf("kata %s: exit code %d, want %d", strings.Join(args, " "), r.Code, code)
	}
	if r.Stdout != "" {
		t.Errorf("kata %s: printed %q", strings.Join(args, " "), r.Stdout)
	}
	text := strings.TrimSpace(r.Stderr)
	for _, w := range words {
		if !strings.Contains(text, w) {
			t.Errorf("kata %s: %q is not in:\n%s", strings.Join(args, " "), w, text)
		}
	}
	if n := strings.Count(text, "\n") + 1; n > lines {
		t.Errorf("kata %s: %d lines of error, want at most %d:\n%s", strings.Join(args, " "), n, lines, text)
	}
	if strings.Contains(text, "DeadlineExceeded") && !strings.Contains(text, "next:") {
		t.Errorf("kata %s: a deadline without a next step:\n%s", strings.Join(args, " "), text)
	}
}

// TestBadHypervisor: each thing that can be wrong below the container is told by
// its name, with what was said last and a next step.
func TestBadHypervisor(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	// QEMU has a user of its own, who must be able to start it.
	for d := dir; d != "/" && d != os.TempDir(); d = filepath.Dir(d) {
		if err := os.Chmod(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	file := func(name, content string) string {
		p := filepath.Join(dir, name)
		if err := os.WriteFile(p, []byte(content), 0o755); err != nil {
			t.Fatal(err)
		}
		return p
	}
	for _, tt := range []struct {
		name, config string
		lines        int
		words        []string
	}{
		{"no kernel", `kernel = "/no/such/kernel"`, 1, []string{"/no/such/kernel", "hypervisor.kernel"}},
		{"not a kernel", fmt.Sprintf("kernel = %q", file("text", strings.Repeat("this is no kernel\n", 1000))), 2, []string{"text", "hypervisor.kernel"}},
		{"no QEMU", `path = "/no/such/qemu"`, 3, []string{"/no/such/qemu", "next:"}},
		{"QEMU that dies", fmt.Sprintf("path = %q", file("qemu", "#!/bin/sh\necho 'could not open the moon' >&2\nexit 3\n")), 5, []string{"could not open the moon", "exit status 3", "next:"}},
		{"kernel that panics", `kernel_params = "rdinit=/no/such/init init=/no/such/init"`, 16, []string{"panic", "next:"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			explains(t, other(t, "[hypervisor]\n"+tt.config), 125, tt.lines, tt.words, "run", "--rm", "--network", "none", busybox, "true")
		})
	}
}

// TestBadInput: what a person gets wrong is told in one line.
func TestBadInput(t *testing.T) {
	t.Parallel()
	garbage := filepath.Join(t.TempDir(), "garbage.tar")
	if err := os.WriteFile(garbage, []byte(strings.Repeat("garbage", 1000)), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name string
		code int
		word string
		args []string
	}{
		{"unknown verb", 1, `"fly"`, []string{"fly"}},
		{"unknown flag", 125, "--fly", []string{"run", "--fly", busybox}},
		{"no image", 125, "no image", []string{"run"}},
		{"missing layout", 125, "/no/such/dir", []string{"run", "oci:/no/such/dir"}},
		{"garbage archive", 125, "garbage.tar", []string{"run", garbage}},
		{"missing archive", 125, "/no/such.tar", []string{"run", "/no/such.tar"}},
		{"bad reference", 125, "Upper/Case", []string{"run", "Upper/Case:!"}},
		{"memory", 125, "--memory", []string{"run", "-m", "1", busybox, "true"}},
		{"cpus", 125, "--cpus", []string{"run", "--cpus", "-1", busybox, "true"}},
		{"port", 125, "nonsense", []string{"run", "-p", "nonsense", busybox, "true"}},
		{"sysctl", 125, "kernel.panic", []string{"run", "--sysctl", "kernel.panic=1", busybox, "true"}},
		{"device", 125, "/dev/sda", []string{"run", "--device", "/dev/sda", busybox, "true"}},
		{"capability", 125, "FLY", []string{"run", "--cap-add", "FLY", busybox, "true"}},
		{"ulimit", 125, "wings", []string{"run", "--ulimit", "wings=2", busybox, "true"}},
		{"user", 125, "nobody-here", []string{"run", "-u", "nobody-here", busybox, "true"}},
		{"volume", 125, "relative/path", []string{"run", "-v", "relative/path:/x", busybox, "true"}},
		{"profile", 125, "/no/such/profile", []string{"run", "--security-opt", "seccomp=/no/such/profile", busybox, "true"}},
		{"network", 125, "no-such-net", []string{"run", "--network", "no-such-net", busybox, "true"}},
		{"host network", 125, "host", []string{"run", "--network", "host", busybox, "true"}},
		{"name", 125, "--name", []string{"run", "--name", "../x", busybox, "true"}},
		{"exec without container", 125, "no-such", []string{"exec", "no-such", "true"}},
		{"stop without container", 1, "no-such", []string{"stop", "no-such"}},
		{"signal", 1, "FLY", []string{"kill", "-s", "FLY", "no-such"}},
		{"rm without container", 1, "no-such", []string{"rm", "no-such"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			explains(t, env, tt.code, 1, []string{tt.word}, tt.args...)
		})
	}
}

// TestBadConfiguration: all mistakes are told at once, with their lines.
func TestBadConfiguration(t *testing.T) {
	t.Parallel()
	e := other(t, "[hypervisor]\ndefault_memry = 1\ndefault_vcpus = \"two\"\n")
	explains(t, e, 125, 4, []string{"default_memry", "default_memory", "default_vcpus", filepath.Base(e.Config) + ":"}, "run", "--rm", busybox, "true")
}

// TestFullDisk: a disk without space is told as that, and nothing is left of
// what was begun.
func TestFullDisk(t *testing.T) {
	t.Parallel()
	e := other(t, "")
	if err := os.MkdirAll(e.Data, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", e.Data, "tmpfs", 0, "size=256k"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(e.Data, unix.UMOUNT_NOFOLLOW); err != nil {
			t.Error(err)
		}
	})
	explains(t, e, 125, 2, []string{"no space left"}, "run", "--rm", "--network", "none", busybox, "true")
}

// TestUnprivileged: what only root can do is told before anything is done.
func TestUnprivileged(t *testing.T) {
	t.Parallel()
	cmd := env.Command(t.Context(), "kata", "run", busybox, "true")
	cmd.SysProcAttr = nobody()
	var errOut lockedBuffer
	cmd.Stderr = &errOut
	_ = cmd.Run()
	if code := cmd.ProcessState.ExitCode(); code != 125 || !strings.Contains(errOut.String(), "root") && !strings.Contains(errOut.String(), "permission") {
		t.Errorf("exit code %d, stderr %q", code, errOut.String())
	}
}

// TestManyInARow runs containers one after the other; TestMain sees what they
// leave. KATA_LONG=1 makes it a hundred.
func TestManyInARow(t *testing.T) {
	n := 5
	if os.Getenv("KATA_LONG") != "" {
		n = 100
	}
	for i := range n {
		if out := env.MustKata(t, "run", "--rm", busybox, "echo", fmt.Sprint(i)); out != fmt.Sprint(i) {
			t.Fatalf("container %d printed %q", i, out)
		}
	}
}
