package link

import (
	"errors"
	"fmt"
	"io"
	"syscall"
)

// PipeConn is a connection that sends what is in a pipe without looking at it,
// so that the kernel need not copy it.
type PipeConn interface {
	io.ReadWriteCloser
	// Take takes up to limit bytes out of a pipe. It does not wait for them: the
	// error wraps syscall.EAGAIN when there are none now, and io.EOF after the
	// last. But it may wait for a process that is at work on the pipe, so that
	// others take and send meanwhile.
	Take(pipe uintptr, limit int) (Taken, error)
}

// Taken is what was taken out of a pipe, at least a byte. It is to be sent or
// dropped, once.
type Taken interface {
	// Len returns how many bytes there are.
	Len() int
	// Send sends head and, behind it, what was taken. Only one goroutine writes
	// to the connection.
	Send(head []byte) error
	// Drop gives up what was taken. It does not wait for anything.
	Drop()
}

// SendPipe sends what comes out of a pipe, which is in non-blocking mode, until
// the pipe ends or an error comes. Where the connection under the stream is no
// PipeConn it does nothing, and the error wraps errors.ErrUnsupported.
func SendPipe(to Stream, pipe syscall.Conn) error {
	st, ok := to.(*stream)
	if !ok || st.s.pipes == nil {
		return fmt.Errorf("send pipe: %w", errors.ErrUnsupported)
	}
	raw, err := pipe.SyscallConn()
	if err != nil {
		return fmt.Errorf("send pipe: %w", err)
	}
	st.writing.Lock()
	defer st.writing.Unlock()
	// As long as the function runs, nobody closes the pipe.
	waitErr := raw.Read(func(fd uintptr) (done bool) {
		err = st.drain(fd)
		return err != nil
	})
	switch {
	case waitErr != nil:
		return waitErr
	case errors.Is(err, io.EOF):
		return nil
	}
	return err
}

// drain gives the sender frame after frame out of a pipe until there is nothing
// in it, when it returns nil, or until there will be nothing or nobody wants it.
func (st *stream) drain(pipe uintptr) error {
	for {
		limit, err := st.startTake()
		if err != nil {
			return err
		}
		// Without the lock and not in the sender: whoever writes to the pipe can
		// make this last, and that must not hold up other streams.
		taken, err := st.s.pipes.Take(pipe, limit)
		st.endTake(taken)
		switch {
		case errors.Is(err, syscall.EAGAIN):
			return nil
		case err != nil:
			return err
		}
	}
}

// startTake waits until the last frame has been sent, so that the next one has
// what comes meanwhile, and until there is credit for another. It returns how
// much that may have.
func (st *stream) startTake() (limit int, err error) {
	s := st.s
	if _, err := st.settle(func() bool {
		return st.taken == nil && s.sending != st && (st.credit > 0 || st.fin)
	}); err != nil {
		return 0, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := st.writeError(); err != nil {
		return 0, err
	}
	st.taking = true
	return min(st.credit, maxPayload), nil
}

// endTake gives the sender what was taken, nil for nothing, unless nobody wants
// it any more.
func (st *stream) endTake(taken Taken) {
	st.s.mu.Lock()
	defer st.s.mu.Unlock()
	switch {
	case taken == nil:
	case st.taking:
		st.taken = taken
	default:
		taken.Drop()
	}
	st.taking = false
	st.enqueue()
}
