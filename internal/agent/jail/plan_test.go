package jail

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/seed-efd44b36/kata/internal/agent/cgroup"
	"github.com/seed-efd44b36/kata/internal/agent/jail/rootfs"
	"golang.org/x/sys/unix"
)

func TestRefused(t *testing.T) {
	id := []specs.LinuxIDMapping{{Size: 1}}
	ns := func(n specs.LinuxNamespace) func(*specs.Spec) {
		return func(s *specs.Spec) { s.Linux.Namespaces = append(s.Linux.Namespaces, n) }
	}
	mount := func(m specs.Mount) func(*specs.Spec) {
		return func(s *specs.Spec) { s.Mounts = append(s.Mounts, m) }
	}
	tests := []struct {
		name        string
		edit        func(*specs.Spec)
		want        string
		unsupported bool
	}{
		{"no process", func(s *specs.Spec) { s.Process = nil }, "process: missing", false},
		{"no root", func(s *specs.Spec) { s.Root = nil }, "root.path", false},
		{"relative root", func(s *specs.Spec) { s.Root.Path = "rootfs" }, "root.path", false},
		{"no args", func(s *specs.Spec) { s.Process.Args = nil }, "process.args", false},
		{"relative cwd", func(s *specs.Spec) { s.Process.Cwd = "tmp" }, "process.cwd", false},
		{"hooks", func(s *specs.Spec) { s.Hooks = &specs.Hooks{CreateContainer: []specs.Hook{{Path: "/x"}}} }, "hooks", true},
		{"user namespace", ns(specs.LinuxNamespace{Type: specs.UserNamespace}), "linux.namespaces (user)", true},
		{"network namespace", ns(specs.LinuxNamespace{Type: specs.NetworkNamespace}), "linux.namespaces (network)", true},
		{"namespace by path", ns(specs.LinuxNamespace{Type: specs.TimeNamespace, Path: "/x"}), "linux.namespaces (time)", true},
		{"namespace twice", ns(specs.LinuxNamespace{Type: specs.PIDNamespace}), "twice", false},
		{"unknown namespace", ns(specs.LinuxNamespace{Type: "x"}), "unknown type", false},
		{"no mount namespace", func(s *specs.Spec) { s.Linux.Namespaces = nil; s.Hostname = "" }, "mount namespace", true},
		{"hostname without namespace", func(s *specs.Spec) {
			s.Linux.Namespaces = []specs.LinuxNamespace{{Type: specs.MountNamespace}}
		}, "hostname", false},
		{"id mappings", func(s *specs.Spec) { s.Linux.UIDMappings = id }, "linux.uidMappings", true},
		{"net devices", func(s *specs.Spec) { s.Linux.NetDevices = map[string]specs.LinuxNetDevice{"x": {}} }, "linux.netDevices", true},
		{"rdt", func(s *specs.Spec) { s.Linux.IntelRdt = &specs.LinuxIntelRdt{} }, "linux.intelRdt", true},
		{"memory policy", func(s *specs.Spec) { s.Linux.MemoryPolicy = &specs.LinuxMemoryPolicy{} }, "linux.memoryPolicy", true},
		{"mount label", func(s *specs.Spec) { s.Linux.MountLabel = "x" }, "linux.mountLabel", true},
		{"process label", func(s *specs.Spec) { s.Process.SelinuxLabel = "x" }, "process.selinuxLabel", true},
		{"propagation", func(s *specs.Spec) { s.Linux.RootfsPropagation = "x" }, "linux.rootfsPropagation", false},
		{"sysctl", func(s *specs.Spec) { s.Linux.Sysctl = map[string]string{"../../x": "1"} }, "linux.sysctl", false},
		{"sysctl of the guest", func(s *specs.Spec) { s.Linux.Sysctl = map[string]string{"kernel.core_pattern": "|/x"} }, "linux.sysctl", false},
		{"capability", func(s *specs.Spec) { s.Process.Capabilities.Bounding = []string{"CAP_X"} }, "process.capabilities.bounding", false},
		{"rlimit", func(s *specs.Spec) { s.Process.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_X"}} }, "process.rlimits", false},
		{"rlimit order", func(s *specs.Spec) { s.Process.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_CORE", Soft: 1}} }, "soft limit", false},
		{"io priority", func(s *specs.Spec) { s.Process.IOPriority = &specs.LinuxIOPriority{Class: "x"} }, "process.ioPriority", false},
		{"scheduler", func(s *specs.Spec) { s.Process.Scheduler = &specs.Scheduler{Policy: "x"} }, "process.scheduler", false},
		{"personality", func(s *specs.Spec) { s.Linux.Personality = &specs.LinuxPersonality{Domain: "x"} }, "linux.personality", false},
		{"affinity", func(s *specs.Spec) { s.Process.ExecCPUAffinity = &specs.CPUAffinity{Final: "3-1"} }, "execCPUAffinity", false},
		{"time offsets", func(s *specs.Spec) { s.Linux.TimeOffsets = map[string]specs.LinuxTimeOffset{"monotonic": {}} }, "linux.timeOffsets", false},
		{"filter", func(s *specs.Spec) { s.Linux.Seccomp = &specs.LinuxSeccomp{} }, "linux.seccomp", false},
		{"device type", func(s *specs.Spec) { s.Linux.Devices = []specs.LinuxDevice{{Path: "/x", Type: "x"}} }, "linux.devices[0]", false},
		{"device path", func(s *specs.Spec) { s.Linux.Devices = []specs.LinuxDevice{{Path: "x", Type: "c"}} }, "linux.devices[0]", false},
		{"masked path", func(s *specs.Spec) { s.Linux.MaskedPaths = []string{"x"} }, "linux.maskedPaths", false},
		{"mount destination", mount(specs.Mount{Destination: "x", Type: "tmpfs"}), "mounts[6]", false},
		{"mount type", mount(specs.Mount{Destination: "/x", Type: "ext4", Source: "/dev/sda"}), `type "ext4"`, true},
		{"mount without type", mount(specs.Mount{Destination: "/x"}), "type is missing", false},
		{"mount of relative source", mount(specs.Mount{Destination: "/x", Type: "bind", Source: "y"}), "source", false},
		{"mount with ids", mount(specs.Mount{Destination: "/x", Type: "bind", Source: "/y", UIDMappings: id}), "uidMappings", true},
		{"mount option idmap", mount(specs.Mount{Destination: "/x", Type: "bind", Source: "/y", Options: []string{"idmap"}}), "idmap", true},
		{"bind mount with data", mount(specs.Mount{Destination: "/x", Type: "bind", Source: "/y", Options: []string{"size=1"}}), "size=1", true},
		{"copy-up of a bind mount", mount(specs.Mount{Destination: "/x", Type: "bind", Source: "/y", Options: []string{"tmpcopyup"}}), "tmpcopyup", false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := newSpec("/rootfs", "true")
			tt.edit(s)
			_, err := New(Options{}).Create(t.Context(), Config{ID: "x", Spec: s})
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Fatalf("got %v, want an error about %s", err, tt.want)
			}
			if got := errors.Is(err, ErrUnsupported); got != tt.unsupported {
				t.Errorf("got %v, is unsupported: %v, want %v", err, got, tt.unsupported)
			}
		})
	}
}

func TestMountOptions(t *testing.T) {
	tests := []struct {
		mount specs.Mount
		want  rootfs.Mount
	}{
		{
			specs.Mount{Type: "tmpfs", Source: "t", Options: []string{"nosuid", "size=1k", "ro", "rw", "noexec", "exec", "mode=755", "sync", "async"}},
			rootfs.Mount{Type: "tmpfs", Name: "t", Set: unix.MOUNT_ATTR_NOSUID, Data: []string{"size=1k", "mode=755", "sync"}},
		},
		{
			specs.Mount{Type: "bind", Source: "/s/../t", Options: []string{"rbind", "ro", "nosuid", "suid", "rprivate"}},
			rootfs.Mount{
				Source: "/t", Recursive: true, Set: unix.MOUNT_ATTR_RDONLY, Clear: unix.MOUNT_ATTR_NOSUID,
				Propagation: []uintptr{unix.MS_PRIVATE | unix.MS_REC},
			},
		},
		{
			specs.Mount{Type: "none", Source: "/t", Options: []string{"bind", "rro", "rnoatime", "nodev"}},
			rootfs.Mount{
				Source: "/t", SetAll: unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NOATIME, ClearAll: unix.MOUNT_ATTR__ATIME, // the kernel wants all of its bits
				Set: unix.MOUNT_ATTR_NODEV,
			},
		},
		{
			specs.Mount{Options: []string{"remount", "rw"}},
			rootfs.Mount{Remount: true, Clear: unix.MOUNT_ATTR_RDONLY},
		},
		{
			specs.Mount{Type: "tmpfs", Options: []string{"noatime", "strictatime", "tmpcopyup"}},
			rootfs.Mount{Type: "tmpfs", Set: unix.MOUNT_ATTR_STRICTATIME, CopyUp: true},
		},
	}
	for _, tt := range tests {
		tt.mount.Destination, tt.want.Target = "/d", "/d"
		got, err := newMount(&tt.mount)
		if err != nil {
			t.Errorf("%+v: %v", tt.mount, err)
		}
		if d := cmp.Diff(tt.want, got); d != "" {
			t.Errorf("%v (-want +got)\n%s", tt.mount.Options, d)
		}
	}
}

func TestSysctlNames(t *testing.T) {
	var bad problems
	got := newSysctls(&bad, map[string]string{
		"net.ipv4.ip_forward": "1", "net/ipv4/conf/eth0.1/x": "2", "net.ipv4.conf.eth0/2.x": "3", "kernel.sem": "4",
	}, true, true)
	want := [][2]string{{"kernel/sem", "4"}, {"net/ipv4/conf/eth0.1/x", "2"}, {"net/ipv4/conf/eth0.2/x", "3"}, {"net/ipv4/ip_forward", "1"}}
	if d := cmp.Diff(want, got); d != "" || len(bad) > 0 {
		t.Errorf("(-want +got)\n%s\n%v", d, bad)
	}
}

// TestSysctlsOfTheGuest: what is not of a namespace that the container has is
// refused, however the name is written.
func TestSysctlsOfTheGuest(t *testing.T) {
	for _, tt := range []struct {
		name     string
		ipc, uts bool
		want     string // of the error; empty: none
	}{
		{"net.core.somaxconn", false, false, ""},
		{"fs.mqueue.msg_max", true, false, ""},
		{"fs/mqueue/msg_max", false, true, "needs an ipc namespace"},
		{"kernel.shm_rmid_forced", true, false, ""},
		{"kernel.shm_rmid_forced", false, true, "needs an ipc namespace"},
		{"kernel.domainname", false, true, ""},
		{"kernel.domainname", true, false, "needs a uts namespace"},
		{"kernel.hostname", true, true, "the field hostname"},
		{"kernel.core_pattern", true, true, "whole kernel"},
		{"kernel/core_pattern", true, true, "whole kernel"},
		{"kernel.modprobe", true, true, "whole kernel"},
		{"kernel.shm_next_id", true, true, "whole kernel"},
		{"kernel.msgmax.x", true, true, "whole kernel"},
		{"vm.overcommit_memory", true, true, "whole kernel"},
		{"fs.mqueue", true, true, "whole kernel"},
		{"fs.suid_dumpable", true, true, "whole kernel"},
		{"net", true, true, "whole kernel"},
		{"net/../kernel/core_pattern", true, true, "invalid name"},
		{"net//core", true, true, "invalid name"},
	} {
		var bad problems
		got := newSysctls(&bad, map[string]string{tt.name: "x"}, tt.ipc, tt.uts)
		err := bad.err()
		if tt.want == "" && (err != nil || len(got) != 1) {
			t.Errorf("%s: %v, error %v", tt.name, got, err)
		}
		if tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want) || len(got) > 0) {
			t.Errorf("%s: %v, error %v, want one with %q", tt.name, got, err, tt.want)
		}
	}
}

