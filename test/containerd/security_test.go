//go:build integration

package containerd

import (
	"errors"
	"fmt"
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
	if err := os.WriteFile(profile, []byte(`{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["mkdir","mkdirat","sethostname"],"action":"SCMP_ACT_ERRNO"}]}`), 0o600); err != nil {
		t.Fatal(err)
	}
	type row struct {
		name   string
		change func(s *runtime.LinuxContainerSecurityContext)
		script string
		want   string
	}
	cases := []row{
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
				s.Capabilities = &runtime.Capability{AddCapabilities: []string{"SYS_ADMIN"}}
			},
			script: "mkdir /x 2>&1; hostname x 2>&1; touch /y && echo touched",
			want:   "mkdir: can't create directory '/x': Operation not permitted\nhostname: sethostname: Operation not permitted\ntouched",
		},
		{
			name: "further capabilities, without a seccomp profile",
			change: func(s *runtime.LinuxContainerSecurityContext) {
				s.Capabilities = &runtime.Capability{AddCapabilities: []string{"SYS_ADMIN", "NET_ADMIN"}}
				s.Seccomp = &runtime.SecurityProfile{ProfileType: runtime.SecurityProfile_Unconfined}
			},
			script: "hostname another && hostname && hostname host-of-pod; brctl addbr kata-test && brctl delbr kata-test && echo bridged", want: "another\nbridged",
		},
		{
			name:   "the capabilities that all have",
			change: func(*runtime.LinuxContainerSecurityContext) {},
			script: "grep -E 'Cap(Eff|Bnd|Inh|Amb)' /proc/self/status; brctl addbr kata-test 2>/dev/null || echo no bridge; hostname x 2>&1 || true",
			want:   "CapInh:\t0000000000000000\nCapEff:\t00000000a80425fb\nCapBnd:\t00000000a80425fb\nCapAmb:\t0000000000000000\nno bridge\nhostname: sethostname: Operation not permitted",
		},
		{
			name: "no AppArmor profile",
			change: func(s *runtime.LinuxContainerSecurityContext) {
				s.Apparmor = &runtime.SecurityProfile{ProfileType: runtime.SecurityProfile_Unconfined}
			},
			script: "echo started", want: "started",
		},
		{
			name: "masked and read-only paths",
			change: func(s *runtime.LinuxContainerSecurityContext) {
				s.MaskedPaths, s.ReadonlyPaths = []string{"/proc/kcore", "/proc/keys", "/sys/firmware", "/bin/ls"}, []string{"/proc/sys", "/tmp"}
			},
			script: "head -c 1 /proc/keys | wc -c; find /sys/firmware | wc -l; ls 2>&1; touch /tmp/x 2>&1; { echo x >/proc/sys/kernel/domainname; } 2>&1 | grep -o 'Read-only file system'", want: "0\n1\nsh: ls: Permission denied\ntouch: /tmp/x: Read-only file system\nRead-only file system",
		},
		{
			name:   "privileged",
			change: func(s *runtime.LinuxContainerSecurityContext) { s.Privileged = true },
			script: "mount -t tmpfs x /mnt && echo mounted; echo example >/proc/sys/kernel/domainname && cat /proc/sys/kernel/domainname", want: "mounted\nexample",
		},
	}
	if p.daemon.Release.ConfigVersion > 2 {
		cases = append(cases, row{
			name: "groups of the pod alone",
			change: func(s *runtime.LinuxContainerSecurityContext) {
				s.RunAsUsername, s.SupplementalGroups = "kata", []int64{3000}
				s.SupplementalGroupsPolicy = runtime.SupplementalGroupsPolicy_Strict
			},
			script: "id -G", want: "1000 3000",
		})
	}
	for _, tc := range cases {
		t.Run(tc.name, func(t *testing.T) {
			config := containerConfig(notInIDs.ReplaceAllString(tc.name, "-"), "sh", "-c", tc.script)
			tc.change(config.Linux.SecurityContext)
			want(t, tc.script, p.output(t, config), tc.want)
		})
	}
	t.Run("a group without a user", func(t *testing.T) {
		config := containerConfig("group", "true")
		config.Linux.SecurityContext.RunAsGroup = &runtime.Int64Value{Value: 1002}
		if _, err := p.try(config); err == nil {
			t.Error("it is not refused")
		}
	})
	privileges(t, p)
}

// privileges runs a set-uid program of a volume.
func privileges(t *testing.T, p *pod) {
	t.Helper()
	d := newHostDir(t, p, "privileges")
	b, err := os.ReadFile(filepath.Join(probeDir(), "probe"))
	if err == nil {
		err = errors.Join(os.WriteFile(d.in("probe"), b, 0o755), os.Chmod(d.in("probe"), os.ModeSetuid|0o755))
	}
	if err != nil {
		t.Fatal(err)
	}
	for noNew, uid := range map[bool]string{true: "1000", false: "0"} {
		config := containerConfig(fmt.Sprintf("no-new-privileges-%v", noNew), "/set-uid/probe", "uid")
		config.Linux.SecurityContext.NoNewPrivs, config.Linux.SecurityContext.RunAsUser = noNew, &runtime.Int64Value{Value: 1000}
		config.Mounts = []*runtime.Mount{{HostPath: d.path, ContainerPath: "/set-uid"}}
		want(t, fmt.Sprintf("effective user, no new privileges %v", noNew), p.output(t, config), uid)
	}
}
