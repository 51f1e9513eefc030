package network

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	agentv1 "github.com/seed-efd44b36/kata/api/agent/v1"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/testing/protocmp"
)

const (
	podMAC  = "02:00:00:00:00:01"
	peerMAC = "02:00:00:00:00:02"
	podIP   = "10.99.0.2"
	peerIP  = "10.99.0.1"
)

// newNS makes a namespace for the test.
func newNS(t *testing.T, name string) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root, to make network namespaces")
	}
	path := filepath.Join(t.TempDir(), name)
	must(t, NewNS(path))
	t.Cleanup(func() { must(t, DeleteNS(t.Context(), path)) })
	return path
}

// in runs f in a namespace.
func in(t *testing.T, path string, f func() error) {
	t.Helper()
	ns, err := os.Open(path)
	must(t, err)
	defer ns.Close()
	must(t, inNS(ns, f))
}

// pod makes a namespace with an interface eth0 as a CNI plugin does, and one
// for its peer.
func pod(t *testing.T) (path, peer string) {
	t.Helper()
	path, peer = newNS(t, "pod"), newNS(t, "peer")
	addVeth(t, path, peer, "eth0", podMAC, podIP+"/24")
	return path, peer
}

func addVeth(t *testing.T, path, peer, name, mac, addr string) {
	t.Helper()
	peerNS, err := os.Open(peer)
	must(t, err)
	defer peerNS.Close()
	in(t, path, func() error {
		attrs := netlink.NewLinkAttrs()
		attrs.Name, attrs.MTU, attrs.HardwareAddr = name, 1400, parseMAC(t, mac)
		v := &netlink.Veth{
			LinkAttrs: attrs, PeerName: name, PeerMTU: 1400,
			PeerHardwareAddr: parseMAC(t, peerMAC), PeerNamespace: netlink.NsFd(peerNS.Fd()),
		}
		if err := netlink.LinkAdd(v); err != nil {
			return fmt.Errorf("veth: %w", err)
		}
		return up(name, addr)
	})
	in(t, peer, func() error { return up(name, peerIP+"/24") })
}

func up(name, addr string) error {
	l, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	a, err := netlink.ParseAddr(addr)
	if err != nil {
		return err
	}
	if err := netlink.AddrAdd(l, a); err != nil {
		return fmt.Errorf("address: %w", err)
	}
	return netlink.LinkSetUp(l)
}

func TestNewNSAndDelete(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root, to make network namespaces")
	}
	path := filepath.Join(t.TempDir(), "ns")
	must(t, NewNS(path))
	if err := NewNS(path); !errors.Is(err, fs.ErrExist) {
		t.Errorf("NewNS over another: got %v, want fs.ErrExist", err)
	}
	f, err := OpenNS(path)
	must(t, err)
	f.Close()
	for range 2 {
		must(t, DeleteNS(t.Context(), path))
	}
	if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the file is left: %v", err)
	}
	if err := NewNS(filepath.Join(path, "absent", "ns")); err == nil {
		t.Error("NewNS in no directory: no error")
	}
}

func TestRefusedNamespaces(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	must(t, os.WriteFile(file, nil, 0o600))
	fifo := filepath.Join(t.TempDir(), "fifo")
	must(t, unix.Mkfifo(fifo, 0o600))
	for path, want := range map[string]string{
		"/proc/self/ns/net": "host's network",
		"/proc/self/ns/uts": "not a network namespace",
		file:                "not a namespace",
		fifo:                "not a namespace",
		file + "-absent":    "is gone",
	} {
		if _, err := Attach(t.Context(), path, 1); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, want %q in it", path, err, want)
		}
	}
	if _, err := Attach(t.Context(), "/proc/thread-self/ns/net", 1); !errors.Is(err, ErrHostNetwork) {
		t.Errorf("got %v, want ErrHostNetwork", err)
	}
}

// ip runs commands of ip(8) in a namespace, one a line.
func ip(t *testing.T, path, script string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "nsenter", "--net="+path, "ip", "-batch", "-")
	cmd.Stdin = strings.NewReader(script)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("ip: %v: %s", err, out)
	}
}

