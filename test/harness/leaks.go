package harness

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// leakGrace is how long what was asked to end may take to vanish.
const leakGrace = 15 * time.Second

// makerGrace is how long the makers of templates may take, which sandboxes leave
// behind that had none.
const makerGrace = 3 * time.Minute

// Snapshot is what could leak: one line a thing.
type Snapshot map[string]bool

// Watch lets all later snapshots look at something else as well, such as what
// an engine keeps of containers.
func (e *Env) Watch(look func(Snapshot) error) { e.watched = append(e.watched, look) }

// Snap looks at processes, mounts, network, cgroups and files of the host.
func (e *Env) Snap() (Snapshot, error) {
	return e.snap(e.snapProcesses, snapMounts, snapNetwork, snapDirectory, e.snapAttached, e.snapCgroups, e.snapFiles)
}

func (e *Env) snap(looks ...func(Snapshot) error) (Snapshot, error) {
	s := Snapshot{}
	for _, look := range append(looks, e.watched...) {
		if err := look(s); err != nil {
			return nil, fmt.Errorf("leak check: %w", err)
		}
	}
	return s, nil
}

// Leaks waits until nothing is there that was not before, and returns what
// stays.
func (e *Env) Leaks(before Snapshot) ([]string, error) {
	return settle(func() ([]string, error) {
		now, err := e.Snap()
		return slices.DeleteFunc(now.Sorted(), func(line string) bool { return before[line] }), err
	})
}

// Left waits until nothing is there of containers of this installation, and
// returns what stays. Other than [Env.Leaks] it looks only at what bears the
// installation's name, so that other tests may run beside it.
func (e *Env) Left() ([]string, error) {
	return settle(func() ([]string, error) {
		now, err := e.snap(e.snapProcesses, e.snapAttached, e.snapCgroups, e.snapFiles)
		return now.Sorted(), err
	})
}

func settle(look func() ([]string, error)) ([]string, error) {
	begun := time.Now()
	quiet := begun // when no maker was there for the last time
	for {
		left, err := look()
		if slices.ContainsFunc(left, func(line string) bool {
			return strings.Contains(line, "template-") || strings.Contains(line, "--template ")
		}) && time.Since(begun) < makerGrace {
			quiet = time.Now()
		}
		if err != nil || len(left) == 0 || time.Since(quiet) > leakGrace {
			return left, err
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// snapProcesses finds the processes of this installation: they have its
// configuration in their environment, are in its cgroup, or make templates and warm
// clones for it.
func (e *Env) snapProcesses(s Snapshot) error {
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return err
	}
	marks := [][]byte{[]byte("KATA_CONF_FILE=" + e.Config + "\x00"), []byte("/" + filepath.Base(filepath.Dir(e.State)) + "/")}
	for _, d := range dirs {
		if d == fmt.Sprintf("/proc/%d", os.Getpid()) {
			continue
		}
		// A process that has ended meanwhile gives nothing.
		environ, _ := os.ReadFile(filepath.Join(d, "environ"))
		cgroup, _ := os.ReadFile(filepath.Join(d, "cgroup"))
		args, _ := os.ReadFile(filepath.Join(d, "cmdline"))
		maker := bytes.Contains(args, []byte("\x00--template\x00")) && bytes.Contains(args, marks[1])
		if bytes.Contains(environ, marks[0]) || bytes.Contains(cgroup, marks[1]) || maker {
			s[fmt.Sprintf("process %s: %.200q", filepath.Base(d), bytes.ReplaceAll(args, []byte{0}, []byte{' '}))] = true
		}
	}
	return nil
}

// snapMounts looks at mounts and shared memory.
func snapMounts(s Snapshot) error {
	entries, err := os.ReadDir("/dev/shm")
	if err != nil {
		return err
	}
	for _, en := range entries {
		s["shared memory "+en.Name()] = true
	}
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	for l := range strings.Lines(string(b)) {
		if f := strings.Fields(l); len(f) > 4 {
			s["mount "+f[4]] = true
		}
	}
	return nil
}

// snapNetwork looks at namespaces, devices and the firewall rules that CNI
// plugins make.
func snapNetwork(s Snapshot) error {
	entries, err := os.ReadDir("/run/netns")
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	for _, en := range entries {
		s["network namespace "+en.Name()] = true
	}
	links, err := os.ReadDir("/sys/class/net")
	if err != nil {
		return err
	}
	for _, l := range links {
		if !strings.HasPrefix(l.Name(), "kt") { // bridges stay until the installation is removed
			s["network device "+l.Name()] = true
		}
	}
	for _, table := range []string{"nat", "filter"} {
		rules, err := rules(table)
		if err != nil {
			return err
		}
		for _, r := range rules {
			// Of the port mapper, the chains that it has for all containers stay.
			if strings.Contains(r, "CNI-DN-") || strings.HasPrefix(r, "-A CNI-HOSTPORT-DNAT") {
				s["firewall rule "+r] = true
			}
		}
	}
	return nil
}

// snapAttached looks at what is on record as attached to the network, and at
// the ports of the bridge.
func (e *Env) snapAttached(s Snapshot) error {
	for _, pattern := range []string{
		e.State + "-cni/results/*", e.State + "-cni/addresses/*/[0-9]*",
		filepath.Join("/sys/class/net", e.Bridge, "brif/*"),
	} {
		found, err := filepath.Glob(pattern)
		if err != nil {
			return err
		}
		for _, f := range found {
			s["attached "+f] = true
		}
	}
	rules, err := rules("nat")
	if err != nil {
		return err
	}
	for _, r := range rules {
		// The rule that names the bridge is the network's own and stays.
		if strings.Contains(r, e.Network) && !strings.Contains(r, e.Bridge) {
			s["firewall rule "+r] = true
		}
	}
	return nil
}

func (e *Env) snapCgroups(s Snapshot) error {
	parent := filepath.Base(filepath.Dir(e.State))
	return filepath.WalkDir("/sys/fs/cgroup", func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return nil //nolint:nilerr // it has just gone
		}
		// The parent stays; it is one directory and holds no process.
		if d.IsDir() && filepath.Base(filepath.Dir(path)) == parent {
			s["cgroup "+path] = true
		}
		return nil
	})
}

