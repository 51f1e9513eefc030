package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/seed-efd44b36/kata/test/testimage"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// What the program is called in the namespaces, instead of its path.
const (
	firstStage  = "suites-first"
	secondStage = "suites-second"
)

// alone runs this program again in namespaces of its own, in three stages: this
// process, the first process of the namespace of processes, whose end ends all
// others, and the one that works, so that the first can wait for orphans.
func alone(ctx context.Context, args ...string) (code int, err error) {
	cache, err := testimage.CacheDir()
	if err != nil {
		return 0, err
	}
	dir, err := os.MkdirTemp(cache, "suites-")
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	groups, err := cgroupMounts()
	if err != nil {
		return 0, err
	}
	for _, g := range groups {
		if err := makeCgroup(filepath.Join(g.path, filepath.Base(dir))); err != nil {
			return 0, err
		}
		defer func() { err = errors.Join(err, removeCgroup(filepath.Join(g.path, filepath.Base(dir)))) }()
	}
	cmd := exec.CommandContext(ctx, "/proc/self/exe", append([]string{dir}, args...)...)
	cmd.Args[0] = firstStage
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.SysProcAttr = &unix.SysProcAttr{
		Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWNET, Pdeathsig: unix.SIGKILL, Setsid: true,
	}
	err = cmd.Run()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok && exit.Exited() {
		return exit.ExitCode(), nil
	}
	return 0, err
}

// initProcess is the first process: it starts the one that works, and waits for
// all that become its children.
func initProcess(dir string) (int, error) {
	if os.Getpid() != 1 {
		return 0, errors.New("not in a namespace of processes")
	}
	groups, err := cgroupMounts()
	if err != nil {
		return 0, err
	}
	// The cgroup that it is in becomes the root of its child's namespace.
	for _, g := range groups {
		if err := enterCgroup(filepath.Join(g.path, filepath.Base(dir)), "0"); err != nil {
			return 0, err
		}
	}
	worker, err := os.StartProcess("/proc/self/exe", append([]string{secondStage}, os.Args[1:]...), &os.ProcAttr{
		Files: []*os.File{nil, os.Stdout, os.Stderr}, Env: os.Environ(),
		Sys: &unix.SysProcAttr{Cloneflags: unix.CLONE_NEWCGROUP, Setsid: true},
	})
	if err != nil {
		return 0, err
	}
	for {
		var status unix.WaitStatus
		pid, err := unix.Wait4(-1, &status, 0, nil)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return 0, fmt.Errorf("wait: %w", err)
		case pid == worker.Pid && status.Exited():
			return status.ExitStatus(), nil
		case pid == worker.Pid:
			return 0, fmt.Errorf("ended by %v", status.Signal())
		}
	}
}

// settle makes the namespaces a place for containerd: what tests and containerd
// write by fixed names lies in memory or below dir.
func settle(dir string) error {
	// What follows, and the clean-up after tests, would ruin the host.
	if os.Getppid() != 1 || !nested() {
		return errors.New("not in a namespace of processes")
	}
	steps := []struct {
		source, target, kind string
		flags                uintptr
		data                 string
	}{
		{target: "/", flags: unix.MS_REC | unix.MS_PRIVATE},
		// Propagation from the host, which pods ask for, needs a shared root.
		{target: "/", flags: unix.MS_REC | unix.MS_SHARED},
		{source: "proc", target: "/proc", kind: "proc"},
		{source: "tmpfs", target: "/run", kind: "tmpfs", data: "mode=755"},
		{source: filepath.Join(dir, "lib"), target: "/var/lib", flags: unix.MS_BIND},
		{source: filepath.Join(dir, "opt"), target: "/opt", flags: unix.MS_BIND},
		{source: filepath.Join(dir, "tmp"), target: "/var/tmp", flags: unix.MS_BIND},
		{source: "overlay", target: "/etc", kind: "overlay", data: fmt.Sprintf("lowerdir=/etc,upperdir=%[1]s/etc,workdir=%[1]s/work", dir)},
	}
	for _, d := range []string{"etc", "work"} {
		if err := os.Mkdir(filepath.Join(dir, d), 0o755); err != nil {
			return err
		}
	}
	for _, s := range steps {
		if s.flags == unix.MS_BIND {
			if err := os.MkdirAll(s.source, 0o755); err != nil {
				return err
			}
		}
		if err := unix.Mount(s.source, s.target, s.kind, s.flags, s.data); err != nil {
			return fmt.Errorf("mount %s: %w", s.target, err)
		}
	}
	for _, d := range []string{"/run/netns", "/run/lock"} {
		if err := os.Mkdir(d, 0o755); err != nil {
			return err
		}
	}
	if err := ownCgroups(); err != nil {
		return err
	}
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("loopback device: %w", err)
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		return fmt.Errorf("loopback device: %w", err)
	}
	for _, s := range []string{"ipv4/ip_forward", "ipv6/conf/all/forwarding"} {
		if err := os.WriteFile(filepath.Join("/proc/sys/net", s), []byte("1"), 0o644); err != nil {
			return err
		}
	}
	return os.Setenv("TMPDIR", "/var/tmp")
}