// attach attaches a namespace for the length of the test.
func attach(t *testing.T, path string, least int) *Attachment {
	t.Helper()
	a, err := Attach(t.Context(), path, least)
	must(t, err)
	t.Cleanup(func() { must(t, a.Close()) })
	return a
}

func refresh(t *testing.T, a *Attachment) *agentv1.Network {
	t.Helper()
	nw, err := tryRefresh(t, a)
	must(t, err)
	return nw
}

func tryRefresh(t *testing.T, a *Attachment) (nw *agentv1.Network, err error) {
	t.Helper()
	err = inNS(a.ns, func() error {
		nw, err = a.refresh()
		return err
	})
	return nw, err
}

func hops(device, gateway string) []*agentv1.Hop {
	return []*agentv1.Hop{{Device: device, Gateway: gateway, Weight: 1}}
}

// TestScan: what the guest is told is what CNI plugins have made.
func TestScan(t *testing.T) {
	path, peer := pod(t)
	const mac1 = "02:00:00:00:00:03"
	addVeth(t, path, peer, "net1", mac1, "10.98.0.2/24")
	// As Calico and Cilium have it: a gateway that only a route makes
	// reachable. As the plugin ptp has it: no route to the address's own
	// network. As sbr has it: a table of its own for an address.
	ip(t, path, `
addr add fd00:99::2/64 dev eth0 nodad
addr add 10.97.0.2 peer 10.97.0.1 dev net1
route add 169.254.1.1 dev eth0 scope link
route add default via 169.254.1.1 mtu 1300 metric 7
route add default via 169.254.1.1 dev eth0 onlink metric 8 advmss 1000
route add 10.96.0.0/16 via 10.77.0.1 dev eth0 onlink src 10.99.0.2
route del 10.98.0.0/24 dev net1
route add blackhole 10.95.0.0/16
route add 10.94.0.0/16 nexthop via 169.254.1.1 dev eth0 weight 3 nexthop via 10.97.0.1 dev net1
route add default via 10.97.0.1 dev net1 table 100
route add 10.93.0.0/16 via inet6 fe80::1 dev net1
route add default via fe80::1 dev eth0 metric 1024
route append default via fe80::2 dev net1 metric 1024
rule add from 10.98.0.2 table 100 priority 500
rule add not fwmark 3/7 iif net1 table 100 priority 501
neigh add 169.254.1.1 lladdr ee:ee:ee:ee:ee:ee dev eth0 nud permanent
neigh add fd00:99::9 lladdr ee:ee:ee:ee:ee:e6 dev eth0 nud permanent
`)
	nw := attach(t, path, 1).Network()
	for _, i := range nw.GetInterfaces() {
		// The kernel's own, of the hardware address; on some hosts still to come.
		i.Addresses = slices.DeleteFunc(i.GetAddresses(), func(a *agentv1.Address) bool { return a.GetScope() == unix.RT_SCOPE_LINK })
	}
	nw.Routes = slices.DeleteFunc(nw.GetRoutes(), func(r *agentv1.Route) bool { return r.GetDestination() == "fe80::/64" })
	const kernel, boot, unicast, v4, v6 = unix.RTPROT_KERNEL, unix.RTPROT_BOOT, unix.RTN_UNICAST, unix.AF_INET, unix.AF_INET6
	const main, link = unix.RT_TABLE_MAIN, unix.RT_SCOPE_LINK
	gateway := func(gateway string) []*agentv1.Hop {
		return []*agentv1.Hop{{Device: "eth0", Gateway: gateway, Weight: 1, Flags: unix.RTNH_F_ONLINK}}
	}
	want := &agentv1.Network{
		Interfaces: []*agentv1.Interface{
			{Name: "eth0", Mac: podMAC, Device: DeviceMAC(0).String(), Mtu: 1400, Addresses: []*agentv1.Address{
				{Prefix: podIP + "/24", Broadcast: "10.99.0.255"}, {Prefix: "fd00:99::2/64"},
			}},
			{Name: "net1", Mac: mac1, Device: DeviceMAC(1).String(), Mtu: 1400, Addresses: []*agentv1.Address{
				{Prefix: "10.98.0.2/24", Broadcast: "10.98.0.255"}, {Prefix: "10.97.0.2/32", Peer: "10.97.0.1/32"},
			}},
		},
		Routes: []*agentv1.Route{
			{Destination: "10.95.0.0/16", Type: unix.RTN_BLACKHOLE, Table: main, Protocol: boot, Family: v4},
			{Destination: "10.97.0.1/32", Hops: hops("net1", ""), Source: "10.97.0.2", Scope: link, Type: unicast, Table: main, Protocol: kernel, Family: v4},
			{Destination: "10.99.0.0/24", Hops: hops("eth0", ""), Source: podIP, Scope: link, Type: unicast, Table: main, Protocol: kernel, Family: v4},
			{Destination: "169.254.1.1/32", Hops: hops("eth0", ""), Scope: link, Type: unicast, Table: main, Protocol: boot, Family: v4},
			{Destination: "fd00:99::/64", Hops: hops("eth0", ""), Type: unicast, Table: main, Protocol: kernel, Priority: 256, Family: v6},
			{Destination: "10.93.0.0/16", Hops: hops("net1", "fe80::1"), Type: unicast, Table: main, Protocol: boot, Family: v4},
			{Destination: "10.94.0.0/16", Hops: []*agentv1.Hop{{Device: "eth0", Gateway: "169.254.1.1", Weight: 3}, hops("net1", "10.97.0.1")[0]}, Type: unicast, Table: main, Protocol: boot, Family: v4},
			{Destination: "10.96.0.0/16", Hops: gateway("10.77.0.1"), Source: podIP, Type: unicast, Table: main, Protocol: boot, Family: v4},
			{Hops: hops("net1", "10.97.0.1"), Type: unicast, Table: 100, Protocol: boot, Family: v4},
			{Hops: hops("eth0", "169.254.1.1"), Type: unicast, Table: main, Protocol: boot, Priority: 7, Metrics: map[uint32]uint32{unix.RTAX_MTU: 1300}, Family: v4},
			{Hops: gateway("169.254.1.1"), Type: unicast, Table: main, Protocol: boot, Priority: 8, Metrics: map[uint32]uint32{unix.RTAX_ADVMSS: 1000}, Family: v4},
			{Hops: []*agentv1.Hop{hops("eth0", "fe80::1")[0], hops("net1", "fe80::2")[0]}, Type: unicast, Table: main, Protocol: boot, Priority: 1024, Family: v6},
		},
		Rules: []*agentv1.Rule{
			{Priority: 500, Family: v4, Table: 100, Source: "10.98.0.2/32"},
			{Priority: 501, Family: v4, Table: 100, Mark: 3, Mask: 7, Input: "net1", Invert: true},
		},
		Neighbors: []*agentv1.Neighbor{
			{Address: "169.254.1.1", Mac: "ee:ee:ee:ee:ee:ee", Device: "eth0", State: unix.NUD_PERMANENT},
			{Address: "fd00:99::9", Mac: "ee:ee:ee:ee:ee:e6", Device: "eth0", State: unix.NUD_PERMANENT},
		},
	}
	if diff := cmp.Diff(want, nw, protocmp.Transform()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestRefused(t *testing.T) {
	for _, tt := range []struct{ name, script, want string }{
		{"local route", "route add local 10.1.0.0/16 dev eth0 table main", "10.1.0.0/16"},
		{"rule by port", "rule add dport 80 table 100 priority 77", "rule 77"},
		{"rule that refuses", "rule add from 10.1.0.0/16 priority 78 prohibit", "rule 78"},
		{"interface without an address", "tuntap add name tun0 mode tun\nlink set tun0 up", "tun0"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			path, _ := pod(t)
			ip(t, path, tt.script)
			_, err := Attach(t.Context(), path, 1)
			if !errors.Is(err, ErrUnsupported) || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want ErrUnsupported that names %s", err, tt.want)
			}
		})
	}
}

