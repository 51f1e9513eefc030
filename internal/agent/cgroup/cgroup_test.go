package cgroup

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/runtime-spec/specs-go"
	agentv1 "github.com/seed-efd44b36/kata/api/agent/v1"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/testing/protocmp"
)

// fake makes a directory that looks like a group.
func fake(t *testing.T, files map[string]string) *Group {
	t.Helper()
	dir := t.TempDir()
	for name, text := range files {
		put(t, filepath.Join(dir, name), text)
	}
	return newGroup(&Hierarchy{Root: dir}, dir)
}

func put(t *testing.T, name, text string) {
	t.Helper()
	if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func TestSplit(t *testing.T) {
	tests := map[string][]string{
		"kata/a": {"kata", "a"}, "/kata/a": {"kata", "a"}, "a": {"a"},
		"": nil, "/": nil, "..": nil, "a/../b": nil, "a//b": nil, "./a": nil, "../a": nil,
	}
	for name, want := range tests {
		got, err := split(name)
		if (err == nil) != (want != nil) || cmp.Diff(want, got) != "" {
			t.Errorf("split(%q): got %q, %v; want %q", name, got, err, want)
		}
	}
}

func TestStats(t *testing.T) {
	g := fake(t, map[string]string{
		"cpu.stat":            "usage_usec 100\nuser_usec 60\nsystem_usec 40\nnr_periods 5\nnr_throttled 2\nthrottled_usec 9\n",
		"memory.current":      "4096\n",
		"memory.max":          "max\n",
		"memory.peak":         "8192\n",
		"memory.swap.current": "1\n",
		"memory.swap.max":     "2\n",
		"memory.stat":         "anon 10\nfile 20\n",
		"memory.events":       "low 0\nhigh 0\nmax 3\noom 2\noom_kill 1\noom_group_kill 0\n",
		"pids.current":        "3\n",
		"pids.max":            "64\n",
		"io.stat":             "8:16 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=0 dios=0\n8:0\n",
	})
	got, err := g.Stats()
	if err != nil {
		t.Fatal(err)
	}
	want := &agentv1.StatsContainerResponse{
		Cpu: &agentv1.CPUStats{UsageUsec: 100, UserUsec: 60, SystemUsec: 40, NrPeriods: 5, NrThrottled: 2, ThrottledUsec: 9},
		Memory: &agentv1.MemoryStats{
			Usage: 4096, Peak: 8192, SwapUsage: 1, SwapLimit: 2, Oom: 2, OomKill: 1,
			Stat: map[string]uint64{"anon": 10, "file": 20},
		},
		Pids: &agentv1.PidsStats{Current: 3, Limit: 64},
		Io:   []*agentv1.IOStats{{Major: 8, Minor: 16, Rbytes: 1, Wbytes: 2, Rios: 3, Wios: 4}},
	}
	if d := cmp.Diff(want, got, protocmp.Transform()); d != "" {
		t.Errorf("(-want +got)\n%s", d)
	}
}

func TestStatsWithoutControllers(t *testing.T) {
	g := fake(t, map[string]string{"cpu.stat": "usage_usec 1\n"})
	s, err := g.Stats()
	if err != nil || s.GetCpu().GetUsageUsec() != 1 {
		t.Errorf("got %v, %v", s, err)
	}
}

func TestWatchOOM(t *testing.T) {
	g := fake(t, map[string]string{"memory.events": "oom 0\noom_kill 0\n"})
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	kills := make(chan struct{}, 10)
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := g.WatchOOM(ctx, func() { kills <- struct{}{} }); err != nil {
			t.Errorf("after the removal: got %v, want no error", err)
		}
	})
	// Written over and over, as the watch may not be there yet. The content grows
	// by one write each, so that no reader finds half of it.
	events := filepath.Join(g.dir, "memory.events")
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for told := false; !told; {
		put(t, events, "oom 1\noom_kill 1\n")
		select {
		case <-kills:
			told = true
		case <-tick.C:
		case <-ctx.Done():
			t.Fatal("was not told")
		}
	}
	if err := os.Remove(events); err != nil {
		t.Fatal(err)
	}
	wg.Wait()
	if n, err := g.OOMKills(); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("OOMKills: got %d, %v", n, err)
	}
}

