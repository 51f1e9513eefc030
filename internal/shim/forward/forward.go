// Package forward makes the TCP ports on the loopback of a guest reachable on the
// loopback of the pod's network namespace on the host, which is where a CRI
// connects to for port-forward: the namespace has the pod's addresses, but what is
// sent to them stays in the host's kernel.
//
// There is one listener for each of 127.0.0.1 and ::1. A program in the kernel
// (sk_lookup, Linux 5.9) gives it the connections to all ports of that address, and
// the connection's own address tells which was meant. Other loopback addresses are
// left alone, since engines have servers there.
//
// The shim calls it, one for each sandbox with a network. Whoever is in the
// namespace is root of the host; what answers is the guest, which may never end.
package forward

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/seed-efd44b36/kata/internal/link"
	"github.com/seed-efd44b36/kata/internal/network"
	"github.com/seed-efd44b36/kata/internal/steer"
	"github.com/seed-efd44b36/kata/internal/thread"
	"golang.org/x/sys/unix"
)

const (
	// maxConnections are joined at a time, each at the cost of descriptors and
	// buffers of ours; further ones wait.
	maxConnections = 128
	// acceptPause is how long after a failed attempt to accept comes the next.
	acceptPause = time.Second
	// lullTimeout is how long the guest may be silent to a client that has said
	// all it has to say.
	lullTimeout = 5 * time.Minute
)

// Dial connects to a port on the guest's loopback.
type Dial func(ctx context.Context, port uint16) (link.Stream, error)

// Forwarder joins connections until it is closed.
type Forwarder struct {
	dial      Dial
	log       *slog.Logger
	slots     chan struct{} // one for each connection
	pause     time.Duration // acceptPause
	lull      time.Duration // lullTimeout
	listeners []*net.TCPListener
	steering  *steer.Steering
	work      sync.WaitGroup
	life      context.Context
	end       context.CancelFunc
}

// Start forwards from the network namespace at path. An error wraps
// errors.ErrUnsupported when the kernel cannot do it.
func Start(path string, dial Dial, log *slog.Logger) (_ *Forwarder, err error) {
	// Not trusted to be what it was when the sandbox was joined to it.
	ns, err := network.OpenNS(path)
	if err != nil {
		return nil, fmt.Errorf("forward ports: %w", err)
	}
	defer ns.Close()
	f := newForwarder(dial, log)
	defer func() {
		if err != nil {
			err = fmt.Errorf("forward ports of %s: %w", path, errors.Join(err, f.Close()))
		}
	}()
	if err := f.listen(ns); err != nil {
		return nil, err
	}
	var rules []steer.Rule
	for i, l := range f.listeners {
		// Each has the address of its index: one without version 6 has no second.
		ip, _ := netip.AddrFromSlice(loopbacks()[i])
		rules = append(rules, steer.Rule{Protocol: unix.IPPROTO_TCP, Address: ip, Socket: l})
	}
	if f.steering, err = steer.Attach(ns, rules); err != nil {
		return nil, err
	}
	for _, l := range f.listeners {
		f.work.Go(func() { f.accept(l) })
	}
	return f, nil
}

func newForwarder(dial Dial, log *slog.Logger) *Forwarder {
	f := &Forwarder{
		dial: dial, log: log, slots: make(chan struct{}, maxConnections), pause: acceptPause, lull: lullTimeout,
	}
	f.life, f.end = context.WithCancel(context.Background())
	return f
}

// loopbacks are the addresses that are forwarded from.
func loopbacks() []net.IP { return []net.IP{net.IPv4(127, 0, 0, 1).To4(), net.IPv6loopback} }

// listen makes the listeners, at a port of the kernel's choice.
func (f *Forwarder) listen(ns *os.File) error {
	var conf net.ListenConfig
	conf.SetMultipathTCP(false) // its sockets cannot be in a map
	return thread.Run(func() error {
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("enter the network namespace: %w", err)
		}
		for _, ip := range loopbacks() {
			family := "tcp4"
			if len(ip) == net.IPv6len {
				family = "tcp6"
			}
			l, err := conf.Listen(context.Background(), family, net.JoinHostPort(ip.String(), "0"))
			if len(ip) == net.IPv6len && (errors.Is(err, unix.EADDRNOTAVAIL) || errors.Is(err, unix.EAFNOSUPPORT)) {
				continue // without version 6
			}
			if err != nil {
				return fmt.Errorf("listen: %w", err)
			}
			f.listeners = append(f.listeners, l.(*net.TCPListener))
		}
		return nil
	})
}

// listener is what accept needs of a net.TCPListener.
type listener interface {
	AcceptTCP() (*net.TCPConn, error)
}

func (f *Forwarder) accept(l listener) {
	failing := false
	for {
		conn, err := l.AcceptTCP()
		if err == nil {
			failing = false
			select {
			case f.slots <- struct{}{}:
			case <-f.life.Done():
				_ = conn.Close()
				return
			}
			f.work.Go(func() {
				defer func() { <-f.slots }()
				f.join(conn)
			})
			continue
		}
		if errors.Is(err, net.ErrClosed) {
			return
		}
		// Of descriptors or memory there may be enough later.
		if !failing {
			f.log.Warn("port-forward is out of order until connections can be accepted again", "error", err)
			failing = true
		}
		select {
		case <-time.After(f.pause):
		case <-f.life.Done():
			return
		}
	}
}

// join carries bytes between a connection and the guest.
func (f *Forwarder) join(conn *net.TCPConn) {
	defer conn.Close()
	addr, ok := conn.LocalAddr().(*net.TCPAddr)
	if !ok {
		return
	}
	st, err := f.dial(f.life, uint16(addr.Port))
	if err != nil {
		f.log.Debug("port is not forwarded", "port", addr.Port, "error", err)
		_ = conn.SetLinger(0) // a reset is the nearest to a refusal
		return
	}
	defer st.Close()
	defer context.AfterFunc(f.life, func() { _, _ = conn.Close(), st.Close() })()
	var sending sync.WaitGroup
	lull := &lullTimer{stream: st, timeout: f.lull, w: conn}
	sending.Go(func() {
		_, _ = link.Copy(st, conn)
		_ = st.CloseWrite()
		lull.begin()
	})
	_, _ = link.Copy(lull, st)
	_ = conn.CloseWrite()
	sending.Wait()
}

// lullTimer is a writer that ends the reading of a stream, whose bytes it gets,
// when none come for some time, once that has begun.
type lullTimer struct {
	stream  link.Stream
	timeout time.Duration
	w       io.Writer
	begun   atomic.Bool
}

func (t *lullTimer) begin() {
	t.begun.Store(true)
	t.renew()
}

func (t *lullTimer) renew() { _ = t.stream.SetReadDeadline(time.Now().Add(t.timeout)) }

// Write implements io.Writer.
func (t *lullTimer) Write(b []byte) (int, error) {
	n, err := t.w.Write(b)
	if t.begun.Load() {
		t.renew()
	}
	return n, err
}

// Close ends it, with all connections.
func (f *Forwarder) Close() error {
	f.end()
	err := f.steering.Close()
	for _, l := range f.listeners {
		err = errors.Join(err, l.Close())
	}
	f.work.Wait()
	return err
}
