package cni

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// namespace is a network namespace with a path.
type namespace struct{ path string }

// do runs fn on a thread that is in the namespace, and that ends with it.
func (ns namespace) do(t testing.TB, fn func() error) {
	t.Helper()
	if err := ns.try(fn); err != nil {
		t.Fatal(err)
	}
}

func (ns namespace) try(fn func() error) error {
	done := make(chan error)
	go func() { // ends with fn; its thread is not used again
		runtime.LockOSThread()
		fd, err := unix.Open(ns.path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err == nil {
			err = unix.Setns(fd, unix.CLONE_NEWNET)
			_ = unix.Close(fd)
		}
		if err == nil {
			err = fn()
		}
		done <- err
	}()
	return <-done
}

// newNamespace makes a network namespace that ends with the test.
func newNamespace(t testing.TB) namespace {
	t.Helper()
	ns := namespace{filepath.Join(t.TempDir(), "net")}
	if err := os.WriteFile(ns.path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	done := make(chan error)
	go func() { // ends at once
		runtime.LockOSThread()
		err := unix.Unshare(unix.CLONE_NEWNET)
		if err == nil {
			err = unix.Mount(fmt.Sprintf("/proc/self/task/%d/ns/net", unix.Gettid()), ns.path, "", unix.MS_BIND, "")
		}
		done <- err
	}()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(ns.path, unix.MNT_DETACH) })
	ns.do(t, func() error { return up("lo") })
	return ns
}

func up(name string) error {
	l, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	return netlink.LinkSetUp(l)
}

// testHost returns a namespace that plays the host, so that the real one's
// bridges and rules are left alone, and networks in it.
func testHost(t testing.TB) (namespace, *Networks) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: makes network namespaces")
	}
	n := &Networks{
		BinDirs: []string{"/usr/lib/cni", "/opt/cni/bin"}, ConfDir: t.TempDir(), Dir: filepath.Join(t.TempDir(), "cni"),
		Bridge: "kata0", Subnet: "10.87.0.0/16",
	}
	if err := n.Check(DefaultNetwork); err != nil {
		t.Skip(err)
	}
	return newNamespace(t), n
}

// serve answers connections to a port in the namespace with the peer's address.
func (ns namespace) serve(t testing.TB, port int) {
	t.Helper()
	var l net.Listener
	ns.do(t, func() (err error) {
		l, err = (&net.ListenConfig{}).Listen(t.Context(), "tcp4", fmt.Sprintf(":%d", port))
		return err
	})
	t.Cleanup(func() { _ = l.Close() })
	go func() { // ends when the listener is closed
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = io.WriteString(c, c.RemoteAddr().(*net.TCPAddr).IP.String())
			_ = c.Close()
		}
	}()
}

// fetch connects from the namespace and returns what the server has seen.
func (ns namespace) fetch(address string) (string, error) {
	var got []byte
	err := ns.try(func() error {
		c, err := (&net.Dialer{Timeout: 3 * time.Second}).Dial("tcp4", address)
		if err != nil {
			return err
		}
		defer c.Close()
		if err := c.SetDeadline(time.Now().Add(3 * time.Second)); err != nil {
			return err
		}
		got, err = io.ReadAll(c)
		return err
	})
	return string(got), err
}

// rules lists the host's interfaces, iptables rules and taken addresses.
func (ns namespace) rules(t testing.TB, n *Networks) []string {
	t.Helper()
	var all []string
	ns.do(t, func() error {
		links, err := netlink.LinkList()
		if err != nil {
			return err
		}
		for _, l := range links {
			if l.Type() == "veth" {
				all = append(all, "veth")
			}
		}
		for _, table := range []string{"nat", "filter"} {
			out, err := exec.CommandContext(t.Context(), "/usr/sbin/iptables", "-t", table, "-S").Output()
			if err != nil {
				return err
			}
			for line := range strings.Lines(string(out)) {
				if strings.HasPrefix(line, "-A") && (strings.Contains(line, "10.87.0.") && !strings.Contains(line, n.Subnet) || strings.Contains(line, "CNI-DN")) {
					all = append(all, strings.TrimSpace(line))
				}
			}
		}
		return nil
	})
	files, err := filepath.Glob(filepath.Join(n.Dir, "addresses", "*", "10.*"))
	if err != nil {
		t.Fatal(err)
	}
	results, err := filepath.Glob(filepath.Join(n.Dir, "results", "*"))
	if err != nil {
		t.Fatal(err)
	}
	return append(append(all, files...), results...)
}

