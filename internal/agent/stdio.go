package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	agentv1 "github.com/seed-efd44b36/kata/api/agent/v1"
	"github.com/seed-efd44b36/kata/internal/agent/direct"
	"github.com/seed-efd44b36/kata/internal/agent/jail"
	"github.com/seed-efd44b36/kata/internal/link"
	"golang.org/x/sys/unix"
)

const (
	// streamTimeout is how long StartProcess waits for the streams that the
	// host said it would open. A process whose streams never come runs without.
	streamTimeout = 10 * time.Second
	// pipeSize in bytes is what a process can write ahead. A quarter of the
	// default takes three times as many changes between it and the agent.
	pipeSize = 256 << 10
	// pumpBuffer in bytes is what one read from a process takes.
	pumpBuffer = 128 << 10
	// drainTimeout is how long the last output of a deleted process may take.
	drainTimeout = 5 * time.Second
)

// stdio connects the standard files of one process with the streams of the
// host. A goroutine per file, which close waits for, carries the bytes.
type stdio struct {
	arrived  [3]chan link.Stream // nil: not wanted; else room for the one stream
	complete chan struct{}       // closed when all that are wanted have arrived
	gone     chan struct{}       // closed when those that have not arrived will not
	pumps    sync.WaitGroup

	mu      sync.Mutex
	missing int             // guarded by mu
	given   [3]bool         // guarded by mu; a stream has arrived
	over    bool            // guarded by mu; gone is closed
	files   [3]*direct.File // guarded by mu; ours, nil when closed
	streams [3]link.Stream  // guarded by mu; nil before it arrives
	console *os.File        // guarded by mu; the terminal's master, nil for none
}

func newStdio(want *agentv1.Stdio) *stdio {
	s := &stdio{complete: make(chan struct{}), gone: make(chan struct{})}
	for fd, w := range []bool{want.GetStdin(), want.GetStdout(), want.GetStderr()} {
		if w {
			s.arrived[fd] = make(chan link.Stream, 1)
			s.missing++
		}
	}
	if s.missing == 0 {
		close(s.complete)
	}
	return s
}

// pipes makes a pipe for each wanted file and returns the process's ends, which
// belong to uid and gid so that it can open /dev/stdout again. The caller closes
// them once the process has them.
func (s *stdio) pipes(uid, gid int) (theirs jail.Stdio, err error) {
	for fd, to := range []**os.File{&theirs.In, &theirs.Out, &theirs.Err} {
		if s.arrived[fd] == nil {
			continue
		}
		var p [2]int
		if err := unix.Pipe2(p[:], unix.O_CLOEXEC); err != nil {
			closeStdio(theirs)
			s.close(context.Background())
			return jail.Stdio{}, fmt.Errorf("make pipe: %w", err)
		}
		ours, other := p[0], p[1]
		if fd == 0 {
			ours, other = p[1], p[0]
		}
		// Fails for want of memory, and then the default will do.
		_, _ = unix.FcntlInt(uintptr(other), unix.F_SETPIPE_SZ, pipeSize)
		*to = os.NewFile(uintptr(other), "pipe")
		// Theirs stays in blocking mode, as programs expect.
		file, err := direct.NewFile(ours, "pipe")
		if err == nil {
			err = unix.Fchown(other, uid, gid)
		}
		s.mu.Lock()
		s.files[fd] = file
		s.mu.Unlock()
		if err != nil {
			closeStdio(theirs)
			s.close(context.Background())
			return jail.Stdio{}, fmt.Errorf("set up pipe: %w", err)
		}
	}
	return theirs, nil
}

func closeStdio(s jail.Stdio) {
	for _, f := range []*os.File{s.In, s.Out, s.Err} {
		if f != nil {
			_ = f.Close()
		}
	}
}

// useConsole makes the terminal, which stdio then owns, the source of output and
// the sink of input. What is wanted as standard error gets nothing: a terminal
// has one output.
func (s *stdio) useConsole(console *os.File) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.console = console
	for fd := range 2 {
		dup, err := unix.FcntlInt(console.Fd(), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("duplicate console: %w", err)
		}
		// Non-blocking is a state of the open file, which the duplicates share.
		if s.files[fd], err = direct.NewFile(dup, "console"); err != nil {
			return err
		}
	}
	return nil
}

