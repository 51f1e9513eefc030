package resolver

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/seed-efd44b36/kata/internal/network"
	host "github.com/seed-efd44b36/kata/internal/resolver"
	"github.com/seed-efd44b36/kata/internal/thread"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// patience is for what does not come at all.
const patience = 60 * time.Second

// namespace makes a network namespace whose loopback is up.
func namespace(t *testing.T) *os.File {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root, to make a network namespace")
	}
	path := filepath.Join(t.TempDir(), "netns")
	if err := network.NewNS(path); err != nil {
		t.Fatal(err)
	}
	ns, err := network.OpenNS(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(ns.Close(), network.DeleteNS(context.Background(), path)); err != nil {
			t.Error(err)
		}
	})
	inside(t, ns, func() error {
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return err
		}
		return netlink.LinkSetUp(lo)
	})
	return ns
}

func inside(t *testing.T, ns *os.File, f func() error) {
	t.Helper()
	if err := thread.Run(func() error {
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
			return err
		}
		return f()
	}); err != nil {
		t.Fatal(err)
	}
}

func dial(t *testing.T, ns *os.File, protocol string) net.Conn {
	t.Helper()
	var conn net.Conn
	inside(t, ns, func() (err error) {
		var d net.Dialer
		conn, err = d.DialContext(t.Context(), protocol, "127.0.0.11:53")
		return err
	})
	t.Cleanup(func() { _ = conn.Close() })
	_ = conn.SetDeadline(time.Now().Add(patience))
	return conn
}

// engine has a name server in the namespace that answers with what it is asked and
// how it was. It keeps a question to itself that begins with a zero.
func engine(t *testing.T, ns *os.File) {
	t.Helper()
	var work sync.WaitGroup
	var u net.PacketConn
	var l net.Listener
	inside(t, ns, func() (err error) {
		var conf net.ListenConfig
		if u, err = conf.ListenPacket(t.Context(), "udp4", "127.0.0.11:53"); err != nil {
			return err
		}
		l, err = conf.Listen(t.Context(), "tcp4", "127.0.0.11:53")
		return err
	})
	t.Cleanup(func() { _, _ = u.Close(), l.Close(); work.Wait() })
	work.Go(func() {
		b := make([]byte, 65535)
		for {
			n, from, err := u.ReadFrom(b)
			if err != nil {
				return
			}
			if b[0] != 0 {
				_, _ = u.WriteTo(append(b[:n:n], "udp"...), from)
			}
		}
	})
	work.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			if b, err := framed(c); err == nil {
				_, _ = c.Write(frame(append(b, "tcp"...)))
			}
			_ = c.Close()
		}
	})
}

func frame(b []byte) []byte {
	return append(binary.BigEndian.AppendUint16(nil, uint16(len(b))), b...)
}

func framed(r io.Reader) ([]byte, error) {
	var size [2]byte
	if _, err := io.ReadFull(r, size[:]); err != nil {
		return nil, err
	}
	b := make([]byte, binary.BigEndian.Uint16(size[:]))
	_, err := io.ReadFull(r, b)
	return b, err
}

// streams are the ends of a stream.
func streams(t *testing.T) (ours, theirs *net.UnixConn) {
	t.Helper()
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	var ends [2]*net.UnixConn
	for i := range ends {
		f := os.NewFile(uintptr(pair[i]), "stream")
		c, err := net.FileConn(f)
		if err != nil {
			t.Fatal(err)
		}
		_ = f.Close()
		ends[i] = c.(*net.UnixConn)
	}
	return ends[0], ends[1]
}

// start joins the namespace of a guest with that of an engine.
func start(t *testing.T, guest, engine *os.File) (stop func()) {
	t.Helper()
	var s *sockets
	inside(t, guest, func() (err error) {
		s, err = listen()
		return err
	})
	near, far := streams(t)
	ctx, end := context.WithCancel(t.Context())
	var work sync.WaitGroup
	work.Go(func() {
		defer far.Close()
		serve(ctx, far, s, slog.New(slog.NewTextHandler(t.Output(), nil)))
	})
	var ready [1]byte
	if _, err := io.ReadFull(near, ready[:]); err != nil {
		t.Fatal(err)
	}
	work.Go(func() {
		if err := host.Serve(ctx, near, engine); err != nil && ctx.Err() == nil {
			t.Error(err)
		}
	})
	stop = sync.OnceFunc(func() { end(); work.Wait() })
	t.Cleanup(stop)
	return stop
}

// TestResolve asks an engine's server from a guest, by both protocols, more questions
// at once than there may be, and beside a server that has bound the port for all
// addresses.
func TestResolve(t *testing.T) {
	t.Parallel()
	guest, outside := namespace(t), namespace(t)
	look := func(want bool) {
		t.Helper()
		if got, err := host.Present(outside); err != nil || got != want {
			t.Errorf("a name server is there: %v, %v; want %v", got, err, want)
		}
	}
	look(false)
	engine(t, outside)
	look(true)
	stop := start(t, guest, outside)

	inside(t, guest, func() error { // as a container's own
		var conf net.ListenConfig
		u, err := conf.ListenPacket(t.Context(), "udp4", ":53")
		if err != nil {
			return err
		}
		l, err := conf.Listen(t.Context(), "tcp4", ":53")
		if err != nil {
			return err
		}
		t.Cleanup(func() { _, _ = u.Close(), l.Close() })
		return nil
	})

	var work sync.WaitGroup
	for i := range 2 * maxQuestions {
		work.Go(func() {
			c := dial(t, guest, "udp4")
			q := bytes.Repeat([]byte{byte(i + 1)}, 12+i)
			b := make([]byte, 65535)
			if _, err := c.Write(q); err != nil {
				t.Error(err)
			}
			if n, err := c.Read(b); err != nil || string(b[:n]) != string(q)+"udp" {
				t.Errorf("%q, %v; want %q and how it was asked", b[:n], err, q)
			}
		})
	}
	work.Wait()
	c := dial(t, guest, "tcp4")
	for _, n := range []int{12, 60000} {
		q := bytes.Repeat([]byte{7}, n)
		if _, err := c.Write(frame(q)); err != nil {
			t.Fatal(err)
		}
		if b, err := framed(c); err != nil || string(b) != string(q)+"tcp" {
			t.Errorf("%d bytes by TCP: %d bytes, %v", n, len(b), err)
		}
	}
	if _, err := c.Write(frame(make([]byte, 11))); err != nil {
		t.Fatal(err)
	}
	if b, err := framed(c); !errors.Is(err, io.EOF) {
		t.Errorf("a question of 11 bytes: %q, %v; want the end", b, err)
	}

	// It ends though a question has no answer.
	silent := dial(t, guest, "udp4")
	if _, err := silent.Write(make([]byte, 12)); err != nil {
		t.Fatal(err)
	}
	stop()
}