func TestCPUList(t *testing.T) {
	if got, err := cpuList("0-2,5, 7"); err != nil || !cmp.Equal(got, []int{0, 1, 2, 5, 7}) {
		t.Errorf("got %v, %v", got, err)
	}
	for _, bad := range []string{"x", "1-", "-1", "5-2", "0-9999999999"} {
		if got, err := cpuList(bad); err == nil {
			t.Errorf("%q: got %v", bad, got)
		}
	}
}

// TestRareFields runs what engines seldom ask for.
func TestRareFields(t *testing.T) {
	needRoot(t)
	tests := []struct {
		name   string
		edit   func(*specs.Spec)
		script string
		want   string
	}{
		{"scheduler", func(s *specs.Spec) {
			s.Process.Scheduler = &specs.Scheduler{Policy: specs.SchedBatch, Nice: 5}
		}, "cut -d' ' -f19 /proc/self/stat; grep ^policy /proc/self/sched | tr -d ' '", "5\npolicy:3\n"},
		{"io priority", func(s *specs.Spec) {
			s.Process.IOPriority = &specs.LinuxIOPriority{Class: specs.IOPRIO_CLASS_BE, Priority: 6}
		}, "ionice", "best-effort: prio 6\n"},
		{"personality", func(s *specs.Spec) {
			s.Linux.Personality = &specs.LinuxPersonality{Domain: specs.PerLinux32}
		}, "uname -m", "i686\n"},
		{"affinity", func(s *specs.Spec) {
			s.Process.ExecCPUAffinity = &specs.CPUAffinity{Final: "0"}
		}, "grep Cpus_allowed_list /proc/self/status", "Cpus_allowed_list:\t0\n"},
		{"time offsets", func(s *specs.Spec) {
			s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: specs.TimeNamespace})
			s.Linux.TimeOffsets = map[string]specs.LinuxTimeOffset{"boottime": {Secs: 1e9}}
		}, "test $(cut -d. -f1 /proc/uptime) -gt 1000000000 && echo yes", "yes\n"},
		{"domain name", func(s *specs.Spec) { s.Domainname = "example" }, "cat /proc/sys/kernel/domainname", "example\n"},
		{"cgroup", func(s *specs.Spec) {
			s.Mounts = append(s.Mounts, specs.Mount{
				Destination: "/sys/fs/cgroup", Type: "cgroup", Source: "cgroup", Options: []string{"nosuid", "noexec", "nodev", "relatime", "ro"},
			})
		}, "grep -c ^ /sys/fs/cgroup/cgroup.procs; grep 'fs/cgroup' /proc/mounts; mkdir /sys/fs/cgroup/x", "cgroup /sys/fs/cgroup cgroup2 ro,nosuid,nodev,noexec,relatime 0 0\nmkdir: can't create directory '/sys/fs/cgroup/x': Read-only file system"},
		{"recursive read-only", func(s *specs.Spec) {
			s.Mounts = append(s.Mounts, specs.Mount{Destination: "/v", Type: "bind", Source: "/dev", Options: []string{"rbind", "rro"}})
		}, "touch /v/x /v/shm/x", "touch: /v/x: Read-only file system\ntouch: /v/shm/x: Read-only file system"},
		{"remount", func(s *specs.Spec) {
			s.Mounts = append(s.Mounts, specs.Mount{Destination: "/dev/shm", Options: []string{"remount", "ro"}})
		}, "touch /dev/shm/x", "Read-only file system"},
		{"read-only tmpfs with a mount in it", func(s *specs.Spec) {
			s.Mounts = append(s.Mounts,
				specs.Mount{Destination: "/run", Type: "tmpfs", Source: "tmpfs", Options: []string{"ro"}},
				specs.Mount{Destination: "/run/a/b", Type: "tmpfs", Source: "tmpfs"})
		}, "touch /run/a/b/x && touch /run/x", "touch: /run/x: Read-only file system"},
		{"file limit without a word", func(s *specs.Spec) { s.Process.Rlimits = nil }, "ulimit -Sn", "1024\n"},
	}
	rootfs := newRootfs(t)
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := sh(rootfs, tt.script)
			tt.edit(s)
			if got := runJail(t, jailer(t), s); !strings.Contains(got.out, tt.want) {
				t.Errorf("got %q, want %q", got.out, tt.want)
			}
		})
	}
}

