package vmmtest

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/seed-efd44b36/kata/internal/vmm"
	"golang.org/x/sys/unix"
)

// Run tries all that vmm.Machine promises.
func Run(t *testing.T, d Driver) {
	for _, test := range []struct {
		name string
		run  func(*testing.T, Driver)
	}{
		{"Guest", testGuest},
		{"KillAtEachPhase", testKill},
		{"Panic", testPanic},
		{"PowerOff", testPowerOff},
		{"VMMIsKilled", testVMMIsKilled},
		{"CannotStart", testCannotStart},
		{"StartIsCancelled", testStartIsCancelled},
		{"VirtioFS", testVirtioFS},
		{"Tap", testTap},
		{"Clone", testClone},
		{"HandOver", testHandOver},
		{"CannotRestore", testCannotRestore},
	} {
		t.Run(test.name, func(t *testing.T) {
			before := resources(t)
			t.Run("Machine", func(t *testing.T) { test.run(t, d) })
			// What was made in the test was undone at the end of the inner
			// one; the runtime may be a moment behind with goroutines.
			until(t, fmt.Sprintf("resources are as before\n before: %v\n after: %v", before, resources(t)), func() bool {
				return resources(t) == before
			})
		})
	}
}

// usage is what this process holds.
type usage struct{ files, children int }

func resources(t *testing.T) usage {
	t.Helper()
	files, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	lists, err := filepath.Glob("/proc/self/task/*/children")
	if err != nil {
		t.Fatal(err)
	}
	u := usage{files: len(files)}
	for _, list := range lists {
		pids, _ := os.ReadFile(list) // the thread may have ended
		u.children += len(strings.Fields(string(pids)))
	}
	return u
}

// testGuest boots one guest and tries everything that leaves it alive.
func testGuest(t *testing.T, d Driver) {
	c := d.config(t)
	shared := share9P(t, &c)
	var placed []int // threads
	c.Place = func(*syscall.SysProcAttr) error {
		placed = append(placed, unix.Gettid())
		return nil
	}
	m, g := d.boot(t, c)
	// Sent long before the guest listens.
	if got := g.ask(t, "echo", "hello"); got != "hello" {
		t.Errorf("the first answer is %q, want hello", got)
	}
	pids := m.PIDs()
	if len(pids) == 0 || len(placed) != len(pids) {
		t.Errorf("PIDs() = %v, placed by the threads %v", pids, placed)
	}
	if d.Check != nil {
		t.Run("Check", func(t *testing.T) { d.Check(t, m, c) })
	}
	t.Run("NothingTwice", func(t *testing.T) {
		if err := m.Start(t.Context()); err == nil {
			t.Error("Start worked twice")
		}
		if conn, err := m.Agent(t.Context()); err == nil {
			_ = conn.Close()
			t.Error("Agent worked twice")
		}
	})
	t.Run("Console", func(t *testing.T) {
		until(t, "the guest's message is on the console", func() bool {
			return strings.Contains(string(m.Console().Bytes()), "guest: ready")
		})
	})
	t.Run("NIC", func(t *testing.T) {
		got := g.ask(t, "nics")
		for _, n := range c.NICs {
			if !strings.Contains(got, n.MAC) {
				t.Errorf("the guest has %q, want %q in it", got, n.MAC)
			}
		}
	})
	t.Run("Share", func(t *testing.T) { testShare(t, g, shared) })
	t.Run("BackPressure", func(t *testing.T) { testBackPressure(t, g, shared) })
	t.Run("Disks", func(t *testing.T) {
		if !d.Capabilities.Disks {
			t.Skip("the driver has no disks")
		}
		testDisks(t, m, g)
	})

	exit := m.Kill(deadline(t))
	if exit.Err != nil {
		t.Errorf("Kill: %v", exit.Err)
	}
	for _, pid := range pids {
		if err := unix.Kill(pid, 0); !errors.Is(err, unix.ESRCH) {
			t.Errorf("process %d is there after Kill: %v", pid, err)
		}
	}
	testGone(t, m)
	if again := m.Kill(deadline(t)); again.At != exit.At {
		t.Error("the second Kill tells of another end")
	}
}

