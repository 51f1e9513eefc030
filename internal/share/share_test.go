package share

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/seed-efd44b36/kata/internal/spec"
	"golang.org/x/sys/unix"
)

// ownNS marks the process that runs the tests in a mount namespace of its own,
// as kata-proxy is in one.
const ownNS = "KATA_SHARE_TEST_OWN_NS"

func TestMain(m *testing.M) {
	if os.Geteuid() != 0 || os.Getenv(ownNS) != "" {
		os.Exit(m.Run())
	}
	// The parent stays in the host's namespace and keeps it alive as fd 3.
	host, err := os.Open("/proc/self/ns/mnt")
	if err != nil {
		panic(err)
	}
	c := exec.Command("/proc/self/exe", os.Args[1:]...)
	c.Env = append(os.Environ(), ownNS+"=1")
	c.Stdin, c.Stdout, c.Stderr = os.Stdin, os.Stdout, os.Stderr
	c.ExtraFiles = []*os.File{host}
	c.SysProcAttr = &syscall.SysProcAttr{Unshareflags: unix.CLONE_NEWNS}
	if err := c.Run(); err != nil {
		os.Exit(1)
	}
}

func prepare(t *testing.T) *Dir {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root, to mount")
	}
	d, err := Prepare(filepath.Join(t.TempDir(), "shared"), hostNS(t))
	must(t, err)
	t.Cleanup(func() { must(t, d.Close()) })
	return d
}

func addVolume(t *testing.T, d *Dir, container string, b spec.Bind) string {
	t.Helper()
	v, err := d.AddVolume(t.Context(), container, b)
	must(t, err)
	return v.Path
}

func hostNS(t *testing.T) *os.File {
	t.Helper()
	fd, err := unix.FcntlInt(3, unix.F_DUPFD_CLOEXEC, 10)
	must(t, err)
	f := os.NewFile(uintptr(fd), "host mount namespace")
	t.Cleanup(func() { f.Close() })
	return f
}

func TestGuestCannotTouchTheDirectoryItself(t *testing.T) {
	d := prepare(t)
	src := t.TempDir()
	must(t, d.AddRootfs(t.Context(), "c", src, nil, false))
	for _, path := range []string{"new", "c/new", ".volumes"} {
		if err := os.Mkdir(filepath.Join(d.Path(), path), 0o755); !errors.Is(err, unix.EROFS) {
			t.Errorf("mkdir %s in the shared directory: got %v, want EROFS", path, err)
		}
	}
	if err := os.Symlink("/", filepath.Join(d.Path(), "link")); !errors.Is(err, unix.EROFS) {
		t.Errorf("symlink in the shared directory: got %v, want EROFS", err)
	}
	for _, f := range []func() error{
		func() error { return os.Remove(filepath.Join(d.Path(), "c", "rootfs")) },
		func() error { return os.Rename(filepath.Join(d.Path(), "c"), filepath.Join(d.Path(), "d")) },
	} {
		if err := f(); !errors.Is(err, unix.EROFS) && !errors.Is(err, unix.EBUSY) {
			t.Errorf("change in the shared directory: got %v, want EROFS or EBUSY", err)
		}
	}
	// The container's own root file system is its to write to.
	must(t, os.WriteFile(filepath.Join(d.Path(), "c/rootfs/f"), []byte("x"), 0o600))
	if b, err := os.ReadFile(filepath.Join(src, "f")); err != nil || string(b) != "x" {
		t.Errorf("file written through the share: %q, %v", b, err)
	}
}

