package layer

import (
	"archive/tar"
	"bytes"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/seed-efd44b36/kata/internal/image/layer/layertest"
)

func unpackAt(t testing.TB, dir string, lowers []string, entries ...*tar.Header) (Info, error) {
	t.Helper()
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return Unpack(t.Context(), dir, bytes.NewReader(layertest.Tar(t, entries...)), lowers, Limits{})
}

func lstat(t testing.TB, p string) unix.Stat_t {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Lstat(p, &st); err != nil {
		t.Fatalf("lstat %s: %v", p, err)
	}
	return st
}

func getXattr(p, name string) string {
	buf := make([]byte, 256)
	n, err := unix.Lgetxattr(p, name, buf)
	if err != nil {
		return "error: " + err.Error()
	}
	return string(buf[:n])
}

func TestUnpackKeepsAttributes(t *testing.T) {
	layertest.NeedRoot(t)
	dir := filepath.Join(t.TempDir(), "fs")
	capability := "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"
	done, err := unpackAt(t, dir, nil,
		layertest.Entry(tar.TypeDir, "./", layertest.Mode(0o1777), layertest.Owner(3, 4)),
		layertest.Entry(tar.TypeDir, "bin/", layertest.Mode(0o2755), layertest.Owner(1, 2)),
		layertest.Entry(tar.TypeReg, "bin/su", layertest.Mode(0o4755), layertest.Owner(7, 8), layertest.Xattr("security.capability", capability)),
		layertest.Entry(tar.TypeReg, "bin/user", layertest.Owner(4294967294, 0), layertest.Xattr("user.note", "hello")),
		layertest.Entry(tar.TypeLink, "bin/hard", layertest.Link("bin/su")),
		layertest.Entry(tar.TypeSymlink, "bin/soft", layertest.Link("/etc/passwd"), layertest.Owner(5, 6)),
		layertest.Entry(tar.TypeLink, "bin/hardsoft", layertest.Link("bin/soft")),
		layertest.Entry(tar.TypeChar, "null", layertest.Device(1, 3), layertest.Mode(0o666)),
		layertest.Entry(tar.TypeBlock, "disk", layertest.Device(8, 300), layertest.Mode(0o640)),
		layertest.Entry(tar.TypeFifo, "fifo", layertest.Mode(0o600)),
		layertest.Entry(tar.TypeReg, "bin/label", layertest.Xattr("security.selinux", "x")),
	)
	if err != nil {
		t.Fatal(err)
	}
	if done.Implied || done.Dropped != 1 || done.Entries != 11 {
		t.Errorf("unpacked = %+v, want nothing implied, 1 dropped attribute, 11 entries", done)
	}
	for _, want := range []struct {
		name     string
		mode     uint32
		uid, gid uint32
		dev      uint64
		nlink    uint64
	}{
		{name: ".", mode: unix.S_IFDIR | 0o1777, uid: 3, gid: 4},
		{name: "bin", mode: unix.S_IFDIR | 0o2755, uid: 1, gid: 2},
		{name: "bin/su", mode: unix.S_IFREG | 0o4755, uid: 7, gid: 8, nlink: 2},
		{name: "bin/hard", mode: unix.S_IFREG | 0o4755, uid: 7, gid: 8, nlink: 2},
		{name: "bin/user", mode: unix.S_IFREG | 0o644, uid: 4294967294},
		{name: "bin/soft", mode: unix.S_IFLNK | 0o777, uid: 5, gid: 6, nlink: 2},
		{name: "bin/hardsoft", mode: unix.S_IFLNK | 0o777, uid: 5, gid: 6, nlink: 2},
		{name: "null", mode: unix.S_IFCHR | 0o666, dev: unix.Mkdev(1, 3)},
		{name: "disk", mode: unix.S_IFBLK | 0o640, dev: unix.Mkdev(8, 300)},
		{name: "fifo", mode: unix.S_IFIFO | 0o600},
	} {
		st := lstat(t, filepath.Join(dir, want.name))
		if st.Mode != want.mode || st.Uid != want.uid || st.Gid != want.gid || (want.dev != 0 && st.Rdev != want.dev) || (want.nlink != 0 && st.Nlink != want.nlink) {
			t.Errorf("%s: mode %o owner %d:%d dev %x links %d, want %+v", want.name, st.Mode, st.Uid, st.Gid, st.Rdev, st.Nlink, want)
		}
		if got := modTime(&st); !got.Equal(layertest.When()) {
			t.Errorf("%s: time %v, want %v", want.name, got, layertest.When())
		}
	}
	if got := getXattr(filepath.Join(dir, "bin/su"), "security.capability"); got != capability {
		t.Errorf("capability = %q, want %q", got, capability)
	}
	if got := getXattr(filepath.Join(dir, "bin/user"), "user.note"); got != "hello" {
		t.Errorf("user.note = %q", got)
	}
}