// TestTaken has two machines ask for one namespace, at once and one after the other.
func TestTaken(t *testing.T) {
	path, _ := pod(t)
	first := attach(t, path, 0)
	filters := func() string {
		out, err := exec.Command("nsenter", "--net="+path, "tc", "filter", "show", "dev", "eth0", "ingress").CombinedOutput()
		must(t, err)
		return string(out)
	}
	before := filters()
	if _, err := Attach(t.Context(), path, 1); !errors.Is(err, ErrUnsupported) || !strings.Contains(err.Error(), "interface eth0 is another virtual machine's") {
		t.Errorf("a second machine: got %v", err)
	}
	if after := filters(); after != before || !strings.Contains(after, "mirred") {
		t.Errorf("the first machine's filters are\n%s\nand were\n%s", after, before)
	}
	must(t, first.Close())
	attach(t, path, 0)
}

func TestAttachEmpty(t *testing.T) {
	path := newNS(t, "empty")
	a, err := Attach(t.Context(), path, 1)
	must(t, err)
	if nics := a.NICs(); len(nics) != 1 || nics[0].Tap == nil {
		t.Errorf("got %v, want a spare device", nics)
	}
	if nw := refresh(t, a); len(nw.GetInterfaces()) != 0 {
		t.Errorf("got %v, want no interface", nw)
	}
	for range 2 {
		must(t, a.Close())
	}
}