func TestWatchEndsWithContext(t *testing.T) {
	g := fake(t, map[string]string{"memory.events": "oom_kill 0\n"})
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := g.WatchOOM(ctx, func() {}); !errors.Is(err, context.Canceled) {
			t.Errorf("got %v, want %v", err, context.Canceled)
		}
	})
	cancel()
	wg.Wait()
}

func TestFreezeWaits(t *testing.T) {
	g := fake(t, map[string]string{"cgroup.freeze": "0", "cgroup.events": "populated 1\nfrozen 0\n"})
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if err := g.Freeze(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Freeze of what does not stop: got %v", err)
	}
	put(t, filepath.Join(g.dir, "cgroup.events"), "populated 1\nfrozen 1\n")
	if err := g.Freeze(t.Context()); err != nil {
		t.Error(err)
	}
	if data, _ := os.ReadFile(filepath.Join(g.dir, "cgroup.freeze")); string(data) != "1" {
		t.Errorf("cgroup.freeze: got %q", data)
	}
}

func TestGroupOf(t *testing.T) {
	tests := map[string]string{
		"0::/kata/a\n":               "/r/kata/a",
		"1:name=systemd:/x\n0::/y\n": "/r/y",
		"0::/../x\n":                 "",
		"1:cpu:/\n":                  "",
	}
	for data, want := range tests {
		if got, err := groupOf([]byte(data), "/r"); got != want || (err == nil) != (want != "") {
			t.Errorf("groupOf(%q): got %q, %v; want %q", data, got, err, want)
		}
	}
}

// hierarchy returns one to try things in.
func hierarchy(t *testing.T) *Hierarchy {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	for _, dir := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/unified"} {
		if _, err := os.Stat(filepath.Join(dir, "cgroup.controllers")); err == nil {
			return &Hierarchy{Root: dir}
		}
	}
	t.Skip("needs a cgroup hierarchy of version 2 at /sys/fs/cgroup or /sys/fs/cgroup/unified")
	return nil
}

// TestLifeCycle runs a process in a real group: devices, freezer, signals, kill.
func TestLifeCycle(t *testing.T) {
	h := hierarchy(t)
	name := "kata-test-cgroup-" + strconv.Itoa(os.Getpid())
	g, err := h.Create(name, nil)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	t.Cleanup(func() {
		_ = g.Kill()
		_ = g.Delete(context.WithoutCancel(ctx))
	})
	if _, err := h.Create(name, nil); !errors.Is(err, fs.ErrExist) {
		t.Errorf("Create again: got %v, want %v", err, fs.ErrExist)
	}

	// open says by its exit code whether a device can be opened in the group.
	open := func(device string) bool {
		cmd := exec.CommandContext(ctx, "sh", "-c", "read x && exec 3<"+device)
		in, err := cmd.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		if err := g.AddPID(cmd.Process.Pid); err != nil {
			t.Fatal(err)
		}
		_, _ = in.Write([]byte("\n"))
		return cmd.Wait() == nil
	}
	if !open("/dev/null") {
		t.Error("/dev/null is refused by default")
	}
	if open("/dev/kmsg") {
		t.Error("/dev/kmsg is allowed by default")
	}
	one, eleven := int64(1), int64(11)
	if err := g.Update(&specs.LinuxResources{Devices: []specs.LinuxDeviceCgroup{
		{Allow: false, Access: "rwm"},
		{Allow: true, Type: "c", Major: &one, Minor: &eleven, Access: "r"},
	}}); err != nil {
		t.Fatal(err)
	}
	if !open("/dev/kmsg") || !open("/dev/zero") {
		t.Error("a device is refused after it was allowed")
	}
	if err := g.Update(&specs.LinuxResources{Devices: []specs.LinuxDeviceCgroup{{Allow: true, Access: "rwm"}}}); err != nil {
		t.Fatal(err)
	}
	if !open("/dev/kmsg") {
		t.Error("/dev/kmsg is refused when all is allowed")
	}

	sleep := exec.CommandContext(ctx, "sleep", "1000")
	if err := sleep.Start(); err != nil {
		t.Fatal(err)
	}
	if err := g.AddPID(sleep.Process.Pid); err != nil {
		t.Fatal(err)
	}
	if pids, err := g.PIDs(); err != nil || len(pids) != 1 || pids[0] != sleep.Process.Pid {
		t.Errorf("PIDs: got %v, %v", pids, err)
	}
	if err := g.Freeze(ctx); err != nil {
		t.Error(err)
	}
	if err := g.Thaw(ctx); err != nil {
		t.Error(err)
	}
	if err := g.AddPIDBeside(sleep.Process.Pid, sleep.Process.Pid); err != nil {
		t.Error(err)
	}
	if err := g.Signal(unix.SIGTERM); err != nil {
		t.Error(err)
	}
	_ = sleep.Wait()
	if got := sleep.ProcessState.String(); got != "signal: terminated" {
		t.Errorf("after Signal: got %q", got)
	}

	sleep = exec.CommandContext(ctx, "sleep", "1000")
	if err := sleep.Start(); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(g.Path(), "below"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := addPID(filepath.Join(g.Path(), "below"), sleep.Process.Pid); err != nil {
		t.Fatal(err)
	}
	var watcher sync.WaitGroup
	watcher.Go(func() {
		err := g.watch(ctx, "cgroup.stat", func() (bool, error) { return false, nil })
		if !errors.Is(err, errRemoved) {
			t.Errorf("a watch of a group that is deleted: got %v", err)
		}
	})
	if err := g.Freeze(ctx); err != nil {
		t.Error(err)
	}
	if err := g.Kill(); err != nil {
		t.Error(err)
	}
	_ = sleep.Wait()
	if err := g.Delete(ctx); err != nil {
		t.Error(err)
	}
	watcher.Wait()
	if _, err := os.Stat(g.Path()); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("after Delete: got %v", err)
	}
	if err := g.Kill(); err != nil {
		t.Errorf("Kill after Delete: %v", err)
	}
	if err := g.Delete(ctx); err != nil {
		t.Errorf("Delete after Delete: %v", err)
	}
}