func TestUnpackWhiteouts(t *testing.T) {
	layertest.NeedRoot(t)
	dir := filepath.Join(t.TempDir(), "fs")
	_, err := unpackAt(t, dir, nil,
		layertest.Entry(tar.TypeDir, "etc/"),
		layertest.Entry(tar.TypeReg, "etc/.wh.gone"),
		layertest.Entry(tar.TypeDir, "opq/"),
		layertest.Entry(tar.TypeReg, "opq/new"),
		layertest.Entry(tar.TypeReg, "opq/.wh..wh..opq"),
		layertest.Entry(tar.TypeReg, ".wh.file"), layertest.Entry(tar.TypeReg, "file"),
		layertest.Entry(tar.TypeReg, ".wh.dir"), layertest.Entry(tar.TypeDir, "dir"), layertest.Entry(tar.TypeReg, "dir/x"),
		layertest.Entry(tar.TypeDir, "late"), layertest.Entry(tar.TypeReg, "late/x"), layertest.Entry(tar.TypeReg, ".wh.late"),
		layertest.Entry(tar.TypeReg, ".wh..wh.plnk"),
	)
	if err != nil {
		t.Fatal(err)
	}
	st := lstat(t, filepath.Join(dir, "etc/gone"))
	if !isWhiteout(&st) {
		t.Errorf("etc/gone: mode %o, want a whiteout", st.Mode)
	}
	for _, name := range []string{"opq", "dir", "late"} {
		if got := getXattr(filepath.Join(dir, name), opaqueXattr); got != "y" {
			t.Errorf("%s: opaque = %q, want y", name, got)
		}
	}
	if got, err := os.ReadFile(filepath.Join(dir, "file")); err != nil || string(got) != "file" {
		t.Errorf("file = %q, %v", got, err)
	}
	if _, err := os.Lstat(filepath.Join(dir, ".wh..wh.plnk")); err == nil {
		t.Error("aufs metadata was unpacked")
	}
}

