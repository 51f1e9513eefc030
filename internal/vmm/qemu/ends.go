package qemu

import (
	"fmt"
	"net"
	"os"

	"github.com/seed-efd44b36/kata/internal/vmm"
	"golang.org/x/sys/unix"
)

// ends are both sides of the connections between us and QEMU.
type ends struct {
	theirs backends   // go to QEMU
	made   []*os.File // those of theirs that are ours to close

	qmp, agent, console *net.UnixConn
}

// openEnds makes all connections and opens what the devices need. On error
// nothing stays open.
func openEnds(c vmm.Config) (*ends, error) {
	e := &ends{}
	if err := e.open(c); err != nil {
		e.closeTheirs()
		e.closeOurs()
		return nil, err
	}
	return e, nil
}

func (e *ends) open(c vmm.Config) (err error) {
	if e.qmp, e.theirs.qmp, err = e.pair("qmp"); err != nil {
		return err
	}
	if e.agent, e.theirs.agent, err = e.pair("agent"); err != nil {
		return err
	}
	if e.console, e.theirs.console, err = e.pair("console"); err != nil {
		return err
	}
	if c.VsockCID != 0 {
		f, err := os.OpenFile("/dev/vhost-vsock", os.O_RDWR|unix.O_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("open the vsock device: %w (modprobe vhost_vsock, or set hypervisor.vsock to \"off\")", err)
		}
		e.theirs.vhostVsock = f
		e.made = append(e.made, f)
	}
	if c.Share.Socket != "" {
		f, err := connect(c.Share.Socket)
		if err != nil {
			return fmt.Errorf("connect to virtiofsd: %w", err)
		}
		e.theirs.virtiofs = f
		e.made = append(e.made, f)
	}
	return nil
}

// pair makes a connection; the second end is for QEMU.
func (e *ends) pair(name string) (*net.UnixConn, *os.File, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("make the %s connection: %w", name, err)
	}
	ours, theirs := os.NewFile(uintptr(fds[0]), name), os.NewFile(uintptr(fds[1]), name)
	e.made = append(e.made, theirs)
	conn, err := unixConn(ours)
	_ = ours.Close()
	if err != nil {
		return nil, nil, fmt.Errorf("make the %s connection: %w", name, err)
	}
	return conn, theirs, nil
}

// connect returns a connection to a unix socket as a file.
func connect(path string) (*os.File, error) {
	conn, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, err
	}
	defer func() { _ = conn.Close() }()
	return conn.File() // a duplicate
}

// closeTheirs closes our copies of QEMU's ends. It may be called twice.
func (e *ends) closeTheirs() {
	for _, f := range e.made {
		_ = f.Close()
	}
	e.made = nil
}

// closeOurs closes our ends, for a QEMU that was never started.
func (e *ends) closeOurs() {
	for _, conn := range []*net.UnixConn{e.qmp, e.agent, e.console} {
		if conn != nil {
			_ = conn.Close()
		}
	}
}
