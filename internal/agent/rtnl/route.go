package rtnl

import (
	"encoding/binary"
	"errors"
	"maps"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"
)

// Route is a route of any table.
type Route struct {
	// Family is AF_INET or AF_INET6.
	Family uint8
	// Destination is invalid for the default route.
	Destination netip.Prefix
	// Source, the preferred one, may be invalid: none.
	Source netip.Addr
	// Hops are the ways that it goes, by turns; none for a type that leads
	// nowhere.
	Hops []Hop
	// Scope is RT_SCOPE_*, Protocol RTPROT_*, Type RTN_*.
	Scope, Protocol, Type uint8
	Table, Priority       uint32
	// Metrics are RTAX_*.
	Metrics map[uint32]uint32
}

// Hop is a neighbour, or the neighbours, that packets are given to.
type Hop struct {
	Index int
	// Gateway may be of the other family, or invalid: none.
	Gateway netip.Addr
	// Flags are RTNH_F_*.
	Flags uint8
	// Weight is at least 1, and counts among several hops.
	Weight uint8
}

// Equal tells whether two routes are the same.
func (r Route) Equal(o Route) bool {
	return r.Family == o.Family && r.Destination == o.Destination && r.Source == o.Source && slices.Equal(r.Hops, o.Hops) &&
		r.Scope == o.Scope && r.Protocol == o.Protocol && r.Type == o.Type && r.Table == o.Table && r.Priority == o.Priority &&
		maps.Equal(r.Metrics, o.Metrics)
}

func (r Route) encode(kind, flags uint16) *request {
	b := make([]byte, unix.SizeofRtMsg)
	b[0] = r.Family
	if r.Destination.IsValid() {
		b[1] = uint8(r.Destination.Bits())
	}
	b[5], b[6], b[7] = r.Protocol, r.Scope, r.Type
	if len(r.Hops) == 1 {
		binary.NativeEndian.PutUint32(b[8:], uint32(r.Hops[0].Flags))
	}
	q := newRequest(kind, flags, b)
	q.uint32(unix.RTA_TABLE, r.Table)
	if r.Destination.IsValid() {
		q.attr(unix.RTA_DST, r.Destination.Masked().Addr().AsSlice())
	}
	if r.Source.IsValid() {
		q.attr(unix.RTA_PREFSRC, r.Source.AsSlice())
	}
	if r.Priority != 0 {
		q.uint32(unix.RTA_PRIORITY, r.Priority)
	}
	if len(r.Metrics) > 0 {
		q.nest(unix.RTA_METRICS, func() {
			for _, kind := range slices.Sorted(maps.Keys(r.Metrics)) {
				q.uint32(uint16(kind), r.Metrics[kind])
			}
		})
	}
	switch len(r.Hops) {
	case 0:
	case 1:
		q.uint32(unix.RTA_OIF, uint32(r.Hops[0].Index))
		q.gateway(r.Hops[0], r.Family)
	default:
		q.nest(unix.RTA_MULTIPATH, func() {
			for _, h := range r.Hops {
				q.hop(h, r.Family)
			}
		})
	}
	return q
}

// gateway adds that of a hop, if there is one.
func (r *request) gateway(h Hop, of uint8) {
	switch {
	case !h.Gateway.IsValid():
	case family(h.Gateway) == of:
		r.attr(unix.RTA_GATEWAY, h.Gateway.AsSlice())
	default: // a struct rtvia
		r.attr(unix.RTA_VIA, append(binary.NativeEndian.AppendUint16(nil, uint16(family(h.Gateway))), h.Gateway.AsSlice()...))
	}
}

// hop adds a struct rtnexthop and its attributes.
func (r *request) hop(h Hop, of uint8) {
	at := len(r.b)
	r.b = append(r.b, 0, 0, h.Flags, h.Weight-1)
	r.b = binary.NativeEndian.AppendUint32(r.b, uint32(h.Index))
	r.gateway(h, of)
	binary.NativeEndian.PutUint16(r.b[at:], uint16(len(r.b)-at))
}

// AddRoute adds a route, behind those to the same destination that are as good.
// One that is there already is no error.
func AddRoute(r Route) error {
	return unless(r.encode(unix.RTM_NEWROUTE, unix.NLM_F_CREATE|unix.NLM_F_APPEND).do(nil), unix.EEXIST)
}

