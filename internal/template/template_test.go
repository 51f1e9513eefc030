package template

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

const mib = 1 << 20

// save stands for the machine: it leaves something in both files.
func save(_ context.Context, memory, state *os.File) error {
	_, err := memory.WriteAt([]byte("memory"), 300<<10)
	_, err2 := state.WriteString("state")
	return errors.Join(err, err2)
}

func store(t *testing.T) Store {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("templates are root's")
	}
	return Store{Dir: filepath.Join(t.TempDir(), "templates"), MaxBytes: 1 << 30}
}

func info(name string) Info {
	return Info{Key: Key([]string{name}), MemoryMiB: 1, CPUs: 1, NICs: 1, Machine: "q35", Kernel: "6.1"}
}

func make1(t *testing.T, s Store, name string) Info {
	t.Helper()
	i := info(name)
	if err := s.Make(t.Context(), i, save); err != nil {
		t.Fatal(err)
	}
	return i
}

func TestMakeAndFind(t *testing.T) {
	s := store(t)
	if _, err := s.Find(info("a").Key); !errors.Is(err, ErrNone) {
		t.Errorf("Find before Make: %v, want ErrNone", err)
	}
	i := make1(t, s, "a")
	found, err := s.Find(i.Key)
	if err != nil {
		t.Fatal(err)
	}
	defer found.Close()
	if found.MemoryMiB != 1 || found.Kernel != "6.1" || found.Created.IsZero() {
		t.Errorf("found %+v", found.Info)
	}
	if _, err := found.Memory.WriteString("x"); err == nil {
		t.Error("the memory is open for writing")
	}
	text := make([]byte, 9)
	if n, _ := found.State.Read(text); string(text[:n]) != "state" {
		t.Errorf("the state is %q", text[:n])
	}
	if err := s.Verify(i.Key); err != nil {
		t.Error(err)
	}
	if err := s.Make(t.Context(), i, func(context.Context, *os.File, *os.File) error { return errors.New("made twice") }); err != nil {
		t.Error(err)
	}
	names, err := filepath.Glob(filepath.Join(s.Dir, ".[tl]*"))
	if err != nil || len(names) != 1 || filepath.Base(names[0]) != ".lock" {
		t.Errorf("left: %v, %v", names, err)
	}
}

// TestUnsound changes a template in each way that must be noticed.
func TestUnsound(t *testing.T) {
	for name, tt := range map[string]struct {
		change func(dir string) error
		verify bool // it takes Verify to notice
	}{
		"state changed":       {change: func(d string) error { return os.WriteFile(filepath.Join(d, "state"), []byte("other"), 0o600) }},
		"state gone":          {change: func(d string) error { return os.Remove(filepath.Join(d, "state")) }},
		"memory cut":          {change: func(d string) error { return os.Truncate(filepath.Join(d, "memory"), mib/2) }},
		"memory grown":        {change: func(d string) error { return os.Truncate(filepath.Join(d, "memory"), 2*mib) }},
		"memory gone":         {change: func(d string) error { return os.Remove(filepath.Join(d, "memory")) }},
		"others may write":    {change: func(d string) error { return os.Chmod(filepath.Join(d, "memory"), 0o622) }},
		"another's":           {change: func(d string) error { return os.Chown(filepath.Join(d, "memory"), 1000, 0) }},
		"another's directory": {change: func(d string) error { return os.Chown(d, 1000, 0) }},
		"open directory":      {change: func(d string) error { return os.Chmod(d, 0o777) }},
		"open store":          {change: func(d string) error { return os.Chmod(filepath.Dir(d), 0o777) }},
		"info is none":        {change: func(d string) error { return os.WriteFile(filepath.Join(d, "template.json"), []byte("{"), 0o600) }},
		"info of another": {change: func(d string) error {
			return os.WriteFile(filepath.Join(d, "template.json"), []byte(`{"key":"x"}`), 0o600)
		}},
		"memory changed": {verify: true, change: func(d string) error {
			f, err := os.OpenFile(filepath.Join(d, "memory"), os.O_RDWR, 0)
			if err != nil {
				return err
			}
			_, err = f.WriteAt([]byte{1}, 700<<10)
			return errors.Join(err, f.Close())
		}},
	} {
		t.Run(name, func(t *testing.T) {
			s := store(t)
			i := make1(t, s, "a")
			if err := tt.change(s.path(i.Key)); err != nil {
				t.Fatal(err)
			}
			if found, err := s.Find(i.Key); !tt.verify && !errors.Is(err, ErrUnsound) {
				t.Errorf("Find: %v, want ErrUnsound", err)
			} else if err == nil {
				_ = found.Close()
			}
			if err := s.Verify(i.Key); !errors.Is(err, ErrUnsound) {
				t.Errorf("Verify: %v, want ErrUnsound", err)
			}
			if tt.verify || name == "open store" {
				return
			}
			make1(t, s, "a") // in its place
			if err := s.Verify(i.Key); err != nil {
				t.Errorf("after it was made again: %v", err)
			}
		})
	}
}

