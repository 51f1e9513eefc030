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
		{"kernel that panics", `kernel_params = "rdinit=/no/such/init init=/no/such/init"`, 10, []string{"kernel panicked", "Unable to mount root", "next:"}},
		{"QEMU that hangs", fmt.Sprintf("path = %q", file("sleep", "#!/bin/sh\nexec sleep 1000\n")), 5, []string{"did not answer in time", "boot_timeout is 3 s", "next:"}},
		{"kernel that hangs", `kernel_params = "rdinit=/no/such/init panic=0"`, 16, []string{"boot_timeout is 3 s", "next:"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			e := installation(t, "[hypervisor]\n"+tt.config)
			if strings.Contains(tt.name, "hangs") {
				dropIn := filepath.Join(filepath.Dir(e.Config), "config.d", "10-short.toml")
				if err := os.Mkdir(filepath.Dir(dropIn), 0o700); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(dropIn, []byte("[runtime]\nboot_timeout = 3\n"), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			explains(t, e, 125, tt.lines, tt.words, "run", "--rm", "--network", "none", busybox, "true")
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
		{"unknown registry", 125, "registry.invalid", []string{"run", "registry.invalid/image:1"}},
		{"unknown tag", 125, "no-such-tag", []string{"run", busybox + ":no-such-tag"}},
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
	e := installation(t, "[hypervisor]\ndefault_memry = 1\ndefault_vcpus = \"two\"\n")
	explains(t, e, 125, 4, []string{"default_memry", "default_memory", "default_vcpus", filepath.Base(e.Config) + ":"}, "run", "--rm", busybox, "true")
}

// TestFullDisk: a disk without space is told as that, and nothing is left of
// what was begun.
func TestFullDisk(t *testing.T) {
	t.Parallel()
	e := installation(t, "")
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

// TestDamagedImage: a layout that is not whole is told with the file, and
// nothing of it is kept.
func TestDamagedImage(t *testing.T) {
	t.Parallel()
	e := installation(t, "")
	digest, err := func() (string, error) {
		m, err := imageOf(t, busybox).Manifest()
		return m.Layers[0].Digest.String(), err
	}()
	if err != nil {
		t.Fatal(err)
	}
	layer := filepath.Join("blobs", strings.ReplaceAll(digest, ":", "/"))
	change := func(name string, f func(b []byte) []byte) func(dir string) error {
		return func(dir string) error {
			b, err := os.ReadFile(filepath.Join(dir, name))
			if err != nil {
				return err
			}
			return os.WriteFile(filepath.Join(dir, name), f(b), 0o600)
		}
	}
	for _, tt := range []struct {
		name   string
		damage func(dir string) error
		words  []string
	}{
		{"a byte", change(layer, func(b []byte) []byte { b[len(b)/2] ^= 1; return b }), []string{digest + " is damaged"}},
		{"cut off", change(layer, func(b []byte) []byte { return b[:len(b)/2] }), []string{digest + " is damaged"}},
		{"another file", change(layer, func([]byte) []byte { return nil }), []string{"damaged"}},
		{"missing", func(dir string) error { return os.Remove(filepath.Join(dir, layer)) }, []string{layer, "no such file"}},
		{"no index", change("index.json", func([]byte) []byte { return []byte("{") }), []string{"index.json"}},
		{"no layout", func(dir string) error { return os.Remove(filepath.Join(dir, "index.json")) }, []string{"not an OCI image layout"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "layout")
			if err := os.CopyFS(dir, os.DirFS(strings.TrimPrefix(busybox, "oci:"))); err != nil {
				t.Fatal(err)
			}
			if err := tt.damage(dir); err != nil {
				t.Fatal(err)
			}
			explains(t, e, 125, 1, append(tt.words, dir), "run", "--rm", "--network", "none", "oci:"+dir, "true")
			if out := e.MustKata(t, "images", "--json"); out != "[]" && out != "null" {
				t.Errorf("images: %s", out)
			}
		})
	}
}

// TestRelativeConfig: the configuration's path is the caller's, though kata-proxy
// runs in another directory.
func TestRelativeConfig(t *testing.T) {
	t.Parallel()
	e := installation(t, "")
	cmd := e.Command(t.Context(), "kata", "--config", filepath.Base(e.Config), "run", "--rm", "--network", "none", busybox, "echo", "well")
	cmd.Dir = filepath.Dir(e.Config)
	cmd.Env = os.Environ()
	if out, err := cmd.CombinedOutput(); err != nil || string(out) != "well\n" {
		t.Errorf("%v, %q", err, out)
	}
}

// TestImagesAreRemoved: with the layers that only they need.
func TestImagesAreRemoved(t *testing.T) {
	t.Parallel()
	e := installation(t, "")
	name := e.MustKata(t, "pull", busybox)
	if out := e.MustKata(t, "rmi", name); out != name {
		t.Errorf("rmi: %q, want %q", out, name)
	}
	if out := e.MustKata(t, "images", "--json"); out != "[]" && out != "null" {
		t.Errorf("images: %s", out)
	}
	if out := e.MustKata(t, "gc"); !strings.Contains(out, "image layers: 0 removed") {
		t.Errorf("rmi has left layers: %s", out)
	}
	explains(t, e, 1, 1, []string{name}, "rmi", name)
}

// TestNameConflict: a name is given once.
func TestNameConflict(t *testing.T) {
	t.Parallel()
	start(t, "--name", "taken", "--network", "none", busybox, "sleep", "1000")
	explains(t, env, 125, 1, []string{"taken", "in use", "kata rm"}, "run", "--rm", "--name", "taken", busybox, "true")
}

// TestUnprivileged: what only root can do is told before anything is done.
func TestUnprivileged(t *testing.T) {
	t.Parallel()
	for verb, code := range map[string]int{
		"run x": 125, "exec x y": 125, "ps": 1, "logs x": 1, "stop x": 1, "kill x": 1, "rm x": 1, "pull x": 1, "images": 1, "rmi x": 1, "gc": 1,
	} {
		cmd := env.Command(t.Context(), "kata", strings.Fields(verb)...)
		cmd.SysProcAttr = nobody()
		out, err := cmd.CombinedOutput()
		want := fmt.Sprintf("kata: kata %s needs root: run it with sudo\n", strings.Fields(verb)[0])
		if cmd.ProcessState == nil {
			t.Fatal(err)
		}
		if cmd.ProcessState.ExitCode() != code || string(out) != want {
			t.Errorf("kata %s: exit code %d, %q; want %d, %q", verb, cmd.ProcessState.ExitCode(), out, code, want)
		}
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
