package cleanup

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root, to mount and to make cgroups")
	}
}

func TestStackRunsBackwardsAndOnce(t *testing.T) {
	var s Stack
	var got []string
	errB := errors.New("b is stuck")
	for _, name := range []string{"a", "b", "c"} {
		s.Push(name, func(context.Context) error {
			got = append(got, name)
			if name == "b" {
				return errB
			}
			return nil
		})
	}
	err := s.Run(t.Context())
	if !errors.Is(err, errB) || err.Error() != "undo b: b is stuck" {
		t.Errorf("Run: got error %v, want that of b only", err)
	}
	if diff := cmp.Diff([]string{"c", "b", "a"}, got); diff != "" {
		t.Errorf("order of the steps (-want +got):\n%s", diff)
	}
	if err := s.Run(t.Context()); err != nil || len(got) != 3 {
		t.Errorf("second Run: error %v and %d steps in all, want nil and 3", err, len(got))
	}
}

func TestStackDisarm(t *testing.T) {
	var s Stack
	s.Push("a", func(context.Context) error { t.Error("step of a disarmed stack ran"); return nil })
	s.Disarm()
	if err := s.Run(t.Context()); err != nil {
		t.Error(err)
	}
}

// TestStackFailAtEachStep makes an operation of n steps fail at each of them:
// what was made until then is undone, nothing else.
func TestStackFailAtEachStep(t *testing.T) {
	const n = 5
	for fail := range n + 1 {
		made := map[int]bool{}
		operation := func() (err error) {
			var s Stack
			defer func() {
				if err != nil {
					err = errors.Join(err, s.Run(t.Context()))
				}
			}()
			for i := range n {
				if i == fail {
					return errors.New("no")
				}
				made[i] = true
				s.Push(strconv.Itoa(i), func(context.Context) error { delete(made, i); return nil })
			}
			s.Disarm()
			return nil
		}
		err := operation()
		if wantErr := fail < n; (err != nil) != wantErr {
			t.Errorf("failing at %d: error %v", fail, err)
		}
		if want := map[bool]int{true: 0, false: n}[fail < n]; len(made) != want {
			t.Errorf("failing at %d: %d things are left, want %d", fail, len(made), want)
		}
	}
}

func TestLedger(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ledger")
	l, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	a := Record{Kind: KindDir, Name: "/a"}
	b := Record{Kind: KindCNI, Name: "b", Extra: map[string]string{ExtraNetns: "/run/netns/x"}}
	c := Record{Kind: KindFile, Name: "/a"} // same name, other kind
	for _, r := range []Record{a, b, c, b} {
		if err := l.Add(r); err != nil {
			t.Fatal(err)
		}
	}
	for _, r := range []Record{a, {Kind: KindMount, Name: "never there"}} {
		if err := l.Done(r); err != nil {
			t.Fatal(err)
		}
	}
	want := []Record{b, c}
	if diff := cmp.Diff(want, l.Records()); diff != "" {
		t.Errorf("records (-want +got):\n%s", diff)
	}
	for _, r := range []Record{{}, {Kind: KindDir}, {Kind: KindDir, Name: "/x\x00y"}} {
		if err := l.Add(r); err == nil {
			t.Errorf("Add(%v): no error", r)
		}
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	got, err := ReadLedger(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("read back (-want +got):\n%s", diff)
	}
}

func TestLedgerCutShort(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ledger")
	if err := os.WriteFile(path, []byte(`{"op":"add","kind":"dir","name":"/a"}`+"\n"+`{"op":"add","kind":"di`), 0o600); err != nil {
		t.Fatal(err)
	}
	l, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if err := l.Add(Record{Kind: KindDir, Name: "/b"}); err != nil {
		t.Fatal(err)
	}
	got, err := ReadLedger(path)
	if err == nil {
		t.Error("the line that was cut short and is now in the middle is not told")
	}
	want := []Record{{Kind: KindDir, Name: "/a"}, {Kind: KindDir, Name: "/b"}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("records (-want +got):\n%s", diff)
	}
}

func TestRemoveTree(t *testing.T) {
	dir := t.TempDir()
	outside := filepath.Join(dir, "outside")
	tree := filepath.Join(dir, "tree")
	must(t, os.MkdirAll(filepath.Join(outside, "keep"), 0o755))
	must(t, os.MkdirAll(filepath.Join(tree, "d", "e"), 0o755))
	must(t, os.WriteFile(filepath.Join(tree, "d", "f"), nil, 0o600))
	must(t, os.Symlink(outside, filepath.Join(tree, "d", "link")))
	must(t, os.Symlink(outside, filepath.Join(dir, "direct")))

	for _, path := range []string{tree, filepath.Join(dir, "direct"), tree, filepath.Join(dir, "no", "such")} {
		if err := RemoveTree(path); err != nil {
			t.Errorf("RemoveTree(%s): %v", path, err)
		}
		if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s is still there (%v)", path, err)
		}
	}
	if _, err := os.Stat(filepath.Join(outside, "keep")); err != nil {
		t.Errorf("what a link led to was removed: %v", err)
	}
	for _, path := range []string{"", "/", "relative", "/.."} {
		if err := RemoveTree(path); !errors.Is(err, fs.ErrInvalid) {
			t.Errorf("RemoveTree(%q): got %v, want fs.ErrInvalid", path, err)
		}
	}
}

