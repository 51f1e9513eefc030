package supervise

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestRoot starts this test binary once more with a root of its own, where it
// tries to reach what is outside.
func TestRoot(t *testing.T) {
	if dir := os.Getenv("SUPERVISE_TEST_ROOT"); dir != "" {
		insideRoot(t, dir)
		return
	}
	if os.Geteuid() != 0 {
		t.Skip("root is needed")
	}
	dir := t.TempDir()
	for _, name := range []string{"read", "write", "outside"} {
		if err := os.Mkdir(filepath.Join(dir, name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name, "file"), []byte("text"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for link, target := range map[string]string{"relative": "read/file", "absolute": filepath.Join(dir, "read")} {
		if err := os.Symlink(target, filepath.Join(dir, link)); err != nil {
			t.Fatal(err)
		}
	}
	listener, err := net.Listen("unix", filepath.Join(dir, "outside", "socket")) //nolint:noctx // local
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	// As the owner of a sandbox makes it: what is mounted later is to arrive.
	write := filepath.Join(dir, "write")
	mount(t, write, write, unix.MS_BIND)
	if err := unix.Mount("", write, "", unix.MS_SHARED, ""); err != nil {
		t.Fatal(err)
	}

	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	before, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	p := start(t, Command{
		Path: self, Args: []string{"-test.run=^TestRoot$", "-test.v"}, Stderr: 1 << 16,
		Env:   []string{"SUPERVISE_TEST_ROOT=" + dir},
		Files: []*os.File{r},
		Access: &Access{
			Read: []string{
				self, "/no/such/path", "/usr", "/lib", "/lib64", "/dev/urandom", filepath.Join(dir, "read"),
				filepath.Join(dir, "relative"), filepath.Join(dir, "absolute", "file"),
			},
			Write: []string{"/dev/null", write},
		},
		Root: &Root{Proc: true},
	})
	later := filepath.Join(write, "later")
	if err := os.Mkdir(later, 0o755); err != nil {
		t.Fatal(err)
	}
	mount(t, filepath.Join(dir, "read"), later, unix.MS_BIND)
	_ = w.Close() // now it looks
	if exit := wait(t, p); !exit.Success() || !strings.Contains(string(p.Stderr()), "--- PASS: TestRoot ") {
		t.Errorf("%v\n%s", exit, p.Stderr())
	}
	after, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	if extra := strings.Count(string(after), "\n") - strings.Count(string(before), "\n"); extra != 1 {
		t.Errorf("we have %d mounts more than before, want 1:\n%s", extra, after)
	}
	if _, err := os.Stat(filepath.Join(dir, "outside", "file")); err != nil {
		t.Errorf("our own root has changed: %v", err)
	}
}

// mount mounts until the end of the test.
func mount(t *testing.T, source, target string, flags uintptr) {
	t.Helper()
	if err := unix.Mount(source, target, "", flags, ""); err != nil {
		t.Fatalf("mount %s on %s: %v", source, target, err)
	}
	t.Cleanup(func() { _ = unix.Unmount(target, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW) })
}

func insideRoot(t *testing.T, dir string) {
	if _, err := os.NewFile(3, "gate").Read(make([]byte, 1)); err == nil {
		t.Fatal("the gate has something to say")
	}
	path := func(name string) string { return filepath.Join(dir, name) }
	connect := func(name string) error {
		fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		return unix.Connect(fd, &unix.SockaddrUnix{Name: name})
	}
	read := func(name string) error { _, err := os.ReadFile(name); return err }
	write := func(name string) error { return os.WriteFile(name, []byte("x"), 0o600) }
	now := []unix.Timeval{{}, {}}
	for _, test := range []struct {
		name string
		got  error
		want error
	}{
		{"connect outside", connect(path("outside/socket")), unix.ENOENT},
		{"signal everybody", unix.Kill(-1, 0), unix.ESRCH},
		{"open outside", read(path("outside/file")), unix.ENOENT},
		{"chmod outside", os.Chmod(path("outside/file"), 0o777), unix.ENOENT},
		{"chown outside", os.Chown(path("outside/file"), 1, 1), unix.ENOENT},
		{"utimes outside", unix.Utimes(path("outside/file"), now), unix.ENOENT},
		{"setxattr outside", unix.Setxattr(path("outside/file"), "trusted.x", nil, 0), unix.ENOENT},
		{"beyond the root", read("/.." + path("outside/file")), unix.ENOENT},
		{"the host's files", read("/etc/passwd"), unix.ENOENT},
		{"the host's old place", read(hostDir + "/etc/passwd"), unix.ENOENT},
		{"the kernel's settings", read("/proc/sys/kernel/hostname"), unix.ENOENT},
		{"read", read(path("read/file")), nil},
		{"by a relative link", read(path("relative")), nil},
		{"by an absolute link", read(path("absolute/file")), nil},
		{"what was mounted later", read(path("write/later/file")), nil},
		{"write what is to be read", write(path("read/new")), unix.EACCES},
		{"chmod what is to be read", os.Chmod(path("read/file"), 0o777), unix.EROFS},
		{"chmod a device", os.Chmod("/dev/null", 0o777), unix.EROFS},
		{"utimes of a device", unix.Utimes("/dev/urandom", now), unix.EROFS},
		{"use a device", write("/dev/null"), nil},
		{"write", write(path("write/new")), nil},
		{"chmod what is to be written", os.Chmod(path("write/new"), 0o700), nil},
		{"chmod the root", os.Chmod("/", 0o777), unix.EROFS},
	} {
		// Landlock refuses first where it can.
		if !errors.Is(test.got, test.want) && (!errors.Is(test.want, unix.EACCES) || !errors.Is(test.got, unix.EROFS)) {
			t.Errorf("%s: %v, want %v", test.name, test.got, test.want)
		}
	}
	info, err := os.Readlink("/proc/self/cwd")
	if err != nil || info != "/" {
		t.Errorf("the working directory is %q, %v", info, err)
	}
}

func TestRootFailures(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("root is needed")
	}
	loop := filepath.Join(t.TempDir(), "loop")
	if err := os.Symlink(loop, loop); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		name   string
		access *Access
		want   string
	}{
		{"no list", nil, "list"},
		{"relative", &Access{Read: []string{"usr"}}, "not absolute"},
		{"loop", &Access{Read: []string{loop}}, "too many levels"},
		{"without the program", &Access{Read: []string{"/dev/null"}}, "no such file"},
	} {
		t.Run(test.name, func(t *testing.T) {
			p, err := Start(t.Context(), Command{Path: "/bin/true", Access: test.access, Root: &Root{}})
			if p != nil || err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("Start() = %v, %v; want %q", p, err, test.want)
			}
		})
	}
}

func BenchmarkStart(b *testing.B) {
	access := &Access{Read: []string{"/usr", "/bin", "/lib", "/lib64"}, Write: []string{"/dev/null"}}
	for name, root := range map[string]*Root{"as is": nil, "root": {Proc: true}} {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				p, err := Start(b.Context(), Command{Path: "/bin/true", Access: access, Root: root, KeepCaps: []string{}})
				if err != nil {
					b.Fatal(err)
				}
				<-p.Done()
			}
		})
	}
}
