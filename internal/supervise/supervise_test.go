package supervise

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/seed-efd44b36/kata/internal/thread"
	"golang.org/x/sys/unix"
)

// patience bounds every wait of these tests.
const patience = 20 * time.Second

// shell returns a command that runs a script.
func shell(script string, args ...string) Command {
	return Command{
		Path:   "/bin/sh",
		Args:   append([]string{"-c", script, "sh"}, args...),
		Stderr: 4096,
	}
}

func start(t *testing.T, c Command) *Process {
	t.Helper()
	p, err := Start(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		p.Kill()
		<-p.Done()
	})
	return p
}

func wait(t *testing.T, p *Process) Exit {
	t.Helper()
	select {
	case <-p.Done():
		return p.Exit()
	case <-time.After(patience):
		t.Fatalf("the child did not end; it said %q", p.Stderr())
		return Exit{}
	}
}

func TestExit(t *testing.T) {
	for _, test := range []struct {
		script  string
		want    string
		success bool
	}{
		{"exit 0", "exit status 0", true},
		{"exit 7", "exit status 7", false},
		{"kill -TERM $$", "killed by signal 15 (terminated)", false},
	} {
		t.Run(test.script, func(t *testing.T) {
			exit := wait(t, start(t, shell(test.script)))
			if got := exit.String(); got != test.want || exit.Success() != test.success {
				t.Errorf("Exit() = %q, success %t; want %q, %t", got, exit.Success(), test.want, test.success)
			}
		})
	}
}

func TestKillEndsTheChildAndMayComeTooLate(t *testing.T) {
	p := start(t, shell("sleep 1000"))
	p.Kill()
	if exit := wait(t, p); exit.Signal != unix.SIGKILL {
		t.Errorf("Exit() = %v, want signal 9", exit)
	}
	p.Kill()
	if err := p.Signal(unix.SIGTERM); !errors.Is(err, os.ErrProcessDone) {
		t.Errorf("Signal() after the end = %v, want os.ErrProcessDone", err)
	}
}

func TestStartErrors(t *testing.T) {
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	for _, test := range []struct {
		name    string
		ctx     context.Context
		command Command
		want    error
	}{
		{"no program", t.Context(), Command{Path: "/no/such/program"}, os.ErrNotExist},
		{"not a program", t.Context(), Command{Path: "/etc/passwd"}, os.ErrPermission},
		{"no directory", t.Context(), Command{Path: "/bin/true", Dir: "/no/such"}, os.ErrNotExist},
		{"cancelled", cancelled, Command{Path: "/bin/true"}, context.Canceled},
		{"place", t.Context(), Command{Path: "/bin/true", Place: func(*syscall.SysProcAttr) error { return io.ErrShortWrite }}, io.ErrShortWrite},
	} {
		t.Run(test.name, func(t *testing.T) {
			p, err := Start(test.ctx, test.command)
			if p != nil || !errors.Is(err, test.want) {
				t.Errorf("Start() = %v, %v; want %v", p, err, test.want)
			}
			if !strings.Contains(fmt.Sprint(err), test.command.Path) {
				t.Errorf("the error %q does not name the program", err)
			}
		})
	}
}

func TestTheEndOfTheOutputIsKept(t *testing.T) {
	c := shell("yes stdout | head -n 50000; echo last >&2; exit 1")
	c.Stderr = 100
	p := start(t, c)
	wait(t, p)
	got := string(p.Stderr())
	if len(got) != 100 || !strings.HasSuffix(got, "\nlast\n") || !strings.Contains(got, "stdout") {
		t.Errorf("Stderr() = %q, want the last 100 bytes", got)
	}
}

func TestAGrandchildThatHoldsTheOutputDelaysNothing(t *testing.T) {
	p := start(t, shell("sleep 1000 & echo $!"))
	if exit := wait(t, p); !exit.Success() {
		t.Errorf("Exit() = %v", exit)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(p.Stderr())))
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Kill(pid, unix.SIGKILL); err != nil {
		t.Error(err)
	}
}