func testShare(t *testing.T, g *guest, dir string) {
	if err := os.WriteFile(filepath.Join(dir, "from-host"), []byte("text"), 0o600); err != nil {
		t.Fatal(err)
	}
	g.mountShare(t)
	if got := g.ask(t, "read", "/mnt/from-host"); got != "text" {
		t.Errorf("the guest reads %q, want text", got)
	}
	g.ask(t, "write", "/mnt/from-guest", "more")
	g.ask(t, "chown", "/mnt/from-guest", "1234")
	g.ask(t, "mkfifo", "/mnt/fifo")
	if info, err := os.Lstat(filepath.Join(dir, "fifo")); err != nil || info.Mode().Type() != os.ModeNamedPipe {
		t.Errorf("the guest's fifo is none on the host: %v, %v", info, err)
	}
	path := filepath.Join(dir, "from-guest")
	if got, err := os.ReadFile(path); err != nil || string(got) != "more" {
		t.Errorf("the host reads %q, %v; want more", got, err)
	}
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if stat, ok := info.Sys().(*syscall.Stat_t); !ok || stat.Uid != 1234 {
		t.Error("the owner that the guest set is not that of the host's file")
	}

	// Root file systems come later, as mounts below the directory.
	mounted := filepath.Join(dir, "mounted")
	lower, layers := t.TempDir(), t.TempDir()
	if err := errors.Join(os.Mkdir(mounted, 0o755), os.WriteFile(filepath.Join(lower, "below"), []byte("old"), 0o600)); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", layers, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(layers, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW) })
	upper, work := filepath.Join(layers, "upper"), filepath.Join(layers, "work")
	if err := errors.Join(os.Mkdir(upper, 0o755), os.Mkdir(work, 0o755)); err != nil {
		t.Fatal(err)
	}
	options := fmt.Sprintf("lowerdir=%s,upperdir=%s,workdir=%s", lower, upper, work)
	if err := unix.Mount("overlay", mounted, "overlay", 0, options); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(mounted, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW) })
	if got := g.ask(t, "read", "/mnt/mounted/below"); got != "old" {
		t.Errorf("the guest reads %q below the mount, want old", got)
	}
	g.ask(t, "write", "/mnt/mounted/below", "new")
	g.ask(t, "rename", "/mnt/mounted/below", "/mnt/mounted/renamed")
	if got, err := os.ReadFile(filepath.Join(upper, "renamed")); err != nil || string(got) != "new" {
		t.Errorf("the host reads %q, %v in the upper layer; want new", got, err)
	}
}

