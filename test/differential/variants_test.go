//go:build integration

package differential

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/moby/profiles/seccomp"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// variants are the containers that are compared.
func variants() []variant {
	all := []variant{
		{name: "standard", probes: standardProbes()},
		{name: "user", spec: asUser, probes: userProbes()},
		{name: "privileged", spec: privileged, probes: privilegedProbes()},
		{name: "seccomp", spec: filtered, probes: seccompProbes()},
		{name: "profile", spec: dockerProfile, probes: profileProbes(), virtiofs: true},
		{name: "limits", spec: limited, probes: limitProbes()},
		{name: "mounts", spec: mounted, probes: mountProbes(), after: hostFiles},
		{name: "files", spec: volume, probes: fileProbes(), virtiofs: true},
		{name: "files-9p", spec: volume, probes: fileProbes()},
		{name: "propagation", spec: propagating, probes: []probe{{"mounts", mountinfo}, {"mount", "mount -t tmpfs x /mnt && grep -c ' /mnt ' /proc/self/mountinfo"}}},
		{name: "unset", spec: unset, probes: []probe{
			{"capabilities", "grep Cap /proc/1/status"},
			{"working directory", "pwd; stat -c '%a %u:%g' . .. /made"},
			{"environment", "env | sort"},
			{"ids", "id; umask"},
			{"search path", "command -v busybox"},
			{"mounts", mountinfo + " | grep -v ' / ' | cut -d ' ' -f 2,3"},
		}},
		{name: "oom", spec: memoryLimit, args: []string{"sh", "-c", "echo start; exec tail /dev/zero"}},
		{
			name:  "streams",
			args:  []string{"sh", "-c", `echo out; echo err >&2; sha256sum; seq 1 3000000; echo last >&2; exit 7`},
			stdin: func() io.Reader { return strings.NewReader(strings.Repeat("0123456789abcde\n", 1<<20)) },
		},
		{
			name:   "terminate",
			args:   []string{"sh", "-c", `trap 'n=$((n+1)); echo "TERM $n"' TERM; trap 'echo INT' INT; echo ready; for i in 1 2 3 4 5 6 7 8; do sleep 0.2; done; exit 9`},
			during: func(t *testing.T, c *container) { c.signal(t, unix.SIGTERM) },
		},
		{
			name: "kill",
			// dash says "Killed" only if it reaps the process in that wait, which it
			// does not always: 12 of 300 times on the host alone.
			args:   []string{"sh", "-c", `sleep 100 & trap 'kill -9 $!; wait $! 2>/dev/null; exit $?' TERM; echo ready; wait`},
			during: func(t *testing.T, c *container) { c.signal(t, unix.SIGTERM) },
		},
		{
			name:     "terminal",
			spec:     func(_ *testing.T, b *bundle) { b.Spec.Process.Terminal = true },
			args:     []string{"sh", "-c", terminalScript},
			terminal: true,
			during: func(t *testing.T, c *container) {
				c.resize(t, 40, 120)
				c.signal(t, unix.SIGWINCH)
			},
		},
		{
			name: "interrupt",
			spec: func(_ *testing.T, b *bundle) { b.Spec.Process.Terminal = true },
			args: []string{"sh", "-c", `trap 'echo interrupted; exit 5' INT; echo ready; n=0; while [ $n -lt 50 ]; do sleep 0.2; n=$((n+1)); done`},
			during: func(t *testing.T, c *container) {
				if _, err := c.terminal.Write([]byte{3}); err != nil {
					t.Error(err)
				}
			},
			terminal: true,
		},
	}
	return append(all, failures()...)
}

func (c *container) signal(t *testing.T, s unix.Signal) {
	t.Helper()
	if err := c.cmd.Process.Signal(s); err != nil {
		t.Error(err)
	}
}

// mountinfo prints the mounts without what differs at each run: their numbers
// and those of their peers.
const mountinfo = `awk '{ i = 7; p = ""; while ($i != "-") { split($i, a, ":"); p = p a[1] " "; i++ }
	print $4, $5, $6, p "-", $(i+1), $(i+2), $(i+3) }' /proc/self/mountinfo`

