package network

import (
	"errors"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	agentv1 "github.com/seed-efd44b36/kata/api/agent/v1"
	"golang.org/x/sys/unix"
)

const (
	mac0 = "02:00:00:00:00:07"
	mac1 = "02:00:00:00:00:08"
)

// inNetwork runs test on a thread that has a network namespace of its own, with
// the devices tap0 and tap1 in it, which have hardware addresses mac0 and mac1.
func inNetwork(t *testing.T, test func(t *testing.T)) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root: makes a network namespace")
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		// Never unlocked: the thread ends with the goroutine.
		runtime.LockOSThread()
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			t.Errorf("make network namespace: %v", err)
			return
		}
		for _, args := range []string{
			"tuntap add name tap0 mode tap", "link set tap0 address " + mac0,
			"tuntap add name tap1 mode tap", "link set tap1 address " + mac1,
		} {
			ip(t, args)
		}
		if !t.Failed() {
			test(t)
		}
	}()
	<-done
}

// ip runs ip(8) in the network namespace of the calling thread.
func ip(t *testing.T, args string) string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "ip", strings.Fields(args)...).CombinedOutput()
	if err != nil {
		t.Errorf("ip %s: %v: %s", args, err, out)
	}
	return string(out)
}

// dump is all of the network that is of interest, one thing a line. The flag
// for a link that leads nowhere is left out: a tap that nobody has open.
func dump(t *testing.T) []string {
	t.Helper()
	var lines []string
	for _, args := range []string{
		"-br link show", "-o addr show", "-4 route show table all type unicast", "route show type blackhole",
		"-6 route show", "rule", "-6 rule", "neigh show nud permanent",
	} {
		for line := range strings.Lines(ip(t, args)) {
			words := strings.Fields(strings.NewReplacer("linkdown", "", "<NO-CARRIER,BROADCAST,MULTICAST,UP>", "up",
				"<BROADCAST,MULTICAST>", "", "valid_lft forever preferred_lft forever", "", "\\", "").Replace(line))
			if l := strings.Join(words, " "); !strings.HasPrefix(l, "lo ") && !strings.Contains(l, "from all lookup") {
				lines = append(lines, l)
			}
		}
	}
	return lines
}

func hop(device, gateway string) []*agentv1.Hop {
	return []*agentv1.Hop{{Device: device, Gateway: gateway}}
}

// one is a network with one interface, as a CNI plugin makes it; two has one more.
func one() *agentv1.Network {
	return &agentv1.Network{
		Interfaces: []*agentv1.Interface{{Name: "eth0", Mac: mac0, Mtu: 1400, Addresses: []*agentv1.Address{
			{Prefix: "10.9.0.5/24", Broadcast: "10.9.0.255"}, {Prefix: "fd00:9::5/64"}, {Prefix: "fe80::7/64", Scope: unix.RT_SCOPE_LINK},
		}}},
		Routes: []*agentv1.Route{
			{Destination: "10.9.0.0/24", Hops: hop("eth0", ""), Source: "10.9.0.5", Scope: unix.RT_SCOPE_LINK, Family: unix.AF_INET, Protocol: unix.RTPROT_KERNEL},
			{Destination: "10.99.0.0/16", Hops: hop("eth0", ""), Scope: unix.RT_SCOPE_LINK, Family: unix.AF_INET, Protocol: unix.RTPROT_BOOT, Metrics: map[uint32]uint32{unix.RTAX_MTU: 1300, unix.RTAX_ADVMSS: 1200}},
			{Destination: "fe80::/64", Hops: hop("eth0", ""), Family: unix.AF_INET6, Protocol: unix.RTPROT_KERNEL, Priority: 256},
			{Destination: "0.0.0.0/0", Hops: []*agentv1.Hop{{Gateway: "169.254.1.1", Device: "eth0", Flags: unix.RTNH_F_ONLINK}}, Family: unix.AF_INET, Priority: 50},
			{Hops: hop("eth0", "fe80::1"), Family: unix.AF_INET, Priority: 60},
			{Destination: "10.66.0.0/16", Type: unix.RTN_BLACKHOLE, Family: unix.AF_INET},
			{Destination: "::/0", Hops: hop("eth0", "fe80::1"), Family: unix.AF_INET6, Priority: 1024},
		},
		Neighbors: []*agentv1.Neighbor{{Address: "10.9.0.1", Mac: "02:00:00:00:00:01", Device: "eth0", State: unix.NUD_PERMANENT}},
	}
}

