package shim

import (
	"os"
	"path/filepath"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// TestTerminationLog: last words go only where the container could have written them.
func TestTerminationLog(t *testing.T) {
	t.Parallel()
	ns, err := os.Open("/proc/self/ns/mnt")
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	dir := t.TempDir()
	for name, text := range map[string]string{"empty": "", "written": "goodbye"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := unix.Mkfifo(filepath.Join(dir, "pipe"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, tt := range map[string]struct {
		at, source string
		options    []string
		opened, ok bool
	}{
		"elsewhere":            {at: "/dev/log", source: dir + "/empty"},
		"read-only":            {at: terminationLog, source: dir + "/empty", options: []string{"rbind", "ro"}},
		"read-only below":      {at: terminationLog, source: dir + "/empty", options: []string{"rro"}},
		"not there":            {at: terminationLog, source: dir + "/none"},
		"written":              {at: terminationLog, source: dir + "/written", opened: true, ok: true},
		"a pipe without ends":  {at: terminationLog, source: dir + "/pipe", opened: true, ok: true},
		"a file of the kernel": {at: terminationLog, source: "/proc/self/comm", opened: true},
	} {
		f, err := (&service{mounts: ns}).openTerminationLog(&specs.Spec{Mounts: []specs.Mount{{Destination: tt.at, Source: tt.source, Options: tt.options}}})
		if (f != nil) != tt.opened || (err != nil) != (name == "not there") {
			t.Errorf("%s: opened %v, %v", name, f != nil, err)
		}
		if f == nil {
			continue
		}
		if err := writeLast(f, "kata: last words"); (err == nil) != tt.ok {
			t.Errorf("%s: %v", name, err)
		}
		_ = f.Close()
	}
	for name, want := range map[string]string{"empty": "", "written": "goodbye"} {
		if b, err := os.ReadFile(filepath.Join(dir, name)); err != nil || string(b) != want {
			t.Errorf("%s has %q, %v", name, b, err)
		}
	}
}
