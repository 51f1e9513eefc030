//go:build integration

package engines

import (
	"context"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/seed-efd44b36/kata/test/harness"
)

// subject is an engine with a runtime.
type subject struct {
	*Engine
	// own tells that containers run on the host's kernel.
	own, podman bool
	// cli tells that the runtime is kata-runtime. Engines read the cgroup of its
	// process on the host then: the virtual machine's.
	cli bool
	// fixed tells that a machine has no device for a network that comes later than
	// it: the runtime is given a namespace that is filled already.
	fixed bool
}

// table is what has to hold with each engine and runtime.
var table = []struct {
	name string
	test func(t *testing.T, s subject)
}{
	{"foreground", testForeground},
	{"terminal", testTerminal},
	{"detached", testDetached},
	{"network", testNetwork},
	{"outside", testOutside},
	{"oom", testOOM},
	{"restart", testRestart},
	{"build", testBuild},
}

// check runs the table.
func (s subject) check(t *testing.T) {
	t.Helper()
	for _, row := range table {
		t.Run(row.name, func(t *testing.T) {
			row.test(t, s)
		})
	}
	if left := s.Must(t, "ps", "-aq"); left != "" {
		t.Errorf("containers are left: %s", left)
	}
}

func TestDocker(t *testing.T) {
	checkDocker(t, Release{}, map[string]DockerOptions{
		"runc": {},
		"kata": {Runtime: "kata"},
		"shim": {Shim: filepath.Join(env.Bin, "containerd-shim-kata-v2")},
	})
}

// TestRecentDocker is TestDocker with a release that finds a shim by its name, and
// gives a container its network when the task is there.
func TestRecentDocker(t *testing.T) {
	if errRecent != nil {
		t.Fatal(errRecent)
	}
	checkDocker(t, recent, map[string]DockerOptions{
		"runc": {},
		"kata": {Runtime: "kata"},
		"shim": {Runtime: "io.containerd.kata.v2"},
	})
}

// checkDocker runs the table with each runtime.
func checkDocker(t *testing.T, r Release, runtimes map[string]DockerOptions) {
	t.Helper()
	for _, name := range []string{"runc", "kata", "shim"} {
		t.Run(name, func(t *testing.T) {
			o := runtimes[name]
			o.Name, o.Release = "docker-"+name, r
			subject{Engine: docker(t, o), own: name == "runc", cli: name == "kata", fixed: name == "kata" && r.Debian()}.check(t)
		})
	}
}

func TestPodman(t *testing.T) {
	for _, name := range []string{"runc", "kata"} {
		t.Run(name, func(t *testing.T) {
			runtime := "/usr/sbin/runc"
			if name == "kata" {
				runtime = filepath.Join(env.Bin, "kata-runtime")
			}
			e, err := NewPodman(env, "podman-"+name, runtime)
			if err != nil {
				t.Fatal(err)
			}
			if err := e.Load(t.Context(), "busybox"); err != nil {
				t.Fatal(err)
			}
			s := subject{Engine: e, podman: true, own: name == "runc", cli: name == "kata", fixed: true}
			s.check(t)
			t.Run("pod", func(t *testing.T) { testPod(t, s) })
		})
	}
}

// kernel fails the test if a container has had another kernel than it should.
func (s subject) kernel(t *testing.T, got string) {
	t.Helper()
	b, err := os.ReadFile("/proc/sys/kernel/osrelease")
	if err != nil {
		t.Fatal(err)
	}
	if own := strings.TrimSpace(string(b)); (own == got) != s.own {
		t.Errorf("the container's kernel is %s, the host's is %s", got, own)
	}
}

// remove removes a container with the test, whatever has become of it.
func (s subject) remove(t *testing.T, name string) {
	t.Helper()
	t.Cleanup(func() {
		if r, err := s.Run(context.WithoutCancel(t.Context()), nil, "rm", "-f", "-v", name); err != nil || r.Code != 0 {
			t.Errorf("rm -f %s: %v: %s", name, err, r.Stderr)
		}
	})
}

