package fileserver

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestNothingLeavesTheDirectory tries each operation on paths that lead out of it.
func TestNothingLeavesTheDirectory(t *testing.T) {
	p := serving(t)
	outside := t.TempDir()
	if err := errors.Join(
		os.WriteFile(filepath.Join(outside, "secret"), []byte("of the host"), 0o600),
		os.Symlink(outside, p.path("absolute")), os.Symlink("../"+filepath.Base(outside), p.path("relative")),
		os.Mkdir(p.path("inside"), 0o755), os.Symlink("inside", p.path("loop")),
	); err != nil {
		t.Fatal(err)
	}
	p.write("inside/secret", "")
	p.write("mine", "")
	zero := uint64(0)
	for _, dir := range []string{"/absolute", "/relative", "/loop", "/..", "/inside/../..", "/../" + filepath.Base(outside), "/proc/self/root"} {
		file := dir + "/secret"
		for name, request := range map[operation][]any{
			opLstat: {file}, opStatfs: {file}, opRemove: {file}, opReadlink: {file, 100},
			opChmod: {file, 0o777}, opChown: {file, 1, 1}, opTruncate: {file, zero},
			opUtime: {file, zero, zero, zero, zero}, opMkdir: {0, 0, dir + "/new", 0o755},
			opMknod: {0, 0, dir + "/new", unix.S_IFREG, zero}, opSymlink: {0, 0, "x", dir + "/new"},
			opLink: {file, "/new"}, opRename: {file, "/new"}, opGetxattr: {100, file, "user.x"},
			opListxattr: {100, file}, opSetxattr: {file, "user.x", "y", 1, 0}, opRemovexattr: {file, "user.x"},
		} {
			if b, err := p.ask(name, request...); err == nil {
				t.Errorf("request %d of %s: %q", name, file, b)
			}
		}
		for _, request := range []operation{opLink, opRename} {
			if _, err := p.ask(request, "/mine", dir+"/new"); err == nil {
				t.Errorf("request %d to %s succeeded", request, dir)
			}
		}
		if _, err := p.open(opOpen, file, unix.O_RDONLY); err == nil {
			t.Errorf("%s was opened", file)
		}
		if _, err := p.open(opCreate, dir+"/new", unix.O_RDWR, 0o600, 0, 0); err == nil {
			t.Errorf("a file was created in %s", dir)
		}
	}
	// The links themselves are files like others.
	if st := p.stat("/absolute"); st.Mode&unix.S_IFMT != unix.S_IFLNK {
		t.Errorf("mode %o, want a link", st.Mode)
	}
	p.must(opChown, "/absolute", 7, 7)
	p.must(opUtime, "/absolute", uint64(5), zero, uint64(5), zero)
	names, err := os.ReadDir(outside)
	if err != nil || len(names) != 1 {
		t.Errorf("outside are %v, %v", names, err)
	}
	if info, err := os.Stat(outside); err != nil || info.ModTime().Unix() == 5 {
		t.Errorf("what the link leads to was changed: %v", err)
	}
}

// TestParentsThatChange has a directory become a link out, and a directory again,
// while files are made in it.
func TestParentsThatChange(t *testing.T) {
	p := serving(t)
	outside := t.TempDir()
	if err := errors.Join(
		os.WriteFile(filepath.Join(outside, "file"), []byte("of the host"), 0o600),
		os.Mkdir(p.path("dir"), 0o755), os.WriteFile(p.path("dir/file"), nil, 0o600), os.Symlink(outside, p.path("link")),
	); err != nil {
		t.Fatal(err)
	}
	stop, stopped := make(chan struct{}), make(chan error)
	go func() { // ends with stop, and is waited for
		for {
			select {
			case <-stop:
				stopped <- nil
				return
			default:
			}
			if err := unix.Renameat2(unix.AT_FDCWD, p.path("dir"), unix.AT_FDCWD, p.path("link"), unix.RENAME_EXCHANGE); err != nil {
				<-stop
				stopped <- err
				return
			}
		}
	}()
	for range 1000 {
		f, err := p.open(opOpen, "/dir/file", unix.O_RDONLY)
		if err == nil {
			if b, err := io.ReadAll(f); len(b) > 0 || err != nil {
				t.Fatalf("it has %q, %v", b, err)
			}
			_ = f.Close()
		}
		if f, err := p.open(opCreate, "/dir/new", unix.O_RDWR, 0o600, 0, 0); err == nil {
			_ = f.Close()
		}
		_, _ = p.ask(opMkdir, 0, 0, "/dir/made", 0o755)
		_, _ = p.ask(opChmod, "/dir/file", 0o644)
		_, _ = p.ask(opRemove, "/dir/made")
	}
	close(stop)
	if err := <-stopped; err != nil {
		t.Fatal(err)
	}
	names, err := os.ReadDir(outside)
	if err != nil || len(names) != 1 {
		t.Errorf("outside are %v, %v", names, err)
	}
	if info, err := os.Stat(filepath.Join(outside, "file")); err != nil || info.Mode() != 0o600 {
		t.Errorf("the host's file: %v, %v", info.Mode(), err)
	}
}

