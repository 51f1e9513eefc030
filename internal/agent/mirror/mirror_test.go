package mirror

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	agentv1 "github.com/seed-efd44b36/kata/api/agent/v1"
	"golang.org/x/sys/unix"
)

// files makes a description of lines "PATH MODE DATA".
func files(t *testing.T, lines ...string) []*agentv1.VolumeFile {
	t.Helper()
	var list []*agentv1.VolumeFile
	for _, l := range lines {
		f := &agentv1.VolumeFile{Uid: uint32(os.Getuid()), Gid: uint32(os.Getgid())}
		words := strings.SplitN(l, " ", 3)
		f.Path, f.Data = words[0], []byte(words[2])
		if _, err := fmt.Sscanf(words[1], "%o", &f.Mode); err != nil {
			t.Fatal(err)
		}
		list = append(list, f)
	}
	return list
}

// tree describes what is there in the same way.
func tree(t *testing.T, dir string) []string {
	t.Helper()
	var lines []string
	err := filepath.WalkDir(dir, func(p string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(p, &st); err != nil {
			return err
		}
		var data []byte
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFREG:
			data, err = os.ReadFile(p)
		case unix.S_IFLNK:
			var to string
			to, err = os.Readlink(p)
			data = []byte(to)
		}
		name, _ := filepath.Rel(dir, p)
		lines = append(lines, fmt.Sprintf("%s %o %s", name, st.Mode, data))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return lines
}

// watch returns a function that reads the events of a directory since.
func watch(t *testing.T, dir string) func() []string {
	t.Helper()
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	if _, err := unix.InotifyAddWatch(fd, dir, unix.IN_CREATE|unix.IN_MOVED_TO|unix.IN_DELETE|unix.IN_MODIFY); err != nil {
		t.Fatal(err)
	}
	return func() []string {
		var list []string
		buf := make([]byte, 4096)
		n, err := unix.Read(fd, buf)
		if errors.Is(err, unix.EAGAIN) {
			return nil
		}
		if err != nil {
			t.Fatal(err)
		}
		for b := buf[:n]; len(b) > 0; {
			size := binary.NativeEndian.Uint32(b[12:])
			name := strings.TrimRight(string(b[unix.SizeofInotifyEvent:unix.SizeofInotifyEvent+size]), "\x00")
			kind := map[uint32]string{unix.IN_CREATE: "create", unix.IN_MOVED_TO: "moved to", unix.IN_DELETE: "delete", unix.IN_MODIFY: "modify"}
			list = append(list, kind[binary.NativeEndian.Uint32(b[4:])&^unix.IN_ISDIR]+" "+name)
			b = b[unix.SizeofInotifyEvent+size:]
		}
		return list
	}
}

// TestWrite updates a volume as the kubelet would, and looks at what who watches
// it is told.
func TestWrite(t *testing.T) {
	dir := t.TempDir()
	at := filepath.Join(dir, "c/3")
	var events func() []string
	for _, tt := range []struct {
		name  string
		lines []string
		want  []string // events; nil: none
	}{
		{"new", []string{". 40755 ", "..1 40755 ", "..1/key 100640 one", "..data 120777 ..1", "key 120777 ..data/key"}, nil},
		{"again", []string{". 40755 ", "..1 40755 ", "..1/key 100640 one", "..data 120777 ..1", "key 120777 ..data/key"}, nil},
		{
			"updated",
			[]string{". 40755 ", "..2 40755 ", "..2/key 100640 two", "..2/more 100644 more", "..data 120777 ..2", "key 120777 ..data/key", "more 120777 ..data/more"},
			[]string{"create ..2", "create ..data_tmp", "moved to ..data", "create more", "delete ..1"},
		},
		{
			"a key less",
			[]string{". 40755 ", "..3 40755 ", "..3/more 100600 other", "..data 120777 ..3", "more 120777 ..data/more"},
			[]string{"create ..3", "create ..data_tmp", "moved to ..data", "delete key", "delete ..2"},
		},
		{
			"files of other kinds",
			[]string{". 42770 ", "..data 100644 a file", "more 40755 ", "more/x 104755 x"},
			[]string{"create ..data_tmp", "modify ..data_tmp", "moved to ..data", "delete more", "create more", "delete ..3"},
		},
		{
			"and back",
			[]string{". 40755 ", "..data 120777 nowhere", "more 100644 y"},
			[]string{"create ..data_tmp", "modify ..data_tmp", "delete more", "moved to more", "create ..data_tmp", "moved to ..data"},
		},
	} {
		if err := Write(dir, "c", 3, files(t, tt.lines...)); err != nil {
			t.Fatalf("%s: %v", tt.name, err)
		}
		if diff := cmp.Diff(tt.lines, tree(t, at)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", tt.name, diff)
		}
		if events == nil {
			events = watch(t, at)
			continue
		}
		if diff := cmp.Diff(tt.want, events()); diff != "" {
			t.Errorf("%s: events (-want +got):\n%s", tt.name, diff)
		}
	}
	if err := errors.Join(Write(dir, "c", 4, files(t, ". 40755 ")), Write(dir, "c", 3, nil), Write(dir, "c", 3, nil)); err != nil {
		t.Fatalf("without files: %v", err)
	}
	if left, err := os.ReadDir(filepath.Join(dir, "c")); err != nil || len(left) != 1 || left[0].Name() != "4" {
		t.Errorf("a volume without files was removed: %v are there, %v", left, err)
	}
	if err := Remove(dir, "c"); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat(filepath.Join(dir, "c")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("it is still there: %v", err)
	}
}

// TestWriteStaysInside: what a container has put there leads nowhere.
func TestWriteStaysInside(t *testing.T) {
	dir, outside := t.TempDir(), t.TempDir()
	lines := []string{". 40755 ", "sub 40755 ", "sub/key 100644 one"}
	if err := Write(dir, "c", 0, files(t, lines...)); err != nil {
		t.Fatal(err)
	}
	at := filepath.Join(dir, "c/0")
	if err := errors.Join(os.RemoveAll(at+"/sub"), os.Symlink(outside, at+"/sub"), os.Symlink(outside, at+"/other")); err != nil {
		t.Fatal(err)
	}
	if err := Write(dir, "c", 0, files(t, lines...)); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(lines, tree(t, at)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if left, err := os.ReadDir(outside); err != nil || len(left) > 0 {
		t.Errorf("outside: %v, %v", left, err)
	}
}

func TestWriteRefuses(t *testing.T) {
	for _, lines := range [][]string{
		{"key 100644 x"},
		{". 100644 x"},
		{". 40755 ", "../key 100644 x"},
		{". 40755 ", "/key 100644 x"},
		{". 40755 ", "dev 20644 x"},
	} {
		if err := Write(t.TempDir(), "c", 0, files(t, lines...)); !errors.Is(err, ErrInvalid) {
			t.Errorf("%q: %v", lines, err)
		}
	}
}
