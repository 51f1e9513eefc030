package containerd

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/seed-efd44b36/kata/internal/thread"
	"golang.org/x/sys/unix"
)

// Network is a network namespace for daemons and, behind bridges, their pods. No
// way leads out of it.
type Network struct {
	// Name and Path are as `ip netns` has them.
	Name, Path string
	plugins    int
}

// NewNetwork makes a network namespace, which Remove removes.
func NewNetwork(name string) (*Network, error) {
	n := &Network{Name: name, Path: filepath.Join("/run/netns", name)}
	steps := [][]string{
		{"ip", "netns", "add", name},
		{"ip", "-n", name, "link", "set", "lo", "up"},
		// Bridges forward what the rules of the host let through only; the
		// namespace has rules of its own.
		{"nsenter", "--net=" + n.Path, "sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1"},
	}
	for _, s := range steps {
		if out, err := exec.Command(s[0], s[1:]...).CombinedOutput(); err != nil {
			return nil, fmt.Errorf("%s: %w: %s", strings.Join(s, " "), err, out)
		}
	}
	return n, nil
}

// Remove removes the namespace, and with it bridges and rules.
func (n *Network) Remove() error {
	if out, err := exec.Command("ip", "netns", "delete", n.Name).CombinedOutput(); err != nil {
		return fmt.Errorf("ip netns delete %s: %w: %s", n.Name, err, out)
	}
	return nil
}

// Plugins writes a list of CNI plugins with a bridge and addresses of its own,
// of version 4 and 6, below dir and returns the directory that it is in.
func (n *Network) Plugins(dir string) (string, error) {
	confDir := filepath.Join(dir, "net.d")
	if err := os.MkdirAll(confDir, 0o755); err != nil {
		return "", err
	}
	n.plugins++
	list := fmt.Sprintf(`{ "cniVersion": "0.4.0", "name": %q, "plugins": [
  { "type": "bridge", "bridge": "kata%d", "isGateway": true, "ipMasq": true,
    "ipam": { "type": "host-local", "dataDir": %q,
      "ranges": [[{ "subnet": "10.88.%d.0/24" }], [{ "subnet": "fd00:88:%d::/64" }]],
      "routes": [{ "dst": "0.0.0.0/0" }, { "dst": "::/0" }] } },
  { "type": "portmap", "capabilities": { "portMappings": true } } ] }
`, fmt.Sprintf("%s-%d", n.Name, n.plugins), n.plugins, filepath.Join(dir, "addresses"), n.plugins, n.plugins)
	return confDir, os.WriteFile(filepath.Join(confDir, "10-kata.conflist"), []byte(list), 0o644)
}

// Dial connects to an address as seen in the namespace. It must be an IP address:
// a name would be resolved outside.
func (n *Network) Dial(ctx context.Context, network, address string) (net.Conn, error) {
	var conn net.Conn
	err := thread.Run(func() error {
		ns, err := os.Open(n.Path)
		if err != nil {
			return err
		}
		defer ns.Close()
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("enter network namespace %s: %w", n.Name, err)
		}
		var d net.Dialer
		conn, err = d.DialContext(ctx, network, address)
		return err
	})
	return conn, err
}
