package resources

import (
	"errors"
	"io/fs"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"github.com/seed-efd44b36/kata/internal/config"
	"github.com/seed-efd44b36/kata/internal/thread"
	"golang.org/x/sys/unix"
)

func TestSize(t *testing.T) {
	h := config.Default().Hypervisor // 1 CPU, 512 MiB, 128 MiB of overhead
	for name, tc := range map[string]struct {
		limits Limits
		want   VM
	}{
		"default":            {Limits{}, VM{1, 512}},
		"memory":             {Limits{MemoryBytes: 1 << 30}, VM{1, 1024 + 128}},
		"memory rounded up":  {Limits{MemoryBytes: 1<<20 + 1}, VM{1, 130}},
		"half a CPU":         {Limits{CPUs: 0.5}, VM{1, 512}},
		"more than there is": {Limits{CPUs: 100000}, VM{runtime.NumCPU(), 512}},
		"negative":           {Limits{MemoryBytes: -1, CPUs: -1}, VM{1, 512}},
		"largest number":     {Limits{MemoryBytes: math.MaxInt64 &^ 4095, CPUs: math.Inf(1)}, VM{1, 512}},
		"not a number":       {Limits{CPUs: math.NaN()}, VM{1, 512}},
	} {
		t.Run(name, func(t *testing.T) {
			if got := Size(tc.limits, h); got != tc.want {
				t.Errorf("got %v, want %v", got, tc.want)
			}
		})
	}
}

func TestLimitsOf(t *testing.T) {
	i := func(n int64) *int64 { return &n }
	u := func(n uint64) *uint64 { return &n }
	for name, tc := range map[string]struct {
		r    *specs.LinuxResources
		want Limits
	}{
		"none":      {nil, Limits{}},
		"empty":     {&specs.LinuxResources{Memory: &specs.LinuxMemory{}, CPU: &specs.LinuxCPU{}}, Limits{}},
		"unlimited": {&specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: i(-1)}, CPU: &specs.LinuxCPU{Quota: i(-1)}}, Limits{}},
		"both": {&specs.LinuxResources{
			Memory: &specs.LinuxMemory{Limit: i(5)}, CPU: &specs.LinuxCPU{Quota: i(25_000), Period: u(50_000)},
		}, Limits{5, 0.5}},
		"default period": {&specs.LinuxResources{CPU: &specs.LinuxCPU{Quota: i(250_000)}}, Limits{0, 2.5}},
	} {
		t.Run(name, func(t *testing.T) {
			if got := LimitsOf(tc.r); got != tc.want {
				t.Errorf("got %v, want %v", got, tc.want)
			}
		})
	}
}

func TestCgroup(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root, to make cgroups")
	}
	path := "/kata-resources-test-" + strconv.Itoa(os.Getpid()) + "/a/b"
	c, err := Create(path)
	must(t, err)
	t.Cleanup(func() {
		must(t, c.Delete(t.Context()))
		parent := Cgroup{path: filepath.Dir(filepath.Dir(path))}
		must(t, parent.Delete(t.Context()))
		for _, d := range c.dirs() {
			if _, err := os.Stat(d); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("%s is left", d)
			}
		}
	})
	if len(c.dirs()) == 0 {
		t.Skipf("no cgroup of this host can be written to: %q", c.Warnings())
	}
	t.Logf("directories %q, warnings %q", c.dirs(), c.Warnings())

	proc := exec.Command("/bin/sleep", "600")
	must(t, proc.Start())
	t.Cleanup(func() { _ = proc.Process.Kill(); _ = proc.Wait() })
	must(t, c.AddPID(proc.Process.Pid))
	for _, d := range c.dirs() {
		b, err := os.ReadFile(filepath.Join(d, "cgroup.procs"))
		must(t, err)
		if got := strings.TrimSpace(string(b)); got != strconv.Itoa(proc.Process.Pid) {
			t.Errorf("processes in %s: %q", d, got)
		}
	}
	if err := c.AddPID(1 << 22); err == nil {
		t.Error("AddPID of no process: no error")
	}
	if err := c.Limit(Limits{MemoryBytes: 64 << 20, CPUs: 0.5}); errors.Is(err, errors.ErrUnsupported) {
		t.Skipf("this host has not all controllers: %v", err)
	} else {
		must(t, err)
	}
	want := map[string]string{"memory.limit_in_bytes": "67108864", "cpu.cfs_quota_us": "50000"}
	dirs := map[string]string{"memory.limit_in_bytes": c.v1["memory"], "cpu.cfs_quota_us": c.v1["cpu"]}
	if c.unified {
		want = map[string]string{"memory.max": "67108864", "cpu.max": "50000 100000"}
		dirs = map[string]string{"memory.max": c.v2, "cpu.max": c.v2}
	}
	got := map[string]string{}
	for name := range want {
		b, err := os.ReadFile(filepath.Join(dirs[name], name))
		must(t, err)
		got[name] = strings.TrimSpace(string(b))
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("limits (-want +got):\n%s", diff)
	}
	if s := c.Stats(); s.PIDs != 1 {
		t.Errorf("stats: %+v, want 1 process", s)
	}
	// The limit follows those of the containers.
	for _, tt := range []struct {
		container    string
		began, now   float64
		milliseconds string
	}{
		{"a", 0.25, 0.5, "75"},
		{"a", 0.25, 0.1, "35"},
		{"b", 0.2, 1, "115"},
		{"b", 0.2, 1, "115"},
		{"a", 0.25, 0, ""},
		{"b", 0.2, 3, ""},
		{"a", 0.25, 0.25, "330"}, // as it was
		{"b", 0.2, 0, ""},
		{"b", 0.2, -1, "50"}, // is deleted
		{"a", 0.25, -1, "50"},
		{"a", 0.25, 0.5, "75"}, // another of the name
	} {
		if tt.now < 0 {
			must(t, c.Forget(tt.container))
		} else {
			must(t, c.Change(tt.container, Limits{CPUs: tt.began}, Limits{CPUs: tt.now}))
		}
		want := tt.milliseconds + "000"
		if tt.milliseconds == "" {
			want = map[bool]string{true: "max", false: "-1"}[c.unified]
		}
		name := map[bool]string{true: "cpu.max", false: "cpu.cfs_quota_us"}[c.unified]
		b, err := os.ReadFile(filepath.Join(dirs[name], name))
		must(t, err)
		if got := strings.Fields(string(b))[0]; got != want {
			t.Errorf("after %v: %s, want %s", tt, got, want)
		}
	}
	must(t, c.Limit(Limits{}))
}

