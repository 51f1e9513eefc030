package link

import (
	"bufio"
	"context"
	"crypto/rand"
	"crypto/subtle"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// keyMagic starts the message with the key, and is the answer to it.
	keyMagic = "KATAvkey"

	// firstRetry and lastRetry are the pauses, which double, before a
	// connection is tried again that the other side had no room for.
	firstRetry = 2 * time.Millisecond
	lastRetry  = time.Second
)

// key is what the host shows at the start of each vsock connection. Anybody on
// the host can connect to a guest; the key tells who may.
type key [32]byte

// errKey is the error of a connection that shows another key.
var errKey = errors.New("wrong key")

func newKey() (key, error) {
	var k key
	if _, err := rand.Read(k[:]); err != nil {
		return key{}, fmt.Errorf("make key: %w", err)
	}
	return k, nil
}

// check reads a key and compares it with k.
func (k key) check(r io.Reader) error {
	var shown key
	if _, err := io.ReadFull(r, shown[:]); err != nil {
		return fmt.Errorf("read key: %w", err)
	}
	if subtle.ConstantTimeCompare(k[:], shown[:]) != 1 {
		return errKey
	}
	return nil
}

// offerKey agrees on a version of the protocol with the guest at the other end
// of conn, gives it the key, and returns when the guest listens for those who
// show it. It closes conn.
func offerKey(ctx context.Context, conn net.Conn, k key) error {
	err := converse(ctx, conn, func() error {
		if err := sendHello(conn); err != nil {
			return err
		}
		if _, err := readHello(conn); err != nil {
			return err
		}
		if _, err := conn.Write(append([]byte(keyMagic), k[:]...)); err != nil {
			return fmt.Errorf("send key: %w", err)
		}
		return expect(conn, keyMagic, "read answer to key")
	})
	if err != nil {
		return err
	}
	_ = conn.Close()
	return nil
}

// awaitKey is the guest's side of offerKey. It calls listen with the key,
// before the host is told that it can connect, and returns what listen does.
// It closes conn.
func awaitKey(conn io.ReadWriteCloser, listen func(key) (Listener, error)) (Listener, error) {
	defer conn.Close()
	r := bufio.NewReaderSize(conn, 4<<10)
	if _, err := answerHello(r, conn); err != nil {
		return nil, fmt.Errorf("link: %w", err)
	}
	if err := expect(r, keyMagic, "read key"); err != nil {
		return nil, fmt.Errorf("link: %w", err)
	}
	var k key
	if _, err := io.ReadFull(r, k[:]); err != nil {
		return nil, fmt.Errorf("link: read key: %w", noEOF(err))
	}
	l, err := listen(k)
	if err != nil {
		return nil, err
	}
	if _, err := io.WriteString(conn, keyMagic); err != nil {
		_ = l.Close()
		return nil, fmt.Errorf("link: answer key: %w", err)
	}
	return l, nil
}

// expect reads magic; op names what it is for.
func expect(r io.Reader, magic, op string) error {
	b := make([]byte, len(magic))
	if _, err := io.ReadFull(r, b); err != nil {
		return fmt.Errorf("%s: %w", op, noEOF(err))
	}
	if string(b) != magic {
		return fmt.Errorf("%s: %q instead of %q", op, b, magic)
	}
	return nil
}

// keyedOpener opens each stream as a connection that begins with a key.
type keyedOpener struct {
	name    string // of the other side, for errors
	connect func(context.Context) (Stream, error)
	key     key
	life    context.Context // until Close
	end     context.CancelFunc

	mu      sync.Mutex
	streams map[*keyedStream]struct{} // guarded by mu; nil after Close
}

// keyedStream is a stream that its opener closes, should that come first.
type keyedStream struct {
	Stream
	opener *keyedOpener
}

func dialKeyed(name string, k key, connect func(context.Context) (Stream, error)) *keyedOpener {
	life, end := context.WithCancel(context.Background())
	return &keyedOpener{
		name: name, connect: connect, key: k, life: life, end: end,
		streams: make(map[*keyedStream]struct{}),
	}
}

// Open implements Opener.
func (o *keyedOpener) Open(ctx context.Context, h Header) (Stream, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(o.life, cancel)()
	c, err := o.dial(ctx)
	if err != nil {
		return nil, fmt.Errorf("open stream: %s: %w", o.name, err)
	}
	if c, err = sendHeader(ctx, c, o.key[:], h); err != nil {
		return nil, err
	}
	s := &keyedStream{c, o}
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.streams == nil {
		_ = c.Close()
		return nil, fmt.Errorf("open stream: %s: %w", o.name, net.ErrClosed)
	}
	o.streams[s] = struct{}{}
	return s, nil
}

// dial connects. A listener whose queue is full, which anybody can bring about,
// resets the connection; it is worth some more tries.
func (o *keyedOpener) dial(ctx context.Context) (Stream, error) {
	for wait := firstRetry; ; wait *= 2 {
		c, err := o.connect(ctx)
		if err == nil {
			return c, nil
		}
		if !errors.Is(err, unix.ECONNRESET) || wait > lastRetry {
			return nil, err
		}
		t := time.NewTimer(wait)
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return nil, fmt.Errorf("%w (last: %w)", ctx.Err(), err)
		}
	}
}

// Close implements Opener.
func (o *keyedOpener) Close() error {
	o.end()
	o.mu.Lock()
	streams := o.streams
	o.streams = nil
	o.mu.Unlock()
	for s := range streams {
		_ = s.Stream.Close()
	}
	return nil
}

// Close implements Stream.
func (s *keyedStream) Close() error {
	s.opener.mu.Lock()
	delete(s.opener.streams, s)
	s.opener.mu.Unlock()
	return s.Stream.Close()
}
