//go:build integration

package oci

import (
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"github.com/seed-efd44b36/kata/internal/sandbox/report"
	"github.com/seed-efd44b36/kata/test/harness"
	"golang.org/x/sys/unix"
)

// sandboxOf is what the sandbox of a container tells of itself.
func sandboxOf(t *testing.T, id string) report.Sandbox {
	t.Helper()
	st, err := report.Read(env.State, id)
	if err != nil {
		t.Fatal(err)
	}
	return st
}

// nothingLeft wants nothing to be left of a container's sandbox.
func nothingLeft(t *testing.T, r runtime, id string) {
	t.Helper()
	for _, dir := range []string{filepath.Join(r.root, id), filepath.Join(env.State, id)} {
		if _, err := os.Lstat(dir); err == nil {
			t.Errorf("%s is left", dir)
		}
	}
	s := harness.Snapshot{}
	if err := shims(s); err != nil || len(s) > 0 {
		t.Errorf("%v, %v are left", err, s.Sorted())
	}
}

// TestKilled kills each process there is of a container, before and after its start:
// the engine sees the end of the process that it waits for, and can delete it.
func TestKilled(t *testing.T) {
	r := kata(t)
	victims := map[string]func(c *container, st report.Sandbox) int{
		"kata-shim":  func(c *container, _ report.Sandbox) int { return c.pid },
		"kata-proxy": func(_ *container, st report.Sandbox) int { return st.OwnerPID },
		"QEMU":       func(_ *container, st report.Sandbox) int { return st.VMMPID },
	}
	for name, victim := range victims {
		for _, started := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, started %t", name, started), func(t *testing.T) {
				id := mark() + "-killed"
				c := r.create(t, id, bundle(t, nil, "sleep", "1000"))
				if started {
					r.must(t, "start", id)
				}
				if err := unix.Kill(victim(c, sandboxOf(t, id)), unix.SIGKILL); err != nil {
					t.Fatal(err)
				}
				if code := c.end(t); code != 137 && code != 255 {
					t.Errorf("exit code %d", code)
				}
				if st, _ := r.status(t, id); st != "stopped" {
					t.Errorf("it is %q", st)
				}
				ask(t, r, "killed", id, []question{
					{args: "start {id}", code: 1, says: "cannot start a container that has stopped"},
					{args: "kill {id}", code: 1, says: "container not running"},
					{args: "exec {id} true", code: 255, says: "cannot exec in a stopped container"},
					{args: "delete {id}"},
				})
				nothingLeft(t, r, id)
			})
		}
	}
}

// TestCreateKilled kills create at several steps. What it leaves is not in the way of
// delete --force, and nothing stays.
func TestCreateKilled(t *testing.T) {
	r := kata(t)
	id := mark() + "-half"
	exists := func(parts ...string) func() bool {
		return func() bool {
			_, err := os.Lstat(filepath.Join(parts...))
			return err == nil
		}
	}
	for _, step := range []struct {
		name    string
		reached func() bool
	}{
		{"begun", func() bool { return true }},
		{"place", exists(r.root, id)},
		{"record", exists(r.root, id, "state.json")},
		{"sandbox", exists(env.State, id)},
		{"socket", exists(env.State, id, "owner.sock")},
		{"shared directory", exists(env.State, id, "shared")},
		{"booted", exists(env.State, id, "state.json")},
	} {
		t.Run(step.name, func(t *testing.T) {
			cmd := r.command(t, "create", "--bundle", bundle(t, nil, "sleep", "1000"), id)
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			stop := func() {
				_ = cmd.Process.Kill()
				_ = cmd.Wait()
			}
			t.Cleanup(stop) // also when the step is not reached
			harness.Poll(t, "the step is reached: "+step.name, step.reached)
			stop()
			if res := r.do(t, "delete", "--force", id); res.code != 0 {
				t.Errorf("delete --force: %s", res.errOut)
			}
			harness.PollFor(t, deadline, "nothing is left", func() bool {
				reap()
				s := harness.Snapshot{}
				return shims(s) == nil && len(s) == 0 && !exists(r.root, id)() && !exists(env.State, id)()
			})
		})
	}
}