func TestMoveAndRemove(t *testing.T) {
	p := serving(t)
	p.must(opMkdir, 0, 0, "/a", 0o755)
	p.must(opMkdir, 0, 0, "/b", 0o755)
	p.write("a/file", "content")
	number := p.stat("/a/file").Ino
	p.must(opRename, "/a/file", "/b/other")
	if got := p.stat("/b/other").Ino; got != number {
		t.Errorf("its number is %d, was %d", got, number)
	}
	p.write("a/file", "")
	p.must(opRename, "/b/other", "/a/file")
	if got := p.stat("/a/file").Size; got != 7 {
		t.Errorf("%d bytes, want those of the file that was moved over another", got)
	}
	for _, test := range []struct {
		op   operation
		args []any
		want unix.Errno
	}{
		{opRemove, []any{"/a"}, unix.ENOTEMPTY},
		{opRemove, []any{"/none"}, unix.ENOENT},
		{opRemove, []any{"/"}, unix.EBUSY},
		{opRename, []any{"/", "/x"}, unix.EBUSY},
		{opRename, []any{"/a", "/a/b"}, unix.EINVAL},
		{opRename, []any{"/a/file", "/b"}, unix.EISDIR},
		{opMkdir, []any{0, 0, "/a", 0o755}, unix.EEXIST},
		{opLink, []any{"/a/file", "/a/file"}, unix.EEXIST},
		{opLink, []any{"/a", "/c"}, unix.EPERM},
		{opTruncate, []any{"/a", uint64(0)}, unix.EISDIR},
		{opReadlink, []any{"/a/file", 100}, unix.ENOENT},
		{opGetversion, []any{"/a"}, unix.ENOTTY},
		{opLstat, []any{"/" + strings.Repeat("n", 256)}, unix.ENAMETOOLONG},
		{opLstat, []any{"/a\x00b"}, unix.EINVAL},
	} {
		if _, err := p.ask(test.op, test.args...); !errors.Is(err, test.want) {
			t.Errorf("request %d %q: %v, want %v", test.op, test.args, err, test.want)
		}
	}
	p.must(opRemove, "/a/file")
	p.must(opRemove, "/a")
	if _, err := os.Lstat(p.path("a")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the directory is there: %v", err)
	}
}

func TestAttributes(t *testing.T) {
	p := serving(t)
	p.write("file", "0123456789")
	p.must(opMknod, 0, 0, "/pipe", unix.S_IFIFO|0o600, uint64(0))
	p.must(opMknod, 0, 0, "/device", unix.S_IFCHR|0o600, unix.Mkdev(1, 3))
	for _, name := range []string{"/file", "/pipe", "/device"} {
		p.must(opChown, name, 100, -1)
		p.must(opChown, name, -1, 200)
		p.must(opChmod, name, 0o6755)
		if st := p.stat(name); st.Uid != 100 || st.Gid != 200 || st.Mode&0o7777 != 0o6755 {
			t.Errorf("%s: %d:%d %o", name, st.Uid, st.Gid, st.Mode)
		}
	}
	p.must(opTruncate, "/file", uint64(1<<40))
	if st := p.stat("/file"); st.Size != 1<<40 {
		t.Errorf("%d bytes after truncate", st.Size)
	}
	if _, err := p.ask(opTruncate, "/file", uint64(1<<63)); !errors.Is(err, unix.EINVAL) {
		t.Errorf("truncate to a negative length: %v", err)
	}
	if _, err := p.ask(opTruncate, "/pipe", uint64(0)); !errors.Is(err, unix.EINVAL) {
		t.Errorf("truncate of a pipe: %v", err)
	}
	b := p.must(opStatfs, "/file")
	var want unix.Statfs_t
	if err := unix.Statfs(p.dir, &want); err != nil {
		t.Fatal(err)
	}
	if got := binary.NativeEndian.Uint64(b[16:]); len(b) != 11*8 || got != want.Blocks {
		t.Errorf("%d bytes, %d blocks, want %d", len(b), got, want.Blocks)
	}
}

