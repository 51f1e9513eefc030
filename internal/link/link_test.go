package link

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// conns returns the two ends of a socket pair.
func conns(t testing.TB) (a, b net.Conn) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	var c [2]net.Conn
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "pair")
		if c[i], err = net.FileConn(f); err != nil {
			t.Fatal(err)
		}
		f.Close()
		t.Cleanup(func() { c[i].Close() })
	}
	return c[0], c[1]
}

// pair returns a multiplexed link.
func pair(t testing.TB) (Opener, Listener) {
	t.Helper()
	a, b := conns(t)
	type served struct {
		l   Listener
		err error
	}
	c := make(chan served, 1)
	go func() { l, err := Serve(b); c <- served{l, err} }()
	o, err := Client(t.Context(), a)
	if err != nil {
		t.Fatal(err)
	}
	s := <-c
	if s.err != nil {
		t.Fatal(s.err)
	}
	t.Cleanup(func() { o.Close(); s.l.Close() })
	return o, s.l
}

// links are the implementations that must behave alike.
func links(t *testing.T, test func(t *testing.T, o Opener, l Listener)) {
	t.Run("mux", func(t *testing.T) {
		o, l := pair(t)
		test(t, o, l)
	})
	t.Run("unix", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "s")
		l, err := ListenUnix(path, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { l.Close() })
		test(t, DialUnix(path), l)
	})
	t.Run("keyed", func(t *testing.T) {
		o, l, _ := keyed(t, key{1, 2, 3})
		test(t, o, l)
	})
}

var stdio = Header{Kind: KindStdio, Container: "c1", FD: 1}

func open(t testing.TB, o Opener, l Listener, h Header) (client, server Stream) {
	t.Helper()
	client, err := o.Open(t.Context(), h)
	if err != nil {
		t.Fatal(err)
	}
	server, got, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	if got != h {
		t.Fatalf("header %+v arrived as %+v", h, got)
	}
	t.Cleanup(func() { client.Close(); server.Close() })
	return client, server
}