// TestRemoveTreeHoweverDeepAndWide: a guest decides on the shape of the trees
// that it leaves. The names that deep directories get are taken already.
func TestRemoveTreeHoweverDeepAndWide(t *testing.T) {
	tree := filepath.Join(t.TempDir(), "tree")
	must(t, os.MkdirAll(filepath.Join(tree, deepPrefix+"1", "not empty"), 0o755))
	must(t, os.WriteFile(filepath.Join(tree, deepPrefix+"0"), nil, 0o600))
	for i := range 3 * maxNames {
		must(t, os.WriteFile(filepath.Join(tree, strconv.Itoa(i)), nil, 0o600))
	}
	mkdirDeep(t, tree, "a", 700)
	mkdirDeep(t, tree, "b", 700)
	must(t, RemoveTree(tree))
	if _, err := os.Lstat(tree); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the tree is still there (%v)", err)
	}
}

// mkdirDeep makes a chain of directories of the same name.
func mkdirDeep(t *testing.T, dir, name string, levels int) {
	t.Helper()
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	must(t, err)
	for range levels {
		must(t, unix.Mkdirat(fd, name, 0o755))
		next, err := unix.Openat(fd, name, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		must(t, err)
		must(t, unix.Close(fd))
		fd = next
	}
	must(t, unix.Close(fd))
}

func TestRemoveTreeStopsAtMounts(t *testing.T) {
	needRoot(t)
	tree := filepath.Join(t.TempDir(), "tree")
	mnt := filepath.Join(tree, "a", "mnt")
	must(t, os.MkdirAll(mnt, 0o755))
	must(t, unix.Mount("tmpfs", mnt, "tmpfs", 0, "size=64k"))
	t.Cleanup(func() { must(t, Unmount(mnt)) })
	kept := filepath.Join(mnt, "kept")
	must(t, os.WriteFile(kept, nil, 0o600))

	if err := RemoveTree(tree); !errors.Is(err, ErrMountPoint) {
		t.Errorf("RemoveTree: got %v, want ErrMountPoint", err)
	}
	if _, err := os.Stat(kept); err != nil {
		t.Errorf("a file of another file system was removed: %v", err)
	}
	must(t, Release(t.Context(), Record{Kind: KindMount, Name: mnt}))
	must(t, RemoveTree(tree))
}

func TestUnmountTakesAllAndFollowsNothing(t *testing.T) {
	needRoot(t)
	dir := t.TempDir()
	mnt, link := filepath.Join(dir, "mnt"), filepath.Join(dir, "link")
	must(t, os.Mkdir(mnt, 0o755))
	for range 2 {
		must(t, unix.Mount("tmpfs", mnt, "tmpfs", 0, "size=64k"))
	}
	t.Cleanup(func() { _ = Unmount(mnt) })
	must(t, os.Symlink(mnt, link))
	must(t, Unmount(link))
	if n := mountsAt(t, mnt); n != 2 {
		t.Errorf("through a link: %d mounts left, want 2", n)
	}
	must(t, Unmount(mnt))
	if n := mountsAt(t, mnt); n != 0 {
		t.Errorf("%d mounts left, want none", n)
	}
	must(t, Unmount(mnt))
	must(t, Unmount(filepath.Join(dir, "absent")))
}

func mountsAt(t *testing.T, path string) int {
	t.Helper()
	b, err := os.ReadFile("/proc/self/mountinfo")
	must(t, err)
	n := 0
	for _, f := range splitFields(string(b)) {
		if len(f) > 4 && f[4] == path {
			n++
		}
	}
	return n
}

func TestReleaseProcess(t *testing.T) {
	marker := "kata-test-" + strconv.Itoa(os.Getpid())
	start := func(args ...string) *exec.Cmd {
		// sh -c 'read' sh MARKER: waits on its stdin until it is killed.
		c := exec.Command("/bin/sh", append([]string{"-c", "read x", "sh"}, args...)...)
		_, err := c.StdinPipe()
		must(t, err)
		must(t, c.Start())
		t.Cleanup(func() { _ = c.Process.Kill(); _ = c.Wait() })
		return c
	}
	victim := start(marker)
	longer := start(marker + "0")
	exe, err := os.Readlink("/proc/" + strconv.Itoa(victim.Process.Pid) + "/exe")
	must(t, err)

	for _, other := range []string{"", "/usr/bin/qemu-system-x86_64", "qemu-system-x86_64"} {
		must(t, Release(t.Context(), Record{Kind: KindProcess, Name: marker, Extra: map[string]string{ExtraExe: other}}))
		if !running(victim.Process.Pid) {
			t.Fatalf("killed a process that runs %s, not %q", exe, other)
		}
	}
	for _, named := range []string{filepath.Base(exe), "/bin/sh"} { // the latter is a link on most systems
		victim := start(marker)
		must(t, Release(t.Context(), Record{Kind: KindProcess, Name: marker, Extra: map[string]string{ExtraExe: named}}))
		if running(victim.Process.Pid) {
			t.Errorf("the process still runs, though it runs %s", named)
		}
	}
	if !running(longer.Process.Pid) {
		t.Error("killed a process whose argument only starts with the marker")
	}
}

// running tells whether the process runs, a zombie does not.
func running(pid int) bool {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/cmdline")
	return err == nil && len(b) > 0
}

func TestReleaseCgroup(t *testing.T) {
	needRoot(t)
	hierarchies := []string{cgroupRoot}
	if !isCgroup(cgroupRoot) {
		all, err := filepath.Glob(cgroupRoot + "/*")
		must(t, err)
		hierarchies = nil
		for _, h := range all {
			if isCgroup(h) {
				hierarchies = append(hierarchies, h)
			}
		}
	}
	if len(hierarchies) == 0 {
		t.Skip("no cgroup hierarchy is mounted below " + cgroupRoot)
	}
	path := "/kata-cleanup-test-" + strconv.Itoa(os.Getpid())
	c := exec.Command("/bin/sleep", "600")
	must(t, c.Start())
	t.Cleanup(func() { _ = c.Process.Kill(); _ = c.Wait() })
	made := 0
	for _, h := range hierarchies {
		if filepath.Base(h) == "cpuset" { // needs its own set-up before it takes a process
			continue
		}
		if err := os.MkdirAll(h+path+"/child", 0o755); err != nil {
			continue
		}
		made++
		must(t, os.WriteFile(h+path+"/child/cgroup.procs", []byte(strconv.Itoa(c.Process.Pid)), 0))
	}
	if made == 0 {
		t.Skip("no cgroup hierarchy is writable")
	}
	r := Record{Kind: KindCgroup, Name: path}
	must(t, Release(t.Context(), r))
	for _, h := range hierarchies {
		if _, err := os.Stat(h + path); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s is still there", h+path)
		}
	}
	if running(c.Process.Pid) {
		t.Error("the process in the cgroup still runs")
	}
	must(t, Release(t.Context(), r))
	if err := Release(t.Context(), Record{Kind: KindCgroup, Name: "/../.."}); !errors.Is(err, fs.ErrInvalid) {
		t.Errorf("root cgroup: got %v, want fs.ErrInvalid", err)
	}
}