// TestLate: interfaces that come after the machine get the devices that are
// left, and give them back.
func TestLate(t *testing.T) {
	path, peer := newNS(t, "pod"), newNS(t, "peer")
	a := attach(t, path, 2)
	devices := a.NICs()
	if len(devices) != 2 || devices[0].MAC == devices[1].MAC {
		t.Fatalf("got %v, want two devices", devices)
	}
	addVeth(t, path, peer, "eth0", podMAC, podIP+"/24")
	nw := refresh(t, a)
	if i := nw.GetInterfaces(); len(i) != 1 || i[0].GetName() != "eth0" || i[0].GetMac() != podMAC || i[0].GetDevice() != devices[0].MAC || i[0].GetMtu() != 1400 {
		t.Errorf("got %v, want eth0 on the first device", nw)
	}
	guest := &station{t: t, tap: devices[0].Tap, mac: parseMAC(t, podMAC), ip: netip.MustParseAddr(podIP)}
	guest.ping(netip.MustParseAddr(peerIP), guest.arp(netip.MustParseAddr(peerIP)))

	addVeth(t, path, peer, "net1", "02:00:00:00:00:03", "10.98.0.2/24")
	addVeth(t, path, peer, "net2", "02:00:00:00:00:04", "10.97.0.2/24")
	nw, err := tryRefresh(t, a)
	if !errors.Is(err, ErrUnsupported) || !strings.Contains(err.Error(), "interface net2 came after") || len(nw.GetInterfaces()) != 2 {
		t.Errorf("got %v and %v, want eth0 and net1, and an error that names net2", nw, err)
	}
	// The first goes; its device is free again.
	ip(t, path, "link delete eth0")
	nw = refresh(t, a)
	if i := nw.GetInterfaces(); len(i) != 2 || i[0].GetDevice() != devices[1].MAC || i[1].GetName() != "net2" || i[1].GetDevice() != devices[0].MAC {
		t.Errorf("got %v, want net1 on the second device and net2 on the first", nw)
	}
	ip(t, path, "link set net2 mtu 9000")
	if nw = refresh(t, a); nw.GetInterfaces()[1].GetMtu() != 9000 {
		t.Errorf("got %v, want the new MTU", nw)
	}
	in(t, path, func() error {
		l, err := netlink.LinkByName(a.nics[0].tap)
		if err == nil && l.Attrs().MTU != 9000 {
			t.Errorf("the tap has MTU %d, want 9000", l.Attrs().MTU)
		}
		return err
	})
	// What the guest sends is the interface's, or nobody's.
	taps := func() (up []bool) {
		in(t, path, func() error {
			for _, n := range a.nics {
				l, err := netlink.LinkByName(n.tap)
				if err != nil {
					return err
				}
				up = append(up, l.Attrs().Flags&net.FlagUp != 0)
			}
			return nil
		})
		return up
	}
	if up := taps(); !slices.Equal(up, []bool{true, true}) {
		t.Errorf("taps that are joined: up %v", up)
	}
	ip(t, path, "link delete net2")
	refresh(t, a)
	if up := taps(); !slices.Equal(up, []bool{false, true}) {
		t.Errorf("the first has lost its interface: up %v", up)
	}
}