func TestHalfClose(t *testing.T) {
	links(t, func(t *testing.T, o Opener, l Listener) {
		c, s := open(t, o, l, Header{Kind: KindStdio, Container: "a.b-c_d", Exec: "E1", FD: 2})
		if _, err := c.Write([]byte("question")); err != nil {
			t.Fatal(err)
		}
		if err := c.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(s)
		if err != nil || string(got) != "question" {
			t.Fatalf("server read %q, %v", got, err)
		}
		if _, err := c.Write([]byte("x")); err == nil {
			t.Error("write after CloseWrite succeeded")
		}
		if _, err := s.Write([]byte("answer")); err != nil {
			t.Fatal(err)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		if got, err = io.ReadAll(c); err != nil || string(got) != "answer" {
			t.Fatalf("client read %q, %v", got, err)
		}
	})
}

func TestManyStreams(t *testing.T) {
	links(t, func(t *testing.T, o Opener, l Listener) {
		const streams, size = 20, 3 << 20
		var work sync.WaitGroup
		for i := range streams {
			c, s := open(t, o, l, stdio)
			data := make([]byte, size)
			r := rand.NewChaCha8([32]byte{byte(i)})
			r.Read(data)
			// To the server and back again.
			work.Go(func() {
				if _, err := io.CopyBuffer(struct{ io.Writer }{s}, struct{ io.Reader }{s}, make([]byte, 1000+7000*i)); err != nil {
					t.Errorf("echo: %v", err)
				}
				s.CloseWrite()
			})
			work.Go(func() {
				for rest := data; len(rest) > 0; {
					n := min(len(rest), 1+int(r.Uint64()%100_000))
					if _, err := c.Write(rest[:n]); err != nil {
						t.Errorf("write: %v", err)
						return
					}
					rest = rest[n:]
				}
				c.CloseWrite()
			})
			work.Go(func() {
				h := sha256.New()
				if _, err := io.Copy(h, c); err != nil {
					t.Errorf("read: %v", err)
				}
				if want := sha256.Sum256(data); !bytes.Equal(h.Sum(nil), want[:]) {
					t.Errorf("stream %d came back changed", i)
				}
			})
		}
		work.Wait()
	})
}

func TestCopy(t *testing.T) {
	links(t, func(t *testing.T, o Opener, l Listener) {
		c, s := open(t, o, l, stdio)
		data := make([]byte, 5*window+7)
		r := rand.NewChaCha8([32]byte{1})
		r.Read(data)
		var work sync.WaitGroup
		work.Go(func() {
			for rest := data; len(rest) > 0; {
				n := min(len(rest), 1+int(r.Uint64()%(2*copySize)))
				if _, err := s.Write(rest[:n]); err != nil {
					t.Errorf("write: %v", err)
					return
				}
				rest = rest[n:]
			}
			s.CloseWrite()
		})
		var got bytes.Buffer
		n, err := Copy(&got, c)
		if err != nil || n != int64(len(data)) || !bytes.Equal(got.Bytes(), data) {
			t.Errorf("copied %d of %d bytes, %v; the same: %t", n, len(data), err, bytes.Equal(got.Bytes(), data))
		}
		work.Wait()
	})
}

// refusal is a writer that takes nothing.
type refusal struct{}

func (refusal) Write([]byte) (int, error) { return 0, syscall.ENOSPC }

func TestCopyTellsOfTheWriter(t *testing.T) {
	links(t, func(t *testing.T, o Opener, l Listener) {
		c, s := open(t, o, l, stdio)
		s.Write([]byte("hello"))
		if n, err := Copy(refusal{}, c); n != 0 || !errors.Is(err, syscall.ENOSPC) {
			t.Errorf("copied %d, %v", n, err)
		}
	})
}

func TestCloseStopsWriter(t *testing.T) {
	links(t, func(t *testing.T, o Opener, l Listener) {
		c, s := open(t, o, l, stdio)
		c.Close()
		var err error
		for err == nil {
			_, err = s.Write(make([]byte, 1000))
		}
		if !errors.Is(err, syscall.EPIPE) {
			t.Errorf("write to a closed stream: %v", err)
		}
		if _, err := c.Read(make([]byte, 1)); !errors.Is(err, net.ErrClosed) {
			t.Errorf("read of a closed stream: %v", err)
		}
	})
}

func TestBackPressure(t *testing.T) {
	o, l := pair(t)
	slow, slowEnd := open(t, o, l, stdio)
	c, s := open(t, o, l, stdio)
	// Nobody reads the one: its writer must stop.
	slow.SetWriteDeadline(time.Now().Add(50 * time.Millisecond))
	n, err := slow.Write(make([]byte, 4*window))
	if !errors.Is(err, os.ErrDeadlineExceeded) || n != window {
		t.Fatalf("wrote %d, %v", n, err)
	}
	// And the other must not care.
	if _, err := c.Write([]byte("hi")); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(s, make([]byte, 2)); err != nil {
		t.Fatal(err)
	}
	// Once it is read, it goes on.
	slow.SetWriteDeadline(time.Time{})
	go func() {
		slow.Write(make([]byte, 4*window))
		slow.CloseWrite()
	}()
	got, err := io.Copy(io.Discard, slowEnd)
	if err != nil || got != 5*window {
		t.Fatalf("read %d, %v", got, err)
	}
}

func TestDeadlines(t *testing.T) {
	links(t, func(t *testing.T, o Opener, l Listener) {
		c, s := open(t, o, l, stdio)
		c.SetReadDeadline(time.Now().Add(10 * time.Millisecond))
		if _, err := c.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("read: %v", err)
		}
		c.SetDeadline(time.Time{})
		s.Write([]byte("x"))
		if _, err := c.Read(make([]byte, 1)); err != nil {
			t.Errorf("read after the deadline was taken away: %v", err)
		}
		// A deadline that is set while a read waits.
		time.AfterFunc(10*time.Millisecond, func() { c.SetReadDeadline(time.Unix(1, 0)) })
		if _, err := c.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("read: %v", err)
		}
	})
}

func TestCloseInterrupts(t *testing.T) {
	links(t, func(t *testing.T, o Opener, l Listener) {
		c, _ := open(t, o, l, stdio)
		var work sync.WaitGroup
		started := make(chan struct{}, 2)
		work.Go(func() { started <- struct{}{}; c.Read(make([]byte, 1)) })
		work.Go(func() { started <- struct{}{}; c.Write(make([]byte, 8<<20)) })
		<-started
		<-started
		c.Close()
		work.Wait()
	})
}

func TestSessionEnds(t *testing.T) {
	t.Run("peer vanishes", func(t *testing.T) {
		o, l := pair(t)
		c, s := open(t, o, l, stdio)
		s.Write([]byte("last words"))
		if _, err := io.ReadFull(c, make([]byte, 4)); err != nil {
			t.Fatal(err)
		}
		l.Close()
		got, err := io.ReadAll(c)
		if string(got) != " words" || !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("read %q, %v", got, err)
		}
		if _, err := c.Write([]byte("x")); err == nil {
			t.Error("write succeeded")
		}
		if _, err := o.Open(t.Context(), stdio); err == nil {
			t.Error("open succeeded")
		}
	})
	t.Run("closed here", func(t *testing.T) {
		o, l := pair(t)
		c, _ := open(t, o, l, stdio)
		var work sync.WaitGroup
		work.Go(func() {
			if _, _, err := l.Accept(); !errors.Is(err, net.ErrClosed) {
				t.Errorf("accept: %v", err)
			}
		})
		o.Close()
		if _, err := c.Read(make([]byte, 1)); !errors.Is(err, net.ErrClosed) {
			t.Errorf("read: %v", err)
		}
		work.Wait()
	})
}

