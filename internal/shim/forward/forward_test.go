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
	go func() { // ends with the stream
		defer ends[1].Close()
		fmt.Fprintf(ends[1], "%d ", port)
		_, _ = io.Copy(ends[1], ends[1])
	}()
	return ends[0], nil
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