// inspect returns what a template makes of a container.
func (s subject) inspect(t *testing.T, name, template string) string {
	t.Helper()
	return s.Must(t, "inspect", "--format", template, name)
}

// testForeground runs one container with most of what `run` can be told.
func testForeground(t *testing.T, s subject) {
	data, given := t.TempDir(), t.TempDir()
	if err := os.Chmod(data, 0o777); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(given, "file"), []byte("given\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	script := strings.Join([]string{
		`uname -r`,
		`cat`,
		`echo "$X"`,
		`hostname`,
		`pwd`,
		`id -u; id -g`,
		`ulimit -Sn; ulimit -Hn`,
		`cat /given/file`,
		`echo made >/data/file`,
		`touch /given/new 2>/dev/null || echo refused`,
		`touch /new 2>/dev/null || echo refused`,
		`touch /scratch/new && grep -c "^tmpfs /scratch tmpfs .*size=1024k" /proc/mounts`,
		`(sleep 0 & exec true); cat /proc/1/comm`,
		`echo oops >&2`,
		`exit 7`,
	}, "\n")
	r := s.DoInput(t, strings.NewReader("typed\n"), "run", "-i", "--rm", "--init", "--read-only", "--tmpfs", "/scratch:size=1m,mode=1777",
		"-v", data+":/data", "-v", given+":/given:ro", "--user", "1000:1001", "--ulimit", "nofile=123:456", "--ulimit", "nproc=1000:1000",
		"-e", "X=a b", "-w", "/tmp", "--hostname", "box", "busybox", "sh", "-c", script)
	lines := strings.Split(strings.TrimSuffix(r.Stdout, "\n"), "\n")
	s.kernel(t, lines[0])
	want := []string{"typed", "a b", "box", "/tmp", "1000", "1001", "123", "456", "given", "refused", "refused", "1"}
	if got := lines[1:]; len(got) != len(want)+1 || strings.Join(got[:len(want)], "\n") != strings.Join(want, "\n") {
		t.Errorf("output %q, want %q and the name of an init", got, want)
	} else if init := got[len(want)]; init == "sh" || init == "cat" {
		t.Errorf("process 1 is %s, not an init", init)
	}
	if r.Code != 7 || r.Stderr != "oops\n" {
		t.Errorf("exit code %d, standard error %q; want 7, oops", r.Code, r.Stderr)
	}
	if b, err := os.ReadFile(filepath.Join(data, "file")); err != nil || string(b) != "made\n" {
		t.Errorf("the volume's file has %q, %v", b, err)
	}
	// The codes of what cannot be started.
	for command, want := range map[string]int{"/nowhere": 127, "/etc": 126} {
		if r := s.Do(t, "run", "--rm", "busybox", command); r.Code != want {
			t.Errorf("run %s: exit code %d, want %d: %s", command, r.Code, want, r.Stderr)
		}
	}
}

func testTerminal(t *testing.T, s subject) {
	tt := harness.AtTerminal(t, s.Command(t.Context(), "run", "-it", "--rm", "busybox", "sh"), 91, 33)
	// Engines tell the size after the start.
	tt.Press("tty; until stty size | grep '33 91'; do sleep 0.1; done\n")
	tt.See("/dev/pts/0")
	tt.See("\n33 91")
	tt.Resize(77, 22)
	tt.Press("until stty size | grep '22 77'; do sleep 0.1; done\n")
	tt.See("\n22 77")
	tt.Press("exit 9\n")
	if code := tt.Exit(); code != 9 {
		t.Errorf("exit code %d, want 9", code)
	}
}

