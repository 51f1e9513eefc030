// Package network brings the guest's network interfaces, routes, rules and
// neighbours to the state that the host describes.
package network

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"
	"time"

	agentv1 "github.com/seed-efd44b36/kata/api/agent/v1"
	"github.com/seed-efd44b36/kata/internal/agent/await"
	"github.com/seed-efd44b36/kata/internal/agent/rtnl"
)

// nicTimeout is how long a network interface may take to appear.
const nicTimeout = 10 * time.Second

// pushedPrefix begins the names of interfaces whose own another one gets.
const pushedPrefix = "was"

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

// Stack is the guest's network as far as it is the host's doing. What else is in
// there, containers have made, and it is left alone.
type Stack struct {
	turn chan struct{} // holds a token while somebody is at work
	// Of whoever has put the token in:
	have  state
	attic attic
	born  []rtnl.Link // as the kernel made them, once there was something to apply
	shown error       // why an idle device can be seen
}

// NewStack returns one with nothing in it.
func NewStack() *Stack { return &Stack{turn: make(chan struct{}, 1)} }

// Apply brings the guest to the state that n describes, and takes away what
// earlier ones described and n does not. To do it again changes nothing. The
// drivers of the interfaces must be loaded; the interfaces may take some time to
// appear. Idle devices go out of sight a moment later: see Await.
func (s *Stack) Apply(ctx context.Context, n *agentv1.Network) error {
	if err := s.lock(ctx); err != nil {
		return err
	}
	s.shown = nil
	links, err := s.apply(ctx, n)
	if err != nil {
		s.unlock()
		return err
	}
	hide, err := s.hideIdle(links)
	if err != nil || len(hide) == 0 {
		s.unlock()
		return err
	}
	// For most of the time the kernel waits for itself. Whoever is next to call
	// waits for the end.
	go func() {
		defer s.unlock()
		for _, move := range hide {
			s.shown = errors.Join(s.shown, move())
		}
	}()
	return nil
}

// Await waits until nothing is under way, and tells if an idle device can be seen
// still. It is for before a container runs.
func (s *Stack) Await(ctx context.Context) error {
	if err := s.lock(ctx); err != nil {
		return err
	}
	defer s.unlock()
	if s.shown != nil {
		return fmt.Errorf("hide spare network devices: %w", s.shown)
	}
	return nil
}

