package resources

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"github.com/seed-efd44b36/kata/internal/cleanup"
	"golang.org/x/sys/unix"
)

// cgroupRoot is where hosts mount cgroups.
const cgroupRoot = "/sys/fs/cgroup"

// cpuPeriod in microseconds; the kernel's default.
const cpuPeriod = 100_000

// Cgroup is one cgroup of the host, in all hierarchies that matter to us: that
// of version 2, or those of version 1 with the cpu, cpuacct, memory and pids
// controllers, besides a version 2 without controllers ("hybrid").
type Cgroup struct {
	path string
	// v2 is the directory in version 2, empty if the host has none; unified
	// tells whether the controllers are there.
	v2      string
	unified bool
	// v1 maps a controller to the directory in its hierarchy.
	v1       map[string]string
	warnings []string

	mu      sync.Mutex       // held while the limit on CPU time is changed, which depends on what it was
	limited bool             // guarded by mu; whether Limit has set one
	cpus    float64          // guarded by mu; the limit, in force unless a container has none now
	of      map[string]share // guarded by mu; of containers that have been changed
}

// share is a container's part in the limit on CPU time, 0 for a container that
// has no limit of its own.
type share struct{ began, now float64 }

// Stats is what the processes of a cgroup use. What the host cannot tell is 0.
type Stats struct {
	CPUNanos    uint64
	MemoryBytes uint64
	// InactiveFileBytes is the part of it that the kernel can take back first.
	InactiveFileBytes uint64
	PIDs              uint64
}

// Create makes the cgroup at path, below the root of each hierarchy, and those
// on the way to it. A hierarchy that we may not write to is left out, see
// Warnings: a host may keep cgroups from us, and containers must run there all
// the same. The caller removes it by Delete or its ledger's record.
func Create(path string) (*Cgroup, error) {
	return create(cgroupRoot, path)
}

func create(root, path string) (*Cgroup, error) {
	clean := filepath.Clean("/" + path)
	if clean == "/" || slices.Contains(strings.Split(path, "/"), "..") || strings.ContainsRune(path, 0) {
		return nil, fmt.Errorf("create cgroup %q: not a path below the root: %w", path, fs.ErrInvalid)
	}
	c := &Cgroup{path: clean, v1: map[string]string{}}
	if fsType(root) == unix.CGROUP2_SUPER_MAGIC {
		dir, err := c.mkdir(root)
		if err != nil {
			return nil, fmt.Errorf("create cgroup: %w", err)
		}
		c.v2, c.unified = dir, dir != ""
		return c, nil
	}
	for _, controller := range []string{"cpu", "cpuacct", "memory", "pids"} {
		hierarchy := filepath.Join(root, controller)
		if fsType(hierarchy) != unix.CGROUP_SUPER_MAGIC {
			c.warn("no cgroup controller %s on this host", controller)
			continue
		}
		// Controllers mounted together are links to one directory beside them.
		if target, err := os.Readlink(hierarchy); err == nil {
			hierarchy = filepath.Join(root, target)
		}
		dir, err := c.mkdir(hierarchy)
		if err != nil {
			return nil, fmt.Errorf("create cgroup: %w", err)
		}
		if dir != "" {
			c.v1[controller] = dir
		}
	}
	if hybrid := filepath.Join(root, "unified"); fsType(hybrid) == unix.CGROUP2_SUPER_MAGIC {
		dir, err := c.mkdir(hybrid)
		if err != nil {
			return nil, fmt.Errorf("create cgroup: %w", err)
		}
		c.v2 = dir
	}
	return c, nil
}

func fsType(path string) int64 {
	var st unix.Statfs_t
	if err := unix.Statfs(path, &st); err != nil {
		return 0
	}
	return st.Type
}

// mkdir makes the cgroup in one hierarchy; "" when it is not ours to write to.
func (c *Cgroup) mkdir(hierarchy string) (string, error) {
	dir := filepath.Join(hierarchy, c.path)
	err := os.MkdirAll(dir, 0o755)
	if errors.Is(err, fs.ErrPermission) || errors.Is(err, unix.EROFS) {
		c.warn("cgroup hierarchy %s cannot be written to", hierarchy)
		return "", nil
	}
	if err != nil {
		return "", err
	}
	if fsType(hierarchy) == unix.CGROUP2_SUPER_MAGIC {
		c.enable(hierarchy)
	}
	return dir, nil
}

// enable hands the controllers down to the cgroup in version 2, where each
// parent must pass them on. One that cannot be had is told when it is needed.
func (c *Cgroup) enable(hierarchy string) {
	b, err := os.ReadFile(filepath.Join(hierarchy, "cgroup.controllers"))
	if err != nil {
		return
	}
	parent := hierarchy
	for name := range strings.SplitSeq(strings.TrimPrefix(c.path, "/"), "/") {
		for _, controller := range []string{"cpu", "memory", "pids"} {
			if slices.Contains(strings.Fields(string(b)), controller) {
				_ = writeFile(filepath.Join(parent, "cgroup.subtree_control"), "+"+controller)
			}
		}
		parent = filepath.Join(parent, name)
	}
}

