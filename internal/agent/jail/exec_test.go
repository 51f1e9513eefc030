package jail

import (
	"bufio"
	"context"
	"errors"
	"io"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// startSleeper runs a container that does nothing.
func startSleeper(t testing.TB, edit func(*Config)) *Container {
	t.Helper()
	needRoot(t)
	conf := Config{ID: "sleeper", Spec: newSpec(newRootfs(t), "sleep", "1000")}
	if edit != nil {
		edit(&conf)
	}
	ctx := deadline(t)
	c, err := jailer(t).Create(ctx, conf)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Delete(context.WithoutCancel(ctx)); err != nil {
			t.Error(err)
		}
	})
	if err := c.Start(ctx); err != nil {
		t.Fatal(err)
	}
	return c
}

// execIn runs a process in a container to its end.
func execIn(t *testing.T, c *Container, p *specs.Process) (result, error) {
	t.Helper()
	ctx := deadline(t)
	w, text := output(t)
	proc, err := c.Exec(ctx, ExecConfig{Process: p, Stdio: Stdio{Out: w, Err: w}})
	_ = w.Close()
	if err != nil {
		return result{}, err
	}
	if err := proc.Start(ctx); err != nil {
		return result{}, err
	}
	return result{text(), proc.Child().ExitCode()}, nil
}

func process(args ...string) *specs.Process {
	p := newSpec("/", args...).Process
	p.Env = append(p.Env, "HOME=/")
	return p
}

func TestExec(t *testing.T) {
	c := startSleeper(t, nil)
	for _, ns := range []string{"mnt", "uts", "ipc", "pid", "cgroup", "net"} {
		want, err := os.Readlink("/proc/" + itoa(c.Init().PID()) + "/ns/" + ns)
		if err != nil {
			t.Fatal(err)
		}
		got, err := execIn(t, c, process("readlink", "/proc/self/ns/"+ns))
		if err != nil || got.out != want+"\n" {
			t.Errorf("%s namespace: got %q, %v; want %q", ns, got.out, err, want)
		}
	}
	p := process("sh", "-c", "id -u; id -g; id -G; pwd; umask; grep CapEff /proc/self/status; exit 3")
	p.User = specs.User{UID: 1000, GID: 1001, AdditionalGids: []uint32{7, 8}}
	umask := uint32(0o077)
	p.User.Umask = &umask
	p.Cwd = "/tmp"
	got, err := execIn(t, c, p)
	if err != nil {
		t.Fatal(err)
	}
	want := result{"1000\n1001\n1001 7 8\n/tmp\n0077\nCapEff:\t0000000000000000\n", 3}
	if got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
	if _, err := execIn(t, c, process("nothing")); !errors.Is(err, ErrNotFound) {
		t.Errorf("missing program: got %v", err)
	}
	if _, err := execIn(t, c, process("/etc/passwd")); !errors.Is(err, ErrPermission) {
		t.Errorf("program without permission: got %v", err)
	}
}

// TestExecTime runs processes in a container that has its own time.
func TestExecTime(t *testing.T) {
	c := startSleeper(t, func(conf *Config) {
		conf.Spec.Linux.Namespaces = append(conf.Spec.Linux.Namespaces, specs.LinuxNamespace{Type: specs.TimeNamespace})
		conf.Spec.Linux.TimeOffsets = map[string]specs.LinuxTimeOffset{"boottime": {Secs: 1e9}}
	})
	want, err := os.Readlink("/proc/" + itoa(c.Init().PID()) + "/ns/time")
	if err != nil {
		t.Fatal(err)
	}
	for _, row := range []struct {
		name    string
		process func(p *specs.Process)
	}{
		{"root", nil},
		{"user", func(p *specs.Process) { p.User.UID = 1000 }},
		{"no new privileges", func(p *specs.Process) { p.NoNewPrivileges = true }},
		{"no capabilities", func(p *specs.Process) { p.Capabilities = nil }},
	} {
		t.Run(row.name, func(t *testing.T) {
			p := process("sh", "-c", "readlink /proc/self/ns/time; test $(cut -d. -f1 /proc/uptime) -gt 1000000000 && echo late; ls /proc/self/fd | tail -n 1; grep CapPrm /proc/self/status")
			if row.process != nil {
				row.process(p)
			}
			_, plain, _ := strings.Cut(plainExec(t, p), "CapPrm")
			got, err := execIn(t, c, p)
			if wanted := want + "\nlate\n3\nCapPrm" + plain; err != nil || got.out != wanted {
				t.Errorf("got %q, %v; want %q", got.out, err, wanted)
			}
		})
	}
}

