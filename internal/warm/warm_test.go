package warm

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/seed-efd44b36/kata/internal/cleanup"
	"github.com/seed-efd44b36/kata/internal/flock"
	"github.com/seed-efd44b36/kata/internal/network"
	"github.com/seed-efd44b36/kata/internal/supervise"
	"github.com/seed-efd44b36/kata/internal/vmm"
	"golang.org/x/sys/unix"
)

// process stands for a VMM.
type process struct{ cmd *exec.Cmd }

func (p process) PID() int            { return p.cmd.Process.Pid }
func (process) Done() <-chan struct{} { return nil }
func (process) Exit() supervise.Exit  { return supervise.Exit{} }
func (process) Stderr() []byte        { return nil }
func (p process) Kill()               { _ = p.cmd.Process.Kill() }

func run(t *testing.T) process {
	t.Helper()
	p := process{exec.CommandContext(t.Context(), "sleep", "1000")}
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		p.Kill()
		_ = p.cmd.Wait()
	})
	return p
}

func file(t *testing.T, text string) *os.File {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "file"))
	if err == nil {
		_, err = f.WriteString(text)
	}
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// offer offers a clone in dir and returns its id.
func offer(t *testing.T, dir, key string) (*Keeper, string, process) {
	t.Helper()
	p := run(t)
	id := NewID(key)
	g := Gift{
		ID: id, Running: vmm.Running{Monitor: file(t, "monitor"), Agent: file(t, "agent"), Console: file(t, "console"), Process: p},
		Share: file(t, "share"), Devices: network.Devices{NS: file(t, "ns"), Taps: []*os.File{file(t, "tap0"), file(t, "tap1")}},
	}
	if err := os.Mkdir(filepath.Join(dir, id), 0o700); err != nil {
		t.Fatal(err)
	}
	// As the owner of a sandbox's directory does.
	lock, err := flock.Try(filepath.Join(dir, id, cleanup.LockFile))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = lock.Close() })
	k, err := Listen(filepath.Join(dir, id), g)
	if err != nil {
		t.Fatal(err)
	}
	return k, id, p
}