// testBackPressure writes until the guest, which reads nothing, stops us; and
// then nothing must have been lost. It does the same the other way round.
func testBackPressure(t *testing.T, g *guest, dir string) {
	const size = 8 << 20
	data := make([]byte, size)
	_, _ = rand.Read(data) // never fails

	g.send(t, "wait", "/mnt/go-on")
	g.send(t, "sink", fmt.Sprint(size))
	_ = g.conn.SetWriteDeadline(time.Now().Add(300 * time.Millisecond))
	n, err := g.conn.Write(data)
	if netErr := net.Error(nil); !errors.As(err, &netErr) || !netErr.Timeout() {
		t.Fatalf("Write took %d bytes of %d that nobody read: %v", n, size, err)
	}
	if err := os.WriteFile(filepath.Join(dir, "go-on"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	_ = g.conn.SetWriteDeadline(time.Now().Add(patience))
	if _, err := g.conn.Write(data[n:]); err != nil {
		t.Fatalf("Write after the pause: %v", err)
	}
	g.answer(t)
	if got, want := g.answer(t), fmt.Sprintf("%x", sha256.Sum256(data)); got != want {
		t.Errorf("the guest got other bytes than were sent: checksum %s, want %s", got, want)
	}

	g.send(t, "fill", fmt.Sprint(size))
	g.send(t, "echo", "after")
	if got := g.answer(t); len(got) != size {
		t.Errorf("the guest's answer has %d bytes, want %d", len(got), size)
	}
	if got := g.answer(t); got != "after" {
		t.Errorf("after it came %q, want after", got)
	}
}

func testDisks(t *testing.T, m vmm.Machine, g *guest) {
	const size = 1 << 20
	path := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(path, append([]byte("content"), make([]byte, size)...)[:size], 0o600); err != nil {
		t.Fatal(err)
	}
	open := func(flags int) *os.File {
		f, err := os.OpenFile(path, flags, 0)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = f.Close() })
		return f
	}
	for range 2 { // what was removed can be added again
		for _, disk := range []struct {
			ID       string
			ReadOnly bool
			flags    int
			line     string
		}{
			{"writable", false, os.O_RDWR, "writable ro=0"},
			{"a-read-only-one-of-2", true, os.O_RDONLY, "a-read-only-one-of-2 ro=1"},
		} {
			f := open(disk.flags)
			if err := m.AddDisk(deadline(t), vmm.Disk{ID: disk.ID, File: f, ReadOnly: disk.ReadOnly}); err != nil {
				t.Fatal(err)
			}
			until(t, "the guest sees "+disk.ID, func() bool { return strings.Contains(g.ask(t, "disks"), disk.line) })
			if err := m.AddDisk(deadline(t), vmm.Disk{ID: disk.ID, File: f, ReadOnly: disk.ReadOnly}); err == nil {
				t.Error("a second disk could have the same id")
			}
			if got := g.ask(t, "readdisk", disk.ID, "7"); got != "content" && got != "CONTENT" {
				t.Errorf("the guest reads %q from %s", got, disk.ID)
			}
			if !disk.ReadOnly {
				g.ask(t, "writedisk", disk.ID, "CONTENT")
				if got, err := os.ReadFile(path); err != nil || string(got[:7]) != "CONTENT" {
					t.Errorf("the host reads %q, %v; want CONTENT", got[:7], err)
				}
			}
			if err := m.RemoveDisk(deadline(t), disk.ID); err != nil {
				t.Fatal(err)
			}
			until(t, "the guest does not see "+disk.ID, func() bool { return !strings.Contains(g.ask(t, "disks"), disk.ID) })
		}
	}
	limited := vmm.Disk{ID: "limited", File: open(os.O_RDWR), Limits: vmm.DiskLimits{ReadBytes: 64 << 20, WriteOperations: 1000}}
	if err := m.AddDisk(deadline(t), limited); err != nil {
		t.Fatal(err)
	}
	until(t, "the guest sees a disk with limits", func() bool { return strings.Contains(g.ask(t, "disks"), limited.ID) })
	if got := g.ask(t, "readdisk", limited.ID, "7"); got != "CONTENT" {
		t.Errorf("the guest reads %q from a disk with limits", got)
	}
	if err := m.RemoveDisk(deadline(t), limited.ID); err != nil {
		t.Fatal(err)
	}
	until(t, "the guest does not see it any more", func() bool { return !strings.Contains(g.ask(t, "disks"), limited.ID) })
	refused := []vmm.Disk{
		{ID: "too-limited", File: open(os.O_RDWR), Limits: vmm.DiskLimits{ReadBytes: 1 << 62}},
		{ID: "Big Letters", File: open(os.O_RDWR)},
		{ID: "comma,serial=other", File: open(os.O_RDWR)},
		{ID: "", File: open(os.O_RDWR)},
		{ID: "read-only-file", File: open(os.O_RDONLY)},
		{ID: "writable-file", File: open(os.O_RDWR), ReadOnly: true},
	}
	for _, disk := range refused {
		if err := m.AddDisk(deadline(t), disk); err == nil {
			t.Errorf("AddDisk took %+v", disk)
		}
	}
	if err := m.RemoveDisk(deadline(t), "never-there"); err == nil {
		t.Error("RemoveDisk took a disk that is not there")
	}
	if got := g.ask(t, "disks"); got != "" {
		t.Errorf("the guest has disks at the end: %q", got)
	}
}

// testGone checks what a machine that has ended says.
func testGone(t *testing.T, m vmm.Machine) {
	t.Helper()
	select {
	case <-m.Done():
	default:
		t.Error("Done is open after the end")
	}
	if pids := m.PIDs(); len(pids) != 0 {
		t.Errorf("PIDs() = %v after the end", pids)
	}
	if _, err := m.Agent(t.Context()); !errors.Is(err, vmm.ErrGone) {
		t.Errorf("Agent() = %v after the end, want ErrGone", err)
	}
	if err := m.RemoveDisk(t.Context(), "disk"); !errors.Is(err, vmm.ErrGone) {
		t.Errorf("RemoveDisk() = %v after the end, want ErrGone", err)
	}
}