// TestWhatAGuestMakesIsDead: a guest that speaks to the file server itself can
// make device nodes and links; opening them on the host must do nothing.
func TestWhatAGuestMakesIsDead(t *testing.T) {
	d := prepare(t)
	src := t.TempDir()
	must(t, unix.Mknod(filepath.Join(src, "null"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))))
	must(t, os.Symlink("/etc/passwd", filepath.Join(src, "link")))
	must(t, d.AddRootfs(t.Context(), "c", src, nil, false))
	addVolume(t, d, "c", spec.Bind{Source: src})
	for _, at := range []string{"c/rootfs", ".volumes/0"} {
		if _, err := os.ReadFile(filepath.Join(d.Path(), at, "null")); !errors.Is(err, unix.EACCES) {
			t.Errorf("open of a device in %s: got %v, want EACCES", at, err)
		}
		if _, err := os.ReadFile(filepath.Join(d.Path(), at, "link")); !errors.Is(err, unix.ELOOP) {
			t.Errorf("open of a link in %s: got %v, want ELOOP", at, err)
		}
		if got, err := os.Readlink(filepath.Join(d.Path(), at, "link")); err != nil || got != "/etc/passwd" {
			t.Errorf("readlink in %s: %q, %v", at, got, err)
		}
		var st unix.Statfs_t
		must(t, unix.Statfs(filepath.Join(d.Path(), at), &st))
		if want := int64(unix.ST_NODEV | unix.ST_NOSUID | unix.ST_NOEXEC); st.Flags&want != want {
			t.Errorf("flags of %s: %#x, want %#x in them", at, st.Flags, want)
		}
	}
}

func TestReadOnlyReachesEveryMount(t *testing.T) {
	d := prepare(t)
	src := t.TempDir()
	sub := filepath.Join(src, "sub")
	must(t, os.Mkdir(sub, 0o755))
	mountTmpfs(t, sub, hostNS(t))
	writable := func(path string) error {
		f, err := os.OpenFile(filepath.Join(d.Path(), path, "f"), os.O_WRONLY|os.O_CREATE, 0o600)
		if err != nil {
			return err
		}
		return f.Close()
	}
	addVolume(t, d, "c", spec.Bind{Source: src, Recursive: true, ReadOnly: true, ReadOnlyBelow: true})
	addVolume(t, d, "c", spec.Bind{Source: src, Recursive: true})
	addVolume(t, d, "c", spec.Bind{Source: src, ReadOnly: true})
	addVolume(t, d, "c", spec.Bind{Source: src, Recursive: true, ReadOnly: true})
	must(t, d.AddRootfs(t.Context(), "c", src, nil, false))
	for path, want := range map[string]error{
		".volumes/0": unix.EROFS, ".volumes/0/sub": unix.EROFS,
		".volumes/1": nil, ".volumes/1/sub": nil,
		".volumes/2": unix.EROFS, ".volumes/2/sub": unix.EROFS,
		".volumes/3": unix.EROFS, ".volumes/3/sub": nil,
		"c/rootfs": nil, "c/rootfs/sub": nil,
	} {
		if err := writable(path); !errors.Is(err, want) {
			t.Errorf("write to %s: got %v, want %v", path, err, want)
		}
	}
	must(t, d.ProtectRootfs("c"))
	for _, path := range []string{"c/rootfs", "c/rootfs/sub"} {
		if err := writable(path); !errors.Is(err, unix.EROFS) {
			t.Errorf("write to %s of a protected rootfs: got %v, want EROFS", path, err)
		}
	}
	// The host itself can still write.
	must(t, os.WriteFile(filepath.Join(src, "host"), nil, 0o600))
}

