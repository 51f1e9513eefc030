package engine

import (
	"context"
	"errors"
	"os"
	"os/signal"
	"strconv"
	"sync"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"github.com/seed-efd44b36/kata/internal/oci/console"
	"github.com/seed-efd44b36/kata/internal/standin"
	"golang.org/x/sys/unix"
	"golang.org/x/term"
)

// errPreserveFDs refuses a flag.
var errPreserveFDs = errors.New("--preserve-fds: descriptors of the host cannot enter a virtual machine")

// stand is the kata-shim of a process, with the process's terminal.
type stand struct {
	a                        *Verbs
	container, exec, sandbox string
	netns                    string
	tty                      bool
	size                     *specs.Box
	consoleSocket            string
	detach                   bool
	told                     standin.Notice

	console *console.Console // nil without a terminal
	child   *standin.Child
}

// check refuses a terminal that nobody would have, with runc's words.
func (s *stand) check() error {
	switch socket := s.consoleSocket != ""; {
	case s.tty && s.detach && !socket:
		return errors.New("cannot allocate tty if kata-runtime will detach without setting console socket")
	case socket && (!s.detach || !s.tty):
		return errors.New("cannot use console socket if kata-runtime will not detach or allocate tty")
	}
	return nil
}

// spawn starts the kata-shim, with the streams of this program or a new terminal.
func (s *stand) spawn(ctx context.Context) (err error) {
	o := standin.Options{Container: s.container, Exec: s.exec, Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr, NetNS: s.netns}
	if s.tty {
		if w, h, terr := term.GetSize(int(os.Stdout.Fd())); terr == nil && s.consoleSocket == "" {
			s.size = &specs.Box{Width: uint(w), Height: uint(h)}
		}
		if s.console, err = console.Open(s.size); err != nil {
			return err
		}
		o.TTY, o.Stdin, o.Stdout, o.Stderr = true, s.console.Slave, s.console.Slave, s.console.Slave
	}
	s.child, err = standin.Spawn(o)
	if s.console != nil {
		_ = s.console.Slave.Close()
	}
	if err == nil && s.console != nil && s.consoleSocket != "" {
		err = s.console.Send(ctx, s.consoleSocket)
		_ = s.console.Master.Close() // it is the engine's now
	}
	if err != nil {
		s.kill()
	}
	return err
}

// join joins the kata-shim with the process, which has been created.
func (s *stand) join() error {
	return s.child.Join(standin.Process{
		StateDir: s.a.Conf.Runtime.StateDir, Sandbox: s.sandbox, Container: s.container, Exec: s.exec, TTY: s.tty, Notice: s.told,
	})
}

// leave lets the kata-shim go on without us.
func (s *stand) leave() error { return s.child.Leave() }

// kill ends the kata-shim, and its process. It may be called again.
func (s *stand) kill() {
	if s.child != nil {
		s.child.Kill()
		s.child = nil
	}
	if s.console != nil {
		_ = s.console.Close()
	}
}

// attend joins this program's terminal with that of the process, and passes signals
// on, until the end of the process. release is called when that has begun.
func (s *stand) attend(release func()) (code int, err error) {
	received := make(chan os.Signal, 16)
	signal.Notify(received, unix.SIGHUP, unix.SIGINT, unix.SIGQUIT, unix.SIGTERM, unix.SIGUSR1, unix.SIGUSR2, unix.SIGCONT, unix.SIGALRM)
	release()
	var passing sync.WaitGroup
	passing.Go(func() {
		for sig := range received {
			_ = s.child.Signal(sig)
		}
	})
	defer passing.Wait()
	defer close(received)
	defer signal.Stop(received)
	if s.console != nil {
		restore, err := s.console.Attach(os.Stdin, os.Stdout)
		if err != nil {
			return 0, err
		}
		defer restore()
	}
	return s.child.Wait()
}

// netnsOf is the path of the network namespace of a process.
func netnsOf(pid int) string { return "/proc/" + strconv.Itoa(pid) + "/ns/net" }
