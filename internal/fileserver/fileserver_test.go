package fileserver

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// peer speaks as QEMU's proxy driver does.
type peer struct {
	t      *testing.T
	server *Server
	conn   *os.File
	dir    string
}

// serving starts a server of an empty directory.
func serving(t *testing.T) *peer {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root, to make files of any owner")
	}
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	s, err := Start(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = s.Peer().Close()
		s.Close()
	})
	return &peer{t: t, server: s, conn: s.Peer(), dir: dir}
}

// path is that of a name on the host.
func (p *peer) path(name string) string { return filepath.Join(p.dir, name) }

// write makes a file on the host.
func (p *peer) write(name, content string) {
	p.t.Helper()
	if err := os.WriteFile(p.path(name), []byte(content), 0o600); err != nil {
		p.t.Fatal(err)
	}
}

// send sends a request.
func (p *peer) send(op operation, values ...any) {
	p.t.Helper()
	if _, err := p.conn.Write(reply(uint32(op), encode(values...))); err != nil {
		p.t.Fatal(err)
	}
}

// ask sends a request and returns the body of the reply, or its error.
func (p *peer) ask(op operation, values ...any) ([]byte, error) {
	p.t.Helper()
	p.send(op, values...)
	header := make([]byte, headerBytes)
	if _, err := io.ReadFull(p.conn, header); err != nil {
		p.t.Fatal(err)
	}
	body := make([]byte, binary.NativeEndian.Uint32(header[4:]))
	if _, err := io.ReadFull(p.conn, body); err != nil {
		p.t.Fatal(err)
	}
	if binary.NativeEndian.Uint32(header) == replyError {
		return nil, unix.Errno(-int32(binary.NativeEndian.Uint32(body)))
	}
	return body, nil
}

// must is ask for what has to succeed.
func (p *peer) must(op operation, values ...any) []byte {
	p.t.Helper()
	b, err := p.ask(op, values...)
	if err != nil {
		p.t.Fatalf("request %d %q: %v", op, values, err)
	}
	return b
}