// TestFollow: the guest is told of what changes, and of nothing else.
func TestFollow(t *testing.T) {
	path, peer := newNS(t, "pod"), newNS(t, "peer")
	a := attach(t, path, 1)
	told := make(chan []string, 10)
	refuse := errors.New("refused")
	tell := func(_ context.Context, nw *agentv1.Network) error {
		names := []string{}
		for _, i := range nw.GetInterfaces() {
			if i.GetName() == "bad" {
				return refuse
			}
			names = append(names, i.GetName())
		}
		told <- append(names, fmt.Sprintf("%d idle", len(nw.GetIdle())))
		return nil
	}
	f, err := a.Follow(t.Context(), tell, slog.New(slog.NewTextHandler(t.Output(), nil)))
	must(t, err)
	expect := func(want ...string) {
		t.Helper()
		for {
			select {
			case got := <-told:
				if slices.Equal(want, got) {
					return
				}
			case <-time.After(10 * time.Second):
				t.Fatalf("%v were not told of", want)
			}
		}
	}
	addVeth(t, path, peer, "eth0", podMAC, podIP+"/24")
	expect("eth0", "0 idle")
	addVeth(t, path, peer, "net1", "02:00:00:00:00:03", "10.98.0.2/24") // none left for it
	ip(t, path, "link delete eth0")
	expect("net1", "0 idle")
	ip(t, path, "link delete net1")
	expect("1 idle")
	must(t, f.Close())

	// As it is already.
	f, err = a.Follow(t.Context(), tell, slog.New(slog.DiscardHandler))
	must(t, err)
	must(t, f.Close())
	select {
	case got := <-told:
		t.Errorf("told of %v without a change", got)
	default:
	}
	addVeth(t, path, peer, "bad", podMAC, podIP+"/24")
	if _, err := a.Follow(t.Context(), tell, slog.New(slog.DiscardHandler)); !errors.Is(err, refuse) {
		t.Errorf("got %v, want the guest's error", err)
	}
}

// counter counts what is logged.
type counter struct {
	slog.Handler

	n *int
}

// Enabled lets all through.
func (counter) Enabled(context.Context, slog.Level) bool { return true }

// Handle counts.
func (c counter) Handle(context.Context, slog.Record) error { *c.n++; return nil }

// TestFollowTellsAFailureOnce: a guest that refuses must not fill the log.
func TestFollowTellsAFailureOnce(t *testing.T) {
	path, peer := newNS(t, "pod"), newNS(t, "peer")
	a := attach(t, path, 1)
	told := make(chan struct{}, 100)
	tell := func(context.Context, *agentv1.Network) error {
		told <- struct{}{}
		return errors.New("refused")
	}
	var logged int
	f, err := a.Follow(t.Context(), tell, slog.New(counter{slog.DiscardHandler, &logged}))
	must(t, err)
	addVeth(t, path, peer, "eth0", podMAC, podIP+"/24")
	for i := range 4 {
		ip(t, path, fmt.Sprintf("address add 10.98.0.%d/24 dev eth0", 100+i))
		select {
		case <-told:
		case <-time.After(10 * time.Second):
			t.Fatal("the guest was not told")
		}
	}
	must(t, f.Close())
	if logged != 1 {
		t.Errorf("%d lines in the log, want 1", logged)
	}
}