// devices lists device nodes below a directory with owner, mode and numbers.
const devices = `cd /dev && find . -mindepth 1 | sort | while read f; do stat -c '%A %u:%g %t:%T %N' "$f"; done`

// anyPID leaves out the numbers in messages about processes.
const anyPID = ` | sed 's/pid [0-9]*/pid/'`

// terminalScript waits for a size first: runc sets that a moment after the start.
const terminalScript = `n=0; until stty size > /dev/null 2>&1 || [ $n = 50 ]; do sleep 0.1; n=$((n+1)); done
tty; stty size; stty -a | tr '\n' ' ' | sed 's/speed.*; line/line/'; echo; test -t 0 -a -t 1 -a -t 2 && echo terminal
ls -l /dev/console | sed 's/root.*,/root/;s/[A-Z][a-z][a-z] .* //' ; stat -c '%A %u:%g' /dev/console "$(tty)"
cat /proc/self/stat | awk '{ print $5, $6, $7, $8 }'; echo typed > /dev/tty
trap 'stty size; exit 3' WINCH; echo ready; n=0; while [ $n -lt 50 ]; do sleep 0.2; n=$((n+1)); done`

func standardProbes() []probe {
	return []probe{
		{"environment", "env | sort"},
		{"directory", "pwd; ls -ldn . .. | cut -c 1-40"},
		{"ids", "id; umask; grep -E '^(Uid|Gid|Groups)' /proc/self/status"},
		{"name", "hostname; cat /proc/sys/kernel/hostname /proc/sys/kernel/domainname"},
		{"capabilities", "grep Cap /proc/self/status"},
		{"process flags", "grep -E '^(NoNewPrivs|Seccomp|Sig[PBIC]|ShdPnd|State|NStgid|NSpid|Threads|CoreDumping|THP_enabled|TracerPid)' /proc/1/status"},
		{"title", "tr '\\0' '\\n' < /proc/1/cmdline | head -2; cat /proc/1/comm; for f in exe cwd root; do readlink /proc/1/$f; done"},
		{"processes", "ps -o pid,ppid,comm | head -2; awk '{ print $1, $4, $5, $6, $7 }' /proc/1/stat"},
		{"descriptors", "ls -l /proc/1/fd | awk '{ print $1, $9, $10, $11 }' | sed 's/\\[[0-9]*\\]//'"},
		{"out of memory score", "cat /proc/1/oom_score_adj"},
		{"personality", "cat /proc/1/personality; uname -m"},
		{"scheduling", "ionice -p 1; awk '{ print $18, $19, $40, $41 }' /proc/1/stat"},
		{"rlimits", "cat /proc/1/limits"},
		{"mounts", mountinfo + " | grep -v -e cgroup -e '^/ / ' -e ' / ' -e ' /proc/' -e /firmware"},
		{"mounts over /proc and /sys", mountinfo + " | grep -e ' /proc/bus' -e ' /proc/fs' -e ' /proc/sys ' -e /acpi -e keys -e timer_list -e /firmware"},
		{"mount of the root", mountinfo + " | grep -e ' / '"},
		{"mounts of cgroups", mountinfo + " | grep cgroup"},
		{"devices", devices},
		{"device nodes work", "head -c 5 /dev/zero | od -An -tx1; head -c 9 /dev/urandom | wc -c; echo x > /dev/null; echo x > /dev/full"},
		{"device rules", "mknod /dev/kmsg c 1 11 && head -c 1 /dev/kmsg; mknod /dev/disk b 8 0 && head -c 1 /dev/disk; rm -f /dev/kmsg /dev/disk"},
		{"masked paths", "for f in /proc/keys /proc/timer_list /proc/acpi /sys/firmware; do ls -a $f | wc -l; [ -d $f ] || wc -c < $f; touch $f/x; done"},
		{"read-only paths", "for f in /proc/sys/kernel/hostname /proc/irq/default_smp_affinity /sys/kernel/uevent_seqnum; do echo 1 > $f; done"},
		{"kernel files are the same", "ls /proc/sys /proc/sys/kernel | wc -l > /dev/null; ls -d /proc/1/ns/* "},
		{"shared memory", "df -k /dev/shm | awk 'NR > 1 { print $2 }'; dd if=/dev/zero of=/dev/shm/x bs=1M count=65; rm /dev/shm/x"},
		{"write to the root", "echo text > /file && cat /file && stat -c '%a %u %g %s' /file && rm /file"},
		{"cgroup is read-only", "cd /sys/fs/cgroup; [ -e pids ] && cd pids; echo $$ > cgroup.procs"},
		{"cgroup path", "cut -d: -f3 /proc/self/cgroup | sort -u"},
		{"network", "ls /sys/class/net; ip addr show lo | sed 's/^[0-9]*: //'; ip route; ping -c 1 -w 5 127.0.0.1 | grep -c '64 bytes'"},
		{"low port", "nc -l -p 80 127.0.0.1 & for i in 1 2 3 4 5 6 7 8 9; do grep -q ':0050 .* 0A ' /proc/net/tcp && echo listens && break; sleep 0.2; done; kill $!"},
		{"mount is refused", "mount -t tmpfs x /mnt; umount /proc; unshare -m true"},
		{"raw socket", "ping -c 1 -w 5 127.0.0.1 > /dev/null"},
		{"clock cannot be set", "date -s 2020-01-01 > /dev/null"},
		{"host name cannot be set", "hostname other"},
		{"exit code", "exit 7"},
		{"killed", "sh -c 'kill -9 $$'"},
		{"child of a child", "sh -c '(sleep 0.3; echo orphan) & exit 3'; r=$?; sleep 0.6; exit $r"},
		{"no zombies of init", "sh -c 'true & exec true'; ps | grep -c '[Zz]ombie'"},
		{"ipc", "ipcmk -M 1024 > /dev/null 2>&1; ls /dev/mqueue; cat /proc/sysvipc/shm | wc -l; touch /dev/mqueue/q && ls /dev/mqueue"},
		{"standard streams by name", "echo x > /proc/self/fd/1; echo y > /dev/stderr; cat < /dev/stdin"},
		{"owner of process files", "stat -c '%u:%g %a' /proc/1 /proc/1/environ; cat /proc/1/loginuid > /dev/null"},
		{"keys", "cat /proc/keys | wc -l"},
		{"long argument", "x=$(head -c 100000 /dev/zero | tr '\\0' a); sh -c 'echo ${#1}' - $x"},
		{"/proc", "ls /proc | grep -v '^[0-9]' | grep -E '^(self|thread-self|mounts|net|sys|meminfo|cpuinfo|uptime)$'"},
		{"files of /sys", "ls /sys"},
	}
}