func two() *agentv1.Network {
	n := one()
	n.Interfaces = append(n.Interfaces, &agentv1.Interface{Name: "net1", Mac: "02:00:00:00:00:99", Device: mac1, Mtu: 9000, Addresses: []*agentv1.Address{
		{Prefix: "10.8.0.5/32", Peer: "10.8.0.1/32"}, {Prefix: "fd00:8::5/64"},
	}})
	n.Routes = append(n.Routes,
		&agentv1.Route{Destination: "fd00:8::/64", Hops: hop("net1", ""), Family: unix.AF_INET6, Priority: 256},
		&agentv1.Route{Destination: "10.8.0.1/32", Hops: hop("net1", ""), Family: unix.AF_INET, Scope: unix.RT_SCOPE_LINK},
		&agentv1.Route{Destination: "10.77.0.0/16", Hops: []*agentv1.Hop{{Device: "eth0", Gateway: "10.9.0.1"}, {Device: "net1", Gateway: "10.8.0.1", Weight: 2}}, Family: unix.AF_INET},
		&agentv1.Route{Destination: "fd00:77::/64", Hops: []*agentv1.Hop{{Device: "eth0", Gateway: "fe80::1"}, {Device: "net1", Gateway: "fd00:8::1"}}, Family: unix.AF_INET6, Priority: 1024},
		&agentv1.Route{Hops: hop("net1", "10.8.0.1"), Family: unix.AF_INET, Table: 100},
		&agentv1.Route{Hops: hop("net1", "10.8.0.1"), Family: unix.AF_INET, Priority: 50},
	)
	n.Rules = []*agentv1.Rule{
		{Priority: 500, Family: unix.AF_INET, Table: 100, Source: "10.8.0.5/32"},
		{Priority: 501, Family: unix.AF_INET6, Table: 100, Mark: 1, Mask: 0xff, Input: "net1", Invert: true},
	}
	return n
}

