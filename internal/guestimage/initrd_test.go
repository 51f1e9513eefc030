package guestimage

import (
	"bytes"
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestWriteInitrd(t *testing.T) {
	p := plan{version: "6.1", modules: []module{
		{phase: phaseBoot, name: "a", data: []byte("AAAAA")},
		{phase: phaseLazy, name: "b", deps: []string{"a"}, data: []byte("BB")},
	}}
	var first, second bytes.Buffer
	for _, w := range []*bytes.Buffer{&first, &second} {
		if err := writeInitrd(w, []byte("agent"), p); err != nil {
			t.Fatal(err)
		}
	}
	if !bytes.Equal(first.Bytes(), second.Bytes()) {
		t.Error("the same input made two different archives")
	}
	got, err := readCpio(first.Bytes())
	if err != nil {
		t.Fatal(err)
	}
	want := []cpioEntry{
		{"dev", modeDir, "0:0", ""},
		{"dev/console", modeChar, "5:1", ""},
		{"proc", modeDir, "0:0", ""},
		{"sys", modeDir, "0:0", ""},
		{"run", modeDir, "0:0", ""},
		{"tmp", modeDir, "0:0", ""},
		{"etc", modeDir, "0:0", ""},
		{"etc/kata", modeDir, "0:0", ""},
		{"etc/kata/modules", modeFile, "0:0", "boot a /lib/modules/6.1/a.ko\nlazy b /lib/modules/6.1/b.ko a\n"},
		{"init", modeExec, "0:0", "agent"},
		{"sbin", modeDir, "0:0", ""},
		{"sbin/modprobe", modeLink, "0:0", "/init"},
		{"lib", modeDir, "0:0", ""},
		{"lib/modules", modeDir, "0:0", ""},
		{"lib/modules/6.1", modeDir, "0:0", ""},
		{"lib/modules/6.1/a.ko", modeFile, "0:0", "AAAAA"},
		{"lib/modules/6.1/b.ko", modeFile, "0:0", "BB"},
	}
	if diff := cmp.Diff(got, want); diff != "" {
		t.Errorf("archive differs (-got +want):\n%s", diff)
	}
}

// brokenWriter fails after some bytes.
type brokenWriter struct{ left int }

var errBroken = errors.New("disk full")

func (w *brokenWriter) Write(p []byte) (int, error) {
	if len(p) > w.left {
		return 0, errBroken
	}
	w.left -= len(p)
	return len(p), nil
}

func TestWriteInitrdReportsFirstError(t *testing.T) {
	for left := range 300 {
		err := writeInitrd(&brokenWriter{left}, []byte("agent"), plan{version: "1"})
		if !errors.Is(err, errBroken) {
			t.Fatalf("with room for %d bytes: error %v, want %v", left, err, errBroken)
		}
	}
}

func FuzzCpioWriter(f *testing.F) {
	f.Add("init", []byte("data"), "etc/x/y")
	f.Add("a", []byte(nil), "a/b")
	f.Fuzz(func(t *testing.T, name string, data []byte, other string) {
		for _, n := range []string{name, other} {
			if n == "" || n == "." || n[0] == '/' || n == "TRAILER!!!" || bytes.IndexByte([]byte(n), 0) >= 0 {
				t.Skip("not a name that is given to the writer")
			}
		}
		var out bytes.Buffer
		c := newCpioWriter(&out)
		c.file(name, modeFile, data)
		c.file(other, modeExec, nil)
		if err := c.close(); err != nil {
			t.Fatal(err)
		}
		list, err := readCpio(out.Bytes())
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range list {
			if e.Name == name && e.Mode == modeFile {
				if e.Data != string(data) {
					t.Errorf("read back %q, want %q", e.Data, data)
				}
				return
			}
		}
		t.Errorf("%q is not in the archive", name)
	})
}
