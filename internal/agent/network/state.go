package network

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"

	agentv1 "github.com/seed-efd44b36/kata/api/agent/v1"
	"github.com/seed-efd44b36/kata/internal/agent/rtnl"
	"golang.org/x/sys/unix"
)

// state is a description of the network, in the kernel's terms.
type state struct {
	interfaces []iface
	routes     []rtnl.Route
	rules      []rtnl.Rule
	neighbors  []rtnl.Neighbor
	idle       []net.HardwareAddr // of devices
}

// iface is an interface that has a device.
type iface struct {
	name        string
	device, mac net.HardwareAddr
	index       int
	mtu         uint32
	addresses   []rtnl.Address
}

// at returns the interface with the index, or nil.
func (s state) at(index int) *iface {
	for i := range s.interfaces {
		if s.interfaces[i].index == index {
			return &s.interfaces[i]
		}
	}
	return nil
}

// named returns the interface with the name, or nil.
func (s state) named(name string) *iface {
	for i := range s.interfaces {
		if s.interfaces[i].name == name {
			return &s.interfaces[i]
		}
	}
	return nil
}

// with returns what is in s or in o.
func (s state) with(o state) state {
	both := state{
		interfaces: slices.Clone(s.interfaces),
		routes:     slices.Concat(s.routes, o.routes),
		rules:      slices.Concat(s.rules, o.rules),
		neighbors:  slices.Concat(s.neighbors, o.neighbors),
	}
	for _, i := range o.interfaces {
		if old := both.at(i.index); old != nil {
			old.addresses = slices.Concat(old.addresses, i.addresses)
		} else {
			both.interfaces = append(both.interfaces, i)
		}
	}
	return both
}

// parse reads a description. find finds the devices of its interfaces.
func parse(n *agentv1.Network, find func(device net.HardwareAddr) (index int, err error)) (state, error) {
	var out state
	for _, i := range n.GetInterfaces() {
		parsed, err := parseInterface(i)
		if err == nil && out.named(parsed.name) != nil {
			err = fmt.Errorf("there are two: %w", ErrInvalid)
		}
		if err == nil {
			parsed.index, err = find(parsed.device)
		}
		if err == nil && out.at(parsed.index) != nil {
			err = fmt.Errorf("its device %v is that of another: %w", parsed.device, ErrInvalid)
		}
		if err != nil {
			return state{}, fmt.Errorf("interface %s: %w", i.GetName(), err)
		}
		out.interfaces = append(out.interfaces, parsed)
	}
	for _, text := range n.GetIdle() {
		mac, err := parseMAC(text)
		if err != nil {
			return state{}, fmt.Errorf("idle device: %w", err)
		}
		out.idle = append(out.idle, mac)
	}
	for _, r := range n.GetRoutes() {
		route, err := out.parseRoute(r)
		if err != nil {
			return state{}, fmt.Errorf("route to %q: %w", r.GetDestination(), err)
		}
		out.routes = append(out.routes, route)
	}
	for _, r := range n.GetRules() {
		rule, err := parseRule(r)
		if err != nil {
			return state{}, fmt.Errorf("rule %d: %w", r.GetPriority(), err)
		}
		out.rules = append(out.rules, rule)
	}
	for _, nb := range n.GetNeighbors() {
		neighbor, err := out.parseNeighbor(nb)
		if err != nil {
			return state{}, fmt.Errorf("neighbour %s: %w", nb.GetAddress(), err)
		}
		out.neighbors = append(out.neighbors, neighbor)
	}
	return out, nil
}

func parseInterface(i *agentv1.Interface) (iface, error) {
	out := iface{name: i.GetName(), mtu: i.GetMtu()}
	if err := checkName(out.name); err != nil {
		return iface{}, err
	}
	var err error
	if out.mac, err = parseMAC(i.GetMac()); err != nil {
		return iface{}, err
	}
	out.device = out.mac
	if i.GetDevice() != "" {
		if out.device, err = parseMAC(i.GetDevice()); err != nil {
			return iface{}, err
		}
	}
	for _, a := range i.GetAddresses() {
		address := rtnl.Address{Scope: uint8(a.GetScope())}
		if address.Prefix, err = netip.ParsePrefix(a.GetPrefix()); err != nil {
			return iface{}, fmt.Errorf("%w: %w", err, ErrInvalid)
		}
		if err := optional(a.GetPeer(), &address.Peer, netip.ParsePrefix); err != nil {
			return iface{}, err
		}
		if err := optional(a.GetBroadcast(), &address.Broadcast, netip.ParseAddr); err != nil {
			return iface{}, err
		}
		out.addresses = append(out.addresses, address)
	}
	return out, nil
}