// TestUnpackHostile gives the unpacker what tries to get out of the layer, or
// to use up the machine. Beside the layer is a file that must stay as it is.
func TestUnpackHostile(t *testing.T) {
	layertest.NeedRoot(t)
	tests := []struct {
		name    string
		entries []*tar.Header
		limits  Limits
		wantErr string // "": unpacks, without touching what is outside
	}{
		{name: "dot dot", entries: []*tar.Header{layertest.Entry(tar.TypeReg, "../victim")}, wantErr: `".."`},
		{name: "dot dot inside", entries: []*tar.Header{layertest.Entry(tar.TypeReg, "a/../../victim")}, wantErr: `".."`},
		{name: "absolute is taken as relative", entries: []*tar.Header{layertest.Entry(tar.TypeReg, "/victim")}},
		{name: "symlink parent", entries: []*tar.Header{layertest.Entry(tar.TypeSymlink, "out", layertest.Link("..")), layertest.Entry(tar.TypeReg, "out/victim")}},
		{name: "absolute symlink parent", entries: []*tar.Header{layertest.Entry(tar.TypeSymlink, "out", layertest.Link("OUTSIDE")), layertest.Entry(tar.TypeReg, "out/victim")}},
		{name: "chained symlinks", entries: []*tar.Header{
			layertest.Entry(tar.TypeSymlink, "a", layertest.Link("..")), layertest.Entry(tar.TypeSymlink, "b", layertest.Link("a/..")), layertest.Entry(tar.TypeReg, "b/victim"),
		}},
		{name: "symlink is replaced, not written through", entries: []*tar.Header{layertest.Entry(tar.TypeSymlink, "f", layertest.Link("../victim")), layertest.Entry(tar.TypeReg, "f")}},
		{name: "hard link out", entries: []*tar.Header{layertest.Entry(tar.TypeLink, "f", layertest.Link("../victim"))}, wantErr: `".."`},
		{name: "hard link to absolute path", entries: []*tar.Header{layertest.Entry(tar.TypeLink, "f", layertest.Link("OUTSIDE/victim"))}, wantErr: "file does not exist"},
		{name: "hard link through symlink", entries: []*tar.Header{
			layertest.Entry(tar.TypeSymlink, "s", layertest.Link("..")), layertest.Entry(tar.TypeLink, "f", layertest.Link("s/victim")), layertest.Entry(tar.TypeReg, "f"),
		}, wantErr: "file does not exist"},
		{name: "hard link to symlink, then written", entries: []*tar.Header{
			layertest.Entry(tar.TypeSymlink, "s", layertest.Link("../victim")), layertest.Entry(tar.TypeLink, "f", layertest.Link("s")), layertest.Entry(tar.TypeReg, "f"),
		}},
		{name: "hard link to directory", entries: []*tar.Header{layertest.Entry(tar.TypeDir, "d"), layertest.Entry(tar.TypeLink, "f", layertest.Link("d"))}, wantErr: "can be linked"},
		{name: "hard link to root", entries: []*tar.Header{layertest.Entry(tar.TypeLink, "f", layertest.Link("/"))}, wantErr: "root"},
		{name: "hard link to whiteout", entries: []*tar.Header{layertest.Entry(tar.TypeReg, ".wh.x"), layertest.Entry(tar.TypeLink, "f", layertest.Link("x"))}, wantErr: "can be linked"},
		{name: "hard link to itself", entries: []*tar.Header{layertest.Entry(tar.TypeReg, "f"), layertest.Entry(tar.TypeLink, "f", layertest.Link("f"))}},
		{name: "symlink loop", entries: []*tar.Header{layertest.Entry(tar.TypeSymlink, "a", layertest.Link("b")), layertest.Entry(tar.TypeSymlink, "b", layertest.Link("a")), layertest.Entry(tar.TypeReg, "a/f")}, wantErr: "too many levels"},
		{name: "proc magic link", entries: []*tar.Header{layertest.Entry(tar.TypeSymlink, "p", layertest.Link("/proc/self/root")), layertest.Entry(tar.TypeReg, "p/victim")}},
		{name: "whiteout of parent", entries: []*tar.Header{layertest.Entry(tar.TypeDir, "d"), layertest.Entry(tar.TypeReg, "d/.wh...")}, wantErr: "whiteout of no file"},
		{name: "whiteout of nothing", entries: []*tar.Header{layertest.Entry(tar.TypeReg, ".wh.")}, wantErr: "whiteout of no file"},
		{name: "whiteout through symlink", entries: []*tar.Header{layertest.Entry(tar.TypeSymlink, "s", layertest.Link("..")), layertest.Entry(tar.TypeReg, "s/.wh.victim")}},
		{name: "opaque through symlink", entries: []*tar.Header{layertest.Entry(tar.TypeSymlink, "s", layertest.Link("..")), layertest.Entry(tar.TypeReg, "s/.wh..wh..opq")}},
		{name: "directory over symlink", entries: []*tar.Header{layertest.Entry(tar.TypeSymlink, "s", layertest.Link("..")), layertest.Entry(tar.TypeDir, "s", layertest.Mode(0)), layertest.Entry(tar.TypeReg, "s/victim")}},
		{name: "file over full directory", entries: []*tar.Header{
			layertest.Entry(tar.TypeDir, "d"), layertest.Entry(tar.TypeSymlink, "d/s", layertest.Link("OUTSIDE")), layertest.Entry(tar.TypeReg, "d"),
		}},
		{name: "file as parent", entries: []*tar.Header{layertest.Entry(tar.TypeReg, "f"), layertest.Entry(tar.TypeReg, "f/g")}, wantErr: "not a directory"},
		{name: "directory replaced while in use", entries: []*tar.Header{
			layertest.Entry(tar.TypeDir, "d"), layertest.Entry(tar.TypeReg, "d/a"), layertest.Entry(tar.TypeSymlink, "d", layertest.Link("..")), layertest.Entry(tar.TypeReg, "d/victim"),
		}},
		{name: "overlay redirect", entries: []*tar.Header{layertest.Entry(tar.TypeDir, "d", layertest.Xattr("trusted.overlay.redirect", "/x"))}, wantErr: "overlayfs"},
		{name: "root is a file", entries: []*tar.Header{layertest.Entry(tar.TypeReg, "a/..//.")}, wantErr: `".."`},
		{name: "root is a symlink", entries: []*tar.Header{layertest.Entry(tar.TypeSymlink, ".", layertest.Link(".."))}, wantErr: "root of the layer"},
		{name: "unknown type", entries: []*tar.Header{layertest.Entry('Z', "f")}, wantErr: "unknown type"},
		{name: "device out of range", entries: []*tar.Header{layertest.Entry(tar.TypeChar, "c", layertest.Device(5000, 0))}, wantErr: "out of range"},
		{name: "owner out of range", entries: []*tar.Header{layertest.Entry(tar.TypeReg, "f", layertest.Owner(1<<32-1, 0))}, wantErr: "out of range"},
		{name: "long component", entries: []*tar.Header{layertest.Entry(tar.TypeReg, strings.Repeat("x", 256))}, wantErr: "too long"},
		{name: "long name", entries: []*tar.Header{layertest.Entry(tar.TypeReg, strings.Repeat("x/", 3000)+"f")}, wantErr: "longer"},
		{name: "empty symlink", entries: []*tar.Header{layertest.Entry(tar.TypeSymlink, "s", layertest.Link(""))}, wantErr: "symlink"},
		{name: "too many entries", limits: Limits{Entries: 2}, entries: []*tar.Header{layertest.Entry(tar.TypeDir, "a"), layertest.Entry(tar.TypeDir, "b"), layertest.Entry(tar.TypeDir, "c")}, wantErr: "more than 2 entries"},
		{name: "too long names", limits: Limits{NameBytes: 10}, entries: []*tar.Header{layertest.Entry(tar.TypeDir, "123456"), layertest.Entry(tar.TypeDir, "789012")}, wantErr: "longer than 10"},
		{name: "too much data", limits: Limits{Bytes: 1024}, entries: []*tar.Header{layertest.Entry(tar.TypeReg, "a")}, wantErr: "longer than the limit"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			top := t.TempDir()
			dir := filepath.Join(top, "fs")
			for _, f := range []string{"victim", "fs/keep"} {
				if err := os.MkdirAll(filepath.Dir(filepath.Join(top, f)), 0o755); err != nil {
					t.Fatal(err)
				}
			}
			if err := os.WriteFile(filepath.Join(top, "victim"), []byte("untouched"), 0o640); err != nil {
				t.Fatal(err)
			}
			for _, h := range tt.entries {
				h.Linkname = strings.Replace(h.Linkname, "OUTSIDE", top, 1)
			}
			before := lstat(t, filepath.Join(top, "victim"))
			topBefore := lstat(t, top)
			_, err := Unpack(t.Context(), dir, bytes.NewReader(layertest.Tar(t, tt.entries...)), nil, tt.limits)
			if tt.wantErr == "" && err != nil {
				t.Errorf("unpack: %v", err)
			}
			if tt.wantErr != "" && (err == nil || !strings.Contains(err.Error(), tt.wantErr)) {
				t.Errorf("unpack: error %v, want one with %q", err, tt.wantErr)
			}
			after := lstat(t, filepath.Join(top, "victim"))
			if data, _ := os.ReadFile(filepath.Join(top, "victim")); string(data) != "untouched" || before != after {
				t.Errorf("the file outside was changed: %q, %+v, was %+v", data, after, before)
			}
			if topAfter := lstat(t, top); topAfter.Mtim != topBefore.Mtim || topAfter.Mode != topBefore.Mode {
				t.Errorf("the directory outside was changed: %+v, was %+v", topAfter, topBefore)
			}
			if got := getXattr(top, opaqueXattr); got == "y" {
				t.Error("the directory outside was marked opaque")
			}
		})
	}
}