// TestFrames plays the guest on the tap: it asks for the peer's MAC, gets the
// answer, and pings it, all through the redirection.
func TestFrames(t *testing.T) {
	path, _ := pod(t)
	// What an earlier machine has left must not be in the way.
	crashed, err := Attach(t.Context(), path, 1)
	must(t, err)
	must(t, crashed.nics[0].file.Close())
	crashed.ns.Close()

	t.Run("a machine to be", func(t *testing.T) {
		testFrames(t, path, func() (*Attachment, error) { return Attach(t.Context(), path, 1) })
	})
	t.Run("a machine that runs", func(t *testing.T) {
		own := newNS(t, "waiting")
		first, err := AttachOwn(t.Context(), own, 1)
		must(t, err)
		d, err := first.Devices()
		must(t, err)
		must(t, first.Close())
		testFrames(t, path, func() (*Attachment, error) { return d.Attach(t.Context(), path) })
		must(t, d.NS.Close())
		must(t, d.Taps[0].Close())
	})
}

// testFrames sends frames through an attachment of a pod, which it ends.
func testFrames(t *testing.T, path string, attach func() (*Attachment, error)) {
	t.Helper()
	before := links(t, path)
	a, err := attach()
	must(t, err)
	defer a.Close()
	nic := a.NICs()[0]
	if want := DeviceMAC(0).String(); nic.MAC != want {
		t.Errorf("got MAC %s, want %s", nic.MAC, want)
	}
	guest := &station{t: t, tap: nic.Tap, mac: parseMAC(t, podMAC), ip: netip.MustParseAddr(podIP)}
	reply := guest.arp(netip.MustParseAddr(peerIP))
	if got := net.HardwareAddr(reply).String(); got != peerMAC {
		t.Errorf("answer to ARP: %s, want %s", got, peerMAC)
	}
	guest.ping(netip.MustParseAddr(peerIP), parseMAC(t, peerMAC))

	must(t, a.Close())
	if diff := cmp.Diff(before, links(t, path)); diff != "" {
		t.Errorf("interfaces (-before +after):\n%s", diff)
	}
	in(t, path, func() error {
		l, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		qs, err := netlink.QdiscList(l)
		for _, q := range qs {
			if q.Type() == "ingress" {
				t.Errorf("qdisc is left: %v", q)
			}
		}
		return err
	})
}

func TestTapIsMute(t *testing.T) {
	path, _ := pod(t)
	a, err := Attach(t.Context(), path, 1)
	must(t, err)
	defer a.Close()
	in(t, path, func() error {
		l, err := netlink.LinkByName(a.nics[0].tap)
		if err != nil {
			return err
		}
		addrs, err := netlink.AddrList(l, netlink.FAMILY_ALL)
		if len(addrs) > 0 {
			t.Errorf("the tap has addresses: %v", addrs)
		}
		if l.Attrs().MTU != 1400 || l.Attrs().Flags&net.FlagUp == 0 {
			t.Errorf("tap: MTU %d and flags %s, want 1400 and up", l.Attrs().MTU, l.Attrs().Flags)
		}
		return err
	})
}

// TestCloseAfterTheInterfaceIsGone: the engine may take it away first.
func TestCloseAfterTheInterfaceIsGone(t *testing.T) {
	path, _ := pod(t)
	a, err := Attach(t.Context(), path, 1)
	must(t, err)
	in(t, path, func() error {
		l, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		return netlink.LinkDel(l)
	})
	must(t, a.Close())
}

// TestNoFDLeaks attaches and closes, and fails to attach.
// TestTapsOfAnOwnNamespaceStayInIt: they go with it.
func TestTapsOfAnOwnNamespaceStayInIt(t *testing.T) {
	path, _ := pod(t)
	for _, test := range []struct {
		name   string
		attach func(context.Context, string, int) (*Attachment, error)
		want   int
	}{
		{"another's", Attach, 0},
		{"own", AttachOwn, 2},
	} {
		a, err := test.attach(t.Context(), path, 2)
		must(t, err)
		must(t, a.Close())
		in(t, path, func() error {
			links, err := netlink.LinkList()
			taps := 0
			for _, l := range links {
				if l.Type() == "tuntap" {
					taps++
				}
			}
			if taps != test.want {
				t.Errorf("%s: %d taps are left, want %d", test.name, taps, test.want)
			}
			return err
		})
	}
}