// plainExec returns what a process says in a container without its own time.
func plainExec(t *testing.T, p *specs.Process) string {
	t.Helper()
	got, err := execIn(t, startSleeper(t, nil), p)
	if err != nil {
		t.Fatal(err)
	}
	return got.out
}

func TestExecAfterTheEnd(t *testing.T) {
	c := startSleeper(t, nil)
	if err := c.Init().Signal(unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if got := c.Init().Child().ExitCode(); got != 137 {
		t.Errorf("got exit code %d, want 137", got)
	}
	if _, err := execIn(t, c, process("true")); !errors.Is(err, unix.ESRCH) {
		t.Errorf("got %v, want ESRCH", err)
	}
}

func TestDeleteKillsAll(t *testing.T) {
	c := startSleeper(t, nil)
	ctx := deadline(t)
	p, err := c.Exec(ctx, ExecConfig{Process: process("sleep", "1000")})
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Start(ctx); err != nil {
		t.Fatal(err)
	}
	waiting, err := c.Exec(ctx, ExecConfig{Process: process("sleep", "1000")})
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Delete(ctx); err != nil {
		t.Fatal(err)
	}
	for _, p := range []*Process{c.Init(), p, waiting} {
		if got := p.Child().ExitCode(); got != 137 {
			t.Errorf("got exit code %d, want 137", got)
		}
	}
	if _, err := c.Exec(ctx, ExecConfig{Process: process("true")}); err == nil {
		t.Error("Exec after Delete: got no error")
	}
}

func TestJoinNamespaces(t *testing.T) {
	pod := startSleeper(t, nil)
	s := sh(newRootfs(t), "for n in pid ipc uts; do readlink /proc/self/ns/$n; done; hostname; ps | grep -c sleep")
	s.Hostname = ""
	w, text := output(t)
	ctx := deadline(t)
	j := jailer(t)
	c, err := j.Create(ctx, Config{ID: "second", Spec: s, Stdio: Stdio{Out: w}, Join: map[specs.LinuxNamespaceType]*Container{
		specs.PIDNamespace: pod, specs.IPCNamespace: pod, specs.UTSNamespace: pod,
	}})
	_ = w.Close()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(ctx); err != nil {
		t.Fatal(err)
	}
	var want strings.Builder
	for _, ns := range []string{"pid", "ipc", "uts"} {
		link, err := os.Readlink("/proc/" + itoa(pod.Init().PID()) + "/ns/" + ns)
		if err != nil {
			t.Fatal(err)
		}
		want.WriteString(link + "\n")
	}
	want.WriteString("jail\n")
	if got := text(); !strings.HasPrefix(got, want.String()) || strings.HasSuffix(got, "\n0\n") {
		t.Errorf("got %q, want %q and a sleep", got, want.String())
	}
	if err := c.Delete(ctx); err != nil {
		t.Error(err)
	}
}

// TestPodNamespace: containers share a pid namespace that is none of theirs, whose
// first process no root in it can end, look into, or follow out of the container.
func TestPodNamespace(t *testing.T) {
	needRoot(t)
	ctx := deadline(t)
	j := jailer(t)
	create := func(id, script string) (*Container, func() string) {
		s := sh(newRootfs(t), script)
		s.Linux.Namespaces = slices.DeleteFunc(s.Linux.Namespaces, func(ns specs.LinuxNamespace) bool { return ns.Type == specs.PIDNamespace })
		w, text := output(t)
		c, err := j.Create(ctx, Config{ID: id, Spec: s, Stdio: Stdio{Out: w}, PodPID: true})
		_ = w.Close()
		if err != nil {
			t.Fatal(err)
		}
		if err := c.Start(ctx); err != nil {
			t.Fatal(err)
		}
		return c, text
	}
	first, _ := create("first", "exec sleep 1000")
	second, text := create("second", `
ps | grep -c '[s]leep 1000'
for s in 9 15 1 2 3 10; do kill -$s 1; done
readlink /proc/1/root || echo hidden
(sleep 0.1 & exit 0); sleep 0.3
grep -l '^State:.Z' /proc/[0-9]*/status | wc -l
kill -9 $(ps | grep '[s]leep 1000' | awk '{ print $1 }')
grep -c container-init /proc/1/cmdline; grep -E '^(Uid|CapEff)' /proc/1/status | tr -s '\t' ' '`)
	const want = "1\nhidden\n0\n1\nUid: 65534 65534 65534 65534\nCapEff: 0000000000000000\n"
	if got := text(); got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if got := first.Init().Child().ExitCode(); got != 137 {
		t.Errorf("the other container: exit code %d, want 137", got)
	}
	for _, c := range []*Container{first, second} {
		if err := c.Delete(ctx); err != nil {
			t.Error(err)
		}
	}
	third, _ := create("third", "exec sleep 1000")
	j.Close()
	if got := third.Init().Child().ExitCode(); got != 137 {
		t.Errorf("after the end of the pod: exit code %d, want 137", got)
	}
	if err := third.Delete(ctx); err != nil {
		t.Error(err)
	}
}

// talk reads from a terminal until the text comes.
func talk(t *testing.T, console *os.File, send, until string) string {
	t.Helper()
	if err := console.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(console, send); err != nil {
		t.Fatal(err)
	}
	var got strings.Builder
	r := bufio.NewReader(console)
	for !strings.Contains(got.String(), until) {
		b, err := r.ReadByte()
		if err != nil {
			t.Fatalf("%v after %q", err, got.String())
		}
		got.WriteByte(b)
	}
	return got.String()
}

func TestTerminal(t *testing.T) {
	s := sh("", "tty; stty size; ls -l /dev/console; test -t 2 && echo yes; read x; echo got-$x; stty size; read y; exit 5")
	c := startSleeper(t, func(conf *Config) {
		s.Root.Path = conf.Spec.Root.Path
		s.Process.Terminal = true
		s.Process.ConsoleSize = &specs.Box{Height: 33, Width: 99}
		conf.Spec = s
	})
	console := c.Init().Console()
	defer console.Close()
	got := talk(t, console, "word\n", "got-word\r\n33 99\r\n")
	for _, want := range []string{"/dev/pts/0\r\n", "33 99\r\n", "136,   0", "yes\r\n"} {
		if !strings.Contains(got, want) {
			t.Errorf("got %q, which lacks %q", got, want)
		}
	}
	if err := c.Init().Resize(80, 24); err != nil {
		t.Fatal(err)
	}
	p := process("sh", "-c", "tty; stty size </dev/pts/0; exec sleep 100")
	p.Terminal = true
	ctx := deadline(t)
	second, err := c.Exec(ctx, ExecConfig{Process: p})
	if err != nil {
		t.Fatal(err)
	}
	if err := second.Start(ctx); err != nil {
		t.Fatal(err)
	}
	talk(t, second.Console(), "", "/dev/pts/1\r\n24 80\r\n")
	if _, err := io.WriteString(second.Console(), "\x03"); err != nil {
		t.Fatal(err)
	}
	if got := second.Child().ExitCode(); got != 130 {
		t.Errorf("after Ctrl-C: got exit code %d, want 130", got)
	}
	_ = second.Console().Close()
	if _, err := io.WriteString(console, "\n"); err != nil {
		t.Fatal(err)
	}
	if got := c.Init().Child().ExitCode(); got != 5 {
		t.Errorf("got exit code %d, want 5", got)
	}
	if _, err := io.ReadAll(console); !errors.Is(err, unix.EIO) {
		t.Errorf("reading after the end: got %v, want EIO", err)
	}
}

func TestSpares(t *testing.T) {
	needRoot(t)
	j := New(Options{Reaper: reaper, Spares: 2})
	t.Cleanup(j.Close)
	if err := j.Fill(deadline(t)); err != nil {
		t.Fatal(err)
	}
	spares := append([]*worker(nil), j.spares...)
	if len(spares) != 2 {
		t.Fatalf("got %d spare processes, want 2", len(spares))
	}
	// One that has died must not be handed out.
	_ = spares[1].child.Signal(unix.SIGKILL)
	<-spares[1].child.Done()
	rootfs := newRootfs(t)
	for range 2 {
		if got := runJail(t, j, sh(rootfs, "echo $$")); got != (result{"1\n", 0}) {
			t.Errorf("got %+v", got)
		}
	}
	if err := j.Fill(deadline(t)); err != nil {
		t.Fatal(err)
	}
	last := j.spares[0]
	j.Close()
	<-last.child.Done()
}

// TestRehearse makes a container and a further process in it by processes that have
// rehearsed.
func TestRehearse(t *testing.T) {
	needRoot(t)
	j := New(Options{Reaper: reaper, Spares: 1})
	t.Cleanup(j.Close)
	if err := j.Fill(deadline(t)); err != nil {
		t.Fatal(err)
	}
	old := j.spares[0]
	for range 2 {
		if err := j.Rehearse(deadline(t)); err != nil {
			t.Fatal(err)
		}
		if len(j.spares) != 1 || j.forker.w == nil {
			t.Fatalf("%d spare processes and the forker %v wait", len(j.spares), j.forker.w)
		}
	}
	<-old.child.Done()
	if got := runJail(t, j, sh(newRootfs(t), "echo $$")); got != (result{"1\n", 0}) {
		t.Errorf("got %+v", got)
	}
	if len(j.spares) != 0 {
		t.Error("the spare process was not used")
	}
}

func TestCreateIsBoundedByItsContext(t *testing.T) {
	needRoot(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := jailer(t).Create(ctx, Config{ID: "x", Spec: sh(newRootfs(t), "true")}); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want %v", err, context.Canceled)
	}
}

func TestManyAtOnce(t *testing.T) {
	needRoot(t)
	rootfs := newRootfs(t)
	j := jailer(t)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			if got := runJail(t, j, sh(rootfs, "echo $$; exit 4")); got != (result{"1\n", 4}) {
				t.Errorf("got %+v", got)
			}
		})
	}
	wg.Wait()
}

// TestTheCopyAtItsGateHasNoMore than the process is to have, which the container sees:
// not what it took to enter a time namespace, nor what it took to set limits.
func TestTheCopyAtItsGateHasNoMore(t *testing.T) {
	c := startSleeper(t, func(conf *Config) {
		conf.Spec.Linux.Namespaces = append(conf.Spec.Linux.Namespaces, specs.LinuxNamespace{Type: specs.TimeNamespace})
	})
	p := process("true")
	p.Capabilities, p.NoNewPrivileges = nil, true
	proc, err := c.Exec(deadline(t), ExecConfig{Process: p})
	if err != nil {
		t.Fatal(err)
	}
	// It gets there after its pid is known.
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for ctx := deadline(t); ; {
		status, err := os.ReadFile("/proc/" + itoa(proc.PID()) + "/status")
		if err != nil {
			t.Fatal(err)
		}
		without := func(set string) bool { return strings.Contains(string(status), set+":\t0000000000000000\n") }
		if without("CapPrm") && without("CapEff") && without("CapInh") && without("CapAmb") {
			break
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatalf("it keeps capabilities:\n%s", status)
		}
	}
	proc.discard()
	<-proc.Done()
}