// TestContainersShareVolumes: what two containers mount is one volume, for the
// sake of sockets and locks, as long as it can be one.
func TestContainersShareVolumes(t *testing.T) {
	d := prepare(t)
	src := t.TempDir()
	must(t, os.Mkdir(filepath.Join(src, "sub"), 0o755))
	must(t, os.Symlink(src, filepath.Join(src, "link")))
	writable := func(path string) bool {
		t.Helper()
		err := os.WriteFile(filepath.Join(d.Path(), path, "f"), nil, 0o600)
		if err != nil && !errors.Is(err, unix.EROFS) {
			t.Error(err)
		}
		return err == nil
	}
	first := addVolume(t, d, "a", spec.Bind{Source: src, Recursive: true, ReadOnly: true})
	if writable(first) {
		t.Error("a read-only volume can be written to")
	}
	second := addVolume(t, d, "b", spec.Bind{Source: filepath.Join(src, "link"), Recursive: true})
	if first != second || !writable(first) {
		t.Errorf("volumes of one source: %s and %s; writable: %v", first, second, writable(first))
	}
	for name, b := range map[string]spec.Bind{
		"another directory":        {Source: filepath.Join(src, "sub"), Recursive: true},
		"read-only below":          {Source: src, Recursive: true, ReadOnly: true, ReadOnlyBelow: true},
		"that later mounts are in": {Source: src, Recursive: true, Slave: true},
	} {
		if got := addVolume(t, d, "c", b); got == first {
			t.Errorf("%s is the same volume", name)
		}
	}
	must(t, d.Remove("a"))
	if !writable(second) {
		t.Error("it is gone with one of two containers")
	}
	must(t, d.Remove("b"))
	must(t, d.Remove("c"))
	if left, err := os.ReadDir(filepath.Join(d.Path(), volumesName)); err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}

	// With a file system below, each container has its own view of what is
	// read-only, since the guest cannot tell.
	mountTmpfs(t, filepath.Join(src, "sub"), hostNS(t))
	v, err := d.AddVolume(t.Context(), "a", spec.Bind{Source: src, Recursive: true, ReadOnly: true})
	must(t, err)
	if other := addVolume(t, d, "b", spec.Bind{Source: src, Recursive: true}); other == v.Path || !v.Split {
		t.Errorf("%+v and %s of a directory with a file system below", v, other)
	}
	if writable(v.Path) || !writable(filepath.Join(v.Path, "sub")) {
		t.Error("read-only is not the volume without what is below it")
	}
}

// TestLaterMounts: a slave shows what is mounted on the host later, a private
// bind does not.
func TestLaterMounts(t *testing.T) {
	d := prepare(t)
	src := t.TempDir()
	sub := filepath.Join(src, "sub")
	must(t, os.Mkdir(sub, 0o755))
	host := hostNS(t)
	onHost := func(f func() error) {
		t.Helper()
		_, err := (&Dir{host: host}).onHost(func() (int, error) { return 0, f() })
		must(t, err)
	}
	onHost(func() error {
		return errors.Join(unix.Mount(src, src, "", unix.MS_BIND, ""), unix.Mount("", src, "", unix.MS_SHARED, ""))
	})
	t.Cleanup(func() { onHost(func() error { return unix.Unmount(src, unix.MNT_DETACH) }) })
	slave := addVolume(t, d, "c", spec.Bind{Source: src, Recursive: true, Slave: true})
	addVolume(t, d, "c", spec.Bind{Source: src, Recursive: true})
	if again := addVolume(t, d, "d", spec.Bind{Source: src, Recursive: true, Slave: true}); again != slave {
		t.Errorf("one mount is the volumes %s and %s", slave, again)
	}
	// What comes below another mount of the directory is not the same.
	other := t.TempDir()
	onHost(func() error { return unix.Mount(src, other, "", unix.MS_BIND, "") })
	t.Cleanup(func() { onHost(func() error { return unix.Unmount(other, unix.MNT_DETACH) }) })
	if got := addVolume(t, d, "d", spec.Bind{Source: other, Recursive: true, Slave: true}); got == slave {
		t.Error("two mounts of a directory are one volume")
	}
	mountTmpfs(t, sub, host)
	seen := func(index string) bool {
		var fs unix.Statfs_t
		must(t, unix.Statfs(filepath.Join(d.Path(), ".volumes", index, "sub"), &fs))
		return fs.Blocks*uint64(fs.Bsize) == 64<<10
	}
	if !seen("0") || seen("1") {
		t.Errorf("seen in the slave: %v, in the private one: %v", seen("0"), seen("1"))
	}
	// The guest's mounts, were it to make any, are not for the host.
	must(t, unix.Mount("tmpfs", filepath.Join(d.Path(), ".volumes/0/sub"), "tmpfs", 0, "size=128k"))
	onHost(func() error {
		var fs unix.Statfs_t
		if err := unix.Statfs(sub, &fs); err != nil {
			return err
		}
		if fs.Blocks*uint64(fs.Bsize) != 64<<10 {
			t.Error("a mount came back to the host")
		}
		return nil
	})
}

