package share

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/seed-efd44b36/kata/internal/fileserver"
	"github.com/seed-efd44b36/kata/internal/printable"
	"github.com/seed-efd44b36/kata/internal/supervise"
	"golang.org/x/sys/unix"
)

// ServerConfig says who serves a shared directory, and how.
type ServerConfig struct {
	// FS is "9p", "virtio-fs", or "auto": virtio-fs where virtiofsd is installed.
	FS string
	// Daemon is the path of virtiofsd, or "": where distributions put it.
	Daemon string
	// Socket is where virtiofsd listens for the VMM; the file must not exist. Its
	// directory must be open to root only.
	Socket string
	// Place, if set, puts the process into the sandbox's cgroup; see
	// supervise.Command.
	Place func(*syscall.SysProcAttr) error
	// Left, when set, is the connection that another server of 9p has left, in
	// place of all others.
	Left *os.File
}

// Server serves a shared directory to one VMM. It is virtiofsd, which also ends
// with the process that started it, or a fileserver.Server of this process. Both
// end with the VMM's connection, or by Close.
type Server struct {
	files *fileserver.Server // 9p; the others are of virtiofsd

	socket string
	proc   *supervise.Process
}

// serverCaps are the capabilities that virtiofsd starts with. It keeps those of
// a file server that acts for any user; the last two are for its own
// confinement, after which they are gone.
var serverCaps = []string{
	"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_DAC_READ_SEARCH", "CAP_FOWNER", "CAP_FSETID",
	"CAP_MKNOD", "CAP_SETFCAP", "CAP_SETGID", "CAP_SETUID",
	"CAP_SYS_ADMIN", "CAP_SETPCAP",
}

// findServer returns the path of virtiofsd: the configured one, or where
// distributions put it. The error says what to install.
func findServer(configured string) (string, error) {
	candidates := []string{configured}
	if configured == "" {
		candidates = []string{"/usr/libexec/virtiofsd", "/usr/lib/qemu/virtiofsd", "/usr/lib/virtiofsd", "/usr/bin/virtiofsd"}
	}
	for _, p := range candidates {
		st, err := os.Stat(p)
		switch {
		case err == nil && st.Mode().IsRegular() && st.Mode()&0o111 != 0:
			return p, nil
		case configured != "" && err != nil:
			return "", fmt.Errorf("virtio_fs_daemon: %w", err)
		case configured != "":
			return "", fmt.Errorf("virtio_fs_daemon: %s is not a program", p)
		}
	}
	return "", fmt.Errorf("virtiofsd is not installed: %w; install it (Debian: apt-get install virtiofsd, or qemu-system-common before version 13) or set shared_fs to 9p", fs.ErrNotExist)
}

// Serve starts a server of the shared directory. From then on Storage describes
// what the guest mounts.
func (d *Dir) Serve(ctx context.Context, c ServerConfig) (*Server, error) {
	if c.FS == "9p" || c.Left != nil {
		return d.serve9P(c.Left)
	}
	path, err := findServer(c.Daemon)
	if errors.Is(err, fs.ErrNotExist) && c.FS == "auto" && c.Daemon == "" {
		return d.serve9P(nil)
	}
	if err != nil {
		return nil, fmt.Errorf("virtio-fs: %w", err)
	}
	return d.serveVirtioFS(ctx, path, c)
}

func (d *Dir) serve9P(left *os.File) (_ *Server, err error) {
	var files *fileserver.Server
	if left != nil {
		files, err = fileserver.Continue(d.path, left)
	} else {
		files, err = fileserver.Start(d.path)
	}
	if err != nil {
		return nil, fmt.Errorf("9p: %w", err)
	}
	return &Server{files: files}, nil
}