// TestConsole gives a container a terminal as conmon and containerd's shim do.
func TestConsole(t *testing.T) {
	for _, r := range runtimes(t) {
		id := mark() + "-console"
		socket := filepath.Join(t.TempDir(), "console")
		l, err := net.ListenUnix("unix", &net.UnixAddr{Name: socket, Net: "unix"})
		if err != nil {
			t.Fatal(err)
		}
		dir := bundle(t, func(s *specs.Spec) {
			s.Process.Terminal, s.Process.ConsoleSize = true, &specs.Box{Width: 71, Height: 23}
		}, "sh", "-c", "stty size; trap 'stty size; exit 3' WINCH; echo ready; while true; do sleep 0.1; done")
		c := r.create(t, id, dir, "--console-socket", socket)
		master := receive(t, l)
		var screen harness.Buffer
		ended := make(chan struct{})
		go func() { // ends with the terminal
			buf := make([]byte, 4096)
			for {
				n, err := master.Read(buf)
				_, _ = screen.Write(buf[:n])
				if err != nil {
					close(ended)
					return
				}
			}
		}()
		r.must(t, "start", id)
		harness.Poll(t, "the first size", func() bool { return strings.Contains(screen.String(), "23 71\r\nready") })
		if err := unix.IoctlSetWinsize(int(master.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Col: 100, Row: 30}); err != nil {
			t.Fatal(err)
		}
		harness.Poll(t, "the second size", func() bool { return strings.Contains(screen.String(), "30 100") })
		if code := c.end(t); code != 3 {
			t.Errorf("%s: exit code %d", r.name, code)
		}
		<-ended
		r.must(t, "delete", id)
	}
}

