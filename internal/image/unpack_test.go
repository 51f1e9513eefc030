package image

import (
	"archive/tar"
	"bytes"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// needRoot skips a test that makes device nodes and trusted attributes.
func needRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: layers have owners, device nodes and trusted.* attributes")
	}
}

var when = time.Date(2020, 2, 3, 4, 5, 6, 7000, time.UTC)

// entry is a tar entry in short: the fields that are zero are filled in.
func entry(kind byte, name string, change ...func(*tar.Header)) *tar.Header {
	h := &tar.Header{Typeflag: kind, Name: name, Mode: 0o644, ModTime: when, Format: tar.FormatPAX, PAXRecords: map[string]string{}}
	if kind == tar.TypeDir {
		h.Mode = 0o755
	}
	for _, c := range change {
		c(h)
	}
	return h
}

func link(to string) func(*tar.Header) { return func(h *tar.Header) { h.Linkname = to } }
func mode(m int64) func(*tar.Header)   { return func(h *tar.Header) { h.Mode = m } }
func owner(u, g int) func(*tar.Header) { return func(h *tar.Header) { h.Uid, h.Gid = u, g } }

func xattr(name, value string) func(*tar.Header) {
	return func(h *tar.Header) { h.PAXRecords[xattrRecord+name] = value }
}

func device(major, minor int64) func(*tar.Header) {
	return func(h *tar.Header) { h.Devmajor, h.Devminor = major, minor }
}

