package standin

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/seed-efd44b36/kata/internal/program"
	"github.com/seed-efd44b36/kata/internal/thread"
	"golang.org/x/sys/unix"
)

// joinTimeout bounds what a kata-shim does before it is of use.
const joinTimeout = 30 * time.Second

// Options say how to start a kata-shim.
type Options struct {
	// Container and Exec are for people who look at processes.
	Container, Exec string
	// Stdin, Stdout and Stderr are the process's. With TTY all three are one
	// terminal, of which the kata-shim becomes the master of the session.
	Stdin, Stdout, Stderr *os.File
	TTY                   bool
	// NetNS is the path of the network namespace that the kata-shim is in: an
	// engine finds that of the container by its pid. Empty: a new one.
	NetNS string
}

// Child is a kata-shim that this program has started.
type Child struct {
	// PID is what the engine gets to know.
	PID int

	cmd     *exec.Cmd
	control *os.File
	answers *bufio.Reader
}

// Spawn starts a kata-shim, which waits for Join. It ends with this program, until
// Leave.
func Spawn(o Options) (*Child, error) {
	path, err := program.Find("kata-shim")
	if err != nil {
		return nil, err
	}
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("start kata-shim: %w", err)
	}
	ours, theirs := os.NewFile(uintptr(pair[0]), "control"), os.NewFile(uintptr(pair[1]), "control")
	defer theirs.Close()
	args := []string{"--container", o.Container}
	if o.Exec != "" {
		args = append(args, "--exec", o.Exec)
	}
	cmd := exec.Command(path, args...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = o.Stdin, o.Stdout, o.Stderr
	cmd.ExtraFiles = []*os.File{theirs}
	cmd.Dir, cmd.Env = "/", program.Environment()
	// What an engine finds by the pid must not be the host's: neither its processes
	// nor, once joined, its files.
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Setsid: true, Setctty: o.TTY, Cloneflags: syscall.CLONE_NEWPID, Unshareflags: syscall.CLONE_NEWNS,
	}
	if o.NetNS == "" {
		cmd.SysProcAttr.Unshareflags |= syscall.CLONE_NEWNET
	}
	if err := unix.CloseRange(controlFD, math.MaxUint32, unix.CLOSE_RANGE_CLOEXEC); err != nil {
		return nil, errors.Join(fmt.Errorf("start kata-shim: keep descriptors to ourselves: %w", err), ours.Close())
	}
	err = thread.Run(func() error {
		if o.NetNS != "" {
			if err := enter(o.NetNS); err != nil {
				return err
			}
		}
		return cmd.Start()
	})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("start kata-shim: %w", err), ours.Close())
	}
	return &Child{PID: cmd.Process.Pid, cmd: cmd, control: ours, answers: bufio.NewReader(ours)}, nil
}

// enter puts the calling thread into a network namespace.
func enter(path string) error {
	ns, err := os.Open(filepath.Clean(path))
	if err != nil {
		return fmt.Errorf("network namespace: %w", err)
	}
	defer ns.Close()
	if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("enter network namespace %s: %w", path, err)
	}
	return nil
}

// Join joins the kata-shim with a process that has been created and not started.
// From then on the process does not outlive it.
func (c *Child) Join(p Process) error {
	b, err := json.Marshal(p)
	if err != nil {
		return fmt.Errorf("encode process: %w", err)
	}
	if err := unix.SetsockoptTimeval(int(c.control.Fd()), unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: int64(joinTimeout / time.Second)}); err != nil {
		return fmt.Errorf("join kata-shim: %w", err)
	}
	if _, err := c.control.Write(append(b, '\n')); err != nil {
		return fmt.Errorf("join kata-shim: %w", err)
	}
	answer, err := c.answers.ReadString('\n')
	switch answer = strings.TrimSpace(answer); {
	case answer == joined:
		return nil
	case answer != "":
		return errors.New(answer)
	case errors.Is(err, io.EOF):
		return errors.New("join kata-shim: it has ended without a word")
	default:
		return fmt.Errorf("join kata-shim: %w", err)
	}
}

// Leave lets the kata-shim go on when this program has ended.
func (c *Child) Leave() error {
	if _, err := c.control.WriteString(left); err != nil {
		return fmt.Errorf("leave kata-shim to itself: %w", err)
	}
	return nil
}

// Wait waits for the end of the kata-shim and tells its exit code, as a shell
// would.
func (c *Child) Wait() (int, error) {
	err := c.cmd.Wait()
	_ = c.control.Close()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		st, _ := exit.Sys().(syscall.WaitStatus)
		if st.Signaled() {
			return 128 + int(st.Signal()), nil
		}
		return exit.ExitCode(), nil
	}
	if err != nil {
		return 0, fmt.Errorf("wait for kata-shim: %w", err)
	}
	return 0, nil
}

// Kill ends a kata-shim that is of no use, and with it its process.
func (c *Child) Kill() {
	_ = c.cmd.Process.Kill()
	_, _ = c.Wait()
}

// Signal sends a signal to the kata-shim, which passes it on.
func (c *Child) Signal(sig os.Signal) error { return c.cmd.Process.Signal(sig) }
