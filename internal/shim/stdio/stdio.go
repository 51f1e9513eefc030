// Package stdio joins the standard input and output of a process in a guest
// with what containerd names for them: a named pipe (a path, or fifo://), a file
// (file://), or a program that logs (binary://).
//
// A client of containerd may come and go while the process runs. So a pipe for
// output is opened for reading as well, and one for input for writing: the
// process notices neither the end of its reader, which it waits for instead,
// nor that of its writer, until the client says that the input is over.
//
// Life cycle: Open -> Join -> End -> Drain -> Close. The shim calls it. Names come from
// containerd, which root controls; bytes are only carried.
package stdio

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/seed-efd44b36/kata/internal/link"
	"github.com/seed-efd44b36/kata/internal/thread"
	"golang.org/x/sys/unix"
)

// lastWords bounds how long the last line may take.
const lastWords = 2 * time.Second

// Options name what a process is to be joined with. An empty name is none.
type Options struct {
	Stdin, Stdout, Stderr string
	// Terminal: both outputs are Stdout.
	Terminal bool
	// Namespace and Container are told to a program that logs.
	Namespace, Container string
	// Mounts is the mount namespace in which the names mean what they say. It
	// stays the caller's.
	Mounts *os.File
}

// Set is the host's side of a process's input and outputs.
type Set struct {
	mounts *os.File
	input  string // path, empty for none

	in   *os.File          // nil for none, and before Join
	out  [3]io.WriteCloser // 1 and 2; nil for none
	done func() error      // ends what is behind the outputs; nil for nothing

	newline string

	outputs  sync.WaitGroup // the pumps of the outputs
	drained  chan struct{}  // closed when they have ended
	feeding  sync.WaitGroup // the pump of the input
	progress atomic.Uint64  // bytes of output that were carried

	mu      sync.Mutex
	ended   bool          // guarded by mu: the process has, and nothing is to be added
	lost    []int         // guarded by mu: outputs whose guest's side has gone without an end
	over    bool          // guarded by mu: the client says that the input is
	keeper  *os.File      // guarded by mu: holds the input open until then
	streams []link.Stream // guarded by mu: the guest's side
	joined  bool          // guarded by mu
	closed  bool          // guarded by mu
}

// Open opens the outputs. For a program that logs it waits until that is ready.
// The input waits for Join: a client whose input is short sees it taken and
// over, and says so, before it has got an answer about the process and could.
func Open(ctx context.Context, o Options) (_ *Set, err error) {
	s := &Set{mounts: o.Mounts, drained: make(chan struct{}), newline: "\n"}
	defer func() {
		if err != nil {
			close(s.drained)
			err = errors.Join(err, s.Close())
		}
	}()
	if o.Terminal {
		o.Stderr, s.newline = "", "\r\n"
	}
	if o.Stdin != "" {
		if s.input, err = plainPath(o.Stdin); err != nil {
			return nil, fmt.Errorf("standard input: %w", err)
		}
	}
	for fd, name := range map[int]string{1: o.Stdout, 2: o.Stderr} {
		if name == "" {
			continue
		}
		if s.out[fd] != nil {
			continue // of a program that logs both
		}
		if err := s.openOutput(ctx, o, fd, name); err != nil {
			return nil, fmt.Errorf("standard output %s: %w", name, err)
		}
	}
	return s, nil
}

// plainPath is the path of a name without scheme, or with fifo://.
func plainPath(name string) (string, error) {
	u, err := url.Parse(name)
	if err != nil {
		return "", fmt.Errorf("%q: %w", name, err)
	}
	if u.Scheme != "" && u.Scheme != "fifo" {
		return "", fmt.Errorf("%q: the scheme %q is not one for an input; use a named pipe", name, u.Scheme)
	}
	if !filepath.IsAbs(u.Path) {
		return "", fmt.Errorf("%q is not an absolute path", name)
	}
	return u.Path, nil
}