// TestTimes: what QEMU sends is not what the guest has asked for.
func TestTimes(t *testing.T) {
	const now, omit, old = unix.UTIME_NOW, unix.UTIME_OMIT, 1_000_000_000
	p := serving(t)
	for _, test := range []struct {
		name                string
		sec, nsec, wrote    uint64
		access, modify      int64 // 0: is as it was, 1: is of this test
		accessNsec, modNsec int64
	}{
		{"both", 1_200_000_000, 5, 1_200_000_000, 1_200_000_000, 1_200_000_000, 5, 5},
		{"modification, and what was in memory", 909814936, 5, 1_200_000_000, 0, 1_200_000_000, 0, 5},
		{"now", 909814936, now, 139982475038192, 1, 1, 0, 0},
		{"access only", 909814936, omit, 139982475038192, 1, 0, 0, 0},
	} {
		t.Run(test.name, func(t *testing.T) {
			p.write("file", "")
			past := []unix.Timespec{{Sec: old}, {Sec: old}}
			if err := unix.UtimesNanoAt(unix.AT_FDCWD, p.path("file"), past, 0); err != nil {
				t.Fatal(err)
			}
			p.must(opUtime, "/file", test.sec, test.nsec, test.wrote, test.nsec)
			st := p.stat("/file")
			for _, got := range []struct {
				name     string
				is       unix.Timespec
				want, ns int64
			}{{"access", st.Atim, test.access, test.accessNsec}, {"modification", st.Mtim, test.modify, test.modNsec}} {
				switch {
				case got.want == 0 && got.is != unix.Timespec{Sec: old},
					got.want == 1 && got.is.Sec < 1_700_000_000,
					got.want > 1 && got.is != unix.Timespec{Sec: got.want, Nsec: got.ns}:
					t.Errorf("%s is %v", got.name, got.is)
				}
			}
		})
	}
}

func TestExtendedAttributes(t *testing.T) {
	p := serving(t)
	p.write("file", "")
	p.must(opSymlink, 0, 0, "file", "/link")
	value := strings.Repeat("v", 1000) + "\x00"
	p.must(opSetxattr, "/file", "user.name", value, len(value), 0)
	if got := p.must(opGetxattr, 0, "/file", "user.name"); !bytes.Equal(got, number(1001)) {
		t.Errorf("its length is %v", got)
	}
	if got := p.must(opGetxattr, 4096, "/file", "user.name"); !bytes.Equal(got, text([]byte(value))) {
		t.Errorf("its value is %q", got)
	}
	// A capability of a program, and a list of who may do what.
	capability := "\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"
	p.must(opSetxattr, "/file", "security.capability", capability, len(capability), 0)
	if got := string(p.must(opListxattr, 4096, "/file")[2:]); !slices.Contains(strings.Split(got, "\x00"), "user.name") {
		t.Errorf("the list is %q", got)
	}
	for _, test := range []struct {
		op   operation
		args []any
		want unix.Errno
	}{
		{opGetxattr, []any{10, "/file", "user.name"}, unix.ERANGE},
		{opGetxattr, []any{10, "/file", "user.none"}, unix.ENODATA},
		{opSetxattr, []any{"/file", "user.name", "x", 1, unix.XATTR_CREATE}, unix.EEXIST},
		{opSetxattr, []any{"/link", "user.name", "x", 1, 0}, unix.EPERM},
		// Of overlayfs and of the host's security modules.
		{opSetxattr, []any{"/file", "trusted.overlay.opaque", "y", 1, 0}, unix.EPERM},
		{opSetxattr, []any{"/file", "security.other", "y", 1, 0}, unix.EPERM},
	} {
		if _, err := p.ask(test.op, test.args...); !errors.Is(err, test.want) {
			t.Errorf("request %d %q: %v, want %v", test.op, test.args, err, test.want)
		}
	}
	if err := unix.Setxattr(p.path("file"), "trusted.overlay.opaque", []byte("y"), 0); err != nil {
		t.Fatal(err)
	}
	if _, err := p.ask(opGetxattr, 10, "/file", "trusted.overlay.opaque"); !errors.Is(err, unix.ENODATA) {
		t.Errorf("a trusted attribute is read: %v", err)
	}
	p.must(opRemovexattr, "/file", "user.name")
	if _, err := p.ask(opGetxattr, 0, "/file", "user.name"); !errors.Is(err, unix.ENODATA) {
		t.Errorf("it is there after its removal: %v", err)
	}
}

