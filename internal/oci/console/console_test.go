package console

import (
	"bufio"
	"bytes"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"github.com/seed-efd44b36/kata/test/harness"
	"golang.org/x/sys/unix"
)

// open makes a terminal that passes what is written as it is.
func open(t *testing.T, size *specs.Box) *Console {
	t.Helper()
	c, err := Open(size)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	mode, err := unix.IoctlGetTermios(int(c.Slave.Fd()), unix.TCGETS)
	if err != nil {
		t.Fatal(err)
	}
	mode.Lflag, mode.Oflag, mode.Iflag = 0, 0, 0
	mode.Cc[unix.VMIN], mode.Cc[unix.VTIME] = 1, 0
	if err := unix.IoctlSetTermios(int(c.Slave.Fd()), unix.TCSETS, mode); err != nil {
		t.Fatal(err)
	}
	return c
}

func TestOpen(t *testing.T) {
	for _, tc := range []struct {
		name       string
		size       *specs.Box
		rows, cols uint16
	}{
		{"no size", nil, 0, 0},
		{"half a size", &specs.Box{Width: 80}, 0, 0},
		{"a size", &specs.Box{Width: 80, Height: 25}, 25, 80},
	} {
		c := open(t, tc.size)
		got, err := unix.IoctlGetWinsize(int(c.Slave.Fd()), unix.TIOCGWINSZ)
		if err != nil || got.Row != tc.rows || got.Col != tc.cols {
			t.Errorf("%s: got %+v, %v; want %d × %d", tc.name, got, err, tc.cols, tc.rows)
		}
		if err := c.Close(); err != nil {
			t.Error(err)
		}
		if err := c.Close(); err != nil {
			t.Errorf("%s: close again: %v", tc.name, err)
		}
	}
}

// The engine gets the master side, which is joined with our other side.
func TestSend(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "console")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: socket, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c := open(t, nil)
	if err := c.Send(t.Context(), socket); err != nil {
		t.Fatal(err)
	}
	conn, err := l.AcceptUnix()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	b, oob := make([]byte, 64), make([]byte, unix.CmsgSpace(4))
	n, oobn, _, _, err := conn.ReadMsgUnix(b, oob)
	if err != nil || n == 0 {
		t.Fatalf("got %d bytes, %v", n, err)
	}
	messages, err := unix.ParseSocketControlMessage(oob[:oobn])
	if err != nil || len(messages) != 1 {
		t.Fatalf("got %d messages, %v", len(messages), err)
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil || len(fds) != 1 {
		t.Fatalf("got descriptors %v, %v", fds, err)
	}
	master := os.NewFile(uintptr(fds[0]), "master")
	defer master.Close()
	if _, err := c.Slave.WriteString("hello\n"); err != nil {
		t.Fatal(err)
	}
	if line, err := bufio.NewReader(master).ReadString('\n'); err != nil || line != "hello\n" {
		t.Errorf("got %q, %v", line, err)
	}
}

func TestSendToNobody(t *testing.T) {
	err := open(t, nil).Send(t.Context(), filepath.Join(t.TempDir(), "nobody"))
	if err == nil || !strings.Contains(err.Error(), "console socket") {
		t.Errorf("got %v", err)
	}
}

// What a person types gets to the process, what it says to the person, all of it
// before the end; the terminal has the size of the person's.
func TestAttach(t *testing.T) {
	c := open(t, nil)
	person := open(t, &specs.Box{Width: 91, Height: 17})
	in, typed, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _, _ = in.Close(), typed.Close() }()
	restore, err := c.Attach(in, person.Slave)
	if err != nil {
		t.Fatal(err)
	}
	harness.Poll(t, "the size of the person's terminal", func() bool {
		size, err := unix.IoctlGetWinsize(int(c.Slave.Fd()), unix.TIOCGWINSZ)
		return err == nil && size.Col == 91 && size.Row == 17
	})
	if _, err := typed.WriteString("key\n"); err != nil {
		t.Fatal(err)
	}
	if line, err := bufio.NewReader(c.Slave).ReadString('\n'); err != nil || line != "key\n" {
		t.Errorf("the process reads %q, %v", line, err)
	}
	if _, err := c.Slave.WriteString("last words\n"); err != nil {
		t.Fatal(err)
	}
	_ = c.Slave.Close()
	restore()
	_ = person.Slave.Close()
	var said bytes.Buffer
	_, _ = io.Copy(&said, person.Master) // ends with an error, as terminals do
	if said.String() != "last words\n" {
		t.Errorf("the person sees %q", said.String())
	}
}
