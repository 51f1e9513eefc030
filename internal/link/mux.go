package link

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
)

// A frame is 8 bytes of header (type, length of the payload, stream) and the
// payload. docs/link.md has the whole story.
const (
	frameOpen   = 1 // payload: header of the stream; client to server only
	frameData   = 2 // payload: bytes of the stream
	frameFin    = 3 // the sender will send no more data on the stream
	frameStop   = 4 // the sender will read no more of the stream
	frameCredit = 5 // payload: how many more bytes may be sent
	frameEnd    = 6 // the client leaves and the connection stays; the server answers with the same

	frameHeader = 8
	// maxPayload is how much data a frame may have: as much as a process can
	// write ahead into a pipe.
	maxPayload = 256 << 10
	// maxCopied is how much a frame has that was not taken out of a pipe. So a
	// full one is as long as the largest message that Linux's virtio_console
	// driver takes in one write.
	maxCopied = 32<<10 - frameHeader
	// window is how many bytes of a stream may be under way or unread.
	window = 512 << 10
	// maxStreams is how many streams a session may have.
	maxStreams = 1024
	// batch is how much the sender gathers for one write.
	batch = 64 << 10
)

// errProtocol is wrapped by the errors that end a session whose other side
// breaks the rules.
var errProtocol = errors.New("link protocol violated")

// errLeft is why a session ended that the client has left.
var errLeft = fmt.Errorf("%w: the client has left", net.ErrClosed)

// session is one end of a multiplexed byte stream.
type session struct {
	conn   io.ReadWriteCloser
	pipes  PipeConn // conn, if it is one, else nil
	r      *bufio.Reader
	client bool
	accept chan accepted // server only
	done   chan struct{} // closed when the session has ended
	work   sync.WaitGroup
	spare  sync.Pool // of *[window]byte; rings that are free

	mu      sync.Mutex
	wake    sync.Cond          // of mu; the sender waits on it
	err     error              // guarded by mu; set before done is closed
	streams map[uint32]*stream // guarded by mu
	last    uint32             // guarded by mu; highest stream id so far
	control []byte             // guarded by mu; whole frames that go first
	leaving bool               // guarded by mu; frameEnd was queued, after which nothing is sent
	ready   []*stream          // guarded by mu; streams that have something to send
	sending *stream            // guarded by mu; whose bytes from a pipe send is sending
}

type accepted struct {
	stream *stream
	header Header
}

// Client greets the server at the other end of conn and returns a link on
// which streams can be opened. The link owns conn, also after an error. ctx is
// for the greeting only.
func Client(ctx context.Context, conn net.Conn) (Opener, error) {
	r := bufio.NewReaderSize(conn, 32<<10)
	err := converse(ctx, conn, func() error {
		if err := sendHello(conn); err != nil {
			return err
		}
		_, err := readHello(r)
		return err
	})
	if err != nil {
		return nil, err
	}
	return newSession(conn, r, true), nil
}

