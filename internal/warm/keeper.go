package warm

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"time"

	"github.com/seed-efd44b36/kata/internal/supervise"
	"golang.org/x/sys/unix"
)

// Keeper offers one clone.
type Keeper struct {
	g     Gift
	pidfd *os.File
	l     *net.UnixListener
}

// Listen offers the clone to whoever claims it first. dir is its directory. The files
// of the gift are the keeper's from now on.
func Listen(dir string, g Gift) (_ *Keeper, err error) {
	k := &Keeper{g: g}
	defer func() {
		if err != nil {
			err = fmt.Errorf("offer warm clone: %w", errors.Join(err, k.Close()))
		}
	}()
	fd, err := unix.PidfdOpen(g.Running.Process.PID(), 0)
	if err != nil {
		return nil, os.NewSyscallError("pidfd_open", err)
	}
	k.pidfd = os.NewFile(uintptr(fd), "pidfd")
	// It appears by rename: to be seen is to be ready.
	name := filepath.Join(dir, socketFile)
	if k.l, err = net.ListenUnix("unix", &net.UnixAddr{Name: name + ".new", Net: "unix"}); err != nil {
		return nil, err
	}
	k.l.SetUnlinkOnClose(false)
	if err := os.Rename(name+".new", name); err != nil {
		return nil, err
	}
	return k, nil
}

// Close gives up a clone that was not given away.
func (k *Keeper) Close() error {
	errs := []error{k.g.Close()}
	if k.pidfd != nil {
		errs = append(errs, k.pidfd.Close())
	}
	if k.l != nil {
		errs = append(errs, k.l.Close())
	}
	return errors.Join(errs...)
}

// Give waits until somebody claims the clone, and hands it over. Afterwards the
// keeper is closed.
func (k *Keeper) Give(ctx context.Context) (_ *Held, err error) {
	defer func() { err = errors.Join(err, k.Close()) }()
	defer context.AfterFunc(ctx, func() { _ = k.l.SetDeadline(time.Now()) })()
	for {
		conn, err := k.l.AcceptUnix()
		if err != nil {
			return nil, fmt.Errorf("wait for a claim: %w", errors.Join(context.Cause(ctx), err))
		}
		var want [1]byte
		err = conn.SetDeadline(time.Now().Add(handTime))
		if err == nil {
			_, err = io.ReadFull(conn, want[:])
		}
		if err != nil { // who came is gone: the clone is another's to have
			_ = conn.Close()
			continue
		}
		h := &Held{Want: int(want[0]), conn: conn}
		if err := k.hand(conn); err != nil {
			return nil, fmt.Errorf("hand warm clone over: %w", errors.Join(err, conn.Close()))
		}
		return h, nil
	}
}

func (k *Keeper) hand(conn *net.UnixConn) error {
	// Whoever comes too late is to find nothing.
	if addr, ok := k.l.Addr().(*net.UnixAddr); ok {
		if err := os.Remove(filepath.Join(filepath.Dir(addr.Name), socketFile)); err != nil {
			return err
		}
	}
	r := k.g.Running
	files := append([]*os.File{k.pidfd, r.Monitor, r.Agent, r.Console, k.g.Share, k.g.Devices.NS}, k.g.Devices.Taps...)
	var fds []int
	for _, f := range files {
		fds = append(fds, int(f.Fd()))
	}
	text, err := json.Marshal(gift{Version: version, ID: k.g.ID, PID: r.Process.PID(), Files: len(fds)})
	if err != nil {
		return err
	}
	if _, _, err = conn.WriteMsgUnix(text, unix.UnixRights(fds...), nil); err != nil {
		return err
	}
	return conn.SetDeadline(time.Time{})
}

// Held is a clone that somebody has claimed.
type Held struct {
	// Want is how many clones the owner wants to wait now: 0 if it only dismisses
	// this one.
	Want int
	conn *net.UnixConn
}

// Gone returns when its owner has ended or closed it.
func (h *Held) Gone() { _, _ = io.Copy(io.Discard, h.conn) }

// Ended tells the owner how the VMM has ended. That nothing is left of it the owner
// knows by Close, which is the last that the keeper does.
func (h *Held) Ended(x supervise.Exit, stderr []byte) error {
	e := end{Code: x.Code, Signal: int(x.Signal), At: x.At, Stderr: stderr}
	if x.Err != nil {
		e.Err = x.Err.Error()
	}
	text, err := json.Marshal(e)
	if err != nil {
		return err
	}
	if err := h.conn.SetWriteDeadline(time.Now().Add(handTime)); err != nil {
		return err
	}
	_, err = h.conn.Write(text)
	return err
}

// Close hangs up.
func (h *Held) Close() error { return h.conn.Close() }