// asUser: all that belongs to the identity of the process.
func asUser(t *testing.T, b *bundle) {
	umask := uint32(0o027)
	p := b.Spec.Process
	p.User = specs.User{UID: 1000, GID: 1000, AdditionalGids: []uint32{1001, 5, 4242}, Umask: &umask}
	p.Cwd = "/home/kata"
	p.NoNewPrivileges = true
	p.Capabilities = &specs.LinuxCapabilities{
		Bounding:    []string{"CAP_NET_BIND_SERVICE", "CAP_KILL", "CAP_CHOWN"},
		Permitted:   []string{"CAP_NET_BIND_SERVICE", "CAP_CHOWN"},
		Effective:   []string{"CAP_NET_BIND_SERVICE"},
		Inheritable: []string{"CAP_NET_BIND_SERVICE", "CAP_CHOWN"},
		Ambient:     []string{"CAP_NET_BIND_SERVICE"},
	}
	score := 300
	p.OOMScoreAdj = &score
	b.Spec.Root.Readonly = true
	b.mount(specs.Mount{Destination: "/tmp", Type: "tmpfs", Source: "tmpfs", Options: []string{"mode=1777", "size=8m", "nosuid"}})
	// A program that becomes root when privileges may grow.
	su := filepath.Join(b.Rootfs, "srv", "busybox")
	if out, err := exec.CommandContext(t.Context(), "cp", filepath.Join(b.Rootfs, "bin/busybox"), su).CombinedOutput(); err != nil {
		t.Fatalf("copy: %v: %s", err, out)
	}
	if err := unix.Chmod(su, 0o4755); err != nil {
		t.Fatal(err)
	}
}

