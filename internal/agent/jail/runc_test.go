package jail

import (
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/moby/profiles/seccomp"
	"github.com/opencontainers/runtime-spec/specs-go"
)

// runRunc runs the same container with runc.
func runRunc(t *testing.T, s *specs.Spec) result {
	t.Helper()
	bundle := t.TempDir()
	data, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(bundle, "config.json"), data, 0o600); err != nil {
		t.Fatal(err)
	}
	id := "kata-jail-" + itoa(os.Getpid()) + "-" + strings.ToLower(filepath.Base(filepath.Dir(bundle)))
	out, code := run(t, "runc", "--root", filepath.Join(bundle, "state"), "run", "--bundle", bundle, id)
	return result{out, code}
}

// report tells all that a container is.
const report = `
echo "== id"; id -u; id -g; id -G; pwd; umask; hostname; echo $$
echo "== status"; grep -E '^(Cap|NoNewPrivs|Seccomp:|Groups|SigIgn|SigBlk|SigCgt|Cpus_allowed_list)' /proc/self/status
echo "== limits"; cat /proc/self/limits
echo "== env"; env | sort
echo "== oom"; cat /proc/self/oom_score_adj
echo "== mounts"; cat /proc/self/mountinfo
echo "== dev"; ls -ln /dev /dev/pts /dev/shm /dev/mqueue
echo "== fds"; for fd in /proc/self/fd/*; do test -e $fd && echo $fd; done
echo "== root"; ls -lnA /
echo "== masked"; cat /proc/keys | wc -c; test -e /proc/kcore && cat /proc/kcore | wc -c; ls -A /proc/acpi /sys/firmware
echo "== readonly"; echo x 2>&1 >/proc/sysrq-trigger; echo 1 2>&1 >/proc/sys/kernel/printk
echo "== sysctl"; cat /proc/sys/kernel/msgmax /proc/sys/kernel/shmmax
echo "== session"; ps -o pid,ppid,pgid,sid | head -2
`

var (
	// mountIDs are the numbers in mountinfo that differ from one namespace to the
	// next, and the device numbers of file systems without a device.
	mountIDs = regexp.MustCompile(`(?m)^\d+ \d+ \d+:\d+ `)
	// options is where mountinfo has options, in an order that has no meaning.
	options   = regexp.MustCompile(`[^ ]+$`)
	peers     = regexp.MustCompile(`(master|shared):\d+ `)
	times     = regexp.MustCompile(`[A-Z][a-z]{2} +\d+ +\d+:\d+ `)
	procLinks = regexp.MustCompile(`(?m)^(dr-xr-xr-x) +\d+ .*TIME proc$`)
)

// normal takes out what may differ, each with its reason.
func normal(out, rootfs string) []string {
	out = mountIDs.ReplaceAllString(out, "")
	out = strings.ReplaceAll(out, rootfs, "ROOTFS")
	// The same as seen from the root of a file system at /tmp.
	out = strings.ReplaceAll(out, strings.TrimPrefix(rootfs, os.TempDir()), "ROOTFS")
	// Peer groups are numbered as they come.
	out = peers.ReplaceAllString(out, "$1 ")
	// Times of what was just made.
	out = times.ReplaceAllString(out, "TIME ")
	// The root of procfs has as many links as there are processes.
	out = procLinks.ReplaceAllString(out, "$1 proc")
	var lines, mounts []string
	inMounts := false
	for line := range strings.Lines(out) {
		line = strings.TrimSuffix(line, "\n")
		if strings.HasPrefix(line, "==") {
			inMounts = line == "== mounts"
			lines = append(append(lines, mounts...), line)
			mounts = nil
			continue
		}
		if inMounts {
			line = options.ReplaceAllStringFunc(line, func(o string) string {
				list := strings.Split(o, ",")
				slices.Sort(list)
				return strings.Join(list, ",")
			})
			// What hides a file or directory is named otherwise.
			for _, name := range []string{"acpi", "kcore", "keys", "timer_list", "scsi", "sched_debug"} {
				if strings.Contains(line, " /proc/"+name+" ") {
					line = "masked " + name
				}
			}
			if strings.Contains(line, " /sys/firmware ") {
				line = "masked firmware"
			}
			mounts = append(mounts, line)
			slices.Sort(mounts) // we make some in another order
			continue
		}
		lines = append(lines, line)
	}
	return append(lines, mounts...)
}

