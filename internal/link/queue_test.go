package link

import (
	"errors"
	"net"
	"path/filepath"
	"testing"
)

func TestQueue(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "s")
	l, err := ListenUnix(path, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	open := func() Stream {
		c, err := DialUnix(path).Open(t.Context(), Header{Kind: KindRPC})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
		s, _, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	q := NewQueue()
	first := open()
	go q.Put(first)
	if got, err := q.Accept(); err != nil || got != net.Conn(first) {
		t.Errorf("Accept = %v, %v; want the stream that was put in", got, err)
	}
	if err := q.Close(); err != nil {
		t.Error(err)
	}
	if _, err := q.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Accept of a closed queue: %v, want %v", err, net.ErrClosed)
	}
	second := open()
	q.Put(second) // must not block, and closes
	if _, err := second.Write([]byte("x")); !IsClosed(err) {
		t.Errorf("write to a stream that nobody took: %v, want it closed", err)
	}
}
