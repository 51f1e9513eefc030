// Package cgroup limits and measures containers with the control groups, version
// 2, of the guest.
//
// Life cycle of a group: Hierarchy.Create -> AddPID of its first process ->
// Update, Freeze, Thaw, Stats, WatchOOM at any time -> Kill -> Delete.
//
// What a spec asks for and version 2 cannot do is an error that names the field;
// nothing is dropped.
package cgroup

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// Hierarchy is where the groups are made. Its methods are safe for concurrent use.
type Hierarchy struct {
	// Root is the directory where the file system is mounted, /sys/fs/cgroup.
	Root string

	mu    sync.Mutex
	usual []*program // guarded by mu; those that Prepare has loaded
	spare *Group     // guarded by mu; nil for none
	made  int        // guarded by mu; spare groups so far
}

// Group is the control group of one container. Its methods are safe for
// concurrent use.
type Group struct {
	hierarchy *Hierarchy
	dir       string // absolute
	// life ends when Delete has removed the group. The kernel does not tell those who
	// watch the files of a group of its end, or not all kernels do.
	life context.Context
	end  context.CancelFunc

	mu      sync.Mutex
	devices *program // guarded by mu; what decides about devices, nil for all allowed
}

// Create makes the group of the given name, a path relative to the root such as
// "kata/ID", switches on every controller that the kernel has on the way to it,
// and applies the limits. Without rules for devices only the harmless ones that
// every container has are allowed. It is an error if the group exists. On error
// nothing of it is left.
func (h *Hierarchy) Create(name string, r *specs.LinuxResources) (*Group, error) {
	parts, err := split(name)
	if err != nil {
		return nil, err
	}
	if r == nil {
		r = &specs.LinuxResources{}
	}
	dir := h.Root
	for i, part := range parts {
		if err := enableControllers(dir); err != nil {
			return nil, fmt.Errorf("create cgroup %q: %w", name, err)
		}
		dir = filepath.Join(dir, part)
		err := os.Mkdir(dir, 0o755)
		if err != nil && (i == len(parts)-1 || !errors.Is(err, fs.ErrExist)) {
			return nil, fmt.Errorf("create cgroup %q: %w", name, err)
		}
	}
	g := newGroup(h, dir)
	if err := g.apply(r, true); err != nil {
		g.discard()
		return nil, fmt.Errorf("create cgroup %q: %w", name, err)
	}
	return g, nil
}

