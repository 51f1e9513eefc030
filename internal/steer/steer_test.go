package steer

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/seed-efd44b36/kata/internal/thread"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// TestAttach connects to addresses and ports in a new network namespace, of which some
// are given to one of two listeners.
func TestAttach(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Skip("needs root, to make a network namespace")
	}
	err := thread.Run(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return err
		}
		lo, err := netlink.LinkByName("lo")
		if err == nil {
			err = netlink.LinkSetUp(lo)
		}
		if err != nil {
			return err
		}
		ns, err := os.Open("/proc/thread-self/ns/net")
		if err != nil {
			return err
		}
		defer ns.Close()
		var conf net.ListenConfig
		conf.SetMultipathTCP(false)
		var listeners [2]*net.TCPListener
		for i, address := range []string{"127.0.0.1:0", "[::1]:0"} {
			l, err := conf.Listen(context.Background(), "tcp", address)
			if err != nil {
				return err
			}
			defer l.Close()
			listeners[i] = l.(*net.TCPListener)
		}
		s, err := Attach(ns, []Rule{
			{Protocol: unix.IPPROTO_UDP, Address: netip.MustParseAddr("127.0.0.2"), Socket: listeners[1]},
			{Protocol: unix.IPPROTO_TCP, Address: netip.MustParseAddr("127.0.0.2"), Port: 53, Socket: listeners[0]},
			{Protocol: unix.IPPROTO_TCP, Address: netip.MustParseAddr("::1"), Socket: listeners[1]},
		})
		if err != nil {
			return err
		}
		defer s.Close()
		for _, tt := range []struct {
			address string
			given   bool
		}{
			{"127.0.0.2:53", true},
			{"127.0.0.2:54", false},
			{"127.0.0.3:53", false},
			{"[::1]:53", true},
			{"[::1]:54", true},
		} {
			d := net.Dialer{Timeout: time.Minute}
			conn, err := d.DialContext(t.Context(), "tcp", tt.address)
			if (err == nil) != tt.given {
				t.Errorf("%s: %v, given %v", tt.address, err, tt.given)
			}
			if err == nil {
				_ = conn.Close()
			}
		}
		return nil
	})
	if errors.Is(err, errors.ErrUnsupported) {
		t.Skip("the kernel has no sk_lookup: ", err)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func TestAttachRefuses(t *testing.T) {
	t.Parallel()
	for _, n := range []int{0, maxRules + 1} {
		if s, err := Attach(os.Stdin, make([]Rule, n)); err == nil {
			_ = s.Close()
			t.Errorf("%d rules were taken", n)
		}
	}
}