// testDetached does to one container what is done to those that run.
func testDetached(t *testing.T, s subject) {
	const name = "detached"
	s.remove(t, name)
	run := []string{"run", "-d", "--name", name, "--memory", "64m"}
	if !s.podman {
		run = append(run, "--health-cmd", "test -e /healthy", "--health-interval", "1s")
	}
	s.Must(t, append(run, "busybox", "sh", "-c", `echo out; echo err >&2; trap 'exit 3' TERM; trap 'echo usr' USR1; while :; do sleep 0.2; done`)...)

	for _, row := range []struct {
		args []string
		code int
		out  string
	}{
		{[]string{name, "sh", "-c", "echo $0; exit 5", "x"}, 5, "x\n"},
		{[]string{"-u", "7:8", "-w", "/etc", "-e", "A=b", name, "sh", "-c", "id -u; id -g; pwd; echo $A"}, 0, "7\n8\n/etc\nb\n"},
		{[]string{name, "cat", "/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"}, 1, "67108864\n"},
	} {
		if r := s.Do(t, append([]string{"exec"}, row.args...)...); r.Code != row.code || !strings.HasPrefix(r.Stdout, row.out) {
			t.Errorf("exec %q: exit code %d, %q, %q; want %d, %q", row.args, r.Code, r.Stdout, r.Stderr, row.code, row.out)
		}
	}
	// Docker 20.10 has one code for it, Podman the other.
	if r := s.Do(t, "exec", name, "/nowhere"); r.Code != 126 && r.Code != 127 {
		t.Errorf("exec /nowhere: exit code %d, %s", r.Code, r.Stderr)
	}
	if r := s.DoInput(t, strings.NewReader("into it"), "exec", "-i", name, "cat"); r.Stdout != "into it" {
		t.Errorf("exec -i: %q, %s", r.Stdout, r.Stderr)
	}
	tt := harness.AtTerminal(t, s.Command(t.Context(), "exec", "-it", name, "sh", "-c", "tty; until stty size | grep '20 70'; do sleep 0.1; done; exit 4"), 70, 20)
	if code := tt.Exit(); code != 4 {
		t.Errorf("exec -it: exit code %d", code)
	}
	tt.See("20 70")

	if top := s.Must(t, "top", name); !strings.Contains(top, "PID") {
		t.Errorf("top: %s", top)
	}
	limit := " / 64MiB"
	if s.podman {
		limit = " / 67.11MB"
	}
	if usage := s.Must(t, "stats", "--no-stream", "--format", "{{.MemUsage}}", name); !strings.Contains(usage, " / ") || !s.cli && !strings.HasSuffix(usage, limit) {
		t.Errorf("stats: %s", usage)
	}

	// cp, in and out.
	from := filepath.Join(t.TempDir(), "healthy")
	if err := os.WriteFile(from, []byte("copied\n"), 0o640); err != nil {
		t.Fatal(err)
	}
	s.Must(t, "exec", name, "sh", "-c", "echo back >/back")
	to := filepath.Join(t.TempDir(), "back")
	if s.podman && s.cli {
		// Podman copies in the mount namespace of the pid that it knows.
		if r := s.Do(t, "cp", from, name+":/healthy"); r.Code == 0 {
			t.Error("cp into the container succeeded")
		}
		if r := s.Do(t, "cp", name+":/etc/hostname", to); r.Code == 0 {
			t.Error("cp out of the container succeeded")
		}
		if top := s.Must(t, "top", name); strings.Contains(top, "engines.test") {
			t.Errorf("top shows the processes of the host:\n%s", top)
		}
	} else {
		s.Must(t, "cp", from, name+":/healthy")
		if got := s.Must(t, "exec", name, "cat", "/healthy"); got != "copied" {
			t.Errorf("cp into the container: %q", got)
		}
		s.Must(t, "cp", name+":/back", to)
		if b, err := os.ReadFile(to); err != nil || string(b) != "back\n" {
			t.Errorf("cp out of the container: %q, %v", b, err)
		}
	}
	if !s.podman { // whose timers are systemd's
		harness.Poll(t, "the container is healthy", func() bool { return s.inspect(t, name, "{{.State.Health.Status}}") == "healthy" })
	}

	s.Must(t, "update", "--memory", "96m", "--memory-swap", "-1", name)
	if got := s.Do(t, "exec", name, "cat", "/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes").Stdout; got != "100663296\n" {
		t.Errorf("memory limit after update: %q", got)
	}
	s.Must(t, "pause", name)
	if got := s.inspect(t, name, "{{.State.Status}}"); got != "paused" {
		t.Errorf("status after pause: %s", got)
	}
	if r := s.Do(t, "exec", name, "true"); r.Code == 0 {
		t.Error("exec in a paused container succeeded")
	}
	s.Must(t, "unpause", name)
	s.Must(t, "kill", "-s", "USR1", name)
	harness.Poll(t, "the signal is in the log", func() bool {
		r := s.Do(t, "logs", name)
		return r.Stdout == "out\nusr\n" && r.Stderr == "err\n"
	})
	s.Must(t, "stop", "-t", "60", name)
	if got := s.inspect(t, name, "{{.State.Status}} {{.State.ExitCode}} {{.State.OOMKilled}}"); got != "exited 3 false" {
		t.Errorf("after stop: %s", got)
	}
	// Once more, and to an end by force.
	s.Must(t, "start", name)
	if got := s.Must(t, "exec", name, "cat", "/back"); got != "back" {
		t.Errorf("a file after a start: %q", got)
	}
	s.Must(t, "kill", name)
	if got := s.Must(t, "wait", name); got != "137" {
		t.Errorf("exit code after kill: %s", got)
	}
}

