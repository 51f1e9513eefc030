package cni

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"time"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/invoke"
	"github.com/containernetworking/cni/pkg/types"
	"github.com/containernetworking/cni/pkg/version"
)

// systemPath is where plugins find iptables, whatever this process was given.
const systemPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// outputDelay is how long the output of a plugin that has ended may be kept
// open by a process that it started.
const outputDelay = 5 * time.Second

// plugins runs plugins for libcni.
type plugins struct {
	invoke.RawExec // to find them
	version.PluginDecoder
	// lock is handed to the plugins: should this process be killed, one that
	// still works holds the lock until it has ended, and what it has made is
	// found by who tears down.
	lock *os.File
}

// ExecPlugin implements invoke.Exec.
func (p *plugins) ExecPlugin(ctx context.Context, path string, stdin []byte, env []string) ([]byte, error) {
	env = slices.DeleteFunc(slices.Clone(env), func(kv string) bool { return strings.HasPrefix(kv, "PATH=") })
	var stdout, stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, path)
	cmd.Env = append(env, "PATH="+systemPath)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(stdin), &stdout, &stderr
	cmd.ExtraFiles = []*os.File{p.lock}
	cmd.WaitDelay = outputDelay
	err := cmd.Run()
	if err == nil {
		return stdout.Bytes(), nil
	}
	err = pluginError(err, stdout.Bytes(), stderr.Bytes())
	if cerr := context.Cause(ctx); cerr != nil {
		err = fmt.Errorf("%w (%w)", cerr, err)
	}
	return nil, err
}

// pluginError is what a plugin that failed has to say: by the CNI specification
// a description in JSON on its standard output.
func pluginError(err error, stdout, stderr []byte) error {
	var told types.Error
	if json.Unmarshal(stdout, &told) == nil && told.Msg != "" {
		return &told
	}
	said := strings.TrimSpace(string(bytes.Join([][]byte{stdout, stderr}, []byte(" "))))
	return fmt.Errorf("%w: %.1000q", err, said)
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