// Prepare makes a group ahead, unless there is one, and has the kernel translate the
// programs for devices that most containers have: in an emulated guest these take as
// long as many other steps of a start together.
func (h *Hierarchy) Prepare() error {
	if err := h.loadUsual(); err != nil {
		return fmt.Errorf("prepare for cgroups: %w", err)
	}
	h.mu.Lock()
	enough := h.spare != nil
	if !enough {
		h.made++
	}
	name := "kata/~" + strconv.Itoa(h.made) // no container's
	h.mu.Unlock()
	if enough {
		return nil
	}
	g, err := h.Create(name, nil)
	if err != nil {
		return err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.spare == nil {
		h.spare = g
		return nil
	}
	g.discard() // somebody else was faster
	return nil
}

// CreateHidden is Create for a container that cannot see the names of groups: the
// group may have another one.
func (h *Hierarchy) CreateHidden(name string, r *specs.LinuxResources) (*Group, error) {
	h.mu.Lock()
	g := h.spare
	h.spare = nil
	h.mu.Unlock()
	if g == nil {
		return h.Create(name, r)
	}
	if r == nil {
		r = &specs.LinuxResources{}
	}
	if err := g.apply(r, true); err != nil {
		g.discard()
		return nil, fmt.Errorf("create cgroup %q: %w", name, err)
	}
	return g, nil
}

// discard removes a group that has had no process.
func (g *Group) discard() {
	_ = unix.Rmdir(g.dir)
	g.end()
	g.mu.Lock()
	defer g.mu.Unlock()
	g.devices.close()
	g.devices = nil
}

func newGroup(h *Hierarchy, dir string) *Group {
	g := &Group{hierarchy: h, dir: dir}
	g.life, g.end = context.WithCancel(context.Background())
	return g
}

// split checks a name and returns its components.
func split(name string) ([]string, error) {
	if clean := path.Clean("/" + name); name == "" || clean != "/"+strings.Trim(name, "/") || clean == "/" {
		return nil, fmt.Errorf("create cgroup: invalid name %q", name)
	}
	return strings.Split(strings.Trim(name, "/"), "/"), nil
}

// Controllers lists the controllers that groups can use.
func (h *Hierarchy) Controllers() ([]string, error) {
	data, err := os.ReadFile(filepath.Join(h.Root, "cgroup.controllers"))
	if err != nil {
		return nil, fmt.Errorf("list the cgroup controllers: %w", err)
	}
	return strings.Fields(string(data)), nil
}

// enableControllers makes all controllers available to the groups below dir. What
// cannot be switched on is missed only by a limit that needs it, which then says so.
func enableControllers(dir string) error {
	data, err := os.ReadFile(filepath.Join(dir, "cgroup.controllers"))
	if err != nil {
		return err
	}
	enabled, err := os.ReadFile(filepath.Join(dir, "cgroup.subtree_control"))
	if err != nil {
		return err
	}
	on := strings.Fields(string(enabled))
	for c := range strings.FieldsSeq(string(data)) {
		if !slices.Contains(on, c) {
			_ = write(dir, "cgroup.subtree_control", "+"+c)
		}
	}
	return nil
}

// Path is the directory of the group.
func (g *Group) Path() string { return g.dir }

// Update changes the limits to what r says; what r does not mention stays.
func (g *Group) Update(r *specs.LinuxResources) error {
	if r == nil {
		return nil
	}
	if err := g.apply(r, false); err != nil {
		return fmt.Errorf("update cgroup: %w", err)
	}
	return nil
}

// apply writes the limits. The rules for devices are set at the beginning and when
// there are any.
func (g *Group) apply(r *specs.LinuxResources, first bool) error {
	list, err := settings(r, !first)
	if err != nil {
		return err
	}
	if m := r.Memory; m != nil && m.CheckBeforeUpdate != nil && *m.CheckBeforeUpdate && m.Limit != nil && *m.Limit > 0 {
		if used, err := readUint(g.dir, "memory.current"); err == nil && used > uint64(*m.Limit) {
			return fmt.Errorf("linux.resources.memory: the limit %d is below the usage %d", *m.Limit, used)
		}
	}
	for _, s := range list {
		err := write(g.dir, s.file, s.value)
		if s.optional && errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) {
			controller, _, _ := strings.Cut(s.file, ".")
			return fmt.Errorf("%s: the guest's kernel has no %s controller or not that setting: %w", s.field, controller, err)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", s.field, err)
		}
	}
	if first || len(r.Devices) > 0 {
		return g.setDevices(r.Devices)
	}
	return nil
}

// setDevices puts a new program for devices in place of the old one. In between
// both decide.
func (g *Group) setDevices(rules []specs.LinuxDeviceCgroup) error {
	inForce, err := deviceRules(rules)
	if err != nil {
		return err
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	var next *program
	if !allowsAll(inForce) {
		if next, err = g.hierarchy.program(deviceProgram(inForce)); err != nil {
			return fmt.Errorf("linux.resources.devices: %w", err)
		}
	}
	old := g.devices
	if next == old {
		return nil
	}
	if next != nil {
		if err := next.attach(g.dir); err != nil {
			next.close()
			return fmt.Errorf("linux.resources.devices: %w", err)
		}
	}
	g.devices = next
	if err := old.detach(g.dir); err != nil {
		return fmt.Errorf("linux.resources.devices: %w", err)
	}
	return nil
}

// loadUsual loads the programs for the rules of engines.
func (h *Hierarchy) loadUsual() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.usual != nil {
		return nil
	}
	for _, rules := range [][]deviceRule{{nothing}, {nothing, console}} {
		p, err := load(deviceProgram(append(rules, harmless[:]...)))
		if err != nil {
			return err
		}
		p.kept = true
		h.usual = append(h.usual, p)
	}
	return nil
}

// program returns the code as a program, which is the caller's to close.
func (h *Hierarchy) program(code []insn) (*program, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, p := range h.usual {
		if slices.Equal(p.code, code) {
			return p, nil
		}
	}
	return load(code)
}

// AddPID moves the process into the group.
func (g *Group) AddPID(pid int) error { return addPID(g.dir, pid) }

// Doors opens the cgroup.procs of the group and of the root for writing, for
// processes to move themselves by writing "0". The caller closes the files.
func (g *Group) Doors() (in, out *os.File, err error) {
	if in, err = os.OpenFile(filepath.Join(g.dir, "cgroup.procs"), os.O_WRONLY, 0); err != nil {
		return nil, nil, fmt.Errorf("open cgroup: %w", err)
	}
	if out, err = os.OpenFile(filepath.Join(g.hierarchy.Root, "cgroup.procs"), os.O_WRONLY, 0); err != nil {
		_ = in.Close()
		return nil, nil, fmt.Errorf("open the root cgroup: %w", err)
	}
	return in, out, nil
}