// mountTmpfs mounts a tmpfs in the host's namespace or, with ns nil, our own.
func mountTmpfs(t *testing.T, path string, ns *os.File) {
	t.Helper()
	do := func(f func() error) {
		_, err := (&Dir{host: ns}).onHost(func() (int, error) { return 0, f() })
		must(t, err)
	}
	do(func() error { return unix.Mount("tmpfs", path, "tmpfs", 0, "size=64k") })
	t.Cleanup(func() { do(func() error { return unix.Unmount(path, unix.MNT_DETACH) }) })
}

// TestSourcesAreTheHosts: a mount that the host made after we left its
// namespace is seen.
func TestSourcesAreTheHosts(t *testing.T) {
	d := prepare(t)
	src := t.TempDir()
	mountTmpfs(t, src, d.host)
	_, err := d.onHost(func() (int, error) {
		return 0, os.WriteFile(filepath.Join(src, "on-the-host"), nil, 0o600)
	})
	must(t, err)
	if _, err := os.Stat(filepath.Join(src, "on-the-host")); !errors.Is(err, fs.ErrNotExist) {
		t.Fatalf("the test's own namespace sees the host's mount: %v", err)
	}
	addVolume(t, d, "c", spec.Bind{Source: src})
	if _, err := os.Stat(filepath.Join(d.Path(), ".volumes/0/on-the-host")); err != nil {
		t.Error(err)
	}
	if self, err := os.Readlink("/proc/thread-self/ns/mnt"); err != nil || self == readlink(t, fmt.Sprintf("/proc/self/fd/%d", d.host.Fd())) {
		t.Errorf("the caller's thread is in namespace %s (%v), that of the host", self, err)
	}
}

func TestOnTmpfs(t *testing.T) {
	d := prepare(t)
	src := t.TempDir()
	shm := filepath.Join(src, "shm")
	must(t, os.Mkdir(shm, 0o755))
	before := d.OnTmpfs(shm)
	mountTmpfs(t, shm, d.host) // which is seen on the host only
	if !d.OnTmpfs(shm) {
		t.Error("a tmpfs is not seen as one")
	}
	var st unix.Statfs_t
	must(t, unix.Statfs(src, &st))
	if want := st.Type == unix.TMPFS_MAGIC; before != want {
		t.Errorf("the directory before: %v, want %v", before, want)
	}
	if d.OnTmpfs(filepath.Join(src, "absent")) {
		t.Error("what is absent is on a tmpfs")
	}
}

func TestBindOfAFile(t *testing.T) {
	d := prepare(t)
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	must(t, os.WriteFile(file, []byte("text"), 0o600))
	must(t, os.Symlink("file", filepath.Join(dir, "link")))
	for _, source := range []string{"file", "link"} {
		path := filepath.Join(d.Path(), addVolume(t, d, "c", spec.Bind{Source: filepath.Join(dir, source), ReadOnly: true}))
		if b, err := os.ReadFile(path); err != nil || string(b) != "text" {
			t.Errorf("bind of a %s: %q, %v", source, b, err)
		}
		if err := os.WriteFile(path, []byte("no"), 0o600); !errors.Is(err, unix.EROFS) {
			t.Errorf("write to a read-only %s: got %v, want EROFS", source, err)
		}
	}
}

