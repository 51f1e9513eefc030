// Package pty opens terminals of a container's devpts, to which a hostile image
// may have put anything else.
package pty

import (
	"errors"
	"fmt"
	"os"

	"github.com/seed-efd44b36/kata/internal/safepath"
	"golang.org/x/sys/unix"
)

// PTY is a terminal: the side that the agent has, and the process's.
type PTY struct {
	Master, Slave *os.File
}

// Open opens a terminal of the running container whose root is dir.
func Open(dir string) (*PTY, error) {
	root, err := safepath.OpenRoot(dir)
	if err != nil {
		return nil, err
	}
	defer func() { _ = root.Close() }()
	ptmx, err := safepath.Open(root, "/dev/pts/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("open a terminal, is there a devpts at /dev/pts?: %w", err)
	}
	return New(ptmx)
}

// New makes a terminal from its master side, after a look at what that is:
// the name it was opened by belongs to the container.
func New(ptmx *os.File) (*PTY, error) {
	fd := int(ptmx.Fd())
	var st unix.Stat_t
	var fs unix.Statfs_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, err
	}
	if err := unix.Fstatfs(fd, &fs); err != nil {
		return nil, err
	}
	const ptmxDevice = 5<<8 | 2
	if fs.Type != unix.DEVPTS_SUPER_MAGIC || st.Mode&unix.S_IFMT != unix.S_IFCHR || st.Rdev != ptmxDevice {
		return nil, errors.New("open a terminal: /dev/pts/ptmx is not of a devpts")
	}
	if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
		return nil, fmt.Errorf("unlock the terminal: %w", err)
	}
	// The other side by the kernel's hand and not by name.
	slave, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.TIOCGPTPEER, unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC)
	if errno != 0 {
		return nil, fmt.Errorf("open the terminal's other side: %w", errno)
	}
	return &PTY{Master: ptmx, Slave: os.NewFile(slave, "terminal")}, nil
}

// Resize sets the terminal's size in characters, unless one of them is 0.
func (t *PTY) Resize(width, height uint16) error {
	if width == 0 || height == 0 {
		return nil
	}
	if err := unix.IoctlSetWinsize(int(t.Slave.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Col: width, Row: height}); err != nil {
		return fmt.Errorf("set the terminal's size: %w", err)
	}
	return nil
}

// Control makes the terminal the calling process's own, which must lead a session.
func (t *PTY) Control() error {
	if err := unix.IoctlSetInt(int(t.Slave.Fd()), unix.TIOCSCTTY, 0); err != nil {
		return fmt.Errorf("take the terminal: %w", err)
	}
	return nil
}