// tarOf writes a tar stream; regular files contain their own name.
func tarOf(t testing.TB, entries ...*tar.Header) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, h := range entries {
		if h.Typeflag == tar.TypeReg && h.Size == 0 {
			h.Size = int64(len(h.Name))
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if h.Typeflag == tar.TypeReg {
			if _, err := io.WriteString(w, h.Name); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

func unpackAt(t testing.TB, dir string, lowers []string, entries ...*tar.Header) (unpacked, error) {
	t.Helper()
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return unpack(t.Context(), dir, bytes.NewReader(tarOf(t, entries...)), lowers, Limits{})
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
	needRoot(t)
	dir := filepath.Join(t.TempDir(), "fs")
	capability := "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"
	done, err := unpackAt(t, dir, nil,
		entry(tar.TypeDir, "./", mode(0o1777), owner(3, 4)),
		entry(tar.TypeDir, "bin/", mode(0o2755), owner(1, 2)),
		entry(tar.TypeReg, "bin/su", mode(0o4755), owner(7, 8), xattr("security.capability", capability)),
		entry(tar.TypeReg, "bin/user", owner(4294967294, 0), xattr("user.note", "hello")),
		entry(tar.TypeLink, "bin/hard", link("bin/su")),
		entry(tar.TypeSymlink, "bin/soft", link("/etc/passwd"), owner(5, 6)),
		entry(tar.TypeLink, "bin/hardsoft", link("bin/soft")),
		entry(tar.TypeChar, "null", device(1, 3), mode(0o666)),
		entry(tar.TypeBlock, "disk", device(8, 300), mode(0o640)),
		entry(tar.TypeFifo, "fifo", mode(0o600)),
		entry(tar.TypeReg, "bin/label", xattr("security.selinux", "x")),
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
		if got := modTime(&st); !got.Equal(when) {
			t.Errorf("%s: time %v, want %v", want.name, got, when)
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
	needRoot(t)
	dir := filepath.Join(t.TempDir(), "fs")
	_, err := unpackAt(t, dir, nil,
		entry(tar.TypeDir, "etc/"),
		entry(tar.TypeReg, "etc/.wh.gone"),
		entry(tar.TypeDir, "opq/"),
		entry(tar.TypeReg, "opq/new"),
		entry(tar.TypeReg, "opq/.wh..wh..opq"),
		entry(tar.TypeReg, ".wh.file"), entry(tar.TypeReg, "file"),
		entry(tar.TypeReg, ".wh.dir"), entry(tar.TypeDir, "dir"), entry(tar.TypeReg, "dir/x"),
		entry(tar.TypeDir, "late"), entry(tar.TypeReg, "late/x"), entry(tar.TypeReg, ".wh.late"),
		entry(tar.TypeReg, ".wh..wh.plnk"),
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
	needRoot(t)
	tests := []struct {
		name    string
		entries []*tar.Header
		limits  Limits
		wantErr string // "": unpacks, without touching what is outside
	}{
		{name: "dot dot", entries: []*tar.Header{entry(tar.TypeReg, "../victim")}, wantErr: `".."`},
		{name: "dot dot inside", entries: []*tar.Header{entry(tar.TypeReg, "a/../../victim")}, wantErr: `".."`},
		{name: "absolute is taken as relative", entries: []*tar.Header{entry(tar.TypeReg, "/victim")}},
		{name: "symlink parent", entries: []*tar.Header{entry(tar.TypeSymlink, "out", link("..")), entry(tar.TypeReg, "out/victim")}},
		{name: "absolute symlink parent", entries: []*tar.Header{entry(tar.TypeSymlink, "out", link("OUTSIDE")), entry(tar.TypeReg, "out/victim")}},
		{name: "chained symlinks", entries: []*tar.Header{
			entry(tar.TypeSymlink, "a", link("..")), entry(tar.TypeSymlink, "b", link("a/..")), entry(tar.TypeReg, "b/victim"),
		}},
		{name: "symlink is replaced, not written through", entries: []*tar.Header{entry(tar.TypeSymlink, "f", link("../victim")), entry(tar.TypeReg, "f")}},
		{name: "hard link out", entries: []*tar.Header{entry(tar.TypeLink, "f", link("../victim"))}, wantErr: `".."`},
		{name: "hard link to absolute path", entries: []*tar.Header{entry(tar.TypeLink, "f", link("OUTSIDE/victim"))}, wantErr: "file does not exist"},
		{name: "hard link through symlink", entries: []*tar.Header{
			entry(tar.TypeSymlink, "s", link("..")), entry(tar.TypeLink, "f", link("s/victim")), entry(tar.TypeReg, "f"),
		}, wantErr: "file does not exist"},
		{name: "hard link to symlink, then written", entries: []*tar.Header{
			entry(tar.TypeSymlink, "s", link("../victim")), entry(tar.TypeLink, "f", link("s")), entry(tar.TypeReg, "f"),
		}},
		{name: "hard link to directory", entries: []*tar.Header{entry(tar.TypeDir, "d"), entry(tar.TypeLink, "f", link("d"))}, wantErr: "can be linked"},
		{name: "hard link to root", entries: []*tar.Header{entry(tar.TypeLink, "f", link("/"))}, wantErr: "root"},
		{name: "hard link to whiteout", entries: []*tar.Header{entry(tar.TypeReg, ".wh.x"), entry(tar.TypeLink, "f", link("x"))}, wantErr: "can be linked"},
		{name: "hard link to itself", entries: []*tar.Header{entry(tar.TypeReg, "f"), entry(tar.TypeLink, "f", link("f"))}},
		{name: "symlink loop", entries: []*tar.Header{entry(tar.TypeSymlink, "a", link("b")), entry(tar.TypeSymlink, "b", link("a")), entry(tar.TypeReg, "a/f")}, wantErr: "too many levels"},
		{name: "proc magic link", entries: []*tar.Header{entry(tar.TypeSymlink, "p", link("/proc/self/root")), entry(tar.TypeReg, "p/victim")}},
		{name: "whiteout of parent", entries: []*tar.Header{entry(tar.TypeDir, "d"), entry(tar.TypeReg, "d/.wh...")}, wantErr: "whiteout of no file"},
		{name: "whiteout of nothing", entries: []*tar.Header{entry(tar.TypeReg, ".wh.")}, wantErr: "whiteout of no file"},
		{name: "whiteout through symlink", entries: []*tar.Header{entry(tar.TypeSymlink, "s", link("..")), entry(tar.TypeReg, "s/.wh.victim")}},
		{name: "opaque through symlink", entries: []*tar.Header{entry(tar.TypeSymlink, "s", link("..")), entry(tar.TypeReg, "s/.wh..wh..opq")}},
		{name: "directory over symlink", entries: []*tar.Header{entry(tar.TypeSymlink, "s", link("..")), entry(tar.TypeDir, "s", mode(0)), entry(tar.TypeReg, "s/victim")}},
		{name: "file over full directory", entries: []*tar.Header{
			entry(tar.TypeDir, "d"), entry(tar.TypeSymlink, "d/s", link("OUTSIDE")), entry(tar.TypeReg, "d"),
		}},
		{name: "file as parent", entries: []*tar.Header{entry(tar.TypeReg, "f"), entry(tar.TypeReg, "f/g")}, wantErr: "not a directory"},
		{name: "directory replaced while in use", entries: []*tar.Header{
			entry(tar.TypeDir, "d"), entry(tar.TypeReg, "d/a"), entry(tar.TypeSymlink, "d", link("..")), entry(tar.TypeReg, "d/victim"),
		}},
		{name: "overlay redirect", entries: []*tar.Header{entry(tar.TypeDir, "d", xattr("trusted.overlay.redirect", "/x"))}, wantErr: "overlayfs"},
		{name: "root is a file", entries: []*tar.Header{entry(tar.TypeReg, "a/..//.")}, wantErr: `".."`},
		{name: "root is a symlink", entries: []*tar.Header{entry(tar.TypeSymlink, ".", link(".."))}, wantErr: "root of the layer"},
		{name: "unknown type", entries: []*tar.Header{entry('Z', "f")}, wantErr: "unknown type"},
		{name: "device out of range", entries: []*tar.Header{entry(tar.TypeChar, "c", device(5000, 0))}, wantErr: "out of range"},
		{name: "owner out of range", entries: []*tar.Header{entry(tar.TypeReg, "f", owner(1<<32-1, 0))}, wantErr: "out of range"},
		{name: "long component", entries: []*tar.Header{entry(tar.TypeReg, strings.Repeat("x", 256))}, wantErr: "too long"},
		{name: "long name", entries: []*tar.Header{entry(tar.TypeReg, strings.Repeat("x/", 3000)+"f")}, wantErr: "longer"},
		{name: "empty symlink", entries: []*tar.Header{entry(tar.TypeSymlink, "s", link(""))}, wantErr: "symlink"},
		{name: "too many entries", limits: Limits{Entries: 2}, entries: []*tar.Header{entry(tar.TypeDir, "a"), entry(tar.TypeDir, "b"), entry(tar.TypeDir, "c")}, wantErr: "more than 2 entries"},
		{name: "too long names", limits: Limits{NameBytes: 10}, entries: []*tar.Header{entry(tar.TypeDir, "123456"), entry(tar.TypeDir, "789012")}, wantErr: "longer than 10"},
		{name: "too much data", limits: Limits{Bytes: 1024}, entries: []*tar.Header{entry(tar.TypeReg, "a")}, wantErr: "longer than the limit"},
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
			_, err := unpack(t.Context(), dir, bytes.NewReader(tarOf(t, tt.entries...)), nil, tt.limits)
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

// TestUnpackImplied has layers that name files but not their directories;
// these must be as the layers below have them.
func TestUnpackImplied(t *testing.T) {
	needRoot(t)
	top := t.TempDir()
	base := filepath.Join(top, "base")
	if _, err := unpackAt(t, base, nil,
		entry(tar.TypeDir, "tmp", mode(0o1777), owner(9, 9)),
		entry(tar.TypeDir, "usr"), entry(tar.TypeDir, "usr/lib", mode(0o711)),
		entry(tar.TypeSymlink, "lib", link("usr/lib")),
		entry(tar.TypeSymlink, "abs", link("/usr/lib")),
		entry(tar.TypeReg, "usr/lib/libc", mode(0o755), owner(1, 1)),
		entry(tar.TypeReg, "plain"),
	); err != nil {
		t.Fatal(err)
	}
	upper := filepath.Join(top, "upper")
	done, err := unpackAt(t, upper, []string{base},
		entry(tar.TypeReg, "tmp/x"),
		entry(tar.TypeReg, "lib/new"),
		entry(tar.TypeReg, "abs/newer"),
		entry(tar.TypeLink, "usr/lib/libc.so", link("lib/libc")),
		entry(tar.TypeReg, "plain/now-a-directory"),
	)
	if err != nil {
		t.Fatal(err)
	}
	if !done.Implied {
		t.Error("Implied = false, want true")
	}
	if st := lstat(t, filepath.Join(upper, "tmp")); st.Mode != unix.S_IFDIR|0o1777 || st.Uid != 9 || !modTime(&st).Equal(when) {
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
	needRoot(f)
	f.Add(tarOf(f, entry(tar.TypeDir, "d/"), entry(tar.TypeReg, "d/f"), entry(tar.TypeSymlink, "s", link("..")), entry(tar.TypeReg, "s/victim")))
	f.Add(tarOf(f, entry(tar.TypeReg, "a"), entry(tar.TypeLink, "b", link("a")), entry(tar.TypeReg, ".wh.a"), entry(tar.TypeReg, ".wh..wh..opq")))
	f.Add(tarOf(f, entry(tar.TypeSymlink, "a", link("b")), entry(tar.TypeSymlink, "b", link("/proc/self/root")), entry(tar.TypeLink, "c", link("b/etc/passwd"))))
	f.Add(tarOf(f, entry(tar.TypeFifo, "p"), entry(tar.TypeReg, "p"), entry(tar.TypeDir, "p"), entry(tar.TypeReg, "p/x", xattr("user.a", "b"))))
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
		_, _ = unpack(t.Context(), dir, bytes.NewReader(data), []string{lower}, Limits{Bytes: 1 << 20, Entries: 1000})
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
