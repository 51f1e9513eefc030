package link

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// keyed returns the two ends of a link whose connections begin with a key, and
// the path of the unix socket that is in the place of a vsock port.
func keyed(t *testing.T, k key) (Opener, *connListener, string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "s")
	ul, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l := listen(func() (Stream, error) { return ul.AcceptUnix() }, func(c Stream) error { return k.check(c) }, ul.Close)
	o := dialKeyed("test", k, func(context.Context) (Stream, error) {
		return net.DialUnix("unix", nil, &net.UnixAddr{Name: path, Net: "unix"})
	})
	t.Cleanup(func() { o.Close(); l.Close() })
	return o, l, path
}

// dial connects without a key.
func dial(t *testing.T, path string) net.Conn {
	t.Helper()
	c, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	if err := c.SetReadDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	return c
}

// ended reports that the other side closed c without a word.
func ended(t *testing.T, c net.Conn) {
	t.Helper()
	n, err := c.Read(make([]byte, 1))
	if n != 0 || !errors.Is(err, io.EOF) && !errors.Is(err, unix.ECONNRESET) {
		t.Errorf("read %d bytes, %v; want the end", n, err)
	}
}

func TestKeyIsRequired(t *testing.T) {
	k, err := newKey()
	if err != nil {
		t.Fatal(err)
	}
	if again, err := newKey(); err != nil || again == k || k == (key{}) {
		t.Fatalf("keys %v and %v, %v", k, again, err)
	}
	header, err := appendHeader(nil, Header{Kind: KindRPC})
	if err != nil {
		t.Fatal(err)
	}
	almost := k
	almost[len(almost)-1] ^= 1
	o, l, path := keyed(t, k)
	for _, tt := range []struct{ name, first string }{
		{"header only, as before there were keys", string(header) + strings.Repeat("\x00", len(k))},
		{"another key", string(almost[:]) + string(header)},
		{"no key", string(make([]byte, len(k))) + string(header)},
		{"key twice", string(k[:]) + string(k[:]) + string(header)},
		{"key and no header", string(k[:]) + "GET / HTTP/1.0\r\n\r\n"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := dial(t, path)
			if _, err := io.WriteString(c, tt.first); err != nil {
				t.Fatal(err)
			}
			ended(t, c)
		})
	}
	t.Run("half a key", func(t *testing.T) {
		c := dial(t, path)
		if _, err := c.Write(k[:16]); err != nil {
			t.Fatal(err)
		}
		if err := c.(*net.UnixConn).CloseWrite(); err != nil {
			t.Fatal(err)
		}
		ended(t, c)
	})
	// All of them brought nothing to Accept.
	open(t, o, l, Header{Kind: KindRPC})
}

func TestSilentConnectionsDoNotExhaust(t *testing.T) {
	o, l, path := keyed(t, key{7})
	var silent []net.Conn
	for range 3 * maxPending {
		silent = append(silent, dial(t, path))
	}
	// It comes behind all of them and is served nevertheless.
	c, s := open(t, o, l, stdio)
	if _, err := c.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Read(make([]byte, 1)); err != nil {
		t.Error(err)
	}
	ended(t, silent[0])
	l.mu.Lock()
	n := len(l.pending)
	l.mu.Unlock()
	if n > maxPending {
		t.Errorf("%d connections are pending, at most %d may", n, maxPending)
	}
	// Closing does not wait for the rest.
	l.Close()
	ended(t, silent[len(silent)-1])
}

func TestCloseEndsKeyedStreams(t *testing.T) {
	o, l, _ := keyed(t, key{7})
	c, s := open(t, o, l, stdio)
	if err := o.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, net.ErrClosed) {
		t.Errorf("read from a stream of a closed link: %v", err)
	}
	if _, err := s.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("the other side reads %v", err)
	}
	if _, err := o.Open(t.Context(), stdio); err == nil {
		t.Error("opened a stream on a closed link")
	}
}

func TestBusyListenerIsTriedAgain(t *testing.T) {
	for _, tt := range []struct {
		name   string
		err    error
		resets int
		want   error
	}{
		{"busy for a moment", unix.ECONNRESET, 3, nil},
		{"guest is gone", unix.ENODEV, 1, unix.ENODEV},
	} {
		t.Run(tt.name, func(t *testing.T) {
			a, _ := conns(t)
			left := tt.resets
			o := dialKeyed("test", key{}, func(context.Context) (Stream, error) {
				if left--; left >= 0 {
					return nil, tt.err
				}
				return a.(*net.UnixConn), nil
			})
			defer o.Close()
			if _, err := o.Open(t.Context(), stdio); !errors.Is(err, tt.want) {
				t.Errorf("got %v, want %v", err, tt.want)
			}
		})
	}
	t.Run("busy for ever", func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
		defer cancel()
		o := dialKeyed("test", key{}, func(context.Context) (Stream, error) { return nil, unix.ECONNRESET })
		defer o.Close()
		if _, err := o.Open(ctx, stdio); !errors.Is(err, context.DeadlineExceeded) || !errors.Is(err, unix.ECONNRESET) {
			t.Errorf("got %v", err)
		}
	})
}

