package share

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"strconv"
	"time"

	"github.com/seed-efd44b36/kata/internal/supervise"
	"golang.org/x/sys/unix"
)

// ServerConfig says how virtiofsd is started.
type ServerConfig struct {
	// Path of virtiofsd, see FindServer.
	Path string
	// Socket is where it listens for the VMM; the file must not exist. Its
	// directory must be open to root only.
	Socket string
	// Cgroup, if set, puts the process with the given id into the sandbox's
	// cgroup.
	Cgroup func(pid int) error
}

// Server is a virtiofsd that serves a shared directory. It ends with the VMM's
// connection, with the process that started it, or by Close.
type Server struct {
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

// FindServer returns the path of virtiofsd: the configured one, or where
// distributions put it. The error says what to install.
func FindServer(configured string) (string, error) {
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

// Serve starts virtiofsd on the shared directory. From then on Storage
// describes a virtio-fs mount. The daemon confines itself to the directory
// (mount, pid and network namespaces, seccomp); there is no way to switch that
// off.
func (d *Dir) Serve(ctx context.Context, c ServerConfig) (*Server, error) {
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
		Path: c.Path,
		// These arguments mean the same to QEMU's old daemon and to the new
		// one. Xattrs carry file capabilities; announced mounts keep inode
		// numbers of different file systems apart.
		Args: []string{
			"-f", "--fd=3", "--rlimit-nofile=" + strconv.FormatUint(files, 10),
			"-o", "source=" + d.path + ",sandbox=namespace,xattr,announce_submounts,cache=auto,log_level=warn",
		},
		Files: []*os.File{l}, Stderr: 16 << 10, Cgroup: c.Cgroup, KeepCaps: serverCaps,
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

// Socket is where the VMM connects.
func (s *Server) Socket() string { return s.socket }

// Done is closed when the daemon has ended.
func (s *Server) Done() <-chan struct{} { return s.proc.Done() }

// Failure says how the daemon ended, with what it printed last. Raw text: it
// may quote what the guest has sent. Valid after Done is closed.
func (s *Server) Failure() (exit string, output []byte) {
	return s.proc.Exit().String(), s.proc.Stderr()
}

// closeGrace is what a daemon gets to end by itself after SIGTERM.
const closeGrace = time.Second

// Close ends the daemon and removes its socket.
func (s *Server) Close(ctx context.Context) error {
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
