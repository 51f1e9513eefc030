package network

import (
	"context"
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

// Scan reads what the guest is to be given of the namespace at path. A
// namespace without an interface, but loopback, gives an empty network.
func Scan(ctx context.Context, path string) (*agentv1.Network, error) {
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("scan network namespace %s: %w", path, err)
	}
	ns, err := OpenNS(path)
	if err != nil {
		return nil, err
	}
	defer ns.Close()
	var nw *agentv1.Network
	err = inNS(ns, func() error {
		links, err := findLinks()
		if err != nil {
			return err
		}
		nw, err = scan(links)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("scan network namespace %s: %w", path, err)
	}
	return nw, nil
}

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
	return nw, nil
}

// addresses leaves out IPv6 link-local ones: the guest's kernel makes its own,
// of the same MAC.
func addresses(l netlink.Link) ([]string, error) {
	list, err := netlink.AddrList(l, netlink.FAMILY_ALL)
	if err != nil {
		return nil, err
	}
	var out []string
	for _, a := range list {
		if a.IP.To4() == nil && a.IP.IsLinkLocalUnicast() {
			continue
		}
		out = append(out, a.IPNet.String())
	}
	return out, nil
}

// routes reads the main table, but what a kernel makes by itself when it is
// given the addresses. Those come first that others need for their gateway.
func routes(names map[int]string) ([]*agentv1.Route, error) {
	list, err := netlink.RouteListFiltered(netlink.FAMILY_ALL, &netlink.Route{Table: unix.RT_TABLE_MAIN}, netlink.RT_FILTER_TABLE)
	if err != nil {
		return nil, err
	}
	var out []*agentv1.Route
	for _, r := range list {
		if r.Protocol == unix.RTPROT_KERNEL {
			continue
		}
		dst := destination(r)
		if len(r.MultiPath) > 0 || r.Encap != nil || r.Via != nil || r.Type != unix.RTN_UNICAST {
			return nil, fmt.Errorf("route to %s is not a plain one (one gateway or device): %w", dst, ErrUnsupported)
		}
		name, ok := names[r.LinkIndex]
		if !ok { // leads to an interface that the guest does not get
			continue
		}
		out = append(out, &agentv1.Route{
			Destination: dst, Gateway: ipString(r.Gw), Device: name, Source: ipString(r.Src),
			Scope: uint32(r.Scope), Flags: uint32(r.Flags) & unix.RTNH_F_ONLINK,
			Mtu: uint32(r.MTU), Priority: uint32(r.Priority), Family: uint32(r.Family),
		})
	}
	slices.SortStableFunc(out, func(a, b *agentv1.Route) int { return rank(a) - rank(b) })
	return out, nil
}

// rank orders routes: those over the device alone, those over a gateway, the
// default ones.
func rank(r *agentv1.Route) int {
	switch {
	case r.GetGateway() == "" && r.GetDestination() != "":
		return 0
	case r.GetDestination() != "":
		return 1
	default:
		return 2
	}
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
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
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