// TestUnpackCountsWhatItKeeps: the path of a directory, which has to be
// remembered, can be far longer than its name in the archive.
func TestUnpackCountsWhatItKeeps(t *testing.T) {
	layertest.NeedRoot(t)
	long := strings.Repeat(strings.Repeat("x", 99)+"/", 20)
	start := []*tar.Header{layertest.Entry(tar.TypeDir, long), layertest.Entry(tar.TypeSymlink, "s", layertest.Link(long))}
	below := t.TempDir()
	if err := os.MkdirAll(filepath.Join(below, long), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name    string
		entries []*tar.Header
		lowers  []string
		each    func(i int) *tar.Header
		ok      bool
	}{
		{name: "behind a link", entries: start, each: func(i int) *tar.Header { return layertest.Entry(tar.TypeDir, "s/"+strconv.Itoa(i)) }},
		{name: "the same again", entries: start, each: func(int) *tar.Header { return layertest.Entry(tar.TypeDir, "s/d") }, ok: true},
		{name: "implied", lowers: []string{below}, entries: []*tar.Header{layertest.Entry(tar.TypeReg, long+"f")}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			entries := slices.Clone(tt.entries)
			if tt.each != nil {
				for i := range 100 {
					entries = append(entries, tt.each(i))
				}
			}
			dir := t.TempDir()
			_, err := Unpack(t.Context(), dir, bytes.NewReader(layertest.Tar(t, entries...)), tt.lowers, Limits{NameBytes: 10_000})
			if tt.ok != (err == nil) || err != nil && !strings.Contains(err.Error(), "longer than 10000") {
				t.Errorf("unpack: error %v", err)
			}
		})
	}
}

