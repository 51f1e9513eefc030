//go:build integration

package containerd

import (
	"os"
	"path/filepath"
	"testing"

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
