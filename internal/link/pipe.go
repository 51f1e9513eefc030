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
	// Take takes up to limit bytes out of a pipe and does not wait for them: 0
	// without an error means that there are none now. After the last it returns
	// io.EOF. What it has taken is sent before it is called again.
	Take(pipe uintptr, limit int) (int, error)
	// SendTaken sends head and, behind it, what was taken.
	SendTaken(head []byte) error
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
		err = st.drain(int(fd))
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

// drain lets the sender take bytes out of a pipe until there are none, when it
// returns nil, or until there will be none or nobody wants them.
func (st *stream) drain(pipe int) error {
	st.s.mu.Lock()
	err := st.writeError()
	if err == nil {
		st.pipe, st.pipeErr = pipe, nil
		st.enqueue()
	}
	st.s.mu.Unlock()
	if err != nil {
		return err
	}
	_, err = st.settle()
	return err
}

// take takes the stream's next frame out of its pipe and returns the length of
// its payload, 0 for none. It queues the stream again if there may be more.
// s.mu is held, without which drain does not return: the pipe is there.
func (st *stream) take() int {
	n := 0
	if limit := min(st.credit, maxPayload); limit > 0 {
		var err error
		if n, err = st.s.pipes.Take(uintptr(st.pipe), limit); n == 0 {
			st.pipe, st.pipeErr = noPipe, err
			st.writable.notify()
		}
		st.credit -= n
	}
	st.enqueue()
	return n
}
