package link

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"sync"
	"time"
)

const (
	// headerTimeout is how long a connection may take to send its header.
	headerTimeout = 10 * time.Second
	// maxPending is how many connections may be about to send theirs.
	maxPending = 64
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
	return sendHeader(ctx, c.(*net.UnixConn), h)
}

// Close implements Opener.
func (o unixOpener) Close() error { return nil }

// sendHeader makes a fresh connection a stream. It closes the connection on
// error.
func sendHeader(ctx context.Context, c Stream, h Header) (Stream, error) {
	deadline, _ := ctx.Deadline()
	err := c.SetWriteDeadline(deadline)
	if err == nil {
		err = WriteHeader(c, h)
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
	return listen(func() (Stream, error) { return l.AcceptUnix() }, l.Close), nil
}

// connListener turns connections into streams. Headers are read beside one
// another, so that a connection that sends none holds up nobody.
type connListener struct {
	streams chan accepting
	life    context.Context // until Close
	end     context.CancelFunc
	close   func() error
	once    sync.Once
	work    sync.WaitGroup
	err     error // of close; set in once
}

type accepting struct {
	stream Stream
	header Header
}

// listen returns a Listener of the connections that accept returns, until it
// returns an error because close was called.
func listen(accept func() (Stream, error), closer func() error) *connListener {
	life, end := context.WithCancel(context.Background())
	l := &connListener{streams: make(chan accepting), life: life, end: end, close: closer}
	l.work.Go(func() { l.run(accept) })
	return l
}

func (l *connListener) run(accept func() (Stream, error)) {
	slots := make(chan struct{}, maxPending)
	for {
		select {
		case slots <- struct{}{}:
		case <-l.life.Done():
			return
		}
		c, err := accept()
		if err != nil {
			if errors.Is(err, net.ErrClosed) {
				return
			}
			// Out of descriptors or the like: it may pass.
			select {
			case <-time.After(50 * time.Millisecond):
			case <-l.life.Done():
				return
			}
			<-slots
			continue
		}
		l.work.Go(func() {
			defer func() { <-slots }()
			l.deliver(c)
		})
	}
}

// deliver reads the header of c and hands c to Accept; what sends no good
// header in time is closed.
func (l *connListener) deliver(c Stream) {
	// A closed listener ends the wait. It must not touch a stream that has
	// been accepted.
	stop := context.AfterFunc(l.life, func() { _ = c.SetReadDeadline(time.Unix(1, 0)) })
	err := c.SetReadDeadline(time.Now().Add(headerTimeout))
	var h Header
	if err == nil {
		h, err = ReadHeader(c)
	}
	if err == nil && stop() {
		err = c.SetReadDeadline(time.Time{})
	} else if err == nil {
		err = net.ErrClosed
	}
	if err != nil {
		stop()
		_ = c.Close()
		return
	}
	select {
	case l.streams <- accepting{c, h}:
	case <-l.life.Done():
		_ = c.Close()
	}
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