// DeleteRoute removes a route. One that is not there is no error: it goes with
// its interface, and with an address.
func DeleteRoute(r Route) error {
	r.Hops = slices.Clone(r.Hops)
	for i := range r.Hops {
		r.Hops[i].Flags = 0 // state that the kernel tells, not what it looks for
	}
	return unless(r.encode(unix.RTM_DELROUTE, 0).do(nil), unix.ESRCH, unix.ENODEV)
}

// unless returns err, but nil for the given ones.
func unless(err error, harmless ...unix.Errno) error {
	for _, h := range harmless {
		if errors.Is(err, h) {
			return nil
		}
	}
	return err
}

func number(v []byte) uint32 {
	if len(v) != 4 {
		return 0
	}
	return binary.NativeEndian.Uint32(v)
}

// Rule tells which packets are routed by a table.
type Rule struct {
	// Family is AF_INET or AF_INET6.
	Family          uint8
	Priority, Table uint32
	// Source and Destination are of the packets; invalid: any.
	Source, Destination netip.Prefix
	// Mark is compared where Mask has bits.
	Mark, Mask uint32
	// Input and Output are names of interfaces, or empty.
	Input, Output string
	Invert        bool
}

func (r Rule) encode(kind, flags uint16) *request {
	b := make([]byte, unix.SizeofRtMsg) // a struct fib_rule_hdr is the same
	b[0], b[7] = r.Family, unix.FR_ACT_TO_TBL
	if r.Invert {
		binary.NativeEndian.PutUint32(b[8:], unix.FIB_RULE_INVERT)
	}
	if r.Destination.IsValid() {
		b[1] = uint8(r.Destination.Bits())
	}
	if r.Source.IsValid() {
		b[2] = uint8(r.Source.Bits())
	}
	q := newRequest(kind, flags, b)
	q.uint32(unix.FRA_PRIORITY, r.Priority)
	q.uint32(unix.FRA_TABLE, r.Table)
	if r.Destination.IsValid() {
		q.attr(unix.FRA_DST, r.Destination.Masked().Addr().AsSlice())
	}
	if r.Source.IsValid() {
		q.attr(unix.FRA_SRC, r.Source.Masked().Addr().AsSlice())
	}
	if r.Mask != 0 {
		q.uint32(unix.FRA_FWMARK, r.Mark)
		q.uint32(unix.FRA_FWMASK, r.Mask)
	}
	if r.Input != "" {
		q.attr(unix.FRA_IIFNAME, append([]byte(r.Input), 0))
	}
	if r.Output != "" {
		q.attr(unix.FRA_OIFNAME, append([]byte(r.Output), 0))
	}
	return q
}

// AddRule adds a rule. One that is there already is no error.
func AddRule(r Rule) error {
	return unless(r.encode(unix.RTM_NEWRULE, unix.NLM_F_CREATE|unix.NLM_F_EXCL).do(nil), unix.EEXIST)
}

// DeleteRule removes a rule. One that is not there is no error.
func DeleteRule(r Rule) error {
	return unless(r.encode(unix.RTM_DELRULE, 0).do(nil), unix.ENOENT)
}

// Neighbor is a known hardware address.
type Neighbor struct {
	Address netip.Addr
	MAC     [6]byte
	Index   int
	// State is NUD_*.
	State uint16
}

func (n Neighbor) encode(kind, flags uint16) *request {
	b := make([]byte, unix.SizeofNdMsg)
	b[0] = family(n.Address)
	binary.NativeEndian.PutUint32(b[4:], uint32(n.Index))
	binary.NativeEndian.PutUint16(b[8:], n.State)
	r := newRequest(kind, flags, b)
	r.attr(unix.NDA_DST, n.Address.AsSlice())
	r.attr(unix.NDA_LLADDR, n.MAC[:])
	return r
}

// SetNeighbor adds a neighbour or replaces it.
func SetNeighbor(n Neighbor) error {
	return n.encode(unix.RTM_NEWNEIGH, unix.NLM_F_CREATE|unix.NLM_F_REPLACE).do(nil)
}

// DeleteNeighbor removes a neighbour. One that is not there is no error.
func DeleteNeighbor(n Neighbor) error {
	return unless(n.encode(unix.RTM_DELNEIGH, 0).do(nil), unix.ENOENT, unix.ENXIO, unix.ENODEV)
}