func TestStreamsAreForgotten(t *testing.T) {
	o, l := pair(t)
	for range 3 * maxStreams {
		c, s := open(t, o, l, stdio)
		c.Close()
		if _, err := s.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
			t.Fatal(err)
		}
		s.Close()
		// The client forgets the stream when the server's fin arrives.
		deadline := time.Now().Add(10 * time.Second)
		for m := o.(*session); ; {
			m.mu.Lock()
			n := len(m.streams)
			m.mu.Unlock()
			if n < 10 {
				break
			}
			if time.Now().After(deadline) {
				t.Fatalf("%d streams are remembered", n)
			}
		}
	}
}

func TestGreeting(t *testing.T) {
	answer := func(lo, hi, chosen uint16) string {
		b := binary.BigEndian.AppendUint16([]byte(helloMagic), lo)
		b = binary.BigEndian.AppendUint16(b, hi)
		return string(binary.BigEndian.AppendUint16(b, chosen))
	}
	for _, tt := range []struct {
		name, answer, want string
		is                 error
	}{
		{"no common version", answer(7, 9, 0), "speaks 7 to 9, this one 3 to 3", ErrVersion},
		{"chosen what we do not speak", answer(1, 1, 1), "this one 3 to 3", ErrVersion},
		{"not our protocol", "SSH-2.0-OpenSSH_9.2p1", "instead of", nil},
		{"cut short", answer(3, 3, 3)[:9], "unexpected EOF", io.ErrUnexpectedEOF},
	} {
		t.Run(tt.name, func(t *testing.T) {
			a, b := conns(t)
			b.Write([]byte(tt.answer))
			b.(*net.UnixConn).CloseWrite()
			_, err := Client(t.Context(), a)
			if err == nil || !strings.Contains(err.Error(), tt.want) || tt.is != nil && !errors.Is(err, tt.is) {
				t.Errorf("got %v, want %q", err, tt.want)
			}
		})
	}
	t.Run("silent server", func(t *testing.T) {
		a, _ := conns(t)
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
		defer cancel()
		if _, err := Client(ctx, a); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v", err)
		}
	})
	t.Run("client of the future", func(t *testing.T) {
		a, b := conns(t)
		a.Write([]byte(helloMagic + "\x00\x04\x00\x06"))
		if _, err := Serve(b); !errors.Is(err, ErrVersion) || !strings.Contains(err.Error(), "4 to 6") {
			t.Errorf("got %v", err)
		}
		got := make([]byte, serverHello)
		if _, err := io.ReadFull(a, got); err != nil || string(got) != answer(3, 3, 0) {
			t.Errorf("answered %q, %v", got, err)
		}
	})
	t.Run("client that speaks more", func(t *testing.T) {
		a, b := conns(t)
		a.Write([]byte("rest of KATAliKATAlink" + "\x00\x01\x00\x05"))
		l, err := Serve(b)
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		got := make([]byte, serverHello)
		if _, err := io.ReadFull(a, got); err != nil || string(got) != answer(3, 3, 3) {
			t.Errorf("answered %q, %v", got, err)
		}
	})
	t.Run("no client", func(t *testing.T) {
		a, b := conns(t)
		a.Close()
		if _, err := Serve(b); !errors.Is(err, io.EOF) {
			t.Errorf("got %v", err)
		}
	})
}

func frame(kind byte, id uint32, payload string) string {
	return string(appendFrame(nil, kind, id, len(payload))) + payload
}