func testKill(t *testing.T, d Driver) {
	t.Run("BeforeStart", func(t *testing.T) {
		m := d.machine(t, d.config(t))
		if exit := m.Kill(deadline(t)); exit.Err != nil {
			t.Errorf("Kill: %v", exit.Err)
		}
		if err := m.Start(t.Context()); err == nil {
			t.Error("Start worked after Kill")
		}
		testGone(t, m)
	})
	t.Run("AfterStart", func(t *testing.T) {
		m := d.machine(t, d.config(t))
		if err := m.Start(deadline(t)); err != nil {
			t.Fatal(err)
		}
		if exit := m.Kill(deadline(t)); exit.Err != nil {
			t.Errorf("Kill: %v", exit.Err)
		}
		testGone(t, m)
	})
	t.Run("WhileTheKernelBoots", func(t *testing.T) {
		m := d.machine(t, d.config(t))
		if err := m.Start(deadline(t)); err != nil {
			t.Fatal(err)
		}
		until(t, "there is something on the console", func() bool { return len(m.Console().Bytes()) > 0 })
		if exit := m.Kill(deadline(t)); exit.Err != nil {
			t.Errorf("Kill: %v", exit.Err)
		}
		testGone(t, m)
	})
	t.Run("DuringStart", func(t *testing.T) {
		m := d.machine(t, d.config(t))
		result := make(chan error, 1)
		go func() { result <- m.Start(deadline(t)) }()
		until(t, "there is a process", func() bool { return len(m.PIDs()) > 0 })
		m.Kill(deadline(t))
		if err := <-result; err != nil { // it may have been just in time
			t.Log(err)
		}
		testGone(t, m)
	})
}

func testPanic(t *testing.T, d Driver) {
	m, g := d.boot(t, d.config(t))
	g.send(t, "panic")
	exit := ended(t, m)
	if !errors.Is(exit.Err, vmm.ErrGone) || !strings.Contains(fmt.Sprint(exit.Err), "panicked") {
		t.Errorf("Exit.Err = %v, want ErrGone and the panic", exit.Err)
	}
	if !strings.Contains(string(exit.Console), "Kernel panic") {
		t.Errorf("the console has no panic: %q", exit.Console)
	}
	testGone(t, m)
}

func testPowerOff(t *testing.T, d Driver) {
	m, g := d.boot(t, d.config(t))
	g.send(t, "poweroff")
	exit := ended(t, m)
	if !errors.Is(exit.Err, vmm.ErrGone) || !strings.Contains(fmt.Sprint(exit.Err), "powered itself off") {
		t.Errorf("Exit.Err = %v, want ErrGone and that the guest did it", exit.Err)
	}
}

func testVMMIsKilled(t *testing.T, d Driver) {
	m := d.machine(t, d.config(t))
	if err := m.Start(deadline(t)); err != nil {
		t.Fatal(err)
	}
	conn, err := m.Agent(deadline(t))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	if err := unix.Kill(m.PIDs()[0], unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	exit := ended(t, m)
	if !errors.Is(exit.Err, vmm.ErrGone) || !strings.Contains(fmt.Sprint(exit.Err), "signal 9") {
		t.Errorf("Exit.Err = %v, want ErrGone and the signal", exit.Err)
	}
	_ = conn.SetReadDeadline(time.Now().Add(patience))
	if _, err := conn.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("the agent's connection is still open: %v", err)
	}
	testGone(t, m)
}

func testCannotStart(t *testing.T, d Driver) {
	noKernel := filepath.Join(t.TempDir(), "not-a-kernel")
	if err := os.WriteFile(noKernel, []byte("text\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		name  string
		spoil func(*vmm.Config)
		want  string
	}{
		{"NoBinary", func(c *vmm.Config) { c.Binary = "/no/such/vmm" }, "/no/such/vmm"},
		{"NoKernel", func(c *vmm.Config) { c.Kernel = "/no/such/kernel" }, "/no/such/kernel"},
		{"NotAKernel", func(c *vmm.Config) { c.Kernel = noKernel }, "kernel"},
		{"NoInitrd", func(c *vmm.Config) { c.Initrd = "/no/such/initrd" }, "/no/such/initrd"},
		{"BinaryIsNoVMM", func(c *vmm.Config) { c.Binary = "/bin/false" }, "exit status 1"},
		{"PlaceRefuses", func(c *vmm.Config) {
			c.Place = func(*syscall.SysProcAttr) error { return errors.New("no room in the cgroup") }
		}, "no room in the cgroup"},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := d.config(t)
			test.spoil(&c)
			m, err := d.New(c)
			if err == nil {
				err = m.Start(deadline(t))
				testGone(t, m)
			}
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("error is %v, want %q in it", err, test.want)
			}
		})
	}
}

func testStartIsCancelled(t *testing.T, d Driver) {
	for _, after := range []time.Duration{0, time.Millisecond, 20 * time.Millisecond} {
		ctx, cancel := context.WithTimeout(t.Context(), after)
		m := d.machine(t, d.config(t))
		err := m.Start(ctx)
		cancel()
		if err == nil {
			continue // it was quicker
		}
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Start: %v, want the context's error", err)
		}
		testGone(t, m)
	}
}
