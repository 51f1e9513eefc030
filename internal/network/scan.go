package network

import (
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"

	agentv1 "github.com/seed-efd44b36/kata/api/agent/v1"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// tapPrefix begins the names of our tap devices.
const tapPrefix = "katatap"

// findLinks returns the interfaces of the thread's namespace that are to be
// the guest's: those that are up, but loopback and our taps. What is down is
// not in use; every kernel makes a few such by itself (sit0, tunl0).
func findLinks() ([]netlink.Link, error) {
	all, err := netlink.LinkList()
	if err != nil {
		return nil, fmt.Errorf("list interfaces: %w", err)
	}
	var links []netlink.Link
	for _, l := range all {
		a := l.Attrs()
		if a.Flags&net.FlagUp == 0 || a.Flags&net.FlagLoopback != 0 || strings.HasPrefix(a.Name, tapPrefix) {
			continue
		}
		links = append(links, l)
	}
	return links, nil
}

func families() []int { return []int{netlink.FAMILY_V4, netlink.FAMILY_V6} }

// scan reads the configuration of the links. The kernel may say that a list
// changed while it was read; then all is read again.
func scan(links []netlink.Link) (*agentv1.Network, error) {
	const attempts = 5
	for range attempts - 1 {
		nw, err := scanOnce(links)
		if !errors.Is(err, netlink.ErrDumpInterrupted) {
			return nw, err
		}
	}
	return scanOnce(links)
}

func scanOnce(links []netlink.Link) (*agentv1.Network, error) {
	nw := &agentv1.Network{}
	names := map[int]string{}
	for _, l := range links {
		a := l.Attrs()
		names[a.Index] = a.Name
		addrs, err := addresses(l)
		if err != nil {
			return nil, fmt.Errorf("addresses of %s: %w", a.Name, err)
		}
		nw.Interfaces = append(nw.Interfaces, &agentv1.Interface{
			Name: a.Name, Mac: a.HardwareAddr.String(), Mtu: uint32(a.MTU),
			Addresses: addrs,
		})
		neighbors, err := neighbors(l)
		if err != nil {
			return nil, fmt.Errorf("neighbours of %s: %w", a.Name, err)
		}
		nw.Neighbors = append(nw.Neighbors, neighbors...)
	}
	if len(links) == 0 {
		return nw, nil
	}
	var err error
	if nw.Routes, err = routes(names); err != nil {
		return nil, fmt.Errorf("routes: %w", err)
	}
	if nw.Rules, err = rules(); err != nil {
		return nil, fmt.Errorf("rules: %w", err)
	}
	return nw, nil
}

// addresses leaves out those that are known to be somebody else's.
func addresses(l netlink.Link) ([]*agentv1.Address, error) {
	list, err := netlink.AddrList(l, netlink.FAMILY_ALL)
	if err != nil {
		return nil, err
	}
	var out []*agentv1.Address
	for _, a := range list {
		v6 := a.IP.To4() == nil
		if v6 && a.Flags&unix.IFA_F_DADFAILED != 0 {
			continue
		}
		address := &agentv1.Address{Prefix: a.IPNet.String(), Broadcast: ipString(a.Broadcast), Scope: uint32(a.Scope)}
		if a.Peer != nil {
			address.Peer = a.Peer.String()
		}
		out = append(out, address)
	}
	return out, nil
}

// routes reads all tables but that of local addresses, which a kernel fills by
// itself. Routes that the kernel has made of addresses are among them, unless
// somebody has removed them: the guest's kernel makes none. Those come first that
// others need for their gateway.
func routes(names map[int]string) ([]*agentv1.Route, error) {
	var list []netlink.Route
	for _, family := range families() { // the kernel has others, for multicast
		l, err := netlink.RouteListFiltered(family, &netlink.Route{Table: unix.RT_TABLE_UNSPEC}, netlink.RT_FILTER_TABLE)
		if err != nil {
			return nil, err
		}
		list = append(list, l...)
	}
	var out []*agentv1.Route
	for _, r := range list {
		nowhere := leadsNowhere(r.Type)
		if r.Table == unix.RT_TABLE_LOCAL || nowhere && r.Protocol == unix.RTPROT_KERNEL {
			continue
		}
		route, err := route(r, names)
		if err != nil {
			return nil, err
		}
		if len(route.GetHops()) > 0 || nowhere { // else to an interface that the guest does not get
			out = append(out, route)
		}
	}
	slices.SortStableFunc(out, func(a, b *agentv1.Route) int { return rank(a) - rank(b) })
	return out, nil
}

// leadsNowhere tells whether packets of a route are dropped, or looked up in
// another table.
func leadsNowhere(kind int) bool {
	return slices.Contains([]int{unix.RTN_BLACKHOLE, unix.RTN_UNREACHABLE, unix.RTN_PROHIBIT, unix.RTN_THROW}, kind)
}

func route(r netlink.Route, names map[int]string) (*agentv1.Route, error) {
	dst := destination(r)
	out := &agentv1.Route{
		Destination: dst, Source: ipString(r.Src), Scope: uint32(r.Scope), Priority: uint32(r.Priority),
		Family: uint32(r.Family), Table: uint32(r.Table), Type: uint32(r.Type), Protocol: uint32(r.Protocol), Metrics: metrics(r),
	}
	if leadsNowhere(r.Type) {
		return out, nil
	}
	if r.Type != unix.RTN_UNICAST || r.Encap != nil || r.MPLSDst != nil || r.NewDst != nil || r.Tos != 0 {
		return nil, fmt.Errorf("route to %s: a guest gets plain ones (no encapsulation, no type of service, not local): %w", dst, ErrUnsupported)
	}
	hops := r.MultiPath
	if len(hops) == 0 {
		hops = []*netlink.NexthopInfo{{LinkIndex: r.LinkIndex, Gw: r.Gw, Via: r.Via, Flags: r.Flags}}
	}
	for _, h := range hops {
		gateway := ipString(h.Gw)
		if via, ok := h.Via.(*netlink.Via); ok {
			gateway = ipString(via.Addr)
		}
		if h.Encap != nil || h.NewDst != nil {
			return nil, fmt.Errorf("route to %s: a guest gets no encapsulation: %w", dst, ErrUnsupported)
		}
		if name, ok := names[h.LinkIndex]; ok {
			out.Hops = append(out.Hops, &agentv1.Hop{
				Gateway: gateway, Device: name, Flags: uint32(h.Flags) & unix.RTNH_F_ONLINK, Weight: uint32(h.Hops) + 1,
			})
		}
	}
	return out, nil
}

// metrics are what a route says of the connections over it.
func metrics(r netlink.Route) map[uint32]uint32 {
	out := map[uint32]uint32{}
	for kind, value := range map[uint32]int{
		unix.RTAX_MTU: r.MTU, unix.RTAX_WINDOW: r.Window, unix.RTAX_RTT: r.Rtt, unix.RTAX_RTTVAR: r.RttVar,
		unix.RTAX_SSTHRESH: r.Ssthresh, unix.RTAX_CWND: r.Cwnd, unix.RTAX_ADVMSS: r.AdvMSS,
		unix.RTAX_REORDERING: r.Reordering, unix.RTAX_HOPLIMIT: r.Hoplimit, unix.RTAX_INITCWND: r.InitCwnd,
		unix.RTAX_FEATURES: r.Features, unix.RTAX_RTO_MIN: r.RtoMin, unix.RTAX_INITRWND: r.InitRwnd,
		unix.RTAX_QUICKACK: r.QuickACK,
	} {
		if value != 0 {
			out[kind] = uint32(value)
		}
	}
	if r.MTULock {
		out[unix.RTAX_LOCK] |= 1 << unix.RTAX_MTU
	}
	if r.RtoMinLock {
		out[unix.RTAX_LOCK] |= 1 << unix.RTAX_RTO_MIN
	}
	if len(out) == 0 {
		return nil
	}
	return out
}

// rank orders routes: those over devices alone, those over gateways, the default
// ones.
func rank(r *agentv1.Route) int {
	gateway := slices.ContainsFunc(r.GetHops(), func(h *agentv1.Hop) bool { return h.GetGateway() != "" })
	switch {
	case r.GetDestination() == "":
		return 2
	case gateway:
		return 1
	default:
		return 0
	}
}

// rules reads what somebody has added to the rules that every kernel has.
func rules() ([]*agentv1.Rule, error) {
	var list []netlink.Rule
	for _, family := range families() {
		l, err := netlink.RuleList(family)
		if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EAFNOSUPPORT) {
			continue // the kernel has no rules, or not this family
		}
		if err != nil {
			return nil, err
		}
		list = append(list, l...)
	}
	var out []*agentv1.Rule
	for _, r := range list {
		if isOfKernel(r) {
			continue
		}
		if err := checkRule(r); err != nil {
			return nil, err
		}
		rule := &agentv1.Rule{
			Priority: uint32(r.Priority), Family: uint32(r.Family), Table: uint32(r.Table), Mark: r.Mark,
			Input: r.IifName, Output: r.OifName, Invert: r.Invert,
		}
		if r.Src != nil {
			rule.Source = r.Src.String()
		}
		if r.Dst != nil {
			rule.Destination = r.Dst.String()
		}
		if r.Mask != nil {
			rule.Mask = *r.Mask
		}
		out = append(out, rule)
	}
	return out, nil
}

