// Package attach joins a person's terminal (or pipes) and signals with a
// process in a sandbox, as `docker run` and `docker exec` do.
package attach

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"sync"
	"sync/atomic"
	"time"

	proxyv1 "github.com/seed-efd44b36/kata/api/proxy/v1"
	"github.com/seed-efd44b36/kata/internal/link"
	"github.com/seed-efd44b36/kata/internal/proxy"
	"golang.org/x/sys/unix"
	"golang.org/x/term"
)

const (
	// drainIdle is how long the output of an ended process may pause.
	drainIdle = 10 * time.Second
	// copyBuffer is the size of one read of output.
	copyBuffer = 128 << 10
	// impatience: so many SIGINT or SIGTERM in so short a time end this
	// program, and with it what it owns, whatever the process does.
	impatientSignals = 3
	impatientTime    = 2 * time.Second
)

// ErrOutputClosed tells that whoever read the output reads no more, as in
// `kata run … | head -1`.
var ErrOutputClosed = errors.New("nobody reads the output any more")

// Session is one attached process. Open, then start the process, then Run.
type Session struct {
	Client          *proxy.Client
	Container, Exec string
	// Stdin is nil when the process has none.
	Stdin *os.File
	// Stdout and Stderr are the caller's; with TTY only Stdout is used.
	Stdout, Stderr io.Writer
	TTY            bool
	// Signals tells to pass on the signals that this program receives.
	Signals bool

	streams [3]link.Stream
}

// Open opens the streams of the process, which must not have been started.
func (s *Session) Open(ctx context.Context) error {
	var opening sync.WaitGroup
	var errs [3]error
	for fd, wanted := range []bool{s.Stdin != nil, true, !s.TTY} {
		if wanted {
			opening.Go(func() { s.streams[fd], errs[fd] = s.Client.OpenStdio(ctx, s.Container, s.Exec, uint8(fd)) })
		}
	}
	opening.Wait()
	if err := errors.Join(errs[:]...); err != nil {
		s.Close()
		return err
	}
	return nil
}

// Close closes the streams, of which Run has closed none.
func (s *Session) Close() {
	for _, st := range s.streams {
		if st != nil {
			_ = st.Close()
		}
	}
}

// Run carries data and signals until the process has ended and its output has
// arrived, and tells how it ended. An error means that the caller's side
// failed (a lost kata-proxy, ErrOutputClosed), not the process.
func (s *Session) Run(ctx context.Context) (*proxyv1.WaitResponse, error) {
	restore, err := s.rawTerminal()
	if err != nil {
		return nil, err
	}
	defer restore()
	// A closed pipe is an error to handle, not this program's end: what it owns
	// has to be ended first. So this stays until the program ends.
	signal.Notify(make(chan os.Signal, 1), unix.SIGPIPE)
	ctx, cancel := context.WithCancel(ctx)
	var background sync.WaitGroup
	defer background.Wait()
	defer cancel()
	if s.TTY {
		background.Go(func() { s.followSize(ctx) })
	}
	if s.Signals {
		background.Go(func() { s.forwardSignals(ctx) })
	}
	if s.Stdin != nil {
		// It may sit in a read of a terminal that nothing can interrupt, so
		// nobody waits for it; it ends with this program.
		go func() { _ = link.CopyToEnd(s.streams[0], s.Stdin) }()
	}
	var out sync.WaitGroup
	outErrs := make([]error, 3)
	var counts [3]counter
	for fd, w := range map[int]io.Writer{1: s.Stdout, 2: s.Stderr} {
		if st := s.streams[fd]; st != nil {
			counts[fd].w = w
			out.Go(func() {
				if outErrs[fd] = copyOut(&counts[fd], st); errors.Is(outErrs[fd], ErrOutputClosed) {
					cancel() // whether the process ends of it or not
				}
			})
		}
	}
	resp, err := s.Client.Wait(ctx, &proxyv1.WaitRequest{Container: s.Container, Exec: s.Exec})
	if err == nil {
		s.drain(&out, counts[:])
	} else {
		s.Close()
		out.Wait()
		if closed := errors.Join(outErrs...); errors.Is(closed, ErrOutputClosed) {
			return nil, closed
		}
		return nil, fmt.Errorf("wait for container %s: %w", s.Container, proxy.Explain(err))
	}
	return resp, errors.Join(outErrs...)
}