func TestApply(t *testing.T) {
	wantOne := []string{
		"eth0 DOWN " + mac0 + " up",
		"tap1 DOWN " + mac1,
		"2: eth0 inet 10.9.0.5/24 brd 10.9.0.255 scope global noprefixroute eth0",
		"2: eth0 inet6 fd00:9::5/64 scope global nodad noprefixroute",
		"2: eth0 inet6 fe80::7/64 scope link nodad noprefixroute",
		"default via 169.254.1.1 dev eth0 proto static metric 50 onlink",
		"default via inet6 fe80::1 dev eth0 proto static metric 60",
		"10.9.0.0/24 dev eth0 proto kernel scope link src 10.9.0.5",
		"10.99.0.0/16 dev eth0 scope link mtu 1300 advmss 1200",
		"blackhole 10.66.0.0/16 proto static",
		"fe80::/64 dev eth0 proto kernel metric 256 pref medium",
		"default via fe80::1 dev eth0 proto static metric 1024 pref medium",
		"10.9.0.1 dev eth0 lladdr 02:00:00:00:00:01 PERMANENT",
	}
	wantTwo := []string{
		"eth0 DOWN " + mac0 + " up",
		"net1 DOWN 02:00:00:00:00:99 up",
		"2: eth0 inet 10.9.0.5/24 brd 10.9.0.255 scope global noprefixroute eth0",
		"2: eth0 inet6 fd00:9::5/64 scope global nodad noprefixroute",
		"2: eth0 inet6 fe80::7/64 scope link nodad noprefixroute",
		"3: net1 inet 10.8.0.5 peer 10.8.0.1/32 scope global noprefixroute net1",
		"3: net1 inet6 fd00:8::5/64 scope global nodad noprefixroute",
		"default via 10.8.0.1 dev net1 table 100 proto static",
		"default via 169.254.1.1 dev eth0 proto static metric 50 onlink",
		"default via 10.8.0.1 dev net1 proto static metric 50",
		"default via inet6 fe80::1 dev eth0 proto static metric 60",
		"10.8.0.1 dev net1 proto static scope link",
		"10.9.0.0/24 dev eth0 proto kernel scope link src 10.9.0.5",
		"10.77.0.0/16 proto static", "nexthop via 10.9.0.1 dev eth0 weight 1", "nexthop via 10.8.0.1 dev net1 weight 2",
		"10.99.0.0/16 dev eth0 scope link mtu 1300 advmss 1200",
		"blackhole 10.66.0.0/16 proto static",
		"fd00:8::/64 dev net1 proto static metric 256 pref medium",
		"fd00:77::/64 proto static metric 1024 pref medium", "nexthop via fe80::1 dev eth0 weight 1", "nexthop via fd00:8::1 dev net1 weight 1",
		"fe80::/64 dev eth0 proto kernel metric 256 pref medium",
		"default via fe80::1 dev eth0 proto static metric 1024 pref medium",
		"500: from 10.8.0.5 lookup 100",
		"501: not from all fwmark 0x1/0xff iif net1 lookup 100",
		"10.9.0.1 dev eth0 lladdr 02:00:00:00:00:01 PERMANENT",
	}
	// The two devices take each other's place.
	idle := one()
	idle.Idle = []string{mac1}
	swapped := &agentv1.Network{Interfaces: []*agentv1.Interface{
		{Name: "eth0", Mac: mac1, Addresses: []*agentv1.Address{{Prefix: "10.9.0.6/24"}}}, {Name: "net1", Mac: mac0},
	}}
	inNetwork(t, func(t *testing.T) {
		s := NewStack()
		for _, step := range []struct {
			name string
			to   *agentv1.Network
			want []string
		}{
			{"one interface", one(), wantOne},
			{"the same again", one(), wantOne},
			{"the other device out of sight", idle, append([]string{wantOne[0]}, wantOne[2:]...)},
			{"another one", two(), wantTwo},
			{"both again", two(), wantTwo},
			{"without that", one(), append([]string{wantOne[0]}, wantOne[2:]...)},
			{"both once more", two(), wantTwo},
			{"none", &agentv1.Network{}, nil},
			{"swapped", swapped, []string{"net1 DOWN " + mac0 + " up", "eth0 DOWN " + mac1 + " up", "3: eth0 inet 10.9.0.6/24 scope global noprefixroute eth0"}},
		} {
			err := s.Apply(t.Context(), step.to)
			if err := s.Await(t.Context()); err != nil {
				t.Error(err)
			}
			if err != nil {
				t.Errorf("%s: %v", step.name, err)
			} else if diff := cmp.Diff(step.want, dump(t)); diff != "" {
				t.Errorf("%s (-want +got):\n%s", step.name, diff)
			}
		}
	})
}

// TestOthers: what a container has made in the guest's network stays when the
// host changes that.
func TestOthers(t *testing.T) {
	inNetwork(t, func(t *testing.T) {
		s := NewStack()
		if err := s.Apply(t.Context(), one()); err != nil {
			t.Error(err)
			return
		}
		ip(t, "addr add 10.10.0.1/24 dev eth0")
		ip(t, "route add 10.11.0.0/16 via 10.10.0.9")
		ip(t, "link set tap1 name br0")
		before := dump(t)
		if err := s.Apply(t.Context(), one()); err != nil {
			t.Error(err)
		}
		if diff := cmp.Diff(before, dump(t)); diff != "" {
			t.Errorf("-before +after:\n%s", diff)
		}
	})
}