// network makes a network that goes with the test.
func (s subject) network(t *testing.T, name string) {
	t.Helper()
	s.Must(t, "network", "create", name)
	t.Cleanup(func() {
		if r, err := s.Run(context.WithoutCancel(t.Context()), nil, "network", "rm", name); err != nil || r.Code != 0 {
			t.Errorf("network rm: %v: %s", err, r.Stderr)
		}
	})
}

// testNetwork joins two containers by a network of the user's, and the host by a
// port.
func testNetwork(t *testing.T, s subject) {
	const network, later, server = "of-the-user", "joined-later", "server"
	s.network(t, network)
	s.network(t, later)
	s.remove(t, server)
	s.Must(t, "run", "-d", "--name", server, "--network", network, "--network-alias", "web", "-p", "127.0.0.1:8088:80", "--stop-signal", "KILL", "busybox",
		"sh", "-c", "mkdir /www; echo served >/www/index.html; exec httpd -f -p 80 -h /www")
	harness.Poll(t, "the port answers", func() bool {
		resp, err := http.Get("http://127.0.0.1:8088/index.html")
		if err != nil {
			return false
		}
		defer resp.Body.Close()
		return resp.StatusCode == http.StatusOK
	})
	const get = `printf 'GET /index.html HTTP/1.0\r\n\r\n' | nc -w 20 $address 80 | tail -n 1`
	address := s.inspect(t, server, `{{(index .NetworkSettings.Networks "`+network+`").IPAddress}}`)
	if r := s.Do(t, "run", "--rm", "--network", network, "-e", "address="+address, "busybox", "sh", "-c", get); r.Stdout != "served\n" {
		t.Errorf("by address: %q, %s", r.Stdout, r.Stderr)
	}
	t.Run("names", func(t *testing.T) {
		// The C library of the image knows no name servers; nslookup asks by itself.
		r := s.Do(t, "run", "--rm", "--network", network, "busybox", "sh", "-c",
			`for name in `+server+` web; do address=$(nslookup -type=a $name | sed -n '/^Name:/,$s/Address: //p') && `+get+`; done`)
		if r.Stdout != "served\nserved\n" {
			t.Errorf("%q, %s", r.Stdout, r.Stderr)
		}
	})
	t.Run("later", func(t *testing.T) {
		if s.fixed {
			t.Skip("all networks have to be there when the container is created")
		}
		s.Must(t, "network", "connect", later, server)
		address := s.inspect(t, server, `{{(index .NetworkSettings.Networks "`+later+`").IPAddress}}`)
		if got := s.Must(t, "run", "--rm", "--network", later, "-e", "address="+address, "busybox", "sh", "-c",
			`until got=$(`+get+`) && [ -n "$got" ]; do sleep 0.1; done; echo $got`); got != "served" {
			t.Errorf("by the address of a network that was joined later: %q", got)
		}
	})
}

