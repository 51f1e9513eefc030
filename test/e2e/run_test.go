//go:build integration

package e2e

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/seed-efd44b36/kata/test/harness"
	"golang.org/x/sys/unix"
)

// TestOwnKernel: the container has a kernel, memory, up-time and log of its own.
func TestOwnKernel(t *testing.T) {
	t.Parallel()
	out := sh(t, `uname -r; hostname; awk '/MemTotal/{print $2}' /proc/meminfo; cut -d. -f1 /proc/uptime; dmesg | grep -c 'Linux version'`,
		"--hostname", "own", "--cap-add", "SYSLOG")
	lines := strings.Split(out, "\n")
	if len(lines) != 5 {
		t.Fatalf("got %q", out)
	}
	var uts unix.Utsname
	if err := unix.Uname(&uts); err != nil {
		t.Fatal(err)
	}
	if host := unix.ByteSliceToString(uts.Release[:]); lines[0] == host {
		t.Errorf("kernel %q is the host's", lines[0])
	}
	if lines[1] != "own" {
		t.Errorf("host name %q, want own", lines[1])
	}
	var kib int
	if _, err := fmt.Sscan(lines[2], &kib); err != nil || kib < 300<<10 || kib > 512<<10 {
		t.Errorf("memory %q KiB, want a bit less than the machine's 512 MiB", lines[2])
	}
	var up int
	if _, err := fmt.Sscan(lines[3], &up); err != nil || up > 170 {
		t.Errorf("up-time %q s, want that of a machine just started", lines[3])
	}
	if lines[4] != "1" {
		t.Errorf("%q lines of the kernel's log tell its version, want 1", lines[4])
	}
}

func TestExitCodes(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name    string
		command []string
		code    int
		stderr  string
	}{
		{"success", []string{"true"}, 0, ""},
		{"its own", []string{"sh", "-c", "exit 7"}, 7, ""},
		{"a signal", []string{"sh", "-c", "kill -9 $$; sleep 9"}, 137, ""},
		{"missing command", []string{"no-such-command"}, 127, "no-such-command"},
		{"missing path", []string{"/no/such/path"}, 127, "/no/such/path"},
		{"not executable", []string{"/etc/passwd"}, 126, "/etc/passwd"},
		{"a directory", []string{"/etc"}, 126, "/etc"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			// A signal needs a parent that is not PID 1, which ignores what
			// it has no handler for.
			args := append([]string{"run", "--rm", "--network", "none", busybox}, tt.command...)
			if tt.name == "a signal" {
				args = []string{"run", "--rm", "--network", "none", busybox, "sh", "-c", "sh -c 'kill -9 $$'; exit $?"}
			}
			r := env.Kata(t, args...)
			if r.Code != tt.code || !strings.Contains(r.Stderr, tt.stderr) {
				t.Errorf("exit code %d, stderr %q; want %d and %q", r.Code, r.Stderr, tt.code, tt.stderr)
			}
			if tt.stderr != "" && strings.Count(strings.TrimSpace(r.Stderr), "\n") != 0 {
				t.Errorf("more than one line of error:\n%s", r.Stderr)
			}
		})
	}
}

func TestStdio(t *testing.T) {
	t.Parallel()
	in := strings.Repeat("a line of input\n", 100_000)
	r := env.KataInput(t, strings.NewReader(in), "run", "--rm", "-i", "--network", "none", busybox,
		"sh", "-c", "tee /dev/stderr | sha256sum; echo end")
	sum := sha256.Sum256([]byte(in))
	if want := hex.EncodeToString(sum[:]) + "  -\nend\n"; r.Stdout != want {
		t.Errorf("stdout %q, want %q", r.Stdout, want)
	}
	if r.Stderr != in {
		t.Errorf("stderr has %d bytes, want the %d of the input", len(r.Stderr), len(in))
	}
}

