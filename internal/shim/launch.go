package shim

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/seed-efd44b36/kata/internal/config"
	"github.com/seed-efd44b36/kata/internal/owner"
	"github.com/seed-efd44b36/kata/internal/pod"
	"github.com/seed-efd44b36/kata/internal/program"
	"github.com/seed-efd44b36/kata/internal/spec"
	"github.com/seed-efd44b36/kata/internal/timeline"
	"golang.org/x/sys/unix"
)

// File descriptors that a shim inherits.
const (
	listenerFD = 3 // its socket, listening
	mountsFD   = 4 // containerd's mount namespace
)

const scheme = "unix://"

// ttrpcAddressEnv names the variable by which containerd tells where it takes
// events.
const ttrpcAddressEnv = "TTRPC_ADDRESS"

// group is the id that the sandbox goes by of what is to be started in dir: a
// container, or (forSandbox) a sandbox as such, for which there is no spec.
func group(id, dir string) (leader string, forSandbox bool, err error) {
	sp, err := spec.Load(dir)
	switch {
	case err == nil:
		return pod.Group(id, sp.Annotations), false, nil
	case errors.Is(err, fs.ErrNotExist):
		return id, true, nil
	default:
		return "", false, err
	}
}

// launch starts the shim of a sandbox for the container in dir, unless the sandbox
// has one, and returns the address.
func launch(ctx context.Context, c command, p parameters, leader, dir string) (address string, err error) {
	if leader != c.id {
		return join(ctx, c.id, leader, dir)
	}
	rec := record{Sandbox: leader}
	if rec.Config, err = p.configPath(dir); err != nil {
		return "", err
	}
	// Of no other container, namespace or containerd.
	hash := fmt.Sprintf("%x", sha256.Sum256([]byte(filepath.Join(c.address, c.namespace, leader))))
	rec.Socket = filepath.Join(p.socketDir, "kata-"+hash[:32])
	if err := os.MkdirAll(p.socketDir, 0o700); err != nil {
		return "", fmt.Errorf("directory of sockets: %w", err)
	}
	// Before the socket exists: should we be killed, `delete` finds it by that.
	early := record{Socket: rec.Socket}
	if _, err := readRecord(dir); errors.Is(err, fs.ErrNotExist) {
		if err := early.write(dir); err != nil {
			return "", err
		}
	}
	listener, err := listenPrivately(ctx, rec.Socket)
	if err != nil {
		return "", err
	}
	if listener == nil {
		return scheme + rec.Socket, nil
	}
	defer listener.Close()
	if err = prepare(ctx, &rec, hash); err == nil {
		err = rec.write(dir)
	}
	if err == nil {
		err = spawn(ctx, c, listener)
	}
	if err != nil {
		return "", errors.Join(err, os.Remove(rec.Socket))
	}
	return scheme + rec.Socket, nil
}

// join finds the shim of the pod that the container in dir belongs to: the
// directories of containers are beside one another.
func join(ctx context.Context, id, leader, dir string) (address string, err error) {
	rec, err := readRecord(filepath.Join(filepath.Dir(dir), filepath.Base(leader)))
	if err == nil {
		var d net.Dialer
		var conn net.Conn
		if conn, err = d.DialContext(ctx, "unix", rec.Socket); err == nil {
			err = conn.Close()
		}
	}
	if err != nil {
		return "", fmt.Errorf("the sandbox %s of container %s is not running: %w", leader, id, err)
	}
	return scheme + rec.Socket, rec.write(dir)
}

// prepare does what takes memory that the shim is not to keep, and finds what is
// wrong with the configuration, and an id for the sandbox that is free.
func prepare(ctx context.Context, rec *record, hash string) error {
	defer timeline.Step(ctx, "configuration and guest image")()
	loaded, err := config.Load(rec.Config)
	if err != nil {
		return err
	}
	if _, err := os.Lstat(filepath.Join(loaded.Config.Runtime.StateDir, rec.Sandbox)); err == nil {
		const few = 12
		rec.Sandbox = rec.Sandbox[:min(few, len(rec.Sandbox))] + "-" + hash[:few]
	}
	return owner.Prepare(ctx, loaded.Config, slog.New(slog.DiscardHandler))
}

// listenPrivately listens at a path that no other user can connect to, not even
// before its mode is set: containerd may have made the directory for all to
// enter. The umask is the process's, so this is for `start`, which does nothing
// else at the time.
func listenPrivately(ctx context.Context, path string) (*os.File, error) {
	defer unix.Umask(unix.Umask(0o077))
	return listen(ctx, path)
}

// listen returns a socket that listens at path, or none when somebody does so
// already. One that a dead shim has left is replaced: only a refusal says that
// it is dead, whereas a live one may be too busy to answer.
func listen(ctx context.Context, path string) (*os.File, error) {
	var conf net.ListenConfig
	for range 2 {
		l, err := conf.Listen(ctx, "unix", path)
		if err == nil {
			ul := l.(*net.UnixListener)
			ul.SetUnlinkOnClose(false)
			f, ferr := ul.File()
			return f, errors.Join(ferr, os.Chmod(path, 0o600), l.Close())
		}
		if !errors.Is(err, unix.EADDRINUSE) {
			return nil, fmt.Errorf("listen for containerd: %w", err)
		}
		var d net.Dialer
		conn, err := d.DialContext(ctx, "unix", path)
		if err == nil {
			return nil, conn.Close()
		}
		if !errors.Is(err, unix.ECONNREFUSED) && !errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("ask whether the shim at %s lives: %w", path, err)
		}
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("socket of a dead shim: %w", err)
		}
	}
	return nil, fmt.Errorf("listen for containerd at %s: somebody else does so", path)
}

// spawn starts the shim, which outlives us.
func spawn(ctx context.Context, c command, listener *os.File) error {
	ctx, end := timeline.Begin(ctx, "start the shim")
	defer end()
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("start the shim: %w", err)
	}
	mounts, err := os.Open("/proc/self/ns/mnt")
	if err != nil {
		return fmt.Errorf("start the shim: %w", err)
	}
	defer mounts.Close()
	if err := unix.CloseRange(listenerFD, math.MaxUint32, unix.CLOSE_RANGE_CLOEXEC); err != nil {
		return fmt.Errorf("start the shim: keep descriptors to ourselves: %w", err)
	}
	args := []string{"-namespace", c.namespace, "-id", c.id, "-address", c.address}
	if c.debug {
		args = append(args, "-debug")
	}
	cmd := exec.Command(self, args...)
	cmd.ExtraFiles = []*os.File{listener, mounts}
	// Nothing else of containerd's surroundings: what is started from there
	// (hooks, programs that log) runs as root.
	cmd.Env = append(append(program.Environment(), timeline.Environ(ctx)...), ttrpcAddressEnv+"="+os.Getenv(ttrpcAddressEnv))
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Setsid: true, // what ends containerd must not end us
		// Whatever is mounted for the sandbox is seen by it alone and ends
		// with it.
		Unshareflags: syscall.CLONE_NEWNS,
	}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start the shim: %w", err)
	}
	return cmd.Process.Release()
}

// socketPath is the path of an address.
func socketPath(address string) string { return strings.TrimPrefix(address, scheme) }
