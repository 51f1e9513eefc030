// Package tail keeps the end of a stream of unknown length: what a child
// printed, what a guest wrote to its console.
package tail

import "sync"

// Buffer is a writer that keeps the last bytes written to it. Writing never
// blocks and never fails. It is safe for concurrent use.
type Buffer struct {
	limit int

	mu  sync.Mutex
	buf []byte // guarded by mu: at most 2*limit bytes, so that most writes move nothing
	end int64  // guarded by mu: number of bytes written
}

// New returns a buffer that keeps limit bytes.
func New(limit int) *Buffer { return &Buffer{limit: limit} }

// Write appends b and drops what is too old. It returns len(b) and no error.
func (t *Buffer) Write(b []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	n := len(b)
	t.end += int64(n)
	if len(b) > t.limit {
		b = b[len(b)-t.limit:]
	}
	if len(t.buf)+len(b) > 2*t.limit {
		keep := min(t.limit-len(b), len(t.buf))
		t.buf = append(t.buf[:0], t.buf[len(t.buf)-keep:]...)
	}
	t.buf = append(t.buf, b...)
	return n, nil
}

// Bytes returns a copy of what is kept.
func (t *Buffer) Bytes() []byte {
	b, _ := t.From(0)
	return b
}

// From returns a copy of what is kept of the bytes from number n on, counting
// from 0, and the number of the one that comes next.
func (t *Buffer) From(n int64) (b []byte, next int64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	kept := min(int64(len(t.buf)), int64(t.limit))
	b = t.buf[int64(len(t.buf))-max(min(t.end-n, kept), 0):]
	return append([]byte(nil), b...), t.end
}