func content(t *testing.T, f *os.File) string {
	t.Helper()
	b, err := io.ReadAll(io.NewSectionReader(f, 0, 100))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// give gives a clone away and tells what became of that.
func give(k *Keeper) <-chan *Held {
	c := make(chan *Held, 1)
	go func() {
		h, err := k.Give(context.Background())
		if err != nil {
			h = nil
		}
		c <- h
	}()
	return c
}

func TestClaim(t *testing.T) {
	dir := t.TempDir()
	if _, err := Claim(t.Context(), dir, "k", 3); !errors.Is(err, ErrNone) {
		t.Errorf("claim of none: %v", err)
	}
	k, id, p := offer(t, dir, "k")
	if w := List(dir); len(w) != 1 || w[0].ID != id || w[0].Key != "k" || time.Since(w[0].Since) > time.Minute {
		t.Errorf("list: %+v", w)
	}
	if _, err := Claim(t.Context(), dir, "other", 3); !errors.Is(err, ErrNone) {
		t.Errorf("claim of another kind: %v", err)
	}
	held := give(k)
	c, err := Claim(t.Context(), dir, "k", 3)
	if err != nil {
		t.Fatal(err)
	}
	h := <-held
	if h == nil {
		t.Fatal("it was not given")
	}
	if len(List(dir)) != 0 {
		t.Error("it waits though it was claimed")
	}
	if _, err := Claim(t.Context(), dir, "k", 3); !errors.Is(err, ErrNone) {
		t.Errorf("second claim: %v", err)
	}
	if c.ID != id || c.PID() != p.PID() {
		t.Errorf("claimed %s, process %d", c.ID, c.PID())
	}
	var got []string
	for _, f := range append([]*os.File{c.Running.Monitor, c.Running.Agent, c.Running.Console, c.Share, c.Devices.NS}, c.Devices.Taps...) {
		got = append(got, content(t, f))
	}
	if s := strings.Join(got, " "); s != "monitor agent console share ns tap0 tap1" {
		t.Errorf("files: %s", s)
	}
	// Who filled the pool may have been held to one processor.
	var ours, its unix.CPUSet
	err = unix.SchedGetaffinity(0, &ours)
	for cpu := range 1024 {
		if err == nil && ours.IsSet(cpu) {
			its.Set(cpu)
			err = unix.SchedSetaffinity(p.PID(), &its)
			break
		}
	}
	if err = errors.Join(err, c.Hurry(), unix.SchedGetaffinity(p.PID(), &its)); err != nil || its != ours {
		t.Errorf("hurry: %v; processors %v, want %v", err, its, ours)
	}

	// The keeper tells how the VMM ended, and then that nothing is left.
	c.Kill()
	_ = p.cmd.Wait()
	if err := h.Ended(supervise.Exit{Code: -1, Signal: syscall.SIGKILL, At: time.Now()}, []byte("last words")); err != nil {
		t.Error(err)
	}
	select {
	case <-c.Done():
		t.Error("done before the keeper is")
	default:
	}
	if err := h.Close(); err != nil {
		t.Error(err)
	}
	if x := c.Exit(); x.Signal != syscall.SIGKILL || x.Code != -1 || x.Err != nil || string(c.Stderr()) != "last words" {
		t.Errorf("exit %+v, stderr %q", x, c.Stderr())
	}
	if err := c.Release(t.Context(), slog.New(slog.DiscardHandler)); err != nil {
		t.Error(err)
	}
}

// TestClaimantsThatGo: who asks and is gone before the answer costs nobody the clone.
func TestClaimantsThatGo(t *testing.T) {
	dir := t.TempDir()
	k, id, _ := offer(t, dir, "k")
	for range 3 {
		conn, err := (&net.Dialer{}).DialContext(t.Context(), "unix", filepath.Join(dir, id, socketFile))
		if err != nil {
			t.Fatal(err)
		}
		_ = conn.Close()
	}
	held := give(k)
	c, err := Claim(t.Context(), dir, "k", 3)
	if err != nil {
		t.Fatal(err)
	}
	h := <-held
	if h == nil {
		t.Fatal("it was not given")
	}
	if err := errors.Join(h.Close(), c.Close()); err != nil {
		t.Error(err)
	}
}

// TestKeeperDies: the VMM does not outlive its keeper, and the owner is told.
func TestKeeperDies(t *testing.T) {
	dir := t.TempDir()
	k, _, p := offer(t, dir, "k")
	held := give(k)
	c, err := Claim(t.Context(), dir, "k", 3)
	if err != nil {
		t.Fatal(err)
	}
	if err := (<-held).Close(); err != nil {
		t.Fatal(err)
	}
	_ = p.cmd.Wait()
	if x := c.Exit(); x.Err == nil || !strings.Contains(x.Err.Error(), "keeper") {
		t.Errorf("exit: %+v", x)
	}
	if err := c.Close(); err != nil {
		t.Error(err)
	}
}

// TestOwnerDies: the keeper is told, and told apart from being dismissed.
func TestOwnerDies(t *testing.T) {
	dir := t.TempDir()
	for _, dismissed := range []bool{false, true} {
		k, _, p := offer(t, dir, "k")
		held := give(k)
		ended := make(chan error, 1)
		if dismissed {
			w := List(dir)
			if len(w) != 1 {
				t.Fatalf("list: %+v", w)
			}
			go func() { ended <- Dismiss(context.Background(), dir, w[0]) }()
		} else {
			c, err := Claim(t.Context(), dir, "k", 3)
			if err != nil {
				t.Fatal(err)
			}
			go func() { ended <- c.Close() }()
		}
		h := <-held
		if h == nil {
			t.Fatal("it was not given")
		}
		h.Gone()
		if got := h.Want == 0; got != dismissed {
			t.Errorf("%d more clones are wanted, dismissed: %v", h.Want, dismissed)
		}
		p.Kill()
		_ = p.cmd.Wait()
		if err := h.Close(); err != nil {
			t.Error(err)
		}
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}
}

// TestNoKeeper: what looks like a clone and is none keeps nobody.
func TestNoKeeper(t *testing.T) {
	dir := t.TempDir()
	for name, answer := range map[string]func(*net.UnixConn){
		"silence":     func(c *net.UnixConn) { _ = c.Close() },
		"no json":     func(c *net.UnixConn) { _, _ = c.Write([]byte("hello")) },
		"another age": func(c *net.UnixConn) { _, _ = c.Write([]byte(`{"version": 99}`)) },
		"no files":    func(c *net.UnixConn) { _, _ = c.Write([]byte(`{"version": 1, "id": "x", "pid": 1}`)) },
	} {
		d := filepath.Join(dir, NewID("k"))
		if err := os.Mkdir(d, 0o700); err != nil {
			t.Fatal(err)
		}
		l, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(d, socketFile), Net: "unix"})
		if err != nil {
			t.Fatal(err)
		}
		served := make(chan struct{})
		go func() {
			defer close(served)
			if c, err := l.AcceptUnix(); err == nil {
				answer(c)
				_ = c.Close()
			}
		}()
		if c, err := Claim(t.Context(), dir, "k", 3); err == nil || errors.Is(err, ErrNone) {
			t.Errorf("%s: %v, %v", name, c, err)
		}
		<-served
		_ = l.Close()
	}
	// One whose keeper was killed.
	d := filepath.Join(dir, NewID("k"))
	if err := os.Mkdir(d, 0o700); err != nil {
		t.Fatal(err)
	}
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	err = unix.Bind(fd, &unix.SockaddrUnix{Name: filepath.Join(d, socketFile)})
	unix.Close(fd)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Claim(t.Context(), dir, "k", 3); err == nil || errors.Is(err, ErrNone) {
		t.Errorf("killed keeper: %v", err)
	}
}

// TestGivenUp: a keeper stops waiting.
func TestGivenUp(t *testing.T) {
	k, _, _ := offer(t, t.TempDir(), "k")
	ctx, cancel := context.WithCancelCause(t.Context())
	why := errors.New("enough")
	cancel(why)
	if _, err := k.Give(ctx); !errors.Is(err, why) {
		t.Errorf("got %v, want %v", err, why)
	}
}