// testOutside asks for a name that a server outside of the network knows, which
// Docker's own server asks.
func testOutside(t *testing.T, s subject) {
	if s.podman {
		t.Skip("Podman's name server is on the network's gateway, where this one would be")
	}
	const network = "with-a-server"
	s.network(t, network)
	gateway := strings.TrimSpace(s.Must(t, "network", "inspect", "-f", "{{(index .IPAM.Config 0).Gateway}}", network))
	var conf net.ListenConfig
	server, err := conf.ListenPacket(t.Context(), "udp4", net.JoinHostPort(gateway, "53"))
	if err != nil {
		t.Fatal(err)
	}
	var serving sync.WaitGroup
	serving.Go(func() {
		b := make([]byte, 512)
		for {
			n, from, err := server.ReadFrom(b)
			if err != nil {
				return
			}
			const header = 12
			if n <= header {
				continue
			}
			a := append([]byte(nil), b[:n]...)
			// An answer without recursion, of one address: of the question's name,
			// class and type, for a minute, 192.0.2.7.
			copy(a[2:], []byte{0x81, 0x80, 0, 1, 0, 1, 0, 0, 0, 0})
			a = append(a, 0xc0, header, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 192, 0, 2, 7)
			_, _ = server.WriteTo(a, from)
		}
	})
	t.Cleanup(func() { _ = server.Close(); serving.Wait() })
	r := s.Do(t, "run", "--rm", "--network", network, "--dns", gateway, "busybox", "nslookup", "-type=a", "outside.example")
	if r.Code != 0 || !strings.Contains(r.Stdout, "Address: 192.0.2.7") {
		t.Errorf("exit code %d: %s %s", r.Code, r.Stdout, r.Stderr)
	}
}

func testOOM(t *testing.T, s subject) {
	const name = "oom"
	s.remove(t, name)
	if r := s.Do(t, "run", "--name", name, "--memory", "32m", "busybox", "tail", "/dev/zero"); r.Code != 137 {
		t.Errorf("exit code %d, want 137: %s", r.Code, r.Stderr)
	}
	// With runc, Podman 4.3 does not tell it where cgroups have version 1.
	if got := s.inspect(t, name, "{{.State.OOMKilled}}"); got != "true" && (s.cli || !s.podman) {
		t.Errorf("OOMKilled: %s", got)
	}
}

func testRestart(t *testing.T, s subject) {
	const name = "restart"
	data := t.TempDir()
	s.remove(t, name)
	s.Must(t, "run", "-d", "--name", name, "--restart", "on-failure:5", "-v", data+":/data", "busybox",
		"sh", "-c", `echo x >>/data/runs; [ $(wc -l </data/runs) -ge 3 ]`)
	harness.Poll(t, "the container has ended well", func() bool {
		return s.inspect(t, name, "{{.State.Status}} {{.State.ExitCode}}") == "exited 0"
	})
	if got := s.inspect(t, name, "{{.RestartCount}}"); got != "2" {
		t.Errorf("restarts: %s, want 2", got)
	}
}

// testBuild builds an image with a step that runs a program.
func testBuild(t *testing.T, s subject) {
	dir := t.TempDir()
	const file = "FROM busybox\nCOPY given /given\nRUN uname -r >/kernel && cat /given >>/kernel\nCMD cat /kernel\n"
	for name, text := range map[string]string{"Dockerfile": file, "given": "given\n"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	s.Must(t, "build", "-t", "built", dir)
	out := s.Must(t, "run", "--rm", "built")
	kernel, given, _ := strings.Cut(out, "\n")
	s.kernel(t, kernel)
	if given != "given" {
		t.Errorf("the image's file: %q", out)
	}
	s.Must(t, "rmi", "built")
}