func TestFailureIsRemembered(t *testing.T) {
	s := store(t)
	i := info("a")
	if !s.Wanted(i.Key) {
		t.Error("a template that is not there is not wanted")
	}
	err := s.Make(t.Context(), i, func(context.Context, *os.File, *os.File) error { return errors.New("no such kernel") })
	if err == nil || !strings.Contains(err.Error(), "no such kernel") {
		t.Errorf("Make: %v", err)
	}
	if s.Wanted(i.Key) {
		t.Error("it is wanted at once again")
	}
	list, problems, err := s.List()
	if err != nil || len(list) != 0 || len(problems) != 1 || !strings.Contains(problems[0].Err.Error(), "no such kernel") {
		t.Errorf("List: %v, %v, %v", list, problems, err)
	}
	if err := s.Remove(i.Key); err != nil {
		t.Error(err)
	}
	if !s.Wanted(i.Key) {
		t.Error("it is not wanted after Remove")
	}
}

// TestMakersMeet: one template is made at a time, and once.
func TestMakersMeet(t *testing.T) {
	s := store(t)
	for _, name := range []string{"a", "b"} {
		err := s.Make(t.Context(), info("a"), func(ctx context.Context, memory, state *os.File) error {
			if s.Wanted(info("a").Key) {
				t.Error("a template is wanted that is being made")
			}
			waited, cancel := context.WithTimeout(ctx, 100*time.Millisecond)
			defer cancel()
			if err := s.Make(waited, info(name), save); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("a second maker: %v", err)
			}
			if err := s.Sweep(); err != nil {
				t.Error(err)
			}
			return save(ctx, memory, state)
		})
		if err != nil {
			t.Error(err)
		}
		if err := s.Remove(info("a").Key); err != nil {
			t.Error(err)
		}
	}
}

// TestSweep: what killed makers have left goes, what is of use stays.
func TestSweep(t *testing.T) {
	s := store(t)
	if err := s.Sweep(); err != nil {
		t.Errorf("without a store: %v", err)
	}
	whole, killed, failed, old := make1(t, s, "whole"), info("killed"), info("failed"), info("old")
	if err := os.Mkdir(s.path(tmpPrefix+killed.Key), 0o755); err != nil {
		t.Fatal(err)
	}
	if !s.Wanted(killed.Key) {
		t.Error("a template is not wanted whose maker was killed")
	}
	s.Failed(failed.Key, errors.New("just now"))
	s.Failed(old.Key, errors.New("long ago"))
	before := time.Now().Add(-retryAfter)
	if err := os.Chtimes(s.path(old.Key+failedSuffix), before, before); err != nil {
		t.Fatal(err)
	}
	if err := s.Sweep(); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]bool{
		whole.Key: true, tmpPrefix + killed.Key: false, failed.Key + failedSuffix: true, old.Key + failedSuffix: false,
	} {
		if _, err := os.Stat(s.path(name)); (err == nil) != want {
			t.Errorf("%s is there: %v, want %v", name, err == nil, want)
		}
	}
}

func TestExpire(t *testing.T) {
	s := store(t)
	old, young := make1(t, s, "old"), make1(t, s, "young")
	if _, err := s.Find(old.Key); err != nil { // so it is the last used
		t.Fatal(err)
	}
	before := time.Now().Add(-time.Hour)
	if err := os.Chtimes(s.path(young.Key, infoFile), before, before); err != nil {
		t.Fatal(err)
	}
	list, _, err := s.List()
	if err != nil || len(list) != 2 || list[0].Key != old.Key {
		t.Fatalf("List: %v, %v", list, err)
	}
	s.MaxBytes = 2 * list[0].Bytes
	last := make1(t, s, "last")
	for _, tt := range []struct {
		key  string
		want bool
	}{{old.Key, true}, {young.Key, false}, {last.Key, true}} {
		if _, err := os.Stat(s.path(tt.key)); (err == nil) != tt.want {
			t.Errorf("%s is there: %v, want %v", tt.key, err == nil, tt.want)
		}
	}
	s.MaxBytes = 0
	if only := make1(t, s, "only"); s.Verify(only.Key) != nil {
		t.Error("what was just made is gone")
	}
}

func TestKey(t *testing.T) {
	if Key([]string{"ab", "c"}) == Key([]string{"a", "bc"}) {
		t.Error("keys do not tell parts apart")
	}
	s := store(t)
	for _, key := range []string{"", "..", "../x", strings.Repeat("A", keyLen)} {
		if _, err := s.Find(key); !errors.Is(err, ErrNone) {
			t.Errorf("Find(%q): %v", key, err)
		}
		if err := s.Remove(key); !errors.Is(err, ErrNone) {
			t.Errorf("Remove(%q): %v", key, err)
		}
	}
}
