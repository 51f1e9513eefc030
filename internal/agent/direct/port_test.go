package direct

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"sync"
	"testing"

	"github.com/seed-efd44b36/kata/internal/link"
	"golang.org/x/sys/unix"
)

// testPort returns a port whose device is a socket, and the host's end.
func testPort(t *testing.T) (*Port, net.Conn) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fds[1]), "host")
	host, err := net.FileConn(f)
	_ = f.Close()
	if err != nil {
		t.Fatal(err)
	}
	p, err := NewPort(fds[0], "port")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { host.Close(); p.Close() })
	return p, host
}

// testPipe returns a pipe as a process has it. With O_DIRECT each write takes
// a page of the pipe.
func testPipe(t *testing.T, flags int) (ours *File, theirs *os.File) {
	t.Helper()
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC|flags); err != nil {
		t.Fatal(err)
	}
	theirs = os.NewFile(uintptr(fds[1]), "pipe")
	ours, err := NewFile(fds[0], "pipe")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ours.Close(); theirs.Close() })
	return ours, theirs
}

func randomBytes(seed byte, n int) []byte {
	b := make([]byte, n)
	rand.NewChaCha8([32]byte{seed}).Read(b)
	return b
}

func TestPortTakes(t *testing.T) {
	p, host := testPort(t)
	ours, theirs := testPipe(t, 0)
	fd := ours.Fd()
	take := func(limit, want int) link.Taken {
		t.Helper()
		took, err := p.Take(fd, limit)
		if err != nil || took.Len() != want {
			t.Fatalf("took %v, %v, want %d bytes", took, err, want)
		}
		return took
	}
	takeNone := func(want error) {
		t.Helper()
		if took, err := p.Take(fd, 100); took != nil || !errors.Is(err, want) {
			t.Fatalf("took %v, %v, want %v", took, err, want)
		}
	}
	send := func(took link.Taken, head []byte, want string) {
		t.Helper()
		if err := took.Send(head); err != nil {
			t.Fatal(err)
		}
		got := make([]byte, len(want))
		if _, err := io.ReadFull(host, got); err != nil || string(got) != want {
			t.Fatalf("%d bytes arrived that are not the %d sent, %v", len(got), len(want), err)
		}
	}
	takeNone(unix.EAGAIN)
	io.WriteString(theirs, "hello")
	send(take(100, 5), []byte("head "), "head hello")
	io.WriteString(theirs, "hello")
	first := take(3, 3)
	second := take(100, 2) // while the first has not been sent
	send(first, nil, "hel")
	long := randomBytes(1, maxHead+1)
	send(second, long, string(long)+"lo")
	io.WriteString(theirs, "dropped")
	take(100, 7).Drop()
	io.WriteString(theirs, "hello")
	send(take(100, 5), nil, "hello")
	io.WriteString(theirs, "late")
	late := take(100, 4)
	theirs.Close()
	takeNone(io.EOF)
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	takeNone(os.ErrClosed)
	if err := late.Send([]byte("head")); err == nil {
		t.Error("a closed port sent a message")
	}
}

// A pipe may hold 64 writes of a byte, and more when a process makes it larger.
func TestPortTakesSmallPieces(t *testing.T) {
	p, host := testPort(t)
	ours, theirs := testPipe(t, unix.O_DIRECT)
	if _, err := unix.FcntlInt(theirs.Fd(), unix.F_SETPIPE_SZ, 2*takenSize); err != nil {
		t.Fatal(err)
	}
	want := randomBytes(2, 2*takenSize/os.Getpagesize())
	for i := range want {
		if _, err := theirs.Write(want[i : i+1]); err != nil {
			t.Fatal(err)
		}
	}
	theirs.Close()
	var got []byte
	for {
		took, err := p.Take(ours.Fd(), takenSize)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		b := make([]byte, took.Len()+1)
		if err := took.Send([]byte(">")); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(host, b); err != nil || b[0] != '>' {
			t.Fatalf("read %q, %v", b, err)
		}
		got = append(got, b[1:]...)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("%d bytes arrived that are not the %d sent", len(got), len(want))
	}
}

func TestPortSendsPipes(t *testing.T) {
	p, host := testPort(t)
	served := make(chan link.Listener, 1)
	go func() {
		l, err := link.Serve(p)
		if err != nil {
			t.Error(err)
		}
		served <- l
	}()
	o, err := link.Client(t.Context(), host)
	if err != nil {
		t.Fatal(err)
	}
	l := <-served
	defer l.Close()
	defer o.Close()
	var work sync.WaitGroup
	defer work.Wait()
	for i := range 3 {
		c, err := o.Open(t.Context(), link.Header{Kind: link.KindStdio, Container: "c", FD: 1})
		if err != nil {
			t.Fatal(err)
		}
		s, _, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		ours, theirs := testPipe(t, 0)
		data := randomBytes(byte(i), 5<<20+i)
		work.Go(func() {
			defer theirs.Close()
			for rest := data; len(rest) > 0; {
				n := min(len(rest), 70_000*i+1000)
				if _, err := theirs.Write(rest[:n]); err != nil {
					t.Error(err)
					return
				}
				rest = rest[n:]
			}
		})
		work.Go(func() {
			if err := link.SendPipe(s, ours); err != nil {
				t.Error(err)
			}
			s.Close()
		})
		work.Go(func() {
			defer c.Close()
			got, err := io.ReadAll(c)
			if err != nil || !bytes.Equal(got, data) {
				t.Errorf("read %d of %d bytes, %v", len(got), len(data), err)
			}
		})
	}
}

// A host that reads nothing does not keep the port from being closed.
func TestPortClosesWhileItSends(t *testing.T) {
	p, _ := testPort(t)
	ours, theirs := testPipe(t, 0)
	go func() { // ends with the pipe
		for b := make([]byte, 64<<10); ; {
			if _, err := theirs.Write(b); err != nil {
				return
			}
		}
	}()
	sending := make(chan struct{})
	done := make(chan error, 1)
	go func() {
		var err error
		for sent := 0; err == nil; sent++ {
			if sent == 2 {
				close(sending)
			}
			var took link.Taken
			readErr := ours.raw.Read(func(fd uintptr) bool {
				took, err = p.Take(fd, takenSize)
				return !errors.Is(err, unix.EAGAIN)
			})
			if err = errors.Join(readErr, err); err == nil {
				err = took.Send([]byte("head"))
			}
		}
		done <- err
	}()
	<-sending
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	// Which error it is depends on where the end came.
	if err := <-done; err == nil {
		t.Error("sending ended without an error")
	}
}