func TestTheChildInheritsOnlyWhatIsListed(t *testing.T) {
	t.Setenv("SECRET", "value")
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = r.Close() }()

	c := shell("env >&3; pwd >&3; ps -o pid= -o sid= -p $$ >&3; cat <&0 >&3")
	c.Files = []*os.File{w}
	c.Env = []string{"GIVEN=1"}
	p := start(t, c)
	_ = w.Close()
	_ = r.SetReadDeadline(time.Now().Add(patience))
	text, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	wait(t, p)
	got := string(text)
	if strings.Contains(got, "SECRET") || !strings.Contains(got, "GIVEN=1") {
		t.Errorf("the environment is not the given one: %q", got)
	}
	if !strings.Contains(got, "\n/\n") {
		t.Errorf("the directory is not /: %q", got)
	}
	if pid := strconv.Itoa(p.PID()); strings.Count(got, pid) != 2 {
		t.Errorf("the child leads no session of its own: %q", got)
	}
}

func TestDescriptorsAreNotInherited(t *testing.T) {
	// One that was opened as a careless program would, or came from one.
	leak, err := unix.Open("/dev/zero", unix.O_RDONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Close(leak) }()
	p := start(t, Command{Path: "/bin/ls", Args: []string{"/proc/self/fd"}, Stderr: 4096})
	wait(t, p)
	// 3 is that of the directory.
	if got, want := string(p.Stderr()), "0\n1\n2\n3\n"; got != want {
		t.Errorf("the child has descriptors %q, want %q", got, want)
	}
}

func TestConfinement(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("root is needed")
	}
	field := func(t *testing.T, c Command, name string) string {
		t.Helper()
		c.Path, c.Args, c.Stderr = "/bin/cat", []string{"/proc/self/status"}, 1<<16
		p := start(t, c)
		wait(t, p)
		for line := range strings.Lines(string(p.Stderr())) {
			if value, ok := strings.CutPrefix(line, name+":"); ok {
				return strings.TrimSpace(value)
			}
		}
		t.Fatalf("no %s in %q", name, p.Stderr())
		return ""
	}
	two := Command{KeepCaps: []string{"CAP_CHOWN", "CAP_FOWNER"}}
	for _, test := range []struct {
		name    string
		command Command
		field   string
		want    string
	}{
		{"two capabilities", two, "CapEff", "0000000000000009"},
		{"two capabilities", two, "CapPrm", "0000000000000009"},
		{"two capabilities", two, "CapBnd", "0000000000000009"},
		{"two capabilities", two, "CapInh", "0000000000000000"},
		{"two capabilities", two, "CapAmb", "0000000000000000"},
		{"none", Command{KeepCaps: []string{}}, "CapEff", "0000000000000000"},
		{"user", Command{User: &User{UID: 65534, GID: 65533}}, "Uid", "65534\t65534\t65534\t65534"},
		{"user", Command{User: &User{UID: 65534, GID: 65533}}, "Gid", "65533\t65533\t65533\t65533"},
		{"user", Command{User: &User{UID: 65534, GID: 65533}}, "Groups", ""},
		{"user", Command{User: &User{UID: 65534, GID: 65533}}, "CapEff", "0000000000000000"},
		{"no new privileges", Command{}, "NoNewPrivs", "1"},
		{"small pages", Command{SmallPages: true}, "THP_enabled", "0"},
	} {
		t.Run(test.name+" "+test.field, func(t *testing.T) {
			if got := field(t, test.command, test.field); got != test.want {
				t.Errorf("%s = %q, want %q", test.field, got, test.want)
			}
		})
	}
	t.Run("we keep all", func(t *testing.T) {
		status, err := os.ReadFile("/proc/self/status")
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(string(status), "CapBnd:\t0000000000000009") {
			t.Error("the child's limits are ours now")
		}
		if err := exec.Command("/bin/cat", "/etc/passwd").Run(); err != nil {
			t.Error(err)
		}
	})
}

