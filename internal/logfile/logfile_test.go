package logfile

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
)

// write writes each text to stdout in one call.
func write(t testing.TB, l *Log, texts ...string) {
	t.Helper()
	s := l.Stream("stdout")
	for _, text := range texts {
		if n, err := io.WriteString(s, text); err != nil || n != len(text) {
			t.Fatalf("write = %d, %v", n, err)
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}

func copied(t testing.TB, path string) (out, errOut string) {
	t.Helper()
	var o, e bytes.Buffer
	if err := Copy(t.Context(), path, &o, &e, Options{}); err != nil {
		t.Fatal(err)
	}
	return o.String(), e.String()
}

func TestRoundTrip(t *testing.T) {
	long := strings.Repeat("é", maxText) // twice the limit, and no cut within a character
	for name, texts := range map[string][]string{
		"lines":       {"one\ntwo\n", "three\n"},
		"in pieces":   {"on", "e\nt", "wo"},
		"no end":      {"prompt: "},
		"empty lines": {"\n\n\n"},
		"nothing":     {},
		"long":        {long, "\n", long + "\nend\n"},
		"special":     {"\"\\\t\r\x1b[31m\x00\x7f\u2028é€𝄞\n"},
		"not UTF-8":   {"a\xff\xfe\xc3\n", "\xc3", "\xa9\n", strings.Repeat("\x80", 3*maxText)},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "log")
			l, err := Create(path)
			if err != nil {
				t.Fatal(err)
			}
			write(t, l, texts...)
			if err := l.Close(); err != nil {
				t.Fatal(err)
			}
			if got, _ := copied(t, path); got != strings.Join(texts, "") {
				t.Errorf("copy = %.100q, want %.100q", got, strings.Join(texts, ""))
			}
			data, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			for line := range bytes.Lines(data) {
				if !json.Valid(line) || !utf8.Valid(line) || len(line) > maxLine {
					t.Errorf("not a line of JSON: %.100q", line)
				}
			}
		})
	}
}

