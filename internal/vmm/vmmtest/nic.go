package vmmtest

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// testTap boots a guest whose network device has a tap, and counts what comes
// out of that.
func testTap(t *testing.T, d Driver) {
	c := d.config(t)
	c.NICs[0].Tap = openTap(t, "vmmtest0")
	if d.Capabilities.VhostNet {
		f, err := os.OpenFile("/dev/vhost-net", os.O_RDWR|unix.O_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = f.Close() })
		c.NICs[0].VhostNet = f
	}
	m, g := d.boot(t, c)
	before := fromGuest(t, "vmmtest0")
	g.ask(t, "linkup", c.NICs[0].MAC)
	// The guest's kernel sends neighbour discovery by itself when a link
	// comes up; the host counts what comes out of the tap as received.
	until(t, "a packet of the guest arrives", func() bool { return fromGuest(t, "vmmtest0") > before })
	if exit := m.Kill(deadline(t)); exit.Err != nil {
		t.Errorf("Kill: %v", exit.Err)
	}
}

// openTap makes a tap device that is up. It goes when it is closed.
func openTap(t *testing.T, name string) *os.File {
	t.Helper()
	// Not by os.OpenFile: a tap cannot be polled before it has a name.
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Skipf("a tap device is needed: %v", err)
	}
	f := os.NewFile(uintptr(fd), name)
	t.Cleanup(func() { _ = f.Close() })
	request, err := unix.NewIfreq(name)
	if err != nil {
		t.Fatal(err)
	}
	request.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, request); err != nil {
		t.Fatalf("make tap %s: %v", name, err)
	}
	socket, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Close(socket) }()
	request.SetUint16(unix.IFF_UP)
	if err := unix.IoctlIfreq(socket, unix.SIOCSIFFLAGS, request); err != nil {
		t.Fatalf("bring tap %s up: %v", name, err)
	}
	return f
}

// fromGuest returns how many packets came out of the tap.
func fromGuest(t *testing.T, name string) int {
	t.Helper()
	text, err := os.ReadFile("/sys/class/net/" + name + "/statistics/rx_packets")
	if err != nil {
		t.Fatal(err)
	}
	var n int
	if _, err := fmt.Sscan(strings.TrimSpace(string(text)), &n); err != nil {
		t.Fatal(err)
	}
	return n
}