// TestUnpackImplied has layers that name files but not their directories;
// these must be as the layers below have them.
func TestUnpackImplied(t *testing.T) {
	layertest.NeedRoot(t)
	top := t.TempDir()
	base := filepath.Join(top, "base")
	if _, err := unpackAt(t, base, nil,
		layertest.Entry(tar.TypeDir, "tmp", layertest.Mode(0o1777), layertest.Owner(9, 9)),
		layertest.Entry(tar.TypeDir, "usr"), layertest.Entry(tar.TypeDir, "usr/lib", layertest.Mode(0o711)),
		layertest.Entry(tar.TypeSymlink, "lib", layertest.Link("usr/lib")),
		layertest.Entry(tar.TypeSymlink, "abs", layertest.Link("/usr/lib")),
		layertest.Entry(tar.TypeReg, "usr/lib/libc", layertest.Mode(0o755), layertest.Owner(1, 1)),
		layertest.Entry(tar.TypeReg, "plain"),
	); err != nil {
		t.Fatal(err)
	}
	upper := filepath.Join(top, "upper")
	done, err := unpackAt(t, upper, []string{base},
		layertest.Entry(tar.TypeReg, "tmp/x"),
		layertest.Entry(tar.TypeReg, "lib/new"),
		layertest.Entry(tar.TypeReg, "abs/newer"),
		layertest.Entry(tar.TypeLink, "usr/lib/libc.so", layertest.Link("lib/libc")),
		layertest.Entry(tar.TypeReg, "plain/now-a-directory"),
	)
	if err != nil {
		t.Fatal(err)
	}
	if !done.Implied {
		t.Error("Implied = false, want true")
	}
	if st := lstat(t, filepath.Join(upper, "tmp")); st.Mode != unix.S_IFDIR|0o1777 || st.Uid != 9 || !modTime(&st).Equal(layertest.When()) {
		t.Errorf("tmp: mode %o, owner %d, time %v", st.Mode, st.Uid, modTime(&st))
	}
	if _, err := os.Lstat(filepath.Join(upper, "lib")); err == nil {
		t.Error("lib hides the symbolic link of the layer below")
	}
	for _, name := range []string{"usr/lib/new", "usr/lib/newer", "plain/now-a-directory"} {
		if _, err := os.Lstat(filepath.Join(upper, name)); err != nil {
			t.Error(err)
		}
	}
	if st := lstat(t, filepath.Join(upper, "usr/lib")); st.Mode != unix.S_IFDIR|0o711 {
		t.Errorf("usr/lib: mode %o, want 711", st.Mode)
	}
	if st := lstat(t, filepath.Join(upper, "usr/lib/libc.so")); st.Mode != unix.S_IFREG|0o755 || st.Uid != 1 || st.Nlink != 2 {
		t.Errorf("usr/lib/libc.so: mode %o owner %d links %d", st.Mode, st.Uid, st.Nlink)
	}
}

