package link

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// taker is a PipeConn that copies.
type taker struct {
	net.Conn
	taken []byte
}

func (c *taker) Take(pipe uintptr, limit int) (int, error) {
	b := make([]byte, limit)
	n, err := unix.Read(int(pipe), b)
	switch {
	case errors.Is(err, unix.EAGAIN):
		return 0, nil
	case err != nil:
		return 0, err
	case n == 0:
		return 0, io.EOF
	}
	c.taken = append(c.taken, b[:n]...)
	return n, nil
}

func (c *taker) SendTaken(head []byte) error {
	_, err := c.Write(append(bytes.Clone(head), c.taken...))
	c.taken = nil
	return err
}

// takers returns a link whose server's connection takes from pipes.
func takers(t *testing.T) (Opener, Listener) {
	t.Helper()
	a, b := conns(t)
	served := make(chan Listener, 1)
	go func() {
		l, err := Serve(&taker{Conn: b})
		if err != nil {
			t.Error(err)
		}
		served <- l
	}()
	o, err := Client(t.Context(), a)
	if err != nil {
		t.Fatal(err)
	}
	l := <-served
	t.Cleanup(func() { o.Close(); l.Close() })
	return o, l
}

// source returns a pipe.
func source(t *testing.T) (w, r *os.File) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close(); w.Close() })
	return w, r
}

func TestSendPipe(t *testing.T) {
	o, l := takers(t)
	var work sync.WaitGroup
	for i := range 8 {
		c, s := open(t, o, l, stdio)
		w, r := source(t)
		data := make([]byte, 3*window+i)
		random := rand.NewChaCha8([32]byte{byte(i)})
		random.Read(data)
		work.Go(func() {
			for rest := data; len(rest) > 0; {
				n := min(len(rest), 1+int(random.Uint64()%100_000))
				if i%2 == 0 { // some write small pieces as well
					n = min(n, 1+int(random.Uint64()%10_000))
				}
				if _, err := w.Write(rest[:n]); err != nil {
					t.Errorf("write: %v", err)
					return
				}
				rest = rest[n:]
			}
			w.Close()
		})
		work.Go(func() {
			if err := SendPipe(s, r); err != nil {
				t.Errorf("send pipe: %v", err)
			}
			// What comes after the pipe comes behind it.
			if _, err := s.Write([]byte("end")); err != nil {
				t.Errorf("write: %v", err)
			}
			s.CloseWrite()
		})
		work.Go(func() {
			got, err := io.ReadAll(c)
			if err != nil || string(got) != string(data)+"end" {
				t.Errorf("read %d of %d bytes, %v", len(got), len(data)+3, err)
			}
		})
	}
	work.Wait()
}

func TestSendPipeUnsupported(t *testing.T) {
	links(t, func(t *testing.T, o Opener, l Listener) {
		_, s := open(t, o, l, stdio)
		_, r := source(t)
		if err := SendPipe(s, r); !errors.Is(err, errors.ErrUnsupported) {
			t.Errorf("got %v", err)
		}
	})
}

// zeros writes to a pipe until its other end is closed.
func zeros(w *os.File) {
	for b := make([]byte, 64<<10); ; {
		if _, err := w.Write(b); err != nil {
			return
		}
	}
}

func TestSendPipeEnds(t *testing.T) {
	for _, tt := range []struct {
		name string
		end  func(o Opener, client, server Stream)
		want error
	}{
		{"the reader stops", func(_ Opener, c, _ Stream) { c.Close() }, syscall.EPIPE},
		{"closed here", func(_ Opener, _, s Stream) { s.Close() }, net.ErrClosed},
		{"too late", func(_ Opener, _, s Stream) { s.SetWriteDeadline(time.Unix(1, 0)) }, os.ErrDeadlineExceeded},
		{"the link ends", func(o Opener, _, _ Stream) { o.Close() }, nil}, // one of several errors
	} {
		t.Run(tt.name, func(t *testing.T) {
			o, l := takers(t)
			c, s := open(t, o, l, stdio)
			w, r := source(t)
			go zeros(w) // ends with the pipe
			sent := make(chan error, 1)
			go func() { sent <- SendPipe(s, r) }()
			// It flows, and then the window is full or about to be.
			if _, err := io.ReadFull(c, make([]byte, 100)); err != nil {
				t.Fatal(err)
			}
			tt.end(o, c, s)
			if err := <-sent; err == nil || tt.want != nil && !errors.Is(err, tt.want) {
				t.Errorf("ended with %v, want %v", err, tt.want)
			}
		})
	}
}

// What was taken out of the pipe arrives, and so does the end, after the rest of
// the pipe has been given up.
func TestSendPipeGivesUp(t *testing.T) {
	o, l := takers(t)
	c, s := open(t, o, l, stdio)
	w, r := source(t)
	go zeros(w) // ends with the pipe
	sent := make(chan error, 1)
	go func() { sent <- SendPipe(s, r) }()
	// Nobody reads: it stops when the window is full.
	full := func() bool {
		st := s.(*stream)
		st.s.mu.Lock()
		defer st.s.mu.Unlock()
		return st.credit == 0
	}
	for deadline := time.Now().Add(time.Minute); !full(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the window does not fill")
		}
	}
	s.SetWriteDeadline(time.Unix(1, 0))
	if err := <-sent; !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatal(err)
	}
	s.CloseWrite()
	if n, err := Copy(io.Discard, c); n != window || err != nil {
		t.Errorf("read %d, %v, want %d", n, err, window)
	}
}
