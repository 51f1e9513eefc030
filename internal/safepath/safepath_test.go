package safepath

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// tree makes a root with files (a "/" at the end: directories, "->": links) beside
// a directory that nothing may come into.
func tree(t *testing.T, entries ...string) (root *os.File, dir, outside string) {
	t.Helper()
	base := t.TempDir()
	dir, outside = filepath.Join(base, "root"), filepath.Join(base, "outside")
	for _, d := range []string{dir, outside} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, e := range entries {
		name, target, link := strings.Cut(e, "->")
		file := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		var err error
		switch {
		case link:
			err = os.Symlink(strings.ReplaceAll(target, "OUTSIDE", outside), file)
		case strings.HasSuffix(name, "/"):
			err = os.MkdirAll(file, 0o755)
		default:
			err = os.WriteFile(file, []byte(name), 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	root, err := OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = root.Close() })
	return root, dir, outside
}

// where tells the path of an open file.
func where(t *testing.T, f *os.File) string {
	t.Helper()
	name, err := os.Readlink("/proc/self/fd/" + itoa(f.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	return name
}

func itoa(n uintptr) string {
	if n < 10 {
		return string(rune('0' + n))
	}
	return itoa(n/10) + itoa(n%10)
}

func TestMkdirAllAndTouch(t *testing.T) {
	entries := []string{
		"etc/", "file", "abs->/etc", "up->../../../etc", "out->OUTSIDE/new", "dangling->run/deep/er",
		"absdangling->/run/abs", "etc/resolv.conf->../run/resolve/stub", "loop1->loop2", "loop2->loop1",
		"a/b/back->..", "chain->chain2", "chain2->/a/b", "dots->a/b/../../etc",
	}
	tests := []struct {
		name string
		want string // below the root; "" for an error
	}{
		{"x", "x"},
		{"/x/y/z", "x/y/z"},
		{"//x//./y/", "x/y"},
		{"abs/x", "etc/x"},
		{"up/x", "etc/x"},
		{"out/x", "OUTSIDE/new/x"},
		{"dangling", "run/deep/er"},
		{"absdangling", "run/abs"},
		{"etc/resolv.conf", "run/resolve/stub"},
		{"../../x", "x"},
		{"a/b/back/x", "a/x"},
		{"chain/x", "a/b/x"},
		{"dots/x", "etc/x"},
		{"etc/../x", "x"},
		{"loop1", ""},
		{"loop1/x", ""},
		{"file/x", ""},
		{"a\x00b", ""},
	}
	for _, how := range []struct {
		name string
		make func(*os.File, string) (*os.File, error)
	}{
		{"MkdirAll", func(r *os.File, n string) (*os.File, error) { return MkdirAll(r, n, 0o755) }},
		{"Touch", func(r *os.File, n string) (*os.File, error) { return Touch(r, n, 0o644) }},
	} {
		for _, tt := range tests {
			t.Run(how.name+" "+tt.name, func(t *testing.T) {
				root, dir, outside := tree(t, entries...)
				f, err := how.make(root, tt.name)
				if (err == nil) != (tt.want != "") {
					t.Fatalf("got error %v, want %q", err, tt.want)
				}
				if err == nil {
					want := filepath.Join(dir, strings.ReplaceAll(tt.want, "OUTSIDE", outside))
					if got := where(t, f); got != want {
						t.Errorf("got %s, want %s", got, want)
					}
					_ = f.Close()
					// It is there the second time.
					if f, err = how.make(root, tt.name); err != nil {
						t.Fatal(err)
					}
					_ = f.Close()
				}
				if left, err := os.ReadDir(outside); err != nil || len(left) > 0 {
					t.Errorf("made outside of the root: %v, %v", left, err)
				}
			})
		}
	}
}

func TestOpen(t *testing.T) {
	root, dir, _ := tree(t, "etc/passwd", "abs->/etc/passwd", "up->../../../../etc/passwd")
	for _, name := range []string{"etc/passwd", "/etc/passwd", "abs", "up", "../etc/passwd"} {
		f, err := Open(root, name, unix.O_RDONLY)
		if err != nil {
			t.Fatal(err)
		}
		if got, want := where(t, f), filepath.Join(dir, "etc/passwd"); got != want {
			t.Errorf("%s: got %s, want %s", name, got, want)
		}
		_ = f.Close()
	}
	if _, err := Open(root, "none", unix.O_RDONLY); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("got %v, want %v", err, fs.ErrNotExist)
	}
	if _, err := Open(root, "none", unix.O_WRONLY|unix.O_CREAT); !errors.Is(err, unix.EINVAL) {
		t.Errorf("O_CREAT: got %v, want EINVAL", err)
	}
	if _, err := OpenNoLinks(root, "abs", unix.O_RDONLY); !errors.Is(err, unix.ELOOP) {
		t.Errorf("OpenNoLinks: got %v, want ELOOP", err)
	}
	if _, err := OpenRoot(filepath.Join(dir, "abs")); err == nil {
		t.Error("OpenRoot of a link: got no error")
	}
}

// TestProcLinks makes sure that links of procfs, which lead out of any root, are
// not followed.
func TestProcLinks(t *testing.T) {
	root, err := OpenRoot("/")
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	for _, name := range []string{"/proc/self/cwd", "/proc/self/root/etc"} {
		if f, err := Open(root, name, unix.O_PATH); err == nil {
			t.Errorf("Open %s: got %s", name, where(t, f))
		}
	}
	for _, name := range []string{"/proc/self/cwd/x", "/proc/self/root/tmp", "/proc/self/exe"} {
		if f, err := MkdirAll(root, name, 0o755); err == nil {
			t.Errorf("MkdirAll %s: got %s", name, where(t, f))
		}
	}
}

// TestRace resolves while somebody swaps a directory for a link that leads out.
func TestRace(t *testing.T) {
	root, dir, outside := tree(t, "a/b/", "evil->OUTSIDE")
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
				_ = unix.Renameat2(unix.AT_FDCWD, filepath.Join(dir, "a"), unix.AT_FDCWD, filepath.Join(dir, "evil"), unix.RENAME_EXCHANGE)
			}
		}
	})
	for range 2000 {
		if f, err := MkdirAll(root, "a/b/c/../d", 0o755); err == nil {
			if got := where(t, f); !strings.HasPrefix(got, dir+"/") {
				t.Errorf("got %s", got)
			}
			_ = f.Close()
		}
		if f, err := Touch(root, "a/file", 0o644); err == nil {
			_ = f.Close()
		}
	}
	close(stop)
	wg.Wait()
	if left, err := os.ReadDir(outside); err != nil || len(left) > 0 {
		t.Errorf("made outside of the root: %v, %v", left, err)
	}
}

