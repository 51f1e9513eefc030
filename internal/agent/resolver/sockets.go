package resolver

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"

	"github.com/seed-efd44b36/kata/internal/steer"
	"golang.org/x/sys/unix"
)

const (
	// port is that of DNS.
	port = 53
	// ipHeader and udpHeader are the lengths of headers.
	ipHeader, udpHeader = 20, 8
	// timeToLive of answers, which do not leave the machine.
	timeToLive = 64
)

// address is the name server's.
func address() netip.Addr { return netip.AddrFrom4([4]byte{127, 0, 0, 11}) }

// sockets are what questions come by.
type sockets struct {
	udp *net.UDPConn
	tcp *net.TCPListener
	// raw sends answers to datagrams: they have to come from a port that udp is
	// not bound to.
	raw      *os.File
	steering *steer.Steering
}

// listen makes them in the network namespace of the calling thread.
func listen() (_ *sockets, err error) {
	s := &sockets{}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("listen on %s: %w", netip.AddrPortFrom(address(), port), err), s.close())
		}
	}()
	var conf net.ListenConfig
	conf.SetMultipathTCP(false) // its sockets cannot be in a map
	free := netip.AddrPortFrom(address(), 0).String()
	u, err := conf.ListenPacket(context.Background(), "udp4", free)
	if err != nil {
		return nil, err
	}
	s.udp = u.(*net.UDPConn)
	l, err := conf.Listen(context.Background(), "tcp4", free)
	if err != nil {
		return nil, err
	}
	s.tcp = l.(*net.TCPListener)
	// It receives nothing.
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.IPPROTO_RAW)
	if err != nil {
		return nil, fmt.Errorf("raw socket: %w", err)
	}
	s.raw = os.NewFile(uintptr(fd), "raw socket")
	ns, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		return nil, err
	}
	defer ns.Close()
	s.steering, err = steer.Attach(ns, []steer.Rule{
		{Protocol: unix.IPPROTO_UDP, Address: address(), Port: port, Socket: s.udp},
		{Protocol: unix.IPPROTO_TCP, Address: address(), Port: port, Socket: s.tcp},
	})
	if err != nil {
		return nil, err
	}
	return s, nil
}

func (s *sockets) close() error {
	err := s.steering.Close()
	if s.udp != nil {
		err = errors.Join(err, s.udp.Close())
	}
	if s.tcp != nil {
		err = errors.Join(err, s.tcp.Close())
	}
	if s.raw != nil {
		err = errors.Join(err, s.raw.Close())
	}
	return err
}

// reply sends a datagram from the name server's address.
func (s *sockets) reply(to netip.AddrPort, data []byte) error {
	raw, err := s.raw.SyscallConn()
	if err != nil {
		return err
	}
	b := packet(to, data)
	var sendErr error
	err = raw.Control(func(fd uintptr) {
		sendErr = unix.Sendto(int(fd), b, 0, &unix.SockaddrInet4{Addr: to.Addr().As4()})
	})
	return errors.Join(err, sendErr)
}

// packet is a datagram with its headers, but for what the kernel fills in: the length
// of the whole, the identification and the checksum of the first. UDP needs none.
func packet(to netip.AddrPort, data []byte) []byte {
	b := make([]byte, ipHeader+udpHeader, ipHeader+udpHeader+len(data))
	const version, words = 4, ipHeader / 4
	b[0] = version<<4 | words
	b[8], b[9] = timeToLive, unix.IPPROTO_UDP
	from, dst := address().As4(), to.Addr().As4()
	copy(b[12:], from[:])
	copy(b[16:], dst[:])
	binary.BigEndian.PutUint16(b[20:], port)
	binary.BigEndian.PutUint16(b[22:], to.Port())
	binary.BigEndian.PutUint16(b[24:], uint16(udpHeader+len(data)))
	return append(b, data...)
}
