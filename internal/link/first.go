package link

import "sync"

// OnFirst arranges for f to be called once, when the first byte of st is read. From
// then on it costs next to nothing. It is for a stream that nobody reads yet, and
// returns the one to use from now on.
func OnFirst(st Stream, f func()) Stream {
	own, ok := st.(*stream)
	if !ok {
		return &noticed{Stream: st, first: f}
	}
	own.reading.Lock()
	defer own.reading.Unlock()
	own.first = f
	return own
}

// noticed is a connection whose first byte is waited for.
type noticed struct {
	Stream
	first func()
	once  sync.Once
}

// Read implements net.Conn.
func (n *noticed) Read(p []byte) (int, error) {
	read, err := n.Stream.Read(p)
	if read > 0 {
		n.once.Do(n.first)
	}
	return read, err
}
