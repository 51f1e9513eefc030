package forward

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/seed-efd44b36/kata/internal/link"
	"github.com/seed-efd44b36/kata/internal/network"
	"github.com/seed-efd44b36/kata/internal/thread"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// namespace makes a network namespace whose loopback is up.
func namespace(t *testing.T) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root, to make a network namespace")
	}
	path := filepath.Join(t.TempDir(), "netns")
	if err := network.NewNS(path); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := network.DeleteNS(context.Background(), path); err != nil {
			t.Error(err)
		}
	})
	if err := inside(path, func() error {
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return err
		}
		return netlink.LinkSetUp(lo)
	}); err != nil {
		t.Fatal(err)
	}
	return path
}

func inside(path string, f func() error) error {
	return thread.Run(func() error {
		ns, err := os.Open(path)
		if err != nil {
			return err
		}
		defer ns.Close()
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
			return err
		}
		return f()
	})
}

// guest answers on port 80 and 8080 with the port's number and what it gets, and
// refuses all others.
func guest(_ context.Context, port uint16) (link.Stream, error) {
	if port != 80 && port != 8080 {
		return nil, unix.ECONNREFUSED
	}
	ours, theirs, err := unixPair()
	if err != nil {
		return nil, err
	}
	go func() { // ends with the stream
		defer theirs.Close()
		fmt.Fprintf(theirs, "%d ", port)
		_, _ = io.Copy(theirs, theirs)
	}()
	return ours, nil
}

func unixPair() (ours, theirs *net.UnixConn, err error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, err
	}
	var ends [2]*net.UnixConn
	for i := range ends {
		f := os.NewFile(uintptr(pair[i]), "stream")
		c, err := net.FileConn(f)
		if err != nil {
			return nil, nil, err
		}
		_ = f.Close()
		ends[i] = c.(*net.UnixConn)
	}
	return ends[0], ends[1], nil
}

func TestForward(t *testing.T) {
	t.Parallel()
	ns := namespace(t)
	f, err := Start(ns, guest, slog.New(slog.NewTextHandler(t.Output(), nil)))
	if errors.Is(err, errors.ErrUnsupported) {
		t.Skip("the kernel has no sk_lookup: ", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := f.Close(); err != nil {
			t.Error(err)
		}
	})
	for _, tt := range []struct{ address, want string }{
		{"127.0.0.1:80", "80 hello"},
		{"127.0.0.1:8080", "8080 hello"},
		{"[::1]:80", "80 hello"},
		{"127.0.0.1:81", "error"},
		{"127.0.0.2:80", "error"}, // an engine's own
	} {
		t.Run(tt.address, func(t *testing.T) {
			t.Parallel()
			got, err := ask(ns, tt.address)
			if err != nil {
				got = "error"
			}
			if got != tt.want {
				t.Errorf("%q, %v; want %q", got, err, tt.want)
			}
		})
	}
}

// ask says hello to an address in the namespace and returns the answer.
func ask(ns, address string) (answer string, err error) {
	err = inside(ns, func() error {
		conn, err := net.DialTimeout("tcp", address, 5*time.Second)
		if err != nil {
			return err
		}
		defer conn.Close()
		_ = conn.SetDeadline(time.Now().Add(20 * time.Second))
		if _, err := io.WriteString(conn, "hello"); err != nil {
			return err
		}
		if err := conn.(*net.TCPConn).CloseWrite(); err != nil {
			return err
		}
		b, err := io.ReadAll(conn)
		if err == nil && len(b) == 0 {
			err = io.ErrUnexpectedEOF
		}
		answer = string(b)
		return err
	})
	return answer, err
}

// pair is a connection from both ends.
func pair(t *testing.T, l *net.TCPListener) (client, server *net.TCPConn) {
	t.Helper()
	var d net.Dialer
	c, err := d.DialContext(t.Context(), "tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	if server, err = l.AcceptTCP(); err != nil {
		t.Fatal(err)
	}
	return c.(*net.TCPConn), server
}

func loopback(t *testing.T) *net.TCPListener {
	t.Helper()
	var conf net.ListenConfig
	l, err := conf.Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return l.(*net.TCPListener)
}

// failing is a listener that fails at first.
type failing struct {
	*net.TCPListener

	times int
}

func (l *failing) AcceptTCP() (*net.TCPConn, error) {
	if l.times > 0 {
		l.times--
		return nil, &net.OpError{Op: "accept", Net: "tcp", Err: unix.EMFILE}
	}
	return l.TCPListener.AcceptTCP()
}

// silent is a guest that neither answers nor ends, and counts its streams.
type silent struct {
	opened chan net.Conn
}

func (s silent) dial(context.Context, uint16) (link.Stream, error) {
	ours, theirs, err := unixPair()
	if err != nil {
		return nil, err
	}
	s.opened <- theirs
	return ours, nil
}

func newSilent(t *testing.T) silent {
	t.Helper()
	s := silent{opened: make(chan net.Conn, 8)}
	t.Cleanup(func() {
		for len(s.opened) > 0 {
			_ = (<-s.opened).Close()
		}
	})
	return s
}

// TestAcceptFails: forwarding goes on when there are descriptors again, and not
// more connections are joined at a time than there may be.
func TestAcceptFails(t *testing.T) {
	t.Parallel()
	s, l := newSilent(t), loopback(t)
	f := newForwarder(s.dial, slog.New(slog.NewTextHandler(t.Output(), nil)))
	f.pause, f.slots = time.Millisecond, make(chan struct{}, 1)
	f.listeners = []*net.TCPListener{l}
	f.work.Go(func() { f.accept(&failing{l, 3}) })
	var clients [2]net.Conn
	for i := range clients {
		var d net.Dialer
		var err error
		if clients[i], err = d.DialContext(t.Context(), "tcp", l.Addr().String()); err != nil {
			t.Fatal(err)
		}
		defer clients[i].Close()
	}
	wait := func() net.Conn {
		t.Helper()
		select {
		case c := <-s.opened:
			return c
		case <-time.After(20 * time.Second):
			t.Fatal("a connection is not forwarded")
			return nil
		}
	}
	first := wait()
	select {
	case <-s.opened:
		t.Error("there are more connections than there may be")
	case <-time.After(50 * time.Millisecond):
	}
	_ = first.Close()
	_ = clients[0].Close()
	_ = wait().Close()
	if err := f.Close(); err != nil {
		t.Error(err)
	}
}

// TestSilentGuest: a connection whose client has said all ends, though the guest
// does not end it.
func TestSilentGuest(t *testing.T) {
	t.Parallel()
	s := newSilent(t)
	f := newForwarder(s.dial, slog.New(slog.DiscardHandler))
	f.lull = 50 * time.Millisecond
	client, server := pair(t, loopback(t))
	f.work.Go(func() { f.join(server) })
	if err := client.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if b, err := io.ReadAll(client); err != nil || len(b) > 0 {
		t.Errorf("%q, %v; want the end", b, err)
	}
	if err := f.Close(); err != nil {
		t.Error(err)
	}
}

// TestStartRefuses what is not a network namespace, or is the host's.
func TestStartRefuses(t *testing.T) {
	t.Parallel()
	for path, want := range map[string]string{
		"/proc/self/ns/net":   "hostNetwork",
		"/proc/self/ns/mnt":   "not a network namespace",
		"/proc/self/status":   "not a namespace",
		t.TempDir() + "/none": "is gone",
	} {
		f, err := Start(path, guest, slog.New(slog.DiscardHandler))
		if err == nil {
			_ = f.Close()
		}
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", path, err, want)
		}
	}
}
