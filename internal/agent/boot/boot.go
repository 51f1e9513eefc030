// Package boot turns what the kernel leaves to its first process into a system
// that containers can run in: file systems, the root, the console's words, the
// loopback interface's precondition. Its caller is the agent, as PID 1, once.
package boot

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/seed-efd44b36/kata/internal/agent/module"
	"golang.org/x/sys/unix"
)

// maxOpenFiles is the highest value of fs.nr_open, as systemd sets it.
const maxOpenFiles = "1073741816"

type mount struct {
	source, target, fstype string
	flags                  uintptr
	data                   string
	optional               bool   // the kernel may lack it
	older                  string // data for kernels that do not know all of data
}

// early is what modules and devices need, rest what containers need.
var (
	early = []mount{
		{"proc", "/proc", "proc", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC, "", false, ""},
		{"sysfs", "/sys", "sysfs", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC, "", false, ""},
		{"devtmpfs", "/dev", "devtmpfs", unix.MS_NOSUID | unix.MS_NOEXEC, "mode=0755", false, ""},
	}
	rest = []mount{
		{"tmpfs", "/run", "tmpfs", unix.MS_NOSUID | unix.MS_NODEV, "mode=0755", false, ""},
		{"devpts", "/dev/pts", "devpts", unix.MS_NOSUID | unix.MS_NOEXEC, "mode=0620,gid=5,ptmxmode=0666", false, ""},
		{"tmpfs", "/dev/shm", "tmpfs", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC, "mode=1777", false, ""},
		{"mqueue", "/dev/mqueue", "mqueue", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC, "", true, ""},
		// favordynmods: a process enters a cgroup in 1 ms, else in 13 to 76
		// (measured under emulation), which every exec would feel.
		{"cgroup2", "/sys/fs/cgroup", "cgroup2", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC, "nsdelegate,favordynmods", false, "nsdelegate"},
	}
)

// Early makes the root one that can be pivoted away from, and mounts /proc,
// /sys and /dev.
func Early() error {
	if err := moveRoot(); err != nil {
		return err
	}
	return mountAll(early)
}

// Rest mounts all else, makes every mount shared, so that processes that wait
// in mount namespaces of their own see what is mounted later, and closes the
// initial file system for writing. After it only /run, /dev and /sys change.
func Rest() error {
	if err := mountAll(rest); err != nil {
		return err
	}
	// Engines ask for more open files than a kernel allows at its start.
	if err := os.WriteFile("/proc/sys/fs/nr_open", []byte(maxOpenFiles), 0); err != nil {
		return fmt.Errorf("raise the limit of open files: %w", err)
	}
	// Some kernels are built to look elsewhere; those without modules have no
	// such file.
	if err := os.WriteFile("/proc/sys/kernel/modprobe", []byte(module.Requester), 0); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("tell the kernel who loads modules: %w", err)
	}
	// The agent's own program is in the initial file system: no container may
	// ever write to it, by whatever path (CVE-2019-5736).
	if err := unix.Mount("", "/", "", unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
		return fmt.Errorf("make the initial file system read-only: %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_SHARED|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("make mounts shared: %w", err)
	}
	return nil
}

// moveRoot puts a second mount of the initial file system on top of the first:
// pivot_root(2) refuses to move the first mount of all.
func moveRoot() error {
	const at = "/run" // exists in every initrd and holds nothing yet
	if err := mkdir(at); err != nil {
		return err
	}
	for _, step := range []struct {
		name string
		do   func() error
	}{
		{"bind", func() error { return unix.Mount("/", at, "", unix.MS_BIND, "") }},
		{"enter", func() error { return unix.Chdir(at) }},
		{"move", func() error { return unix.Mount(at, "/", "", unix.MS_MOVE, "") }},
		{"change", func() error { return unix.Chroot(".") }},
		{"enter new", func() error { return unix.Chdir("/") }},
	} {
		if err := step.do(); err != nil {
			return fmt.Errorf("%s root: %w", step.name, err)
		}
	}
	return nil
}

func mountAll(list []mount) error {
	for _, m := range list {
		if err := mkdir(m.target); err != nil {
			return err
		}
		err := unix.Mount(m.source, m.target, m.fstype, m.flags, m.data)
		if errors.Is(err, unix.EINVAL) && m.older != "" {
			err = unix.Mount(m.source, m.target, m.fstype, m.flags, m.older)
		}
		// Some kernels mount devtmpfs by themselves.
		if errors.Is(err, unix.EBUSY) || m.optional && errors.Is(err, unix.ENODEV) {
			continue
		}
		if err != nil {
			return fmt.Errorf("mount %s: %w", m.target, err)
		}
	}
	return nil
}

func mkdir(path string) error {
	if err := os.Mkdir(path, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	return nil
}

// CommandLine is the kernel's command line.
type CommandLine string

// ReadCommandLine reads it; /proc must be mounted.
func ReadCommandLine() (CommandLine, error) {
	b, err := os.ReadFile("/proc/cmdline")
	return CommandLine(b), err
}

// Get returns the value of the last word "key=value", or "1" for a bare "key",
// or "".
func (c CommandLine) Get(key string) string {
	value := ""
	for word := range strings.FieldsSeq(string(c)) {
		if k, v, ok := strings.Cut(word, "="); k == key {
			value = v
			if !ok {
				value = "1"
			}
		}
	}
	return value
}
