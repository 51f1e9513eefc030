package harness

import (
	"bytes"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// leakGrace is how long what was asked to end may take to vanish.
const leakGrace = 15 * time.Second

// Snapshot is what could leak: one line a thing.
type Snapshot map[string]bool

// Snap looks at processes, mounts, network, cgroups and files of the host.
func (e *Env) Snap() (Snapshot, error) {
	s := Snapshot{}
	for _, look := range []func(Snapshot) error{e.snapProcesses, snapMounts, snapNetwork, snapCgroups, e.snapFiles} {
		if err := look(s); err != nil {
			return nil, fmt.Errorf("leak check: %w", err)
		}
	}
	return s, nil
}

// Leaks waits until nothing is there that was not before, and returns what
// stays.
func (e *Env) Leaks(before Snapshot) ([]string, error) {
	deadline := time.Now().Add(leakGrace)
	for {
		now, err := e.Snap()
		if err != nil {
			return nil, err
		}
		var left []string
		for line := range now {
			if !before[line] {
				left = append(left, line)
			}
		}
		if len(left) == 0 || time.Now().After(deadline) {
			slices.Sort(left)
			return left, nil
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// snapProcesses finds the processes of this installation: they have its
// configuration in their environment, or are in its cgroup.
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
		if bytes.Contains(environ, marks[0]) || bytes.Contains(cgroup, marks[1]) {
			args, _ := os.ReadFile(filepath.Join(d, "cmdline"))
			s[fmt.Sprintf("process %s: %.200q", filepath.Base(d), bytes.ReplaceAll(args, []byte{0}, []byte{' '}))] = true
		}
	}
	return nil
}

func snapMounts(s Snapshot) error {
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
	for _, dir := range []string{"/run/netns", "/var/lib/cni/networks/kata"} {
		entries, err := os.ReadDir(dir)
		if err != nil && !os.IsNotExist(err) { //nolint:forbidigo // read only, in a test
			return err
		}
		for _, en := range entries {
			if en.Name() != "lock" && !strings.HasPrefix(en.Name(), "last_reserved_ip") {
				s["network "+filepath.Join(dir, en.Name())] = true
			}
		}
	}
	links, err := os.ReadDir("/sys/class/net")
	if err != nil {
		return err
	}
	for _, l := range links {
		if l.Name() != "kata0" { // the bridge stays, as docker0 does
			s["network device "+l.Name()] = true
		}
	}
	out, err := exec.Command("iptables-save", "-t", "nat").Output()
	if err != nil {
		return fmt.Errorf("iptables-save: %w", err)
	}
	for l := range strings.Lines(string(out)) {
		// Those of the plugin portmap itself stay, like its bridge.
		if strings.HasPrefix(l, "-A CNI") && !strings.HasPrefix(l, "-A CNI-HOSTPORT-MASQ ") && !strings.HasPrefix(l, "-A CNI-HOSTPORT-SETMARK ") {
			s["firewall rule "+strings.TrimSpace(l)] = true
		}
	}
	return nil
}

func snapCgroups(s Snapshot) error {
	return filepath.WalkDir("/sys/fs/cgroup", func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return nil //nolint:nilerr // it has just gone
		}
		// The parent stays; it is one directory and holds no process.
		if d.IsDir() && strings.Contains(path, "/kata-test-") && filepath.Dir(path) != "/sys/fs/cgroup" && strings.Count(path[strings.Index(path, "/kata-test-"):], "/") > 1 {
			s["cgroup "+path] = true
		}
		return nil
	})
}

func (e *Env) snapFiles(s Snapshot) error {
	for _, dir := range []string{e.State, filepath.Join(e.Data, "containers"), "/dev/shm"} {
		entries, err := os.ReadDir(dir)
		if err != nil {
			continue // not made yet
		}
		for _, en := range entries {
			if en.Name() != ".lock" {
				s["file "+filepath.Join(dir, en.Name())] = true
			}
		}
	}
	return nil
}

// Sorted lists a snapshot, for messages.
func (s Snapshot) Sorted() []string { return slices.Sorted(maps.Keys(s)) }