func TestReleaseNeedsItsPackage(t *testing.T) {
	for _, k := range []Kind{KindCNI, "odd"} {
		if err := Release(t.Context(), Record{Kind: k, Name: "x"}); !errors.Is(err, ErrUnsupported) {
			t.Errorf("Release of %s: got %v, want ErrUnsupported", k, err)
		}
	}
}

func TestGC(t *testing.T) {
	state := t.TempDir()
	old := time.Now().Add(-time.Minute)
	mk := func(id string, records ...Record) string {
		dir := filepath.Join(state, id)
		must(t, os.Mkdir(dir, 0o700))
		must(t, os.WriteFile(filepath.Join(dir, LockFile), nil, 0o600))
		l, err := Open(filepath.Join(dir, LedgerFile))
		must(t, err)
		for _, r := range records {
			must(t, l.Add(r))
		}
		must(t, l.Close())
		return dir
	}
	left := filepath.Join(t.TempDir(), "left")
	must(t, os.MkdirAll(filepath.Join(left, "d"), 0o700))
	var order []string
	mk("dead", Record{Kind: KindDir, Name: left}, Record{Kind: KindCNI, Name: "n"}, Record{Kind: "odd", Name: "t"})
	mk("stuck", Record{Kind: KindCNI, Name: "stuck"})
	alive := mk("alive", Record{Kind: KindCNI, Name: "not to be released"})
	must(t, os.WriteFile(filepath.Join(mk("damaged"), LedgerFile), []byte("{]\n"), 0o600))
	must(t, os.Mkdir(filepath.Join(state, "young"), 0o700))
	must(t, os.Mkdir(filepath.Join(state, "nolock"), 0o700))
	must(t, os.Chtimes(filepath.Join(state, "nolock"), old, old))
	must(t, os.WriteFile(filepath.Join(state, "file"), nil, 0o600))

	f, err := os.Open(filepath.Join(alive, LockFile))
	must(t, err)
	defer f.Close()
	must(t, unix.Flock(int(f.Fd()), unix.LOCK_EX))

	errStuck := errors.New("plugin is missing")
	more := map[Kind]Releaser{
		KindCNI: func(_ context.Context, r Record) error {
			order = append(order, r.String())
			if r.Name == "stuck" {
				return errStuck
			}
			return nil
		},
		"odd": func(_ context.Context, r Record) error { order = append(order, r.String()); return nil },
	}
	rep, err := GC(t.Context(), state, slog.New(slog.DiscardHandler), more)
	if !errors.Is(err, errStuck) {
		t.Errorf("GC: got %v, want %v", err, errStuck)
	}
	want := Report{Removed: []string{"damaged", "dead", "nolock"}, Alive: []string{"alive", "young"}, Kept: []string{"stuck"}}
	if diff := cmp.Diff(want, rep); diff != "" {
		t.Errorf("report (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]string{"odd t", "cni n", "cni stuck"}, order); diff != "" {
		t.Errorf("released (-want +got):\n%s", diff)
	}
	if _, err := os.Stat(left); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%s of the dead sandbox is left", left)
	}
	for id, want := range map[string]bool{"dead": false, "damaged": false, "nolock": false, "young": true, "alive": true, "stuck": true} {
		if _, err := os.Stat(filepath.Join(state, id)); (err == nil) != want {
			t.Errorf("directory of %s: there %t, want %t", id, err == nil, want)
		}
	}
	for id, want := range map[string]bool{"alive": true, "absent": false} {
		if got, err := Collect(t.Context(), filepath.Join(state, id), slog.New(slog.DiscardHandler), nil); err != nil || got != want {
			t.Errorf("Collect of sandbox %s: alive %t, %v, want %t", id, got, err, want)
		}
	}
	if rep, err := GC(t.Context(), filepath.Join(state, "absent"), slog.New(slog.DiscardHandler), nil); err != nil || len(rep.Removed) > 0 {
		t.Errorf("GC without a state directory: %v, %v", rep, err)
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