func FuzzUnpack(f *testing.F) {
	layertest.NeedRoot(f)
	f.Add(layertest.Tar(f, layertest.Entry(tar.TypeDir, "d/"), layertest.Entry(tar.TypeReg, "d/f"), layertest.Entry(tar.TypeSymlink, "s", layertest.Link("..")), layertest.Entry(tar.TypeReg, "s/victim")))
	f.Add(layertest.Tar(f, layertest.Entry(tar.TypeReg, "a"), layertest.Entry(tar.TypeLink, "b", layertest.Link("a")), layertest.Entry(tar.TypeReg, ".wh.a"), layertest.Entry(tar.TypeReg, ".wh..wh..opq")))
	f.Add(layertest.Tar(f, layertest.Entry(tar.TypeSymlink, "a", layertest.Link("b")), layertest.Entry(tar.TypeSymlink, "b", layertest.Link("/proc/self/root")), layertest.Entry(tar.TypeLink, "c", layertest.Link("b/etc/passwd"))))
	f.Add(layertest.Tar(f, layertest.Entry(tar.TypeFifo, "p"), layertest.Entry(tar.TypeReg, "p"), layertest.Entry(tar.TypeDir, "p"), layertest.Entry(tar.TypeReg, "p/x", layertest.Xattr("user.a", "b"))))
	f.Fuzz(func(t *testing.T, data []byte) {
		top := t.TempDir()
		dir, lower := filepath.Join(top, "fs"), filepath.Join(top, "lower")
		for _, d := range []string{dir, lower, filepath.Join(lower, "d")} {
			if err := os.Mkdir(d, 0o755); err != nil {
				t.Fatal(err)
			}
		}
		if err := os.Symlink("/", filepath.Join(lower, "l")); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(top, "victim"), []byte("untouched"), 0o600); err != nil {
			t.Fatal(err)
		}
		_, _ = Unpack(t.Context(), dir, bytes.NewReader(data), []string{lower}, Limits{Bytes: 1 << 20, Entries: 1000})
		var found []string
		err := fs.WalkDir(os.DirFS(top), ".", func(p string, _ fs.DirEntry, err error) error {
			if !strings.HasPrefix(p, "fs/") {
				found = append(found, p)
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		if got := strings.Join(found, " "); got != ". fs lower lower/d lower/l victim" {
			t.Fatalf("files outside of the layer: %s", got)
		}
		if data, _ := os.ReadFile(filepath.Join(top, "victim")); string(data) != "untouched" {
			t.Fatalf("the file outside was changed to %q", data)
		}
	})
}
