package cni

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
)

// Reservation keeps ports of the host from being taken by anybody else.
type Reservation struct{ sockets []io.Closer }

// Reserve binds the ports without serving them: packets are redirected before
// they reach the sockets. Without it, a second container or a program of the
// host could be given the same port and would never see a packet. The kernel
// frees the ports when the process ends, however it ends.
func Reserve(ctx context.Context, ports []Port) (*Reservation, error) {
	r := &Reservation{}
	for _, p := range ports {
		s, err := bind(ctx, p)
		if err != nil {
			err = fmt.Errorf("port %d/%s of the host: %w", p.HostPort, p.Protocol, explain(err, p))
			return nil, errors.Join(err, r.Close())
		}
		r.sockets = append(r.sockets, s)
	}
	return r, nil
}

func bind(ctx context.Context, p Port) (io.Closer, error) {
	family := "4"
	if ip, err := netip.ParseAddr(p.HostIP); err == nil && ip.Is6() {
		family = "6"
	}
	address := net.JoinHostPort(p.HostIP, strconv.Itoa(int(p.HostPort)))
	// Go sets SO_REUSEADDR for TCP, so connections that have just ended are no
	// obstacle.
	var lc net.ListenConfig
	switch p.Protocol {
	case "tcp":
		return lc.Listen(ctx, "tcp"+family, address)
	case "udp":
		// Nothing may arrive: what came before the redirection would fill
		// the buffer and stay.
		lc.Control = func(_, _ string, c syscall.RawConn) error {
			var serr error
			err := c.Control(func(fd uintptr) { serr = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUF, 0) })
			return errors.Join(err, serr)
		}
		return lc.ListenPacket(ctx, "udp"+family, address)
	}
	return nil, fmt.Errorf("unknown protocol %q", p.Protocol)
}

func explain(err error, p Port) error {
	switch {
	case errors.Is(err, unix.EADDRINUSE):
		return fmt.Errorf("it is in use, by another container or a program (`ss -lnp sport = :%d` shows the latter): %w", p.HostPort, unix.EADDRINUSE)
	case errors.Is(err, unix.EADDRNOTAVAIL):
		return fmt.Errorf("this machine has no address %s: %w", p.HostIP, unix.EADDRNOTAVAIL)
	}
	return err
}

// Close frees the ports.
func (r *Reservation) Close() error {
	if r == nil {
		return nil
	}
	var errs []error
	for _, s := range r.sockets {
		errs = append(errs, s.Close())
	}
	r.sockets = nil
	return errors.Join(errs...)
}
