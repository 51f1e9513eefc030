package stdio

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/seed-efd44b36/kata/internal/link"
	"golang.org/x/sys/unix"
)

// soon is never reached.
const soon = 20 * time.Second

func mounts(t *testing.T) *os.File {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root, to enter a mount namespace")
	}
	f, err := os.Open("/proc/self/ns/mnt")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	return f
}

// guest has the far ends of a process's streams.
type guest [3]*net.UnixConn

// open implements the argument of Join.
func (g *guest) open(_ context.Context, fd int) (link.Stream, error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	var ends [2]*net.UnixConn
	for i := range ends {
		f := os.NewFile(uintptr(pair[i]), "stream")
		c, err := net.FileConn(f)
		if err != nil {
			return nil, err
		}
		_ = f.Close()
		ends[i] = c.(*net.UnixConn)
	}
	g[fd] = ends[1]
	return ends[0], nil
}

func fifo(t *testing.T, name string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := unix.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func joined(t *testing.T, o Options) (*Set, *guest) {
	t.Helper()
	o.Mounts = mounts(t)
	s, err := Open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	g := &guest{}
	if err := s.Join(t.Context(), g.open); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for _, c := range g {
			if c != nil {
				_ = c.Close()
			}
		}
	})
	return s, g
}

func openFor(t *testing.T, path string, flags int) *os.File {
	t.Helper()
	f, err := os.OpenFile(path, flags|unix.O_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	_ = f.SetDeadline(time.Now().Add(soon))
	return f
}

// TestReaderComesBack: a process goes on when the reader of its output goes
// away, and another one gets what comes next, and the end.
func TestReaderComesBack(t *testing.T) {
	t.Parallel()
	path := fifo(t, "out")
	s, g := joined(t, Options{Stdout: path})
	first := openFor(t, path, os.O_RDONLY)
	if _, err := io.WriteString(g[1], "one\n"); err != nil {
		t.Fatal(err)
	}
	if l, err := bufio.NewReader(first).ReadString('\n'); l != "one\n" {
		t.Fatalf("first reader: %q, %v", l, err)
	}
	_ = first.Close()
	if _, err := io.WriteString(g[1], "two\n"); err != nil {
		t.Fatal(err)
	}
	second := openFor(t, path, os.O_RDONLY)
	_ = g[1].Close()
	s.Drain(t.Context(), soon, soon)
	if b, err := io.ReadAll(second); string(b) != "two\n" {
		t.Errorf("second reader: %q, %v", b, err)
	}
}

// TestInputEnds when the client has said so and has closed it, in any order.
func TestInputEnds(t *testing.T) {
	t.Parallel()
	for _, early := range []bool{false, true} {
		t.Run(fmt.Sprintf("said before it is closed: %v", early), func(t *testing.T) {
			t.Parallel()
			path := fifo(t, "in")
			s, g := joined(t, Options{Stdin: path})
			_ = g[0].SetDeadline(time.Now().Add(soon))
			client := openFor(t, path, os.O_WRONLY)
			if early {
				s.CloseInput()
			}
			if _, err := io.WriteString(client, "hello\n"); err != nil {
				t.Fatal(err)
			}
			r := bufio.NewReader(g[0])
			if l, err := r.ReadString('\n'); l != "hello\n" {
				t.Fatalf("%q, %v", l, err)
			}
			_ = client.Close()
			if !early {
				// Another client goes on where the first has left.
				next := openFor(t, path, os.O_WRONLY)
				if _, err := io.WriteString(next, "again\n"); err != nil {
					t.Fatal(err)
				}
				if l, err := r.ReadString('\n'); l != "again\n" {
					t.Fatalf("%q, %v", l, err)
				}
				_ = next.Close()
				s.CloseInput()
			}
			if b, err := io.ReadAll(r); err != nil || len(b) != 0 {
				t.Errorf("after the end: %q, %v", b, err)
			}
		})
	}
}

// TestShortInput is over before the process is joined to it.
func TestShortInput(t *testing.T) {
	t.Parallel()
	path := fifo(t, "in")
	s, err := Open(t.Context(), Options{Stdin: path, Mounts: mounts(t)})
	if err != nil {
		t.Fatal(err)
	}
	s.CloseInput()
	written := make(chan error, 1)
	go func() { // ends with Join
		f, err := os.OpenFile(path, os.O_WRONLY, 0)
		if err == nil {
			_, err = io.WriteString(f, "x")
			_ = f.Close()
		}
		written <- err
	}()
	g := &guest{}
	if err := s.Join(t.Context(), g.open); err != nil {
		t.Fatal(err)
	}
	_ = g[0].SetDeadline(time.Now().Add(soon))
	if err := <-written; err != nil {
		t.Fatal(err)
	}
	// What came too late for the end is lost, but the end comes.
	if _, err := io.ReadAll(g[0]); err != nil {
		t.Error(err)
	}
	_ = g[0].Close()
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}

// TestJoinAgain: after a failure it goes on with the input that it has, and
// after a success there is nothing to do.
func TestJoinAgain(t *testing.T) {
	t.Parallel()
	in := fifo(t, "in")
	s, err := Open(t.Context(), Options{Stdin: in, Stdout: fifo(t, "out"), Mounts: mounts(t)})
	if err != nil {
		t.Fatal(err)
	}
	g, failed := &guest{}, errors.New("failed")
	var first *os.File
	for i := range 4 {
		err := s.Join(t.Context(), func(ctx context.Context, fd int) (link.Stream, error) {
			if fd == 1 && i < 2 {
				return nil, failed
			}
			if i > 2 {
				t.Error("a stream is opened again")
			}
			if g[fd] != nil {
				_ = g[fd].Close()
			}
			return g.open(ctx, fd)
		})
		if want := i < 2; errors.Is(err, failed) != want || err != nil && !want {
			t.Errorf("attempt %d: %v", i, err)
		}
		if first == nil {
			first = s.in
		}
		if s.in != first {
			t.Errorf("attempt %d opens the input again", i)
		}
	}
	for _, c := range g[:2] {
		_ = c.Close()
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}

// TestNobodyReads: output that nobody takes is given up.
func TestNobodyReads(t *testing.T) {
	t.Parallel()
	s, g := joined(t, Options{Stdout: fifo(t, "out")})
	_ = g[1].SetWriteDeadline(time.Now().Add(200 * time.Millisecond))
	_, _ = g[1].Write(make([]byte, 16<<20)) // until it stands still
	s.Drain(t.Context(), 50*time.Millisecond, soon)
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}

// TestTrickle: output that moves for ever, a byte at a time, is given up too.
func TestTrickle(t *testing.T) {
	t.Parallel()
	s, g := joined(t, Options{Stdout: "file://" + filepath.Join(t.TempDir(), "log")})
	var writing sync.WaitGroup
	writing.Go(func() { // ends with Close
		for {
			if _, err := g[1].Write([]byte("x")); err != nil {
				return
			}
		}
	})
	drained := make(chan struct{})
	go func() {
		defer close(drained)
		s.Drain(t.Context(), soon/2, 100*time.Millisecond)
	}()
	select {
	case <-drained:
	case <-time.After(soon):
		t.Error("Drain waits for ever")
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	writing.Wait()
}

func TestFile(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "new", "log")
	s, g := joined(t, Options{Stdout: "file://" + path, Stderr: "file://" + path})
	for fd, text := range map[int]string{1: "out\n", 2: "err\n"} {
		if _, err := io.WriteString(g[fd], text); err != nil {
			t.Fatal(err)
		}
		_ = g[fd].Close()
	}
	s.Drain(t.Context(), soon, soon)
	b, err := os.ReadFile(path)
	if got := string(b); err != nil || got != "out\nerr\n" && got != "err\nout\n" {
		t.Errorf("the file has %q, %v", b, err)
	}
}

func TestLogger(t *testing.T) {
	t.Parallel()
	ns := mounts(t)
	dir := t.TempDir()
	program := filepath.Join(dir, "logger")
	script := "#!/bin/sh\necho \"$CONTAINER_NAMESPACE $CONTAINER_ID $*\" >" + dir + "/log\nexec 5>&-\ncat <&3 >>" + dir + "/log\ncat <&4 >>" + dir + "/log\n"
	if err := os.WriteFile(program, []byte(script), 0o700); err != nil {
		t.Fatal(err)
	}
	s, err := Open(t.Context(), Options{
		Stdout: "binary://" + program + "?key=value", Stderr: "binary://" + program + "?key=value",
		Namespace: "n", Container: "c", Mounts: ns,
	})
	if err != nil {
		t.Fatal(err)
	}
	g := &guest{}
	if err := s.Join(t.Context(), g.open); err != nil {
		t.Fatal(err)
	}
	for fd, text := range map[int]string{1: "out\n", 2: "err\n"} {
		if _, err := io.WriteString(g[fd], text); err != nil {
			t.Fatal(err)
		}
		_ = g[fd].Close()
	}
	s.Drain(t.Context(), soon, soon)
	if err := s.Close(); err != nil { // the program has ended
		t.Error(err)
	}
	b, err := os.ReadFile(dir + "/log")
	if err != nil || string(b) != "n c key value\nout\nerr\n" {
		t.Errorf("the log has %q, %v", b, err)
	}
}

func TestOpenRefuses(t *testing.T) {
	t.Parallel()
	ns := mounts(t)
	for _, tt := range []struct {
		o    Options
		want string
	}{
		{Options{Stdout: "relative"}, "not an absolute path"},
		{Options{Stdout: "/nowhere/fifo"}, "no such file"},
		{Options{Stdout: "npipe://x"}, "no way to write"},
		{Options{Stdin: "binary:///bin/true"}, "use a named pipe"},
		{Options{Stdout: "binary:///nowhere/program"}, "no such file"},
		{Options{Stdout: "%zz"}, "invalid URL escape"},
	} {
		tt.o.Mounts = ns
		s, err := Open(t.Context(), tt.o)
		if err == nil {
			_ = s.Close()
		}
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%+v: %v, want one with %q", tt.o, err, tt.want)
		}
	}
}

// TestEnd: why a guest is gone is the last line of a process, where it can be read,
// and then the output is over.
func TestEnd(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name           string
		terminal       bool
		outputs        [3]bool
		stdout, stderr string
	}{
		{"both outputs", false, [3]bool{1: true, 2: true}, "", "why\n"},
		{"one output", false, [3]bool{1: true}, "why\n", ""},
		{"a terminal", true, [3]bool{1: true}, "why\r\n", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			o := Options{Terminal: tt.terminal}
			var readers [3]*os.File
			for fd, name := range map[int]*string{1: &o.Stdout, 2: &o.Stderr} {
				if tt.outputs[fd] {
					*name = fifo(t, "out")
					readers[fd] = openFor(t, *name, os.O_RDONLY)
				}
			}
			s, g := joined(t, o)
			for fd, text := range map[int]string{1: "out\n", 2: "err\n"} {
				if g[fd] == nil {
					continue
				}
				if _, err := io.WriteString(g[fd], text); err != nil {
					t.Fatal(err)
				}
				b := make([]byte, len(text)) // what is under way would be lost
				if _, err := io.ReadFull(readers[fd], b); err != nil || string(b) != text {
					t.Fatalf("%q, %v", b, err)
				}
			}
			s.End("why")
			s.End("why")
			for fd, want := range map[int]string{1: tt.stdout, 2: tt.stderr} {
				if readers[fd] == nil {
					continue
				}
				if b, err := io.ReadAll(readers[fd]); err != nil || string(b) != want {
					t.Errorf("descriptor %d: %q, %v; want %q", fd, b, err, want)
				}
			}
		})
	}
}