// nested reports whether this process has another id where /proc is from: it is
// not in the namespace of processes of the host.
func nested() bool {
	b, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return false
	}
	for line := range strings.Lines(string(b)) {
		if ids, ok := strings.CutPrefix(line, "NSpid:"); ok {
			return len(strings.Fields(ids)) > 1
		}
	}
	return false
}

// cgroupMount is a mounted hierarchy of cgroups.
type cgroupMount struct {
	path, kind, controllers string
}

// cgroupMounts returns the hierarchies that are mounted below /sys/fs/cgroup.
func cgroupMounts() ([]cgroupMount, error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var mounts []cgroupMount
	for lines := bufio.NewScanner(f); lines.Scan(); {
		front, back, _ := strings.Cut(lines.Text(), " - ")
		a, b := strings.Fields(front), strings.Fields(back)
		if len(a) < 5 || len(b) < 3 || !strings.HasPrefix(b[0], "cgroup") {
			continue
		}
		m := cgroupMount{path: a[4], kind: b[0]}
		if m.kind == "cgroup" {
			m.controllers = strings.TrimPrefix(b[2], "rw,")
		}
		mounts = append(mounts, m)
	}
	return mounts, nil
}

// ownCgroups mounts the hierarchies as the namespace of cgroups shows them, and
// moves all processes out of the root, whose children would get no controllers
// in version 2 otherwise.
func ownCgroups() error {
	groups, err := cgroupMounts()
	if err != nil {
		return err
	}
	for _, g := range groups {
		if err := unix.Unmount(g.path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil {
			return fmt.Errorf("unmount %s: %w", g.path, err)
		}
		if err := unix.Mount("cgroup", g.path, g.kind, unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, g.controllers); err != nil {
			return fmt.Errorf("mount %s: %w", g.path, err)
		}
		runner := filepath.Join(g.path, "runner")
		if err := makeCgroup(runner); err != nil {
			return err
		}
		if err := errors.Join(enterCgroup(runner, "1"), enterCgroup(runner, "0")); err != nil {
			return err
		}
	}
	return nil
}

// makeCgroup makes a cgroup that processes can enter.
func makeCgroup(path string) error {
	if err := os.Mkdir(path, 0o755); err != nil {
		return err
	}
	// Version 1 gives a new one no processors and no memory.
	for _, file := range []string{"cpuset.cpus", "cpuset.mems"} {
		b, err := os.ReadFile(filepath.Join(filepath.Dir(path), file))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		} else if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(path, file), b, 0o644); err != nil {
			return err
		}
	}
	return nil
}

func enterCgroup(path, pid string) error {
	if err := os.WriteFile(filepath.Join(path, "cgroup.procs"), []byte(pid), 0o644); err != nil {
		return fmt.Errorf("enter cgroup: %w", err)
	}
	return nil
}

// removeCgroup removes a cgroup and all below it, as soon as the kernel is done
// with their processes.
func removeCgroup(path string) error {
	deadline := time.Now().Add(15 * time.Second)
	for {
		var below []string
		err := filepath.WalkDir(path, func(p string, d fs.DirEntry, err error) error {
			if err == nil && d.IsDir() {
				below = append(below, p)
			}
			return nil
		})
		for _, dir := range slices.Backward(below) {
			err = errors.Join(err, unix.Rmdir(dir))
		}
		if err == nil {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("remove cgroup %s: %w", path, err)
		}
		time.Sleep(50 * time.Millisecond)
	}
}
