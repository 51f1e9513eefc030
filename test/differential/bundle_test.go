//go:build integration

package differential

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"github.com/seed-efd44b36/kata/test/harness"
	"github.com/seed-efd44b36/kata/test/testimage"
)

// bundle is an OCI bundle of its own for one run.
type bundle struct {
	Dir    string // with config.json and rootfs
	Rootfs string
	Spec   *specs.Spec
}

// unpackImage puts the root file system of the test image, and the program
// probe, into dir.
func unpackImage(ctx context.Context, dir string) error {
	ref, err := harness.Image(ctx, "busybox")
	if err != nil {
		return err
	}
	if err := testimage.Unpack(ctx, strings.TrimPrefix(ref, "oci:"), dir); err != nil {
		return err
	}
	build := exec.CommandContext(ctx, "go", "build", "-o", filepath.Join(dir, "bin", "probe"), "./probe")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("build the probe: %w: %s", err, out)
	}
	return nil
}

// newBundle makes a bundle with the standard spec and a fresh root file system.
func newBundle(t *testing.T, s *suite, id string) *bundle {
	t.Helper()
	dir, err := os.MkdirTemp(filepath.Dir(s.layers), "bundle-") //nolint:usetesting // it goes after the leak check, which would name what keeps it
	if err != nil {
		t.Fatal(err)
	}
	// Programs that have dropped root's capabilities pass through it.
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	b := &bundle{Dir: dir, Rootfs: filepath.Join(dir, "rootfs"), Spec: standardSpec()}
	if out, err := exec.CommandContext(t.Context(), "cp", "-a", s.layers, b.Rootfs).CombinedOutput(); err != nil {
		t.Fatalf("copy the root file system: %v: %s", err, out)
	}
	b.Spec.Linux.CgroupsPath = "/" + filepath.Base(filepath.Dir(s.env.State)) + "/" + id
	return b
}

func (b *bundle) write(t *testing.T) {
	t.Helper()
	config, err := json.MarshalIndent(b.Spec, "", " ")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(b.Dir, "config.json"), config, 0o600); err != nil {
		t.Fatal(err)
	}
}

// file writes a file of the host that the bundle's mounts refer to, with its
// directory, and returns its path.
func (b *bundle) file(t *testing.T, name, content string) string {
	t.Helper()
	path := filepath.Join(b.Dir, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

// mount adds mounts to the standard ones.
func (b *bundle) mount(mounts ...specs.Mount) { b.Spec.Mounts = append(b.Spec.Mounts, mounts...) }

// resources are of a container with no limits, but for devices.
func resources() *specs.LinuxResources {
	rules := []specs.LinuxDeviceCgroup{
		{Access: "rwm"},
		{Allow: true, Type: "c", Access: "m"},
		{Allow: true, Type: "b", Access: "m"},
	}
	for _, d := range [][2]int64{{1, 3}, {1, 5}, {1, 7}, {1, 8}, {1, 9}, {5, 0}, {5, 1}, {5, 2}} {
		rules = append(rules, specs.LinuxDeviceCgroup{Allow: true, Type: "c", Major: &d[0], Minor: &d[1], Access: "rwm"})
	}
	pts := int64(136)
	return &specs.LinuxResources{Devices: append(rules, specs.LinuxDeviceCgroup{Allow: true, Type: "c", Major: &pts, Access: "rwm"})}
}

// dockerCapabilities is the set that Docker gives by default.
func dockerCapabilities() []string {
	return []string{
		"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FSETID", "CAP_FOWNER", "CAP_MKNOD", "CAP_NET_RAW", "CAP_SETGID", "CAP_SETUID",
		"CAP_SETFCAP", "CAP_SETPCAP", "CAP_NET_BIND_SERVICE", "CAP_SYS_CHROOT", "CAP_KILL", "CAP_AUDIT_WRITE",
	}
}

// standardSpec is like what Docker writes for `docker run`, without seccomp.
func standardSpec() *specs.Spec {
	caps := dockerCapabilities()
	return &specs.Spec{
		Version:  "1.0.2",
		Hostname: "compared",
		Root:     &specs.Root{Path: "rootfs"},
		Process: &specs.Process{
			Cwd:          "/",
			Env:          []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "ANSWER=42", "EMPTY=", "TEXT=two words, 'quoted' = signs"},
			Capabilities: &specs.LinuxCapabilities{Bounding: caps, Effective: caps, Permitted: caps},
			// Without limits of its own a container has those of the caller.
			Rlimits: limits(),
		},
		Mounts: []specs.Mount{
			{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev"}},
			{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "strictatime", "mode=755", "size=65536k"}},
			{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"}},
			{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: []string{"nosuid", "noexec", "nodev", "ro"}},
			{Destination: "/sys/fs/cgroup", Type: "cgroup", Source: "cgroup", Options: []string{"nosuid", "noexec", "nodev", "relatime", "ro"}},
			{Destination: "/dev/mqueue", Type: "mqueue", Source: "mqueue", Options: []string{"nosuid", "noexec", "nodev"}},
			{Destination: "/dev/shm", Type: "tmpfs", Source: "shm", Options: []string{"nosuid", "noexec", "nodev", "mode=1777", "size=65536k"}},
		},
		Linux: &specs.Linux{
			Namespaces: []specs.LinuxNamespace{
				{Type: specs.PIDNamespace},
				{Type: specs.IPCNamespace},
				{Type: specs.UTSNamespace},
				{Type: specs.MountNamespace},
				{Type: specs.NetworkNamespace},
				{Type: specs.CgroupNamespace},
			},
			Resources: resources(),
			MaskedPaths: []string{
				"/proc/asound", "/proc/acpi", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list",
				"/proc/timer_stats", "/proc/sched_debug", "/proc/scsi", "/sys/firmware",
			},
			ReadonlyPaths: []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"},
		},
	}
}

// limits are below those of any caller, as raising takes CAP_SYS_RESOURCE.
func limits() []specs.POSIXRlimit {
	return []specs.POSIXRlimit{
		{Type: "RLIMIT_NOFILE", Soft: 200, Hard: 300},
		{Type: "RLIMIT_CORE", Soft: 0, Hard: 0},
		{Type: "RLIMIT_NPROC", Soft: 400, Hard: 500},
		{Type: "RLIMIT_STACK", Soft: 4 << 20, Hard: 6 << 20},
		{Type: "RLIMIT_MEMLOCK", Soft: 32 << 10, Hard: 48 << 10},
		{Type: "RLIMIT_MSGQUEUE", Soft: 100_000, Hard: 200_000},
		{Type: "RLIMIT_SIGPENDING", Soft: 700, Hard: 800},
		{Type: "RLIMIT_NICE", Soft: 0, Hard: 0},
		{Type: "RLIMIT_RTPRIO", Soft: 0, Hard: 0},
		{Type: "RLIMIT_FSIZE", Soft: 900 << 20, Hard: 950 << 20},
	}
}