// TestLargeOutput: 1 GiB arrives whole and in order. It is numbered blocks, as
// to make as much of anything else would take minutes under emulation.
func TestLargeOutput(t *testing.T) {
	t.Parallel()
	const blocks, size = 64, 1 << 24
	cmd := env.Command(t.Context(), "kata", "run", "--rm", "--network", "none", busybox, "sh", "-ec",
		"yes 0123456789abcdef | head -c 16777216 > /dev/shm/block; for i in $(seq 64); do echo block $i; cat /dev/shm/block; done")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	got, want := sha256.New(), sha256.New()
	n, err := io.Copy(got, out)
	if err != nil || n < blocks*size {
		t.Errorf("%d bytes, %v; want %d and a bit", n, err, blocks*size)
	}
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
	line := []byte("0123456789abcdef\n")
	block := bytes.Repeat(line, size/len(line)+1)[:size]
	for i := range blocks {
		fmt.Fprintf(want, "block %d\n", i+1)
		want.Write(block)
	}
	if !bytes.Equal(got.Sum(nil), want.Sum(nil)) {
		t.Error("the checksum of the output is wrong")
	}
}

// TestClosedPipe: a reader that goes away ends the writer, as without a VM. As the
// first process of its namespace it is told by an error, not by a signal.
func TestClosedPipe(t *testing.T) {
	t.Parallel()
	c := exec.CommandContext(t.Context(), "sh", "-c", `"$0" run --rm --network none "$1" yes 2>/dev/null | head -n 3`, filepath.Join(env.Bin, "kata"), busybox)
	c.Env = append(os.Environ(), "KATA_CONF_FILE="+env.Config)
	out, err := c.CombinedOutput()
	if err != nil || string(out) != "y\ny\ny\n" {
		t.Errorf("got %q, %v", out, err)
	}
}