func userProbes() []probe {
	return []probe{
		{"ids", "id; umask; grep -E '^(Uid|Gid|Groups)' /proc/1/status"},
		{"environment", "env | sort"},
		{"directory", "pwd"},
		{"capabilities", "grep Cap /proc/1/status /proc/self/status"},
		{"no new privileges", "grep NoNewPrivs /proc/1/status; /srv/busybox id; /srv/busybox awk '/Cap/' /proc/self/status"},
		{"mask of new files", "touch /tmp/f; mkdir /tmp/d; stat -c '%a %u:%g' /tmp/f /tmp/d"},
		{"read-only root", "touch /home/kata/x; touch /x; mkdir /etc/x; rm /etc/passwd; ls -d /etc/passwd"},
		{"size of the tmpfs", "df -k /tmp | awk 'NR > 1 { print $2 }'; dd if=/dev/zero of=/tmp/x bs=1M count=9; rm /tmp/x"},
		{"standard streams by name", "echo x > /proc/self/fd/1; echo y > /dev/stderr"},
		{"owner of standard streams", "stat -L -c '%u %F' /proc/1/fd/0 /proc/1/fd/1 /proc/1/fd/2"},
		{"process files", "stat -c '%u:%g %a' /proc/1 /proc/1/environ /proc/1/fd; ls /proc/1/fd"},
		{"out of memory score", "cat /proc/1/oom_score_adj; echo 400 > /proc/self/oom_score_adj; cat /proc/self/oom_score_adj"},
		{"devices cannot be made", "mknod /tmp/n c 1 3"},
		{"low port", "nc -l -p 81 127.0.0.1 & for i in 1 2 3 4 5 6 7 8 9; do grep -q ':0051 .* 0A ' /proc/net/tcp && echo listens && break; sleep 0.2; done; kill $!"},
		{"name", "cat /proc/sys/kernel/domainname"},
		{"mounts", mountinfo + " | grep -e ' / ' -e ' /tmp ' -e shm"},
	}
}

// allCapabilities are those that this process has and every kernel knows.
func allCapabilities() []string {
	return []string{
		"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_DAC_READ_SEARCH", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL", "CAP_SETGID", "CAP_SETUID",
		"CAP_SETPCAP", "CAP_LINUX_IMMUTABLE", "CAP_NET_BIND_SERVICE", "CAP_NET_BROADCAST", "CAP_NET_ADMIN", "CAP_NET_RAW",
		"CAP_IPC_LOCK", "CAP_IPC_OWNER", "CAP_SYS_PTRACE", "CAP_SYS_CHROOT", "CAP_SYS_ADMIN", "CAP_SYS_NICE", "CAP_SYS_TTY_CONFIG",
		"CAP_MKNOD", "CAP_LEASE", "CAP_AUDIT_WRITE", "CAP_AUDIT_CONTROL", "CAP_SETFCAP", "CAP_SYSLOG", "CAP_WAKE_ALARM", "CAP_AUDIT_READ",
		"CAP_PERFMON", "CAP_BPF", "CAP_CHECKPOINT_RESTORE",
	}
}

// privileged: what `docker run --privileged` gives, short of what would reach
// out of runc's container.
func privileged(_ *testing.T, b *bundle) {
	caps := allCapabilities()
	b.Spec.Process.Capabilities = &specs.LinuxCapabilities{Bounding: caps, Effective: caps, Permitted: caps, Inheritable: caps, Ambient: caps}
	b.Spec.Process.Args = append(b.Spec.Process.Args, "argument")
	b.Spec.Linux.MaskedPaths, b.Spec.Linux.ReadonlyPaths = nil, nil
	for i, m := range b.Spec.Mounts {
		if m.Destination == "/sys" {
			b.Spec.Mounts[i].Options = []string{"nosuid", "noexec", "nodev", "rw"}
		}
	}
	rw := uint32(0o640)
	mode := os.FileMode(rw)
	b.Spec.Linux.Devices = []specs.LinuxDevice{
		{Path: "/dev/extra", Type: "c", Major: 1, Minor: 3, FileMode: &mode, UID: new(uint32(12)), GID: new(uint32(34))},
		{Path: "/dev/deep/er/zero", Type: "c", Major: 1, Minor: 5},
		{Path: "/dev/pipe", Type: "p", FileMode: &mode},
	}
	b.Spec.Linux.Resources = &specs.LinuxResources{Devices: []specs.LinuxDeviceCgroup{{Allow: true, Access: "rwm"}}}
	b.Spec.Linux.Sysctl = map[string]string{
		"kernel.shmmax": "123456789", "kernel.msgmax": "9000", "kernel.sem": "100 2000 50 60", "fs.mqueue.msg_max": "12",
		"net.ipv4.ip_forward": "1", "net.ipv4.ip_unprivileged_port_start": "1000", "net.core.somaxconn": "1234",
		"kernel.domainname": "by.sysctl", "net/ipv4/conf/lo/rp_filter": "1",
	}
}