func TestFormatIsDockers(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	l, err := Create(path)
	if err != nil {
		t.Fatal(err)
	}
	l.now = func() time.Time { return time.Date(2026, 1, 2, 3, 4, 5, 6, time.FixedZone("x", 3600)) }
	write(t, l, "hi \"there\"\n")
	data, err := os.ReadFile(path)
	want := `{"log":"hi \"there\"\n","stream":"stdout","time":"2026-01-02T02:04:05.000000006Z"}` + "\n"
	if diff := cmp.Diff(want, string(data)); err != nil || diff != "" {
		t.Errorf("%v, %s", err, diff)
	}
	fi, err := os.Stat(path)
	if err != nil || fi.Mode() != 0o600 {
		t.Errorf("mode %v, %v, want 600", fi.Mode(), err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	if _, err := l.Stream("stdout").Write([]byte("late\n")); !errors.Is(err, fs.ErrClosed) {
		t.Errorf("write after close: %v, want %v", err, fs.ErrClosed)
	}
}

func TestStreamsApart(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	l, err := Create(path)
	if err != nil {
		t.Fatal(err)
	}
	l.now = func() time.Time { return time.Unix(0, 0) }
	var wg sync.WaitGroup
	for _, name := range []string{"stdout", "stderr"} {
		wg.Go(func() {
			s := l.Stream(name)
			for i := range 100 {
				fmt.Fprintf(s, "%s %d\n", name, i)
			}
			_ = s.Close()
		})
	}
	wg.Wait()
	out, errOut := copied(t, path)
	if strings.Count(out, "stdout") != 100 || strings.Contains(out, "stderr") || strings.Count(errOut, "stderr") != 100 {
		t.Errorf("out %q, err %q", out, errOut)
	}
	var b bytes.Buffer
	if err := Copy(t.Context(), path, &b, io.Discard, Options{Timestamps: true}); err != nil || !strings.HasPrefix(b.String(), "1970-01-01T00:00:00Z stdout 0\n1970-") {
		t.Errorf("with timestamps: %.100q, %v", b.String(), err)
	}
	b.Reset()
	if err := Copy(t.Context(), path, &b, &b, Options{Since: time.Unix(1, 0)}); err != nil || b.Len() != 0 {
		t.Errorf("since later: %.100q, %v", b.String(), err)
	}
}

func TestRotation(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	l, err := create(path, 2000)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 1000 {
		write(t, l, fmt.Sprintf("line %d\n", i))
	}
	files, err := filepath.Glob(path + "*")
	if err != nil || len(files) != MaxFiles {
		t.Errorf("files %q, %v, want %d", files, err, MaxFiles)
	}
	for _, f := range files {
		if fi, err := os.Stat(f); err != nil || fi.Size() > 2100 {
			t.Errorf("%s has %d bytes, %v", f, fi.Size(), err)
		}
	}
	out, _ := copied(t, path)
	lines := strings.Split(strings.TrimSpace(out), "\n")
	for i, line := range lines {
		if want := fmt.Sprintf("line %d", 1000-len(lines)+i); line != want {
			t.Fatalf("line %d is %q, want %q", i, line, want)
		}
	}
	if len(lines) < 60 {
		t.Errorf("%d lines left, want about 80", len(lines))
	}
}

func TestTail(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	l, err := create(path, 300) // so that it is rotated
	if err != nil {
		t.Fatal(err)
	}
	write(t, l, "1\n", "2\n", "3\n", "4", "4\n", "5\n", "6")
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	for tail, want := range map[int]string{0: "", 1: "5\n6", 2: "44\n5\n6", 4: "2\n3\n44\n5\n6", 99: "1\n2\n3\n44\n5\n6"} {
		var out bytes.Buffer
		if err := Copy(t.Context(), path, &out, io.Discard, Options{Tail: &tail}); err != nil || out.String() != want {
			t.Errorf("the last %d lines are %q, %v; want %q", tail, out.String(), err, want)
		}
	}
}

// TestFollow reads a log while it is written and rotated. No line may be lost
// as long as the reader is not overtaken, which this one cannot be.
func TestFollow(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	var ended atomic.Bool
	pr, pw := io.Pipe()
	done := make(chan error, 1)
	go func() { // ends when Copy does, which the test waits for
		done <- Copy(t.Context(), path, pw, io.Discard, Options{Follow: true, Ended: ended.Load})
		_ = pw.Close()
	}()
	l, err := create(path, 500) // the reader was there first
	if err != nil {
		t.Fatal(err)
	}
	got := make([]byte, len("line 000\n"))
	for i := range 50 {
		want := fmt.Sprintf("line %03d\n", i)
		write(t, l, want)
		if _, err := io.ReadFull(pr, got); err != nil || string(got) != want {
			t.Fatalf("followed %q, %v, want %q", got, err, want)
		}
		if i >= 5 { // a few with the reader waiting, many without
			break
		}
	}
	var want bytes.Buffer
	for i := range 8 {
		fmt.Fprintf(&want, "more %03d\n", i)
		write(t, l, fmt.Sprintf("more %03d\n", i))
	}
	write(t, l, "no end")
	want.WriteString("no end")
	ended.Store(true)
	rest, err := io.ReadAll(pr)
	if diff := cmp.Diff(want.String(), string(rest)); err != nil || diff != "" {
		t.Errorf("followed: %v, %s", err, diff)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestFollowCancel(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	err := Copy(ctx, filepath.Join(t.TempDir(), "log"), io.Discard, io.Discard, Options{Follow: true, Ended: func() bool { return false }})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("follow after cancel: %v", err)
	}
}

func TestDamaged(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	if err := Copy(t.Context(), path, io.Discard, io.Discard, Options{}); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("copy of nothing: %v", err)
	}
	good := `{"log":"good\n","stream":"stdout","time":"2026-01-02T03:04:05Z"}` + "\n"
	content := good + "no json\n" + strings.Repeat("x", 2*maxLine) + "\n" + good + `{"log":"half`
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	err := Copy(t.Context(), path, &b, io.Discard, Options{})
	if err == nil || !strings.Contains(err.Error(), "2 lines are damaged") || b.String() != "good\ngood\n" {
		t.Errorf("copy = %q, %v", b.String(), err)
	}
	// The next run of the container mends the end.
	l, err := Create(path)
	if err != nil {
		t.Fatal(err)
	}
	write(t, l, "again\n")
	b.Reset()
	err = Copy(t.Context(), path, &b, io.Discard, Options{})
	if err == nil || !strings.Contains(err.Error(), "3 lines are damaged") || b.String() != "good\ngood\nagain\n" {
		t.Errorf("copy = %q, %v", b.String(), err)
	}
}

// TestFullDisk writes to a device that is always full.
func TestFullDisk(t *testing.T) {
	l, err := Create("/dev/full")
	if err != nil {
		t.Skip("needs /dev/full:", err)
	}
	defer l.Close()
	s := l.Stream("stdout")
	for range 2 {
		if n, err := io.WriteString(s, "line\n"); n != 5 || err == nil || !strings.Contains(err.Error(), "no space left") {
			t.Errorf("write = %d, %v", n, err)
		}
	}
}

func FuzzWrite(f *testing.F) {
	f.Add([]byte("a\nb"), 1)
	f.Add([]byte("\xff\xc3\x28\n\"\\"), 3)
	f.Add(bytes.Repeat([]byte("é"), maxText), 7)
	f.Fuzz(func(t *testing.T, data []byte, step int) {
		path := filepath.Join(t.TempDir(), "log")
		l, err := Create(path)
		if err != nil {
			t.Fatal(err)
		}
		s := l.Stream("stdout")
		for p := data; len(p) > 0; {
			n := min(len(p), max(1, step))
			if _, err := s.Write(p[:n]); err != nil {
				t.Fatal(err)
			}
			p = p[n:]
		}
		if err := errors.Join(s.Close(), l.Close()); err != nil {
			t.Fatal(err)
		}
		if got, _ := copied(t, path); len(data) > 0 && got != string(data) {
			t.Fatalf("copy = %q, want %q", got, data)
		}
	})
}

func FuzzCopy(f *testing.F) {
	f.Add([]byte(`{"log":"x\n","stream":"stderr","time":"2026-01-02T03:04:05Z"}` + "\n{\n\n"))
	f.Add([]byte(`{"log":1,"base64":"!"}` + "\n" + `{"time":"9999999-01-01"}` + "\nnull\n[]\n{}\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		path := filepath.Join(t.TempDir(), "log")
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		var out bytes.Buffer
		_ = Copy(t.Context(), path, &out, &out, Options{Timestamps: true})
		if out.Len() > 40*len(data)+100 {
			t.Errorf("%d bytes out of %d", out.Len(), len(data))
		}
	})
}

func BenchmarkWrite(b *testing.B) {
	l, err := create(filepath.Join(b.TempDir(), "log"), 1<<30)
	if err != nil {
		b.Fatal(err)
	}
	s := l.Stream("stdout")
	chunk := bytes.Repeat([]byte("a line of some usual length, as servers write them\n"), 2000)
	b.SetBytes(int64(len(chunk)))
	for b.Loop() {
		if _, err := s.Write(chunk); err != nil {
			b.Fatal(err)
		}
	}
}