func TestVsockPeers(t *testing.T) {
	for _, tt := range []struct {
		name string
		cid  uint32
		want bool
	}{
		{"host", unix.VMADDR_CID_HOST, true},
		{"the guest itself, by loopback", unix.VMADDR_CID_LOCAL, false},
		{"hypervisor", unix.VMADDR_CID_HYPERVISOR, false},
		{"a guest", 4711, false},
		{"nobody in particular", unix.VMADDR_CID_ANY, false},
	} {
		if got := (vsockAddr{tt.cid, 1024}).isHost(); got != tt.want {
			t.Errorf("%s: isHost() = %v", tt.name, got)
		}
	}
}

func TestHandOverKey(t *testing.T) {
	k := key{1, 31: 9}
	a, b := conns(t)
	b.SetDeadline(time.Now().Add(time.Minute))
	offered := make(chan error, 1)
	go func() { offered <- offerKey(t.Context(), a, k) }()
	want := &connListener{}
	l, err := awaitKey(b, func(got key) (Listener, error) {
		if got != k {
			t.Errorf("got key %v", got)
		}
		select {
		case err := <-offered:
			t.Errorf("the host went on before the guest listens: %v", err)
		default:
		}
		return want, nil
	})
	if l != want || err != nil {
		t.Fatalf("awaitKey() = %v, %v", l, err)
	}
	if err := <-offered; err != nil {
		t.Fatal(err)
	}
	for _, c := range []net.Conn{a, b} {
		if _, err := c.Write([]byte("x")); !errors.Is(err, net.ErrClosed) {
			t.Errorf("the port was left open: %v", err)
		}
	}
}

func TestHandOverKeyFails(t *testing.T) {
	answer := func(chosen uint16) string {
		return helloMagic + string(binary.BigEndian.AppendUint16([]byte{0, 7, 0, 9}, chosen))
	}
	for _, tt := range []struct {
		name, guest, want string
		is                error
	}{
		{"no common version", answer(0), "speaks 7 to 9", ErrVersion},
		{"not our protocol", "SSH-2.0-OpenSSH_9.2p1", "instead of", nil},
		{"no key wanted", answer(3) + "something else", "read answer to key", nil},
		{"guest ends before it listens", answer(3), "read answer to key", io.ErrUnexpectedEOF},
	} {
		t.Run("host: "+tt.name, func(t *testing.T) {
			a, b := conns(t)
			io.WriteString(b, tt.guest)
			b.(*net.UnixConn).CloseWrite()
			err := offerKey(t.Context(), a, key{})
			if err == nil || !strings.Contains(err.Error(), tt.want) || tt.is != nil && !errors.Is(err, tt.is) {
				t.Errorf("got %v, want %q", err, tt.want)
			}
			if _, err := a.Write([]byte("x")); !errors.Is(err, net.ErrClosed) {
				t.Errorf("the connection was left open: %v", err)
			}
		})
	}
	hello := helloMagic + "\x00\x03\x00\x03"
	failure := errors.New("no such device")
	for _, tt := range []struct {
		name, host, want string
		is               error
	}{
		{"host of the future", helloMagic + "\x00\x04\x00\x06", "4 to 6", ErrVersion},
		{"host that multiplexes", hello + frame(frameOpen, 1, "header"), "read key", nil},
		{"cut short", hello + keyMagic + "12345", "read key", io.ErrUnexpectedEOF},
		{"cannot listen", hello + keyMagic + string(make([]byte, 32)), "no such device", failure},
	} {
		t.Run("guest: "+tt.name, func(t *testing.T) {
			_, err := awaitKey(feed{bytes.NewReader([]byte(tt.host)), io.Discard}, func(key) (Listener, error) { return nil, failure })
			if err == nil || !strings.Contains(err.Error(), tt.want) || tt.is != nil && !errors.Is(err, tt.is) {
				t.Errorf("got %v, want %q", err, tt.want)
			}
		})
	}
	t.Run("host: silent guest", func(t *testing.T) {
		a, _ := conns(t)
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
		defer cancel()
		if err := offerKey(ctx, a, key{}); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v", err)
		}
	})
}

func FuzzKey(f *testing.F) {
	f.Add([]byte(helloMagic + "\x00\x03\x00\x03\x00\x03" + keyMagic))
	f.Add([]byte(helloMagic + "\x00\x03\x00\x03" + keyMagic + string(make([]byte, 32))))
	f.Add([]byte("KATAKATAlink\x00\x01\x00\x03KATAvkey"))
	f.Fuzz(func(t *testing.T, b []byte) {
		l, err := awaitKey(feed{bytes.NewReader(b), io.Discard}, func(k key) (Listener, error) {
			if !bytes.Contains(b, append([]byte(keyMagic), k[:]...)) {
				t.Errorf("got key %v of %q", k, b)
			}
			return &connListener{}, nil
		})
		if (l == nil) == (err == nil) {
			t.Errorf("awaitKey() = %v, %v", l, err)
		}
		host, guest := net.Pipe()
		var work sync.WaitGroup
		work.Go(func() { io.Copy(io.Discard, guest) })
		work.Go(func() { guest.Write(b); guest.Close() })
		if err := offerKey(context.Background(), host, key{}); err == nil && !bytes.Contains(b, []byte(keyMagic)) {
			t.Errorf("took %q for an answer", b)
		}
		host.Close()
		work.Wait()
	})
}
