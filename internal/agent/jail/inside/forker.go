package inside

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"runtime"
	"sync"

	"github.com/seed-efd44b36/kata/internal/agent/jail/pty"
	"golang.org/x/sys/unix"
)

// Forker is the argument that makes the program the forker: a process that stays,
// and makes further processes of containers. To start a Go program for each takes
// three times as long as all else about an exec.
//
// A thread of it becomes what the process is to be, in a container's namespaces
// and without privileges, and is then copied: the copy is a child of the agent,
// inherits all that belongs to a thread, sets what belongs to a process, and
// executes the program. The thread ends.
const Forker = "forker"

// fork carries out the plans that come over ControlFD until the agent closes that. It
// returns the exit status.
//
// The caller's goroutine must be locked to the main thread, which could not end.
func fork() int {
	// The runtime waits for this socket without a thread: a processor that is held
	// by a waiting thread is taken away from it too late.
	file := os.NewFile(ControlFD, "control")
	c, err := net.FileConn(file)
	_ = file.Close()
	if err != nil {
		return 1
	}
	conn, ok := c.(*net.UnixConn)
	if !ok {
		return 1
	}
	var deliveries sync.WaitGroup
	defer deliveries.Wait()
	for {
		p, files, err := decodeMessage(receive(conn))
		if errors.Is(err, io.EOF) {
			return 0
		}
		if err != nil || len(files) == 0 {
			return 1
		}
		deliveries.Go(func() {
			defer closeAll(files)
			// Not unlocked: the thread ends with the goroutine.
			runtime.LockOSThread()
			c := control{files[0]}
			if err := deliver(c, p, files[1:]); err != nil {
				_ = c.answer(nil, 0, err)
			}
		})
	}
}

// deliver makes the process and tells the agent, unless it returns an error.
func deliver(c control, p *Plan, files []*os.File) error {
	if len(files) != 3+len(p.Join) || p.Root != nil || p.Unshare != 0 {
		return errors.New("the plan is not one of a further process")
	}
	files, pidfds := files[:3:3], files[3:]
	if err := joinKeyring(p.Container); err != nil {
		return err
	}
	if err := enterNamespaces(p, pidfds); err != nil {
		return err
	}
	if err := setAppArmor(p.Process.AppArmor); err != nil {
		return err
	}
	var terminal *pty.PTY
	var master *os.File
	if p.Process.Terminal {
		var err error
		if terminal, err = pty.Open("/"); err != nil {
			return err
		}
		defer closeAll([]*os.File{terminal.Master, terminal.Slave})
		if err := terminal.Resize(p.Process.Width, p.Process.Height); err != nil {
			return err
		}
		files, master = []*os.File{terminal.Slave, terminal.Slave, terminal.Slave}, terminal.Master
	}
	own, err := newStdio(files)
	if err != nil {
		return err
	}
	defer own.close()
	calls, err := p.Process.limitCalls()
	if err != nil {
		return err
	}
	// Which the calls may need.
	const extra = 1<<unix.CAP_SYS_RESOURCE | 1<<unix.CAP_SYS_NICE
	image, err := p.Process.prepare(c, own, extra&permitted())
	if err != nil {
		return err
	}
	pid, errno := image.fork(own, terminal != nil, calls)
	if errno != 0 {
		return fmt.Errorf("fork: %w", errno)
	}
	// If this fails, the process ends at its gate.
	_ = c.answer(master, pid, nil)
	return nil
}