func privilegedProbes() []probe {
	return []probe{
		{"capabilities", "grep Cap /proc/1/status"},
		{"devices", devices},
		{"extra devices work", "echo x > /dev/extra; head -c 2 /dev/deep/er/zero | wc -c"},
		{"open any device", "mknod /dev/kmsg c 1 11 && : < /dev/kmsg; rm /dev/kmsg"},
		{"sysctls", "cd /proc/sys; cat kernel/shmmax kernel/msgmax kernel/sem fs/mqueue/msg_max net/ipv4/ip_forward net/ipv4/ip_unprivileged_port_start net/core/somaxconn kernel/domainname net/ipv4/conf/lo/rp_filter"},
		{"a sysctl can be set", "echo 7777 > /proc/sys/kernel/msgmax; cat /proc/sys/kernel/msgmax"},
		{"nothing is masked", mountinfo + " | grep -c ' /proc/'"},
		{"mount", "mount -t tmpfs -o size=1m x /mnt && df -k /mnt | awk 'NR > 1 { print $2 }'; mkdir /mnt/a /mnt/b; mount --bind /mnt/a /mnt/b; umount /mnt/b; umount /mnt"},
		{"unshare", "unshare -m -u -i -p -f sh -c 'hostname x; hostname; echo $$'; hostname"},
		{"host name can be set", "hostname other; hostname; hostname compared"},
		{"network devices", "ip addr add 10.9.9.9/24 dev lo; ip route add 10.8.8.0/24 dev lo; ip route; ip link set lo mtu 1400; ip link show lo | head -1 | cut -d: -f2-"},
		{"chroot", "chroot / /bin/busybox id -u"},
		{"/sys can be written to", mountinfo + " | grep '/sys '"},
	}
}

func filtered(_ *testing.T, b *bundle) {
	errno := func(n unix.Errno) *uint { return new(uint(n)) }
	b.Spec.Process.NoNewPrivileges = true
	b.Spec.Linux.Seccomp = &specs.LinuxSeccomp{
		DefaultAction: specs.ActAllow,
		Architectures: []specs.Arch{specs.ArchX86_64, specs.ArchX86, specs.ArchX32},
		Syscalls: []specs.LinuxSyscall{
			{Names: []string{"mkdir", "mkdirat", "no_such_call_exists"}, Action: specs.ActErrno, ErrnoRet: errno(unix.ENOTEMPTY)},
			{Names: []string{"symlink", "symlinkat"}, Action: specs.ActErrno},
			{Names: []string{"sethostname"}, Action: specs.ActKillProcess},
			{Names: []string{"syslog"}, Action: specs.ActKillThread},
			{Names: []string{"setdomainname"}, Action: specs.ActTrap},
			{Names: []string{"chroot"}, Action: specs.ActLog},
			{Names: []string{"kill"}, Action: specs.ActErrno, ErrnoRet: errno(unix.EXDEV), Args: []specs.LinuxSeccompArg{{Index: 1, Value: uint64(unix.SIGUSR1), Op: specs.OpEqualTo}}},
			{Names: []string{"kill"}, Action: specs.ActErrno, ErrnoRet: errno(unix.EISDIR), Args: []specs.LinuxSeccompArg{{Index: 1, Value: 40, Op: specs.OpGreaterEqual}, {Index: 1, Value: 50, Op: specs.OpLessThan}}},
			{Names: []string{"fchmodat", "chmod"}, Action: specs.ActErrno, ErrnoRet: errno(unix.EMLINK), Args: []specs.LinuxSeccompArg{{Index: 1, Value: 0o1000, ValueTwo: 0o1000, Op: specs.OpMaskedEqual}}},
			{Names: []string{"setpriority"}, Action: specs.ActErrno, ErrnoRet: errno(unix.ENFILE), Args: []specs.LinuxSeccompArg{{Index: 2, Value: 3, Op: specs.OpGreaterThan}}},
			{Names: []string{"umask"}, Action: specs.ActErrno, ErrnoRet: errno(unix.EPERM), Args: []specs.LinuxSeccompArg{{Index: 0, Value: 0o77, Op: specs.OpNotEqual}, {Index: 0, Value: 0o700, Op: specs.OpLessEqual}, {Index: 0, Value: 0o22, Op: specs.OpNotEqual}}},
		},
	}
}

