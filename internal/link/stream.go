package link

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"time"
)

// signal wakes one waiter, now or when it comes.
type signal chan struct{}

func (c signal) notify() {
	select {
	case c <- struct{}{}:
	default:
	}
}

// stream is one stream of a session. Each direction ends with one fin; when
// both have, the stream leaves the session.
type stream struct {
	s  *session
	id uint32

	readable, writable signal
	readBy, writeBy    *deadline
	closed             chan struct{} // closed by Close
	closeOnce          sync.Once

	reading sync.Mutex // held by the one Read that is at work
	first   func()     // guarded by reading: called at the first byte, nil from then on
	writing sync.Mutex // held by the one Write that is at work

	// All that follows is guarded by s.mu.

	in        ring
	filling   bool // the receiver writes into the free part of in
	allowance int  // how much the other side may still send
	read      int  // what was read and not yet credited
	remoteFin bool // the other side sends no more
	stopped   bool // this side reads no more

	pending    []byte // what Write was given and has not been sent
	taking     bool   // SendPipe takes; fin waits for what that will be
	taken      Taken  // what SendPipe took and has not been sent
	credit     int    // how much may be sent
	queued     bool   // in s.ready
	fin        bool   // fin is to be sent after pending
	finSent    bool
	remoteStop bool // the other side reads no more
}

func newStream(s *session, id uint32) *stream {
	return &stream{
		s: s, id: id,
		readable: make(signal, 1), writable: make(signal, 1),
		readBy: newDeadline(), writeBy: newDeadline(),
		closed:    make(chan struct{}),
		allowance: window, credit: window,
	}
}

// enqueue puts the stream into the sender's queue if it has something that can
// be sent. s.mu is held.
func (st *stream) enqueue() {
	data := len(st.pending) > 0 || st.taken != nil
	if st.queued || st.finSent || st.taking || !st.fin && !data || data && st.credit == 0 {
		return
	}
	st.queued = true
	st.s.ready = append(st.s.ready, st)
	st.s.wake.Signal()
}

// appendNext appends the stream's next frame to b, if there is one, and queues
// the stream again if there is more. The payload is what it returns as taken, if
// that is not nil, and belongs to the caller. s.mu is held.
func (st *stream) appendNext(b []byte) (_ []byte, taken Taken) {
	if st.taken != nil {
		taken, st.taken = st.taken, nil
		b = appendFrame(b, frameData, st.id, taken.Len())
		st.credit -= taken.Len()
		st.s.sending = st
	} else if n := min(len(st.pending), st.credit, maxCopied); n > 0 {
		b = append(appendFrame(b, frameData, st.id, n), st.pending[:n]...)
		st.credit -= n
		st.pending = st.pending[n:]
		if len(st.pending) == 0 {
			st.writable.notify()
		}
	} else if st.fin && !st.finSent && !st.taking && len(st.pending) == 0 {
		b = appendFrame(b, frameFin, st.id, 0)
		st.finSent = true
		st.retire()
	}
	st.enqueue()
	return b, taken
}

// finish sends fin once what was to be sent has been. s.mu is held.
func (st *stream) finish() {
	st.fin = true
	st.enqueue()
	st.writable.notify()
}

// retire takes the stream out of the session if it is over. s.mu is held.
func (st *stream) retire() {
	if st.finSent && st.remoteFin {
		delete(st.s.streams, st.id)
	}
}

// Read implements net.Conn.
func (st *stream) Read(p []byte) (int, error) {
	st.reading.Lock()
	defer st.reading.Unlock()
	if len(p) == 0 {
		return 0, nil
	}
	in, err := st.await()
	if err != nil {
		return 0, err
	}
	n := in.copy(p)
	st.consume(n)
	return n, nil
}

// writeTo writes what arrives to w, without a buffer in between.
func (st *stream) writeTo(w io.Writer) (written int64, err error) {
	st.reading.Lock()
	defer st.reading.Unlock()
	for {
		in, err := st.await()
		if errors.Is(err, io.EOF) {
			return written, nil
		}
		if err != nil {
			return written, err
		}
		n, err := w.Write(in.next(copySize))
		st.consume(n)
		written += int64(n)
		if err != nil {
			return written, err
		}
	}
}

