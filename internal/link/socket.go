package link

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"slices"
	"sync"
	"time"
)

const (
	// headerTimeout is how long a connection may take to send its header.
	headerTimeout = 10 * time.Second
	// maxPending is how many connections may be about to send theirs. When
	// there is one more, the oldest is closed, but not before it has had
	// grace to send it: who is in earnest sends it at once.
	maxPending = 128
	grace      = 100 * time.Millisecond
)

// unixOpener opens each stream as a connection to a unix socket.
type unixOpener struct{ path string }

// DialUnix returns a link to the listener of the unix socket at path. Nothing
// is connected until a stream is opened. Close does not end open streams.
func DialUnix(path string) Opener { return unixOpener{path} }

// Open implements Opener.
func (o unixOpener) Open(ctx context.Context, h Header) (Stream, error) {
	var d net.Dialer
	c, err := d.DialContext(ctx, "unix", o.path)
	if err != nil {
		return nil, fmt.Errorf("open stream: %w", err)
	}
	return sendHeader(ctx, c.(*net.UnixConn), nil, h)
}

// Close implements Opener.
func (o unixOpener) Close() error { return nil }

// sendHeader makes a fresh connection a stream: it sends the prefix and the
// header. It closes the connection on error.
func sendHeader(ctx context.Context, c Stream, prefix []byte, h Header) (Stream, error) {
	b, err := appendHeader(append(make([]byte, 0, len(prefix)+maxHeader), prefix...), h)
	if err == nil {
		deadline, _ := ctx.Deadline()
		err = c.SetWriteDeadline(deadline)
	}
	if err == nil {
		_, err = c.Write(b)
	}
	if err == nil {
		err = c.SetWriteDeadline(time.Time{})
	}
	if err != nil {
		_ = c.Close()
		return nil, fmt.Errorf("open stream: %w", err)
	}
	return c, nil
}

// ListenUnix makes a unix socket at path, with the given permissions, and
// returns the listener for the streams that are opened through it. A socket
// that is there already is an error. Close removes the socket.
func ListenUnix(path string, mode fs.FileMode) (Listener, error) {
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("listen: %w", err)
	}
	if err := os.Chmod(path, mode); err != nil {
		_ = l.Close()
		return nil, fmt.Errorf("listen: %w", err)
	}
	return listen(func() (Stream, error) { return l.AcceptUnix() }, nil, l.Close), nil
}

// connListener turns connections into streams. Headers are read beside one
// another, so that a connection that sends none holds up nobody.
type connListener struct {
	admit   func(Stream) error // reads what precedes the header; may be nil
	streams chan accepting
	life    context.Context // until Close
	end     context.CancelFunc
	close   func() error
	once    sync.Once
	work    sync.WaitGroup
	err     error // of close; set in once

	left    chan struct{} // told when a connection is no longer pending
	mu      sync.Mutex
	pending []pending // guarded by mu; oldest first
}

type accepting struct {
	stream Stream
	header Header
}

// pending is a connection that has not sent its header.
type pending struct {
	stream Stream
	since  time.Time
}

// listen returns a Listener of the connections that accept returns, until it
// returns an error because closer was called. Connections for which admit, if
// there is one, returns an error are closed.
func listen(accept func() (Stream, error), admit func(Stream) error, closer func() error) *connListener {
	life, end := context.WithCancel(context.Background())
	l := &connListener{
		admit: admit, streams: make(chan accepting), left: make(chan struct{}, 1),
		life: life, end: end, close: closer,
	}
	l.work.Go(func() { l.run(accept) })
	return l
}

func (l *connListener) run(accept func() (Stream, error)) {
	for {
		c, err := accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			// Out of descriptors or the like: it may pass.
			select {
			case <-time.After(50 * time.Millisecond):
			case <-l.life.Done():
				return
			}
			continue
		}
		if !l.enter(c) {
			_ = c.Close()
			return
		}
		l.work.Go(func() { l.deliver(c) })
	}
}

// enter adds c to the pending connections when there is room. It returns false
// when the listener has been closed.
func (l *connListener) enter(c Stream) bool {
	for {
		l.mu.Lock()
		var wait time.Duration
		if len(l.pending) == maxPending {
			wait = time.Until(l.pending[0].since.Add(grace))
			if wait <= 0 {
				// Whoever reads it sees that it has left.
				_ = l.pending[0].stream.Close()
				l.pending = slices.Delete(l.pending, 0, 1)
			}
		}
		if len(l.pending) < maxPending {
			l.pending = append(l.pending, pending{c, time.Now()})
			l.mu.Unlock()
			return true
		}
		l.mu.Unlock()
		t := time.NewTimer(wait)
		select {
		case <-t.C:
		case <-l.left:
			t.Stop()
		case <-l.life.Done():
			t.Stop()
			return false
		}
	}
}

// leave removes c from the pending connections. It returns false when c was
// made to leave before.
func (l *connListener) leave(c Stream) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	i := slices.IndexFunc(l.pending, func(p pending) bool { return p.stream == c })
	if i < 0 {
		return false
	}
	l.pending = slices.Delete(l.pending, i, i+1)
	select {
	case l.left <- struct{}{}:
	default:
	}
	return true
}

// deliver reads the header of c and hands c to Accept; what sends no good
// header in time is closed.
func (l *connListener) deliver(c Stream) {
	h, err := l.greet(c)
	if !l.leave(c) || err != nil {
		_ = c.Close()
		return
	}
	select {
	case l.streams <- accepting{c, h}:
	case <-l.life.Done():
		_ = c.Close()
	}
}

// greet reads what c must begin with.
func (l *connListener) greet(c Stream) (h Header, err error) {
	// A closed listener ends the wait. It must not touch a stream that has
	// been accepted.
	stop := context.AfterFunc(l.life, func() { _ = c.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	if err := c.SetReadDeadline(time.Now().Add(headerTimeout)); err != nil {
		return Header{}, err
	}
	if l.admit != nil {
		if err := l.admit(c); err != nil {
			return Header{}, err
		}
	}
	if h, err = ReadHeader(c); err != nil {
		return Header{}, err
	}
	if !stop() {
		return Header{}, net.ErrClosed
	}
	return h, c.SetReadDeadline(time.Time{})
}

// Accept implements Listener.
func (l *connListener) Accept() (Stream, Header, error) {
	select {
	case a := <-l.streams:
		return a.stream, a.header, nil
	case <-l.life.Done():
		return nil, Header{}, fmt.Errorf("accept stream: %w", net.ErrClosed)
	}
}

// Close implements Listener.
func (l *connListener) Close() error {
	l.once.Do(func() {
		l.end()
		l.err = l.close()
	})
	l.work.Wait()
	return l.err
}
