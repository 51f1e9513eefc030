package supervise

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/seed-efd44b36/kata/internal/thread"
	"golang.org/x/sys/unix"
)

// borrower is what the child is told by its environment: this test binary,
// started once more.
const (
	borrowerTest = "SUPERVISE_TEST_BORROWER"
	borrowerDir  = "SUPERVISE_TEST_DIR"
)

// lend returns a command that runs the test once more with a file lent to it,
// and that file. The child's TestX sees the path that it is to open
// in borrowerTest.
func lend(t *testing.T, kind string) (c Command, template string) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("root is needed")
	}
	dir := t.TempDir()
	template = filepath.Join(dir, "template", "memory")
	write := filepath.Join(dir, "write")
	for _, d := range []string{filepath.Dir(template), write} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(template, bytes.Repeat([]byte("template"), 1024), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(template)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	name, _, _ := strings.Cut(t.Name(), "/")
	c = Command{
		Path: self, Args: []string{"-test.run=^" + name + "$", "-test.v"}, Stderr: 1 << 16,
		Lend: &Lend{Path: "/not/there/memory", File: f},
		Env:  []string{borrowerTest + "=/not/there/memory", borrowerDir + "=" + write},
	}
	if kind != "plain" {
		c.Access = &Access{
			Read:  []string{self, "/usr", "/lib", "/lib64", "/dev/urandom"},
			Write: []string{"/dev/null", write},
		}
		c.Root = &Root{Proc: true}
	}
	return c, template
}

func succeed(t *testing.T, c Command) {
	t.Helper()
	p := start(t, c)
	if exit := wait(t, p); !exit.Success() || !bytes.Contains(p.Stderr(), []byte("--- PASS: Test")) {
		t.Errorf("%v: %s", exit, p.Stderr())
	}
}