// AddPIDBeside moves the process into the group that other, a process of g or of a
// group below it, is in.
func (g *Group) AddPIDBeside(pid, other int) error {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", other))
	if err != nil {
		return fmt.Errorf("find the cgroup of process %d: %w", other, err)
	}
	dir, err := groupOf(data, g.hierarchy.Root)
	if err != nil {
		return fmt.Errorf("find the cgroup of process %d: %w", other, err)
	}
	if dir != g.dir && !strings.HasPrefix(dir, g.dir+"/") {
		return fmt.Errorf("process %d is in cgroup %q, which is not below %q", other, dir, g.dir)
	}
	return addPID(dir, pid)
}

// groupOf returns the directory that a /proc/PID/cgroup file tells.
func groupOf(data []byte, root string) (string, error) {
	for line := range strings.Lines(string(data)) {
		if name, ok := strings.CutPrefix(strings.TrimSuffix(line, "\n"), "0::"); ok {
			if !path.IsAbs(name) || path.Clean(name) != name {
				return "", fmt.Errorf("cgroup %q: %w", name, fs.ErrInvalid)
			}
			return filepath.Join(root, name), nil
		}
	}
	return "", errors.New("no group of version 2")
}

func addPID(dir string, pid int) error {
	if err := write(dir, "cgroup.procs", strconv.Itoa(pid)); err != nil {
		return fmt.Errorf("move process %d into cgroup %q: %w", pid, dir, err)
	}
	return nil
}

// PIDs lists the processes in the group and in groups below it.
func (g *Group) PIDs() ([]int, error) {
	var pids []int
	err := filepath.WalkDir(g.dir, func(name string, d fs.DirEntry, err error) error {
		switch {
		case errors.Is(err, fs.ErrNotExist) || err == nil && !d.IsDir():
			return nil // a group that was removed meanwhile, or a file
		case err != nil:
			return err
		}
		data, err := os.ReadFile(filepath.Join(name, "cgroup.procs"))
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV) || errors.Is(err, unix.EOPNOTSUPP) {
			return nil // removed, or a group of threads, whose processes are above
		}
		if err != nil {
			return err
		}
		for field := range strings.FieldsSeq(string(data)) {
			pid, err := strconv.Atoi(field)
			if err != nil {
				return err
			}
			pids = append(pids, pid)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("list the processes of cgroup %q: %w", g.dir, err)
	}
	return pids, nil
}

// Kill sends SIGKILL to every process of the group, frozen or not. It does not
// wait for their end.
func (g *Group) Kill() error {
	err := write(g.dir, "cgroup.kill", "1")
	switch {
	case err == nil:
		return nil
	case !errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("kill cgroup %q: %w", g.dir, err)
	}
	if _, err := os.Stat(g.dir); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	// A kernel before 5.14. Who forks faster than we kill is stopped first.
	_ = write(g.dir, "cgroup.freeze", "1")
	defer func() { _ = write(g.dir, "cgroup.freeze", "0") }()
	return g.Signal(unix.SIGKILL)
}

// Signal sends sig to every process of the group.
func (g *Group) Signal(sig unix.Signal) error {
	pids, err := g.PIDs()
	if err != nil {
		return err
	}
	fds := make(map[int]int, len(pids))
	defer func() {
		for _, fd := range fds {
			_ = unix.Close(fd)
		}
	}()
	for _, pid := range pids {
		if fd, err := unix.PidfdOpen(pid, 0); err == nil {
			fds[pid] = fd
		}
	}
	// A descriptor is of the right process if its number is still in the group.
	if pids, err = g.PIDs(); err != nil {
		return err
	}
	for _, pid := range pids {
		fd, ok := fds[pid]
		if !ok {
			continue
		}
		if err := unix.PidfdSendSignal(fd, sig, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("signal process %d: %w", pid, err)
		}
	}
	return nil
}

// write writes a file of a group in one call, as the kernel wants it.
func write(dir, file, value string) error {
	f, err := os.OpenFile(filepath.Join(dir, file), os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	if _, err := f.WriteString(value); err != nil {
		return fmt.Errorf("write %q: %w", value, err)
	}
	return nil
}
