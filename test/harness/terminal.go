package harness

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// Terminal is a pseudo-terminal with a program at it, as a person's is.
type Terminal struct {
	t      testing.TB
	master *os.File
	slave  *os.File
	Screen Buffer // what the program has written
	Cmd    *exec.Cmd
	ended  chan struct{} // the program has ended
}

// AtTerminal starts the command with a terminal of the size as its controlling
// one. The program is ended with the test.
func AtTerminal(t testing.TB, cmd *exec.Cmd, columns, rows uint16) *Terminal {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	tt := &Terminal{t: t, Cmd: cmd, master: master, ended: make(chan struct{})}
	var n int
	tt.control(master, func(fd int) (err error) {
		if err = unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err == nil {
			n, err = unix.IoctlGetInt(fd, unix.TIOCGPTN)
		}
		return err
	})
	if tt.slave, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0); err != nil {
		t.Fatal(err)
	}
	tt.Resize(columns, rows)
	tt.Cmd.Stdin, tt.Cmd.Stdout, tt.Cmd.Stderr = tt.slave, tt.slave, tt.slave
	tt.Cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	if err := tt.Cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { _ = tt.Cmd.Wait(); close(tt.ended) }()
	read := make(chan struct{})
	go func() { _, _ = io.Copy(&tt.Screen, master); close(read) }() // ends when the master is closed
	t.Cleanup(func() {
		_ = tt.Cmd.Process.Signal(unix.SIGTERM) // it has ended, unless the test failed
		<-tt.ended
		_ = tt.slave.Close()
		_ = master.Close()
		<-read
		if t.Failed() {
			t.Logf("the screen:\n%s", tt.Screen.String())
		}
	})
	return tt
}

// control calls f with the descriptor of one end.
func (tt *Terminal) control(end *os.File, f func(fd int) error) {
	tt.t.Helper()
	c, err := end.SyscallConn()
	if err == nil {
		cerr := c.Control(func(fd uintptr) { err = f(int(fd)) })
		if err == nil {
			err = cerr
		}
	}
	if err != nil {
		tt.t.Fatal(err)
	}
}

// Resize changes the size, of which the program is told by SIGWINCH.
func (tt *Terminal) Resize(columns, rows uint16) {
	tt.t.Helper()
	tt.control(tt.master, func(fd int) error {
		return unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, &unix.Winsize{Col: columns, Row: rows})
	})
}

// Mode is how the terminal treats input and output.
func (tt *Terminal) Mode() unix.Termios {
	tt.t.Helper()
	var m unix.Termios
	tt.control(tt.slave, func(fd int) error {
		got, err := unix.IoctlGetTermios(fd, unix.TCGETS)
		if err == nil {
			m = *got
		}
		return err
	})
	return m
}

// Raw tells whether keys go to the program one by one, Ctrl-C too.
func (tt *Terminal) Raw() bool { return tt.Mode().Lflag&(unix.ICANON|unix.ECHO|unix.ISIG) == 0 }

// Press types keys.
func (tt *Terminal) Press(keys string) {
	tt.t.Helper()
	if _, err := io.WriteString(tt.master, keys); err != nil {
		tt.t.Fatal(err)
	}
}

// See waits until the text is on the screen.
func (tt *Terminal) See(text string) {
	tt.t.Helper()
	Poll(tt.t, fmt.Sprintf("%q is on the screen", text), func() bool { return strings.Contains(tt.Screen.String(), text) })
}

// Exit waits for the program and returns its exit code.
func (tt *Terminal) Exit() int {
	tt.t.Helper()
	Poll(tt.t, "the program ends", func() bool {
		select {
		case <-tt.ended:
			return true
		default:
			return false
		}
	})
	return tt.Cmd.ProcessState.ExitCode()
}
