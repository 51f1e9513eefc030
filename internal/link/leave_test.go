package link

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"testing"
	"time"
)

// kept is a connection that outlives the sessions on it.
type kept struct{ io.ReadWriter }

func (kept) Close() error { return nil }

// TestLeave has one client after the other on a connection. Each leaves much
// behind, which is not to reach the next.
func TestLeave(t *testing.T) {
	a, b := conns(t)
	streams := make(chan Stream)
	ended := make(chan error, 1)
	go func() {
		for {
			l, err := Serve(kept{b})
			if err != nil {
				ended <- err
				return
			}
			for err == nil {
				var s Stream
				if s, _, err = l.Accept(); err == nil {
					streams <- s
				}
			}
			if !errors.Is(err, net.ErrClosed) {
				t.Errorf("session ended with %v", err)
			}
			l.Close()
		}
	}()
	for range 20 {
		o, err := Client(t.Context(), a)
		if err != nil {
			t.Fatal(err)
		}
		c, err := o.Open(t.Context(), stdio)
		if err != nil {
			t.Fatal(err)
		}
		s := <-streams
		// Neither is read, and both are more than a window.
		lots := bytes.Repeat([]byte("KATAlink"), window/4)
		written := make(chan error, 2)
		for _, st := range []Stream{c, s} {
			go func() { _, err := st.Write(lots); written <- err }()
		}
		if _, err := io.ReadFull(c, make([]byte, 3*frameHeader)); err != nil {
			t.Fatal(err)
		}
		if err := Leave(t.Context(), o); err != nil {
			t.Fatal(err)
		}
		for range 2 {
			if err := <-written; err == nil {
				t.Error("a stream outlives its link")
			}
		}
		if _, err := o.Open(t.Context(), stdio); !errors.Is(err, net.ErrClosed) {
			t.Errorf("a stream was opened after that: %v", err)
		}
		o.Close() // changes nothing
	}
	a.Close()
	if err := <-ended; !errors.Is(err, io.EOF) {
		t.Errorf("server ended with %v", err)
	}
}

func TestLeaveWithoutAnswer(t *testing.T) {
	a, b := conns(t)
	go func() { io.Copy(io.Discard, b) }()
	io.WriteString(b, helloMagic+"\x00\x03\x00\x03\x00\x03")
	o, err := Client(t.Context(), a)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if err := Leave(ctx, o); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
	if _, err := a.Write([]byte("x")); !errors.Is(err, net.ErrClosed) {
		t.Errorf("the connection is still open: %v", err)
	}
}

func TestLeaveUnasked(t *testing.T) {
	a, b := conns(t)
	io.WriteString(b, helloMagic+"\x00\x03\x00\x03\x00\x03"+frame(frameEnd, 0, ""))
	o, err := Client(t.Context(), a)
	if err != nil {
		t.Fatal(err)
	}
	defer o.Close()
	<-o.(*session).done
	if err := Leave(t.Context(), o); !errors.Is(err, errProtocol) {
		t.Errorf("got %v", err)
	}
	if err := Leave(t.Context(), DialUnix("nowhere")); err == nil {
		t.Error("a link of connections was left")
	}
}