func TestAccess(t *testing.T) {
	if LandlockABI() == 0 {
		t.Skip("this kernel has no Landlock")
	}
	dir := t.TempDir()
	for _, name := range []string{"read", "write", "neither"} {
		if err := os.Mkdir(filepath.Join(dir, name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name, "file"), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	access := Access{
		Read:  []string{"/usr", "/bin", "/lib", "/lib64", "/etc/ld.so.cache", "/no/such/path", filepath.Join(dir, "read")},
		Write: []string{"/dev/null", filepath.Join(dir, "write")},
	}
	for _, test := range []struct {
		script string
		want   bool
	}{
		{"cat $1/read/file", true},
		{"echo >$1/read/file", false},
		{"touch $1/read/new", false},
		{"cat $1/write/file && echo >$1/write/file", true},
		{"mkdir $1/write/d && mv $1/write/file $1/write/d/other && mkfifo $1/write/fifo && mknod $1/write/null c 1 3 && ln -s x $1/write/link && rm -r $1/write/*", true},
		{"cat $1/neither/file", false},
		{"ls $1/neither", false},
		{"cat /etc/passwd", false},
		{"echo >/dev/null", true},
	} {
		t.Run(test.script, func(t *testing.T) {
			c := shell(test.script, dir)
			c.Env = []string{"PATH=/usr/bin:/bin"}
			c.Access = &access
			p := start(t, c)
			if exit := wait(t, p); exit.Success() != test.want {
				t.Errorf("success: %t, want %t (%v): %s", exit.Success(), test.want, exit, p.Stderr())
			}
		})
	}
}

// TestTheChildDiesWithUs starts this test binary once more, has it start a
// child, and kills it.
func TestTheChildDiesWithUs(t *testing.T) {
	if kind := os.Getenv("SUPERVISE_TEST_OWNER"); kind != "" {
		c := shell("sleep 1000")
		if kind == "root" {
			c.Access = &Access{Read: []string{"/usr", "/bin", "/lib", "/lib64"}}
			c.Root = &Root{}
		}
		p, err := Start(context.Background(), c)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(os.Stderr, "child %d\n", p.PID())
		<-p.Done()
		return
	}
	for _, kind := range []string{"plain", "root"} {
		t.Run(kind, func(t *testing.T) {
			if kind == "root" && os.Geteuid() != 0 {
				t.Skip("root is needed")
			}
			testDiesWithUs(t, kind)
		})
	}
}

func testDiesWithUs(t *testing.T, kind string) {
	owner := exec.Command(os.Args[0], "-test.run=^TestTheChildDiesWithUs$")
	owner.Env = append(os.Environ(), "SUPERVISE_TEST_OWNER="+kind)
	messages, err := owner.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := owner.Start(); err != nil {
		t.Fatal(err)
	}
	var pid int
	if _, err := fmt.Fscanf(messages, "child %d\n", &pid); err != nil {
		t.Fatal(err)
	}
	child, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Close(child) }()
	if err := owner.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = owner.Wait() // killed
	ready := []unix.PollFd{{Fd: int32(child), Events: unix.POLLIN}}
	n, err := unix.Poll(ready, int(patience/time.Millisecond))
	for errors.Is(err, unix.EINTR) {
		n, err = unix.Poll(ready, int(patience/time.Millisecond))
	}
	if n != 1 || err != nil {
		t.Errorf("the child outlived us (%v)", err)
		_ = unix.PidfdSendSignal(child, unix.SIGKILL, nil, 0)
	}
}

// TestNetNS: the child runs in the network namespace that it is given.
func TestNetNS(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("root is needed")
	}
	var want string
	ns := make(chan *os.File, 1)
	if err := thread.Run(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return err
		}
		f, err := os.Open("/proc/thread-self/ns/net")
		if err != nil {
			return err
		}
		ns <- f
		want, err = os.Readlink("/proc/thread-self/ns/net")
		return err
	}); err != nil {
		t.Fatal(err)
	}
	f := <-ns
	defer f.Close()
	p, err := Start(t.Context(), Command{Path: "/bin/sleep", Args: []string{"1000"}, NetNS: f})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Kill()
	got, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/net", p.PID()))
	if err != nil || got != want {
		t.Errorf("got %s, %v, want %s", got, err, want)
	}
}
