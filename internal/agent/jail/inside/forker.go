package inside

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"runtime"
	"sync"

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

// fork serves conversations, one for each process and each on a socket of its own
// that comes over ControlFD, until the agent closes that. It returns the exit status.
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
	var conversations sync.WaitGroup
	defer conversations.Wait()
	for {
		c, err := receiveConversation(conn)
		if errors.Is(err, io.EOF) {
			return 0
		}
		if err != nil {
			return 1
		}
		conversations.Go(func() {
			defer func() { _ = c.Close() }()
			converse(c)
		})
	}
}

// Converse sends the forker one end of a new conversation.
func Converse(forker *net.UnixConn, end *os.File) error {
	_, _, err := forker.WriteMsgUnix([]byte{0}, unix.UnixRights(int(end.Fd())), nil)
	return err
}

func receiveConversation(conn *net.UnixConn) (control, error) {
	b, oob := make([]byte, 1), make([]byte, unix.CmsgSpace(4))
	n, oobn, _, _, err := conn.ReadMsgUnix(b, oob)
	if err != nil {
		return control{}, err
	}
	if n == 0 {
		return control{}, io.EOF
	}
	files, err := attached(oob[:oobn])
	if err != nil {
		return control{}, err
	}
	if len(files) != 1 {
		closeAll(files)
		return control{}, fmt.Errorf("a conversation came with %d descriptors", len(files))
	}
	return control{files[0]}, nil
}

// converse carries one plan out.
func converse(c control) {
	// Not unlocked: the thread ends with the goroutine.
	runtime.LockOSThread()
	plan, files, err := c.receivePlan()
	if err != nil {
		_ = c.answer(nil, fmt.Errorf("receive the plan: %w", err))
		return
	}
	defer closeAll(files)
	if err := deliver(c, plan, files); err != nil {
		_ = c.answer(nil, err)
	}
}

// deliver returns nil when the process is there, or the agent was told why not.
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
	var terminal *pty
	var master *os.File
	if p.Process.Terminal {
		var err error
		if terminal, err = openPTY("/"); err != nil {
			return err
		}
		defer closeAll([]*os.File{terminal.master, terminal.slave})
		if err := terminal.resize(&p.Process); err != nil {
			return err
		}
		files, master = []*os.File{terminal.slave, terminal.slave, terminal.slave}, terminal.master
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
	if err := c.answer(master, nil); err != nil {
		return err
	}
	var b [1]byte
	if _, err := io.ReadFull(c, b[:]); err != nil || b[0] != birth {
		return nil // it is not wanted any more
	}
	pid, errno := image.fork(own, terminal != nil, calls)
	head := binary.NativeEndian.AppendUint32(nil, uint32(pid))
	_, _ = c.Write(binary.NativeEndian.AppendUint32(head, uint32(errno)))
	return nil
}
