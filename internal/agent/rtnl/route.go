package rtnl

import (
	"encoding/binary"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"
)

// Route is a route of the main table.
type Route struct {
	// Family is AF_INET or AF_INET6.
	Family uint8
	// Destination is invalid for the default route.
	Destination netip.Prefix
	// Gateway and Source (the preferred one) may be invalid: none.
	Gateway, Source netip.Addr
	// Index is the interface's.
	Index int
	// Scope is RT_SCOPE_*, Protocol RTPROT_*, Type RTN_*, Flags RTNH_F_*.
	Scope, Protocol, Type uint8
	Flags                 uint32
	Priority, MTU         uint32
}

func (r Route) encode(kind, flags uint16) *request {
	b := make([]byte, unix.SizeofRtMsg)
	b[0] = r.Family
	if r.Destination.IsValid() {
		b[1] = uint8(r.Destination.Bits())
	}
	b[4], b[5], b[6], b[7] = unix.RT_TABLE_MAIN, r.Protocol, r.Scope, r.Type
	binary.NativeEndian.PutUint32(b[8:], r.Flags)
	q := newRequest(kind, flags, b)
	if r.Destination.IsValid() {
		q.attr(unix.RTA_DST, r.Destination.Masked().Addr().AsSlice())
	}
	if r.Gateway.IsValid() {
		q.attr(unix.RTA_GATEWAY, r.Gateway.AsSlice())
	}
	if r.Source.IsValid() {
		q.attr(unix.RTA_PREFSRC, r.Source.AsSlice())
	}
	if r.Index != 0 {
		q.uint32(unix.RTA_OIF, uint32(r.Index))
	}
	if r.Priority != 0 {
		q.uint32(unix.RTA_PRIORITY, r.Priority)
	}
	if r.MTU != 0 {
		q.nest(unix.RTA_METRICS, func() { q.uint32(unix.RTAX_MTU, r.MTU) })
	}
	return q
}

// AddRoute adds a route, or replaces the one to the same destination and of
// the same priority.
func AddRoute(r Route) error {
	return r.encode(unix.RTM_NEWROUTE, unix.NLM_F_CREATE|unix.NLM_F_REPLACE).do(nil)
}

// DeleteRoute removes a route that Routes has listed.
func DeleteRoute(r Route) error {
	r.Flags = 0 // state that the kernel tells, not what it looks for
	return r.encode(unix.RTM_DELROUTE, 0).do(nil)
}

// Routes lists the unicast routes of the main table that go through the
// interface.
func Routes(index int) ([]Route, error) {
	var list []Route
	err := newRequest(unix.RTM_GETROUTE, unix.NLM_F_DUMP, make([]byte, unix.SizeofRtMsg)).do(func(body []byte) error {
		r, table, err := parseRoute(body)
		if err == nil && table == unix.RT_TABLE_MAIN && r.Index == index && r.Type == unix.RTN_UNICAST {
			list = append(list, r)
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("list routes: %w", err)
	}
	return list, nil
}

func parseRoute(body []byte) (r Route, table uint32, err error) {
	if len(body) < unix.SizeofRtMsg {
		return Route{}, 0, errShort
	}
	r = Route{Family: body[0], Protocol: body[5], Scope: body[6], Type: body[7], Flags: binary.NativeEndian.Uint32(body[8:])}
	bits := int(body[1])
	table = uint32(body[4])
	err = attributes(body[unix.SizeofRtMsg:], func(kind uint16, v []byte) {
		switch kind {
		case unix.RTA_DST:
			if a, ok := netip.AddrFromSlice(v); ok {
				r.Destination = netip.PrefixFrom(a, bits)
			}
		case unix.RTA_GATEWAY:
			r.Gateway, _ = netip.AddrFromSlice(v)
		case unix.RTA_PREFSRC:
			r.Source, _ = netip.AddrFromSlice(v)
		case unix.RTA_OIF:
			r.Index = int(number(v))
		case unix.RTA_PRIORITY:
			r.Priority = number(v)
		case unix.RTA_TABLE:
			table = number(v)
		case unix.RTA_METRICS:
			_ = attributes(v, func(kind uint16, v []byte) {
				if kind == unix.RTAX_MTU {
					r.MTU = number(v)
				}
			})
		}
	})
	return r, table, err
}

func number(v []byte) uint32 {
	if len(v) != 4 {
		return 0
	}
	return binary.NativeEndian.Uint32(v)
}

// Neighbor is a known hardware address.
type Neighbor struct {
	Address netip.Addr
	MAC     []byte
	Index   int
	// State is NUD_*.
	State uint16
}

// SetNeighbor adds a neighbour or replaces it.
func SetNeighbor(n Neighbor) error {
	b := make([]byte, unix.SizeofNdMsg)
	b[0] = family(n.Address)
	binary.NativeEndian.PutUint32(b[4:], uint32(n.Index))
	binary.NativeEndian.PutUint16(b[8:], n.State)
	r := newRequest(unix.RTM_NEWNEIGH, unix.NLM_F_CREATE|unix.NLM_F_REPLACE, b)
	r.attr(unix.NDA_DST, n.Address.AsSlice())
	if len(n.MAC) > 0 {
		r.attr(unix.NDA_LLADDR, n.MAC)
	}
	return r.do(nil)
}