// TestCgroup runs a container in a real group.
func TestCgroup(t *testing.T) {
	needRoot(t)
	root := "/sys/fs/cgroup"
	if _, err := os.Stat(root + "/cgroup.controllers"); err != nil {
		root += "/unified"
	}
	if _, err := os.Stat(root + "/cgroup.controllers"); err != nil {
		t.Skip("needs a cgroup hierarchy of version 2")
	}
	g, err := (&cgroup.Hierarchy{Root: root}).Create("kata-test-jail-"+itoa(os.Getpid()), nil)
	if err != nil {
		t.Fatal(err)
	}
	c := startSleeper(t, func(conf *Config) { conf.Cgroup = g })
	if r, err := execIn(t, c, process("sh", "-c", "grep 0:: /proc/self/cgroup")); err != nil || r.out != "0::/\n" {
		t.Errorf("in the container: got %q, %v", r.out, err)
	}
	if pids, err := g.PIDs(); err != nil || len(pids) != 1 || pids[0] != c.Init().PID() {
		t.Errorf("PIDs: got %v, %v", pids, err)
	}
	// No device but the harmless ones.
	r, err := execIn(t, c, process("sh", "-c", "mknod /tmp/kmsg c 1 11; cat /tmp/kmsg"))
	if err != nil || !strings.Contains(r.out, "not permitted") {
		t.Errorf("device: got %+v, %v", r, err)
	}
	// A process that escapes from the container's init is killed all the same.
	if err := g.Freeze(deadline(t)); err != nil {
		t.Error(err)
	}
	if err := c.Delete(context.WithoutCancel(deadline(t))); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(filepath.Join(g.Path(), "cgroup.procs")); err == nil {
		t.Error("the group is still there")
	}
}