func TestRefusedSources(t *testing.T) {
	d := prepare(t)
	dir := t.TempDir()
	must(t, os.WriteFile(filepath.Join(dir, "file"), nil, 0o600))
	must(t, unix.Mkfifo(filepath.Join(dir, "fifo"), 0o600))
	must(t, os.Symlink("absent", filepath.Join(dir, "dangling")))
	l, err := net.Listen("unix", filepath.Join(dir, "sock")) //nolint:noctx // local
	must(t, err)
	defer l.Close()

	for name, want := range map[string]error{
		filepath.Join(dir, "fifo"):     errors.ErrUnsupported,
		filepath.Join(dir, "sock"):     errors.ErrUnsupported,
		"/dev/null":                    errors.ErrUnsupported,
		filepath.Join(dir, "absent"):   fs.ErrNotExist,
		filepath.Join(dir, "dangling"): fs.ErrNotExist,
	} {
		if _, err := d.AddVolume(t.Context(), "c", spec.Bind{Source: name}); !errors.Is(err, want) {
			t.Errorf("AddVolume of %s: got %v, want %v", name, err, want)
		}
	}
	if _, err := d.AddVolume(t.Context(), "c", spec.Bind{Source: "relative"}); err == nil {
		t.Error("AddVolume of a relative path: no error")
	}
	for _, path := range []string{filepath.Join(dir, "file"), filepath.Join(dir, "absent"), "/dev/null"} {
		if err := d.AddRootfs(t.Context(), "c", path, nil, false); err == nil {
			t.Errorf("AddRootfs of %s: no error", path)
		}
	}
	for _, m := range [][]Mount{
		{{Type: "ext4", Source: "/dev/vda"}},
		{{Type: "", Source: dir}},
		{{Type: "bind", Source: dir, Options: []string{"rshared"}}},
		{{Type: "bind", Source: dir}, {Type: "bind", Source: dir}},
	} {
		if err := d.AddRootfs(t.Context(), "c", "", m, false); !errors.Is(err, errors.ErrUnsupported) {
			t.Errorf("AddRootfs of %v: got %v, want ErrUnsupported", m, err)
		}
	}
	for _, id := range []string{"", ".", "..", "a/b", "../x"} {
		if err := d.AddRootfs(t.Context(), id, dir, nil, false); !errors.Is(err, fs.ErrInvalid) {
			t.Errorf("AddRootfs for container %q: got %v, want fs.ErrInvalid", id, err)
		}
		if err := d.Remove(id); !errors.Is(err, fs.ErrInvalid) {
			t.Errorf("Remove of container %q: got %v, want fs.ErrInvalid", id, err)
		}
	}
	must(t, d.AddRootfs(t.Context(), "c", dir, nil, false))
	if err := d.AddRootfs(t.Context(), "c", dir, nil, false); !errors.Is(err, fs.ErrExist) {
		t.Errorf("second AddRootfs: got %v, want fs.ErrExist", err)
	}
}

func TestRemoveLooksIntoNothing(t *testing.T) {
	d := prepare(t)
	src := t.TempDir()
	must(t, os.WriteFile(filepath.Join(src, "data"), nil, 0o600))
	must(t, os.Symlink("/", filepath.Join(src, "link")))
	for _, c := range []string{"a", "b"} {
		must(t, d.AddRootfs(t.Context(), c, src, nil, false))
		own := t.TempDir()
		must(t, os.WriteFile(filepath.Join(own, "file"), nil, 0o600))
		for _, s := range []string{own, filepath.Join(own, "file"), src} {
			addVolume(t, d, c, spec.Bind{Source: s})
		}
	}
	busy, err := os.Open(filepath.Join(d.Path(), "a/rootfs/data")) // a guest keeps a file open
	must(t, err)
	defer busy.Close()
	before := mounts(t, d.Path())
	for range 2 {
		must(t, d.Remove("a"))
	}
	if _, err := os.Lstat(filepath.Join(d.Path(), "a")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("directory of a removed container: %v", err)
	}
	if got, want := len(mounts(t, d.Path())), len(before)-3; got != want { // b has the third volume, too
		t.Errorf("%d mounts are left, want %d", got, want)
	}
	for _, name := range []string{"data", "link"} {
		if _, err := os.Lstat(filepath.Join(src, name)); err != nil {
			t.Errorf("the source lost %s: %v", name, err)
		}
	}
	must(t, d.AddRootfs(t.Context(), "a", src, nil, false)) // the id can be used again
}

