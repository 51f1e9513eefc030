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
// namespace is root of the host.
package forward

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"sync"

	"github.com/seed-efd44b36/kata/internal/link"
	"github.com/seed-efd44b36/kata/internal/thread"
	"golang.org/x/sys/unix"
)

// Dial connects to a port on the guest's loopback.
type Dial func(ctx context.Context, port uint16) (link.Stream, error)

// Forwarder joins connections until it is closed.
type Forwarder struct {
	dial      Dial
	log       *slog.Logger
	listeners []*net.TCPListener
	steer     *steering
	work      sync.WaitGroup
	life      context.Context
	end       context.CancelFunc
}

// Start forwards from the network namespace at path. An error wraps
// errors.ErrUnsupported when the kernel cannot do it.
func Start(path string, dial Dial, log *slog.Logger) (_ *Forwarder, err error) {
	ns, err := os.OpenFile(path, os.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("forward ports of %s: %w", path, err)
	}
	defer ns.Close()
	f := &Forwarder{dial: dial, log: log}
	f.life, f.end = context.WithCancel(context.Background())
	defer func() {
		if err != nil {
			err = fmt.Errorf("forward ports of %s: %w", path, errors.Join(err, f.Close()))
		}
	}()
	if err := f.listen(ns); err != nil {
		return nil, err
	}
	if f.steer, err = steer(ns, f.listeners); err != nil {
		return nil, err
	}
	for _, l := range f.listeners {
		f.work.Go(func() { f.accept(l) })
	}
	return f, nil
}

// loopbacks are the addresses that are forwarded from. The program in the kernel
// knows them by their index.
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
			network := "tcp4"
			if len(ip) == net.IPv6len {
				network = "tcp6"
			}
			l, err := conf.Listen(context.Background(), network, net.JoinHostPort(ip.String(), "0"))
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

func (f *Forwarder) accept(l *net.TCPListener) {
	for {
		conn, err := l.AcceptTCP()
		if err != nil {
			return // closed
		}
		f.work.Go(func() { f.join(conn) })
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
	sending.Go(func() {
		_, _ = link.Copy(st, conn)
		_ = st.CloseWrite()
	})
	_, _ = link.Copy(conn, st)
	_ = conn.CloseWrite()
	sending.Wait()
}

// Close ends it, with all connections.
func (f *Forwarder) Close() error {
	f.end()
	err := f.steer.close()
	for _, l := range f.listeners {
		err = errors.Join(err, l.Close())
	}
	f.work.Wait()
	return err
}
