//go:build integration

package containerd

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/seed-efd44b36/kata/test/harness"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// security runs a container for each kind of security context. What each has to
// print is the same with every runtime.
func security(t *testing.T, p *pod, _ string) {
	t.Helper()
	profile := filepath.Join(p.dir, "seccomp.json")
	if err := os.WriteFile(profile, []byte(`{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["mkdir","mkdirat"],"action":"SCMP_ACT_ERRNO"}]}`), 0o600); err != nil {
		t.Fatal(err)
	}
	cases := []struct {
		name   string
		change func(s *runtime.LinuxContainerSecurityContext)
		script string
		want   string
	}{
		{
			name: "user and groups",
			change: func(s *runtime.LinuxContainerSecurityContext) {
				s.RunAsUser, s.RunAsGroup, s.SupplementalGroups = &runtime.Int64Value{Value: 1000}, &runtime.Int64Value{Value: 2000}, []int64{3000}
			},
			script: "id -u; id -g; id -G | tr ' ' '\\n' | grep -x 3000; echo $HOME", want: "1000\n2000\n3000\n/home/kata",
		},
		{
			name:   "user by name",
			change: func(s *runtime.LinuxContainerSecurityContext) { s.RunAsUsername = "kata" },
			script: "id -u; id -g; id -G | tr ' ' '\\n' | grep -x 1001", want: "1000\n1000\n1001",
		},
		{
			name: "capabilities",
			change: func(s *runtime.LinuxContainerSecurityContext) {
				s.Capabilities = &runtime.Capability{DropCapabilities: []string{"ALL"}, AddCapabilities: []string{"NET_ADMIN", "CHOWN"}}
			},
			script: "grep -E 'Cap(Eff|Bnd)' /proc/self/status", want: "CapEff:\t0000000000001001\nCapBnd:\t0000000000001001",
		},
		{
			name:   "no new privileges",
			change: func(s *runtime.LinuxContainerSecurityContext) { s.NoNewPrivs = true },
			script: "grep NoNewPrivs /proc/self/status", want: "NoNewPrivs:\t1",
		},
		{
			name: "read-only root",
			change: func(s *runtime.LinuxContainerSecurityContext) {
				s.ReadonlyRootfs = true
			},
			script: "touch /x 2>&1; touch /dev/shm/x; echo $?", want: "touch: /x: Read-only file system\n0",
		},
		{
			name: "default seccomp profile",
			change: func(s *runtime.LinuxContainerSecurityContext) {
				s.Seccomp = &runtime.SecurityProfile{ProfileType: runtime.SecurityProfile_RuntimeDefault}
			},
			script: "grep Seccomp: /proc/self/status; unshare -U true 2>&1 | tail -n 1", want: "Seccomp:\t2\nunshare: unshare(0x10000000): Operation not permitted",
		},
		{
			name: "no seccomp profile",
			change: func(s *runtime.LinuxContainerSecurityContext) {
				s.Seccomp = &runtime.SecurityProfile{ProfileType: runtime.SecurityProfile_Unconfined}
			},
			script: "grep Seccomp: /proc/self/status", want: "Seccomp:\t0",
		},
		{
			name: "seccomp profile of one's own",
			change: func(s *runtime.LinuxContainerSecurityContext) {
				s.Seccomp = &runtime.SecurityProfile{ProfileType: runtime.SecurityProfile_Localhost, LocalhostRef: profile}
			},
			script: "mkdir /x 2>&1; touch /y && echo touched", want: "mkdir: can't create directory '/x': Operation not permitted\ntouched",
		},
		{
			name: "masked and read-only paths",
			change: func(s *runtime.LinuxContainerSecurityContext) {
				s.MaskedPaths, s.ReadonlyPaths = []string{"/proc/kcore", "/proc/keys", "/sys/firmware"}, []string{"/proc/sys"}
			},
			script: "head -c 1 /proc/keys | wc -c; ls /sys/firmware | wc -l; { echo x >/proc/sys/kernel/domainname; } 2>&1 | grep -o 'Read-only file system'", want: "0\n0\nRead-only file system",
		},
		{
			name:   "privileged",
			change: func(s *runtime.LinuxContainerSecurityContext) { s.Privileged = true },
			script: "mount -t tmpfs x /mnt && echo mounted; echo example >/proc/sys/kernel/domainname && cat /proc/sys/kernel/domainname", want: "mounted\nexample",
		},
	}
	for _, tc := range cases {
		t.Run(tc.name, func(t *testing.T) {
			config := containerConfig(notInIDs.ReplaceAllString(tc.name, "-"), "sh", "-c", tc.script)
			tc.change(config.Linux.SecurityContext)
			want(t, tc.script, p.output(t, config), tc.want)
		})
	}
}

