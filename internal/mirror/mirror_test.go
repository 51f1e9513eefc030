package mirror

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	agentv1 "github.com/seed-efd44b36/kata/api/agent/v1"
	"github.com/seed-efd44b36/kata/internal/spec"
	"golang.org/x/sys/unix"
)

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestSuits(t *testing.T) {
	const pod = "/var/lib/kubelet/pods/6f2b/"
	for _, tt := range []struct {
		source   string
		readOnly bool
		want     bool
	}{
		{pod + "volumes/kubernetes.io~configmap/config", true, true},
		{pod + "volumes/kubernetes.io~secret/s/", true, true},
		{pod + "volumes/kubernetes.io~projected/kube-api-access-x", true, true},
		{"/data/kubelet/pods/1/volumes/kubernetes.io~downward-api/info", true, true},
		{pod + "volumes/kubernetes.io~configmap/config", false, false},
		{pod + "volumes/kubernetes.io~empty-dir/cache", true, false},
		{pod + "volumes/kubernetes.io~configmap/config/key", true, false},
		{pod + "volume-subpaths/config/main/0", true, false},
		{"/volumes/kubernetes.io~configmap/config", true, false},
		{"/", true, false},
	} {
		if got := suits(spec.Bind{Source: tt.source, ReadOnly: tt.readOnly}); got != tt.want {
			t.Errorf("%s, read-only %v: %v", tt.source, tt.readOnly, got)
		}
	}
}

// configMap makes a volume as the kubelet does and returns its path.
func configMap(t *testing.T, value string) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "pods/uid/volumes/kubernetes.io~configmap/config")
	must(t, os.MkdirAll(dir, 0o755))
	update(t, dir, value)
	must(t, os.Symlink("..data/key", filepath.Join(dir, "key")))
	return dir
}

func update(t *testing.T, dir, value string) {
	t.Helper()
	fresh := filepath.Join(dir, "..data_tmp")
	must(t, os.Mkdir(filepath.Join(dir, "..of-"+value), 0o755))
	must(t, os.WriteFile(filepath.Join(dir, "..of-"+value, "key"), []byte(value), 0o640))
	must(t, os.Symlink("..of-"+value, fresh))
	must(t, os.Rename(fresh, filepath.Join(dir, "..data")))
}

// guest is what has been written last.
type guest struct {
	mu    sync.Mutex
	got   string // guarded by mu
	calls int    // guarded by mu
	err   error  // guarded by mu: the answer
}

func (g *guest) write(_ context.Context, r *agentv1.WriteVolumeRequest) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.got = fmt.Sprintf("%s/%d", r.GetContainer(), r.GetVolume())
	for _, f := range r.GetFiles() {
		g.got += fmt.Sprintf("\n%s %o %s", f.GetPath(), f.GetMode(), f.GetData())
	}
	g.calls++
	return g.err
}

func (g *guest) has() (string, int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.got, g.calls
}

func poll(t *testing.T, what string, done func() bool) {
	t.Helper()
	deadline := time.After(30 * time.Second)
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for !done() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatal("it did not happen that " + what)
		}
	}
}

func TestSet(t *testing.T) {
	var g guest
	s := New(nil, g.write, slog.New(slog.NewTextHandler(t.Output(), nil)))
	s.every = 10 * time.Millisecond
	defer s.Close()
	dir := configMap(t, "one")
	bind := spec.Bind{Mount: 7, Source: dir, ReadOnly: true}
	at, err := s.Add(t.Context(), "c", bind)
	must(t, err)
	if at != "c/7" {
		t.Errorf("copied to %q", at)
	}
	const one = "c/7\n. 40755 \n..data 120777 ..of-one\n..of-one 40755 \n..of-one/key 100640 one\nkey 120777 ..data/key"
	if got, _ := g.has(); got != one {
		t.Error(cmp.Diff(one, got))
	}
	update(t, dir, "two")
	poll(t, "a change is written", func() bool { got, _ := g.has(); return strings.Contains(got, "..data 120777 ..of-two") })
	g.mu.Lock()
	g.err = errors.New("not now")
	g.mu.Unlock()
	update(t, dir, "three")
	poll(t, "it is tried again", func() bool { _, n := g.has(); return n > 4 })
	s.Remove("c")
	_, before := g.has()
	if at, err := s.Add(t.Context(), "c", spec.Bind{Source: dir}); at != "" || err != nil {
		t.Errorf("a volume that can be written to: %q, %v", at, err)
	}
	if _, err := s.Add(t.Context(), "c", bind); err == nil {
		t.Error("no error, though the guest has the volume not")
	}
	if _, after := g.has(); after != before+1 {
		t.Errorf("%d calls after its end", after-before)
	}
}