// await waits until there is something to read and returns the ring that has
// it. What is in it stays until it is consumed.
func (st *stream) await() (ring, error) {
	s := st.s
	for {
		s.mu.Lock()
		in, end, stopped := st.in, st.remoteFin, st.stopped
		ended := s.err
		s.mu.Unlock()
		switch {
		case stopped:
			return ring{}, net.ErrClosed
		case in.w != in.r:
			select {
			case <-st.readBy.wait():
				return ring{}, os.ErrDeadlineExceeded
			default:
			}
			if st.first != nil {
				st.first()
				st.first = nil
			}
			return in, nil
		case end:
			return ring{}, io.EOF
		case ended != nil:
			if errors.Is(ended, errLeft) {
				return ring{}, io.EOF // who wrote has said farewell
			}
			return ring{}, fmt.Errorf("read stream: link ended: %w", noEOF(ended))
		}
		select {
		case <-st.readable:
		case <-st.closed:
		case <-s.done:
		case <-st.readBy.wait():
			return ring{}, os.ErrDeadlineExceeded
		}
	}
}

// consume frees n bytes that were read and lets the other side send as many
// when it is worth a frame.
func (st *stream) consume(n int) {
	s := st.s
	s.mu.Lock()
	defer s.mu.Unlock()
	st.in.r += uint64(n)
	if !st.filling {
		st.in.shrink(&s.spare)
	}
	st.read += n
	if st.read < window/2 || st.remoteFin || s.err != nil {
		return
	}
	s.queue(frameCredit, st.id, binary.BigEndian.AppendUint32(nil, uint32(st.read)))
	st.allowance += st.read
	st.read = 0
}

// Write implements net.Conn. It returns when all of p has been handed to the
// connection or is about to be.
func (st *stream) Write(p []byte) (int, error) {
	st.writing.Lock()
	defer st.writing.Unlock()
	s := st.s
	s.mu.Lock()
	err := st.writeError()
	if err == nil {
		st.pending = p
		st.enqueue()
	}
	s.mu.Unlock()
	if err != nil {
		return 0, err
	}
	left, err := st.settle(func() bool { return len(st.pending) == 0 })
	return len(p) - left, err
}

// settle waits until the sender has done what Write or drain needs, or until
// that cannot be, when there is nothing more to send. It returns how much of
// what is pending was not sent. done is called with s.mu held.
func (st *stream) settle(done func() bool) (left int, err error) {
	s := st.s
	expired := false
	for {
		s.mu.Lock()
		// When the other side stopped meanwhile, how much was lost cannot be
		// told; nothing of it matters to anyone.
		left = len(st.pending)
		over := true
		switch {
		case st.remoteStop || s.err != nil || isClosed(st.closed):
			st.drop()
			err = st.writeError()
		case done():
		case expired:
			st.drop()
			err = os.ErrDeadlineExceeded
		default:
			over = false
		}
		s.mu.Unlock()
		if over {
			return left, err
		}
		select {
		case <-st.writable:
		case <-st.closed:
		case <-s.done:
		case <-st.writeBy.wait():
			expired = true
		}
	}
}

// drop forgets what was to be sent, but not the fin behind it. s.mu is held.
func (st *stream) drop() {
	if st.taken != nil {
		st.taken.Drop()
	}
	// What drain is taking at the moment it drops itself.
	st.pending, st.taken, st.taking = nil, nil, false
	st.enqueue()
}

// writeError says why nothing can be written. s.mu is held.
func (st *stream) writeError() error {
	switch {
	case isClosed(st.closed):
		return net.ErrClosed
	case st.remoteStop:
		return syscall.EPIPE
	case st.s.err != nil:
		return fmt.Errorf("write stream: link ended: %w", noEOF(st.s.err))
	case st.fin:
		return net.ErrClosed
	}
	return nil
}