func TestCloseLeavesNothing(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root, to mount")
	}
	dir, src := filepath.Join(t.TempDir(), "shared"), t.TempDir()
	before, fds := mounts(t, "/"), openFDs(t)
	d, err := Prepare(dir, nil)
	must(t, err)
	must(t, d.AddRootfs(t.Context(), "c", src, nil, false))
	addVolume(t, d, "c", spec.Bind{Source: src})
	must(t, d.Close())
	if diff := cmp.Diff(before, mounts(t, "/")); diff != "" {
		t.Errorf("mounts (-before +after):\n%s", diff)
	}
	if _, err := os.Lstat(dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the directory is left: %v", err)
	}
	if got := openFDs(t); got != fds {
		t.Errorf("%d file descriptors are open, %d were before", got, fds)
	}
}

func openFDs(t *testing.T) int {
	t.Helper()
	e, err := os.ReadDir("/proc/self/fd")
	must(t, err)
	return len(e)
}

func TestPrepareFollowsNoLink(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root, to mount")
	}
	dir := t.TempDir()
	must(t, os.Mkdir(filepath.Join(dir, "target"), 0o755))
	must(t, os.Symlink("target", filepath.Join(dir, "shared")))
	if _, err := Prepare(filepath.Join(dir, "shared"), nil); err == nil {
		t.Error("Prepare on a symbolic link: no error")
	}
}

func TestOverlay(t *testing.T) {
	d := prepare(t)
	dir := t.TempDir()
	mk := func(name string) string {
		p := filepath.Join(dir, name)
		must(t, os.MkdirAll(p, 0o755))
		return p
	}
	// Far more than the 255 bytes of an fsconfig string, and names that the
	// option's own syntax uses.
	var lower []string
	for i := range 120 {
		p := mk(fmt.Sprintf("layer,%d:%s", i, strings.Repeat("x", 60)))
		must(t, os.WriteFile(filepath.Join(p, "which"), []byte(fmt.Sprint(i)), 0o600))
		must(t, os.WriteFile(filepath.Join(p, fmt.Sprintf("in-%d", i)), nil, 0o600))
		lower = append(lower, strings.ReplaceAll(p, ":", `\:`))
	}
	lowerdir := "lowerdir=" + strings.Join(lower, ":")
	upper := mk("upper")
	must(t, d.AddRootfs(t.Context(), "rw", "", []Mount{{
		Type: "overlay", Source: "overlay", Options: []string{lowerdir, "upperdir=" + upper, "workdir=" + mk("work")},
	}}, false))
	must(t, d.AddRootfs(t.Context(), "ro", "", []Mount{{Type: "overlay", Options: []string{lowerdir}}}, false))

	for _, c := range []string{"rw", "ro"} {
		root := filepath.Join(d.Path(), c, "rootfs")
		if b, err := os.ReadFile(filepath.Join(root, "which")); err != nil || string(b) != "0" {
			t.Errorf("%s: file of the uppermost layer: %q, %v", c, b, err)
		}
		if _, err := os.Stat(filepath.Join(root, "in-119")); err != nil {
			t.Errorf("%s: file of the lowest layer: %v", c, err)
		}
	}
	must(t, os.WriteFile(filepath.Join(d.Path(), "rw/rootfs/new"), nil, 0o600))
	if _, err := os.Stat(filepath.Join(upper, "new")); err != nil {
		t.Error(err)
	}
	if err := os.WriteFile(filepath.Join(d.Path(), "ro/rootfs/new"), nil, 0o600); !errors.Is(err, unix.EROFS) {
		t.Errorf("write to an overlay without upperdir: got %v, want EROFS", err)
	}
	if n := len(mounts(t, dir)); n != 0 {
		t.Errorf("%d mounts are left in the layers' directory", n)
	}
}

