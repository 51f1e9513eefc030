package rtnl

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"
)

// Link is a network interface.
type Link struct {
	Index int
	Name  string
	// MAC is the hardware address, empty if it has none.
	MAC []byte
	Up  bool
	// Stats are its counters since it was made.
	Stats Stats
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

// SetMTU sets the interface's MTU in bytes.
func SetMTU(index int, mtu uint32) error {
	r := newRequest(unix.RTM_NEWLINK, 0, ifInfo(index, 0, 0))
	r.uint32(unix.IFLA_MTU, mtu)
	return r.do(nil)
}

// Address is an address of an interface.
type Address struct {
	Prefix netip.Prefix
	// Scope is RT_SCOPE_*.
	Scope uint8
}

func family(a netip.Addr) uint8 {
	if a.Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}

// Addresses lists the addresses of the interface.
func Addresses(index int) ([]Address, error) {
	var list []Address
	err := newRequest(unix.RTM_GETADDR, unix.NLM_F_DUMP, make([]byte, unix.SizeofIfAddrmsg)).do(func(body []byte) error {
		a, of, err := parseAddress(body)
		if err == nil && of == index && a.Prefix.IsValid() {
			list = append(list, a)
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("list addresses: %w", err)
	}
	return list, nil
}

func parseAddress(body []byte) (a Address, index int, err error) {
	if len(body) < unix.SizeofIfAddrmsg {
		return Address{}, 0, errShort
	}
	bits := int(body[1])
	a.Scope = body[3]
	index = int(binary.NativeEndian.Uint32(body[4:]))
	err = attributes(body[unix.SizeofIfAddrmsg:], func(kind uint16, v []byte) {
		// The local address is the interface's own; for all but point-to-point
		// links (and for IPv6, which has no local one) both are the same.
		if kind == unix.IFA_LOCAL || kind == unix.IFA_ADDRESS && !a.Prefix.IsValid() {
			if ip, ok := netip.AddrFromSlice(v); ok {
				a.Prefix = netip.PrefixFrom(ip, bits)
			}
		}
	})
	return a, index, err
}

func addressRequest(kind, flags uint16, index int, p netip.Prefix) *request {
	ip := p.Addr()
	b := make([]byte, unix.SizeofIfAddrmsg)
	b[0], b[1] = family(ip), uint8(p.Bits())
	if ip.IsLinkLocalUnicast() && ip.Is6() {
		b[3] = unix.RT_SCOPE_LINK
	}
	binary.NativeEndian.PutUint32(b[4:], uint32(index))
	r := newRequest(kind, flags, b)
	r.attr(unix.IFA_LOCAL, ip.AsSlice())
	r.attr(unix.IFA_ADDRESS, ip.AsSlice())
	return r
}

// AddAddress adds an address; one that is there already is no error. There is
// no duplicate detection: the address is the host's to give.
func AddAddress(index int, p netip.Prefix) error {
	r := addressRequest(unix.RTM_NEWADDR, unix.NLM_F_CREATE|unix.NLM_F_REPLACE, index, p)
	if ip := p.Addr(); ip.Is6() {
		r.uint32(unix.IFA_FLAGS, unix.IFA_F_NODAD)
	} else if p.Bits() < 31 {
		r.attr(unix.IFA_BROADCAST, broadcast(p))
	}
	return r.do(nil)
}

// DeleteAddress removes an address.
func DeleteAddress(index int, p netip.Prefix) error {
	return addressRequest(unix.RTM_DELADDR, 0, index, p).do(nil)
}

// broadcast is the last address of an IPv4 network.
func broadcast(p netip.Prefix) []byte {
	a := p.Addr().As4()
	v := binary.BigEndian.Uint32(a[:]) | (1<<(32-p.Bits()) - 1)
	return binary.BigEndian.AppendUint32(nil, v)
}
