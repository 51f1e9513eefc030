// Package network brings the guest's network interfaces, routes and neighbours to
// the state that the host describes.
package network

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	agentv1 "github.com/seed-efd44b36/kata/api/agent/v1"
	"github.com/seed-efd44b36/kata/internal/agent/await"
	"github.com/seed-efd44b36/kata/internal/agent/rtnl"
	"golang.org/x/sys/unix"
)

// nicTimeout is how long a network interface may take to appear.
const nicTimeout = 10 * time.Second

// ErrInvalid is wrapped by errors about a description that makes no sense.
var ErrInvalid = errors.New("invalid description of the network")

// LoopbackUp takes the loopback interface up.
func LoopbackUp() error {
	links, err := rtnl.Links()
	if err != nil {
		return err
	}
	for _, l := range links {
		if l.Name == "lo" {
			return rtnl.SetUp(l.Index, true)
		}
	}
	return errors.New("no interface lo")
}

// Apply brings the interfaces that n names, and the routes through them, to the
// state that n describes. To do it again changes nothing. The drivers of the
// interfaces must be loaded; the interfaces may take some time to appear.
func Apply(ctx context.Context, n *agentv1.Network) error {
	byName := make(map[string]int)
	for _, i := range n.GetInterfaces() {
		index, err := updateInterface(ctx, i)
		if err != nil {
			return fmt.Errorf("interface %s: %w", i.GetName(), err)
		}
		byName[i.GetName()] = index
	}
	index := func(device string) (int, error) {
		if i, ok := byName[device]; ok {
			return i, nil
		}
		links, err := rtnl.Links()
		if err != nil {
			return 0, err
		}
		for _, l := range links {
			if l.Name == device {
				return l.Index, nil
			}
		}
		return 0, fmt.Errorf("no interface %q: %w", device, ErrInvalid)
	}
	if err := updateRoutes(n.GetRoutes(), byName, index); err != nil {
		return err
	}
	for _, nb := range n.GetNeighbors() {
		if err := setNeighbor(nb, index); err != nil {
			return fmt.Errorf("neighbour %s: %w", nb.GetAddress(), err)
		}
	}
	return nil
}

// updateInterface finds an interface by its hardware address and gives it name,
// MTU and addresses.
func updateInterface(ctx context.Context, i *agentv1.Interface) (index int, err error) {
	mac, err := net.ParseMAC(i.GetMac())
	if err != nil {
		return 0, fmt.Errorf("%w: %w", err, ErrInvalid)
	}
	if err := checkInterfaceName(i.GetName()); err != nil {
		return 0, err
	}
	var want []netip.Prefix
	for _, s := range i.GetAddresses() {
		p, err := netip.ParsePrefix(s)
		if err != nil {
			return 0, fmt.Errorf("%w: %w", err, ErrInvalid)
		}
		want = append(want, p)
	}
	l, err := awaitLink(ctx, mac)
	if err != nil {
		return 0, err
	}
	if l.Name != i.GetName() {
		if l.Up {
			if err := rtnl.SetUp(l.Index, false); err != nil {
				return 0, fmt.Errorf("take down: %w", err)
			}
		}
		if err := rtnl.SetName(l.Index, i.GetName()); err != nil {
			return 0, fmt.Errorf("rename %s: %w", l.Name, err)
		}
	}
	if i.GetMtu() != 0 {
		if err := rtnl.SetMTU(l.Index, i.GetMtu()); err != nil {
			return 0, fmt.Errorf("set MTU %d: %w", i.GetMtu(), err)
		}
	}
	have, err := rtnl.Addresses(l.Index)
	if err != nil {
		return 0, err
	}
	for _, h := range have {
		kernels := h.Prefix.Addr().Is6() && h.Prefix.Addr().IsLinkLocalUnicast()
		if !slices.Contains(want, h.Prefix) && !kernels {
			if err := rtnl.DeleteAddress(l.Index, h.Prefix); err != nil {
				return 0, fmt.Errorf("delete address %v: %w", h.Prefix, err)
			}
		}
	}
	// Up before the addresses, so that IPv6 is there and routes can be made.
	if err := rtnl.SetUp(l.Index, true); err != nil {
		return 0, fmt.Errorf("take up: %w", err)
	}
	for _, p := range want {
		if err := rtnl.AddAddress(l.Index, p); err != nil {
			return 0, fmt.Errorf("add address %v: %w", p, err)
		}
	}
	return l.Index, nil
}

func checkInterfaceName(name string) error {
	if name == "" || len(name) >= unix.IFNAMSIZ || name == "." || name == ".." || strings.ContainsAny(name, "/: \t\n") {
		return fmt.Errorf("name %q: %w", name, ErrInvalid)
	}
	return nil
}