// mount mounts a tmpfs in the directory.
func (p *peer) mount(name string, flags uintptr) {
	p.t.Helper()
	if err := os.MkdirAll(p.path(name), 0o755); err != nil {
		p.t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", p.path(name), "tmpfs", flags, "mode=755"); err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(func() { _ = unix.Unmount(p.path(name), unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW) })
}

// TestMounts: what is mounted later is there, read-only mounts are, and files of
// two file systems are two.
func TestMounts(t *testing.T) {
	p := serving(t)
	p.mount("one", 0)
	p.mount("two", 0)
	p.write("one/file", "")
	p.write("two/file", "")
	p.must(opLink, "/one/file", "/one/hard")
	one, two, hard := p.stat("/one/file"), p.stat("/two/file"), p.stat("/one/hard")
	if one.Ino == two.Ino || one.Ino != hard.Ino || one.Dev != two.Dev || one.Dev != p.stat("/").Dev {
		t.Errorf("numbers %d and %d, of another name of the first %d; devices %d, %d", one.Ino, two.Ino, hard.Ino, one.Dev, two.Dev)
	}
	if again := p.stat("/one/file"); again.Ino != one.Ino {
		t.Errorf("its number is %d, was %d", again.Ino, one.Ino)
	}
	if _, err := p.ask(opLink, "/one/file", "/two/hard"); !errors.Is(err, unix.EXDEV) {
		t.Errorf("a link to another file system: %v", err)
	}
	p.mount("three", unix.MS_RDONLY)
	for op, args := range map[operation][]any{
		opMkdir: {0, 0, "/three/x", 0o755}, opChmod: {"/three", 0o700}, opRename: {"/three/x", "/three/y"},
	} {
		if _, err := p.ask(op, args...); !errors.Is(err, unix.EROFS) && !errors.Is(err, unix.ENOENT) {
			t.Errorf("request %d in a read-only mount: %v", op, err)
		}
	}
	if _, err := p.open(opCreate, "/three/x", unix.O_RDWR, 0o600, 0, 0); !errors.Is(err, unix.EROFS) {
		t.Errorf("create in a read-only mount: %v", err)
	}
}

func TestNumbers(t *testing.T) {
	n := newNumbers()
	seen := make(map[uint64]bool)
	for _, ino := range []uint64{1, 2, 1<<48 - 1, 1 << 48, 1<<64 - 1} {
		for dev := range uint64(3) {
			got := n.of(dev, ino)
			if seen[got] || got != n.of(dev, ino) {
				t.Errorf("inode %d of device %d has number %d, which is that of another, or does not stay", ino, dev, got)
			}
			seen[got] = true
		}
	}
	for dev := range uint64(maxDevices + 10) {
		n.of(dev, 1)
	}
	if len(n.devices) > maxDevices {
		t.Errorf("%d devices are kept", len(n.devices))
	}
	if n.of(maxDevices+1, 1) == n.of(maxDevices+2, 1) {
		t.Error("files of two devices have one number")
	}
}

// TestDeepAndWide: paths longer than the kernel's, and a large directory.
func TestDeepAndWide(t *testing.T) {
	p := serving(t)
	path := ""
	for range 25 {
		path += "/" + strings.Repeat("d", 200)
		p.must(opMkdir, 0, 0, path, 0o755)
	}
	f, err := p.open(opCreate, path+"/file", unix.O_RDWR, 0o600, 0, 0)
	if err != nil {
		t.Fatal(err)
	}
	_ = f.Close()
	if st := p.stat(path + "/file"); st.Mode != unix.S_IFREG|0o600 {
		t.Errorf("mode %o", st.Mode)
	}
	if _, err := p.ask(opLstat, "/"+strings.Repeat("n", 5000)); !errors.Is(err, unix.ENAMETOOLONG) {
		t.Errorf("a long name: %v", err)
	}
	const many = 1000
	p.must(opMkdir, 0, 0, "/many", 0o755)
	for i := range many {
		p.must(opMknod, 0, 0, "/many/"+strings.Repeat("n", i%200)+string(rune('a'+i%26))+strings.Repeat("m", i/200), unix.S_IFREG|0o600, uint64(0))
	}
	if f, err = p.open(opOpen, "/many", unix.O_DIRECTORY); err != nil {
		t.Fatal(err)
	}
	if names, err := f.Readdirnames(-1); err != nil || len(names) != many {
		t.Errorf("it has %d names, %v", len(names), err)
	}
}

// TestNothingStaysOpen: neither what works nor what fails keeps a descriptor.
func TestNothingStaysOpen(t *testing.T) {
	p := serving(t)
	p.write("file", "")
	count := func() int {
		names, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		return len(names)
	}
	deep := strings.Repeat("/"+strings.Repeat("d", 200), 30)
	before := count()
	for range 50 {
		for _, name := range []string{"/file", "/none", "/file/x", "/", deep, deep + "/x"} {
			if f, err := p.open(opOpen, name, unix.O_RDONLY); err == nil {
				_ = f.Close()
			}
			_, _ = p.ask(opLstat, name)
			_, _ = p.ask(opMkdir, 0, 0, name+"/y", 0o755)
			_, _ = p.ask(opRename, name, "/file/y")
			_, _ = p.ask(opGetxattr, 10, name, "user.x")
		}
	}
	if after := count(); after != before {
		t.Errorf("%d descriptors are open, %d were", after, before)
	}
}