// TestPrepare makes groups ahead, in a group of its own.
func TestPrepare(t *testing.T) {
	h := hierarchy(t)
	h.Root = filepath.Join(h.Root, "kata-test-prepare-"+strconv.Itoa(os.Getpid()))
	if err := os.Mkdir(h.Root, 0o755); err != nil {
		t.Skip("needs a cgroup hierarchy that can be changed: ", err)
	}
	var made []*Group
	t.Cleanup(func() {
		for _, g := range made {
			if err := g.Delete(context.Background()); err != nil {
				t.Error(err)
			}
		}
		for _, dir := range []string{"kata/~2", "kata", "."} {
			_ = unix.Rmdir(filepath.Join(h.Root, dir))
		}
	})
	for range 2 {
		if err := h.Prepare(); err != nil {
			t.Fatal(err)
		}
	}
	one := int64(1)
	for _, tt := range []struct {
		name   string
		create func(string, *specs.LinuxResources) (*Group, error)
		r      *specs.LinuxResources
		want   string
		kept   bool
	}{
		{"kata/named", h.Create, nil, "kata/named", true},
		{"kata/a", h.CreateHidden, nil, "kata/~1", true},
		{"kata/b", h.CreateHidden, &specs.LinuxResources{Devices: []specs.LinuxDeviceCgroup{{Allow: true, Type: "c", Major: &one}}}, "kata/b", false},
	} {
		g, err := tt.create(tt.name, tt.r)
		if err != nil {
			t.Fatal(err)
		}
		made = append(made, g)
		if want := filepath.Join(h.Root, tt.want); g.Path() != want {
			t.Errorf("%s: got %s, want %s", tt.name, g.Path(), want)
		}
		if g.devices.kept != tt.kept {
			t.Errorf("%s: program is kept: %v, want %v", tt.name, g.devices.kept, tt.kept)
		}
	}
	// Of a spare one that cannot be used nothing stays.
	if err := h.Prepare(); err != nil {
		t.Fatal(err)
	}
	if _, err := h.CreateHidden("kata/c", &specs.LinuxResources{Devices: []specs.LinuxDeviceCgroup{{Type: "x"}}}); err == nil {
		t.Error("no error for a bad rule")
	}
	if left, err := filepath.Glob(filepath.Join(h.Root, "kata/~*")); err != nil || len(left) != 1 { // a's
		t.Errorf("left: %v, %v", left, err)
	}
}