// converse runs talk, which the end of ctx interrupts. It closes conn if that
// fails.
func converse(ctx context.Context, conn net.Conn, talk func() error) error {
	if err := ctx.Err(); err != nil {
		_ = conn.Close()
		return fmt.Errorf("link: %w", err)
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	err := talk()
	if !stop() {
		// The close above is the cause of whatever went wrong.
		return fmt.Errorf("link: %w", context.Cause(ctx))
	}
	if err != nil {
		_ = conn.Close()
		return fmt.Errorf("link: %w", err)
	}
	return nil
}

// Serve waits for a client's greeting on conn and returns the listener for its
// streams. The link owns conn, also after an error; closing conn ends the
// wait. An error that wraps io.EOF means that no client came.
func Serve(conn io.ReadWriteCloser) (Listener, error) {
	r := bufio.NewReaderSize(conn, 8<<10)
	if _, err := answerHello(r, conn); err != nil {
		_ = conn.Close()
		return nil, fmt.Errorf("link: %w", err)
	}
	return newSession(conn, r, false), nil
}

func newSession(conn io.ReadWriteCloser, r *bufio.Reader, client bool) *session {
	s := &session{
		conn: conn, r: r, client: client,
		done:    make(chan struct{}),
		streams: make(map[uint32]*stream),
	}
	s.wake.L = &s.mu
	s.pipes, _ = conn.(PipeConn)
	if !client {
		// Room for all that can be open, so that the receiver never waits.
		s.accept = make(chan accepted, maxStreams)
	}
	// Both end when the session does; Close waits for them.
	s.work.Go(func() {
		if err := s.receive(); err != nil { // else the sender has the last word
			s.end(err)
		}
	})
	s.work.Go(func() { s.end(s.send()) })
	return s
}

// end ends the session for the given reason; only the first one counts.
func (s *session) end(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil {
		return
	}
	s.err = err
	close(s.done)
	s.wake.Broadcast()
	if !s.client || !errors.Is(err, errLeft) {
		_ = s.conn.Close()
	}
}

// Leave ends a link of Client's, but not its connection, which is the caller's
// again. When it returns without an error, the other side reads nothing of the
// connection but the greeting of the next client. After an error the connection
// is closed.
func Leave(ctx context.Context, o Opener) error {
	s, ok := o.(*session)
	if !ok || !s.client {
		return errors.New("leave link: it is no client's end of a multiplexed one")
	}
	s.mu.Lock()
	s.leave()
	s.mu.Unlock()
	select {
	case <-s.done:
	case <-ctx.Done():
		s.end(context.Cause(ctx))
	}
	s.work.Wait()
	s.mu.Lock()
	defer s.mu.Unlock()
	if !errors.Is(s.err, errLeft) {
		return fmt.Errorf("leave link: %w", s.err)
	}
	return nil
}

// leave queues the last frame. s.mu is held.
func (s *session) leave() {
	s.queue(frameEnd, 0, nil)
	s.leaving = true
}

// Close implements Opener and Listener.
func (s *session) Close() error {
	s.end(net.ErrClosed)
	s.work.Wait()
	return nil
}

// Open implements Opener.
func (s *session) Open(ctx context.Context, h Header) (Stream, error) {
	payload, err := appendHeader(make([]byte, 0, maxHeader), h)
	if err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("open stream: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.err != nil:
		return nil, fmt.Errorf("open stream: link ended: %w", s.err)
	case !s.client:
		return nil, errors.New("open stream: only the client's end can")
	case s.leaving:
		return nil, fmt.Errorf("open stream: link ended: %w", errLeft)
	case len(s.streams) >= maxStreams:
		return nil, fmt.Errorf("open stream: %d are open", maxStreams)
	case s.last == ^uint32(0):
		return nil, errors.New("open stream: link has used up its numbers")
	}
	s.last++
	st := newStream(s, s.last)
	s.streams[st.id] = st
	s.queue(frameOpen, st.id, payload)
	return st, nil
}

// Accept implements Listener.
func (s *session) Accept() (Stream, Header, error) {
	select {
	case a := <-s.accept:
		return a.stream, a.header, nil
	case <-s.done:
		s.mu.Lock()
		defer s.mu.Unlock()
		if errors.Is(s.err, net.ErrClosed) {
			return nil, Header{}, fmt.Errorf("accept stream: %w", s.err)
		}
		return nil, Header{}, fmt.Errorf("accept stream: %w: %w", net.ErrClosed, s.err)
	}
}

// appendFrame appends a frame's header.
func appendFrame(b []byte, kind byte, id uint32, length int) []byte {
	b = append(b, kind, byte(length>>16), byte(length>>8), byte(length))
	return binary.BigEndian.AppendUint32(b, id)
}

// queue queues a frame other than data. What is queued is bounded by what this
// side does: the other side cannot make it grow. s.mu is held.
func (s *session) queue(kind byte, id uint32, payload []byte) {
	if s.leaving {
		return
	}
	s.control = append(appendFrame(s.control, kind, id, len(payload)), payload...)
	s.wake.Signal()
}

// send writes frames until the session ends. Frames of control go first, then
// the streams in turn, a frame each.
func (s *session) send() error {
	buf := make([]byte, 0, 4<<10)
	for {
		var taken Taken
		var err error
		if buf, taken, err = s.next(buf[:0]); err != nil {
			return err
		}
		switch {
		case taken != nil:
			err = taken.Send(buf)
		case len(buf) > 0:
			_, err = s.conn.Write(buf)
		}
		if err != nil {
			return fmt.Errorf("link: %w", err)
		}
	}
}

// next waits until there is something to send and appends it to buf. The
// payload of the last frame may have been taken out of a pipe instead.
func (s *session) next(buf []byte) (_ []byte, taken Taken, _ error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.sending != nil {
		s.sending.writable.notify()
		s.sending = nil
	}
	for s.err == nil && len(s.control) == 0 && (len(s.ready) == 0 || s.leaving) {
		if s.leaving && !s.client {
			return nil, nil, errLeft // the last frame has been written
		}
		s.wake.Wait()
	}
	if s.err != nil {
		return nil, nil, s.err
	}
	buf = append(buf, s.control...)
	s.control = s.control[:0]
	for len(s.ready) > 0 && len(buf) < batch && taken == nil && !s.leaving {
		st := s.ready[0]
		s.ready = s.ready[1:]
		st.queued = false
		buf, taken = st.appendNext(buf)
	}
	return buf, taken, nil
}

// receive handles frames until the session ends, or the client says that it does:
// then it returns nil and reads no more. It never waits for anything but the
// connection.
func (s *session) receive() error {
	var h [frameHeader]byte
	for {
		if _, err := io.ReadFull(s.r, h[:]); err != nil {
			return fmt.Errorf("link: %w", err)
		}
		kind, length, id := h[0], int(h[1])<<16|int(h[2])<<8|int(h[3]), binary.BigEndian.Uint32(h[4:])
		var err error
		switch kind {
		case frameOpen:
			err = s.receiveOpen(id, length)
		case frameData:
			err = s.receiveData(id, length)
		case frameFin, frameStop, frameCredit:
			err = s.receiveControl(kind, id, length)
		case frameEnd:
			return s.receiveEnd(id, length)
		default:
			err = fmt.Errorf("%w: frame of type %d", errProtocol, kind)
		}
		if err != nil {
			return err
		}
	}
}

// receiveEnd answers the client's last frame, or ends the session with the
// server's.
func (s *session) receiveEnd(id uint32, length int) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if id != 0 || length != 0 || s.client != s.leaving {
		return fmt.Errorf("%w: the session ends on stream %d, with %d bytes", errProtocol, id, length)
	}
	if s.client {
		return errLeft
	}
	s.leave()
	return nil
}