// snapFiles looks at the directories of sandboxes and containers; of volumes
// and images at those that are not whole.
// snapDirectory looks at the working directory, which for tests is in the source.
func snapDirectory(s Snapshot) error {
	entries, err := os.ReadDir(".")
	for _, e := range entries {
		s["file ./"+e.Name()] = true
	}
	return err
}

func (e *Env) snapFiles(s Snapshot) error {
	for _, pattern := range []string{
		filepath.Join(e.State, "*"), filepath.Join(e.Data, "containers", "[^.]*"),
		filepath.Join(e.Data, "volumes", ".*"), filepath.Join(e.Data, "volumes", "*", ".*"),
	} {
		found, err := filepath.Glob(pattern)
		if err != nil {
			return err
		}
		for _, f := range found {
			s["file "+f] = true
		}
	}
	return nil
}

// End ends what still runs of the installation and takes its mounts away, so
// that a suite that failed leaves neither virtual machines nor directories that
// cannot be removed.
func (e *Env) End() error {
	s := Snapshot{}
	if err := e.snapProcesses(s); err != nil {
		return err
	}
	for line := range s {
		var pid int
		if _, err := fmt.Sscanf(line, "process %d:", &pid); err != nil {
			return err
		}
		if err := unix.Kill(pid, unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("end %s: %w", line, err)
		}
	}
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	for l := range strings.Lines(string(b)) {
		f := strings.Fields(l)
		if len(f) < 5 || !strings.HasPrefix(f[4], filepath.Dir(e.State)+"/") && !strings.HasPrefix(f[4], filepath.Dir(e.Data)+"/") {
			continue
		}
		if err := unix.Unmount(f[4], unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil {
			return fmt.Errorf("unmount %s: %w", f[4], err)
		}
	}
	return nil
}

// Sorted lists a snapshot, for messages.
func (s Snapshot) Sorted() []string { return slices.Sorted(maps.Keys(s)) }

// EmptyPool configures that no warm clone is to wait, and ends those that do, or are
// being made.
func (e *Env) EmptyPool(t testing.TB) {
	t.Helper()
	config, err := os.ReadFile(e.Config)
	if err == nil {
		config = regexp.MustCompile(`vm_cache_number = \d+`).ReplaceAll(config, []byte("vm_cache_number = 0"))
		err = os.WriteFile(e.Config, config, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	PollFor(t, makerGrace, "no warm clone waits, and none is made", func() bool {
		if r, err := e.Run(context.Background(), nil, "kata", "gc"); err != nil || r.Code != 0 {
			t.Errorf("gc: %v, %+v", err, r)
		}
		now, err := e.snap(e.snapProcesses)
		return err == nil && !slices.ContainsFunc(now.Sorted(), func(line string) bool { return strings.Contains(line, "--template ") })
	})
}
