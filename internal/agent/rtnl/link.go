package rtnl

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"

	"golang.org/x/sys/unix"
)

// Link is a network interface.
type Link struct {
	Index int
	Name  string
	// MAC is the hardware address, DeviceMAC the one that the device came with;
	// empty if it has none.
	MAC, DeviceMAC []byte
	Up             bool
	MTU            uint32
	// Stats are its counters since it was made.
	Stats Stats
}

// Device is the hardware address by which the device is known.
func (l Link) Device() net.HardwareAddr {
	if len(l.DeviceMAC) > 0 {
		return l.DeviceMAC
	}
	return l.MAC
}

// Stats are the counters of an interface, in bytes and packets.
type Stats struct {
	RxPackets, TxPackets, RxBytes, TxBytes   uint64
	RxErrors, TxErrors, RxDropped, TxDropped uint64
}

// Links lists all interfaces.
func Links() ([]Link, error) {
	var links []Link
	err := newRequest(unix.RTM_GETLINK, unix.NLM_F_DUMP, make([]byte, unix.SizeofIfInfomsg)).do(func(body []byte) error {
		l, err := parseLink(body)
		if err == nil {
			links = append(links, l)
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("list network interfaces: %w", err)
	}
	return links, nil
}

func parseLink(body []byte) (Link, error) {
	if len(body) < unix.SizeofIfInfomsg {
		return Link{}, errShort
	}
	l := Link{
		Index: int(int32(binary.NativeEndian.Uint32(body[4:]))),
		Up:    binary.NativeEndian.Uint32(body[8:])&unix.IFF_UP != 0,
	}
	err := attributes(body[unix.SizeofIfInfomsg:], func(kind uint16, v []byte) {
		switch kind {
		case unix.IFLA_IFNAME:
			for len(v) > 0 && v[len(v)-1] == 0 {
				v = v[:len(v)-1]
			}
			l.Name = string(v)
		case unix.IFLA_ADDRESS:
			l.MAC = slices.Clone(v)
		case unix.IFLA_PERM_ADDRESS:
			l.DeviceMAC = slices.Clone(v)
		case unix.IFLA_MTU:
			l.MTU = number(v)
		case unix.IFLA_STATS64:
			for i, c := range []*uint64{
				&l.Stats.RxPackets, &l.Stats.TxPackets, &l.Stats.RxBytes, &l.Stats.TxBytes,
				&l.Stats.RxErrors, &l.Stats.TxErrors, &l.Stats.RxDropped, &l.Stats.TxDropped,
			} {
				if len(v) >= 8*(i+1) {
					*c = binary.NativeEndian.Uint64(v[8*i:])
				}
			}
		}
	})
	return l, err
}

// ifInfo encodes a struct ifinfomsg.
func ifInfo(index int, flags, change uint32) []byte {
	b := make([]byte, unix.SizeofIfInfomsg)
	binary.NativeEndian.PutUint32(b[4:], uint32(index))
	binary.NativeEndian.PutUint32(b[8:], flags)
	binary.NativeEndian.PutUint32(b[12:], change)
	return b
}

// SetUp takes the interface up or down.
func SetUp(index int, up bool) error {
	var flags uint32
	if up {
		flags = unix.IFF_UP
	}
	return newRequest(unix.RTM_NEWLINK, 0, ifInfo(index, flags, unix.IFF_UP)).do(nil)
}

// SetName renames the interface, which must be down.
func SetName(index int, name string) error {
	r := newRequest(unix.RTM_NEWLINK, 0, ifInfo(index, 0, 0))
	r.attr(unix.IFLA_IFNAME, append([]byte(name), 0))
	return r.do(nil)
}

// Move moves the interface to another network namespace and renames it. There it
// is down, without addresses, and may have another index.
func Move(index int, ns *os.File, name string) error {
	move, err := Moving(index, ns, name)
	if err != nil {
		return err
	}
	return move()
}

// Moving returns what does Move, once, for an interface in the network namespace of
// the calling thread. It can be called on any thread, and has to be.
func Moving(index int, ns *os.File, name string) (move func() error, err error) {
	r := newRequest(unix.RTM_NEWLINK, 0, ifInfo(index, 0, 0))
	r.uint32(unix.IFLA_NET_NS_FD, uint32(ns.Fd()))
	r.attr(unix.IFLA_IFNAME, append([]byte(name), 0))
	return r.prepare(nil)
}

// SetMTU sets the interface's MTU in bytes.
func SetMTU(index int, mtu uint32) error {
	r := newRequest(unix.RTM_NEWLINK, 0, ifInfo(index, 0, 0))
	r.uint32(unix.IFLA_MTU, mtu)
	return r.do(nil)
}

// SetMAC sets the interface's hardware address. It should be down.
func SetMAC(index int, mac []byte) error {
	r := newRequest(unix.RTM_NEWLINK, 0, ifInfo(index, 0, 0))
	r.attr(unix.IFLA_ADDRESS, mac)
	return r.do(nil)
}

// genModeNone is IN6_ADDR_GEN_MODE_NONE.
const genModeNone = 1

// KeepUnaddressed keeps the kernel from giving the interface an IPv6 address by
// itself. A kernel without IPv6 does so anyhow.
func KeepUnaddressed(index int) error {
	r := newRequest(unix.RTM_NEWLINK, 0, ifInfo(index, 0, 0))
	r.nest(unix.IFLA_AF_SPEC, func() {
		r.nest(unix.AF_INET6, func() {
			r.attr(unix.IFLA_INET6_ADDR_GEN_MODE, []byte{genModeNone})
		})
	})
	if err := r.do(nil); !errors.Is(err, unix.EAFNOSUPPORT) && !errors.Is(err, unix.EOPNOTSUPP) {
		return err
	}
	return nil
}

// Address is an address of an interface.
type Address struct {
	Prefix netip.Prefix
	// Peer is the other end of a point-to-point link, Broadcast the address of
	// all; either may be invalid: none.
	Peer      netip.Prefix
	Broadcast netip.Addr
	// Scope is RT_SCOPE_*.
	Scope uint8
}

func family(a netip.Addr) uint8 {
	if a.Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}

func addressRequest(kind, flags uint16, index int, a Address) *request {
	ip, other := a.Prefix.Addr(), a.Prefix
	if a.Peer.IsValid() {
		other = a.Peer
	}
	b := make([]byte, unix.SizeofIfAddrmsg)
	b[0], b[1], b[3] = family(ip), uint8(other.Bits()), a.Scope
	binary.NativeEndian.PutUint32(b[4:], uint32(index))
	r := newRequest(kind, flags, b)
	r.attr(unix.IFA_LOCAL, ip.AsSlice())
	r.attr(unix.IFA_ADDRESS, other.Addr().AsSlice())
	return r
}

// AddAddress adds an address; one that is there already is no error. There is
// no duplicate detection, since the address is the host's to give, and no route
// comes with it.
func AddAddress(index int, a Address) error {
	r := addressRequest(unix.RTM_NEWADDR, unix.NLM_F_CREATE|unix.NLM_F_REPLACE, index, a)
	flags := uint32(unix.IFA_F_NOPREFIXROUTE)
	if a.Prefix.Addr().Is6() {
		flags |= unix.IFA_F_NODAD
	}
	r.uint32(unix.IFA_FLAGS, flags)
	if a.Broadcast.IsValid() {
		r.attr(unix.IFA_BROADCAST, a.Broadcast.AsSlice())
	}
	return r.do(nil)
}

// DeleteAddress removes an address. One that is not there is no error.
func DeleteAddress(index int, a Address) error {
	err := addressRequest(unix.RTM_DELADDR, 0, index, a).do(nil)
	if errors.Is(err, unix.EADDRNOTAVAIL) {
		return nil
	}
	return err
}