func TestRead(t *testing.T) {
	for name, tt := range map[string]struct {
		make func(dir string) error
		want error
	}{
		"nothing": {func(string) error { return nil }, nil},
		"a link out of it, which is not followed": {func(d string) error { return os.Symlink("/etc/shadow", d+"/x") }, nil},
		"a pipe":         {func(d string) error { return unix.Mkfifo(d+"/x", 0o600) }, errUnsuitable},
		"as much as may": {func(d string) error { return os.WriteFile(d+"/x", make([]byte, maxBytes-2), 0o600) }, nil},
		"too much":       {func(d string) error { return os.WriteFile(d+"/x", make([]byte, maxBytes), 0o600) }, errUnsuitable},
		"too many": {func(d string) error {
			for i := range maxFiles {
				if err := os.WriteFile(fmt.Sprintf("%s/%d", d, i), nil, 0o600); err != nil {
					return err
				}
			}
			return nil
		}, errUnsuitable},
	} {
		dir := t.TempDir()
		must(t, tt.make(dir))
		f, err := os.Open(dir)
		must(t, err)
		files, err := read(f)
		if !errors.Is(err, tt.want) {
			t.Errorf("%s: %v", name, err)
		}
		for _, f := range files {
			if f.GetMode()&unix.S_IFMT == unix.S_IFLNK && string(f.GetData()) != "/etc/shadow" {
				t.Errorf("%s: %v", name, f)
			}
		}
		must(t, f.Close())
	}
	if _, err := New(nil, nil, nil).open(filepath.Join(t.TempDir(), "none")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a volume that is not there: %v", err)
	}
}

// TestDiscard: nothing of a container that has not come to be stays in the guest,
// also not what was written in part.
func TestDiscard(t *testing.T) {
	var mu sync.Mutex
	var calls []string
	errNot := errors.New("not now")
	s := New(nil, func(_ context.Context, r *agentv1.WriteVolumeRequest) error {
		mu.Lock()
		defer mu.Unlock()
		calls = append(calls, fmt.Sprintf("%s/%d %d", r.GetContainer(), r.GetVolume(), len(r.GetFiles())))
		if r.GetVolume() == 2 && len(r.GetFiles()) > 0 {
			return errNot
		}
		return nil
	}, slog.New(slog.NewTextHandler(t.Output(), nil)))
	s.every = time.Hour
	defer s.Close()
	for number, want := range map[int]error{1: nil, 2: errNot} {
		dir := configMap(t, "one")
		if _, err := s.Add(t.Context(), "c", spec.Bind{Mount: number, Source: dir, ReadOnly: true}); !errors.Is(err, want) {
			t.Errorf("volume %d: %v", number, err)
		}
	}
	s.Discard("c")
	s.Discard("c")
	slices.Sort(calls)
	if diff := cmp.Diff([]string{"c/1 0", "c/1 5", "c/2 0", "c/2 5"}, calls); diff != "" {
		t.Error(diff)
	}
}

// TestOpen: a device in a volume is none for us.
func TestOpen(t *testing.T) {
	dir := t.TempDir()
	f, err := New(nil, nil, nil).open(dir)
	must(t, err)
	defer f.Close()
	var fs unix.Statfs_t
	must(t, unix.Fstatfs(int(f.Fd()), &fs))
	const noFollow = 0x2000 // ST_NOSYMFOLLOW
	const want = unix.ST_RDONLY | unix.ST_NODEV | unix.ST_NOSUID | unix.ST_NOEXEC | noFollow
	if fs.Flags&want != want {
		t.Errorf("its mount has the attributes %#x, want %#x", fs.Flags, want)
	}
}

func TestReplaced(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"file", "other"} {
		must(t, os.WriteFile(filepath.Join(dir, name), nil, 0o600))
	}
	must(t, os.Mkdir(filepath.Join(dir, "dir"), 0o700))
	must(t, unix.Mkfifo(filepath.Join(dir, "pipe"), 0o600))
	root, err := os.OpenRoot(dir)
	must(t, err)
	defer root.Close()
	info, err := root.Lstat("file")
	must(t, err)
	r := reader{root: root, left: 1}
	if _, err := r.data("file", info); err != nil {
		t.Error(err)
	}
	for _, name := range []string{"other", "dir", "pipe", "none"} {
		if _, err := r.data(name, info); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s in place of the file: %v", name, err)
		}
	}
	if _, err := r.names("dir", info); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("another directory: %v", err)
	}
}