// optional parses a text, unless it is empty.
func optional[T any](text string, to *T, parse func(string) (T, error)) (err error) {
	if text == "" {
		return nil
	}
	if *to, err = parse(text); err != nil {
		return fmt.Errorf("%w: %w", err, ErrInvalid)
	}
	return nil
}

func checkName(name string) error {
	if name == "" || len(name) >= unix.IFNAMSIZ || name == "." || name == ".." || strings.ContainsAny(name, "/: \t\n") {
		return fmt.Errorf("name %q: %w", name, ErrInvalid)
	}
	return nil
}

// parseMAC takes Ethernet addresses only.
func parseMAC(s string) (net.HardwareAddr, error) {
	mac, err := net.ParseMAC(s)
	if err == nil && len(mac) != 6 {
		err = fmt.Errorf("address %s is not of Ethernet", s)
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %w", err, ErrInvalid)
	}
	return mac, nil
}

// index finds an interface by its name.
func (s state) index(name string) (int, error) {
	if i := s.named(name); i != nil {
		return i.index, nil
	}
	return 0, fmt.Errorf("no interface %q: %w", name, ErrInvalid)
}

func checkFamily(f uint32) error {
	if f != unix.AF_INET && f != unix.AF_INET6 {
		return fmt.Errorf("family %d: %w", f, ErrInvalid)
	}
	return nil
}

func (s state) parseRoute(r *agentv1.Route) (rtnl.Route, error) {
	out := rtnl.Route{
		Family: uint8(r.GetFamily()), Scope: uint8(r.GetScope()), Type: uint8(r.GetType()), Protocol: uint8(r.GetProtocol()),
		Table: r.GetTable(), Priority: r.GetPriority(), Metrics: r.GetMetrics(),
	}
	if out.Table == 0 {
		out.Table = unix.RT_TABLE_MAIN
	}
	if out.Protocol == 0 {
		out.Protocol = unix.RTPROT_STATIC
	}
	if out.Type == 0 {
		out.Type = unix.RTN_UNICAST
	}
	if err := checkFamily(r.GetFamily()); err != nil {
		return rtnl.Route{}, err
	}
	if err := optional(r.GetDestination(), &out.Destination, netip.ParsePrefix); err != nil {
		return rtnl.Route{}, err
	}
	out.Destination = out.Destination.Masked()
	if out.Destination.IsValid() && out.Destination.Bits() == 0 {
		out.Destination = netip.Prefix{} // the default route
	}
	if err := optional(r.GetSource(), &out.Source, netip.ParseAddr); err != nil {
		return rtnl.Route{}, err
	}
	for _, h := range r.GetHops() {
		hop := rtnl.Hop{Flags: uint8(h.GetFlags()), Weight: max(1, uint8(h.GetWeight()))}
		var err error
		if hop.Index, err = s.index(h.GetDevice()); err != nil {
			return rtnl.Route{}, err
		}
		if err := optional(h.GetGateway(), &hop.Gateway, netip.ParseAddr); err != nil {
			return rtnl.Route{}, err
		}
		out.Hops = append(out.Hops, hop)
	}
	return out, nil
}

func parseRule(r *agentv1.Rule) (rtnl.Rule, error) {
	out := rtnl.Rule{
		Family: uint8(r.GetFamily()), Priority: r.GetPriority(), Table: r.GetTable(),
		Mark: r.GetMark(), Mask: r.GetMask(), Input: r.GetInput(), Output: r.GetOutput(), Invert: r.GetInvert(),
	}
	if err := checkFamily(r.GetFamily()); err != nil {
		return rtnl.Rule{}, err
	}
	if err := optional(r.GetSource(), &out.Source, netip.ParsePrefix); err != nil {
		return rtnl.Rule{}, err
	}
	if err := optional(r.GetDestination(), &out.Destination, netip.ParsePrefix); err != nil {
		return rtnl.Rule{}, err
	}
	for _, name := range []string{out.Input, out.Output} {
		if name == "" {
			continue
		}
		if err := checkName(name); err != nil {
			return rtnl.Rule{}, err
		}
	}
	return out, nil
}

func (s state) parseNeighbor(n *agentv1.Neighbor) (rtnl.Neighbor, error) {
	out := rtnl.Neighbor{State: uint16(n.GetState())}
	var err error
	if out.Index, err = s.index(n.GetDevice()); err != nil {
		return rtnl.Neighbor{}, err
	}
	if out.Address, err = netip.ParseAddr(n.GetAddress()); err != nil {
		return rtnl.Neighbor{}, fmt.Errorf("%w: %w", err, ErrInvalid)
	}
	mac, err := parseMAC(n.GetMac())
	if err != nil {
		return rtnl.Neighbor{}, err
	}
	out.MAC = [6]byte(mac)
	return out, nil
}