// open is opOpen or opCreate.
func (p *peer) open(op operation, values ...any) (*os.File, error) {
	p.t.Helper()
	p.send(op, values...)
	data, control := make([]byte, 4), make([]byte, unix.CmsgSpace(4))
	n, oobn, _, _, err := unix.Recvmsg(int(p.conn.Fd()), data, control, unix.MSG_CMSG_CLOEXEC)
	if err != nil || n != len(data) {
		p.t.Fatalf("recvmsg: %d bytes, %v", n, err)
	}
	if got := int32(binary.NativeEndian.Uint32(data)); got != fileFollows {
		return nil, unix.Errno(-got)
	}
	messages, err := unix.ParseSocketControlMessage(control[:oobn])
	if err != nil || len(messages) != 1 {
		p.t.Fatalf("%d control messages, %v", len(messages), err)
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil || len(fds) != 1 {
		p.t.Fatalf("descriptors %v, %v", fds, err)
	}
	f := os.NewFile(uintptr(fds[0]), "received")
	p.t.Cleanup(func() { _ = f.Close() })
	return f, nil
}

// stat is opLstat.
func (p *peer) stat(path string) unix.Stat_t {
	p.t.Helper()
	b := p.must(opLstat, path)
	word := func() (v uint64) { v, b = binary.NativeEndian.Uint64(b), b[8:]; return v }
	half := func() (v uint32) { v, b = binary.NativeEndian.Uint32(b), b[4:]; return v }
	st := unix.Stat_t{Dev: word(), Ino: word(), Nlink: word(), Mode: half(), Uid: half(), Gid: half(), Rdev: word()}
	st.Size, st.Blksize, st.Blocks = int64(word()), int64(word()), int64(word())
	for _, t := range []*unix.Timespec{&st.Atim, &st.Mtim, &st.Ctim} {
		t.Sec, t.Nsec = int64(word()), int64(word())
	}
	if len(b) > 0 {
		p.t.Fatalf("%d bytes more than expected", len(b))
	}
	return st
}

// encode writes texts, and numbers of 32 and 64 bits.
func encode(values ...any) []byte {
	var b []byte
	for _, v := range values {
		switch v := v.(type) {
		case string:
			b = append(b, text([]byte(v))...)
		case int:
			b = binary.NativeEndian.AppendUint32(b, uint32(v))
		case uint64:
			b = binary.NativeEndian.AppendUint64(b, v)
		default:
			panic(fmt.Sprintf("%T has no encoding", v))
		}
	}
	return b
}

// TestMake makes everything that there is, of another owner than the server's.
func TestMake(t *testing.T) {
	const uid, gid = 1234, 5678
	p := serving(t)
	f, err := p.open(opCreate, "/regular", unix.O_RDWR, 0o4751, uid, gid)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteString("content"); err != nil {
		t.Error(err)
	}
	p.must(opMkdir, uid, gid, "/directory", 0o1777)
	p.must(opSymlink, uid, gid, "/no/where", "/link\x00")
	p.must(opMknod, uid, gid, "/pipe", unix.S_IFIFO|0o666, uint64(0))
	p.must(opMknod, uid, gid, "/socket", unix.S_IFSOCK|0o755, uint64(0))
	p.must(opMknod, uid, gid, "/char", unix.S_IFCHR|0o620, unix.Mkdev(1, 3))
	p.must(opMknod, uid, gid, "/block", unix.S_IFBLK|0o660, unix.Mkdev(259, 70000))
	p.must(opLink, "/regular", "/directory/hard")
	for name, want := range map[string]struct {
		mode  uint32
		rdev  uint64
		links uint64
	}{
		"/regular":        {unix.S_IFREG | 0o4751, 0, 2},
		"/directory":      {unix.S_IFDIR | 0o1777, 0, 2},
		"/link":           {unix.S_IFLNK | 0o777, 0, 1},
		"/pipe":           {unix.S_IFIFO | 0o666, 0, 1},
		"/socket":         {unix.S_IFSOCK | 0o755, 0, 1},
		"/char":           {unix.S_IFCHR | 0o620, unix.Mkdev(1, 3), 1},
		"/block":          {unix.S_IFBLK | 0o660, unix.Mkdev(259, 70000), 1},
		"/directory/hard": {unix.S_IFREG | 0o4751, 0, 2},
	} {
		st := p.stat(name)
		if st.Mode != want.mode || st.Rdev != want.rdev || st.Uid != uid || st.Gid != gid {
			t.Errorf("%s is %o of %d:%d, device %x; want %o of %d:%d, device %x", name, st.Mode, st.Uid, st.Gid, st.Rdev, want.mode, uid, gid, want.rdev)
		}
		if name != "/directory" && st.Nlink != want.links {
			t.Errorf("%s has %d links, want %d", name, st.Nlink, want.links)
		}
	}
	if got := string(p.must(opReadlink, "/link", 4096)); got != string(text([]byte("/no/where"))) {
		t.Errorf("the link says %q", got)
	}
	if p.stat("/regular").Ino != p.stat("/directory/hard").Ino {
		t.Error("two names of a file have two numbers")
	}
	// A file that was made in vain.
	if _, err := p.ask(opMkdir, -1, 0, "/nobody", 0o755); !errors.Is(err, unix.EINVAL) {
		t.Errorf("a directory of no user: %v, want %v", err, unix.EINVAL)
	}
	if _, err := os.Lstat(p.path("nobody")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("it is there: %v", err)
	}
}

// TestOnlyFilesAreOpened: what a pipe or a device is, is the guest's affair.
func TestOnlyFilesAreOpened(t *testing.T) {
	p := serving(t)
	p.must(opMknod, 0, 0, "/pipe", unix.S_IFIFO|0o666, uint64(0))
	p.must(opMknod, 0, 0, "/socket", unix.S_IFSOCK|0o666, uint64(0))
	p.must(opMknod, 0, 0, "/null", unix.S_IFCHR|0o666, unix.Mkdev(1, 3))
	p.must(opSymlink, 0, 0, "file", "/link")
	p.write("file", "content")
	for _, name := range []string{"/pipe", "/socket", "/null", "/link"} {
		for _, flags := range []int{unix.O_RDONLY, unix.O_RDWR, unix.O_WRONLY | unix.O_TRUNC} {
			if _, err := p.open(opOpen, name, flags); !errors.Is(err, unix.ENXIO) {
				t.Errorf("open %s with %x: %v, want %v", name, flags, err, unix.ENXIO)
			}
			if _, err := p.open(opCreate, name, flags, 0o600, 0, 0); !errors.Is(err, unix.ENXIO) {
				t.Errorf("create %s with %x: %v, want %v", name, flags, err, unix.ENXIO)
			}
		}
	}
	if _, err := p.open(opCreate, "/file", unix.O_RDWR|unix.O_EXCL, 0o600, 0, 0); !errors.Is(err, unix.EEXIST) {
		t.Errorf("O_EXCL: %v, want %v", err, unix.EEXIST)
	}
	f, err := p.open(opCreate, "/file", unix.O_RDONLY, 0o600, 0, 0)
	if err != nil {
		t.Fatal(err)
	}
	if b, err := io.ReadAll(f); string(b) != "content" || err != nil {
		t.Errorf("it has %q, %v", b, err)
	}
	if _, err := p.open(opOpen, "/file", unix.O_WRONLY|unix.O_TRUNC|unix.O_DIRECT); err != nil {
		t.Error(err)
	}
	if st := p.stat("/file"); st.Size != 0 {
		t.Errorf("it has %d bytes after O_TRUNC", st.Size)
	}
}

// TestADirectoryIsNoWayUp: a descriptor of a directory is one of all that is
// above it, if nothing is done about that.
func TestADirectoryIsNoWayUp(t *testing.T) {
	p := serving(t)
	p.must(opMkdir, 0, 0, "/a", 0o755)
	p.must(opMkdir, 0, 0, "/a/b", 0o755)
	for _, name := range []string{"/", "/a", "/a/b"} {
		f, err := p.open(opOpen, name, unix.O_DIRECTORY)
		if err != nil {
			t.Fatal(err)
		}
		top, err := f.Stat()
		if err != nil {
			t.Fatal(err)
		}
		for _, up := range []string{"..", "../..", "../../../../.."} {
			var st unix.Stat_t
			if err := unix.Fstatat(int(f.Fd()), up, &st, 0); err != nil {
				t.Fatal(err)
			}
			if sys, ok := top.Sys().(*syscall.Stat_t); !ok || st.Ino != sys.Ino {
				t.Errorf("%s of %s is another directory", up, name)
			}
		}
		if names, err := f.Readdirnames(-1); err != nil {
			t.Errorf("list %s: %q, %v", name, names, err)
		}
	}
}

// TestLeave: another server goes on with the connection, for another directory.
func TestLeave(t *testing.T) {
	p := serving(t)
	p.write("file", "of the first")
	p.must(opLstat, "file")
	left, err := p.server.Leave()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.server.Leave(); err == nil {
		t.Error("a server has left twice")
	}
	if err := p.server.Err(); err != nil {
		t.Errorf("the end of the first: %v", err)
	}
	p.dir = t.TempDir()
	s, err := Continue(p.dir, left)
	if err != nil {
		t.Fatal(err)
	}
	if err := left.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := p.ask(opLstat, "file"); !errors.Is(err, unix.ENOENT) {
		t.Errorf("a file of the first server's directory: %v", err)
	}
	p.write("file", "of the second")
	p.must(opLstat, "file")
	s.Close()
	if err := s.Err(); err != nil {
		t.Errorf("the end of the second: %v", err)
	}
}