// TestReadonlyDirectoryIsNotChanged: not even before ProtectRootfs, when the
// agent makes mount points.
func TestReadonlyDirectoryIsNotChanged(t *testing.T) {
	d := prepare(t)
	src := filepath.Join(t.TempDir(), "a dir:of, mine")
	must(t, os.MkdirAll(filepath.Join(src, "sub dir"), 0o755))
	must(t, os.MkdirAll(filepath.Join(src, "d"), 0o755))
	must(t, os.WriteFile(filepath.Join(src, "f"), []byte("old"), 0o600))
	must(t, os.Chmod(src, 0o1711))
	must(t, os.Chown(src, 7, 8))
	mountTmpfs(t, filepath.Join(src, "sub dir"), d.host)
	before, fds := mounts(t, "/"), openFDs(t)
	must(t, d.AddRootfs(t.Context(), "c", src, nil, true))
	root := filepath.Join(d.Path(), "c/rootfs")

	var got, want unix.Stat_t
	must(t, unix.Stat(root, &got))
	must(t, unix.Stat(src, &want))
	if got.Mode != want.Mode || got.Uid != want.Uid || got.Gid != want.Gid || got.Mtim != want.Mtim {
		t.Errorf("root directory: %+v, want it like %+v", got, want)
	}
	must(t, os.Mkdir(filepath.Join(root, "d/mount point"), 0o755))
	must(t, os.WriteFile(filepath.Join(root, "f"), []byte("new"), 0o600))
	must(t, os.WriteFile(filepath.Join(root, "g"), nil, 0o600))
	if err := os.WriteFile(filepath.Join(root, "large"), make([]byte, 16<<20), 0o600); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("write of 16 MiB: got %v, want ENOSPC", err)
	}
	if err := os.WriteFile(filepath.Join(root, "sub dir/f"), nil, 0o600); !errors.Is(err, unix.EROFS) {
		t.Errorf("write to what is mounted in it: got %v, want EROFS", err)
	}
	if b, err := os.ReadFile(filepath.Join(src, "f")); err != nil || string(b) != "old" {
		t.Errorf("the host's file is %q (%v)", b, err)
	}
	for _, name := range []string{"d/mount point", "g", "large"} {
		if _, err := os.Lstat(filepath.Join(src, name)); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s is in the host's directory (%v)", name, err)
		}
	}
	must(t, d.ProtectRootfs("c"))
	if err := os.WriteFile(filepath.Join(root, "late"), nil, 0o600); !errors.Is(err, unix.EROFS) {
		t.Errorf("write to a protected rootfs: got %v, want EROFS", err)
	}
	must(t, d.Remove("c"))
	if diff := cmp.Diff(before, mounts(t, "/")); diff != "" {
		t.Errorf("mounts (-before +after):\n%s", diff)
	}
	if n := openFDs(t); n != fds {
		t.Errorf("%d files are open, %d were before", n, fds)
	}
}

// TestReadonlyDirectoryThatOverlayRefuses is shared all the same, as one that
// is protected later: here, overlays are on one another as deep as can be.
func TestReadonlyDirectoryThatOverlayRefuses(t *testing.T) {
	d := prepare(t)
	top := t.TempDir()
	must(t, os.WriteFile(filepath.Join(top, "f"), []byte("text"), 0o600))
	dir := top
	for {
		at := t.TempDir()
		_, err := d.onHost(func() (int, error) {
			return 0, unix.Mount("overlay", at, "overlay", 0, "lowerdir="+dir+":"+t.TempDir())
		})
		if errors.Is(err, unix.EINVAL) {
			break
		}
		must(t, err)
		t.Cleanup(func() {
			_, err := d.onHost(func() (int, error) { return 0, unix.Unmount(at, unix.MNT_DETACH) })
			must(t, err)
		})
		dir = at
	}
	for name, path := range map[string]string{"deep": dir, "root": "/"} {
		must(t, d.AddRootfs(t.Context(), name, path, nil, true))
		must(t, d.ProtectRootfs(name))
	}
	if b, err := os.ReadFile(filepath.Join(d.Path(), "deep/rootfs/f")); err != nil || string(b) != "text" {
		t.Errorf("file of the refused directory: %q, %v", b, err)
	}
}

