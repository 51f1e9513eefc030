package rtnl

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"
)

func TestLoopback(t *testing.T) {
	links, err := Links()
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range links {
		if l.Name != "lo" {
			continue
		}
		list, err := Addresses(l.Index)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := Routes(l.Index); err != nil {
			t.Error(err)
		}
		if l.Up && len(list) == 0 {
			t.Error("lo is up and has no address")
		}
		return
	}
	t.Errorf("no lo among %+v", links)
}

func TestKernelRefuses(t *testing.T) {
	err := SetUp(1<<30, true)
	if !errors.Is(err, unix.ENODEV) && !errors.Is(err, unix.EPERM) {
		t.Errorf("got %v", err)
	}
}

func TestRouteRoundTrip(t *testing.T) {
	want := Route{
		Family: unix.AF_INET, Destination: netip.MustParsePrefix("10.1.0.0/16"),
		Gateway: netip.MustParseAddr("10.2.0.1"), Source: netip.MustParseAddr("10.2.0.5"),
		Index: 7, Scope: unix.RT_SCOPE_UNIVERSE, Protocol: unix.RTPROT_STATIC, Type: unix.RTN_UNICAST,
		Flags: unix.RTNH_F_ONLINK, Priority: 100, MTU: 1400,
	}
	got, table, err := parseRoute(want.encode(unix.RTM_NEWROUTE, 0).b[unix.SizeofNlMsghdr:])
	if err != nil || table != unix.RT_TABLE_MAIN || got != want {
		t.Errorf("got %+v in table %d, %v\nwant %+v", got, table, err, want)
	}
}

func TestAddressRoundTrip(t *testing.T) {
	for _, s := range []string{"10.1.2.3/16", "fd00::5/64", "fe80::1/64"} {
		want := netip.MustParsePrefix(s)
		got, index, err := parseAddress(addressRequest(unix.RTM_NEWADDR, 0, 9, want).b[unix.SizeofNlMsghdr:])
		if err != nil || index != 9 || got.Prefix != want {
			t.Errorf("%s: got %v on %d, %v", s, got, index, err)
		}
	}
	if got := broadcast(netip.MustParsePrefix("10.1.2.3/16")); string(got) != "\x0a\x01\xff\xff" {
		t.Errorf("broadcast address %v", got)
	}
}

// message is one answer of the kernel.
func message(kind uint16, body []byte) []byte {
	b := binary.NativeEndian.AppendUint32(nil, uint32(unix.SizeofNlMsghdr+len(body)))
	b = binary.NativeEndian.AppendUint16(b, kind)
	return append(append(b, make([]byte, 10)...), body...)
}

func FuzzAnswers(f *testing.F) {
	r := newRequest(0, 0, ifInfo(1, 2, 3))
	r.attr(unix.IFLA_IFNAME, []byte("eth0\x00"))
	r.attr(unix.IFLA_STATS64, make([]byte, 100))
	f.Add(append(message(unix.RTM_NEWLINK, r.b[unix.SizeofNlMsghdr:]), message(unix.NLMSG_DONE, nil)...))
	f.Add(message(unix.NLMSG_ERROR, []byte{1, 2, 3, 4}))
	route := Route{Family: unix.AF_INET6, Destination: netip.MustParsePrefix("fd00::/8"), MTU: 9}
	f.Add(message(unix.RTM_NEWROUTE, route.encode(0, 0).b[unix.SizeofNlMsghdr:]))
	f.Fuzz(func(_ *testing.T, b []byte) {
		// Whatever the bytes are, nothing may be read beyond their end.
		_, _ = answers(b, func(body []byte) error {
			_, _ = parseLink(body)
			_, _, _ = parseAddress(body)
			_, _, _ = parseRoute(body)
			return nil
		})
	})
}