// TestSameAsRunc runs the same bundles with runc.
func TestSameAsRunc(t *testing.T) {
	needRoot(t)
	if _, code := run(t, "runc", "--version"); code != 0 {
		t.Skip("needs a working runc")
	}
	docker, err := seccomp.GetDefaultProfile(&specs.Spec{Process: &specs.Process{Capabilities: &specs.LinuxCapabilities{}}})
	if err != nil {
		t.Fatal(err)
	}
	volume := t.TempDir()
	if err := os.WriteFile(filepath.Join(volume, "file"), []byte("data\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	umask, score := uint32(0o027), 500
	mode := os.FileMode(0o640)
	gid := uint32(6)
	errno := uint(38)
	tests := []struct {
		name   string
		script string
		edit   func(*specs.Spec)
	}{
		{"default", "", nil},
		{"user", "", func(s *specs.Spec) {
			s.Process.User = specs.User{UID: 1000, GID: 100, AdditionalGids: []uint32{10, 20}, Umask: &umask}
			s.Process.Cwd = "/home/user"
		}},
		{"user with ambient capabilities", "", func(s *specs.Spec) {
			s.Process.User = specs.User{UID: 1000, GID: 100}
			caps := []string{"CAP_NET_RAW", "CAP_CHOWN"}
			s.Process.Capabilities = &specs.LinuxCapabilities{Bounding: caps, Effective: caps, Permitted: caps, Inheritable: caps, Ambient: caps[:1]}
		}},
		{"user without a name", "", func(s *specs.Spec) { s.Process.User = specs.User{UID: 4242, GID: 4242} }},
		{"no capabilities", "", func(s *specs.Spec) { s.Process.Capabilities = nil }},
		{"read-only root", "touch /x; touch /tmp/x;" + report, func(s *specs.Spec) { s.Root.Readonly = true }},
		{"no new privileges", "", func(s *specs.Spec) { s.Process.NoNewPrivileges = true }},
		{"filter", "mkdir /tmp/d; mount -t tmpfs none /tmp/d;" + report, func(s *specs.Spec) { s.Linux.Seccomp = docker }},
		{"filter and no new privileges", "unshare -U true;" + report, func(s *specs.Spec) {
			s.Linux.Seccomp = docker
			s.Process.NoNewPrivileges = true
		}},
		{"filter of one call", "mkdir /tmp/e; rmdir /tmp/e; echo $?;" + report, func(s *specs.Spec) {
			s.Linux.Seccomp = &specs.LinuxSeccomp{
				DefaultAction: specs.ActAllow, Architectures: []specs.Arch{specs.ArchX86_64, specs.ArchX86},
				Syscalls: []specs.LinuxSyscall{{Names: []string{"rmdir", "kexec_load"}, Action: specs.ActErrno, ErrnoRet: &errno}},
			}
		}},
		{"limits", "", func(s *specs.Spec) {
			s.Process.Rlimits = []specs.POSIXRlimit{
				{Type: "RLIMIT_NOFILE", Hard: 512, Soft: 256}, {Type: "RLIMIT_CORE"}, {Type: "RLIMIT_NPROC", Hard: 900, Soft: 800},
			}
			s.Process.OOMScoreAdj = &score
		}},
		{"volumes", "cat /data/file /rw/file /tmp/f; touch /data/x; touch /rw/x && rm /rw/x; ls -ln /data;" + report, func(s *specs.Spec) {
			s.Mounts = append(s.Mounts,
				specs.Mount{Destination: "/data", Type: "bind", Source: volume, Options: []string{"rbind", "rprivate", "ro", "nosuid", "nodev", "noexec"}},
				specs.Mount{Destination: "/rw", Type: "bind", Source: volume, Options: []string{"rbind", "rprivate"}},
				// Where the report does not look: runc makes it executable.
				specs.Mount{Destination: "/tmp/f", Type: "bind", Source: filepath.Join(volume, "file"), Options: []string{"bind", "ro"}},
			)
		}},
		{"tmpfs", "cat /etc/passwd; stat -c %a /run;" + report, func(s *specs.Spec) {
			s.Mounts = append(s.Mounts,
				specs.Mount{Destination: "/run", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "noexec", "size=1m", "mode=1755"}},
				specs.Mount{Destination: "/etc", Type: "tmpfs", Source: "tmpfs", Options: []string{"ro", "tmpcopyup"}},
				specs.Mount{Destination: "/a/b/c", Type: "tmpfs", Source: "tmpfs", Options: []string{"noatime"}},
			)
		}},
		{"devices", "", func(s *specs.Spec) {
			s.Linux.Devices = []specs.LinuxDevice{
				{Path: "/dev/my/kmsg", Type: "c", Major: 1, Minor: 11, FileMode: &mode, GID: &gid},
				{Path: "/dev/pipe", Type: "p"},
			}
			s.Process.Capabilities = nil
		}},
		{"sysctl", "", func(s *specs.Spec) {
			s.Linux.Sysctl = map[string]string{"kernel.msgmax": "9000", "kernel.shmmax": "1234567"}
		}},
		{"propagation", "", func(s *specs.Spec) {
			s.Linux.RootfsPropagation = "rprivate"
			s.Mounts = append(s.Mounts, specs.Mount{Destination: "/v", Type: "bind", Source: volume, Options: []string{"rbind", "rshared"}})
		}},
		{"exit code", "exit 7", nil},
		{"signal", "kill -9 $$; true", nil},
		{"stdin is empty", "cat; echo $?", nil},
		{"masked directory of the image", "ls -A /etc; cat /bin/busybox | wc -c", func(s *specs.Spec) {
			s.Linux.MaskedPaths = []string{"/etc", "/bin/nothing", "/home/user"}
		}},
	}
	forRunc, forJail := newRootfs(t), newRootfs(t)
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			script := tt.script
			if script == "" {
				script = report
			}
			// Both outputs in one: runc passes each on by itself.
			script = "exec 2>&1; " + script
			run := func(rootfs string, how func(*specs.Spec) result) (result, []string) {
				s := sh(rootfs, script)
				if tt.edit != nil {
					tt.edit(s)
				}
				r := how(s)
				return r, normal(r.out, rootfs)
			}
			want, wantLines := run(forRunc, func(s *specs.Spec) result { return runRunc(t, s) })
			got, gotLines := run(forJail, func(s *specs.Spec) result { return runJail(t, jailer(t), s) })
			if got.code != want.code {
				t.Errorf("got exit code %d, runc gives %d", got.code, want.code)
			}
			if d := cmp.Diff(wantLines, gotLines); d != "" {
				t.Errorf("differs from runc (-runc +jail):\n%s", d)
			}
		})
	}
}
