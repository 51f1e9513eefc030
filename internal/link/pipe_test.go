package link

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// taker is a PipeConn that copies.
type taker struct {
	net.Conn
	before func()       // called by Take, nil for nothing
	left   atomic.Int32 // how much was taken and neither sent nor dropped
}

func (c *taker) Take(pipe uintptr, limit int) (Taken, error) {
	if c.before != nil {
		c.before()
	}
	b := make([]byte, limit)
	n, err := unix.Read(int(pipe), b)
	switch {
	case err != nil:
		return nil, err
	case n == 0:
		return nil, io.EOF
	}
	c.left.Add(1)
	return taken{c, b[:n]}, nil
}

type taken struct {
	c *taker
	b []byte
}

func (t taken) Len() int { return len(t.b) }

func (t taken) Send(head []byte) error {
	t.Drop()
	_, err := t.c.Write(append(bytes.Clone(head), t.b...))
	return err
}

func (t taken) Drop() { t.c.left.Add(-1) }

// takers returns a link whose server's connection takes from pipes.
func takers(t *testing.T) (Opener, Listener) {
	t.Helper()
	return takersThat(t, nil)
}

// takersThat does so and has before called whenever it takes.
func takersThat(t *testing.T, before func()) (Opener, Listener) {
	t.Helper()
	a, b := conns(t)
	conn := &taker{Conn: b, before: before}
	served := make(chan Listener, 1)
	go func() {
		l, err := Serve(conn)
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
	t.Cleanup(func() {
		o.Close()
		l.Close()
		if left := conn.left.Load(); left != 0 {
			t.Errorf("%d pieces were neither sent nor dropped, or both", left)
		}
	})
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

// What was sent out of the pipe arrives, and so does the end, after the rest of
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

// A process that has locked its pipe holds up its own output only, and nothing
// that is done to the stream meanwhile.
func TestSendPipeWhoseTakeBlocks(t *testing.T) {
	for _, tt := range []struct {
		name string
		act  func(client, server Stream) // while it is blocked
		over bool                        // the client sees the end while it is blocked
		sent string
		want error
	}{
		{"nothing happens", func(_, _ Stream) {}, false, "output", nil},
		{"closed here", func(_, s Stream) { s.Close() }, true, "", net.ErrClosed},
		{"ended here", func(_, s Stream) { s.CloseWrite() }, false, "output", net.ErrClosed},
	} {
		t.Run(tt.name, func(t *testing.T) {
			blocked, release := make(chan struct{}), make(chan struct{})
			var again atomic.Bool
			o, l := takersThat(t, func() {
				if !again.Swap(true) {
					close(blocked)
					<-release
				}
			})
			c, s := open(t, o, l, stdio)
			w, r := source(t)
			io.WriteString(w, "output")
			w.Close()
			sent := make(chan error, 1)
			go func() {
				err := SendPipe(s, r)
				s.CloseWrite()
				sent <- err
			}()
			<-blocked
			tt.act(c, s)
			got := make(chan string, 1)
			read := func() {
				b, err := io.ReadAll(c)
				if err != nil {
					t.Errorf("read: %v", err)
				}
				got <- string(b)
			}
			if tt.over {
				read()
			} else {
				go read()
			}

			// Another stream opens, carries more than its window both ways, which
			// takes credit, out of a pipe too, and ends.
			c2, s2 := open(t, o, l, stdio)
			w2, r2 := source(t)
			go func() {
				w2.Write(make([]byte, 2*window))
				w2.Close()
			}()
			go func() {
				SendPipe(s2, r2)
				io.Copy(s2, s2)
				s2.Close()
			}()
			if _, err := io.ReadFull(c2, make([]byte, 2*window)); err != nil {
				t.Fatal(err)
			}
			go func() {
				c2.Write(make([]byte, 2*window))
				c2.CloseWrite()
			}()
			if n, err := Copy(io.Discard, c2); n != 2*window || err != nil {
				t.Errorf("the other stream carried %d bytes, %v", n, err)
			}

			select {
			case err := <-sent:
				t.Errorf("it ended while it was blocked: %v", err)
			default:
			}
			close(release)
			if err := <-sent; !errors.Is(err, tt.want) {
				t.Errorf("ended with %v, want %v", err, tt.want)
			}
			if b := <-got; b != tt.sent {
				t.Errorf("%q arrived, want %q", b, tt.sent)
			}
		})
	}
}
