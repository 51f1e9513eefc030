//go:build integration

package differential

import (
	"fmt"
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

// runInTerminal runs the container with a terminal of 31 lines and 97 columns.
func (c *container) runInTerminal(t *testing.T, v variant) error {
	master, slave, err := openTerminal()
	if err != nil {
		return err
	}
	defer master.Close()
	c.terminal = master
	c.resize(t, 31, 97)
	c.cmd.Stdin, c.cmd.Stdout, c.cmd.Stderr = slave, slave, slave
	c.cmd.SysProcAttr = &unix.SysProcAttr{Setsid: true, Setctty: true}
	err = c.cmd.Start()
	slave.Close()
	if err != nil {
		return err
	}
	c.read(t, v, master)
	return c.cmd.Wait()
}

func (c *container) resize(t *testing.T, rows, columns uint16) {
	t.Helper()
	if err := unix.IoctlSetWinsize(int(c.terminal.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: rows, Col: columns}); err != nil {
		t.Errorf("size of the terminal: %v", err)
	}
}

// openTerminal makes a pair of pseudo-terminals.
func openTerminal() (master, slave *os.File, err error) {
	master, err = os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, nil, err
	}
	n, err := unix.IoctlGetInt(int(master.Fd()), unix.TIOCGPTN)
	if err == nil {
		err = unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0)
	}
	if err == nil {
		slave, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	}
	if err != nil {
		master.Close()
		return nil, nil, fmt.Errorf("terminal: %w", err)
	}
	return master, slave, nil
}
