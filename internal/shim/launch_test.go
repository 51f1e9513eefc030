package shim

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestJoin: a container of a pod finds the pod's shim by the record beside it.
func TestJoin(t *testing.T) {
	t.Parallel()
	dir, err := os.MkdirTemp("", "kata") //nolint:usetesting // the test's name is too long for a socket's path
	if err != nil {
		t.Fatal(err)
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = root.RemoveAll("pod")
		_ = root.RemoveAll("c")
		_ = root.Close()
		_ = os.Remove(dir)
	})
	pod, c := filepath.Join(dir, "pod"), filepath.Join(dir, "c")
	for _, d := range []string{pod, c} {
		if err := os.Mkdir(d, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := join(t.Context(), "c", "pod", c); err == nil || !strings.Contains(err.Error(), "is not running") {
		t.Errorf("without a shim: %v", err)
	}
	rec := record{Sandbox: "pod-1234", Socket: filepath.Join(pod, "s"), Config: "/x"}
	if err := rec.write(pod); err != nil {
		t.Fatal(err)
	}
	if _, err := join(t.Context(), "c", "pod", c); err == nil || !strings.Contains(err.Error(), "is not running") {
		t.Errorf("with a dead shim: %v", err)
	}
	l := listenAt(t, rec.Socket)
	defer l.Close()
	address, err := join(t.Context(), "c", "pod", c)
	if err != nil || address != scheme+rec.Socket {
		t.Errorf("with a shim: %q, %v", address, err)
	}
	if got, err := readRecord(c); err != nil || got != rec {
		t.Errorf("the record is %+v, %v; want the pod's", got, err)
	}
}

// TestListen: of two shims for one container only one listens, and a dead one's
// socket is taken over.
func TestListen(t *testing.T) {
	t.Parallel()
	dir, err := os.MkdirTemp("", "kata") //nolint:usetesting // as above
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "s")
	t.Cleanup(func() {
		_ = os.Remove(path)
		_ = os.Remove(dir)
	})
	first, err := listen(t.Context(), path)
	if err != nil || first == nil {
		t.Fatalf("first: %v, %v", first, err)
	}
	if st, err := os.Stat(path); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("mode of the socket: %v, %v; want 0600", st.Mode(), err)
	}
	if second, err := listen(t.Context(), path); err != nil || second != nil {
		t.Errorf("second: %v, %v; want none", second, err)
	}
	_ = first.Close()
	third, err := listen(t.Context(), path)
	if err != nil || third == nil {
		t.Fatalf("after the first has died: %v, %v", third, err)
	}
	_ = third.Close()
}

// TestListenKeepsBusySocket: a shim that cannot take a connection just now is
// alive, and keeps its socket.
func TestListenKeepsBusySocket(t *testing.T) {
	t.Parallel()
	dir, err := os.MkdirTemp("", "kata") //nolint:usetesting // as above
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "s")
	addr := &unix.SockaddrUnix{Name: path}
	socket := func() int {
		fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = unix.Close(fd) })
		return fd
	}
	t.Cleanup(func() {
		_ = os.Remove(path)
		_ = os.Remove(dir)
	})
	l := socket()
	if err := errors.Join(unix.Bind(l, addr), unix.Listen(l, 0)); err != nil {
		t.Fatal(err)
	}
	for err = nil; err == nil; {
		err = unix.Connect(socket(), addr) // until it takes no more
	}
	if f, err := listen(t.Context(), path); err == nil || f != nil || !strings.Contains(err.Error(), "lives") {
		t.Errorf("%v, %v; want an error", f, err)
	}
	if _, err := os.Stat(path); err != nil {
		t.Errorf("the socket is gone: %v", err)
	}
}
