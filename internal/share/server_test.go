package share

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/seed-efd44b36/kata/internal/spec"
	"golang.org/x/sys/unix"
)

func TestServe(t *testing.T) {
	d := prepare(t)
	if _, err := findServer(""); err != nil {
		t.Skip(err)
	}
	placed := false
	s, err := d.Serve(t.Context(), ServerConfig{
		FS: "virtio-fs", Socket: filepath.Join(t.TempDir(), "fs.sock"),
		Place: func(*syscall.SysProcAttr) error { placed = true; return nil },
	})
	must(t, err)
	defer func() { must(t, s.Close(t.Context())) }()
	if !placed {
		t.Error("the daemon is not in its place")
	}
	if got := d.Storage("kata", "/run/kata/shared"); got.GetDriver() != "virtiofs" || got.GetSource() != "kata" {
		t.Errorf("storage: %v", got)
	}

	// What the VMM says first: VHOST_USER_GET_FEATURES.
	conn, err := net.Dial("unix", s.Socket()) //nolint:noctx // local
	must(t, err)
	defer conn.Close()
	must(t, conn.SetDeadline(time.Now().Add(10*time.Second)))
	_, err = conn.Write(binary.LittleEndian.AppendUint32([]byte{1, 0, 0, 0, 1, 0, 0, 0}, 0))
	must(t, err)
	reply := make([]byte, 20)
	if _, err := io.ReadFull(conn, reply); err != nil {
		conn.Close()
		<-s.Done()
		t.Fatalf("no reply: %v; daemon: %v", err, s.Err())
	}
	if binary.LittleEndian.Uint64(reply[12:])&(1<<32) == 0 {
		t.Errorf("features %x lack VIRTIO_F_VERSION_1", reply[12:])
	}

	// What is mounted from now on must arrive in the daemon's own namespace.
	src := t.TempDir()
	must(t, os.WriteFile(filepath.Join(src, "file"), []byte("text"), 0o600))
	addVolume(t, d, "c", spec.Bind{Source: src, ReadOnly: true})
	worker := sandboxed(t, s.proc.PID(), d.Path())
	root := fmt.Sprintf("/proc/%d/root", worker)
	if b, err := os.ReadFile(root + "/.volumes/0/file"); err != nil || string(b) != "text" {
		t.Errorf("file in the daemon's view: %q, %v", b, err)
	}
	for _, p := range []string{root + "/new", root + "/.volumes/0/new"} {
		if err := os.WriteFile(p, nil, 0o600); err == nil {
			t.Errorf("%s can be written in the daemon's view", p)
		}
	}
	if _, err := os.Stat(root + "/etc"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the daemon sees the host's /etc: %v", err)
	}
	// So must the protection of a root file system that was writable there.
	must(t, d.AddRootfs(t.Context(), "c", src, nil, false))
	must(t, os.WriteFile(root+"/c/rootfs/before", nil, 0o600))
	must(t, d.ProtectRootfs("c"))
	if err := os.WriteFile(root+"/c/rootfs/after", nil, 0o600); !errors.Is(err, unix.EROFS) {
		t.Errorf("write to a protected rootfs in the daemon's view: got %v, want EROFS", err)
	}
	must(t, d.Remove("c"))
	if _, err := os.Stat(root + "/c"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a removed container in the daemon's view: %v", err)
	}
	must(t, s.Close(t.Context()))
	if _, err := os.Stat(s.Socket()); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the socket is left: %v", err)
	}
	if _, err := os.Stat(root); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("process %d of the daemon is left", worker)
	}
}

// sandboxed waits until the daemon, or the child that it serves by, has made
// its root another than ours.
func sandboxed(t *testing.T, pid int, share string) int {
	t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for time.Now().Before(deadline) {
		children, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
		must(t, err)
		for f := range strings.FieldsSeq(fmt.Sprint(pid) + " " + string(children)) {
			info, err := os.ReadFile("/proc/" + f + "/mountinfo")
			if err == nil && !strings.Contains(string(info), share) && strings.Contains(string(info), " / / ") {
				var n int
				_, err := fmt.Sscan(f, &n)
				must(t, err)
				return n
			}
		}
		time.Sleep(10 * time.Millisecond) // polling another process
	}
	t.Fatal("the daemon has not confined itself in 10 s")
	return 0
}

func TestServeFailures(t *testing.T) {
	d := prepare(t)
	sock := filepath.Join(t.TempDir(), "fs.sock")
	if _, err := d.Serve(t.Context(), ServerConfig{FS: "virtio-fs", Daemon: "/absent/virtiofsd", Socket: sock}); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no daemon: got %v, want fs.ErrNotExist", err)
	}
	if _, err := os.Stat(sock); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the socket is left: %v", err)
	}
	errNo := errors.New("no")
	if _, err := d.Serve(t.Context(), ServerConfig{FS: "virtio-fs", Daemon: "/bin/true", Socket: sock, Place: func(*syscall.SysProcAttr) error { return errNo }}); !errors.Is(err, errNo) {
		t.Errorf("no place: got %v, want %v", err, errNo)
	}
	if got := d.Storage("kata", "/x"); got.GetDriver() != "9p" {
		t.Errorf("storage after a failure: %v, want 9p", got)
	}
	s, err := d.Serve(t.Context(), ServerConfig{FS: "virtio-fs", Daemon: "/bin/true", Socket: sock})
	must(t, err)
	<-s.Done()
	must(t, s.Close(t.Context()))
}

func TestFindServer(t *testing.T) {
	if got, err := findServer("/bin/true"); err != nil || got != "/bin/true" {
		t.Errorf("got %q, %v", got, err)
	}
	for _, p := range []string{"/absent", "/etc/passwd", "/etc"} {
		if got, err := findServer(p); err == nil {
			t.Errorf("%s: got %q, want an error", p, got)
		}
	}
}
