package storage

import (
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"testing"
)

// TestKeep keeps what is in a root, and nothing that a link in it leads to.
func TestKeep(t *testing.T) {
	dir := t.TempDir()
	root := filepath.Join(dir, "root")
	for _, d := range []string{"root/usr/bin", "root/usr/local", "outside/x86_64-linux-gnu"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for link, to := range map[string]string{"bin": "usr/bin", "lib": "../outside"} {
		if err := os.Symlink(to, filepath.Join(root, link)); err != nil {
			t.Fatal(err)
		}
	}
	kept, err := Keep(root)
	if err != nil {
		t.Fatal(err)
	}
	first := len(kept)
	kept = kept.More()
	var got []string
	for _, fd := range kept {
		name, err := os.Readlink("/proc/self/fd/" + strconv.Itoa(fd))
		if err != nil {
			t.Fatal(err)
		}
		rel, err := filepath.Rel(root, name)
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, rel)
	}
	kept.Close()
	want := []string{".", "lib", "usr", "bin", "usr/bin", "usr/local"}
	if !slices.Equal(got, want) || first != 3 {
		t.Errorf("kept %v, %d of them at first, want %v and 3", got, first, want)
	}
	if _, err := Keep(filepath.Join(dir, "nothing")); err == nil {
		t.Error("a root that is not there was kept")
	}
}