// TestFailure: what an attempt that fails has made goes with the next state.
func TestFailure(t *testing.T) {
	inNetwork(t, func(t *testing.T) {
		s := NewStack()
		n := two()
		n.Routes = append(n.Routes, &agentv1.Route{Destination: "10.55.0.0/16", Hops: hop("net1", "192.0.2.1"), Family: unix.AF_INET})
		if err := s.Apply(t.Context(), n); !errors.Is(err, unix.ENETUNREACH) {
			t.Errorf("a gateway that cannot be reached: got %v", err)
		}
		if err := s.Apply(t.Context(), &agentv1.Network{}); err != nil {
			t.Error(err)
		}
		if diff := cmp.Diff([]string(nil), dump(t)); diff != "" {
			t.Errorf("-want +got:\n%s", diff)
		}
	})
}

func TestInvalid(t *testing.T) {
	with := func(i *agentv1.Interface) *agentv1.Network {
		return &agentv1.Network{Interfaces: []*agentv1.Interface{i}}
	}
	routes := func(r *agentv1.Route) *agentv1.Network { return &agentv1.Network{Routes: []*agentv1.Route{r}} }
	inNetwork(t, func(t *testing.T) {
		for _, tt := range []struct {
			name string
			n    *agentv1.Network
		}{
			{"hardware address", with(&agentv1.Interface{Name: "eth0", Mac: "x"})},
			{"hardware address of InfiniBand", with(&agentv1.Interface{Name: "eth0", Mac: "02:00:00:00:00:00:00:01"})},
			{"device", with(&agentv1.Interface{Name: "eth0", Mac: mac0, Device: "x"})},
			{"name", with(&agentv1.Interface{Name: "../eth0", Mac: mac0})},
			{"long name", with(&agentv1.Interface{Name: "abcdefghijklmnop", Mac: mac0})},
			{"address", with(&agentv1.Interface{Name: "eth0", Mac: mac0, Addresses: []*agentv1.Address{{Prefix: "10.0.0.1"}}})},
			{"peer", with(&agentv1.Interface{Name: "eth0", Mac: mac0, Addresses: []*agentv1.Address{{Prefix: "10.0.0.1/8", Peer: "x"}}})},
			{"name twice", &agentv1.Network{Interfaces: []*agentv1.Interface{{Name: "eth0", Mac: mac0}, {Name: "eth0", Mac: mac1}}}},
			{"device twice", &agentv1.Network{Interfaces: []*agentv1.Interface{{Name: "eth0", Mac: mac0}, {Name: "eth1", Mac: mac0}}}},
			{"device of a route", routes(&agentv1.Route{Hops: hop("no", ""), Family: unix.AF_INET})},
			{"gateway", routes(&agentv1.Route{Hops: hop("lo", "x"), Family: unix.AF_INET})},
			{"family", routes(&agentv1.Route{Destination: "10.0.0.0/8", Family: 77})},
			{"idle device", &agentv1.Network{Idle: []string{"x"}}},
			{"rule", &agentv1.Network{Rules: []*agentv1.Rule{{Family: unix.AF_INET, Source: "x"}}}},
			{"neighbour", &agentv1.Network{Neighbors: []*agentv1.Neighbor{{Device: "lo", Address: "x"}}}},
		} {
			if err := NewStack().Apply(t.Context(), tt.n); !errors.Is(err, ErrInvalid) {
				t.Errorf("%s: got %v", tt.name, err)
			}
		}
	})
}

// TestReset applies one network after the other and finds the devices as they were.
func TestReset(t *testing.T) {
	inNetwork(t, func(t *testing.T) {
		s := NewStack()
		if err := s.Reset(t.Context()); err != nil {
			t.Errorf("nothing to reset: %v", err)
		}
		before := dump(t)
		for _, n := range []*agentv1.Network{one(), two(), {Idle: []string{mac0, mac1}}, {Interfaces: one().Interfaces, Idle: []string{mac1}}} {
			if err := s.Apply(t.Context(), n); err != nil {
				t.Fatal(err)
			}
			if err := s.Reset(t.Context()); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(before, dump(t)); diff != "" {
				t.Errorf("after %v (-before +after):\n%s", n, diff)
			}
		}
		if err := s.Apply(t.Context(), two()); err != nil {
			t.Errorf("after a reset: %v", err)
		}
	})
}
