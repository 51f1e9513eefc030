package inside

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"runtime"
	"sync"
	"syscall"

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
	defer func() { _ = file.Close() }() // not before: its number must be nothing else's
	c, err := net.FileConn(file)
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
			deliver(control{files[0]}, p, files[1:])
		})
	}
}

// delivery is a process in the making.
type delivery struct {
	own      *stdio
	time     *os.File // the time namespace to enter, if any
	terminal *pty.PTY
	image    *image // nil before it is known
	pid      int
	answered bool // the agent has been told pid
	// failed and errno are what fork says.
	failed step
	errno  syscall.Errno
}

// deliver makes the process and tells the agent. The thread that does it has in the
// end not even our descriptors, so everything that is open is closed here.
func deliver(c control, p *Plan, files []*os.File) {
	var d delivery
	var err error
	var thread sync.WaitGroup
	thread.Go(func() {
		// Not unlocked: the thread ends with the goroutine.
		runtime.LockOSThread()
		err = d.make(c, p, files)
	})
	thread.Wait()
	if d.errno != 0 {
		err = p.Process.failureAt(d.failed, d.errno)
	}
	var master *os.File
	if d.terminal != nil {
		defer closeAll([]*os.File{d.terminal.Master, d.terminal.Slave})
		master = d.terminal.Master
	}
	if d.own != nil {
		defer d.own.close()
	}
	if d.time != nil {
		defer closeAll([]*os.File{d.time})
	}
	if d.image != nil {
		defer d.image.close()
	}
	if d.answered {
		return
	}
	if err != nil {
		master = nil
	}
	// If this fails, the process ends at its gate.
	_ = c.answer(master, d.pid, err)
}

// make makes the process. When it returns, the thread must not be used.
func (d *delivery) make(c control, p *Plan, files []*os.File) error {
	want := 3 + len(p.Join)
	if p.Time {
		want++
	}
	if len(files) != want || p.Root != nil || p.Unshare != 0 {
		return errors.New("the plan is not one of a further process")
	}
	files, pidfds := files[:3:3], files[3:]
	if err := joinKeyring(); err != nil {
		return err
	}
	if err := enterNamespaces(p, pidfds); err != nil {
		return err
	}
	if err := setAppArmor(p.Process.AppArmor); err != nil {
		return err
	}
	var err error
	if p.Process.Terminal {
		if d.terminal, err = pty.Open("/"); err != nil {
			return err
		}
		if err := d.terminal.Resize(p.Process.Width, p.Process.Height); err != nil {
			return err
		}
		files = []*os.File{d.terminal.Slave, d.terminal.Slave, d.terminal.Slave}
	}
	if d.own, err = newStdio(files); err != nil {
		return err
	}
	calls, err := p.Process.limitCalls()
	if err != nil {
		return err
	}
	calls = append(calls, p.Process.capabilityCall())
	// Which the calls may need.
	extra := uint64(1<<unix.CAP_SYS_RESOURCE | 1<<unix.CAP_SYS_NICE)
	if p.Time {
		extra |= 1 << unix.CAP_SYS_ADMIN
		fd, err := unix.FcntlInt(pidfds[len(p.Join)].Fd(), unix.F_DUPFD_CLOEXEC, free)
		if err != nil {
			return fmt.Errorf("set up the descriptor of the time namespace: %w", err)
		}
		d.time = os.NewFile(uintptr(fd), "time namespace")
	}
	d.image, err = p.Process.prepare(c, d.own, extra&permitted())
	if err != nil {
		return err
	}
	if d.time != nil {
		d.image.time = d.time.Fd()
	}
	if d.terminal == nil {
		// The thread still has its end of the socket then. To end the thread, and to
		// have another do the rest, takes as long as half of what was done until here.
		if d.image.answer, err = newPIDAnswer(); err != nil {
			return err
		}
	}
	// Afterwards nothing may be allocated: the runtime's own descriptors are not the
	// thread's any more, and a collection that begins or ends on it needs them.
	d.pid, d.failed, d.errno = d.image.fork(d.own, d.terminal != nil, calls)
	d.answered = d.image.answer.sent
	return nil
}