func (s *session) receiveOpen(id uint32, length int) error {
	if s.client {
		return fmt.Errorf("%w: stream opened by the server", errProtocol)
	}
	if length > maxHeader {
		return fmt.Errorf("%w: header of %d bytes", errProtocol, length)
	}
	lr := io.LimitedReader{R: s.r, N: int64(length)}
	h, err := ReadHeader(&lr)
	if err != nil {
		return fmt.Errorf("%w: %w", errProtocol, err)
	}
	if lr.N != 0 {
		return fmt.Errorf("%w: %d bytes after a header", errProtocol, lr.N)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if id != s.last+1 {
		return fmt.Errorf("%w: stream %d opened after %d", errProtocol, id, s.last)
	}
	if len(s.streams) >= maxStreams {
		return fmt.Errorf("%w: more than %d streams", errProtocol, maxStreams)
	}
	s.last = id
	st := newStream(s, id)
	s.streams[id] = st
	select {
	case s.accept <- accepted{st, h}:
		return nil
	default:
		return fmt.Errorf("%w: more than %d streams wait", errProtocol, maxStreams)
	}
}

func (s *session) receiveData(id uint32, length int) error {
	if length == 0 || length > maxPayload {
		return fmt.Errorf("%w: data of %d bytes", errProtocol, length)
	}
	s.mu.Lock()
	st := s.streams[id]
	if st == nil || st.remoteFin {
		s.mu.Unlock()
		return fmt.Errorf("%w: data on stream %d, which has none", errProtocol, id)
	}
	if length > st.allowance {
		s.mu.Unlock()
		return fmt.Errorf("%w: data beyond the window of stream %d", errProtocol, id)
	}
	st.allowance -= length
	if st.stopped {
		s.mu.Unlock()
		_, err := s.r.Discard(length)
		return err
	}
	st.in.grow(length, &s.spare)
	st.filling = true
	a, b := st.in.free(length)
	s.mu.Unlock()
	// Without the lock: the reader of the stream only ever looks at what was
	// published before, and nobody else writes.
	if _, err := io.ReadFull(s.r, a); err != nil {
		return fmt.Errorf("link: %w", noEOF(err))
	}
	if _, err := io.ReadFull(s.r, b); err != nil {
		return fmt.Errorf("link: %w", noEOF(err))
	}
	s.mu.Lock()
	st.in.w += uint64(length)
	st.filling = false
	s.mu.Unlock()
	st.readable.notify()
	return nil
}

func (s *session) receiveControl(kind byte, id uint32, length int) error {
	want := 0
	if kind == frameCredit {
		want = 4
	}
	if length != want {
		return fmt.Errorf("%w: frame of type %d with %d bytes", errProtocol, kind, length)
	}
	var payload [4]byte
	if _, err := io.ReadFull(s.r, payload[:length]); err != nil {
		return fmt.Errorf("link: %w", noEOF(err))
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	st := s.streams[id]
	if st == nil {
		// A stop or a credit may cross with the end of the stream.
		if kind == frameFin || id == 0 || id > s.last {
			return fmt.Errorf("%w: frame of type %d on stream %d, which is not open", errProtocol, kind, id)
		}
		return nil
	}
	switch kind {
	case frameFin:
		if st.remoteFin {
			return fmt.Errorf("%w: stream %d ended twice", errProtocol, id)
		}
		st.remoteFin = true
		st.readable.notify()
		st.retire()
	case frameStop:
		st.remoteStop = true
		st.drop()
		st.finish()
	case frameCredit:
		n := binary.BigEndian.Uint32(payload[:])
		if n > window || st.credit+int(n) > window {
			return fmt.Errorf("%w: credit of %d on stream %d", errProtocol, n, id)
		}
		if st.credit == 0 {
			st.writable.notify()
		}
		st.credit += int(n)
		st.enqueue()
	}
	return nil
}