// run starts carrying bytes.
func (s *stdio) run() {
	for fd := range s.arrived {
		s.pumps.Go(func() { s.pump(fd) })
	}
}

// attach gives the stream for fd, which stdio owns if there is no error.
func (s *stdio) attach(fd int, st link.Stream) error {
	if fd < 0 || fd > 2 || s.arrived[fd] == nil {
		return fmt.Errorf("descriptor %d is not wanted: %w", fd, errInvalid)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.given[fd] || s.over {
		return fmt.Errorf("descriptor %d has been given: %w", fd, errExists)
	}
	s.given[fd] = true
	s.streams[fd] = st
	s.arrived[fd] <- st
	if s.missing--; s.missing == 0 {
		close(s.complete)
	}
	return nil
}

// await waits until every stream is there, or no longer.
func (s *stdio) await(ctx context.Context) error {
	t := time.NewTimer(streamTimeout)
	defer t.Stop()
	select {
	case <-s.complete:
	case <-t.C:
		s.abandon()
	case <-ctx.Done():
		return ctx.Err()
	}
	return nil
}

// abandon gives up on streams that have not arrived.
func (s *stdio) abandon() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.over {
		s.over = true
		close(s.gone)
	}
}

// pump carries the bytes of one file until either side ends, and ends the
// other.
func (s *stdio) pump(fd int) {
	var stream link.Stream
	if s.arrived[fd] != nil {
		select {
		case stream = <-s.arrived[fd]:
		case <-s.gone:
			// Both may have happened.
			select {
			case stream = <-s.arrived[fd]:
			default:
			}
		}
	}
	s.mu.Lock()
	file, terminal := s.files[fd], s.console != nil
	s.mu.Unlock()
	switch {
	case fd == 0 && file != nil && stream != nil:
		copyBytes(file, stream)
	case fd == 0:
	case file != nil && stream != nil && terminal:
		copyBytes(stream, file)
	case file != nil && stream != nil:
		// How it ended tells nobody anything, here as there.
		if err := link.SendPipe(stream, file); errors.Is(err, errors.ErrUnsupported) {
			copyBytes(stream, file)
		}
	case file != nil:
		copyBytes(io.Discard, file)
	}
	s.closeFile(fd)
	if stream != nil {
		_ = stream.Close()
	}
}

// copyBytes copies until either side ends. How it ended tells nobody anything:
// a terminal without users fails with EIO, a stream without a reader with EPIPE.
func copyBytes(to io.Writer, from io.Reader) {
	buf := make([]byte, pumpBuffer)
	for {
		n, err := from.Read(buf)
		if n > 0 {
			if _, err := to.Write(buf[:n]); err != nil {
				return
			}
		}
		if err != nil {
			return
		}
	}
}

func (s *stdio) closeFile(fd int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.files[fd] != nil {
		_ = s.files[fd].Close()
		s.files[fd] = nil
	}
}

// endInput stops the flow of input: the process has ended.
func (s *stdio) endInput() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.streams[0] != nil {
		_ = s.streams[0].Close()
	}
	if s.files[0] != nil {
		_ = s.files[0].SetWriteDeadline(time.Unix(1, 0))
	}
}

// close waits for the rest of the output, no longer than ctx and drainTimeout
// allow, and ends everything.
func (s *stdio) close(ctx context.Context) {
	s.abandon()
	s.endInput()
	ctx, cancel := context.WithTimeout(ctx, drainTimeout)
	defer cancel()
	stop := context.AfterFunc(ctx, func() {
		for fd := range s.files {
			s.mu.Lock()
			file, stream := s.files[fd], s.streams[fd]
			s.mu.Unlock()
			if file != nil {
				_ = file.SetDeadline(time.Unix(1, 0))
			}
			if stream != nil {
				_ = stream.SetDeadline(time.Unix(1, 0))
			}
		}
	})
	defer stop()
	s.pumps.Wait()
	for fd := range s.files {
		s.closeFile(fd)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.console != nil {
		_ = s.console.Close()
		s.console = nil
	}
}