func TestCgroupPaths(t *testing.T) {
	for _, path := range []string{"", "/", "/../x", "a/../../b", "x\x00"} {
		if c, err := create(t.TempDir(), path); !errors.Is(err, fs.ErrInvalid) {
			t.Errorf("%q: got %v, %v, want fs.ErrInvalid", path, c, err)
		}
	}
}

// TestEnter: a child is born in the cgroup, and the process that forks it stays out
// but for the thread.
func TestEnter(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root, to make cgroups")
	}
	c, err := Create("/kata-resources-test-enter-" + strconv.Itoa(os.Getpid()))
	must(t, err)
	t.Cleanup(func() { must(t, c.Delete(t.Context())) })
	child := exec.Command("/bin/sleep", "600")
	child.SysProcAttr = &syscall.SysProcAttr{}
	must(t, thread.Run(func() error {
		if err := c.Enter(child.SysProcAttr); err != nil {
			return err
		}
		if child.SysProcAttr.UseCgroupFD {
			defer unix.Close(child.SysProcAttr.CgroupFD)
		}
		return child.Start()
	}))
	t.Cleanup(func() { _ = child.Process.Kill(); _ = child.Wait() })
	pid := strconv.Itoa(child.Process.Pid)
	for _, d := range c.dirs() {
		b, err := os.ReadFile(filepath.Join(d, "cgroup.procs"))
		must(t, err)
		if !slices.Contains(strings.Fields(string(b)), pid) {
			t.Errorf("processes in %s: %q, want %s", d, b, pid)
		}
	}
	self, err := os.ReadFile("/proc/self/cgroup") // of the first thread
	must(t, err)
	if strings.Contains(string(self), c.Path()) {
		t.Errorf("we are in it: %s", self)
	}
	must(t, c.AddPID(os.Getpid()))
	c.Leave()
	for _, d := range c.dirs() {
		b, err := os.ReadFile(filepath.Join(d, "cgroup.procs"))
		must(t, err)
		if slices.Contains(strings.Fields(string(b)), strconv.Itoa(os.Getpid())) {
			t.Errorf("we are still in %s: %q", d, b)
		}
	}
}

// TestNoCgroups: on a host that gives us none, everything works but limits.
func TestNoCgroups(t *testing.T) {
	c, err := create(t.TempDir(), "/kata/x")
	must(t, err)
	must(t, c.AddPID(os.Getpid()))
	must(t, c.Limit(Limits{}))
	if err := c.Limit(Limits{MemoryBytes: 1}); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("Limit: got %v, want errors.ErrUnsupported", err)
	}
	if len(c.Warnings()) == 0 {
		t.Error("no warnings")
	}
	if s := c.Stats(); s != (Stats{}) {
		t.Errorf("stats: %v, want none", s)
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
