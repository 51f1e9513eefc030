package network

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
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
		for name, f := range map[string]func() error{
			"Scan":   func() error { _, err := Scan(t.Context(), path); return err },
			"Attach": func() error { _, err := Attach(t.Context(), path); return err },
		} {
			if err := f(); err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%s of %s: got %v, want %q in it", name, path, err, want)
			}
		}
	}
	if _, err := Attach(t.Context(), "/proc/thread-self/ns/net"); !errors.Is(err, ErrHostNetwork) {
		t.Errorf("got %v, want ErrHostNetwork", err)
	}
}

func TestScan(t *testing.T) {
	path, _ := pod(t)
	in(t, path, func() error {
		l, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		v6, err := netlink.ParseAddr("fd00:99::2/64")
		if err != nil {
			return err
		}
		if err := netlink.AddrAdd(l, v6); err != nil && !errors.Is(err, unix.EOPNOTSUPP) && !errors.Is(err, unix.EACCES) {
			return fmt.Errorf("IPv6 address: %w", err)
		}
		idx := l.Attrs().Index
		// As Calico and Cilium have it: a gateway that only a route makes
		// reachable. The default route is listed first by the kernel.
		for _, r := range []*netlink.Route{
			{LinkIndex: idx, Scope: netlink.SCOPE_LINK, Dst: cidr(t, "169.254.1.1/32")},
			{LinkIndex: idx, Gw: net.ParseIP("169.254.1.1"), MTU: 1300, Priority: 7},
			{LinkIndex: idx, Dst: cidr(t, "10.98.0.0/16"), Gw: net.ParseIP("10.77.0.1"), Flags: int(netlink.FLAG_ONLINK), Src: net.ParseIP(podIP)},
		} {
			if err := netlink.RouteAdd(r); err != nil {
				return fmt.Errorf("route %v: %w", r, err)
			}
		}
		return netlink.NeighAdd(&netlink.Neigh{
			LinkIndex: idx, State: netlink.NUD_PERMANENT, IP: net.ParseIP("169.254.1.1"), HardwareAddr: parseMAC(t, "ee:ee:ee:ee:ee:ee"),
		})
	})
	nw, err := Scan(t.Context(), path)
	must(t, err)
	want := &agentv1.Network{
		Interfaces: []*agentv1.Interface{{Name: "eth0", Mac: podMAC, Mtu: 1400, Addresses: []string{podIP + "/24", "fd00:99::2/64"}}},
		Routes: []*agentv1.Route{
			{Destination: "169.254.1.1/32", Device: "eth0", Scope: unix.RT_SCOPE_LINK, Family: unix.AF_INET},
			{Destination: "10.98.0.0/16", Gateway: "10.77.0.1", Device: "eth0", Source: podIP, Flags: unix.RTNH_F_ONLINK, Family: unix.AF_INET},
			{Gateway: "169.254.1.1", Device: "eth0", Mtu: 1300, Priority: 7, Family: unix.AF_INET},
		},
		Neighbors: []*agentv1.Neighbor{{Address: "169.254.1.1", Mac: "ee:ee:ee:ee:ee:ee", Device: "eth0", State: unix.NUD_PERMANENT}},
	}
	if diff := cmp.Diff(want, nw, protocmp.Transform()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestRefusedRoutes(t *testing.T) {
	path, _ := pod(t)
	in(t, path, func() error {
		return netlink.RouteAdd(&netlink.Route{Type: unix.RTN_BLACKHOLE, Dst: cidr(t, "10.1.0.0/16")})
	})
	if _, err := Attach(t.Context(), path); !errors.Is(err, ErrUnsupported) || !strings.Contains(err.Error(), "10.1.0.0/16") {
		t.Errorf("got %v, want ErrUnsupported that names the route", err)
	}
}

func TestAttachEmpty(t *testing.T) {
	path := newNS(t, "empty")
	a, err := Attach(t.Context(), path)
	must(t, err)
	if a.Tap != nil || len(a.Network.GetInterfaces()) != 0 {
		t.Errorf("got tap %v and %v, want none", a.Tap, a.Network)
	}
	for range 2 {
		must(t, a.Close())
	}
}

func TestAttachTooMany(t *testing.T) {
	path, peer := pod(t)
	addVeth(t, path, peer, "net1", "02:00:00:00:00:03", "10.98.0.2/24")
	before := links(t, path)
	_, err := Attach(t.Context(), path)
	if !errors.Is(err, ErrUnsupported) || !strings.Contains(err.Error(), "eth0, net1") {
		t.Errorf("got %v, want ErrUnsupported that names eth0 and net1", err)
	}
	if diff := cmp.Diff(before, links(t, path)); diff != "" {
		t.Errorf("interfaces (-before +after):\n%s", diff)
	}
}

// TestFrames plays the guest on the tap: it asks for the peer's MAC, gets the
// answer, and pings it, all through the redirection.
func TestFrames(t *testing.T) {
	path, _ := pod(t)
	// What an earlier machine has left must not be in the way.
	crashed, err := Attach(t.Context(), path)
	must(t, err)
	must(t, crashed.Tap.Close())
	crashed.ns.Close()

	before := links(t, path)
	a, err := Attach(t.Context(), path)
	must(t, err)
	defer a.Close()
	if a.MAC != podMAC || a.MTU != 1400 {
		t.Errorf("got MAC %s and MTU %d, want %s and 1400", a.MAC, a.MTU, podMAC)
	}
	guest := &station{t: t, tap: a.Tap, mac: parseMAC(t, podMAC), ip: netip.MustParseAddr(podIP)}
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
	a, err := Attach(t.Context(), path)
	must(t, err)
	defer a.Close()
	in(t, path, func() error {
		l, err := netlink.LinkByName(a.tap)
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
	a, err := Attach(t.Context(), path)
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
func TestNoFDLeaks(t *testing.T) {
	path, peer := pod(t)
	count := func() int {
		e, err := os.ReadDir("/proc/self/fd")
		must(t, err)
		return len(e)
	}
	before := count()
	for range 3 {
		a, err := Attach(t.Context(), path)
		must(t, err)
		must(t, a.Close())
	}
	addVeth(t, path, peer, "net1", "02:00:00:00:00:03", "10.98.0.2/24")
	if _, err := Attach(t.Context(), path); err == nil {
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

func cidr(t *testing.T, s string) *net.IPNet {
	t.Helper()
	_, n, err := net.ParseCIDR(s)
	must(t, err)
	return n
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
