// Package account tells what processor time and memory is taken by everything
// below one cgroup: commands and daemons that the benchmark starts, and what
// they start in turn, wherever below the group that goes. The benchmark moves
// itself into the group, so that nothing needs to be followed.
package account

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const root = "/sys/fs/cgroup"

// Group is a cgroup with this process in it. Of version 1 only the controller
// that accounts for processor time is used; the others are left alone.
type Group struct {
	name     string // "/NAME"
	dir      string
	previous string // directory that this process comes from
	line     string // what precedes the path in /proc/PID/cgroup
	v1       bool
}

// New makes the cgroup NAME below the root, and moves this process into it.
// Close moves it back.
func New(name string) (*Group, error) {
	g := &Group{name: "/" + name, line: "0::"}
	base := root
	for _, dir := range []string{"cpuacct", "cpu,cpuacct"} {
		if _, err := os.Stat(filepath.Join(root, dir, "cpuacct.usage")); err == nil {
			base, g.v1, g.line = filepath.Join(root, dir), true, ":cpuacct:"
			if strings.Contains(dir, ",") {
				g.line = ":" + dir + ":"
			}
			break
		}
	}
	own, err := g.path("self")
	if err != nil {
		return nil, err
	}
	g.dir, g.previous = filepath.Join(base, name), filepath.Join(base, own)
	// A leaf, because version 2 wants processes in leaves only.
	leaf := filepath.Join(g.dir, "bench")
	if err := os.MkdirAll(leaf, 0o755); err != nil {
		return nil, fmt.Errorf("cgroup: %w", err)
	}
	if err := enter(leaf); err != nil {
		return nil, errors.Join(err, g.Close())
	}
	return g, nil
}

// enter moves this process into a cgroup.
func enter(dir string) error {
	if err := os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte(strconv.Itoa(os.Getpid())), 0); err != nil {
		return fmt.Errorf("enter cgroup: %w", err)
	}
	return nil
}

// path returns the path of a process's cgroup.
func (g *Group) path(pid string) (string, error) {
	data, err := os.ReadFile(filepath.Join("/proc", pid, "cgroup"))
	if err != nil {
		return "", err
	}
	path, ok := pathIn(string(data), g.line)
	if !ok {
		return "", fmt.Errorf("cgroup of process %s: no line %q", pid, g.line)
	}
	return path, nil
}

// pathIn finds the path after the marker in the text of a file /proc/PID/cgroup.
func pathIn(text, marker string) (string, bool) {
	for line := range strings.Lines(text) {
		if _, path, ok := strings.Cut(strings.TrimSuffix(line, "\n"), marker); ok {
			return path, true
		}
	}
	return "", false
}

// CPU returns the seconds of processor time that have been used below the group,
// by what has ended as well, without those of this process itself.
func (g *Group) CPU() (float64, error) {
	all, err := g.usage()
	if err != nil {
		return 0, fmt.Errorf("processor time: %w", err)
	}
	var self unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &self); err != nil {
		return 0, fmt.Errorf("processor time: %w", err)
	}
	own := time.Duration(self.Utime.Nano() + self.Stime.Nano())
	return (all - own).Seconds(), nil
}

func (g *Group) usage() (time.Duration, error) {
	if g.v1 {
		data, err := os.ReadFile(filepath.Join(g.dir, "cpuacct.usage"))
		if err != nil {
			return 0, err
		}
		n, err := strconv.ParseInt(strings.TrimSpace(string(data)), 10, 64)
		return time.Duration(n), err
	}
	data, err := os.ReadFile(filepath.Join(g.dir, "cpu.stat"))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(data)) {
		var n int64
		if found, _ := fmt.Sscanf(line, "usage_usec %d", &n); found == 1 {
			return time.Duration(n) * time.Microsecond, nil
		}
	}
	return 0, errors.New("cpu.stat has no usage_usec")
}

const (
	// quiet is the most that everything together may use in a look, which is for so
	// long, to be called quiet: a guest that is idle uses some.
	quiet = 5 * time.Millisecond
	look  = 50 * time.Millisecond
)

// Settle waits until what is below the group does next to nothing any more, and
// gives up after a time: what is measured next is then on its own, or told apart
// no better.
func (g *Group) Settle(ctx context.Context, most time.Duration) error {
	before, err := g.CPU()
	if err != nil {
		return err
	}
	tick := time.NewTicker(look)
	defer tick.Stop()
	for deadline := time.Now().Add(most); time.Now().Before(deadline); {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return ctx.Err()
		}
		now, err := g.CPU()
		if err != nil {
			return err
		}
		if now-before < quiet.Seconds() {
			return nil
		}
		before = now
	}
	return nil
}

// Process is one below the group.
type Process struct {
	PID int
	// Program is the name of its executable file.
	Program string
}

// Processes lists all of the group, but for this one.
func (g *Group) Processes() ([]Process, error) {
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return nil, err
	}
	var list []Process
	for _, d := range dirs {
		pid, _ := strconv.Atoi(filepath.Base(d))
		path, err := g.path(filepath.Base(d))
		if err != nil || pid == os.Getpid() || path != g.name && !strings.HasPrefix(path, g.name+"/") {
			continue // another's, or it has just ended
		}
		exe, err := os.Readlink(filepath.Join(d, "exe"))
		if err != nil {
			continue
		}
		list = append(list, Process{PID: pid, Program: filepath.Base(strings.TrimSuffix(exe, " (deleted)"))})
	}
	return list, nil
}

// Added returns the processes of now that were not there before.
func Added(now, before []Process) []Process {
	return slices.DeleteFunc(slices.Clone(now), func(p Process) bool { return slices.Contains(before, p) })
}

// PSS returns the proportional share of a process's memory in MiB, 0 when it has
// ended meanwhile.
func PSS(pid int) (float64, error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESRCH) {
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("memory: %w", err)
	}
	return pssIn(string(data))
}

func pssIn(rollup string) (float64, error) {
	for line := range strings.Lines(rollup) {
		var kib float64
		if n, _ := fmt.Sscanf(line, "Pss: %f kB", &kib); n == 1 {
			return kib / 1024, nil
		}
	}
	return 0, errors.New("memory: smaps_rollup has no Pss")
}

// Kill ends what is left below the group, of a run that was interrupted, and waits
// until it is gone.
func (g *Group) Kill() error {
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(look) {
		list, err := g.Processes()
		if err != nil || len(list) == 0 {
			return err
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("processes that do not end: %v", list)
		}
		for _, p := range list {
			if err := unix.Kill(p.PID, unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
				return fmt.Errorf("end process %d: %w", p.PID, err)
			}
		}
	}
}

// remove removes a cgroup, which a process leaves a moment after its end is told.
func remove(dir string) error {
	for begun := time.Now(); ; time.Sleep(10 * time.Millisecond) {
		err := os.Remove(dir)
		if !errors.Is(err, unix.EBUSY) || time.Since(begun) > time.Second {
			return err
		}
	}
}

// Close moves this process back, and removes the group.
func (g *Group) Close() error {
	err := enter(g.previous)
	var dirs []string
	walk := filepath.WalkDir(g.dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			dirs = append(dirs, path)
		}
		return nil // what has vanished need not be removed
	})
	for _, dir := range slices.Backward(dirs) {
		if rerr := remove(dir); !errors.Is(rerr, fs.ErrNotExist) {
			err = errors.Join(err, rerr)
		}
	}
	return errors.Join(err, walk)
}