// awaitLink waits for the interface with the hardware address.
func awaitLink(ctx context.Context, mac net.HardwareAddr) (rtnl.Link, error) {
	var found rtnl.Link
	err := await.Until(ctx, nicTimeout, func() (bool, error) {
		links, err := rtnl.Links()
		for _, l := range links {
			if bytes.Equal(l.MAC, mac) {
				found = l
				return true, nil
			}
		}
		return false, err
	})
	if err != nil {
		return rtnl.Link{}, fmt.Errorf("no interface with address %v: %w", mac, err)
	}
	return found, nil
}

// updateRoutes removes the routes through the given interfaces that are not
// wanted, and adds those that are: direct ones first, which gateways need.
func updateRoutes(list []*agentv1.Route, interfaces map[string]int, index func(string) (int, error)) error {
	var want []rtnl.Route
	for _, r := range list {
		route, err := parseRoute(r, index)
		if err != nil {
			return fmt.Errorf("route to %q: %w", r.GetDestination(), err)
		}
		want = append(want, route)
	}
	for _, i := range interfaces {
		have, err := rtnl.Routes(i)
		if err != nil {
			return err
		}
		for _, h := range have {
			if h.Protocol == unix.RTPROT_KERNEL || slices.ContainsFunc(want, func(w rtnl.Route) bool { return sameRoute(w, h) }) {
				continue
			}
			if err := rtnl.DeleteRoute(h); err != nil {
				return fmt.Errorf("delete route to %v: %w", h.Destination, err)
			}
		}
	}
	slices.SortStableFunc(want, func(a, b rtnl.Route) int {
		return boolInt(a.Gateway.IsValid()) - boolInt(b.Gateway.IsValid())
	})
	for _, r := range want {
		if err := rtnl.AddRoute(r); err != nil {
			return fmt.Errorf("add route to %v via %v: %w", r.Destination, r.Gateway, err)
		}
	}
	return nil
}

func boolInt(b bool) int {
	if b {
		return 1
	}
	return 0
}

// sameRoute says whether a and b lead to the same place the same way, whatever
// the kernel has made of what was not given.
func sameRoute(a, b rtnl.Route) bool {
	return a.Family == b.Family && a.Destination == b.Destination && a.Gateway == b.Gateway && a.Index == b.Index
}

func parseRoute(r *agentv1.Route, index func(string) (int, error)) (rtnl.Route, error) {
	out := rtnl.Route{
		Family: uint8(r.GetFamily()), Scope: uint8(r.GetScope()), Flags: r.GetFlags(),
		Protocol: unix.RTPROT_STATIC, Type: unix.RTN_UNICAST,
		Priority: r.GetPriority(), MTU: r.GetMtu(),
	}
	var err error
	if out.Index, err = index(r.GetDevice()); err != nil {
		return rtnl.Route{}, err
	}
	if s := r.GetDestination(); s != "" {
		if out.Destination, err = netip.ParsePrefix(s); err != nil {
			return rtnl.Route{}, fmt.Errorf("%w: %w", err, ErrInvalid)
		}
		out.Destination = out.Destination.Masked()
		if out.Destination.Bits() == 0 {
			out.Destination = netip.Prefix{} // the default route
		}
	}
	for _, a := range []struct {
		text string
		to   *netip.Addr
	}{{r.GetGateway(), &out.Gateway}, {r.GetSource(), &out.Source}} {
		if a.text == "" {
			continue
		}
		if *a.to, err = netip.ParseAddr(a.text); err != nil {
			return rtnl.Route{}, fmt.Errorf("%w: %w", err, ErrInvalid)
		}
	}
	if out.Family != unix.AF_INET && out.Family != unix.AF_INET6 {
		return rtnl.Route{}, fmt.Errorf("family %d: %w", r.GetFamily(), ErrInvalid)
	}
	return out, nil
}

func setNeighbor(n *agentv1.Neighbor, index func(string) (int, error)) error {
	i, err := index(n.GetDevice())
	if err != nil {
		return err
	}
	out := rtnl.Neighbor{Index: i, State: uint16(n.GetState())}
	if out.Address, err = netip.ParseAddr(n.GetAddress()); err != nil {
		return fmt.Errorf("%w: %w", err, ErrInvalid)
	}
	if n.GetMac() != "" {
		mac, err := net.ParseMAC(n.GetMac())
		if err != nil {
			return fmt.Errorf("%w: %w", err, ErrInvalid)
		}
		out.MAC = mac
	}
	return rtnl.SetNeighbor(out)
}