func TestDefaultNetwork(t *testing.T) {
	host, n := testHost(t)
	one, two, outside := newNamespace(t), newNamespace(t), newNamespace(t)
	// A machine beside the host, 192.0.2.2, without a route to containers.
	host.do(t, func() error {
		if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "out0"}, PeerName: "eth0"}); err != nil {
			return err
		}
		peer, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		fd, err := os.Open(outside.path)
		if err != nil {
			return err
		}
		defer fd.Close()
		if err := netlink.LinkSetNsFd(peer, int(fd.Fd())); err != nil {
			return err
		}
		return address("out0", "192.0.2.1/24")
	})
	outside.do(t, func() error { return address("eth0", "192.0.2.2/24") })
	outside.serve(t, 99)

	ports := []Port{{HostPort: 8080, ContainerPort: 80, Protocol: "tcp"}, {HostIP: "127.0.0.1", HostPort: 8081, ContainerPort: 80, Protocol: "tcp"}}
	var reserved *Reservation
	var r1, r2 Result
	host.do(t, func() (err error) {
		if reserved, err = Reserve(t.Context(), ports); err != nil {
			return err
		}
		if r1, err = n.Setup(t.Context(), Attachment{Network: DefaultNetwork, ID: "one", NetNS: one.path, Ports: ports}); err != nil {
			return err
		}
		r2, err = n.Setup(t.Context(), Attachment{Network: DefaultNetwork, ID: "two", NetNS: two.path})
		return err
	})
	defer reserved.Close()
	if diff := cmp.Diff([]string{"10.87.0.2/16", "10.87.0.3/16"}, append(r1.Addresses, r2.Addresses...)); diff != "" {
		t.Errorf("addresses: %s", diff)
	}
	one.serve(t, 80)
	// As dockerd leaves it.
	host.do(t, func() error {
		return exec.CommandContext(t.Context(), "/usr/sbin/iptables", "-P", "FORWARD", "DROP").Run()
	})
	for _, tt := range []struct {
		name string
		from namespace
		to   string
		want string // the address the server sees
	}{
		{"host to container", host, "10.87.0.2:80", "10.87.0.1"},
		{"host's loopback", host, "127.0.0.1:8080", "10.87.0.1"},
		{"host's bridge address", host, "10.87.0.1:8080", "10.87.0.1"},
		{"host's other address", host, "192.0.2.1:8080", "192.0.2.1"},
		{"loopback only, from there", host, "127.0.0.1:8081", "10.87.0.1"},
		{"from outside", outside, "192.0.2.1:8080", "192.0.2.2"},
		{"container to container", two, "10.87.0.2:80", "10.87.0.3"},
		{"container to forwarded port", two, "10.87.0.1:8080", "10.87.0.1"},
		{"container to its own forwarded port", one, "10.87.0.1:8080", "10.87.0.1"},
		{"container to outside, masqueraded", two, "192.0.2.2:99", "192.0.2.1"},
	} {
		got, err := tt.from.fetch(tt.to)
		if err != nil || got != tt.want {
			t.Errorf("%s: %s answers %q, %v; want %q", tt.name, tt.to, got, err, tt.want)
		}
	}
	for name, to := range map[string]string{"loopback only, from outside": "192.0.2.1:8081", "not forwarded": "192.0.2.1:80"} {
		if got, err := outside.fetch(to); err == nil {
			t.Errorf("%s: %s answers %q, want nothing", name, to, got)
		}
	}
	host.do(t, func() error {
		if _, err := Reserve(t.Context(), ports[:1]); !errors.Is(err, unix.EADDRINUSE) || !strings.Contains(err.Error(), "in use, by another container") {
			t.Errorf("second reservation of a port: %v", err)
		}
		// The first namespace is gone before it is detached, as after a crash.
		if err := unix.Unmount(one.path, 0); err != nil {
			return err
		}
		if err := os.Remove(one.path); err != nil {
			return err
		}
		for _, id := range []string{"one", "one", "two", "never"} {
			a := Attachment{Network: DefaultNetwork, ID: id}
			if id == "two" {
				a.NetNS = two.path
			}
			if id == "never" { // as when the mount has gone with its mount namespace
				a.NetNS = filepath.Join(t.TempDir(), "file")
				if err := os.WriteFile(a.NetNS, nil, 0o600); err != nil {
					return err
				}
			}
			if err := n.Teardown(t.Context(), a); err != nil {
				t.Errorf("teardown %s: %v", id, err)
			}
		}
		return nil
	})
	// The veth pair of the first goes with its namespace, which sockets of
	// this test still hold.
	left := host.rules(t, n)
	for _, l := range left {
		if l != "veth" {
			t.Errorf("left after teardown: %s", l)
		}
	}
}