func TestViolations(t *testing.T) {
	h, err := appendHeader(nil, stdio)
	if err != nil {
		t.Fatal(err)
	}
	opened := frame(frameOpen, 1, string(h))
	half := frame(frameData, 1, strings.Repeat("x", window/2))
	for _, tt := range []struct{ name, bytes string }{
		{"unknown type", frame(9, 1, "")},
		{"open with the longest length", "\x01\xff\xff\xff" + opened[4:]},
		{"open out of order", frame(frameOpen, 2, string(h))},
		{"open twice", opened + opened},
		{"open with a long header", frame(frameOpen, 1, strings.Repeat("x", maxHeader+1))},
		{"open with a bad header", frame(frameOpen, 1, "xyz")},
		{"open with more than a header", frame(frameOpen, 1, string(h)+"x")},
		{"data on no stream", frame(frameData, 1, "x")},
		{"data on stream 0", opened + frame(frameData, 0, "x")},
		{"empty data", opened + frame(frameData, 1, "")},
		{"data after fin", opened + frame(frameFin, 1, "") + frame(frameData, 1, "x")},
		{"two fins", opened + frame(frameFin, 1, "") + frame(frameFin, 1, "")},
		{"fin with payload", opened + frame(frameFin, 1, "x")},
		{"more data than a frame has", opened + frame(frameData, 1, strings.Repeat("x", maxPayload+1))},
		{"more than the window", opened + half + half + frame(frameData, 1, "x")},
		{"credit for nothing", opened + frame(frameCredit, 1, "\x00\x00\x00\x01")},
		{"short credit", opened + frame(frameCredit, 1, "\x00\x00\x00")},
		{"stop of a stream to come", frame(frameStop, 5, "")},
		{"end of a stream", opened + frame(frameEnd, 1, "")},
		{"end with payload", frame(frameEnd, 0, "x")},
	} {
		t.Run(tt.name, func(t *testing.T) {
			a, b := conns(t)
			go func() { io.Copy(io.Discard, a) }()
			go func() { a.Write([]byte(helloMagic + "\x00\x03\x00\x03" + tt.bytes)) }()
			l, err := Serve(b)
			if err != nil {
				t.Fatal(err)
			}
			for err == nil {
				_, _, err = l.Accept()
			}
			l.Close()
			if !errors.Is(err, errProtocol) && !errors.Is(err, ErrHeader) {
				t.Errorf("session ended with %v", err)
			}
		})
	}
}

func TestServerCannotOpen(t *testing.T) {
	o, l := pair(t)
	if _, err := l.(Opener).Open(t.Context(), stdio); err == nil {
		t.Error("the server's end opened a stream")
	}
	h, _ := appendHeader(nil, stdio)
	s := l.(*session)
	s.mu.Lock()
	s.queue(frameOpen, 1, h)
	s.mu.Unlock()
	m := o.(*session)
	<-m.done
	if m.err == nil || !errors.Is(m.err, errProtocol) {
		t.Errorf("client's session ended with %v", m.err)
	}
}

func TestTooManyStreams(t *testing.T) {
	o, _ := pair(t)
	for range maxStreams {
		if _, err := o.Open(t.Context(), stdio); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := o.Open(t.Context(), stdio); err == nil {
		t.Error("opened one too many")
	}
}

func TestHeaders(t *testing.T) {
	long := strings.Repeat("x", maxID)
	for _, tt := range []struct {
		name string
		h    Header
		ok   bool
	}{
		{"rpc", Header{Kind: KindRPC}, true},
		{"log", Header{Kind: KindLog}, true},
		{"debug", Header{Kind: KindDebug}, true},
		{"longest", Header{Kind: KindStdio, Container: long, Exec: long, FD: 2}, true},
		{"no kind", Header{}, false},
		{"names", Header{Kind: KindNames}, true},
		{"names of a container", Header{Kind: KindNames, Container: "c"}, false},
		{"unknown kind", Header{Kind: 7}, false},
		{"port", Header{Kind: KindPort, Port: 8080}, true},
		{"highest port", Header{Kind: KindPort, Port: 65535}, true},
		{"no port", Header{Kind: KindPort}, false},
		{"port of a container", Header{Kind: KindPort, Port: 80, Container: "c"}, false},
		{"port of another kind", Header{Kind: KindRPC, Port: 80}, false},
		{"rpc of a container", Header{Kind: KindRPC, Container: "c"}, false},
		{"stdio of nobody", Header{Kind: KindStdio}, false},
		{"descriptor 3", Header{Kind: KindStdio, Container: "c", FD: 3}, false},
		{"too long", Header{Kind: KindStdio, Container: long + "x"}, false},
		{"path", Header{Kind: KindStdio, Container: "../x"}, false},
		{"parent", Header{Kind: KindStdio, Container: ".."}, false},
		{"escape", Header{Kind: KindStdio, Container: "c", Exec: "\x1b[2J"}, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			encoded, err := appendHeader(nil, tt.h)
			if (err == nil) != tt.ok {
				t.Fatalf("write: %v", err)
			}
			if !tt.ok {
				return
			}
			b := bytes.NewBuffer(append(encoded, "rest"...))
			got, err := ReadHeader(b)
			if err != nil || got != tt.h || b.String() != "rest" {
				t.Errorf("read %+v, %v, left %q", got, err, b.String())
			}
		})
	}
}

