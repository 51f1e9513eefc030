// Package console makes terminals on the host for processes in virtual machines:
// one side is for the kata-shim, the other for the engine, to which it is sent, or
// for the terminal of a person.
package console

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"sync"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	"golang.org/x/term"
)

// Console is a terminal: the side of who looks at it, and the process's.
type Console struct {
	Master, Slave *os.File
}

// Open makes a terminal of the given size; nil or zero: as the kernel has it.
func Open(size *specs.Box) (*Console, error) {
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("make a terminal: %w", err)
	}
	if err := unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		return nil, errors.Join(fmt.Errorf("unlock the terminal: %w", err), master.Close())
	}
	// The other side by the kernel's hand and not by name.
	fd, _, errno := unix.Syscall(unix.SYS_IOCTL, master.Fd(), unix.TIOCGPTPEER, unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC)
	if errno != 0 {
		return nil, errors.Join(fmt.Errorf("open the terminal's other side: %w", errno), master.Close())
	}
	c := &Console{Master: master, Slave: os.NewFile(fd, "terminal")}
	if size != nil && size.Width > 0 && size.Height > 0 {
		if err := c.resize(int(size.Width), int(size.Height)); err != nil {
			return nil, errors.Join(err, c.Close())
		}
	}
	return c, nil
}

func (c *Console) resize(width, height int) error {
	if err := unix.IoctlSetWinsize(int(c.Master.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Col: uint16(width), Row: uint16(height)}); err != nil {
		return fmt.Errorf("set the terminal's size: %w", err)
	}
	return nil
}

// Close closes both sides. It may be called again.
func (c *Console) Close() error {
	_ = c.Slave.Close()
	_ = c.Master.Close()
	return nil
}

// Send sends the master side to who listens at a unix socket.
func (c *Console) Send(ctx context.Context, socket string) error {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", socket)
	if err != nil {
		return fmt.Errorf("console socket: %w", err)
	}
	defer conn.Close()
	uc, ok := conn.(*net.UnixConn)
	if !ok {
		return fmt.Errorf("console socket %s is not a unix socket", socket)
	}
	if _, _, err := uc.WriteMsgUnix([]byte("/dev/ptmx"), unix.UnixRights(int(c.Master.Fd())), nil); err != nil {
		return fmt.Errorf("send the terminal to the console socket: %w", err)
	}
	return nil
}

// Attach joins the master side with a person's input and output until restore,
// which waits for the last output: the other side has to be closed by then. Every
// key of a terminal belongs to the process.
func (c *Console) Attach(in, out *os.File) (restore func(), err error) {
	var old *term.State
	if term.IsTerminal(int(in.Fd())) {
		if old, err = term.MakeRaw(int(in.Fd())); err != nil {
			return nil, fmt.Errorf("raw mode of the terminal: %w", err)
		}
	}
	changed := make(chan os.Signal, 1)
	signal.Notify(changed, unix.SIGWINCH)
	var sizes, output sync.WaitGroup
	sizes.Go(func() {
		for ok := true; ok; _, ok = <-changed {
			if w, h, err := term.GetSize(int(out.Fd())); err == nil {
				_ = c.resize(w, h)
			}
		}
	})
	output.Go(func() { _, _ = io.Copy(out, c.Master) })
	go func() { _, _ = io.Copy(c.Master, in) }() // ends with this program
	return func() {
		output.Wait()
		signal.Stop(changed)
		close(changed)
		sizes.Wait()
		if old != nil {
			_ = term.Restore(int(in.Fd()), old)
		}
	}, nil
}