func TestParseOverlay(t *testing.T) {
	for name, tc := range map[string]struct {
		options []string
		want    overlay
		ok      bool
	}{
		"writable":      {[]string{"lowerdir=/a:/b", "upperdir=/u", "workdir=/w", "index=off"}, overlay{lower: []string{"/a", "/b"}, upper: "/u", work: "/w", other: []string{"index=off"}}, true},
		"read-only":     {[]string{"lowerdir=/a", "ro"}, overlay{lower: []string{"/a"}, readonly: true}, true},
		"escaped colon": {[]string{`lowerdir=/a\:b:/c`}, overlay{lower: []string{"/a:b", "/c"}}, true},
		"no lower":      {[]string{"upperdir=/u", "workdir=/w"}, overlay{}, false},
		"no work":       {[]string{"lowerdir=/a", "upperdir=/u"}, overlay{}, false},
		"relative":      {[]string{"lowerdir=a"}, overlay{}, false},
		"data-only":     {[]string{"lowerdir=/a::/b"}, overlay{}, false},
		"unknown":       {[]string{"lowerdir=/a", "suid"}, overlay{}, false},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := parseOverlay(tc.options)
			if (err == nil) != tc.ok {
				t.Fatalf("error %v, want one: %t", err, !tc.ok)
			}
			if err == nil {
				if diff := cmp.Diff(tc.want, got, cmp.AllowUnexported(overlay{})); diff != "" {
					t.Errorf("(-want +got):\n%s", diff)
				}
			}
		})
	}
}

// mounts are the mount points at and below path.
func mounts(t *testing.T, path string) []string {
	t.Helper()
	b, err := os.ReadFile("/proc/self/mountinfo")
	must(t, err)
	var out []string
	for l := range strings.Lines(string(b)) {
		if f := strings.Fields(l); len(f) > 4 && strings.HasPrefix(f[4]+"/", strings.TrimSuffix(path, "/")+"/") {
			out = append(out, f[4])
		}
	}
	return out
}

func readlink(t *testing.T, path string) string {
	t.Helper()
	s, err := os.Readlink(path)
	must(t, err)
	return s
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// TestFailuresLeaveNothing: after a call that failed at any of its steps and
// Remove, mounts and files are as before.
func TestFailuresLeaveNothing(t *testing.T) {
	d := prepare(t)
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	must(t, os.WriteFile(file, nil, 0o600))
	before, fds := mounts(t, "/"), openFDs(t)
	ctx := t.Context()
	for name, f := range map[string]func() error{
		"source is absent":   func() error { _, err := d.AddVolume(ctx, "c", spec.Bind{Source: file + "-absent"}); return err },
		"source is a device": func() error { _, err := d.AddVolume(ctx, "c", spec.Bind{Source: "/dev/null"}); return err },
		"rootfs is a file":   func() error { return d.AddRootfs(ctx, "c", file, nil, false) },
		"id is too long":     func() error { return d.AddRootfs(ctx, strings.Repeat("x", 300), dir, nil, false) },
		"mount point is taken": func() error {
			return errors.Join(d.AddRootfs(ctx, "c", dir, nil, false), d.AddRootfs(ctx, "c", dir, nil, false))
		},
		"layer is absent": func() error {
			return d.AddRootfs(ctx, "c", "", []Mount{{Type: "overlay", Options: []string{"lowerdir=" + dir + ":/absent"}}}, false)
		},
		"kernel refuses overlay": func() error {
			return d.AddRootfs(ctx, "c", "", []Mount{{Type: "overlay", Options: []string{"lowerdir=" + dir, "xino=odd"}}}, false)
		},
		"nothing to protect": func() error { return d.ProtectRootfs("c") },
		"option of a bind is odd": func() error {
			return d.AddRootfs(ctx, "c", "", []Mount{{Type: "bind", Source: dir, Options: []string{"odd"}}}, false)
		},
	} {
		if err := f(); err == nil {
			t.Errorf("%s: no error", name)
		}
		must(t, d.Remove("c"))
		if diff := cmp.Diff(before, mounts(t, "/")); diff != "" {
			t.Errorf("%s: mounts (-before +after):\n%s", name, diff)
		}
		if got := openFDs(t); got != fds {
			t.Errorf("%s: %d files are open, %d were before", name, got, fds)
		}
		if names, err := os.ReadDir(d.Path()); err != nil || len(names) != 0 {
			t.Errorf("%s: the shared directory has %v (%v)", name, names, err)
		}
	}
}