func isClosed(c chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// CloseWrite implements Stream.
func (st *stream) CloseWrite() error {
	st.s.mu.Lock()
	defer st.s.mu.Unlock()
	st.finish()
	return nil
}

// Close implements net.Conn. It does not wait for anything.
func (st *stream) Close() error {
	st.closeOnce.Do(func() {
		close(st.closed)
		s := st.s
		s.mu.Lock()
		defer s.mu.Unlock()
		st.stopped = true
		st.drop()
		if !st.remoteFin {
			s.queue(frameStop, st.id, nil)
		}
		st.finish()
		st.in = ring{}
		st.readBy.set(time.Time{})
		st.writeBy.set(time.Time{})
	})
	return nil
}

// SetDeadline implements net.Conn.
func (st *stream) SetDeadline(t time.Time) error {
	st.readBy.set(t)
	st.writeBy.set(t)
	return nil
}

// SetReadDeadline implements net.Conn.
func (st *stream) SetReadDeadline(t time.Time) error {
	st.readBy.set(t)
	return nil
}

// SetWriteDeadline implements net.Conn.
func (st *stream) SetWriteDeadline(t time.Time) error {
	st.writeBy.set(t)
	return nil
}

// LocalAddr implements net.Conn.
func (st *stream) LocalAddr() net.Addr { return addr("link") }

// RemoteAddr implements net.Conn.
func (st *stream) RemoteAddr() net.Addr { return addr("link") }

// addr is the address of an end that has none worth telling.
type addr string

// Network implements net.Addr.
func (a addr) Network() string { return string(a) }
func (a addr) String() string  { return string(a) }

// ring is a buffer of a stream's unread bytes. Its positions only grow; its
// size is a power of two, at most window.
type ring struct {
	buf  []byte
	r, w uint64
}

const (
	minRing = 4 << 10
	// A ring that has to be larger than smallRing gets the greatest size at
	// once, and is used again: bulk data would make much garbage.
	smallRing = 64 << 10
)

// grow makes room for n more bytes.
func (q *ring) grow(n int, spare *sync.Pool) {
	need := int(q.w-q.r) + n
	if need <= len(q.buf) {
		return
	}
	old := *q
	if need > smallRing {
		b, ok := spare.Get().(*[window]byte)
		if !ok {
			b = new([window]byte)
		}
		q.buf = b[:]
	} else {
		size := max(len(q.buf), minRing)
		for size < need {
			size *= 2
		}
		q.buf = make([]byte, size)
	}
	q.place(old)
}

// place copies the content of old to where it belongs in q.
func (q *ring) place(old ring) {
	if old.w == old.r {
		return
	}
	content := make([]byte, old.w-old.r)
	old.copy(content)
	at := int(q.r) & (len(q.buf) - 1)
	n := copy(q.buf[at:], content)
	copy(q.buf, content[n:])
}

// shrink gives memory back when there is nothing in it. Nobody may hold a part
// of it.
func (q *ring) shrink(spare *sync.Pool) {
	if q.w == q.r && len(q.buf) == window {
		spare.Put((*[window]byte)(q.buf))
		q.buf = nil
	}
}

// next returns the next bytes to read, as far as they lie together.
func (q *ring) next(limit int) []byte {
	at := int(q.r) & (len(q.buf) - 1)
	return q.buf[at:min(at+min(limit, int(q.w-q.r)), len(q.buf))]
}

// free returns the next n bytes that are free, in two parts. There are as many.
func (q *ring) free(n int) (a, b []byte) {
	at := int(q.w) & (len(q.buf) - 1)
	first := min(n, len(q.buf)-at)
	return q.buf[at : at+first], q.buf[:n-first]
}

// copy copies what fits to p and consumes nothing.
func (q *ring) copy(p []byte) int {
	n := min(len(p), int(q.w-q.r))
	at := int(q.r) & (len(q.buf) - 1)
	k := copy(p[:n], q.buf[at:])
	copy(p[k:n], q.buf)
	return n
}
