// Package tail keeps the end of a stream of unknown length: what a child
// printed, what a guest wrote to its console.
package tail

import "sync"

// Buffer is a writer that keeps the last bytes written to it. Writing never
// blocks and never fails. It is safe for concurrent use.
type Buffer struct {
	limit int

	mu  sync.Mutex
	buf []byte // at most 2*limit bytes, so that most writes move nothing
}

// New returns a buffer that keeps limit bytes.
func New(limit int) *Buffer { return &Buffer{limit: limit} }

// Write appends b and drops what is too old. It returns len(b) and no error.
func (t *Buffer) Write(b []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	n := len(b)
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
	t.mu.Lock()
	defer t.mu.Unlock()
	b := t.buf
	if len(b) > t.limit {
		b = b[len(b)-t.limit:]
	}
	return append([]byte(nil), b...)
}