func FuzzMkdirAll(f *testing.F) {
	f.Add("a/b", "../../x")
	f.Add("l/../l/x", "/l")
	f.Add("l/l/l", "..")
	f.Fuzz(func(t *testing.T, name, target string) {
		if strings.ContainsRune(target, 0) || target == "" || len(target) > 200 || len(name) > 200 {
			return
		}
		base := t.TempDir()
		dir := filepath.Join(base, "root")
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		_ = os.Symlink(target, filepath.Join(dir, "l"))
		root, err := OpenRoot(dir)
		if err != nil {
			t.Fatal(err)
		}
		defer root.Close()
		if made, err := MkdirAll(root, name, 0o755); err == nil {
			if got := where(t, made); got != dir && !strings.HasPrefix(got, dir+"/") {
				t.Errorf("got %s", got)
			}
			_ = made.Close()
		}
		if list, err := os.ReadDir(base); err != nil || len(list) != 1 {
			t.Errorf("made outside: %v, %v", list, err)
		}
	})
}

func TestProc(t *testing.T) {
	for name, open := range map[string]func() (*Proc, error){"OpenProc": OpenProc, "PrivateProc": PrivateProc} {
		t.Run(name, func(t *testing.T) {
			if os.Geteuid() != 0 {
				t.Skip("needs root")
			}
			p, err := open()
			if err != nil {
				t.Fatal(err)
			}
			defer p.Close()
			f, err := p.Open(p.Self("oom_score_adj"), unix.O_RDONLY)
			if err != nil {
				t.Fatal(err)
			}
			_ = f.Close()
			if err := p.Write(p.Self("oom_score_adj"), "0"); err != nil {
				t.Error(err)
			}
			for _, bad := range []string{"self/stat", p.Self("root/etc"), p.Self("fd/0"), "../etc", "/etc", "none"} {
				if f, err := p.Open(bad, unix.O_RDONLY); err == nil {
					t.Errorf("Open %s: got %s", bad, where(t, f))
				}
			}
		})
	}
}