func address(name, cidr string) error {
	l, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	a, err := netlink.ParseAddr(cidr)
	if err != nil {
		return err
	}
	if err := netlink.AddrAdd(l, a); err != nil {
		return err
	}
	return netlink.LinkSetUp(l)
}

func TestAtOnce(t *testing.T) {
	host, n := testHost(t)
	var g errgroup.Group
	for i := range 4 {
		ns := newNamespace(t)
		a := Attachment{Network: DefaultNetwork, ID: fmt.Sprint("c", i), NetNS: ns.path}
		a.Ports = []Port{{HostPort: uint16(9000 + i), ContainerPort: 80, Protocol: "udp"}}
		g.Go(func() error {
			return host.try(func() error {
				if _, err := n.Setup(t.Context(), a); err != nil {
					return err
				}
				return n.Teardown(t.Context(), a)
			})
		})
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	if left := host.rules(t, n); len(left) > 0 {
		t.Errorf("left: %q", left)
	}
}

// TestInterrupted ends a set-up in its middle: addresses and rules are there,
// but libcni has recorded nothing.
func TestInterrupted(t *testing.T) {
	host, n := testHost(t)
	ns := newNamespace(t)
	a := Attachment{Network: DefaultNetwork, ID: "half", NetNS: ns.path, Ports: []Port{{HostPort: 9000, ContainerPort: 80, Protocol: "tcp"}}}
	host.do(t, func() error {
		if _, err := n.Setup(t.Context(), a); err != nil {
			return err
		}
		if err := os.RemoveAll(filepath.Join(n.Dir, "results")); err != nil {
			return err
		}
		return n.Teardown(t.Context(), a)
	})
	left := host.rules(t, n)
	if len(left) > 0 {
		t.Errorf("left: %q", left)
	}
}

func TestSetupFails(t *testing.T) {
	host, n := testHost(t)
	ns := newNamespace(t)
	write := func(name, content string) {
		if err := os.WriteFile(filepath.Join(n.ConfDir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("10-lo.conflist", `{"cniVersion":"1.0.0","name":"lo","plugins":[{"type":"loopback"}]}`)
	write("20-single.conf", `{"cniVersion":"1.0.0","name":"single","type":"bridge","bridge":"x0","ipam":{"type":"host-local","subnet":"10.9.0.0/24","dataDir":"`+t.TempDir()+`"}}`)
	write("30-strange.conflist", `{"cniVersion":"1.0.0","name":"strange","plugins":[{"type":"no-such-plugin","ipam":{"type":"neither"}}]}`)
	write("40-broken.conflist", `{`)
	for _, tt := range []struct {
		name string
		a    Attachment
		want string
	}{
		{"unknown network", Attachment{Network: "other"}, `"other" is not configured`},
		{"broken file is named", Attachment{Network: "other"}, "40-broken.conflist"},
		{"known ones are listed", Attachment{Network: "other"}, "there are kata, lo, single, strange"},
		{"missing plugins", Attachment{Network: "strange"}, "no CNI plugin no-such-plugin, neither in /usr/lib/cni"},
		{"ports without portmap", Attachment{Network: "single", Ports: []Port{{HostPort: 1, ContainerPort: 1, Protocol: "tcp"}}}, "cannot forward ports"},
		{"no namespace", Attachment{Network: DefaultNetwork, ID: "x", NetNS: "/does/not/exist"}, "no such file"},
		{"no IPv6", Attachment{Network: DefaultNetwork, ID: "six", NetNS: ns.path, Ports: []Port{{HostIP: "::1", HostPort: 1, ContainerPort: 1, Protocol: "tcp"}}}, "no IPv6"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			host.do(t, func() error {
				if _, err := n.Setup(t.Context(), tt.a); err == nil || !strings.Contains(err.Error(), tt.want) {
					t.Errorf("setup: %v, want an error with %q", err, tt.want)
				}
				return nil
			})
			if left := host.rules(t, n); len(left) > 0 {
				t.Errorf("left: %q", left)
			}
		})
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := n.Setup(ctx, Attachment{Network: DefaultNetwork, ID: "y", NetNS: ns.path}); !errors.Is(err, context.Canceled) {
		t.Errorf("setup after cancel: %v", err)
	}
	host.do(t, func() error { // a file with a single plugin
		a := Attachment{Network: "single", ID: "z", NetNS: ns.path}
		if r, err := n.Setup(t.Context(), a); err != nil || len(r.Addresses) != 1 || r.Addresses[0] != "10.9.0.2/24" {
			t.Errorf("setup = %+v, %v", r, err)
		}
		return n.Teardown(t.Context(), a)
	})
}

// TestPluginFails: what a plugin says is told, and it has hold of the lock.
func TestPluginFails(t *testing.T) {
	host, n := testHost(t)
	ns := newNamespace(t)
	n.BinDirs = append([]string{t.TempDir()}, n.BinDirs...)
	conf := `{"cniVersion":"1.0.0","name":"fails","plugins":[{"type":"fails"}]}`
	if err := os.WriteFile(filepath.Join(n.ConfDir, "fails.conflist"), []byte(conf), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct{ name, script, want string }{
		{"with a message", `echo "{\"code\":100,\"msg\":\"has $(readlink /proc/$$/fd/3)\"}"; exit 1`, "has " + filepath.Join(n.Dir, "lock")},
		{"without one", `echo strange; echo words >&2; exit 3`, `exit status 3: "strange\n words"`},
		{"without a word", `exit 4`, `exit status 4: ""`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if err := os.WriteFile(filepath.Join(n.BinDirs[0], "fails"), []byte("#!/bin/sh\n"+tt.script), 0o700); err != nil {
				t.Fatal(err)
			}
			host.do(t, func() error {
				_, err := n.Setup(t.Context(), Attachment{Network: "fails", ID: "x", NetNS: ns.path})
				if err == nil || !strings.Contains(err.Error(), tt.want) {
					t.Errorf("setup: %v, want an error with %q", err, tt.want)
				}
				return nil
			})
		})
	}
}

func TestBadSubnet(t *testing.T) {
	for _, subnet := range []string{"", "10.87.0.0", "fd00::/64", "10.0.0.0/30", "10.0.0.0/99"} {
		n := &Networks{Subnet: subnet}
		if err := n.Check(DefaultNetwork); err == nil || !strings.Contains(err.Error(), "network.subnet") {
			t.Errorf("check with subnet %q: %v", subnet, err)
		}
	}
}

func TestReserve(t *testing.T) {
	free, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := uint16(free.Addr().(*net.TCPAddr).Port)
	if err := free.Close(); err != nil {
		t.Fatal(err)
	}
	ports := []Port{{HostIP: "127.0.0.1", HostPort: port, Protocol: "tcp"}, {HostIP: "127.0.0.1", HostPort: port, Protocol: "udp"}}
	for range 2 {
		r, err := Reserve(t.Context(), ports)
		if err != nil {
			t.Fatal(err)
		}
		if err := r.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := Reserve(t.Context(), []Port{{HostIP: "192.0.2.77", HostPort: port, Protocol: "tcp"}}); err == nil || !strings.Contains(err.Error(), "no address 192.0.2.77") {
		t.Errorf("reserve at an address of somebody else: %v", err)
	}
	if _, err := Reserve(t.Context(), []Port{{HostPort: port, Protocol: "sctp"}}); err == nil {
		t.Error("reserve of an unknown protocol: no error")
	}
}
