package agent

import (
	"context"
	"io"
	"os"
	"syscall"

	"github.com/seed-efd44b36/kata/internal/link"
	"golang.org/x/sys/unix"
)

// debugShell is what a debug stream gets, if the guest has it: an initrd for
// production has none.
const debugShell = "/bin/sh"

// serveDebug runs a shell on the stream, in the guest and outside of every
// container, if the kernel's command line allows it by "kata.debug". It closes
// the stream.
func (a *Agent) serveDebug(ctx context.Context, s link.Stream) {
	defer s.Close()
	if !a.debug {
		_, _ = io.WriteString(s, "the guest was not started with kata.debug\n")
		return
	}
	if err := a.runShell(ctx, s); err != nil {
		_, _ = io.WriteString(s, "debug shell: "+err.Error()+"\n")
	}
}

func (a *Agent) runShell(ctx context.Context, s link.Stream) error {
	ours, theirs, err := socketPair()
	if err != nil {
		return err
	}
	defer ours.Close()
	child, err := a.reaper.Start(func() (int, error) {
		fd := theirs.Fd()
		return syscall.ForkExec(debugShell, []string{"sh", "-i"}, &syscall.ProcAttr{
			Dir: "/", Env: []string{"PATH=/bin:/sbin:/usr/bin:/usr/sbin", "HOME=/", "TERM=linux"},
			Files: []uintptr{fd, fd, fd},
			Sys:   &syscall.SysProcAttr{Setsid: true},
		})
	})
	_ = theirs.Close()
	if err != nil {
		return err
	}
	defer context.AfterFunc(ctx, func() { _ = child.Signal(unix.SIGKILL) })()
	copied := make(chan struct{})
	go func() { // ends with the stream, whose end also kills the shell
		defer close(copied)
		copyBytes(ours, s)
		_ = child.Signal(unix.SIGKILL)
	}()
	copyBytes(s, ours)
	_ = s.Close()
	<-copied
	<-child.Done()
	return nil
}

func socketPair() (ours, theirs *os.File, err error) {
	p, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, os.NewSyscallError("socketpair", err)
	}
	if err := unix.SetNonblock(p[0], true); err != nil {
		return nil, nil, os.NewSyscallError("set nonblock", err)
	}
	return os.NewFile(uintptr(p[0]), "shell"), os.NewFile(uintptr(p[1]), "shell"), nil
}
