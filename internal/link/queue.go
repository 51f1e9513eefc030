package link

import (
	"net"
	"sync"
)

// Queue is a net.Listener of streams that were accepted elsewhere: it gives
// those of one kind to a server.
type Queue struct {
	streams chan Stream
	closed  chan struct{}
	once    sync.Once
}

// NewQueue returns an empty queue.
func NewQueue() *Queue {
	return &Queue{streams: make(chan Stream), closed: make(chan struct{})}
}

// Put hands a stream over to whoever accepts, or closes it when the queue is
// closed.
func (q *Queue) Put(s Stream) {
	select {
	case q.streams <- s:
	case <-q.closed:
		_ = s.Close()
	}
}

// Accept implements net.Listener.
func (q *Queue) Accept() (net.Conn, error) {
	select {
	case s := <-q.streams:
		return s, nil
	case <-q.closed:
		return nil, net.ErrClosed
	}
}

// Close implements net.Listener. Streams that were accepted stay open.
func (q *Queue) Close() error {
	q.once.Do(func() { close(q.closed) })
	return nil
}

// Addr implements net.Listener.
func (q *Queue) Addr() net.Addr { return &net.UnixAddr{Name: "link", Net: "unix"} }