// drain waits for the output of a process that has ended. A guest that neither
// sends nor ends it must not hold the caller; a caller that reads slowly may.
func (s *Session) drain(out *sync.WaitGroup, counts []counter) {
	done := make(chan struct{})
	go func() { out.Wait(); close(done) }() // ends with the streams, at the latest by Close below
	tick := time.NewTicker(drainIdle)
	defer tick.Stop()
	var last int64
	for {
		select {
		case <-done:
			return
		case <-tick.C:
		}
		var sum int64
		busy := false
		for i := range counts {
			sum += counts[i].bytes.Load()
			busy = busy || counts[i].writing.Load()
		}
		if sum == last && !busy {
			s.Close()
		}
		last = sum
	}
}

// counter tells how far a copy has come, and whether it waits for its reader.
type counter struct {
	w       io.Writer
	bytes   atomic.Int64
	writing atomic.Bool
}

// Write implements io.Writer.
func (c *counter) Write(b []byte) (int, error) {
	c.writing.Store(true)
	n, err := c.w.Write(b)
	c.bytes.Add(int64(n))
	c.writing.Store(false)
	return n, err
}

// copyOut copies output to the caller. When the caller's side is closed
// (`kata run … | head -1`), the stream is closed too, so that the process is
// told by SIGPIPE as it would be without a VM between.
func copyOut(w io.Writer, st link.Stream) error {
	_, err := io.CopyBuffer(w, struct{ io.Reader }{st}, make([]byte, copyBuffer))
	if errors.Is(err, unix.EPIPE) {
		_ = st.Close()
		return ErrOutputClosed
	}
	if err == nil || link.IsClosed(err) {
		return nil
	}
	return fmt.Errorf("write output: %w", err)
}

// rawTerminal puts the caller's terminal into raw mode: every key, Ctrl-C
// too, belongs to the process.
func (s *Session) rawTerminal() (restore func(), err error) {
	if !s.TTY || s.Stdin == nil || !term.IsTerminal(int(s.Stdin.Fd())) {
		return func() {}, nil
	}
	fd := int(s.Stdin.Fd())
	old, err := term.MakeRaw(fd)
	if err != nil {
		return nil, fmt.Errorf("raw mode of the terminal: %w", err)
	}
	return func() { _ = term.Restore(fd, old) }, nil
}

// followSize gives the process's terminal the size of the caller's, now and at
// every change.
func (s *Session) followSize(ctx context.Context) {
	f, ok := s.Stdout.(*os.File)
	if !ok || !term.IsTerminal(int(f.Fd())) {
		return
	}
	changed := make(chan os.Signal, 1)
	signal.Notify(changed, unix.SIGWINCH)
	defer signal.Stop(changed)
	for {
		if w, h, err := term.GetSize(int(f.Fd())); err == nil {
			// A process that has just ended is no reason to complain.
			_, _ = s.Client.Resize(ctx, &proxyv1.ResizeRequest{
				Container: s.Container, Exec: s.Exec, Width: uint32(w), Height: uint32(h),
			})
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return
		}
	}
}

// signals are passed on; the rest either cannot be caught, is about this very
// program (SIGCHLD, SIGPIPE, SIGURG), or is handled elsewhere (SIGWINCH).
var signals = []os.Signal{ //nolint:gochecknoglobals // a constant list
	unix.SIGHUP, unix.SIGINT, unix.SIGQUIT, unix.SIGTERM, unix.SIGUSR1, unix.SIGUSR2, unix.SIGCONT, unix.SIGALRM,
}

// forwardSignals passes each signal on once.
func (s *Session) forwardSignals(ctx context.Context) {
	received := make(chan os.Signal, 16)
	signal.Notify(received, signals...)
	defer signal.Stop(received)
	var urgent []time.Time
	for {
		select {
		case sig := <-received:
			n, ok := sig.(unix.Signal)
			if !ok {
				continue
			}
			if n == unix.SIGINT || n == unix.SIGTERM {
				urgent = append(urgent, time.Now())
				if i := len(urgent) - impatientSignals; i >= 0 && time.Since(urgent[i]) < impatientTime {
					_ = s.Client.Close() // Run returns
					return
				}
			}
			callCtx, cancel := context.WithTimeout(ctx, 5*time.Second)
			_, err := s.Client.Signal(callCtx, &proxyv1.SignalRequest{Container: s.Container, Exec: s.Exec, Signal: uint32(n)})
			cancel()
			if err != nil && ctx.Err() == nil {
				fmt.Fprintf(os.Stderr, "kata: signal %s is not delivered: %v\r\n", n, proxy.Explain(err))
			}
		case <-ctx.Done():
			return
		}
	}
}