// lost is a stream whose other side goes without having ended it.
type lost struct{ *net.UnixConn }

// Read implements io.Reader.
func (l lost) Read(b []byte) (int, error) {
	n, err := l.UnixConn.Read(b)
	if errors.Is(err, io.EOF) {
		err = unix.ECONNRESET
	}
	return n, err
}

// TestLostOutput: an output that a guest drops is kept until the process has ended,
// and not a moment longer: clients wait for its end before they delete the process.
func TestLostOutput(t *testing.T) {
	t.Parallel()
	for _, first := range []string{"process", "stream"} {
		t.Run(first+" ends first", func(t *testing.T) {
			t.Parallel()
			path := fifo(t, "out")
			reader := openFor(t, path, os.O_RDONLY)
			s, err := Open(t.Context(), Options{Stdout: path, Mounts: mounts(t)})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = s.Close() })
			g := &guest{}
			if err := s.Join(t.Context(), func(ctx context.Context, fd int) (link.Stream, error) {
				st, err := g.open(ctx, fd)
				if err != nil {
					return nil, err
				}
				return lost{st.(*net.UnixConn)}, nil
			}); err != nil {
				t.Fatal(err)
			}
			drop := func() {
				_ = g[1].Close()
				<-s.drained
			}
			if first == "stream" {
				drop()
				_ = reader.SetDeadline(time.Now().Add(50 * time.Millisecond))
				if n, err := reader.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
					t.Errorf("before the end of the process: %d, %v", n, err)
				}
				_ = reader.SetDeadline(time.Now().Add(soon))
				s.End("")
			} else {
				s.End("")
				drop()
			}
			if b, err := io.ReadAll(reader); err != nil || len(b) > 0 {
				t.Errorf("%q, %v; want the end", b, err)
			}
		})
	}
}
