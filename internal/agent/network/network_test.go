package network

import (
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"testing"

	agentv1 "github.com/seed-efd44b36/kata/api/agent/v1"
	"golang.org/x/sys/unix"
)

// inNetwork runs test on a thread that has a network namespace of its own, with
// a tap device of the given hardware address in it.
func inNetwork(t *testing.T, mac string, test func(t *testing.T)) {
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
		for _, args := range []string{"tuntap add name tap0 mode tap", "link set tap0 address " + mac} {
			if _, err := ip(t, strings.Fields(args)...); err != nil {
				t.Errorf("ip %s: %v", args, err)
				return
			}
		}
		test(t)
	}()
	<-done
}

// ip runs ip(8) in the network namespace of the calling thread.
func ip(t *testing.T, args ...string) ([]byte, error) {
	return exec.CommandContext(t.Context(), "ip", args...).Output()
}

func ipJSON(t *testing.T, to any, args ...string) {
	t.Helper()
	b, err := ip(t, append([]string{"-j"}, args...)...)
	if err == nil {
		err = json.Unmarshal(b, to)
	}
	if err != nil {
		t.Errorf("ip %v: %v", args, err)
	}
}

func TestApply(t *testing.T) {
	const mac = "02:00:00:00:00:07"
	network := func(addresses ...string) *agentv1.Network {
		return &agentv1.Network{
			Interfaces: []*agentv1.Interface{{Name: "eth0", Mac: mac, Mtu: 1400, Addresses: addresses}},
			Routes: []*agentv1.Route{
				{Gateway: "10.9.0.1", Device: "eth0", Family: unix.AF_INET},
				{Destination: "0.0.0.0/0", Gateway: "169.254.1.1", Device: "eth0", Family: unix.AF_INET, Priority: 50, Flags: unix.RTNH_F_ONLINK},
				{Destination: "10.99.0.0/16", Device: "eth0", Family: unix.AF_INET, Scope: unix.RT_SCOPE_LINK, Mtu: 1300},
				{Destination: "::/0", Gateway: "fd00:9::1", Device: "eth0", Family: unix.AF_INET6},
			},
			Neighbors: []*agentv1.Neighbor{{Address: "10.9.0.1", Mac: "02:00:00:00:00:01", Device: "eth0", State: unix.NUD_PERMANENT}},
		}
	}
	inNetwork(t, mac, func(t *testing.T) {
		check := func(want ...string) {
			t.Helper()
			var links []struct {
				Name  string   `json:"ifname"`
				MTU   int      `json:"mtu"`
				Flags []string `json:"flags"`
				Addr  []struct {
					Local string `json:"local"`
					Bits  int    `json:"prefixlen"`
				} `json:"addr_info"`
			}
			ipJSON(t, &links, "addr", "show", "dev", "eth0")
			if len(links) != 1 || links[0].MTU != 1400 || !slices.Contains(links[0].Flags, "UP") {
				t.Errorf("interface: %+v", links)
				return
			}
			var got []string
			for _, i := range links[0].Addr {
				if !strings.HasPrefix(i.Local, "fe80:") {
					got = append(got, i.Local)
				}
			}
			slices.Sort(got)
			if !slices.Equal(got, want) {
				t.Errorf("addresses %v, want %v", got, want)
			}
		}
		for range 2 { // again changes nothing
			if err := Apply(t.Context(), network("10.9.0.5/24", "fd00:9::5/64")); err != nil {
				t.Error(err)
				return
			}
			check("10.9.0.5", "fd00:9::5")
			var routes []struct {
				Dst, Gateway string
				Metric       int
			}
			ipJSON(t, &routes, "route", "show")
			got := map[string]int{}
			for _, r := range routes {
				got[r.Dst+" "+r.Gateway] = r.Metric
			}
			if len(got) != 4 || got["default 169.254.1.1"] != 50 {
				t.Errorf("routes: %+v", routes)
			}
			ipJSON(t, &routes, "-6", "route", "show", "default")
			if len(routes) != 1 || routes[0].Gateway != "fd00:9::1" {
				t.Errorf("IPv6 routes: %+v", routes)
			}
			var neighbors []struct {
				Dst, Lladdr string
				State       []string
			}
			ipJSON(t, &neighbors, "neigh", "show", "nud", "permanent")
			if len(neighbors) != 1 || neighbors[0].Dst != "10.9.0.1" || neighbors[0].Lladdr != "02:00:00:00:00:01" {
				t.Errorf("neighbours: %+v", neighbors)
			}
		}
		// Another state: what is not in it goes.
		if err := Apply(t.Context(), &agentv1.Network{Interfaces: network("10.9.0.6/24").GetInterfaces()}); err != nil {
			t.Error(err)
		}
		check("10.9.0.6")
		var routes []struct{ Dst string }
		ipJSON(t, &routes, "route", "show")
		if len(routes) != 1 || routes[0].Dst != "10.9.0.0/24" {
			t.Errorf("routes left: %+v", routes)
		}
	})
}

func TestInvalid(t *testing.T) {
	const mac = "02:00:00:00:00:08"
	for _, tt := range []struct {
		name string
		n    *agentv1.Network
	}{
		{"hardware address", &agentv1.Network{Interfaces: []*agentv1.Interface{{Name: "eth0", Mac: "x"}}}},
		{"name", &agentv1.Network{Interfaces: []*agentv1.Interface{{Name: "../eth0", Mac: mac}}}},
		{"long name", &agentv1.Network{Interfaces: []*agentv1.Interface{{Name: "abcdefghijklmnop", Mac: mac}}}},
		{"address", &agentv1.Network{Interfaces: []*agentv1.Interface{{Name: "eth0", Mac: mac, Addresses: []string{"10.0.0.1"}}}}},
		{"device of a route", &agentv1.Network{Routes: []*agentv1.Route{{Device: "no", Family: unix.AF_INET}}}},
		{"gateway", &agentv1.Network{Routes: []*agentv1.Route{{Device: "lo", Gateway: "x", Family: unix.AF_INET}}}},
		{"family", &agentv1.Network{Routes: []*agentv1.Route{{Device: "lo", Destination: "10.0.0.0/8", Family: 77}}}},
		{"neighbour", &agentv1.Network{Neighbors: []*agentv1.Neighbor{{Device: "lo", Address: "x"}}}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if err := Apply(t.Context(), tt.n); !errors.Is(err, ErrInvalid) {
				t.Errorf("got %v", err)
			}
		})
	}
}
