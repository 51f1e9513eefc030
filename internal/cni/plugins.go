package cni

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/invoke"
	"github.com/containernetworking/cni/pkg/version"
)

// systemPath is where plugins find iptables, whatever this process was given.
const systemPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// plugins runs plugins for libcni.
type plugins struct {
	invoke.RawExec
	version.PluginDecoder
}

// ExecPlugin implements invoke.Exec.
func (p *plugins) ExecPlugin(ctx context.Context, path string, stdin []byte, env []string) ([]byte, error) {
	env = slices.DeleteFunc(slices.Clone(env), func(kv string) bool { return strings.HasPrefix(kv, "PATH=") })
	out, err := p.RawExec.ExecPlugin(ctx, path, stdin, append(env, "PATH="+systemPath))
	if cerr := context.Cause(ctx); cerr != nil && err != nil {
		return nil, fmt.Errorf("%w (%w)", cerr, err)
	}
	return out, err
}

// Check says what is missing to attach to the network, and how to get it.
func (n *Networks) Check(network string) error {
	list, err := n.network(network)
	if err != nil {
		return err
	}
	return n.check(list, Attachment{Network: network})
}

func (n *Networks) check(list *libcni.NetworkConfigList, a Attachment) error {
	var missing []string
	iptables, ports := a.Network == DefaultNetwork, false
	for _, p := range list.Plugins {
		needed := []string{p.Network.Type}
		if p.Network.IPAM.Type != "" {
			needed = append(needed, p.Network.IPAM.Type)
		}
		for _, name := range needed {
			if _, err := invoke.FindInPath(name, n.BinDirs); err != nil && !slices.Contains(missing, name) {
				missing = append(missing, name)
			}
		}
		var c struct {
			IPMasq bool `json:"ipMasq"`
		}
		// Whether a plugin needs iptables is told by its type or this field.
		if err := json.Unmarshal(p.Bytes, &c); err != nil {
			return fmt.Errorf("network %s: plugin %s: %w", a.Network, p.Network.Type, err)
		}
		iptables = iptables || c.IPMasq || p.Network.Type == "portmap" || p.Network.Type == "firewall"
		ports = ports || p.Network.Capabilities[portCapability]
	}
	if len(missing) > 0 {
		return fmt.Errorf("network %s: no CNI plugin %s in %s; `apt-get install containernetworking-plugins` brings them, or use --network none",
			a.Network, strings.Join(missing, ", "), strings.Join(n.BinDirs, ", "))
	}
	if iptables {
		if _, err := findIptables(); err != nil {
			return fmt.Errorf("network %s: %w", a.Network, err)
		}
	}
	if len(a.Ports) > 0 && !ports {
		return fmt.Errorf("network %s cannot forward ports: its configuration has no plugin with the capability %s", a.Network, portCapability)
	}
	return nil
}