// volumes are what the kubelet makes of volumes: directories and files.
func volumes(t *testing.T, p *pod, _ string) {
	t.Helper()
	dir := filepath.Join(p.dir, "volumes")
	write := func(path, text string) {
		t.Helper()
		if err := os.MkdirAll(filepath.Dir(filepath.Join(dir, path)), 0o777); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, path), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	link := func(to, path string) {
		t.Helper()
		fresh := filepath.Join(dir, path+".new")
		if err := os.Symlink(to, fresh); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(fresh, filepath.Join(dir, path)); err != nil {
			t.Fatal(err)
		}
	}
	write("rw/there", "of the host\n")
	write("ro/there", "to read\n")
	write("file", "a file\n")
	// As the kubelet writes a ConfigMap: an update changes one link.
	write("map/..1/key", "one\n")
	link("..1", "map/..data")
	link("..data/key", "map/key")

	config := containerConfig("volumes", "sleep", "10000")
	config.Mounts = []*runtime.Mount{
		{HostPath: filepath.Join(dir, "rw"), ContainerPath: "/rw"},
		{HostPath: filepath.Join(dir, "ro"), ContainerPath: "/ro", Readonly: true},
		{HostPath: filepath.Join(dir, "file"), ContainerPath: "/etc/file", Readonly: true},
		{HostPath: filepath.Join(dir, "map"), ContainerPath: "/map", Readonly: true},
		{HostPath: filepath.Join(dir, "rw"), ContainerPath: "/ro/nested/rw"},
	}
	// Where one volume is mounted into another, that one has to have the place.
	if err := os.MkdirAll(filepath.Join(dir, "ro/nested/rw"), 0o755); err != nil {
		t.Fatal(err)
	}
	id := p.start(t, config)
	want(t, "from the host", p.sh(t, id, "cat /rw/there /ro/there /etc/file /map/key"), "of the host\nto read\na file\none")
	want(t, "written", p.sh(t, id, "echo from inside >/rw/new; echo nested >/ro/nested/rw/nested; cat /rw/nested"), "nested")
	if b, err := os.ReadFile(filepath.Join(dir, "rw/new")); err != nil || string(b) != "from inside\n" {
		t.Errorf("on the host: %q, %v", b, err)
	}
	want(t, "read-only", p.sh(t, id, "{ touch /ro/x /etc/file /map/x || true; } 2>&1"), "touch: /ro/x: Read-only file system\ntouch: /etc/file: Read-only file system\ntouch: /map/x: Read-only file system")
	write("rw/later", "later\n")
	harness.Poll(t, "a new file is seen", func() bool { return p.sh(t, id, "cat /rw/later 2>/dev/null || true") == "later" })
	write("map/..2/key", "two\n")
	link("..2", "map/..data")
	harness.Poll(t, "the update is seen", func() bool { return p.sh(t, id, "cat /map/key") == "two" })
	p.stop(t, id, 0)

	missing := containerConfig("missing", "true")
	missing.Mounts = []*runtime.Mount{{HostPath: filepath.Join(dir, "nothing", "here"), ContainerPath: "/x"}}
	if out := p.output(t, missing); out != "" { // the CRI makes a directory of it
		t.Errorf("got %q", out)
	}
}