// serveVirtioFS starts virtiofsd, which confines itself to the directory (mount,
// pid and network namespaces, seccomp); there is no way to switch that off.
func (d *Dir) serveVirtioFS(ctx context.Context, path string, c ServerConfig) (*Server, error) {
	l, err := listen(c.Socket)
	if err != nil {
		return nil, fmt.Errorf("start virtiofsd: %w", err)
	}
	defer l.Close()
	files, err := fileLimit()
	if err != nil {
		return nil, fmt.Errorf("start virtiofsd: %w", err)
	}
	proc, err := supervise.Start(ctx, supervise.Command{
		Path: path,
		// These arguments mean the same to QEMU's old daemon and to the new
		// one. Xattrs carry file capabilities; announced mounts keep inode
		// numbers of different file systems apart.
		Args: []string{
			"-f", "--fd=3", "--rlimit-nofile=" + strconv.FormatUint(files, 10),
			"-o", "source=" + d.path + ",sandbox=namespace,xattr,announce_submounts,cache=auto,log_level=warn",
		},
		Files: []*os.File{l}, Stderr: 16 << 10, Place: c.Place, KeepCaps: serverCaps,
	})
	if err != nil {
		return nil, fmt.Errorf("start virtiofsd: %w", errors.Join(err, os.Remove(c.Socket)))
	}
	if err := d.ServedBy(proc.PID()); err != nil {
		proc.Kill()
		<-proc.Done()
		return nil, fmt.Errorf("start virtiofsd: %w", errors.Join(err, os.Remove(c.Socket)))
	}
	d.virtiofs = true
	return &Server{socket: c.Socket, proc: proc}, nil
}

// listen makes the socket here, so that the VMM can connect at once and the
// daemon needs no path of it.
func listen(path string) (*os.File, error) {
	addr := &net.UnixAddr{Name: path, Net: "unix"}
	l, err := net.ListenUnix("unix", addr)
	if err != nil {
		return nil, err
	}
	l.SetUnlinkOnClose(false)
	f, err := l.File()
	if err := errors.Join(err, l.Close(), os.Chmod(path, 0o600)); err != nil {
		return nil, err
	}
	// The duplicate shares the flag with nobody else; a daemon that does not
	// expect it would fail to accept.
	if err := unix.SetNonblock(int(f.Fd()), false); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// fileLimit is how many files the daemon may open: it holds one for each that
// the guest knows.
func fileLimit() (uint64, error) {
	var lim unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &lim); err != nil {
		return 0, err
	}
	return min(lim.Max, 1_000_000), nil
}

// Socket is where the VMM connects to virtiofsd, "" with 9p.
func (s *Server) Socket() string { return s.socket }

// Peer is the VMM's end of the connection to a server of 9p, which whoever has
// passed it on closes; nil with virtio-fs, and where another server has had it.
func (s *Server) Peer() *os.File {
	if s.files == nil {
		return nil
	}
	return s.files.Peer()
}

// Done is closed when the server has ended.
func (s *Server) Done() <-chan struct{} {
	if s.files != nil {
		return s.files.Done()
	}
	return s.proc.Done()
}

// Err says how the server ended, with the last lines of what it printed, quoted.
// Valid after Done is closed.
func (s *Server) Err() error {
	switch {
	case s.files == nil:
		return errors.New(strings.Join(append([]string{s.proc.Exit().String()}, printable.Lines(s.proc.Stderr(), 3)...), "; "))
	case s.files.Err() != nil:
		return s.files.Err()
	default:
		return errors.New("the virtual machine has hung up")
	}
}

// Leave ends a server of 9p that is asked for nothing, and returns the connection for
// another one. The caller closes it.
func (s *Server) Leave() (*os.File, error) {
	if s.files == nil {
		return nil, fmt.Errorf("leave virtiofsd: %w", errors.ErrUnsupported)
	}
	return s.files.Leave()
}

// closeGrace is what a daemon gets to end by itself after SIGTERM.
const closeGrace = time.Second

// Close ends the server and removes its socket.
func (s *Server) Close(ctx context.Context) error {
	if s.files != nil {
		_ = s.files.Peer().Close() // if there was no VMM to pass it on to
		s.files.Close()
		return nil
	}
	// Politely first: killed, the old daemon leaves the child that serves,
	// which in turn would end only with the VMM's connection.
	_ = s.proc.Signal(unix.SIGTERM)
	timer := time.NewTimer(closeGrace)
	defer timer.Stop()
	select {
	case <-s.proc.Done():
	case <-timer.C:
		s.proc.Kill()
	case <-ctx.Done():
		s.proc.Kill()
	}
	<-s.proc.Done()
	if err := os.Remove(s.socket); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("close virtiofsd: %w", err)
	}
	return nil
}