func TestLend(t *testing.T) {
	if path := os.Getenv(borrowerTest); path != "" {
		borrow(t, path, os.Getenv(borrowerDir))
		return
	}
	for _, kind := range []string{"plain", "root"} {
		t.Run(kind, func(t *testing.T) {
			c, template := lend(t, kind)
			before, err := os.Stat(template)
			if err != nil {
				t.Fatal(err)
			}
			succeed(t, c)
			after, err := os.Stat(template)
			if err != nil {
				t.Fatal(err)
			}
			if after.Mode() != before.Mode() || !after.ModTime().Equal(before.ModTime()) || after.Size() != before.Size() {
				t.Errorf("the file is %v, was %v", after, before)
			}
			text, err := os.ReadFile(template)
			if err != nil || !bytes.Equal(text, bytes.Repeat([]byte("template"), 1024)) {
				t.Errorf("the file has changed (%v)", err)
			}
			if offset, err := c.Lend.File.Seek(0, io.SeekCurrent); offset != 0 || err != nil {
				t.Errorf("our offset is %d, %v", offset, err)
			}
			// The child has tried to lock it.
			if err := unix.Flock(int(c.Lend.File.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
				t.Errorf("lock: %v", err)
			}
		})
	}
}

// borrow is the child's part of TestLend.
func borrow(t *testing.T, path, dir string) {
	fd, err := unix.Open(path, unix.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	fails := func(what string, got error, want ...error) {
		t.Helper()
		for _, w := range want {
			if errors.Is(got, w) {
				return
			}
		}
		t.Errorf("%s: %v, want one of %v", what, got, want)
	}
	flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
	if err != nil || flags&unix.O_ACCMODE != unix.O_RDONLY {
		t.Errorf("flags %#x, %v", flags, err)
	}
	text := make([]byte, 8)
	if _, err := unix.Read(fd, text); err != nil || string(text) != "template" {
		t.Errorf("it says %q, %v", text, err)
	}
	if err := unix.Flock(fd, unix.LOCK_SH); err != nil {
		t.Errorf("lock: %v", err)
	}
	if err := unix.Flock(fd, unix.LOCK_UN); err != nil {
		t.Errorf("unlock: %v", err)
	}

	_, err = unix.Write(fd, []byte("evil"))
	fails("write", err, unix.EBADF)
	fails("truncate", unix.Ftruncate(fd, 0), unix.EINVAL)
	fails("punch a hole", unix.Fallocate(fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 0, 4096), unix.EBADF)
	fails("chmod", unix.Fchmod(fd, 0o666), unix.EROFS)
	fails("set times", unix.Futimes(fd, make([]unix.Timeval, 2)), unix.EROFS, unix.EPERM)
	_, err = unix.Open(fmt.Sprintf("/proc/self/fd/%d", fd), unix.O_RDWR, 0)
	fails("open for writing by /proc", err, unix.EROFS, unix.EACCES)
	_, err = unix.Mmap(fd, 0, 8192, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	fails("map shared", err, unix.EACCES)
	shared, err := unix.Mmap(fd, 0, 8192, unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		t.Fatal(err)
	}
	fails("make a shared mapping writable", unix.Mprotect(shared, unix.PROT_READ|unix.PROT_WRITE), unix.EACCES)
	private, err := unix.Mmap(fd, 0, 8192, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE)
	if err != nil {
		t.Fatal(err)
	}
	fails("punch a hole by the mapping", unix.Madvise(private, unix.MADV_REMOVE), unix.EACCES, unix.EINVAL)
	copy(private, "mine....")
	if string(private[:16]) != "mine....template" || string(shared[:8]) != "template" {
		t.Errorf("private %q, shared %q", private[:16], shared[:8])
	}
	if err := unix.Madvise(private, unix.MADV_DONTNEED); err != nil || string(private[:8]) != "template" {
		t.Errorf("after MADV_DONTNEED %q, %v", private[:8], err)
	}

	for _, test := range []struct {
		name  string
		flags int
		want  int
	}{
		{"inherited", unix.O_RDWR, 0},
		{"closed on exec", unix.O_RDWR | unix.O_CLOEXEC, unix.FD_CLOEXEC},
	} {
		fd, err := unix.Open(path, test.flags, 0)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); got != test.want || err != nil {
			t.Errorf("%s: flags %#x, %v, want %#x", test.name, got, err, test.want)
		}
	}
	for _, test := range []struct {
		name  string
		path  string
		flags int
	}{
		{"read only", path, unix.O_RDONLY},
		{"created", path, unix.O_RDWR | unix.O_CREAT},
		{"truncated", path, unix.O_RDWR | unix.O_TRUNC},
		{"longer", path + "x", unix.O_RDWR},
		{"shorter", path[:len(path)-1], unix.O_RDWR},
	} {
		_, err := unix.Open(test.path, test.flags, 0)
		fails(test.name, err, unix.ENOENT)
	}
	_, _, errno := unix.Syscall6(unix.SYS_OPENAT, 0, 1, unix.O_RDWR, 0, 0, 0)
	fails("no address", errno, unix.EFAULT)

	other := filepath.Join(dir, "other")
	if err := os.WriteFile(other, []byte("text"), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(other, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteString("TEXT"); err != nil {
		t.Error(err)
	}
	if err := f.Truncate(1); err != nil {
		t.Error(err)
	}

	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	limit.Cur = 3
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	_, err = unix.Open(path, unix.O_RDWR, 0)
	fails("too many files", err, unix.EMFILE)
}

// TestLendManyAtOnce opens the file, and others, from many threads.
func TestLendManyAtOnce(t *testing.T) {
	const threads, times = 50, 20
	path := os.Getenv(borrowerTest)
	if path == "" {
		c, _ := lend(t, "root")
		succeed(t, c)
		return
	}
	other := filepath.Join(os.Getenv(borrowerDir), "other")
	if err := os.WriteFile(other, []byte("otherone"), 0o600); err != nil {
		t.Fatal(err)
	}
	var opening sync.WaitGroup
	for range threads {
		opening.Go(func() {
			for range times {
				for path, want := range map[string]string{path: "template", other: "otherone"} {
					f, err := os.OpenFile(path, os.O_RDWR, 0)
					if err != nil {
						t.Error(err)
						return
					}
					got := make([]byte, 8)
					if _, err := f.ReadAt(got, 0); err != nil || string(got) != want {
						t.Errorf("%s says %q, %v", path, got, err)
					}
					if err := f.Close(); err != nil {
						t.Error(err)
					}
				}
			}
		})
	}
	opening.Wait()
}

// TestLendEndsWithTheChild kills a child which opens files all the time.
func TestLendEndsWithTheChild(t *testing.T) {
	if path := os.Getenv(borrowerTest); path != "" {
		for {
			f, err := os.OpenFile(path, os.O_RDWR, 0)
			if err != nil {
				t.Fatal(err)
			}
			fmt.Fprintln(os.Stderr, "opened")
			f.Close()
		}
	}
	before := descriptors(t)
	c, _ := lend(t, "plain")
	p := start(t, c)
	deadline := time.After(patience)
	for !bytes.Contains(p.Stderr(), []byte("opened")) {
		select {
		case <-p.Done():
			t.Fatalf("the child has ended: %s", p.Stderr())
		case <-deadline:
			t.Fatal("the child opens nothing")
		case <-time.After(time.Millisecond):
		}
	}
	p.Kill()
	wait(t, p)
	if err := c.Lend.File.Close(); err != nil {
		t.Fatal(err)
	}
	if after := descriptors(t); after != before {
		t.Errorf("descriptors:\n%s\nbefore:\n%s", after, before)
	}
	stacks := make([]byte, 1<<20)
	if stacks = stacks[:runtime.Stack(stacks, true)]; bytes.Contains(stacks, []byte("supervise.(*loan)")) {
		t.Errorf("somebody still answers:\n%s", stacks)
	}
}

// descriptors lists what concerns lending.
func descriptors(t *testing.T) string {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	var list []string
	for _, e := range entries {
		target, err := os.Readlink("/proc/self/fd/" + e.Name())
		if err == nil && (strings.Contains(target, "seccomp") || strings.Contains(target, "memory")) {
			list = append(list, target)
		}
	}
	return strings.Join(list, "\n")
}

// TestLendListensAlone: the child does not get what its calls are answered by.
func TestLendListensAlone(t *testing.T) {
	c, _ := lend(t, "plain")
	c.Path, c.Args = "/bin/ls", []string{"-l", "/proc/self/fd"}
	p := start(t, c)
	exit := wait(t, p)
	if text := string(p.Stderr()); !exit.Success() || !strings.Contains(text, "2 ->") || strings.Contains(text, "4 ->") || strings.Contains(text, "seccomp") {
		t.Errorf("%v: %s", exit, text)
	}
}

// TestLendToWhatIsLeft: what a child leaves behind is not kept waiting.
func TestLendToWhatIsLeft(t *testing.T) {
	path := os.Getenv(borrowerTest)
	if path == "" {
		c, _ := lend(t, "plain")
		c.Path, c.Args = "/bin/sh", []string{"-c", `"$@" <&3 >&3 2>&3 3>&- &`, "sh", c.Path, c.Args[0], "-test.v"}
		// A socket is both ways: its end tells the grandchild when to begin.
		ends, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		ours, theirs := os.NewFile(uintptr(ends[0]), "ours"), os.NewFile(uintptr(ends[1]), "theirs")
		defer ours.Close()
		c.Files = []*os.File{theirs}
		p := start(t, c)
		_ = theirs.Close()
		wait(t, p)
		if err := unix.Shutdown(ends[0], unix.SHUT_WR); err != nil {
			t.Fatal(err)
		}
		text, err := io.ReadAll(ours)
		if err != nil || !bytes.Contains(text, []byte("--- PASS: TestLendToWhatIsLeft")) {
			t.Errorf("%q, %v", text, err)
		}
		return
	}
	if _, err := io.Copy(io.Discard, os.Stdin); err != nil {
		t.Fatal(err)
	}
	if _, err := unix.Open(path, unix.O_RDWR, 0); !errors.Is(err, unix.ENOSYS) {
		t.Errorf("open: %v, want ENOSYS", err)
	}
}

func TestLendRefusals(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	writable, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer writable.Close()
	closed, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	_ = closed.Close()
	for _, test := range []struct {
		name string
		lend Lend
		want string
	}{
		{"writable", Lend{Path: "/x", File: writable}, "not for reading only"},
		{"closed", Lend{Path: "/x", File: closed}, "bad file descriptor"},
		{"relative", Lend{Path: "x", File: closed}, "not absolute"},
	} {
		t.Run(test.name, func(t *testing.T) {
			p, err := Start(t.Context(), Command{Path: "/bin/true", Lend: &test.lend})
			if p != nil || err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("Start() = %v, %v, want %q", p, err, test.want)
			}
		})
	}
}

// TestLendBelowAnotherListener: there can be but one, the kernel says.
func TestLendBelowAnotherListener(t *testing.T) {
	c, _ := lend(t, "plain")
	err := thread.Run(func() error {
		if err := confine(nil); err != nil {
			return err
		}
		for range 2 {
			l, err := newLoan(c.Lend)
			if err != nil {
				return err
			}
			defer l.end()
			if err := l.begin(); err != nil {
				return err
			}
		}
		return nil
	})
	if !errors.Is(err, errors.ErrUnsupported) || !errors.Is(err, unix.EBUSY) {
		t.Errorf("the error is %v, want ErrUnsupported and EBUSY", err)
	}
}