func TestProcessAttributes(t *testing.T) {
	t.Parallel()
	envFile := filepath.Join(t.TempDir(), "env")
	if err := os.WriteFile(envFile, []byte("# comment\nFROM_FILE=yes\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	out := sh(t, `
echo "$A $FROM_FILE"
id -u; id -g; id -G
pwd
umask
ulimit -n
cat /proc/sys/net/ipv4/ip_default_ttl
grep NoNewPrivs /proc/self/status
grep '^Seccomp:' /proc/self/status
grep CapEff /proc/self/status
df -k /dev/shm | tail -1 | awk '{print $2}'
cat /sys/fs/cgroup/pids.max
cat /sys/fs/cgroup/memory.max
cat /sys/fs/cgroup/cpu.max
`,
		"-e", "A=1 2", "--env-file", envFile, "-u", "1000:1000", "-w", "/tmp", "--ulimit", "nofile=123:456",
		"--sysctl", "net.ipv4.ip_default_ttl=77", "--security-opt", "no-new-privileges", "--shm-size", "32m",
		"--pids-limit", "50", "-m", "256m", "--cpus", "0.5")
	want(t, out, "1 2 yes", "1000", "1000", "1000", "/tmp", "0022", "123", "77", "NoNewPrivs:\t1", "Seccomp:\t2",
		"CapEff:\t0000000000000000", "32768", "50", "268435456", "50000 100000")
}

func TestCapabilities(t *testing.T) {
	t.Parallel()
	out := sh(t, `grep Cap /proc/self/status | cut -f2`, "--cap-drop", "ALL", "--cap-add", "NET_ADMIN", "--cap-add", "CHOWN")
	mask := "0000000000001001" // CHOWN is bit 0, NET_ADMIN 12
	want(t, out, "0000000000000000", mask, mask, mask, "0000000000000000")
}

func TestSeccomp(t *testing.T) {
	t.Parallel()
	profile := filepath.Join(t.TempDir(), "profile.json")
	if err := os.WriteFile(profile, []byte(`{"defaultAction":"SCMP_ACT_ALLOW","architectures":["SCMP_ARCH_X86_64"],
		"syscalls":[{"names":["mkdir","mkdirat"],"action":"SCMP_ACT_ERRNO","errnoRet":38}]}`), 0o600); err != nil {
		t.Fatal(err)
	}
	out := sh(t, `grep '^Seccomp:' /proc/self/status; mkdir /tmp/x 2>&1 || true`, "--security-opt", "seccomp="+profile)
	want(t, out, "Seccomp:\t2", "mkdir: can't create directory '/tmp/x': Function not implemented")
	out = sh(t, `grep '^Seccomp:' /proc/self/status`, "--security-opt", "seccomp=unconfined")
	want(t, out, "Seccomp:\t0")
}

func TestFileSystems(t *testing.T) {
	t.Parallel()
	host := t.TempDir()
	if err := os.WriteFile(filepath.Join(host, "file"), []byte("host\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	out := sh(t, `
cat /ro/file
(echo guest > /ro/file) 2>&1 | sed 's/.*: //'
(touch /new) 2>&1 | sed 's/.*: //'
echo guest > /rw/out; echo $?
echo x > /t/x; df -k /t | tail -1 | awk '{print $2}'
cat /single
wc -c < /proc/kcore 2>/dev/null || echo masked
(echo 1 > /proc/sys/kernel/panic) 2>&1 | sed 's/.*: //'
ls /dev | grep -vx core | tr '\n' ' ' # core is there where the kernel has kcore
`,
		"--read-only", "-v", host+":/ro:ro", "-v", host+":/rw", "-v", filepath.Join(host, "file")+":/single:ro", "--tmpfs", "/t:size=8m")
	want(t, out, "host", "Read-only file system", "Read-only file system", "0", "8192", "host", "0", "Read-only file system",
		"fd full mqueue null ptmx pts random shm stderr stdin stdout tty urandom zero ")
	if b, err := os.ReadFile(filepath.Join(host, "file")); err != nil || string(b) != "host\n" {
		t.Errorf("the host's file has %q, %v", b, err)
	}
	if b, err := os.ReadFile(filepath.Join(host, "out")); err != nil || string(b) != "guest\n" {
		t.Errorf("the guest's file has %q, %v", b, err)
	}
}

// TestOOM: a memory limit is enforced and told by name.
func TestOOM(t *testing.T) {
	t.Parallel()
	r := env.Kata(t, "run", "--rm", "--network", "none", "-m", "64m", busybox, "sh", "-c",
		"dd if=/dev/zero of=/dev/shm/a bs=1M count=40 2>/dev/null; exec tail /dev/zero")
	if r.Code != 137 || !strings.Contains(r.Stderr, "OOM") {
		t.Errorf("exit code %d, stderr %q; want 137 and OOM by name", r.Code, r.Stderr)
	}
}

// TestSignals: SIGTERM and SIGINT arrive once.
func TestSignals(t *testing.T) {
	t.Parallel()
	for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGINT} {
		t.Run(sig.String(), func(t *testing.T) {
			t.Parallel()
			cmd := env.Command(t.Context(), "kata", "run", "--rm", "--network", "none", busybox, "sh", "-c",
				`n=0; trap 'n=$((n+1)); echo got $n' TERM INT; echo ready; i=0; while [ $i -lt 30 ]; do sleep 0.1; i=$((i+1)); done; exit $((40+n))`)
			var out harness.Buffer
			cmd.Stdout, cmd.Stderr = &out, os.Stderr
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			harness.Poll(t, "the container is ready", func() bool { return strings.Contains(out.String(), "ready") })
			if err := cmd.Process.Signal(sig); err != nil {
				t.Fatal(err)
			}
			_ = cmd.Wait()
			if code := cmd.ProcessState.ExitCode(); code != 41 || out.String() != "ready\ngot 1\n" {
				t.Errorf("exit code %d, output %q; want 41 and the signal once", code, out.String())
			}
		})
	}
}

// nobody makes a program run as an ordinary user.
func nobody() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
}