func seccompProbes() []probe {
	return []probe{
		{"status", "grep -E '^(Seccomp|NoNewPrivs)' /proc/1/status"},
		{"errno", "mkdir /tmp/x; ln -s a /tmp/y"},
		{"kill the process", "hostname x"},
		{"kill the thread", "dmesg"},
		{"allowed and logged", "chroot / /bin/busybox echo in"},
		{"argument is equal", "kill -USR1 $$; kill -0 $$"},
		{"argument in a range", "{ sh -c 'kill -39 $$'; sh -c 'kill -40 $$'; sh -c 'kill -49 $$'; sh -c 'kill -50 $$'; echo $?; } 2>&1" + anyPID},
		{"argument under a mask", "touch /tmp/f; chmod 644 /tmp/f; chmod 1644 /tmp/f; chmod 3600 /tmp/f; stat -c %a /tmp/f"},
		{"all conditions of a rule", "umask 077; umask; umask 022; umask; umask 011; umask"},
	}
}

// dockerProfile is the filter of some four hundred system calls that Docker sets.
func dockerProfile(t *testing.T, b *bundle) {
	var err error
	if b.Spec.Linux.Seccomp, err = seccomp.GetDefaultProfile(b.Spec); err != nil {
		t.Fatal(err)
	}
}

func profileProbes() []probe {
	return []probe{
		{"status", "grep -E '^(Seccomp|NoNewPrivs)' /proc/1/status"},
		{"usual programs", "ls / | wc -l; date -u -d @0 +%Y; ps | wc -l > /dev/null; echo a b | awk '{ print $2 }'; sleep 0.1; id -u"},
		{"new user namespace", "unshare -U true"},
		{"mount", "mount -t tmpfs x /mnt"},
		{"host name", "hostname x"},
		{"log of the kernel", "dmesg > /dev/null"},
		{"execution domain", "linux32 uname -m; linux64 uname -m"},
		{"clock", "date -s 2020-01-01 > /dev/null"},
		{"chroot", "chroot / /bin/busybox echo in"},
		{"calls of files", "mkdir /tmp/c; probe files /tmp/c"},
	}
}

func limited(_ *testing.T, b *bundle) {
	b.Spec.Linux.Resources.Memory = &specs.LinuxMemory{Limit: new(int64(64 << 20)), Reservation: new(int64(32 << 20))}
	b.Spec.Linux.Resources.Pids = &specs.LinuxPids{Limit: new(int64(20))}
	b.Spec.Linux.Resources.CPU = &specs.LinuxCPU{Quota: new(int64(50_000)), Period: new(uint64(100_000)), Shares: new(uint64(512))}
}

// cgroupFile prints the first of the files of a cgroup that exists; version 1
// and 2 have different names for the same.
func cgroupFile(names ...string) string {
	return fmt.Sprintf("cd /sys/fs/cgroup; for f in %s; do [ -r $f ] && cat $f && break; done", strings.Join(names, " "))
}