func (s *Set) openInput() error {
	var in, keeper *os.File
	err := thread.InMounts(s.mounts, func() (err error) {
		if in, err = os.OpenFile(s.input, os.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0); err != nil {
			return err
		}
		st, err := in.Stat()
		if err != nil || st.Mode()&os.ModeNamedPipe == 0 { // a file is over at its end
			return err
		}
		// There is a reader now, so this does not fail for want of one.
		keeper, err = os.OpenFile(s.input, os.O_WRONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
		return err
	})
	if err != nil {
		if in != nil {
			_ = in.Close()
		}
		return fmt.Errorf("standard input: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.in, s.keeper = in, keeper
	if s.over && keeper != nil {
		_ = keeper.Close()
		s.keeper = nil
	}
	return nil
}

func (s *Set) openOutput(ctx context.Context, o Options, fd int, name string) error {
	u, err := url.Parse(name)
	if err != nil {
		return err
	}
	switch u.Scheme {
	case "", "fifo":
		if !filepath.IsAbs(u.Path) {
			return errors.New("it is not an absolute path")
		}
		s.out[fd], err = openPipe(o.Mounts, u.Path)
	case "file":
		s.out[fd], err = openFile(o.Mounts, u.Path)
	case "binary":
		return s.openLogger(ctx, o, u)
	default:
		err = fmt.Errorf("there is no way to write to %q; use a path, fifo://, file:// or binary://", u.Scheme)
	}
	return err
}

// openPipe opens a named pipe so that it does not need a reader; what is no
// pipe is written to at its end.
func openPipe(ns *os.File, path string) (f *os.File, err error) {
	err = thread.InMounts(ns, func() error {
		st, err := os.Stat(path)
		if err != nil {
			return err
		}
		flags := os.O_RDWR
		if st.Mode()&os.ModeNamedPipe == 0 {
			flags = os.O_WRONLY | os.O_APPEND
		}
		f, err = os.OpenFile(path, flags|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
		return err
	})
	return f, err
}

func openFile(ns *os.File, path string) (f *os.File, err error) {
	if !filepath.IsAbs(path) {
		return nil, errors.New("it is not an absolute path")
	}
	err = thread.InMounts(ns, func() error {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		f, err = os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_APPEND|unix.O_CLOEXEC, 0o644)
		return err
	})
	return f, err
}

// Wanted tells which of the descriptors 0, 1 and 2 there are.
func (s *Set) Wanted() (stdin, stdout, stderr bool) {
	return s.input != "", s.out[1] != nil, s.out[2] != nil
}

// Join opens the input and the guest's streams, and carries bytes from then on.
// After a failure it may be called again; once it has succeeded, that does
// nothing.
func (s *Set) Join(ctx context.Context, open func(ctx context.Context, fd int) (link.Stream, error)) error {
	s.mu.Lock()
	joined := s.joined
	s.mu.Unlock()
	if joined {
		return nil
	}
	if s.input != "" && s.in == nil {
		if err := s.openInput(); err != nil {
			return err
		}
	}
	var streams [3]link.Stream
	for fd, wanted := range []bool{s.input != "", s.out[1] != nil, s.out[2] != nil} {
		if !wanted {
			continue
		}
		st, err := open(ctx, fd)
		if err != nil {
			for _, other := range streams[:fd] {
				if other != nil {
					_ = other.Close()
				}
			}
			return err
		}
		streams[fd] = st
	}
	s.mu.Lock()
	s.joined = true
	s.mu.Unlock()
	for fd, st := range streams {
		if st == nil {
			continue
		}
		s.mu.Lock()
		s.streams = append(s.streams, st)
		s.mu.Unlock()
		if fd == 0 {
			s.feeding.Go(func() { s.pumpInput(st) })
		} else {
			s.outputs.Go(func() { s.pumpOutput(fd, st) })
		}
	}
	// Ends with the outputs, which Close ends.
	go func() {
		s.outputs.Wait()
		close(s.drained)
	}()
	return nil
}

func (s *Set) pumpInput(guest link.Stream) {
	_, _ = link.Copy(guest, s.in)
	_ = guest.CloseWrite() // an error says that the process has gone
}

func (s *Set) pumpOutput(fd int, guest link.Stream) {
	defer guest.Close()
	w := &counter{w: s.out[fd], n: &s.progress}
	_, err := link.Copy(w, guest)
	if err != nil && w.err == nil {
		s.lose(fd)
		return
	}
	if err != nil && !link.IsClosed(err) {
		// A full disk must not stop the process.
		_, _ = io.Copy(io.Discard, guest)
	}
	_ = s.out[fd].Close()
}

// lose is told that nothing more comes from the guest, which has not said that it is
// over: End may have something to add.
func (s *Set) lose(fd int) {
	s.mu.Lock()
	s.lost = append(s.lost, fd)
	ended := s.ended
	s.mu.Unlock()
	if ended {
		_ = s.out[fd].Close()
	}
}

// End is told that the process has ended. If why is not empty, it did so because its
// guest is gone: that is added to its standard error, or else its output, as the
// last line. Without it an output goes on as long as the guest has it open.
func (s *Set) End(why string) {
	s.mu.Lock()
	streams, joined := s.streams, s.joined
	s.ended = s.ended || why == ""
	lost := s.lost
	s.mu.Unlock()
	if why == "" {
		for _, fd := range lost {
			_ = s.out[fd].Close()
		}
		return
	}
	for _, st := range streams {
		_ = st.Close()
	}
	if joined {
		select {
		case <-s.drained:
		case <-time.After(lastWords): // nobody reads
		}
	}
	for _, w := range []io.WriteCloser{s.out[2], s.out[1]} {
		if w == nil {
			continue
		}
		if f, ok := w.(*os.File); ok {
			_ = f.SetWriteDeadline(time.Now().Add(lastWords))
		}
		if _, err := io.WriteString(w, why+s.newline); err == nil {
			break
		}
	}
	s.mu.Lock()
	s.ended = true
	s.mu.Unlock()
	for _, w := range s.out {
		if w != nil {
			_ = w.Close()
		}
	}
}

type counter struct {
	w   io.Writer
	n   *atomic.Uint64
	err error // of w
}

// Write implements io.Writer.
func (c *counter) Write(b []byte) (int, error) {
	n, err := c.w.Write(b)
	c.n.Add(uint64(n))
	c.err = err
	return n, err
}

// CloseInput lets the input end when all its other writers have closed it.
func (s *Set) CloseInput() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.over = true
	if s.keeper != nil {
		_ = s.keeper.Close()
		s.keeper = nil
	}
}

// Drain waits until all output of the process has been carried, which has
// ended. It gives up when nothing moves for the time of patience, and in any
// case after limit: a guest, or what the process has left running, can keep an
// output open and moving for ever. Call it after Join.
func (s *Set) Drain(ctx context.Context, patience, limit time.Duration) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	tick := time.NewTicker(patience)
	defer tick.Stop()
	for before := s.progress.Load(); ; {
		select {
		case <-s.drained:
			return
		case <-ctx.Done():
			return
		case <-tick.C:
			now := s.progress.Load()
			if now == before {
				return
			}
			before = now
		}
	}
}

// Close ends all of it. What was not carried is lost.
func (s *Set) Close() error {
	s.CloseInput()
	s.mu.Lock()
	again := s.closed
	s.closed = true
	streams := s.streams
	s.mu.Unlock()
	if again {
		return nil
	}
	if s.in != nil {
		_ = s.in.Close()
	}
	for _, w := range s.out {
		if w != nil {
			_ = w.Close()
		}
	}
	for _, st := range streams {
		_ = st.Close()
	}
	if len(streams) > 0 {
		s.feeding.Wait()
		<-s.drained
	}
	if s.done != nil {
		return s.done()
	}
	return nil
}