// isOfKernel recognizes the rules for the tables local, main and default.
func isOfKernel(r netlink.Rule) bool {
	var priority int
	switch r.Table {
	case unix.RT_TABLE_LOCAL:
	case unix.RT_TABLE_MAIN:
		priority = 32766
	case unix.RT_TABLE_DEFAULT:
		priority = 32767
	default:
		return false
	}
	return r.Priority == priority && r.Src == nil && r.Dst == nil && r.Mask == nil && r.IifName == "" && r.OifName == "" && !r.Invert
}

// checkRule refuses what the agent cannot be told of.
func checkRule(r netlink.Rule) error {
	plain := netlink.NewRule()
	plain.Priority, plain.Family, plain.Table, plain.Mark, plain.Mask = r.Priority, r.Family, r.Table, r.Mark, r.Mask
	plain.Src, plain.Dst, plain.IifName, plain.OifName, plain.Invert, plain.Protocol = r.Src, r.Dst, r.IifName, r.OifName, r.Invert, r.Protocol
	if r != *plain || r.Table == 0 {
		return fmt.Errorf("rule %d: a guest gets plain ones (a table for source, destination, mark, interfaces): %w", r.Priority, ErrUnsupported)
	}
	return nil
}

// destination is empty for the default route.
func destination(r netlink.Route) string {
	if r.Dst == nil {
		return ""
	}
	if ones, _ := r.Dst.Mask.Size(); ones == 0 && r.Dst.IP.IsUnspecified() {
		return ""
	}
	return r.Dst.String()
}

func ipString(ip net.IP) string {
	if len(ip) == 0 {
		return ""
	}
	return ip.String()
}

// neighbors reads the entries that somebody has set; others the guest learns.
func neighbors(l netlink.Link) ([]*agentv1.Neighbor, error) {
	var out []*agentv1.Neighbor
	for _, family := range families() {
		list, err := netlink.NeighList(l.Attrs().Index, family)
		if err != nil {
			return nil, err
		}
		for _, n := range list {
			if n.State&unix.NUD_PERMANENT == 0 || len(n.HardwareAddr) == 0 || n.IP.IsMulticast() {
				continue
			}
			out = append(out, &agentv1.Neighbor{
				Address: n.IP.String(), Mac: n.HardwareAddr.String(), Device: l.Attrs().Name, State: unix.NUD_PERMANENT,
			})
		}
	}
	return out, nil
}
