package serial

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/seed-efd44b36/kata/internal/link"
	"golang.org/x/sys/unix"
)

func TestFind(t *testing.T) {
	dir := t.TempDir()
	if got, err := find(filepath.Join(dir, "none"), "/dev", "agent.0"); got != "" || err != nil {
		t.Errorf("no class: %q, %v", got, err)
	}
	for port, name := range map[string]string{"vport0p1": "console.0\n", "vport1p1": "agent.0\n"} {
		if err := os.Mkdir(filepath.Join(dir, port), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, port, "name"), []byte(name), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := find(dir, "/dev", "agent.0"); got != "/dev/vport1p1" || err != nil {
		t.Errorf("got %q, %v", got, err)
	}
}

// port returns a port, which is a socket, and the host's end.
func port(t *testing.T) (*Port, net.Conn) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	p, err := newPort(fds[0], "port")
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fds[1]), "host")
	defer f.Close()
	host, err := net.FileConn(f)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close(); host.Close() })
	return p, host
}

// TestHosts has one host after the other. Each leaves, and the greeting of the next
// may be there before the guest has noticed.
func TestHosts(t *testing.T) {
	p, host := port(t)
	over := make(chan error, 1)
	streams := make(chan link.Stream)
	go func() {
		for {
			l, err := p.Serve(t.Context())
			if err != nil {
				over <- err
				return
			}
			for err == nil {
				var s link.Stream
				if s, _, err = l.Accept(); err == nil {
					streams <- s
				}
			}
			l.Close()
		}
	}()
	// What a host without manners leaves behind.
	io.WriteString(host, "rest of a frame")
	for range 20 {
		o, err := link.Client(t.Context(), host)
		if err != nil {
			t.Fatal(err)
		}
		c, err := o.Open(t.Context(), link.Header{Kind: link.KindLog})
		if err != nil {
			t.Fatal(err)
		}
		s := <-streams
		if _, err := s.Write([]byte("hello")); err != nil {
			t.Fatal(err)
		}
		got := make([]byte, 5)
		if _, err := io.ReadFull(c, got); err != nil || string(got) != "hello" {
			t.Fatalf("got %q, %v", got, err)
		}
		if err := link.Leave(t.Context(), o); err != nil {
			t.Fatal(err)
		}
	}
	p.Close()
	host.Close()
	if err := <-over; err == nil || errors.Is(err, io.EOF) {
		t.Errorf("the port is closed: %v", err)
	}
}

// TestAwait waits while there is no host. A socket that is not connected is hung up
// as such a port is.
func TestAwait(t *testing.T) {
	l, err := net.ListenTCP("tcp4", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Skip("no loopback interface: ", err)
	}
	defer l.Close()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	p, err := newPort(fd, "socket")
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	came := make(chan error, 1)
	go func() { came <- p.Await() }()
	select {
	case err := <-came:
		t.Fatalf("nobody is there: %v", err)
	default:
	}
	port := l.Addr().(*net.TCPAddr).Port
	if err := unix.Connect(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}, Port: port}); err != nil && !errors.Is(err, unix.EINPROGRESS) {
		t.Fatal(err)
	}
	if err := <-came; err != nil {
		t.Error(err)
	}
	if err := p.Await(); err != nil {
		t.Error(err)
	}
}

// polled counts the descriptors of a socket that the runtime's poller knows.
func polled(t *testing.T, fd int) int {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		t.Fatal(err)
	}
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, f := range fds {
		if to, err := os.Readlink("/proc/self/fd/" + f.Name()); err != nil || to != "anon_inode:[eventpoll]" {
			continue
		}
		info, err := os.ReadFile("/proc/self/fdinfo/" + f.Name())
		if err != nil {
			t.Fatal(err)
		}
		n += strings.Count(string(info), fmt.Sprintf(" ino:%x ", st.Ino))
	}
	return n
}

// TestOnlyOneIsPolled: what one descriptor of a port is told another does not hear.
func TestOnlyOneIsPolled(t *testing.T) {
	p, _ := port(t)
	if n := polled(t, p.fd); n != 0 {
		t.Errorf("%d descriptors of an open port are polled", n)
	}
	c, err := p.Conn()
	if err != nil {
		t.Fatal(err)
	}
	if n := polled(t, p.fd); n != 1 {
		t.Errorf("%d descriptors are polled with a connection", n)
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	if err := p.Await(); err != nil {
		t.Fatal(err)
	}
	if n := polled(t, p.fd); n != 0 {
		t.Errorf("%d descriptors are polled after a wait", n)
	}
}