func TestNoFDLeaks(t *testing.T) {
	path, _ := pod(t)
	count := func() int {
		e, err := os.ReadDir("/proc/self/fd")
		must(t, err)
		return len(e)
	}
	before := count()
	for range 3 {
		a, err := Attach(t.Context(), path, 1)
		must(t, err)
		must(t, a.Close())
	}
	ip(t, path, "tuntap add name tun0 mode tun\nlink set tun0 up")
	if _, err := Attach(t.Context(), path, 1); err == nil {
		t.Error("no error")
	}
	if got := count(); got != before {
		t.Errorf("%d files are open, %d were before", got, before)
	}
}

// links are the names of the interfaces.
func links(t *testing.T, path string) []string {
	t.Helper()
	var names []string
	in(t, path, func() error {
		all, err := netlink.LinkList()
		for _, l := range all {
			names = append(names, l.Attrs().Name)
		}
		return err
	})
	return names
}

// station speaks Ethernet on a tap, as a guest does.
type station struct {
	t   *testing.T
	tap *os.File
	mac net.HardwareAddr
	ip  netip.Addr
}

// vnetHeader is the length of the virtio-net header before each frame.
const vnetHeader = 10

func (s *station) send(frame []byte) {
	s.t.Helper()
	_, err := s.tap.Write(append(make([]byte, vnetHeader), frame...))
	must(s.t, err)
}

// receive returns the first frame that match accepts.
func (s *station) receive(match func([]byte) bool) []byte {
	s.t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	buf := make([]byte, 65536)
	for time.Now().Before(deadline) {
		fds := []unix.PollFd{{Fd: int32(s.tap.Fd()), Events: unix.POLLIN}}
		if n, err := unix.Poll(fds, 100); err != nil && !errors.Is(err, unix.EINTR) {
			s.t.Fatal(err)
		} else if n <= 0 {
			continue
		}
		n, err := s.tap.Read(buf)
		must(s.t, err)
		if frame := buf[vnetHeader:n]; match(frame) {
			return bytes.Clone(frame)
		}
	}
	s.t.Fatal("no answer came through the tap in 10 s")
	return nil
}

func (s *station) arp(ip netip.Addr) []byte {
	s.t.Helper()
	frame := bytes.Repeat([]byte{0xff}, 6)
	frame = append(frame, s.mac...)
	frame = append(frame, 0x08, 0x06, 0, 1, 0x08, 0, 6, 4, 0, 1)
	frame = append(frame, s.mac...)
	frame = append(frame, s.ip.AsSlice()...)
	frame = append(frame, make([]byte, 6)...)
	frame = append(frame, ip.AsSlice()...)
	s.send(frame)
	answer := s.receive(func(f []byte) bool {
		return len(f) >= 42 && f[12] == 0x08 && f[13] == 0x06 && f[21] == 2 && bytes.Equal(f[28:32], ip.AsSlice())
	})
	return answer[22:28]
}

func (s *station) ping(ip netip.Addr, mac net.HardwareAddr) {
	s.t.Helper()
	icmp := []byte{8, 0, 0, 0, 0x12, 0x34, 0, 1, 'k', 'a', 't', 'a'}
	binary.BigEndian.PutUint16(icmp[2:], checksum(icmp))
	header := []byte{0x45, 0, 0, byte(20 + len(icmp)), 0, 0, 0, 0, 64, 1, 0, 0}
	header = append(header, s.ip.AsSlice()...)
	header = append(header, ip.AsSlice()...)
	binary.BigEndian.PutUint16(header[10:], checksum(header))
	frame := append(append([]byte(nil), mac...), s.mac...)
	frame = append(frame, 0x08, 0x00)
	frame = append(append(frame, header...), icmp...)
	s.send(frame)
	s.receive(func(f []byte) bool {
		return len(f) >= 46 && f[12] == 0x08 && f[13] == 0x00 && f[23] == 1 && f[34] == 0 && bytes.HasSuffix(f[:46], []byte("kata"))
	})
}

func checksum(b []byte) uint16 {
	var sum uint32
	for i := 0; i+1 < len(b); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}

func parseMAC(t *testing.T, s string) net.HardwareAddr {
	t.Helper()
	m, err := net.ParseMAC(s)
	must(t, err)
	return m
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