func (s *Stack) lock(ctx context.Context) error {
	select {
	case s.turn <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (s *Stack) unlock() { <-s.turn }

// Prepare makes ahead the place where idle devices go.
func (s *Stack) Prepare(ctx context.Context) error {
	if err := s.lock(ctx); err != nil {
		return err
	}
	defer s.unlock()
	return s.attic.open()
}

// Reset takes away all that Apply has made. The devices are those that they were
// before the first one, down and without addresses.
func (s *Stack) Reset(ctx context.Context) error {
	if err := s.lock(ctx); err != nil {
		return err
	}
	defer s.unlock()
	if _, err := s.apply(ctx, nil); err != nil {
		return err
	}
	if err := s.attic.empty(s.born); err != nil {
		return fmt.Errorf("reset the network: %w", err)
	}
	s.born = nil
	return nil
}

// apply also returns the interfaces as they were before it changed them, if any
// matter.
func (s *Stack) apply(ctx context.Context, n *agentv1.Network) (links []rtnl.Link, err error) {
	if len(n.GetInterfaces())+len(n.GetIdle()) > 0 {
		if links, err = rtnl.Links(); err != nil {
			return nil, err
		}
	}
	if s.born == nil {
		s.born = slices.Clone(links)
	}
	want, err := parse(n, func(device net.HardwareAddr) (int, error) { return s.find(ctx, device, &links) })
	if err != nil {
		return nil, err
	}
	had := s.have
	// Should this fail half way, the next is to find what either has made.
	s.have = had.with(want)
	if err := withdraw(had, want); err != nil {
		return nil, err
	}
	for _, i := range had.interfaces {
		if want.at(i.index) != nil {
			continue
		}
		// Containers may have changed it.
		move, err := s.attic.put(rtnl.Link{Index: i.index, Up: true}, i.device)
		if err == nil {
			err = move()
		}
		if err != nil {
			return nil, fmt.Errorf("interface %s: %w", i.name, err)
		}
		links = slices.DeleteFunc(links, func(l rtnl.Link) bool { return l.Index == i.index })
	}
	if err := want.make(had, links); err != nil {
		return nil, err
	}
	s.have = want
	return links, nil
}

// hideIdle returns what takes devices away that have no interface. It can be called
// on any thread.
func (s *Stack) hideIdle(links []rtnl.Link) (hide []func() error, err error) {
	for _, device := range s.have.idle {
		at := slices.IndexFunc(links, func(l rtnl.Link) bool { return bytes.Equal(l.Device(), device) })
		if at < 0 {
			continue // out of sight already
		}
		move, err := s.attic.put(links[at], device)
		if err != nil {
			for _, m := range hide {
				err = errors.Join(err, m())
			}
			return nil, fmt.Errorf("device %v: %w", device, err)
		}
		hide = append(hide, move)
	}
	return hide, nil
}

// find looks for the device with the hardware address among the interfaces, and out
// of sight, whereupon it lists them anew.
func (s *Stack) find(ctx context.Context, device net.HardwareAddr, links *[]rtnl.Link) (index int, err error) {
	for _, i := range s.have.interfaces {
		if bytes.Equal(i.device, device) {
			return i.index, nil // even if it has another address now
		}
	}
	if index = lookFor(*links, device); index != 0 {
		return index, nil
	}
	if err := s.attic.take(device); err != nil {
		return 0, err
	}
	err = await.Until(ctx, nicTimeout, func() (found bool, err error) {
		*links, err = rtnl.Links()
		index = lookFor(*links, device)
		return index != 0, err
	})
	if err != nil {
		return 0, fmt.Errorf("no device with address %v: %w", device, err)
	}
	return index, nil
}

// lookFor returns the index of a device, or 0.
func lookFor(links []rtnl.Link, device net.HardwareAddr) int {
	for _, l := range links {
		if bytes.Equal(l.Device(), device) {
			return l.Index
		}
	}
	return 0
}

// withdraw takes away what is in had and not in want. Addresses of interfaces
// that stay are not among it: they go when their successors are there.
func withdraw(had, want state) error {
	for _, r := range had.rules {
		if !slices.Contains(want.rules, r) {
			if err := rtnl.DeleteRule(r); err != nil {
				return fmt.Errorf("delete rule %d: %w", r.Priority, err)
			}
		}
	}
	for _, n := range had.neighbors {
		if !slices.ContainsFunc(want.neighbors, func(w rtnl.Neighbor) bool { return w.Address == n.Address && w.Index == n.Index }) {
			if err := rtnl.DeleteNeighbor(n); err != nil {
				return fmt.Errorf("delete neighbour %v: %w", n.Address, err)
			}
		}
	}
	for _, r := range slices.Backward(had.routes) {
		if !slices.ContainsFunc(want.routes, r.Equal) {
			if err := rtnl.DeleteRoute(r); err != nil {
				return fmt.Errorf("delete route to %v: %w", r.Destination, err)
			}
		}
	}
	return nil
}

// rename takes an interface down and gives it a name.
func rename(index int, name string) error {
	if err := rtnl.SetUp(index, false); err != nil {
		return fmt.Errorf("take down: %w", err)
	}
	if err := rtnl.SetName(index, name); err != nil {
		return fmt.Errorf("rename to %s: %w", name, err)
	}
	return nil
}

// make makes all that is described, or finds that it is there. links are the
// interfaces as they are.
func (s state) make(had state, links []rtnl.Link) error {
	// Names that are wanted for others are given up first: two interfaces may
	// have to change theirs.
	for _, l := range links {
		if holder := s.named(l.Name); holder != nil && holder.index != l.Index {
			if err := rename(l.Index, pushedPrefix+strconv.Itoa(l.Index)); err != nil {
				return fmt.Errorf("interface %s: %w", l.Name, err)
			}
		}
	}
	for _, i := range s.interfaces {
		at := slices.IndexFunc(links, func(l rtnl.Link) bool { return l.Index == i.index })
		if at < 0 {
			return fmt.Errorf("interface %s: its device is gone", i.name)
		}
		if err := i.make(links[at]); err != nil {
			return fmt.Errorf("interface %s: %w", i.name, err)
		}
		if err := i.forget(had.at(i.index)); err != nil {
			return fmt.Errorf("interface %s: %w", i.name, err)
		}
	}
	for _, r := range s.routes {
		if err := rtnl.AddRoute(r); err != nil {
			return fmt.Errorf("add route to %v: %w", r.Destination, err)
		}
	}
	for _, r := range s.rules {
		if err := rtnl.AddRule(r); err != nil {
			return fmt.Errorf("add rule %d: %w", r.Priority, err)
		}
	}
	for _, n := range s.neighbors {
		if err := rtnl.SetNeighbor(n); err != nil {
			return fmt.Errorf("neighbour %v: %w", n.Address, err)
		}
	}
	return nil
}

// make gives the device, which was as it was, name, hardware address, MTU and
// addresses, and takes it up.
func (i iface) make(was rtnl.Link) error {
	if was.Name != i.name {
		if err := rename(i.index, i.name); err != nil {
			return err
		}
	}
	if !bytes.Equal(was.MAC, i.mac) {
		if err := rtnl.SetUp(i.index, false); err != nil {
			return fmt.Errorf("take down: %w", err)
		}
		if err := rtnl.SetMAC(i.index, i.mac); err != nil {
			return fmt.Errorf("set hardware address %v: %w", i.mac, err)
		}
	}
	if i.mtu != 0 && i.mtu != was.MTU {
		if err := rtnl.SetMTU(i.index, i.mtu); err != nil {
			return fmt.Errorf("set MTU %d: %w", i.mtu, err)
		}
	}
	// The host says which addresses there are, link-local ones included.
	if err := rtnl.KeepUnaddressed(i.index); err != nil {
		return fmt.Errorf("switch IPv6 addresses off: %w", err)
	}
	// Up before the addresses, so that IPv6 is there and routes can be made.
	if err := rtnl.SetUp(i.index, true); err != nil {
		return fmt.Errorf("take up: %w", err)
	}
	for _, a := range i.addresses {
		if err := rtnl.AddAddress(i.index, a); err != nil {
			return fmt.Errorf("add address %v: %w", a.Prefix, err)
		}
	}
	return nil
}

// forget removes the addresses that the interface had and is not to have. Its
// new ones are there by then.
func (i iface) forget(had *iface) error {
	if had == nil {
		return nil
	}
	for _, a := range had.addresses {
		if slices.ContainsFunc(i.addresses, func(w rtnl.Address) bool { return w.Prefix == a.Prefix && w.Peer == a.Peer }) {
			continue
		}
		if err := rtnl.DeleteAddress(i.index, a); err != nil {
			return fmt.Errorf("delete address %v: %w", a.Prefix, err)
		}
	}
	return nil
}