// receive takes the terminal that a runtime sends.
func receive(t *testing.T, l *net.UnixListener) *os.File {
	t.Helper()
	conn, err := l.AcceptUnix()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	data, oob := make([]byte, 4096), make([]byte, unix.CmsgSpace(4))
	_, n, _, _, err := conn.ReadMsgUnix(data, oob)
	if err != nil {
		t.Fatal(err)
	}
	messages, err := unix.ParseSocketControlMessage(oob[:n])
	if err != nil || len(messages) != 1 {
		t.Fatalf("%v, %d messages", err, len(messages))
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil {
		t.Fatal(err)
	}
	return os.NewFile(uintptr(fds[0]), "terminal")
}

// TestStartHooks has hooks that run in the container before its program. One that
// fails ends it.
func TestStartHooks(t *testing.T) {
	for _, r := range runtimes(t) {
		script := func(text string) specs.Hook {
			return specs.Hook{Path: "/bin/busybox", Args: []string{"sh", "-c", text}, Env: []string{"PATH=/bin"}}
		}
		run := func(id string, hooks ...specs.Hook) (c *container, dir string, res result) {
			dir = bundle(t, func(s *specs.Spec) {
				s.Annotations = map[string]string{"of": "mine"}
				s.Hooks = &specs.Hooks{StartContainer: hooks}
				s.Mounts = append(s.Mounts, specs.Mount{Destination: "/tmp", Type: "tmpfs", Source: "tmpfs"})
			}, "cat", "/tmp/seen")
			c = r.create(t, mark()+id, dir)
			return c, dir, r.do(t, "start", c.id)
		}
		c, dir, res := run("-starthooks", script("cat > /tmp/seen"), script("hostname >> /tmp/seen"))
		if res.code != 0 {
			t.Fatalf("%s start: %s", r.name, res.errOut)
		}
		if code := c.end(t); code != 0 {
			t.Errorf("%s: exit code %d", r.name, code)
		}
		<-c.read
		var st specs.State
		text := strings.TrimSuffix(c.out.String(), "verbs\n")
		if err := json.Unmarshal([]byte(text), &st); err != nil || text == c.out.String() {
			t.Fatalf("%s: %v: %q", r.name, err, c.out.String())
		}
		if st.ID != c.id || st.Bundle != dir || st.Pid != 1 || st.Status != specs.StateCreated || st.Annotations["of"] != "mine" {
			t.Errorf("%s: got state %+v", r.name, st)
		}
		c, _, res = run("-starthookfails", script("echo no >&2; exit 3"))
		// runc's start may have ended before its hooks have.
		if r.name != "runc" && (res.code != 1 || !strings.Contains(res.errOut, "startContainer hook 0 (/bin/busybox)")) {
			t.Errorf("%s start: got %+v", r.name, res)
		}
		if code := c.end(t); code == 0 {
			t.Errorf("%s: exit code 0 after a hook that failed", r.name)
		}
		if status, _ := r.status(t, c.id); status != "stopped" {
			t.Errorf("%s: %q after a hook that failed", r.name, status)
		}
	}
}

// TestHooks has a prestart hook that makes a network, as Docker's does, and hooks that
// write down when they ran, and with which state.
func TestHooks(t *testing.T) {
	for _, r := range runtimes(t) {
		id := mark() + "-hooks"
		seen := filepath.Join(t.TempDir(), "seen")
		script := func(name, more string) specs.Hook {
			return specs.Hook{Path: "/bin/sh", Args: []string{"sh", "-c", "state=$(cat); printf '%s %s\\n' " + name + " \"$state\" >> " + seen + more}, Env: []string{"PATH=" + os.Getenv("PATH")}}
		}
		network := `; pid=$(echo "$state" | sed 's/.*"pid":\([0-9]*\).*/\1/'); ` +
			`nsenter --net=/proc/$pid/ns/net sh -ec 'ip link add eth0 type veth peer name other; ip addr add 10.9.8.7/24 dev eth0; ip link set other up; ip link set eth0 up'`
		dir := bundle(t, func(s *specs.Spec) {
			s.Hooks = &specs.Hooks{
				Prestart:      []specs.Hook{script("prestart", network)}, //nolint:staticcheck // engines still use it
				CreateRuntime: []specs.Hook{script("createRuntime", "")},
				Poststart:     []specs.Hook{script("poststart", "")},
				Poststop:      []specs.Hook{script("poststop", "")},
			}
		}, "sh", "-c", "ip addr show eth0")
		c := r.create(t, id, dir)
		r.must(t, "start", id)
		if code := c.end(t); code != 0 {
			t.Errorf("%s: exit code %d", r.name, code)
		}
		<-c.read
		if !strings.Contains(c.out.String(), "10.9.8.7/24") {
			t.Errorf("%s: the container sees %q", r.name, c.out.String())
		}
		r.must(t, "delete", id)
		b, err := os.ReadFile(seen)
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for line := range strings.Lines(string(b)) {
			name, text, _ := strings.Cut(line, " ")
			var st specs.State
			if err := json.Unmarshal([]byte(text), &st); err != nil {
				t.Fatalf("%v: %s", err, text)
			}
			of := "another's"
			if st.Pid == c.pid {
				of = "its"
			}
			if st.ID == id && st.Bundle == dir {
				got = append(got, name+" "+string(st.Status)+" "+of)
			}
		}
		want := []string{"prestart creating its", "createRuntime creating its", "poststart running its", "poststop stopped another's"}
		if r.name == "runc" { // it has not looked again; the spec says running
			want[2] = "poststart created its"
		}
		if strings.Join(got, ", ") != strings.Join(want, ", ") {
			t.Errorf("%s: %v, want %v", r.name, got, want)
		}
	}
}

// TestHookFails: nothing is left of a container whose hook fails, or which fails after
// its hooks, and its poststop hooks run.
func TestHookFails(t *testing.T) {
	for _, r := range runtimes(t) {
		for _, tt := range []struct{ name, hook, command, says string }{
			{"hook", "echo the reason; exit 1", "true", "the reason"},
			{"command", "true", "nope", "executable file not found"},
		} {
			id := mark() + "-fails-" + tt.name
			seen := filepath.Join(t.TempDir(), "seen")
			script := func(text string) []specs.Hook {
				return []specs.Hook{{Path: "/bin/sh", Args: []string{"sh", "-c", text}, Env: []string{"PATH=" + os.Getenv("PATH")}}}
			}
			dir := bundle(t, func(s *specs.Spec) {
				s.Hooks = &specs.Hooks{CreateRuntime: script(tt.hook), Poststop: script("cat >> " + seen + "; exit 1")}
			}, tt.command)
			if res := r.do(t, "run", "--bundle", dir, id); res.code == 0 || !strings.Contains(res.errOut, tt.says) {
				t.Errorf("%s: %s: exit code %d, %s; want %q", r.name, tt.name, res.code, res.errOut, tt.says)
			}
			var st specs.State
			b, err := os.ReadFile(seen)
			if err == nil {
				err = json.Unmarshal(b, &st) // it is one: the hook has run once
			}
			if err != nil || st.ID != id || st.Status != specs.StateStopped {
				t.Errorf("%s: %s: the poststop hook: %v, %s", r.name, tt.name, err, b)
			}
			if r.name != "runc" {
				nothingLeft(t, r, id)
			}
		}
	}
}

// TestPod has containers of a pod, by the annotations of two engines and by a
// namespace: all are in one machine, which ends with the last.
func TestPod(t *testing.T) {
	r := kata(t)
	pause, one, two, three := mark()+"-pod", mark()+"-cri", mark()+"-crio", mark()+"-ns"
	leader := r.create(t, pause, bundle(t, func(s *specs.Spec) {
		s.Annotations = map[string]string{"io.kubernetes.cri.container-type": "sandbox", "io.kubernetes.cri.sandbox-id": pause}
	}, "sleep", "1000"))
	r.must(t, "start", pause)
	join := func(s *specs.Spec) {
		for i, ns := range s.Linux.Namespaces {
			if ns.Type == specs.NetworkNamespace || ns.Type == specs.IPCNamespace || ns.Type == specs.UTSNamespace {
				short := map[specs.LinuxNamespaceType]string{specs.NetworkNamespace: "net", specs.IPCNamespace: "ipc", specs.UTSNamespace: "uts"}[ns.Type]
				s.Linux.Namespaces[i].Path = "/proc/" + strconv.Itoa(leader.pid) + "/ns/" + short
			}
		}
	}
	members := map[string]map[string]string{
		one:   {"io.kubernetes.cri.container-type": "container", "io.kubernetes.cri.sandbox-id": pause},
		two:   {"io.kubernetes.cri-o.ContainerType": "container", "io.kubernetes.cri-o.SandboxID": pause},
		three: nil,
	}
	var created []*container
	for id, annotations := range members {
		c := r.create(t, id, bundle(t, func(s *specs.Spec) { s.Annotations = annotations; join(s) }, "sh", "-c", "hostname; sleep 1000"))
		r.must(t, "start", id)
		harness.Poll(t, "the host name", func() bool { return c.out.String() == "verbs\n" })
		created = append(created, c)
	}
	if st := sandboxOf(t, pause); len(st.Containers) != 4 {
		t.Errorf("the machine has %d containers", len(st.Containers))
	}
	for _, c := range append(created, leader) {
		nsOfShim(t, c.pid, leader.pid)
		r.must(t, "kill", c.id, "KILL")
		if code := c.end(t); code != 137 {
			t.Errorf("%s: exit code %d", c.id, code)
		}
		r.must(t, "delete", c.id)
	}
	nothingLeft(t, r, pause)
	ask(t, r, "of a pod that is gone", one, []question{{args: "create --bundle " + bundle(t, func(s *specs.Spec) { s.Annotations = members[one] }, "true") + " {id}", code: 1, says: "the pod sandbox " + pause}})
}

// nsOfShim wants two processes to be in the same network namespace.
func nsOfShim(t *testing.T, a, b int) {
	t.Helper()
	na, _ := os.Readlink(fmt.Sprintf("/proc/%d/ns/net", a))
	nb, _ := os.Readlink(fmt.Sprintf("/proc/%d/ns/net", b))
	own, _ := os.Readlink("/proc/self/ns/net")
	if na == "" || na != nb || na == own {
		t.Errorf("network namespaces %q and %q, ours is %q", na, nb, own)
	}
}

// TestRunTogether is the verb run: in the foreground, detached, at a terminal.
func TestRunTogether(t *testing.T) {
	for _, r := range runtimes(t) {
		id := mark() + "-run"
		res := r.do(t, "run", "--bundle", bundle(t, nil, "sh", "-c", "echo out; echo err >&2; exit 5"), id)
		if res.code != 5 || res.out != "out\n" || res.errOut != "err\n" {
			t.Errorf("%s: %+v", r.name, res)
		}
		res = r.do(t, "run", "--keep", "--bundle", bundle(t, nil, "true"), id)
		if st, _ := r.status(t, id); st != "stopped" || res.code != 0 {
			t.Errorf("%s: kept, it is %q; %+v", r.name, st, res)
		}
		r.must(t, "delete", id)
		pidFile := filepath.Join(t.TempDir(), "pid")
		r.must(t, "run", "--detach", "--pid-file", pidFile, "--bundle", bundle(t, nil, "sleep", "1000"), id)
		if st, pid := r.status(t, id); st != "running" {
			t.Errorf("%s: detached, it is %q", r.name, st)
		} else if b, err := os.ReadFile(pidFile); err != nil || string(b) != strconv.Itoa(pid) {
			t.Errorf("%s: pid %d, in the file %q, %v", r.name, pid, b, err)
		}
		r.must(t, "delete", "--force", id)
		dir := bundle(t, func(s *specs.Spec) { s.Process.Terminal = true }, "sh", "-c", "until stty size | grep 71; do sleep 0.1; done; read line; echo got $line; exit 6") // runc sets the size late
		terminal := harness.AtTerminal(t, r.command(t, "run", "--bundle", dir, id), 71, 23)
		terminal.See("23 71")
		terminal.Press("a line\r")
		terminal.See("got a line")
		if code := terminal.Exit(); code != 6 {
			t.Errorf("%s: at a terminal: exit code %d", r.name, code)
		}
		reap()
	}
}

// TestRootless: what takes root is refused with a reason.
func TestRootless(t *testing.T) {
	out, err := exec.CommandContext(t.Context(), filepath.Join(env.Bin, "kata-runtime"), "--rootless", "true", "list").CombinedOutput()
	if err == nil || !strings.Contains(string(out), "need root on the host") {
		t.Errorf("%v: %s", err, out)
	}
}