func limitProbes() []probe {
	return []probe{
		{"memory limit", cgroupFile("memory.max", "memory/memory.limit_in_bytes")},
		{"memory reservation", cgroupFile("memory.low", "memory/memory.soft_limit_in_bytes")},
		{"pids limit", cgroupFile("pids.max", "pids/pids.max")},
		{"quota", "cd /sys/fs/cgroup; cat cpu.max || cat cpu/cpu.cfs_quota_us cpu/cpu.cfs_period_us | tr '\\n' ' ' | sed 's/ $/\\n/'"},
		{"members", cgroupFile("cgroup.procs", "pids/cgroup.procs") + " | head -1"},
		{"usage can be read", cgroupFile("memory.current", "memory/memory.usage_in_bytes") + " | grep -c '^[1-9]'"},
		{"too much memory", "(exec tail /dev/zero); echo $?"},
		{"tmpfs counts", "dd if=/dev/zero of=/dev/shm/x bs=1M count=40 2> /dev/null && (exec head -c 40000000 /dev/zero | tail -c 39999999 > /dev/null); ls -s /dev/shm/x > /dev/null; rm /dev/shm/x"},
		{"still alive", "echo yes"},
		{"rlimits hold", "ulimit -n; ulimit -n 400; i=3; while [ $i -lt 250 ]; do eval \"exec $i< /dev/null\" || break; i=$((i+1)); done; echo $i"},
		// Last: the shell gives up when it cannot fork, and leaves the children.
		{"too many processes", "n=0; for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25; do sleep 100 & n=$((n+1)); echo $n; done; kill $(jobs -p)"},
	}
}

// unset leaves out or half out what a container is not required to have.
func unset(_ *testing.T, b *bundle) {
	// Ambient but not inheritable, as `runc spec` writes them.
	caps := []string{"CAP_AUDIT_WRITE", "CAP_KILL", "CAP_NET_BIND_SERVICE"}
	b.Spec.Process.Capabilities = &specs.LinuxCapabilities{Bounding: caps, Effective: caps, Permitted: caps, Ambient: caps}
	b.Spec.Process.Cwd = "/made/by/the/runtime"
	b.Spec.Process.Env = nil
	b.Spec.Process.User = specs.User{UID: 4321, GID: 1234}
	b.Spec.Process.Args[0] = "/bin/sh"
	b.Spec.Hostname = ""
	b.Spec.Linux.MaskedPaths, b.Spec.Linux.ReadonlyPaths, b.Spec.Linux.Resources = nil, nil, nil
	b.Spec.Mounts = b.Spec.Mounts[:1]
}

func memoryLimit(_ *testing.T, b *bundle) {
	b.Spec.Linux.Resources.Memory = &specs.LinuxMemory{Limit: new(int64(40 << 20))}
}

// failures are containers that do not start.
func failures() []variant {
	failure := func(name string, spec func(t *testing.T, b *bundle), args ...string) variant {
		return variant{name: name, spec: spec, args: args}
	}
	script := func(mode os.FileMode, content string) func(t *testing.T, b *bundle) {
		return func(t *testing.T, b *bundle) {
			if err := os.WriteFile(filepath.Join(b.Rootfs, "bin", "program"), []byte(content), mode); err != nil {
				t.Fatal(err)
			}
		}
	}
	return []variant{
		failure("fails-not-found", nil, "no-such-program"),
		failure("fails-no-file", nil, "/no/such/program"),
		failure("fails-not-executable", script(0o644, "#!/bin/sh\n"), "/bin/program"),
		failure("fails-directory", nil, "/etc"),
		failure("fails-format", script(0o755, "not a program"), "program"),
		failure("fails-interpreter", script(0o755, "#!/no/interpreter\n"), "program"),
		failure("fails-mount", func(_ *testing.T, b *bundle) {
			b.mount(specs.Mount{Destination: "/mnt", Type: "bind", Source: "/no/such/source", Options: []string{"rbind"}})
		}, "true"),
		failure("fails-rootfs", func(_ *testing.T, b *bundle) { b.Spec.Root.Path = "missing" }, "true"),
		failure("fails-no-command", func(_ *testing.T, b *bundle) { b.Spec.Process.Args = nil }, "true"),
	}
}