func (c *Cgroup) warn(format string, args ...string) {
	for _, a := range args {
		format = strings.Replace(format, "%s", a, 1)
	}
	c.warnings = append(c.warnings, format)
}

// Path is the cgroup's path below the root of each hierarchy.
func (c *Cgroup) Path() string { return c.path }

// Warnings tell what the host did not let us have, for the log.
func (c *Cgroup) Warnings() []string { return c.warnings }

// dirs are the cgroup's directories, each once.
func (c *Cgroup) dirs() []string {
	var out []string
	if c.v2 != "" {
		out = append(out, c.v2)
	}
	for _, d := range c.v1 {
		out = append(out, d)
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// AddPID moves a process with all its threads into the cgroup.
func (c *Cgroup) AddPID(pid int) error {
	var errs []error
	for _, d := range c.dirs() {
		if err := writeFile(filepath.Join(d, "cgroup.procs"), strconv.Itoa(pid)); err != nil {
			errs = append(errs, err)
		}
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("add process %d to cgroup %s: %w", pid, c.path, err)
	}
	return nil
}

// Enter puts the process that the calling thread is about to fork into the cgroup,
// which it is born in. To move a process that is there makes the kernel wait
// until no CPU looks at it any more, 5 ms and more in which no other cgroup can
// be changed; a thread may change its own, and that of its children, at once.
// That is version 1. In version 2 the attributes do it, and have a descriptor
// which is the caller's to close.
func (c *Cgroup) Enter(attr *syscall.SysProcAttr) error {
	for _, d := range c.dirs() {
		if d == c.v2 {
			continue
		}
		if err := writeFile(filepath.Join(d, "tasks"), "0"); err != nil {
			return fmt.Errorf("enter cgroup %s: %w", c.path, err)
		}
	}
	if c.v2 == "" {
		return nil
	}
	fd, err := unix.Open(c.v2, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("enter cgroup %s: %w", c.path, err)
	}
	attr.UseCgroupFD, attr.CgroupFD = true, fd
	return nil
}

// Leave moves our own process out, into the root of each hierarchy. That takes its
// time, as AddPID does, and is to be begun before the cgroup has to go. What does
// not work is tried again, and told, when it is removed.
func (c *Cgroup) Leave() {
	for _, d := range c.dirs() {
		_ = writeFile(filepath.Join(strings.TrimSuffix(d, c.path), "cgroup.procs"), "0")
	}
}

// LeaveAll moves our own process out of all cgroups that it was born in, into the
// root of each hierarchy.
func LeaveAll() error {
	hierarchies := []string{cgroupRoot}
	if fsType(cgroupRoot) != unix.CGROUP2_SUPER_MAGIC {
		entries, err := os.ReadDir(cgroupRoot)
		if err != nil {
			return fmt.Errorf("leave cgroups: %w", err)
		}
		hierarchies = nil
		for _, e := range entries {
			if h := filepath.Join(cgroupRoot, e.Name()); e.IsDir() {
				hierarchies = append(hierarchies, h)
			}
		}
	}
	var errs []error
	for _, h := range hierarchies {
		if t := fsType(h); t == unix.CGROUP_SUPER_MAGIC || t == unix.CGROUP2_SUPER_MAGIC {
			errs = append(errs, writeFile(filepath.Join(h, "cgroup.procs"), "0"))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("leave cgroups: %w", err)
	}
	return nil
}

// Limit sets the limits of all processes of the cgroup together; zero lifts
// one. A limit whose controller the host does not give is an error that wraps
// errors.ErrUnsupported.
func (c *Cgroup) Limit(l Limits) error {
	l = l.clean()
	c.mu.Lock()
	defer c.mu.Unlock()
	errs := []error{c.limitMemory(l.MemoryBytes), c.limitCPU(l.CPUs)}
	if errs[1] == nil {
		c.cpus, c.limited = l.CPUs, l.CPUs > 0
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("limit cgroup %s: %w", c.path, err)
	}
	return nil
}

// Change changes the limit on CPU time, if there is one, by as much as that of a
// container of the sandbox has changed: from what it began with, or what it was
// changed to last. While a container has none, the sandbox has none, either.
func (c *Cgroup) Change(container string, began, now Limits) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	from, ok := c.of[container]
	if !ok {
		from = share{began: began.clean().CPUs, now: began.clean().CPUs}
	}
	if c.of == nil {
		c.of = map[string]share{}
	}
	to := now.clean().CPUs
	c.of[container] = share{began: from.began, now: to}
	return c.change(from.now, to)
}

// Forget takes back what a container has changed, which is no more. Without the
// cgroup there is nothing to take back.
func (c *Cgroup) Forget(container string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	last, ok := c.of[container]
	if !ok {
		return nil
	}
	delete(c.of, container)
	if err := c.change(last.now, last.began); !errors.Is(err, errors.ErrUnsupported) {
		return err
	}
	return nil
}

// change puts one share in the place of another. The caller holds mu.
func (c *Cgroup) change(from, to float64) error {
	if !c.limited || from == to {
		return nil
	}
	c.cpus = max(c.cpus+to-from, to)
	limit := c.cpus
	for _, s := range c.of {
		if s.now == 0 {
			limit = 0
		}
	}
	if err := c.limitCPU(limit); err != nil {
		return fmt.Errorf("limit cgroup %s: %w", c.path, err)
	}
	return nil
}

func (c *Cgroup) limitMemory(bytes int64) error {
	value, none := strconv.FormatInt(bytes, 10), bytes == 0
	if c.unified {
		if none {
			value = "max"
		}
		return c.set(c.v2, "memory.max", value, none)
	}
	if none {
		value = "-1"
	}
	return c.set(c.v1["memory"], "memory.limit_in_bytes", value, none)
}

func (c *Cgroup) limitCPU(cpus float64) error {
	none := cpus == 0
	quota := strconv.FormatInt(max(int64(math.Round(cpus*cpuPeriod)), 1000), 10) // 1 ms is the kernel's least
	if c.unified {
		if none {
			quota = "max"
		}
		return c.set(c.v2, "cpu.max", quota+" "+strconv.Itoa(cpuPeriod), none)
	}
	if none {
		quota = "-1"
	} else if err := c.set(c.v1["cpu"], "cpu.cfs_period_us", strconv.Itoa(cpuPeriod), false); err != nil {
		return err
	}
	return c.set(c.v1["cpu"], "cpu.cfs_quota_us", quota, none)
}

// set writes a setting. To lift a limit that cannot be set is no error.
func (c *Cgroup) set(dir, name, value string, lift bool) error {
	var err error
	if dir == "" {
		err = fs.ErrNotExist
	} else {
		err = writeFile(filepath.Join(dir, name), value)
	}
	if errors.Is(err, fs.ErrNotExist) {
		if lift {
			return nil
		}
		return fmt.Errorf("%s: this host has no such controller for us: %w", name, errors.ErrUnsupported)
	}
	return err
}

// Stats tells what the processes of the cgroup use.
func (c *Cgroup) Stats() Stats {
	if c.unified {
		return Stats{
			CPUNanos:          1000 * readKey(filepath.Join(c.v2, "cpu.stat"), "usage_usec"),
			MemoryBytes:       readUint(filepath.Join(c.v2, "memory.current")),
			InactiveFileBytes: readKey(filepath.Join(c.v2, "memory.stat"), "inactive_file"),
			PIDs:              readUint(filepath.Join(c.v2, "pids.current")),
		}
	}
	return Stats{
		CPUNanos:          readUint(filepath.Join(c.v1["cpuacct"], "cpuacct.usage")),
		MemoryBytes:       readUint(filepath.Join(c.v1["memory"], "memory.usage_in_bytes")),
		InactiveFileBytes: readKey(filepath.Join(c.v1["memory"], "memory.stat"), "total_inactive_file"),
		PIDs:              readUint(filepath.Join(c.v1["pids"], "pids.current")),
	}
}

// Delete kills what is left in the cgroup, but the calling process, and removes
// it. The parents stay: they are not ours, or others use them.
func (c *Cgroup) Delete(ctx context.Context) error {
	return cleanup.Release(ctx, cleanup.Record{Kind: cleanup.KindCgroup, Name: c.path})
}

// writeFile writes a cgroup's file, which must exist, by one write.
func writeFile(path, value string) error {
	f, err := os.OpenFile(path, os.O_WRONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(value)
	return errors.Join(err, f.Close())
}

func readUint(path string) uint64 {
	b, err := os.ReadFile(path)
	if err != nil {
		return 0
	}
	n, err := strconv.ParseUint(strings.TrimSpace(string(b)), 10, 64)
	if err != nil {
		return 0
	}
	return n
}

// readKey reads a number out of a file with lines of "key number".
func readKey(path, key string) uint64 {
	b, err := os.ReadFile(path)
	if err != nil {
		return 0
	}
	for l := range strings.Lines(string(b)) {
		if f := strings.Fields(l); len(f) == 2 && f[0] == key {
			n, err := strconv.ParseUint(f[1], 10, 64)
			if err != nil {
				return 0
			}
			return n
		}
	}
	return 0
}