func TestListenUnixIgnoresStrangers(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	l, err := ListenUnix(path, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if fi, err := os.Stat(path); err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("socket: %v, %v", fi, err)
	}
	silent, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	rude, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer rude.Close()
	rude.Write([]byte("GET / HTTP/1.0\r\n\r\n"))
	c, s := open(t, DialUnix(path), l, Header{Kind: KindRPC})
	if _, err := rude.Read(make([]byte, 1)); err == nil {
		t.Error("a connection without a header was served")
	}
	// Accepted streams outlive the listener.
	l.Close()
	c.Write([]byte("x"))
	if _, err := s.Read(make([]byte, 1)); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(path); err == nil {
		t.Error("the socket was left behind")
	}
}

func TestVsockNobodyListens(t *testing.T) {
	fd, err := vsockSocket()
	if err != nil {
		t.Skipf("no AF_VSOCK sockets here: %v", err)
	}
	unix.Close(fd)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if c, err := connectVsock(ctx, vsockAddr{unix.VMADDR_CID_LOCAL, 4000}); err == nil {
		c.Close()
		t.Error("connected to nobody")
	}
}

func FuzzReadHeader(f *testing.F) {
	for _, h := range []Header{{Kind: KindRPC}, {Kind: KindStdio, Container: "c", Exec: "e", FD: 2}} {
		b, err := appendHeader(nil, h)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		r := bytes.NewReader(b)
		h, err := ReadHeader(r)
		if err != nil {
			return
		}
		again, err := appendHeader(nil, h)
		if err != nil || !bytes.Equal(again, b[:len(b)-r.Len()]) {
			t.Errorf("%q was read as %+v, which is written as %q, %v", b, h, again, err)
		}
	})
}

func FuzzHello(f *testing.F) {
	f.Add([]byte(helloMagic + "\x00\x02\x00\x02\x00\x02"))
	f.Add([]byte(helloMagic + "\x00\x01\x00\x01\x00\x01"))
	f.Add([]byte("KATAKATAlink\x00\x01\x00\x02"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if v, err := readHello(bytes.NewReader(b)); err == nil && v != maxVersion {
			t.Errorf("client took version %d", v)
		}
		if v, err := answerHello(bufio.NewReader(bytes.NewReader(b)), io.Discard); err == nil && v != maxVersion {
			t.Errorf("server chose version %d", v)
		}
	})
}

// feed is a connection whose other side has said all it will ever say.
type feed struct {
	*bytes.Reader
	io.Writer
}

func (feed) Close() error { return nil }

func FuzzSession(f *testing.F) {
	h, err := appendHeader(nil, stdio)
	if err != nil {
		f.Fatal(err)
	}
	f.Add([]byte(frame(frameOpen, 1, string(h)) + frame(frameData, 1, "hello") + frame(frameFin, 1, "") + frame(frameStop, 1, "")))
	f.Add([]byte(frame(frameData, 1, "hello") + frame(frameCredit, 1, "\x00\x00\x00\x05") + frame(frameStop, 1, "")))
	long := frame(frameData, 1, strings.Repeat("x", smallRing+1))
	f.Add([]byte(frame(frameOpen, 1, string(h)) + frame(frameData, 1, "hello") + long + frame(frameFin, 1, "")))
	f.Add([]byte(frame(frameOpen, 1, string(h)) + frame(frameEnd, 0, "") + frame(frameData, 1, "hello")))
	f.Add([]byte(long + frame(frameData, 1, "hello") + frame(frameFin, 1, "")))
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, client := range []bool{false, true} {
			conn := feed{bytes.NewReader(b), io.Discard}
			s := newSession(conn, bufio.NewReader(conn), client)
			if client {
				// May come too late; what counts is that nothing breaks.
				if st, err := s.Open(context.Background(), stdio); err == nil {
					st.Write([]byte("hello"))
					Copy(io.Discard, st)
				}
			}
			<-s.done
			for err == nil && !client {
				var st Stream
				if st, _, err = s.Accept(); err == nil {
					io.Copy(io.Discard, st)
					st.Close()
				}
			}
			err = nil
			s.Close()
		}
	})
}

func BenchmarkThroughput(b *testing.B) {
	o, l := pair(b)
	c, s := open(b, o, l, stdio)
	buf := make([]byte, 32<<10)
	b.SetBytes(int64(len(buf)))
	go func() {
		for range b.N {
			s.Write(buf)
		}
		s.CloseWrite()
	}()
	io.Copy(io.Discard, c)
}
