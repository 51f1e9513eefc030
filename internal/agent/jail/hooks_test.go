package jail

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// hooked is a container with hooks that are shell scripts. Argument zero is another
// name than the program's.
func hooked(rootfs, script string, hooks ...string) *specs.Spec {
	s := sh(rootfs, script)
	s.Hooks = &specs.Hooks{}
	for _, h := range hooks {
		s.Hooks.StartContainer = append(s.Hooks.StartContainer, specs.Hook{Path: "/bin/busybox", Args: []string{"sh", "-c", h}, Env: []string{"PATH=/bin", "OF=hook"}})
	}
	return s
}

// Hooks run in the container, in order, before its program, with its state.
func TestStartHooks(t *testing.T) {
	needRoot(t)
	s := hooked(newRootfs(t), "cat /seen/it; echo program", `cat > /seen/it; echo >> /seen/it`, `echo $OF $(hostname) >> /seen/it`)
	s.Mounts = append(s.Mounts, specs.Mount{Destination: "/seen", Type: "tmpfs", Source: "tmpfs"})
	s.Annotations = map[string]string{bundleAnnotation: "/b", "a": "b"}
	r := runJail(t, jailer(t), s)
	lines := strings.Split(strings.TrimSpace(r.out), "\n")
	if r.code != 0 || len(lines) != 3 {
		t.Fatalf("got %+v", r)
	}
	var st specs.State
	if err := json.Unmarshal([]byte(lines[0]), &st); err != nil {
		t.Fatalf("%v: %s", err, lines[0])
	}
	if st.ID != "test" || st.Status != specs.StateCreated || st.Pid != 1 || st.Bundle != "/b" || len(st.Annotations) != 1 {
		t.Errorf("got state %+v", st)
	}
	if lines[1] != "hook "+s.Hostname || lines[2] != "program" {
		t.Errorf("got %q", lines[1:])
	}
}

// A hook that fails ends the container; no other and no program runs.
func TestStartHookFails(t *testing.T) {
	needRoot(t)
	rootfs := newRootfs(t)
	j := jailer(t)
	for _, tc := range []struct {
		name, hook, path, want string
		timeout                int
	}{
		{"fails", "echo oh >&2; exit 3", "/bin/busybox", `startContainer hook 0 (/bin/busybox): exit status 3: "oh\n"`, 0},
		{"hangs", "while :; do :; done", "/bin/busybox", "did not end in 1s", 1},
		{"is missing", "", "/bin/nothing", "startContainer hook 0 (/bin/nothing): ", 0},
		{"leaves a process with its output", "sleep 100000 & exit 4", "/bin/busybox", "exit status 4", 0},
	} {
		ctx := deadline(t)
		s := hooked(rootfs, "echo program", tc.hook, "echo second")
		s.Hooks.StartContainer[0].Path = tc.path
		if tc.timeout > 0 {
			s.Hooks.StartContainer[0].Timeout = &tc.timeout
		}
		w, text := output(t)
		c, err := j.Create(ctx, Config{ID: "test", Spec: s, Stdio: Stdio{Out: w, Err: w}})
		_ = w.Close()
		if err != nil {
			t.Fatal(err)
		}
		if err := c.Start(ctx); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: got %v, want %q", tc.name, err, tc.want)
		}
		<-c.Init().Done()
		if err := c.Delete(ctx); err != nil {
			t.Error(err)
		}
		if out := text(); out != "" {
			t.Errorf("%s: the container says %q", tc.name, out)
		}
	}
}

// A hook that hangs does not hold up the end of its container, whose process may be
// killed meanwhile: in another's pid namespace the kernel leaves the hook alone.
func TestStartHookOfAKilledContainer(t *testing.T) {
	needRoot(t)
	ctx := deadline(t)
	rootfs := newRootfs(t)
	s := hooked(rootfs, "echo program", "echo > /begun; while :; do :; done")
	s.Linux.Namespaces = slices.DeleteFunc(s.Linux.Namespaces, func(n specs.LinuxNamespace) bool { return n.Type == specs.PIDNamespace })
	w, text := output(t)
	c, err := jailer(t).Create(ctx, Config{ID: "test", Spec: s, Stdio: Stdio{Out: w, Err: w}})
	_ = w.Close()
	if err != nil {
		t.Fatal(err)
	}
	started := make(chan error, 1)
	go func() { started <- c.Start(ctx) }()
	for tick := time.NewTicker(5 * time.Millisecond); ; {
		if _, err := os.Stat(filepath.Join(rootfs, "begun")); err == nil {
			break
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatal("the hook does not begin")
		}
	}
	if err := c.Init().Signal(unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if err := <-started; err == nil || !strings.Contains(err.Error(), "ended meanwhile") {
		t.Errorf("start: %v", err)
	}
	if err := c.Delete(ctx); err != nil {
		t.Error(err)
	}
	if out := text(); out != "" {
		t.Errorf("the container says %q", out)
	}
}
